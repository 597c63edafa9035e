package segment

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"chronik/internal/bytepool"
	"chronik/internal/record"
)

// errStop ends an iteration early.
var errStop = errors.New("stop")

// Read returns whole batches from the one that holds offset from: as many as fit
// into maxBytes, at least one, none that reaches beyond limit (exclusive), all of
// one segment. Nothing is there before limit: nil. The bytes are the caller's.
// Every CRC is checked. Errors: ErrOutOfRange, ErrCorrupt, ErrClosed.
func (l *Log) Read(from int64, maxBytes int, limit int64) ([]byte, error) {
	b, _, err := l.ReadBuffer(from, maxBytes, limit)
	return b, err
}

// ReadBuffer is Read for those that read much: batches lie in buf, which the caller may
// give back (bytepool.Put) once nobody reads them any more.
func (l *Log) ReadBuffer(from int64, maxBytes int, limit int64) (batches, buf []byte, err error) {
	list := *l.list.Load()
	next := list[len(list)-1].pub.Load().next
	if start := l.start.Load(); from < start || from > next {
		return nil, nil, fmt.Errorf("%w: %d, the log has [%d,%d)", ErrOutOfRange, from, start, next)
	}
	if from >= min(next, limit) {
		return nil, nil, nil
	}
	s := list[find(list, from)]
	err = l.withIndex(s, func(h *handle, p *published, index []entry) error {
		var err error
		batches, buf, err = readBatches(h, s, p, index, from, maxBytes, limit)
		return err
	})
	return batches, buf, err
}

// withIndex calls fn with a segment's open file, a view and its index. When fn
// finds that file and index contradict each other, the index is built again once.
func (l *Log) withIndex(s *segment, fn func(*handle, *published, []entry) error) error {
	h, err := l.open(s)
	if err != nil {
		return err
	}
	defer l.handles.release(h)
	p := s.pub.Load()
	if !p.indexOnDisk {
		return fn(h, p, p.index)
	}
	h.indexOnce.Do(func() { h.index, h.indexErr = l.sealedIndex(h, p, false) })
	if err = h.indexErr; err == nil {
		err = fn(h, p, h.index)
	} else if !errors.Is(err, ErrCorrupt) {
		l.handles.forget(s, h) // the device failed: who comes next tries again
	}
	if !errors.Is(err, ErrCorrupt) || !s.rebuilt.CompareAndSwap(false, true) {
		return err
	}
	l.handles.forget(s, h)
	index, err := l.sealedIndex(h, p, true)
	if err != nil {
		return err
	}
	return fn(h, p, index)
}

// open returns the segment's file for reading.
func (l *Log) open(s *segment) (*handle, error) {
	h, err := l.handles.acquire(l.fs, s)
	if l.closing.Load() {
		if err == nil {
			l.handles.forget(s, h)
			l.handles.release(h)
		}
		return nil, ErrClosed
	}
	if err != nil {
		if s.dropped.Load() {
			return nil, fmt.Errorf("%w: %s is dropped", ErrOutOfRange, s.name)
		}
		if isNotExist(err) {
			return nil, corrupt(s.path, 0, err)
		}
		return nil, err
	}
	return h, nil
}

// sealedIndex loads the index of a sealed segment, or builds it from the batches
// and writes it anew.
func (l *Log) sealedIndex(h *handle, p *published, rebuild bool) ([]entry, error) {
	s := h.seg
	if !rebuild {
		index, size, next, err := readIndexFile(l.fs, l.idxPath(s), s.base)
		if err == nil && size == p.size && next == p.next {
			return index, nil
		}
	}
	x := freshIndexer(s)
	if _, err := extendIndex(h.file, s, x, p); err != nil {
		return nil, err
	}
	l.saveIndex(s, &x.published)
	return x.index, nil
}

// saveIndex writes the index file. Failure is no harm: it is built again when needed.
func (l *Log) saveIndex(s *segment, p *published) {
	if s.dropped.Load() {
		return
	}
	if err := writeIndexFile(l.fs, l.idxPath(s), s.base, p); err == nil {
		s.indexed.Store(p.size)
	}
}

// readAhead is how far behind the end of a segment a reader must be for the kernel to be
// asked for what it reads next: who follows the end finds that in the page cache.
const readAhead = 4 << 20

