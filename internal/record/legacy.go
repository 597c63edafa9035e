package record

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// Byte positions in an entry of a message set (formats 0 and 1).
const (
	setSizeAt   = 8  // offset 8, then the size of the message that follows
	setEntry    = 12 // both
	msgMagicAt  = 4  // CRC-32 4
	msgAttrAt   = 5
	msgFieldsAt = 6 // format 1: timestamp; then key and value
	minMessage0 = 14
	minMessage1 = 22
)

// legacyMessage is one message of format 0 or 1. Its slices alias the set.
type legacyMessage struct {
	magic      int8
	attributes int8
	timestamp  int64 // NoTimestamp in format 0
	key, value []byte
}

func (m *legacyMessage) codec() Codec { return Codec(m.attributes & attrCodecMask) }

// nextLegacy parses the entry at the head of set and returns what is behind it.
func nextLegacy(set []byte) (m legacyMessage, rest []byte, err error) {
	if len(set) < setEntry {
		return m, nil, fmt.Errorf("%w: message set ends in an entry's header", ErrShort)
	}
	size := int64(be32(set, setSizeAt))
	body := set[setEntry:]
	if size < minMessage0 {
		return m, nil, fmt.Errorf("%w: message of %d bytes", ErrCorrupt, size)
	}
	if size > int64(len(body)) {
		return m, nil, fmt.Errorf("%w: message of %d bytes, %d left", ErrShort, size, len(body))
	}
	rest, body = body[size:], body[:size:size]
	if got, want := crc32.ChecksumIEEE(body[msgMagicAt:]), binary.BigEndian.Uint32(body); got != want {
		return m, nil, fmt.Errorf("%w: CRC-32 of a message is %08x, of the bytes %08x", ErrCorrupt, want, got)
	}
	m = legacyMessage{magic: int8(body[msgMagicAt]), attributes: int8(body[msgAttrAt]), timestamp: NoTimestamp}
	fields := body[msgFieldsAt:]
	switch m.magic {
	case 0:
	case 1:
		if size < minMessage1 {
			return m, nil, fmt.Errorf("%w: message of format 1 in %d bytes", ErrCorrupt, size)
		}
		m.timestamp, fields = be64(fields, 0), fields[8:]
	default:
		return m, nil, fmt.Errorf("%w: magic %d in a message set", ErrUnsupportedMagic, m.magic)
	}
	var ok bool
	if m.key, fields, ok = legacyBytes(fields); !ok {
		return m, nil, fmt.Errorf("%w: the key leaves its message", ErrInvalidRecord)
	}
	if m.value, fields, ok = legacyBytes(fields); !ok || len(fields) > 0 {
		return m, nil, fmt.Errorf("%w: the value does not end with its message", ErrInvalidRecord)
	}
	return m, rest, nil
}

// legacyBytes reads a 4-byte length and that many bytes; negative is null.
func legacyBytes(b []byte) (v, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := be32(b, 0)
	b = b[4:]
	if n < 0 {
		return nil, b, true
	}
	if int64(n) > int64(len(b)) {
		return nil, nil, false
	}
	return b[:n:n], b[n:], true
}

// UpConvert turns the message set of an old producer (formats 0 and 1, also
// mixed, compressed or not) into the bytes of one RecordBatch v2 with offset
// deltas 0..n-1, no producer id, and the codec of its first compressed message.
// Messages of format 0 have NoTimestamp. The offsets in the set mean nothing, as
// in Kafka: old producers count them from anywhere.
//
// The set is held to opt as Validate holds a batch; MaxBytes bounds the set and
// the result, MaxDecompressed all that its wrappers decompress to, and what the
// result does, in which messages beside the wrappers are compressed as well.
//
// Errors: those of Validate.
func UpConvert(messageSet []byte, opt ValidateOptions) ([]byte, error) {
	if opt.MaxBytes > 0 && len(messageSet) > opt.MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(messageSet), opt.MaxBytes)
	}
	u := upConverter{opt: opt, left: opt.maxDecompressed()}
	if err := u.set(messageSet, None); err != nil {
		return nil, err
	}
	if u.out.Codec != None && len(u.out.body) > opt.maxDecompressed() {
		return nil, errLimit(opt.maxDecompressed())
	}
	out, err := u.out.Build()
	if err != nil {
		return nil, err
	}
	if opt.MaxBytes > 0 && len(out) > opt.MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes after conversion, the limit is %d", ErrTooLarge, len(out), opt.MaxBytes)
	}
	return out, nil
}

