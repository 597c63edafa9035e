package record

import (
	"errors"
	"fmt"
	"io"
	"sync"
)

// ValidateOptions are the rules of a topic. The zero value is the strictest
// walk with the default bounds.
type ValidateOptions struct {
	// MaxBytes bounds the batch as it is sent (max.message.bytes). 0: no bound.
	MaxBytes int
	// MaxDecompressed bounds what it decompresses to. 0: DefaultMaxDecompressed.
	MaxDecompressed int
	// RequireKeys refuses records without a key, as a compacted topic must.
	RequireKeys bool
	// SkipRecords trusts the producer's framing: only the header and the
	// checksum are verified. RequireKeys has no effect then.
	SkipRecords bool
}

func (o ValidateOptions) maxDecompressed() int {
	if o.MaxDecompressed > 0 {
		return o.MaxDecompressed
	}
	return DefaultMaxDecompressed
}

// Validate checks what a producer sent: b is exactly one intact batch of a
// known codec, with offset deltas 0..n-1, without control records, within the
// bounds. Records are walked without being kept; compressed ones through a
// pooled decompressor with a small window.
//
// A max timestamp that is not the largest of the records is set right in b, as
// Kafka does: the time index is built from it.
//
// Errors: ErrShort, ErrCorrupt, ErrTooLarge, ErrUnsupportedCodec,
// ErrUnsupportedMagic, ErrInvalidRecord, ErrTimestampType.
func Validate(b []byte, opt ValidateOptions) (Batch, error) {
	if opt.MaxBytes > 0 && len(b) > opt.MaxBytes {
		return Batch{}, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(b), opt.MaxBytes)
	}
	h, n, err := ParseBatch(b)
	if err != nil {
		return Batch{}, err
	}
	if n != len(b) {
		return Batch{}, fmt.Errorf("%w: %d bytes behind the batch: want exactly one", ErrInvalidRecord, len(b)-n)
	}
	if err := h.validateHeader(); err != nil {
		return Batch{}, err
	}
	if opt.SkipRecords {
		return h, nil
	}
	maxTime, err := h.scan(opt)
	if err != nil {
		return Batch{}, err
	}
	if maxTime != h.MaxTimestamp() {
		setMaxTimestamp(b, maxTime)
	}
	return h, nil
}

func (b Batch) validateHeader() error {
	switch n := b.NumRecords(); {
	case !b.Codec().Known():
		return fmt.Errorf("%w: %d", ErrUnsupportedCodec, int8(b.Codec()))
	case n == 0:
		return fmt.Errorf("%w: no records", ErrInvalidRecord)
	case n != b.LastOffsetDelta()+1:
		return fmt.Errorf("%w: %d records, last offset delta %d", ErrInvalidRecord, n, b.LastOffsetDelta())
	case b.IsControl():
		return fmt.Errorf("%w: control batch from a producer", ErrInvalidRecord)
	case b.TimestampType() == LogAppendTime:
		return ErrTimestampType
	case b.ProducerID() < NoProducerID:
		return fmt.Errorf("%w: producer id %d", ErrInvalidRecord, b.ProducerID())
	case b.ProducerID() >= 0 && (b.ProducerEpoch() < 0 || b.BaseSequence() < 0):
		return fmt.Errorf("%w: producer id %d with epoch %d, sequence %d", ErrInvalidRecord, b.ProducerID(), b.ProducerEpoch(), b.BaseSequence())
	case b.IsTransactional() && b.ProducerID() < 0:
		return fmt.Errorf("%w: transactional batch without a producer id", ErrInvalidRecord)
	}
	return nil
}

// scan walks the records and returns their largest timestamp.
func (b Batch) scan(opt ValidateOptions) (maxTime int64, err error) {
	body := b.b[HeaderSize:]
	s := scanner{window: body, end: len(body)}
	if c := b.Codec(); c != None {
		in, err := newInflater(c, body, false)
		if err != nil {
			return 0, err
		}
		defer in.release()
		w := windows.Get().(*[windowSize]byte)
		defer windows.Put(w)
		s = scanner{window: w[:], r: in, limit: int64(opt.maxDecompressed())}
	}
	base := b.FirstTimestamp()
	maxTime = NoTimestamp
	for i := range b.NumRecords() {
		at := s.read
		r, ok := s.record()
		switch {
		case !ok:
			return 0, s.failed(b.Codec(), i, at)
		case r.offsetDelta != int64(i):
			return 0, fmt.Errorf("%w: record %d has offset delta %d", ErrInvalidRecord, i, r.offsetDelta)
		case opt.RequireKeys && r.nullKey:
			return 0, fmt.Errorf("%w: record %d has no key, and the topic is compacted", ErrInvalidRecord, i)
		}
		maxTime = max(maxTime, base+r.timestampDelta)
	}
	if s.fill() {
		return 0, fmt.Errorf("%w: bytes behind the last of %d records", ErrInvalidRecord, b.NumRecords())
	}
	if !errors.Is(s.err, io.EOF) {
		return 0, s.failed(b.Codec(), b.NumRecords(), s.read)
	}
	return maxTime, nil
}

// failed says why the walk ended in record i, which began at byte at.
func (s *scanner) failed(c Codec, i int32, at int64) error {
	if s.err != nil && !errors.Is(s.err, io.EOF) {
		return decompressError(c, s.err)
	}
	return fmt.Errorf("%w: record %d, at byte %d of the records, is malformed", ErrInvalidRecord, i, at)
}

// windowSize is how much of a compressed batch is in memory decompressed.
const windowSize = 16 << 10

var windows = sync.Pool{New: func() any { return new([windowSize]byte) }}