// readBatches returns nothing but an error, or batches and the buffer they lie in.
func readBatches(h *handle, s *segment, p *published, index []entry, from int64, maxBytes int, limit int64) (batches, buf []byte, err error) {
	e, nextPos := findOffset(index, from, p.size)
	// The batch of from starts before nextPos, so maxBytes of batches fit behind it.
	n := min(nextPos-e.pos+int64(max(maxBytes, record.HeaderSize)), p.size-e.pos)
	if buf, err = readAt(h, s, e.pos, n); err != nil {
		return nil, nil, err
	}
	if p.size-e.pos-n >= readAhead {
		// While these bytes are on their way to a client the disk gets the next.
		_ = h.file.Prefetch(e.pos+n, n) // a hint
	}
	start, end, err := span(s, p, e, buf, from, maxBytes, limit)
	if err == nil && end > len(buf) { // one batch larger than maxBytes
		bytepool.Put(buf)
		e.pos += int64(start)
		start, end = 0, end-start
		if buf, err = readAt(h, s, e.pos, int64(end)); err != nil {
			return nil, nil, err
		}
	}
	if err == nil && end > start {
		batches, err = checked(s, e.pos+int64(start), buf[start:end:end])
	}
	if err != nil || len(batches) == 0 {
		bytepool.Put(buf)
		return nil, nil, err
	}
	return batches, buf, nil
}

// span finds the batches to return in buf, which holds those from e on: from the one of
// offset from, as many as fit. end is beyond buf if the first does not lie in it; start
// and end are equal if it reaches beyond limit.
func span(s *segment, p *published, e entry, buf []byte, from int64, maxBytes int, limit int64) (start, end int, err error) {
	header := func(at int, want int64) (record.Batch, error) {
		return checkHeader(s.path, e.pos+int64(at), buf[at:], p.size, want)
	}
	b, err := header(0, e.offset)
	for err == nil && b.NextOffset() <= from {
		start += b.Size()
		b, err = header(min(start, len(buf)), b.NextOffset())
	}
	if err != nil || b.NextOffset() > limit {
		return start, start, err
	}
	end = start + b.Size()
	for next := b.NextOffset(); end+record.HeaderSize <= len(buf); end += b.Size() {
		if b, err = header(end, next); err != nil {
			return start, end, err
		}
		next = b.NextOffset()
		if next > limit || end+b.Size() > len(buf) || end+b.Size()-start > maxBytes {
			break
		}
	}
	return start, end, nil
}

// checked verifies the CRC of each batch in b, which lies at pos, and returns b.
func checked(s *segment, pos int64, b []byte) ([]byte, error) {
	for at := 0; at < len(b); {
		_, n, err := record.ParseBatch(b[at:])
		if err != nil {
			return nil, corrupt(s.path, pos+int64(at), err)
		}
		at += n
	}
	return b, nil
}

// readAt returns n bytes of a segment in a buffer of their own.
func readAt(h *handle, s *segment, pos, n int64) ([]byte, error) {
	b := bytepool.Get(int(n))
	if got, err := h.file.ReadAt(b, pos); got < len(b) {
		bytepool.Put(b)
		return nil, readError(s.path, pos, len(b), got, err)
	}
	return b, nil
}

// OffsetForTimestamp finds the first record, in order of offset, whose timestamp
// is ts or later, among those from the log's start to limit (exclusive).
func (l *Log) OffsetForTimestamp(ts, limit int64) (offset, timestamp int64, ok bool, err error) {
	for _, s := range *l.list.Load() {
		p := s.pub.Load()
		if p.size == 0 || p.maxTime < ts || p.next <= l.start.Load() || s.base >= limit {
			continue
		}
		err := l.withIndex(s, func(h *handle, p *published, index []entry) error {
			var err error
			offset, timestamp, ok, err = l.searchTimestamp(h, s, p, findTimestamp(index, ts), ts, limit)
			return err
		})
		if err != nil && !(errors.Is(err, ErrOutOfRange) && s.dropped.Load()) {
			return 0, 0, false, err
		}
		if ok && err == nil {
			return offset, timestamp, true, nil
		}
	}
	return 0, 0, false, nil
}

// searchTimestamp looks at the batches from e on, and into those that are late enough.
func (l *Log) searchTimestamp(h *handle, s *segment, p *published, e entry, ts, limit int64) (offset, timestamp int64, ok bool, err error) {
	err = l.scanTimestamps(h, s, p, e, limit, func(b record.Batch) bool { return b.MaxTimestamp() >= ts }, func(o, at int64) (enough bool) {
		if at >= ts {
			offset, timestamp, ok = o, at, true
		}
		return ok
	})
	return offset, timestamp, ok, err
}

