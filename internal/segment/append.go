package segment

import (
	"fmt"
	"math"
	"sort"
	"sync"

	"chronik/internal/invariant"
	"chronik/internal/record"
	"chronik/internal/vfs"
)

// maxKeptBuffer bounds the write buffers that are kept for reuse.
const maxKeptBuffer = 4 << 20

// writeBackStep is how many bytes are appended before the kernel is asked to
// start writing them, so that the sync of a checkpoint finds little left to do:
// after 128 MiB on ext4 it took 1 ms instead of 52 ms, and appends took no longer.
const writeBackStep = 1 << 20

var buffers = sync.Pool{New: func() any { return new([]byte) }}

// staging is what Stage has gathered and Flush will write. The log itself is
// untouched until all writes have succeeded.
type staging struct {
	// vec is what Flush writes, in order: parts of buf, and the callers' batches.
	vec [][]byte
	// buf holds what is stamped: the headers of large batches, and small batches
	// whole. buf[mark:] is not yet in vec.
	buf    *[]byte
	mark   int
	pieces []piece
	// start is the start of the log once flushed, if larger than the current one.
	start int64
	// roll: everything staged so far lies before start, so the next batch begins a segment.
	roll bool
}

// piece is the part of a staging that goes into one segment.
type piece struct {
	seg   *segment
	isNew bool
	from  int   // in vec; the piece ends where the next one starts
	at    int64 // in the file
	view  indexer
}

// copyBelow is the size below which a batch is copied beside its neighbours. A
// piece of its own costs the kernel more than that.
const copyBelow = 4 << 10

// Stage adds a batch at the end of the log, with its offset and leaderEpoch
// stamped, to what the next Flush writes, and returns the offset. b holds exactly
// one valid batch. It is not changed here, and must not change before Flush or
// Discard: only the stamped header of a large one is copied.
func (l *Log) Stage(b []byte, leaderEpoch int32) (baseOffset int64) {
	h, err := record.Header(b)
	invariant.Check(err == nil && h.Size() == len(b), "segment %s: stage %d bytes that are no batch: %v", l.dir, len(b), err)
	p := l.pieceFor(h, int64(len(b)))
	base := p.view.next
	if l.stage.buf == nil {
		l.stage.buf = buffers.Get().(*[]byte)
	}
	l.stage.add(b, base, leaderEpoch)
	p.view.add(base, base+int64(h.LastOffsetDelta())+1, h.MaxTimestamp(), int64(len(b)))
	return base
}

func (st *staging) add(b []byte, base int64, leaderEpoch int32) {
	own := len(b)
	if own >= copyBelow {
		own = record.HeaderSize
	}
	buf := append(*st.buf, b[:own]...)
	*st.buf = buf
	record.Stamp(buf[len(buf)-own:], base, leaderEpoch)
	if own < len(b) {
		st.cut()
		st.vec = append(st.vec, b[own:])
	}
}

// cut moves what was copied so far to vec. buf may move elsewhere later; what was
// handed out stays.
func (st *staging) cut() {
	if st.buf == nil || st.mark == len(*st.buf) {
		return
	}
	st.vec = append(st.vec, (*st.buf)[st.mark:])
	st.mark = len(*st.buf)
}

// StagedOffset is the offset the next staged batch gets.
func (l *Log) StagedOffset() int64 {
	if n := len(l.stage.pieces); n > 0 {
		return l.stage.pieces[n-1].view.next
	}
	return l.NextOffset()
}

// StageStart makes offset the first readable one when the next Flush succeeds,
// as DropBefore does at once. Batches staged later may not go where they would
// have gone: dropping the active segment begins a new one.
func (l *Log) StageStart(offset int64) {
	next := l.StagedOffset()
	invariant.Check(offset <= next, "segment %s: start %d beyond the end %d", l.dir, offset, next)
	if offset <= max(l.stage.start, l.start.Load()) {
		return
	}
	l.stage.start = offset
	l.stage.roll = offset == next
}

// pieceFor returns the piece the batch goes into, rolling first if it is due.
func (l *Log) pieceFor(h record.Batch, size int64) *piece {
	st := &l.stage
	if len(st.pieces) == 0 {
		seg := l.active()
		view := indexer{*seg.pub.Load()}
		st.pieces = append(st.pieces, piece{seg: seg, isNew: false, at: view.size, view: view})
	}
	p := &st.pieces[len(st.pieces)-1]
	if !st.roll && !l.rollDue(&p.view.published, p.seg.base, h, size) {
		return p
	}
	if st.roll = false; p.view.size == 0 {
		return p
	}
	seg := newSegment(l.fs, l.dir, p.view.next)
	st.cut()
	st.pieces = append(st.pieces, piece{seg: seg, isNew: true, from: len(st.vec), view: indexer{*seg.pub.Load()}})
	return &st.pieces[len(st.pieces)-1]
}