type upConverter struct {
	opt  ValidateOptions
	out  Builder
	left int // bytes the wrappers may still decompress to
}

// set adds every message of set. wrapper is the codec that held it; a wrapper
// inside a wrapper is refused.
func (u *upConverter) set(set []byte, wrapper Codec) error {
	for len(set) > 0 {
		m, rest, err := nextLegacy(set)
		if err != nil {
			return fmt.Errorf("message %d: %w", u.out.Len(), err)
		}
		set = rest
		switch c := m.codec(); {
		case m.attributes&attrLogAppendTime != 0 && m.magic == 1:
			return ErrTimestampType
		case c == None:
			if u.opt.RequireKeys && m.key == nil {
				return fmt.Errorf("%w: message %d has no key, and the topic is compacted", ErrInvalidRecord, u.out.Len())
			}
			u.out.Append(Record{Timestamp: m.timestamp, Key: m.key, Value: m.value})
		case wrapper != None:
			return fmt.Errorf("%w: message %d: compressed inside a compressed message", ErrInvalidRecord, u.out.Len())
		case !c.Known() || c == Zstd:
			return fmt.Errorf("%w: %s in message format %d", ErrUnsupportedCodec, c, m.magic)
		default:
			if err := u.unwrap(m, c); err != nil {
				return err
			}
		}
	}
	return nil
}

func (u *upConverter) unwrap(m legacyMessage, c Codec) error {
	buf := getBuffer()
	defer putBuffer(buf)
	inner, err := decompress((*buf)[:0], m.value, c, u.left, true)
	if err != nil {
		return fmt.Errorf("message %d: %w", u.out.Len(), err)
	}
	*buf = inner
	u.left -= len(inner)
	if u.out.Codec == None {
		u.out.Codec = c
	}
	if len(inner) == 0 {
		return fmt.Errorf("%w: message %d: an empty compressed message", ErrInvalidRecord, u.out.Len())
	}
	return u.set(inner, c) // Append copies: nothing refers to buf afterwards
}

// DownConvert appends the records of one batch to dst as messages of format 0
// or 1, uncompressed, with absolute offsets. Old formats know no headers, no
// control records and no producers: headers and control batches are left out.
// The batch must be intact (ParseBatch).
func DownConvert(dst, batch []byte, magic int8) ([]byte, error) {
	if magic != 0 && magic != 1 {
		return dst, fmt.Errorf("%w: cannot convert down to magic %d", ErrUnsupportedMagic, magic)
	}
	h, err := Header(batch)
	if err != nil {
		return dst, err
	}
	if h.IsControl() {
		return dst, nil
	}
	attr := byte(0)
	if magic == 1 && h.TimestampType() == LogAppendTime {
		attr = attrLogAppendTime
	}
	start := len(dst)
	err = h.ForEach(func(r Record) error {
		dst, err = appendLegacy(dst, magic, attr, r)
		return err
	})
	if err != nil {
		return dst[:start], err
	}
	return dst, nil
}

func appendLegacy(dst []byte, magic int8, attr byte, r Record) ([]byte, error) {
	size := int64(minMessage0) + int64(len(r.Key)) + int64(len(r.Value))
	if magic == 1 {
		size += 8
	}
	if size > math.MaxInt32 {
		return dst, fmt.Errorf("%w: record of %d bytes", ErrTooLarge, size)
	}
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Offset))
	dst = binary.BigEndian.AppendUint32(dst, uint32(size))
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0, byte(magic), attr)
	if magic == 1 {
		dst = binary.BigEndian.AppendUint64(dst, uint64(r.Timestamp))
	}
	dst = appendLegacyBytes(dst, r.Key)
	dst = appendLegacyBytes(dst, r.Value)
	binary.BigEndian.PutUint32(dst[at:], crc32.ChecksumIEEE(dst[at+msgMagicAt:]))
	return dst, nil
}

func appendLegacyBytes(dst, b []byte) []byte {
	if b == nil {
		return append(dst, 0xff, 0xff, 0xff, 0xff)
	}
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(b))), b...)
}