// scanTimestamps steps through the batches from e on, and calls fn with offset and timestamp of each record of those that
// match, from the log's start to limit, until fn has enough.
func (l *Log) scanTimestamps(h *handle, s *segment, p *published, e entry, limit int64, match func(record.Batch) bool, fn func(offset, timestamp int64) (enough bool)) error {
	start := l.start.Load()
	sc := newScanner(h.file, s.path, e.pos, p.size, e.offset, 64<<10)
	for enough := false; !enough; {
		switch err := sc.next(); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case sc.h.BaseOffset() >= limit:
			return nil
		case sc.h.NextOffset() <= start || !match(sc.h):
			continue
		}
		raw, err := sc.checked()
		if err != nil {
			return err
		}
		b, err := record.Header(raw)
		if err != nil {
			return corrupt(s.path, sc.start, err)
		}
		enough = eachTimestamp(b, start, limit, fn)
	}
	return nil
}

// eachTimestamp calls fn with offset and timestamp of each record of the batch from start to limit, until fn has enough.
// The batch's CRC is right: what cannot be read of it, such as records that decompress to more than is allowed, is what
// was written, and no damage. Then fn hears of the whole batch as its header has it.
func eachTimestamp(b record.Batch, start, limit int64, fn func(offset, timestamp int64) (enough bool)) (enough bool) {
	tell := func(offset, timestamp int64) bool { return offset >= start && offset < limit && fn(offset, timestamp) }
	err := b.ForEach(func(r record.Record) error {
		if tell(r.Offset, r.Timestamp) {
			return errStop
		}
		return nil
	})
	if err == nil || errors.Is(err, errStop) {
		return err != nil
	}
	return tell(max(b.BaseOffset(), start), b.MaxTimestamp())
}

// MaxTimestamp finds the first record with the largest timestamp, among those
// from the log's start to limit (exclusive).
func (l *Log) MaxTimestamp(limit int64) (offset, timestamp int64, ok bool, err error) {
	for _, s := range l.latest(limit) {
		if top := s.pub.Load().maxTime; ok && (top < timestamp || top == timestamp && s.base > offset) {
			continue
		}
		o, at, found, err := l.maxOf(s, limit)
		if err != nil && !(errors.Is(err, ErrOutOfRange) && s.dropped.Load()) {
			return 0, 0, false, err
		}
		if err == nil && found && (!ok || at > timestamp || at == timestamp && o < offset) {
			offset, timestamp, ok = o, at, true
		}
	}
	return offset, timestamp, ok, nil
}

// latest lists the segments with offsets from the log's start to limit, those with the largest timestamps first. Most often
// the first has the largest of all: only the log's first and last segment may have it out of bounds.
func (l *Log) latest(limit int64) []*segment {
	var out []*segment
	for _, s := range *l.list.Load() {
		if p := s.pub.Load(); p.size > 0 && p.next > l.start.Load() && s.base < limit {
			out = append(out, s)
		}
	}
	slices.SortStableFunc(out, func(a, b *segment) int { return cmp.Compare(b.pub.Load().maxTime, a.pub.Load().maxTime) })
	return out
}

// maxOf is MaxTimestamp of one segment. Its index knows the largest timestamp in front of limit, but for a few batches. That
// is a record's, unless the record lies before the log's start: only then all that is in bounds is looked through.
func (l *Log) maxOf(s *segment, limit int64) (offset, timestamp int64, ok bool, err error) {
	err = l.withIndex(s, func(h *handle, p *published, index []entry) error {
		offset, timestamp, ok = 0, 0, false
		scan := func(from entry) error {
			later := func(b record.Batch) bool { return !ok || b.MaxTimestamp() > timestamp }
			return l.scanTimestamps(h, s, p, from, limit, later, func(o, at int64) (enough bool) {
				if !ok || at > timestamp {
					offset, timestamp, ok = o, at, true
				}
				return false
			})
		}
		end, _ := findOffset(index, limit, p.size)
		if err := scan(end); err != nil || ok && timestamp > end.maxBefore {
			return err
		}
		o, at, found, err := l.searchTimestamp(h, s, p, findTimestamp(index, end.maxBefore), end.maxBefore, limit)
		if offset, timestamp, ok = o, at, found; found || err != nil {
			return err
		}
		begin, _ := findOffset(index, max(l.start.Load(), s.base), p.size)
		return scan(begin)
	})
	return offset, timestamp, ok, err
}

// EachBatch calls fn with each batch that holds an offset of [from, to), whole
// and in order. The batch is valid during the call.
func (l *Log) EachBatch(from, to int64, fn func(record.Batch) error) error {
	for from < to {
		b, buf, err := l.ReadBuffer(from, 1<<20, math.MaxInt64)
		if err != nil || len(b) == 0 {
			return err
		}
		for len(b) > 0 && from < to {
			h, err := record.Header(b)
			if err != nil {
				return err
			}
			if err := fn(h); err != nil {
				return err
			}
			from, b = h.NextOffset(), b[h.Size():]
		}
		bytepool.Put(buf)
	}
	return nil
}
