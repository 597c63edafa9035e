package group

import (
	"encoding/binary"
	"errors"
	"math"
)

// ErrCorrupt is wrapped by the errors of every decoder here.
var ErrCorrupt = errors.New("group: corrupt encoding")

// Limits of what an entry or snapshot may hold. They bound what a decoder makes
// room for; requests are checked against them before they are proposed.
const (
	maxString = math.MaxInt16 // Kafka's own limit for a string
	maxBytes  = 64 << 20
)

// reader takes values off the front of b. The first thing that does not fit
// sets bad, and everything after it reads as zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() {
	r.bad = true
	r.b = nil
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) int32() int32 {
	v := r.varint()
	if v < math.MinInt32 || v > math.MaxInt32 {
		r.fail()
		return 0
	}
	return int32(v)
}

// Big-endian numbers are two's complement, as written.

func (r *reader) int64be() int64 {
	if len(r.b) < 8 {
		r.fail()
		return 0
	}
	v := int64(binary.BigEndian.Uint64(r.b))
	r.b = r.b[8:]
	return v
}

func (r *reader) int32be() int32 {
	if len(r.b) < 4 {
		r.fail()
		return 0
	}
	v := int32(binary.BigEndian.Uint32(r.b))
	r.b = r.b[4:]
	return v
}

func (r *reader) int16be() int16 {
	if len(r.b) < 2 {
		r.fail()
		return -1
	}
	v := int16(binary.BigEndian.Uint16(r.b))
	r.b = r.b[2:]
	return v
}

// take returns n bytes of the input itself.
func (r *reader) take(limit int) []byte {
	n := r.uvarint()
	if n > uint64(limit) || n > uint64(len(r.b)) {
		r.fail()
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) str() string { return string(r.take(maxString)) }

func (r *reader) bytes() []byte {
	v := r.take(maxBytes)
	if len(v) == 0 {
		return nil
	}
	return append([]byte(nil), v...)
}

// optional reads a string that may be absent.
func (r *reader) optional() *string {
	switch r.byte() {
	case 0:
		return nil
	case 1:
		s := r.str()
		return &s
	default:
		r.fail()
		return nil
	}
}

// count reads how many values follow, each of at least size bytes.
func (r *reader) count(size int) int {
	n := r.uvarint()
	if n > uint64(len(r.b)/size) {
		r.fail()
		return 0
	}
	return int(n)
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendBytes(b, v []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

func appendOptional(b []byte, s *string) []byte {
	if s == nil {
		return append(b, 0)
	}
	return appendString(append(b, 1), *s)
}
