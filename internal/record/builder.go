package record

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Builder collects records and builds one batch of them. The zero value builds
// an uncompressed batch without a producer. Build may be called once.
type Builder struct {
	Codec         Codec
	BaseOffset    int64
	Transactional bool
	Control       bool
	LogAppendTime bool // every record has the largest of the timestamps

	producer      bool
	producerID    int64
	producerEpoch int16
	baseSequence  int32

	body     []byte // the records, uncompressed
	scratch  []byte
	n        int32
	first    int64 // the first record's timestamp
	maxTime  int64
	tooLarge bool
}

// SetProducer makes the batch an idempotent producer's.
func (b *Builder) SetProducer(id int64, epoch int16, baseSequence int32) {
	b.producer, b.producerID, b.producerEpoch, b.baseSequence = true, id, epoch, baseSequence
}

// Append adds a record with the next offset. It copies Key, Value and Headers;
// Offset and OffsetDelta are ignored.
func (b *Builder) Append(r Record) {
	if b.n == math.MaxInt32 || len(r.Key) > math.MaxInt32/4 || len(r.Value) > math.MaxInt32/4 {
		b.tooLarge = true
		return
	}
	if b.n == 0 {
		b.first, b.maxTime = r.Timestamp, r.Timestamp
	}
	b.maxTime = max(b.maxTime, r.Timestamp)
	s := append(b.scratch[:0], 0) // attributes
	s = binary.AppendVarint(s, r.Timestamp-b.first)
	s = binary.AppendVarint(s, int64(b.n))
	s = appendBytes(s, r.Key)
	s = appendBytes(s, r.Value)
	s = binary.AppendVarint(s, int64(len(r.Headers)))
	for _, h := range r.Headers {
		s = binary.AppendVarint(s, int64(len(h.Key)))
		s = append(s, h.Key...)
		s = appendBytes(s, h.Value)
	}
	b.scratch = s
	b.body = append(binary.AppendVarint(b.body, int64(len(s))), s...)
	b.n++
}

func appendBytes(dst, b []byte) []byte {
	if b == nil {
		return binary.AppendVarint(dst, -1)
	}
	return append(binary.AppendVarint(dst, int64(len(b))), b...)
}

// Len is the number of records so far.
func (b *Builder) Len() int { return int(b.n) }

// Build returns the batch. Errors: ErrInvalidRecord without records,
// ErrTooLarge, ErrUnsupportedCodec.
func (b *Builder) Build() ([]byte, error) {
	if b.n == 0 {
		return nil, fmt.Errorf("%w: no records", ErrInvalidRecord)
	}
	out := make([]byte, HeaderSize, HeaderSize+len(b.body))
	out, err := Compress(out, b.body, b.Codec)
	if err != nil {
		return nil, err
	}
	if b.tooLarge || len(out) > math.MaxInt32 {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(out))
	}
	id, epoch, seq := NoProducerID, NoProducerEpoch, NoSequence
	if b.producer {
		id, epoch, seq = b.producerID, b.producerEpoch, b.baseSequence
	}
	attr := uint16(b.Codec)
	if b.LogAppendTime {
		attr |= attrLogAppendTime
	}
	if b.Transactional {
		attr |= attrTransactional
	}
	if b.Control {
		attr |= attrControl
	}
	Stamp(out, b.BaseOffset, -1)
	be := binary.BigEndian
	be.PutUint32(out[offBatchLength:], uint32(len(out)-lengthOverhead))
	out[offMagic] = 2
	be.PutUint16(out[offAttributes:], attr)
	be.PutUint32(out[offLastOffsetDelta:], uint32(b.n-1))
	be.PutUint64(out[offBaseTimestamp:], uint64(b.first))
	be.PutUint64(out[offMaxTimestamp:], uint64(b.maxTime))
	be.PutUint64(out[offProducerID:], uint64(id))
	be.PutUint16(out[offProducerEpoch:], uint16(epoch))
	be.PutUint32(out[offBaseSequence:], uint32(seq))
	be.PutUint32(out[offNumRecords:], uint32(b.n))
	putCRC(out)
	return out, nil
}
