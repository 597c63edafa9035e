package segment

import (
	"errors"
	"fmt"
	"io"
	"math"

	"chronik/internal/record"
)

// errStop ends an iteration early.
var errStop = errors.New("stop")

// Read returns whole batches from the one that holds offset from: as many as fit
// into maxBytes, at least one, none that reaches beyond limit (exclusive), all of
// one segment. Nothing is there before limit: nil. The bytes are the caller's.
// Every CRC is checked. Errors: ErrOutOfRange, ErrCorrupt, ErrClosed.
func (l *Log) Read(from int64, maxBytes int, limit int64) ([]byte, error) {
	list := *l.list.Load()
	next := list[len(list)-1].pub.Load().next
	if start := l.start.Load(); from < start || from > next {
		return nil, fmt.Errorf("%w: %d, the log has [%d,%d)", ErrOutOfRange, from, start, next)
	}
	if from >= min(next, limit) {
		return nil, nil
	}
	s := list[find(list, from)]
	var out []byte
	err := l.withIndex(s, func(h *handle, p *published, index []entry) error {
		var err error
		out, err = readBatches(h, s, p, index, from, maxBytes, limit)
		return err
	})
	return out, err
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

func readBatches(h *handle, s *segment, p *published, index []entry, from int64, maxBytes int, limit int64) ([]byte, error) {
	e, nextPos := findOffset(index, from, p.size)
	// The batch of from starts before nextPos, so maxBytes of batches fit behind it.
	buf, err := readAt(h, s, e.pos, min(nextPos-e.pos+int64(max(maxBytes, record.HeaderSize)), p.size-e.pos))
	if err != nil {
		return nil, err
	}
	header := func(at int, want int64) (record.Batch, error) {
		return checkHeader(s.path, e.pos+int64(at), buf[at:], p.size, want)
	}
	start := 0
	b, err := header(0, e.offset)
	for err == nil && b.NextOffset() <= from {
		start += b.Size()
		b, err = header(min(start, len(buf)), b.NextOffset())
	}
	if err != nil {
		return nil, err
	}
	if b.NextOffset() > limit {
		return nil, nil
	}
	end := start + b.Size()
	if end > len(buf) { // one batch larger than maxBytes
		if buf, err = readAt(h, s, e.pos+int64(start), int64(b.Size())); err != nil {
			return nil, err
		}
		return checked(s, e.pos+int64(start), buf)
	}
	for next := b.NextOffset(); end+record.HeaderSize <= len(buf); end += b.Size() {
		if b, err = header(end, next); err != nil {
			return nil, err
		}
		next = b.NextOffset()
		if next > limit || end+b.Size() > len(buf) || end+b.Size()-start > maxBytes {
			break
		}
	}
	return checked(s, e.pos+int64(start), buf[start:end:end])
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

func readAt(h *handle, s *segment, pos, n int64) ([]byte, error) {
	b := make([]byte, n)
	if got, err := h.file.ReadAt(b, pos); got < len(b) {
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
	start := l.start.Load()
	sc := newScanner(h.file, s.path, e.pos, p.size, e.offset, 64<<10)
	for {
		switch err := sc.next(); {
		case errors.Is(err, io.EOF):
			return 0, 0, false, nil
		case err != nil:
			return 0, 0, false, err
		case sc.h.BaseOffset() >= limit:
			return 0, 0, false, nil
		case sc.h.MaxTimestamp() < ts || sc.h.NextOffset() <= start:
			continue
		}
		b, err := sc.checked()
		if err != nil {
			return 0, 0, false, err
		}
		err = record.ForEach(b, func(r record.Record) error {
			if r.Timestamp < ts || r.Offset < start || r.Offset >= limit {
				return nil
			}
			offset, timestamp, ok = r.Offset, r.Timestamp, true
			return errStop
		})
		if ok {
			return offset, timestamp, true, nil
		}
		if err != nil {
			return 0, 0, false, corrupt(s.path, sc.start, err)
		}
	}
}

// MaxTimestamp finds the first record with the largest timestamp, among those
// from the log's start to limit (exclusive).
func (l *Log) MaxTimestamp(limit int64) (offset, timestamp int64, ok bool, err error) {
	// The largest of the segments is that of a record, unless that record is
	// out of bounds: then the batches in bounds are looked through.
	best := int64(math.MinInt64)
	for _, s := range *l.list.Load() {
		if p := s.pub.Load(); p.size > 0 && p.next > l.start.Load() && s.base < limit {
			best = max(best, p.maxTime)
		}
	}
	offset, timestamp, ok, err = l.OffsetForTimestamp(best, limit)
	if ok || err != nil || best == math.MinInt64 {
		return offset, timestamp, ok, err
	}
	err = l.EachBatch(l.start.Load(), limit, func(b record.Batch) error {
		if ok && b.MaxTimestamp() <= timestamp {
			return nil
		}
		return b.ForEach(func(r record.Record) error {
			if r.Offset >= l.start.Load() && r.Offset < limit && (!ok || r.Timestamp > timestamp) {
				offset, timestamp, ok = r.Offset, r.Timestamp, true
			}
			return nil
		})
	})
	return offset, timestamp, ok, err
}

// EachBatch calls fn with each batch that holds an offset of [from, to), whole
// and in order. The batch is valid during the call.
func (l *Log) EachBatch(from, to int64, fn func(record.Batch) error) error {
	for from < to {
		b, err := l.Read(from, 1<<20, math.MaxInt64)
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
	}
	return nil
}