// rollDue tells whether the batch starts a new segment. It looks at nothing but
// the log's own batches and limits, so every replica decides alike.
func (l *Log) rollDue(p *published, base int64, h record.Batch, size int64) bool {
	switch {
	case p.size == 0:
		return false
	case p.size+size > MaxSegmentBytes:
		return true
	case p.next+int64(h.LastOffsetDelta())-base > math.MaxInt32:
		return true
	case l.crowded():
		return false
	case p.size+size > l.limitBytes:
		return true
	default:
		// The difference of two timestamps a producer chose may overflow.
		age := h.MaxTimestamp() - p.firstTime
		return h.MaxTimestamp() > p.firstTime && (age > l.limitMs || age < 0)
	}
}

// crowded tells whether the log, as it will be with what is staged, has as many segments as limits make. How
// much was staged at once does not matter: replicas do not apply in the same steps.
func (l *Log) crowded() bool {
	st := &l.stage
	sealed := (*l.list.Load())
	sealed = sealed[:len(sealed)-1] // the active one is the first piece
	if len(sealed)+len(st.pieces) < l.maxSegments {
		return false
	}
	n := len(sealed) - sort.Search(len(sealed), func(k int) bool { return sealed[k].pub.Load().next > st.start })
	for k := range st.pieces {
		if st.pieces[k].view.next > st.start {
			n++
		}
	}
	return n >= l.maxSegments
}

// Flush writes what was staged, one write for each segment it goes into, and
// makes it readable. Nothing is synced. On error nothing is appended: the log is
// as it was before the first Stage, whatever reached the files lies behind their
// lengths.
func (l *Log) Flush() error {
	st := &l.stage
	defer l.Discard()
	st.cut()
	for k := range st.pieces {
		if err := l.writePiece(k); err != nil {
			return err
		}
	}
	for k := range st.pieces {
		p := &st.pieces[k]
		view := p.view.published
		p.seg.pub.Store(&view)
		if p.isNew {
			old := *l.list.Load()
			// A fresh array: readers and pins hold the old one.
			list := append(old[:len(old):len(old)], p.seg)
			l.list.Store(&list)
		}
	}
	for k := range st.pieces {
		l.startWriteBack(st.pieces[k].seg)
	}
	l.DropBefore(st.start)
	return nil
}

// Discard forgets what was staged.
func (l *Log) Discard() {
	st := &l.stage
	if st.buf != nil {
		if cap(*st.buf) <= maxKeptBuffer {
			*st.buf = (*st.buf)[:0]
			buffers.Put(st.buf)
		}
		st.buf = nil
	}
	clear(st.pieces)
	clear(st.vec)
	st.vec, st.mark, st.pieces, st.start, st.roll = st.vec[:0], 0, st.pieces[:0], 0, false
}

// Append is Stage and Flush of one batch.
func (l *Log) Append(b []byte, leaderEpoch int32) (baseOffset int64, err error) {
	baseOffset = l.Stage(b, leaderEpoch)
	return baseOffset, l.Flush()
}

func (l *Log) writePiece(k int) error {
	st := &l.stage
	p := &st.pieces[k]
	data := st.vec[p.from:]
	if k+1 < len(st.pieces) {
		data = st.vec[p.from:st.pieces[k+1].from]
	}
	if len(data) == 0 {
		return nil // the first batch rolled: the segment that was active got nothing
	}
	w, err := l.writer(p.seg)
	if err != nil {
		return fmt.Errorf("append: %w", err)
	}
	if err := vfs.WriteVec(w, data, p.at); err != nil {
		return fmt.Errorf("append to %s at byte %d: %w", p.seg.path, p.at, err)
	}
	return nil
}

// writer returns the segment's write handle, creating the file for its first batch.
func (l *Log) writer(s *segment) (*refFile, error) {
	if w := s.w.Load(); w != nil {
		return w, nil
	}
	f, err := l.fs.OpenReadWrite(s.path, vfs.CategorySegment)
	if err != nil {
		return nil, err
	}
	if s.pub.Load().size == 0 {
		l.created.Add(1)
	}
	w := newRefFile(f)
	s.w.Store(w)
	return w, nil
}

// startWriteBack lets the kernel begin to write a segment's new bytes once there
// are enough of them. It never waits: the work is done by at most one goroutine a
// log and a few a node, and what finds none free goes along with the next step.
func (l *Log) startWriteBack(s *segment) {
	size := s.pub.Load().size
	if size-s.started < writeBackStep || !l.writeBack.CompareAndSwap(false, true) {
		return
	}
	w := s.w.Load()
	select {
	case l.handles.writeBack <- struct{}{}:
	default:
		w = nil
	}
	if w == nil || !w.acquire() {
		l.writeBack.Store(false)
		return
	}
	from := s.started
	s.started = size
	l.wg.Go(func() {
		vfs.StartWriteBack(w, from, size-from)
		w.release()
		<-l.handles.writeBack
		l.writeBack.Store(false)
	})
}
