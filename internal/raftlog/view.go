package raftlog

import (
	"errors"
	"fmt"

	"chronik/internal/ident"
)

// View reads one replica's log. Its methods may be called from any goroutine,
// also while the log writes; none waits for I/O of the writer.
type View struct {
	l *Log
	r *replica
}

// Replica returns the view of a live replica, nil if there is none. It is valid until Remove.
func (l *Log) Replica(id ident.ReplicaID) *View {
	r := l.lookup(id)
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.creation == nil || r.removed {
		return nil
	}
	return &r.view
}

// FirstIndex returns the first index kept; the log may be empty and end before it.
func (v *View) FirstIndex() ident.Index {
	v.r.mu.Lock()
	defer v.r.mu.Unlock()
	return v.r.base + 1
}

// LastIndex returns the last durable index; FirstIndex-1 if there is none.
func (v *View) LastIndex() ident.Index {
	v.r.mu.Lock()
	defer v.r.mu.Unlock()
	return v.r.last()
}

// Term returns the term of an entry from FirstIndex-1 to LastIndex. Before them
// it is ErrCompacted, behind them ErrUnavailable.
func (v *View) Term(i ident.Index) (ident.Term, error) {
	v.r.mu.Lock()
	defer v.r.mu.Unlock()
	return v.r.term(i)
}

// HardState returns the durable hard state; before the first append what the
// creation implies: its FirstTerm, and First as commit.
func (v *View) HardState() HardState {
	v.r.mu.Lock()
	defer v.r.mu.Unlock()
	return v.r.hs
}

// Install returns the latest install record, nil if there is none. It must not be changed.
func (v *View) Install() *Install {
	v.r.mu.Lock()
	defer v.r.mu.Unlock()
	return v.r.install
}

// Creation returns the replica's creation record. Info must not be changed.
func (v *View) Creation() Creation {
	v.r.mu.Lock()
	defer v.r.mu.Unlock()
	return *v.r.creation
}

// Bytes returns what the replica's entries take in the log.
func (v *View) Bytes() int64 {
	v.r.mu.Lock()
	defer v.r.mu.Unlock()
	return v.r.bytes
}

// entryBytes is what an entry counts against maxBytes of Entries.
func entryBytes(e *Entry) int64 { return entryHeaderBytes + int64(len(e.Data)) }

// Entries returns the entries lo <= index < hi, or the first of them up to
// maxBytes (payload and 13 bytes each), at least one. From memory if they are
// recent, else from the file, verified; then an error may be an ErrCorrupt, which
// names file and byte. ErrCompacted and ErrUnavailable as for Term. Data must
// not be changed.
func (v *View) Entries(lo, hi ident.Index, maxBytes int64) ([]Entry, error) {
	if lo >= hi {
		return nil, nil
	}
	out := selection{next: lo, hi: hi, left: maxBytes}
	for !out.full() {
		refs, err := v.locate(&out)
		if err != nil {
			if len(out.entries) > 0 && errors.Is(err, ErrCompacted) {
				break // trimmed meanwhile; what was read is right
			}
			return nil, err
		}
		if len(refs) == 0 {
			continue
		}
		err = v.read(&out, refs)
		for i := range refs {
			err = errors.Join(err, refs[i].file.release())
		}
		if err != nil {
			return nil, fmt.Errorf("raftlog: read replica %d from entry %d: %w", v.r.id, out.next, err)
		}
	}
	return out.entries, nil
}

// selection collects the answer of Entries.
type selection struct {
	entries  []Entry
	next, hi ident.Index
	left     int64
	over     bool // the next entry did not fit
}

func (s *selection) full() bool { return s.over || s.next >= s.hi }

// add takes entries, which begin with next.
func (s *selection) add(entries []Entry) {
	for i := range entries {
		if s.next >= s.hi {
			return
		}
		cost := entryBytes(&entries[i])
		if cost > s.left && len(s.entries) > 0 {
			s.over = true
			return
		}
		s.entries = append(s.entries, entries[i])
		s.left -= cost
		s.next++
	}
}

// locate takes what the cache has. If the next entry is not in it, it returns
// where the following ones are, with their files acquired.
func (v *View) locate(s *selection) ([]entryRef, error) {
	r := v.r
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.removed:
		return nil, fmt.Errorf("replica %d: %w", r.id, ErrUnknownReplica)
	case s.next <= r.base:
		return nil, ErrCompacted
	case s.hi > r.last()+1:
		return nil, ErrUnavailable
	}
	if len(r.cache) > 0 && s.next >= r.cache[0].Index {
		s.add(r.cache[s.next-r.cache[0].Index:])
		return nil, nil
	}
	end := s.hi
	if len(r.cache) > 0 {
		end = min(end, r.cache[0].Index)
	}
	var refs []entryRef
	next, left := s.next, s.left
	for k := r.find(next); k < len(r.refs) && next < end && (left > 0 || len(refs) == 0); k++ {
		e := r.refs[k]
		if e.first > next {
			break
		}
		if !e.file.acquire() {
			return nil, errors.Join(ErrClosed, releaseAll(refs))
		}
		refs = append(refs, e)
		next = e.last() + 1
		left -= int64(e.bytes)
	}
	if len(refs) == 0 {
		return nil, fmt.Errorf("replica %d: entry %d: %w: no record has it", r.id, next, ErrCorrupt)
	}
	return refs, nil
}

func releaseAll(refs []entryRef) error {
	var err error
	for i := range refs {
		err = errors.Join(err, refs[i].file.release())
	}
	return err
}

// maxRead bounds what is read at once if it is more than one frame.
const maxRead = 1 << 20

// read reads the frames of refs, neighbours in a file together.
func (v *View) read(s *selection, refs []entryRef) error {
	for i := 0; i < len(refs) && !s.full(); {
		f, off := refs[i].file, int64(refs[i].off)
		end := off + int64(refs[i].size)
		n := 1
		for ; i+n < len(refs) && refs[i+n].file == f; n++ {
			e := &refs[i+n]
			if int64(e.off) == end-int64(e.size) && e.off == refs[i+n-1].off {
				continue // the same frame, another term
			}
			if int64(e.off) != end || end+int64(e.size)-off > maxRead {
				break
			}
			end += int64(e.size)
		}
		b := make([]byte, end-off)
		if err := f.readAt(b, off); err != nil {
			return err
		}
		if err := v.pick(s, refs[i:i+n], b, off); err != nil {
			return err
		}
		i += n
	}
	return nil
}

// pick takes the entries of refs out of b, which was read from off.
func (v *View) pick(s *selection, refs []entryRef, b []byte, off int64) error {
	var fr frame
	for i := range refs {
		e := &refs[i]
		if s.full() {
			return nil
		}
		if i == 0 || e.off != refs[i-1].off {
			var err error
			if fr, err = e.file.decodeAt(b[int64(e.off)-off:], int64(e.off), true); err != nil {
				return err
			}
		}
		if err := checkOwner(&fr, v.r, e); err != nil {
			return err
		}
		s.add(fr.entries[s.next-fr.first : e.last()+1-fr.first])
	}
	return nil
}
