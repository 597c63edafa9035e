package raftlog

import (
	"encoding/binary"
	"fmt"

	"chronik/internal/ident"
)

// A footer has one record a frame, in the file's order, LSNs consecutive and
// frames adjacent. Appends are told in full; of the other kinds, which are
// few, only place and owner: open reads those frames.
//
//	tag      1 byte, bits below
//	replica  uvarint: number of the replica within the footer, in order of appearance
//	         footNew: uvarint replica id, uvarint group id
//	size     uvarint: frame size / 8
//	appends  unless footSameVote: uvarint term, uvarint vote
//	         varint: commit less the replica's previous commit
//	         uvarint: number of entries; if not 0:
//	           unless footNext: uvarint first index
//	           footSameTerm: all have the term of the replica's last entry; else
//	           uvarint spans, each uvarint n, uvarint term, uvarint bytes
const (
	footAppend   = 1 << iota // else: read the frame
	footNew                  // first appearance of the replica in this footer
	footSameVote             // hard state's term and vote as before
	footNext                 // first index follows the last one
	footSameTerm             // one span, of the last entry's term
	footKnown    = 1<<iota - 1
)

// maxFooterSpans bounds what an append adds to the footer; one with more changes
// of term is left to be read.
const maxFooterSpans = 8

// maxFooterRecord is the largest record: tag, replica, new (2), size, vote (2),
// commit, n, first, spans count, spans.
const maxFooterRecord = 1 + 10*(1+2+1+2+1+1+1+1+3*maxFooterSpans)

// footReplica is what footer records of a replica are relative to.
type footReplica struct {
	replica ident.ReplicaID
	group   ident.GroupID
	hs      HardState
	last    ident.Index
	term    ident.Term
}

// footer collects the active file's records.
type footer struct {
	buf      []byte
	replicas []footReplica
	number   map[ident.ReplicaID]int
}

func (w *footer) reset() {
	w.buf, w.replicas, w.number = w.buf[:0], w.replicas[:0], make(map[ident.ReplicaID]int)
}

// add appends f's record.
func (w *footer) add(f *frame) {
	i, known := w.number[f.replica]
	var tag byte
	if !known {
		tag |= footNew
		i = len(w.replicas)
		w.number[f.replica] = i
		w.replicas = append(w.replicas, footReplica{replica: f.replica, group: f.group})
	}
	r := &w.replicas[i]
	compact := f.kind == kindAppend && f.install == nil && len(f.spans) <= maxFooterSpans
	if compact {
		tag |= footAppend
		if f.hs.Term == r.hs.Term && f.hs.Vote == r.hs.Vote {
			tag |= footSameVote
		}
		if f.first == r.last+1 {
			tag |= footNext
		}
		if len(f.spans) == 1 && f.spans[0].term == r.term {
			tag |= footSameTerm
		}
	}
	w.buf = append(w.buf, tag)
	w.buf = binary.AppendUvarint(w.buf, uint64(i))
	if !known {
		w.buf = binary.AppendUvarint(w.buf, uint64(f.replica))
		w.buf = binary.AppendUvarint(w.buf, uint64(f.group))
	}
	w.buf = binary.AppendUvarint(w.buf, uint64(f.size/frameAlign))
	if compact {
		w.addAppend(tag, r, f)
	}
}

func (w *footer) addAppend(tag byte, r *footReplica, f *frame) {
	if tag&footSameVote == 0 {
		w.buf = binary.AppendUvarint(w.buf, uint64(f.hs.Term))
		w.buf = binary.AppendUvarint(w.buf, uint64(f.hs.Vote))
	}
	w.buf = binary.AppendVarint(w.buf, int64(f.hs.Commit)-int64(r.hs.Commit))
	r.hs = f.hs
	w.buf = binary.AppendUvarint(w.buf, uint64(f.n))
	if f.n == 0 {
		return
	}
	if tag&footNext == 0 {
		w.buf = binary.AppendUvarint(w.buf, uint64(f.first))
	}
	if tag&footSameTerm == 0 {
		w.buf = binary.AppendUvarint(w.buf, uint64(len(f.spans)))
		for _, s := range f.spans {
			w.buf = binary.AppendUvarint(w.buf, uint64(s.n))
			w.buf = binary.AppendUvarint(w.buf, uint64(s.term))
			w.buf = binary.AppendUvarint(w.buf, uint64(s.bytes))
		}
	}
	r.last, r.term = f.first+ident.Index(f.n)-1, f.lastTerm
}

