package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
)

// Byte positions of the fields of a RecordBatch v2 (doc.go draws them).
const (
	offBaseOffset      = 0
	offBatchLength     = 8
	offLeaderEpoch     = 12
	offMagic           = 16
	offCRC             = 17
	offAttributes      = 21 // the CRC covers everything from here to the end
	offLastOffsetDelta = 23
	offBaseTimestamp   = 27
	offMaxTimestamp    = 35
	offProducerID      = 43
	offProducerEpoch   = 51
	offBaseSequence    = 53
	offNumRecords      = 57

	// HeaderSize is the length of a batch without its records.
	HeaderSize = 61

	// lengthOverhead is what the batch length field does not count: the base
	// offset and itself.
	lengthOverhead = 12
)

// Bits of the attributes field.
const (
	attrCodecMask     = 0x07
	attrLogAppendTime = 0x08
	attrTransactional = 0x10
	attrControl       = 0x20
)

// NoProducerID, NoProducerEpoch and NoSequence stand in a batch of a producer
// that is not idempotent. NoTimestamp is the timestamp of a record without one.
const (
	NoProducerID    int64 = -1
	NoProducerEpoch int16 = -1
	NoSequence      int32 = -1
	NoTimestamp     int64 = -1
)

// What is wrong with the bytes. kafka maps each to a protocol error code.
var (
	// ErrCorrupt: the framing or the checksum is wrong (CORRUPT_MESSAGE).
	ErrCorrupt = errors.New("corrupt record batch")
	// ErrShort is the ErrCorrupt of a batch that goes on behind the given bytes.
	ErrShort = fmt.Errorf("%w: bytes end inside the batch", ErrCorrupt)
	// ErrTooLarge: the batch, or what it decompresses to, is over a limit (MESSAGE_TOO_LARGE).
	ErrTooLarge = errors.New("record batch too large")
	// ErrUnsupportedCodec: an unknown compression type (UNSUPPORTED_COMPRESSION_TYPE).
	ErrUnsupportedCodec = errors.New("unsupported compression type")
	// ErrInvalidRecord: intact bytes that break a rule of the format (INVALID_RECORD).
	ErrInvalidRecord = errors.New("invalid record")
	// ErrUnsupportedMagic: not the message format asked for (UNSUPPORTED_FOR_MESSAGE_FORMAT).
	ErrUnsupportedMagic = errors.New("unsupported message format")
	// ErrTimestampType: a producer claimed LogAppendTime (INVALID_TIMESTAMP).
	ErrTimestampType = errors.New("producer set the timestamp type to LogAppendTime")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// TimestampType says whose clock a batch's timestamps come from.
type TimestampType int8

// The two timestamp types.
const (
	CreateTime    TimestampType = 0
	LogAppendTime TimestampType = 1
)

// Batch reads the header fields of one RecordBatch v2 from the batch's bytes.
// It is a view: it aliases the bytes and shows what Stamp wrote into them.
// The zero Batch is no batch; ParseBatch, Header and Validate make usable ones.
type Batch struct{ b []byte }

// ParseBatch checks the batch at the head of b (format, lengths, CRC-32C,
// counts) and returns it with its size in bytes. Bytes behind it are ignored.
// The records themselves are not walked: Validate and ForEach do.
// Errors: ErrShort, ErrCorrupt, ErrUnsupportedMagic.
func ParseBatch(b []byte) (Batch, int, error) {
	h, err := Header(b)
	if err != nil {
		return Batch{}, 0, err
	}
	n := h.Size()
	if n > len(b) {
		return Batch{}, 0, fmt.Errorf("%w: %d of %d bytes", ErrShort, len(b), n)
	}
	if got, want := crc32.Checksum(b[offAttributes:n], castagnoli), h.CRC(); got != want {
		return Batch{}, 0, fmt.Errorf("%w: byte %d: CRC-32C is %08x, of the bytes %08x", ErrCorrupt, offCRC, want, got)
	}
	return h, n, nil
}

// Header is ParseBatch without the checksum, for bytes that were checked
// before. b may be only the first HeaderSize bytes: Size tells how long the
// batch is, Bytes returns what is there.
func Header(b []byte) (Batch, error) {
	if len(b) < HeaderSize {
		if len(b) > offMagic && b[offMagic] != 2 {
			return Batch{}, errMagic(b[offMagic])
		}
		return Batch{}, fmt.Errorf("%w: %d bytes, a header has %d", ErrShort, len(b), HeaderSize)
	}
	if b[offMagic] != 2 {
		return Batch{}, errMagic(b[offMagic])
	}
	length := be32(b, offBatchLength)
	if length < HeaderSize-lengthOverhead || length > math.MaxInt32-lengthOverhead {
		return Batch{}, fmt.Errorf("%w: byte %d: batch length %d", ErrCorrupt, offBatchLength, length)
	}
	h := Batch{b[:min(len(b), int(length)+lengthOverhead)]}
	last, n := h.LastOffsetDelta(), h.NumRecords()
	if last < 0 {
		return Batch{}, fmt.Errorf("%w: byte %d: last offset delta %d", ErrCorrupt, offLastOffsetDelta, last)
	}
	if n < 0 || int64(n) > int64(last)+1 {
		return Batch{}, fmt.Errorf("%w: byte %d: %d records with last offset delta %d", ErrCorrupt, offNumRecords, n, last)
	}
	return h, nil
}

func errMagic(magic byte) error {
	if magic > 2 {
		return fmt.Errorf("%w: byte %d: magic %d", ErrCorrupt, offMagic, int8(magic))
	}
	return fmt.Errorf("%w: magic %d, want 2", ErrUnsupportedMagic, magic)
}

func be16(b []byte, at int) int16 { return int16(binary.BigEndian.Uint16(b[at:])) }
func be32(b []byte, at int) int32 { return int32(binary.BigEndian.Uint32(b[at:])) }
func be64(b []byte, at int) int64 { return int64(binary.BigEndian.Uint64(b[at:])) }

// BaseOffset is the offset of the first record; 0 until stamped.
func (b Batch) BaseOffset() int64 { return be64(b.b, offBaseOffset) }

// Size is the whole batch's length in bytes, from its length field.
func (b Batch) Size() int { return int(be32(b.b, offBatchLength)) + lengthOverhead }

// PartitionLeaderEpoch is the epoch of the leader that appended the batch; -1 until stamped.
func (b Batch) PartitionLeaderEpoch() int32 { return be32(b.b, offLeaderEpoch) }

// CRC is the stored CRC-32C of everything from the attributes on.
func (b Batch) CRC() uint32 { return binary.BigEndian.Uint32(b.b[offCRC:]) }

// Attributes is the raw attributes field.
func (b Batch) Attributes() int16 { return be16(b.b, offAttributes) }

// Codec is the compression of the records; it may be one that is unknown.
func (b Batch) Codec() Codec { return Codec(b.Attributes() & attrCodecMask) }

// TimestampType says whose clock the timestamps come from.
func (b Batch) TimestampType() TimestampType {
	if b.Attributes()&attrLogAppendTime != 0 {
		return LogAppendTime
	}
	return CreateTime
}

// IsTransactional tells whether the batch belongs to a transaction.
func (b Batch) IsTransactional() bool { return b.Attributes()&attrTransactional != 0 }

// IsControl tells whether the records are markers (commit, abort) that consumers skip.
func (b Batch) IsControl() bool { return b.Attributes()&attrControl != 0 }

// LastOffsetDelta is the last offset relative to BaseOffset, >= 0. Compaction keeps it.
func (b Batch) LastOffsetDelta() int32 { return be32(b.b, offLastOffsetDelta) }

// LastOffset is the last offset the batch covers.
func (b Batch) LastOffset() int64 { return b.BaseOffset() + int64(b.LastOffsetDelta()) }

// NextOffset is the offset behind the batch.
func (b Batch) NextOffset() int64 { return b.LastOffset() + 1 }

// FirstTimestamp is the base the records' timestamp deltas count from, in ms since 1970.
func (b Batch) FirstTimestamp() int64 { return be64(b.b, offBaseTimestamp) }

// MaxTimestamp is the largest timestamp of the records, in ms since 1970; with
// LogAppendTime it is the timestamp of every record.
func (b Batch) MaxTimestamp() int64 { return be64(b.b, offMaxTimestamp) }

// ProducerID is the idempotent producer's id, or NoProducerID.
func (b Batch) ProducerID() int64 { return be64(b.b, offProducerID) }

// ProducerEpoch is the idempotent producer's epoch, or NoProducerEpoch.
func (b Batch) ProducerEpoch() int16 { return be16(b.b, offProducerEpoch) }

// BaseSequence is the first record's sequence number, or NoSequence.
func (b Batch) BaseSequence() int32 { return be32(b.b, offBaseSequence) }

// LastSequence is the last record's sequence number, or NoSequence. Sequence
// numbers go from 0 to 2^31-1 and round again.
func (b Batch) LastSequence() int32 {
	base := b.BaseSequence()
	if base < 0 {
		return NoSequence
	}
	return int32((int64(base) + int64(b.LastOffsetDelta())) & math.MaxInt32)
}

// NumRecords is the number of records, at most LastOffsetDelta+1.
func (b Batch) NumRecords() int32 { return be32(b.b, offNumRecords) }

// Bytes is the batch, exactly, or its head if Header got no more.
func (b Batch) Bytes() []byte { return b.b }

// Stamp gives the batch at the head of b its place in the log. Both fields lie
// outside the CRC. b must hold at least a checked header.
func Stamp(b []byte, baseOffset int64, leaderEpoch int32) {
	_ = b[offMagic]
	binary.BigEndian.PutUint64(b[offBaseOffset:], uint64(baseOffset))
	binary.BigEndian.PutUint32(b[offLeaderEpoch:], uint32(leaderEpoch))
}

// SetLogAppendTime makes ms the timestamp of every record of the one batch in b
// and computes its CRC again. b must have passed ParseBatch or Validate.
func SetLogAppendTime(b []byte, ms int64) {
	attr := be16(b, offAttributes) | attrLogAppendTime
	binary.BigEndian.PutUint16(b[offAttributes:], uint16(attr))
	setMaxTimestamp(b, ms)
}

// setMaxTimestamp rewrites the batch's max timestamp and its CRC.
func setMaxTimestamp(b []byte, ms int64) {
	b = b[:int(be32(b, offBatchLength))+lengthOverhead]
	binary.BigEndian.PutUint64(b[offMaxTimestamp:], uint64(ms))
	putCRC(b)
}

// putCRC computes the checksum of the one batch in b.
func putCRC(b []byte) {
	binary.BigEndian.PutUint32(b[offCRC:], crc32.Checksum(b[offAttributes:], castagnoli))
}
