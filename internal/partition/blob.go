package partition

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/tidwall/btree"

	"chronik/internal/format"
	"chronik/internal/segment"
)

// blobVersion is the first byte of a captured state. docs/formats/partition.md
// has the offset tables.
const blobVersion = 1

const (
	blobHeaderSize   = 1 + 6*8
	blobSegmentSize  = 5 * 8
	blobEpochSize    = 4 + 8
	blobProducerSize = 8 + 2 + 8 + 1
	blobBatchSize    = 4 + 4 + 8 + 8
)

// state is a partition's replicated state without the batches: what a checkpoint
// carries beside the segment files.
type state struct {
	segments  []segment.Info
	start     int64 // first readable offset
	next      int64 // the offset the next batch gets
	maxTime   int64 // the largest leader time seen, ms
	cfg       Config
	epochs    epochTable
	producers *btree.Map[int64, *producer]
}

func newState() *state {
	return &state{cfg: DefaultConfig(), producers: btree.NewMap[int64, *producer](32), maxTime: math.MinInt64}
}

// writeTo encodes the state in pieces: a table of many producers is not built in memory first.
func (s *state) writeTo(w io.Writer) (int64, error) {
	const piece = 64 << 10
	var written int64
	b := make([]byte, 0, 1024) // mostly a few hundred bytes
	flush := func(above int) error {
		if len(b) <= above {
			return nil
		}
		n, err := w.Write(b)
		written += int64(n)
		b = b[:0]
		return err
	}
	be := binary.BigEndian
	u64 := func(v int64) { b = be.AppendUint64(b, uint64(v)) }
	u32 := func(v int) { b = be.AppendUint32(b, uint32(v)) }
	b = append(b, blobVersion)
	for _, v := range []int64{s.start, s.next, s.maxTime, s.cfg.SegmentBytes, s.cfg.SegmentMs, s.cfg.ProducerMaxAgeMs} {
		u64(v)
	}
	u32(len(s.segments))
	for _, i := range s.segments {
		for _, v := range []int64{i.BaseOffset, i.NextOffset, i.Size, i.FirstTimestamp, i.MaxTimestamp} {
			u64(v)
		}
		if err := flush(piece); err != nil {
			return written, err
		}
	}
	u32(len(s.epochs))
	for _, e := range s.epochs {
		u32(int(e.epoch))
		u64(e.offset)
		if err := flush(piece); err != nil {
			return written, err
		}
	}
	u32(s.producers.Len())
	var err error
	s.producers.Scan(func(id int64, p *producer) bool {
		u64(id)
		b = be.AppendUint16(b, uint16(p.epoch))
		u64(p.lastTime)
		b = append(b, byte(p.n))
		for _, r := range p.batches[:p.n] {
			u32(int(r.baseSeq))
			u32(int(r.lastSeq))
			u64(r.baseOffset)
			u64(r.time)
		}
		err = flush(piece)
		return err == nil
	})
	if err == nil {
		err = flush(0)
	}
	return written, err
}

// blobReader takes fields off a blob. After the first that is not there it gives zeros.
type blobReader struct {
	b   []byte
	at  int
	bad bool
}

func (r *blobReader) take(n int) []byte {
	if r.bad || n > len(r.b)-r.at {
		r.bad = true
		return make([]byte, 8)[:n:n]
	}
	r.at += n
	return r.b[r.at-n : r.at]
}

func (r *blobReader) i64() int64 { return int64(binary.BigEndian.Uint64(r.take(8))) }
func (r *blobReader) i32() int32 { return int32(binary.BigEndian.Uint32(r.take(4))) }
func (r *blobReader) i16() int16 { return int16(binary.BigEndian.Uint16(r.take(2))) }
func (r *blobReader) u8() int    { return int(r.take(1)[0]) }

// count reads how many items of at least size bytes follow, which bounds what is allocated for them.
func (r *blobReader) count(size int) int {
	n := int64(uint32(r.i32()))
	if n*int64(size) > int64(len(r.b)-r.at) {
		r.bad = true
		return 0
	}
	return int(n)
}

// decodeState reads what writeTo wrote. The error names the byte.
func decodeState(b []byte) (*state, error) {
	r := &blobReader{b: b}
	if err := format.Check(r.u8(), blobVersion); err != nil {
		return nil, fmt.Errorf("%w: blob, byte 0: %w", ErrCorrupt, err)
	}
	s := newState()
	s.start, s.next, s.maxTime = r.i64(), r.i64(), r.i64()
	s.cfg = Config{SegmentBytes: r.i64(), SegmentMs: r.i64(), ProducerMaxAgeMs: r.i64()}
	if s.start < 0 || s.next < s.start || s.cfg != s.cfg.complete() {
		return nil, fmt.Errorf("%w: blob: offsets [%d,%d), %+v", ErrCorrupt, s.start, s.next, s.cfg)
	}
	for range r.count(blobSegmentSize) {
		s.segments = append(s.segments, segment.Info{BaseOffset: r.i64(), NextOffset: r.i64(), Size: r.i64(), FirstTimestamp: r.i64(), MaxTimestamp: r.i64()})
	}
	last := epochStart{-1, -1}
	for range r.count(blobEpochSize) {
		e := epochStart{r.i32(), r.i64()}
		if e.epoch <= last.epoch || e.offset <= last.offset || e.offset > s.next {
			return nil, fmt.Errorf("%w: blob: byte %d: epoch %+v after %+v", ErrCorrupt, r.at, e, last)
		}
		s.epochs, last = append(s.epochs, e), e
	}
	if err := s.decodeProducers(r); err != nil {
		return nil, err
	}
	if r.bad {
		return nil, fmt.Errorf("%w: blob ends at byte %d", ErrCorrupt, r.at)
	}
	if r.at != len(b) {
		return nil, fmt.Errorf("%w: blob: %d bytes behind byte %d", ErrCorrupt, len(b)-r.at, r.at)
	}
	return s, nil
}

// Offsets reads the first readable offset and the one after the last record from
// a captured state.
func Offsets(blob []byte) (start, next int64, err error) {
	s, err := decodeState(blob)
	if err != nil {
		return 0, 0, err
	}
	return s.start, s.next, nil
}

func (s *state) decodeProducers(r *blobReader) error {
	lastID := int64(-1)
	for range r.count(blobProducerSize + blobBatchSize) {
		at := r.at
		id, p := r.i64(), &producer{epoch: r.i16(), lastTime: r.i64(), n: r.u8()}
		if r.bad {
			break
		}
		if id <= lastID || p.n < 1 || p.n > cachedBatches || p.epoch < 0 {
			return fmt.Errorf("%w: blob: byte %d: producer %d with %d batches after %d", ErrCorrupt, at, id, p.n, lastID)
		}
		for k := range p.n {
			p.batches[k] = batchRef{baseSeq: r.i32(), lastSeq: r.i32(), baseOffset: r.i64(), time: r.i64()}
		}
		s.producers.Set(id, p)
		lastID = id
	}
	return nil
}