// footFrame is a frame as the footer tells it; read says that it must be read
// from the file, and only off, size, lsn, group and replica are set.
type footFrame struct {
	frame
	read bool
}

// decodeFooter gives the frames of a sealed file to fn, in order. The frames
// must fill the file from dataOffset to end exactly.
func decodeFooter(b []byte, firstLSN uint64, end int64, fn func(*footFrame) error) (lastLSN uint64, err error) {
	c := cursor{b: b}
	var replicas []footReplica
	off, lsn := int64(dataOffset), firstLSN
	if end < off {
		return 0, fmt.Errorf("%w: footer at byte %d", errFormat, end)
	}
	for len(c.b) > 0 {
		var f footFrame
		tag := c.u8()
		i := c.uvarint()
		if tag&^footKnown != 0 || i > uint64(len(replicas)) || (tag&footNew != 0) != (i == uint64(len(replicas))) {
			return 0, fmt.Errorf("%w: footer record of frame %d", errFormat, lsn)
		}
		if tag&footNew != 0 {
			replicas = append(replicas, footReplica{replica: ident.ReplicaID(c.uvarint()), group: ident.GroupID(c.uvarint())})
		}
		r := &replicas[i]
		size := c.uvarint()
		f.off, f.lsn, f.replica, f.group = off, lsn, r.replica, r.group
		if size > uint64(end-off)/frameAlign || size < frameHeaderBytes/frameAlign {
			return 0, fmt.Errorf("%w: footer size of frame %d", errFormat, lsn)
		}
		f.size = int64(size) * frameAlign
		f.read = tag&footAppend == 0
		if !f.read {
			decodeFootAppend(&c, tag, r, &f.frame)
		}
		if c.bad {
			return 0, fmt.Errorf("%w: footer record of frame %d", errFormat, lsn)
		}
		if err := fn(&f); err != nil {
			return 0, err
		}
		off += f.size
		lsn++
	}
	if off != end {
		return 0, fmt.Errorf("%w: footer ends at byte %d, not %d", errFormat, off, end)
	}
	return lsn - 1, nil
}

func decodeFootAppend(c *cursor, tag byte, r *footReplica, f *frame) {
	f.kind, f.flags = kindAppend, hasHardState
	if tag&footSameVote == 0 {
		r.hs.Term = ident.Term(c.uvarint())
		r.hs.Vote = ident.ReplicaID(c.uvarint())
	}
	r.hs.Commit += ident.Index(c.varint())
	f.hs = r.hs
	n := c.uvarint()
	// Each entry takes its header in the frame.
	if n > uint64(f.size)/entryHeaderBytes {
		c.bad = true
	}
	if n == 0 || c.bad {
		return
	}
	f.n = uint32(n)
	f.first = r.last + 1
	if tag&footNext == 0 {
		f.first = ident.Index(c.uvarint())
	}
	if f.first == 0 || uint64(f.first)+n < n {
		c.bad = true
		return
	}
	if tag&footSameTerm != 0 {
		f.spans = []span{{first: f.first, term: r.term, n: f.n, bytes: uint32(f.size)}}
	} else {
		decodeFootSpans(c, f)
	}
	if c.bad {
		return
	}
	f.lastTerm = f.spans[len(f.spans)-1].term
	r.last, r.term = f.first+ident.Index(f.n)-1, f.lastTerm
}

func decodeFootSpans(c *cursor, f *frame) {
	count := c.uvarint()
	if count == 0 || count > maxFooterSpans {
		c.bad = true
		return
	}
	f.spans = make([]span, 0, count)
	next, left := f.first, f.n
	for range count {
		n, term, bytes := c.uvarint(), ident.Term(c.uvarint()), c.uvarint()
		if c.bad || n == 0 || n > uint64(left) || bytes > uint64(f.size) {
			c.bad = true
			return
		}
		f.spans = append(f.spans, span{first: next, term: term, n: uint32(n), bytes: uint32(bytes)})
		next += ident.Index(n)
		left -= uint32(n)
	}
	c.bad = c.bad || left != 0
}

func (c *cursor) varint() int64 {
	v, n := binary.Varint(c.b)
	if c.bad || n <= 0 {
		c.bad = true
		return 0
	}
	c.b = c.b[n:]
	return v
}
