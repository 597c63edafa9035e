package segment

import (
	"fmt"
	"slices"

	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

// indexStep is how much the active segment grows before a checkpoint writes its
// index again. It bounds what Open has to walk.
const indexStep = 1 << 20

// DropBefore makes offset the first readable one, if it is further than the
// current one, and drops the segments that lie wholly before it: the active one
// too. Their files stay until a durable checkpoint no longer names them and no pin
// holds them (correctness rule 12). offset is at most NextOffset.
func (l *Log) DropBefore(offset int64) {
	next := l.NextOffset()
	invariant.Check(offset <= next, "segment %s: start %d beyond the end %d", l.dir, offset, next)
	if offset <= l.start.Load() {
		return
	}
	l.start.Store(offset)
	old := *l.list.Load()
	n := 0
	for n < len(old) && old[n].pub.Load().size > 0 && old[n].pub.Load().next <= offset {
		n++
	}
	if n == 0 {
		return
	}
	list := slices.Clone(old[n:])
	if len(list) == 0 {
		list = []*segment{newSegment(l.fs, l.dir, next)}
	}
	for _, s := range old[:n] {
		s.dropped.Store(true)
	}
	l.list.Store(&list)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	for _, s := range old[:n] {
		s.dropSeq = l.seq
	}
	l.drops = append(l.drops, old[:n]...)
}

// Pin is the log at one moment: its files stay, at least as long as they were
// then, until Release. Its methods are called from one goroutine, any.
type Pin struct {
	l    *Log
	seq  uint64
	list []*segment
	last published // the active segment's view

	StartOffset int64
	NextOffset  int64
}

// Capture pins the log as it is now. It takes no time that grows with the log.
// The caller must Release the pin.
func (l *Log) Capture() *Pin {
	list := *l.list.Load()
	p := &Pin{l: l, list: list, last: *list[len(list)-1].pub.Load(), StartOffset: l.start.Load()}
	p.NextOffset = p.last.next
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	p.seq = l.seq
	l.pins[p] = struct{}{}
	return p
}

// Files describes the pinned segments.
func (p *Pin) Files() []Info { return infos(p.list, &p.last) }

// Sync makes the pinned bytes and the files' names durable: it syncs the segments
// that were written since the last sync, and the directory if files were added.
// A sync that failed is never tried again: it, and every later one, returns the error.
func (p *Pin) Sync() error {
	l := p.l
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	if l.failed != nil {
		return l.failed
	}
	created := l.created.Load()
	for k, s := range p.list {
		size := s.pub.Load().size
		if k == len(p.list)-1 {
			size = p.last.size
		}
		if err := l.syncSegment(s, size); err != nil {
			return l.fail(fmt.Errorf("sync %s: %w", s.path, err))
		}
	}
	if created != l.dirSynced {
		invariant.Point("segment.dir.before-sync")
		if err := vfs.SyncDir(l.fs, l.dir); err != nil {
			return l.fail(fmt.Errorf("sync %s: %w", l.dir, err))
		}
		invariant.Point("segment.dir.after-sync")
		l.dirSynced = created
	}
	p.saveIndexes()
	return nil
}

func (l *Log) fail(err error) error {
	if !l.closing.Load() {
		l.failed = err
	}
	return err
}

// syncSegment makes the first size bytes durable. syncMu is held.
func (l *Log) syncSegment(s *segment, size int64) error {
	if s.synced.Load() >= size {
		return nil
	}
	w := s.w.Load()
	if w == nil || !w.acquire() {
		return ErrClosed // only Close and an unlink take the handle of an unsynced file
	}
	defer w.release()
	// What is published by now is in the file, so it becomes durable as well.
	size = s.pub.Load().size
	invariant.Point("segment.file.before-sync")
	if err := w.SyncData(); err != nil {
		return err
	}
	invariant.Point("segment.file.after-sync")
	s.synced.Store(size)
	return nil
}

// saveIndexes closes the write handles of synced sealed segments, writes the
// indexes they lack, frees them from memory, and writes the active one's if it has
// grown. Failure to write an index is no error.
func (p *Pin) saveIndexes() {
	last := len(p.list) - 1
	for k, s := range p.list {
		if k == last {
			if p.last.size-s.indexed.Load() >= indexStep {
				p.l.saveIndex(s, &p.last)
			}
			continue
		}
		if w := s.w.Swap(nil); w != nil {
			w.release()
		}
		v := s.pub.Load()
		if v.indexOnDisk || s.dropped.Load() {
			continue
		}
		if s.indexed.Load() != v.size {
			p.l.saveIndex(s, v)
		}
		if s.indexed.Load() == v.size {
			without := *v
			without.index, without.indexOnDisk = nil, true
			s.pub.Store(&without)
		}
	}
}

// Published says that a durable checkpoint names the pinned files and no others:
// files dropped before the capture may go once no pin holds them.
func (p *Pin) Published() {
	l := p.l
	l.mu.Lock()
	l.publishes = max(l.publishes, p.seq)
	gone := l.unlinkable()
	l.mu.Unlock()
	l.unlink(gone)
}

// Release ends the pin.
func (p *Pin) Release() {
	l := p.l
	l.mu.Lock()
	delete(l.pins, p)
	gone := l.unlinkable()
	l.mu.Unlock()
	l.unlink(gone)
}

// unlinkable takes out of drops the segments whose drop a published capture
// followed and no pin preceded. mu is held.
func (l *Log) unlinkable() []*segment {
	if l.closing.Load() {
		return nil
	}
	upTo := l.publishes
	for p := range l.pins {
		upTo = min(upTo, p.seq)
	}
	n := 0
	for n < len(l.drops) && l.drops[n].dropSeq <= upTo {
		n++
	}
	gone := l.drops[:n:n]
	l.drops = l.drops[n:]
	return gone
}

// unlink removes files of dropped segments. One that cannot be removed is removed
// by the next Open.
func (l *Log) unlink(gone []*segment) {
	for _, s := range gone {
		invariant.Point("segment.file.before-unlink")
		_ = l.fs.Remove(s.path)
		_ = l.fs.Remove(l.idxPath(s))
		if w := s.w.Swap(nil); w != nil {
			w.release()
		}
		l.handles.forget(s, nil)
	}
}
