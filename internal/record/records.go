package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
)

// Record is one record of a batch. Key, Value and Headers alias the batch or a
// scratch buffer: they are valid until the callback that got them returns.
// A nil Key or Value is Kafka's null; an empty one is not nil.
type Record struct {
	Offset      int64 // absolute: base offset + OffsetDelta
	OffsetDelta int32
	Timestamp   int64 // ms since 1970, or NoTimestamp
	Key         []byte
	Value       []byte
	Headers     []HeaderField
}

// HeaderField is one header of a record. A nil Value is null.
type HeaderField struct {
	Key   string
	Value []byte
}

// ForEach calls fn for every record of the whole batches in b, in offset order,
// control records included. An error of fn ends the walk and is returned as it
// is. Checksums are not verified: ParseBatch does. What a batch decompresses to
// is bounded by DefaultMaxDecompressed.
func ForEach(b []byte, fn func(Record) error) error {
	for at := 0; at < len(b); {
		h, err := Header(b[at:])
		if err == nil && h.Size() > len(b)-at {
			err = fmt.Errorf("%w: %d of %d bytes", ErrShort, len(b)-at, h.Size())
		}
		if err != nil {
			return fmt.Errorf("batch at byte %d: %w", at, err)
		}
		if err := h.ForEach(fn); err != nil {
			return err
		}
		at += h.Size()
	}
	return nil
}

// ForEach calls fn for every record of the batch. See the function ForEach.
func (b Batch) ForEach(fn func(Record) error) error {
	if len(b.b) < b.Size() {
		return fmt.Errorf("%w: %d of %d bytes", ErrShort, len(b.b), b.Size())
	}
	body := b.b[HeaderSize:]
	if c := b.Codec(); c != None {
		buf := getBuffer()
		defer putBuffer(buf)
		out, err := Decompress((*buf)[:0], body, c, DefaultMaxDecompressed)
		if err != nil {
			return fmt.Errorf("batch at offset %d: %w", b.BaseOffset(), err)
		}
		*buf, body = out, out
	}
	return b.forEach(body, fn)
}

func (b Batch) forEach(body []byte, fn func(Record) error) error {
	var (
		base, first = b.BaseOffset(), b.FirstTimestamp()
		appendTime  = b.TimestampType() == LogAppendTime
		maxTime     = b.MaxTimestamp()
		d           = decoder{b: body}
		r           Record
	)
	for i := range b.NumRecords() {
		if !d.record(&r) {
			return fmt.Errorf("%w: batch at offset %d: record %d of %d breaks at byte %d of the records",
				ErrInvalidRecord, base, i, b.NumRecords(), d.at)
		}
		r.Offset = base + int64(r.OffsetDelta)
		r.Timestamp += first
		if appendTime {
			r.Timestamp = maxTime
		}
		if err := fn(r); err != nil {
			return err
		}
	}
	if d.at != len(body) {
		return fmt.Errorf("%w: batch at offset %d: %d bytes behind the last record", ErrInvalidRecord, base, len(body)-d.at)
	}
	return nil
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 64<<10); return &b }}

func getBuffer() *[]byte { return buffers.Get().(*[]byte) }

func putBuffer(b *[]byte) {
	if cap(*b) <= maxPooledBuffer {
		buffers.Put(b)
	}
}

// decoder reads records from bytes. at is the next byte; a read that would
// leave the bytes fails and leaves at where it stood.
type decoder struct {
	b  []byte
	at int
}

// varint reads a zigzag varint that fits into 32 bits.
func (d *decoder) varint() (int, bool) {
	v, n := binary.Varint(d.b[d.at:])
	if n <= 0 || n > binary.MaxVarintLen32 || v < math.MinInt32 || v > math.MaxInt32 {
		return 0, false
	}
	d.at += n
	return int(v), true
}

func (d *decoder) varlong() (int64, bool) {
	v, n := binary.Varint(d.b[d.at:])
	if n <= 0 {
		return 0, false
	}
	d.at += n
	return v, true
}

// bytes reads a length and that many bytes; a negative length is null.
func (d *decoder) bytes() ([]byte, bool) {
	n, ok := d.varint()
	if !ok || n > len(d.b)-d.at {
		return nil, false
	}
	if n < 0 {
		return nil, true
	}
	v := d.b[d.at : d.at+n : d.at+n]
	d.at += n
	return v, true
}

// record reads the record at d.at into r: Timestamp becomes the delta, Headers
// are reused. Its length must be exactly what its fields take.
func (d *decoder) record(r *Record) bool {
	size, ok := d.varint()
	if !ok || size < 0 || size > len(d.b)-d.at {
		return false
	}
	in := decoder{b: d.b[:d.at+size], at: d.at}
	if !in.fields(r) || in.at != len(in.b) {
		d.at = in.at
		return false
	}
	d.at = in.at
	return true
}

func (d *decoder) fields(r *Record) bool {
	if d.at == len(d.b) {
		return false
	}
	d.at++ // attributes: no bit is in use
	var ok bool
	if r.Timestamp, ok = d.varlong(); !ok {
		return false
	}
	delta, ok := d.varint()
	if !ok {
		return false
	}
	r.OffsetDelta = int32(delta)
	if r.Key, ok = d.bytes(); !ok {
		return false
	}
	if r.Value, ok = d.bytes(); !ok {
		return false
	}
	n, ok := d.varint()
	if !ok || n < 0 || n > len(d.b)-d.at {
		return false
	}
	r.Headers = r.Headers[:0]
	for range n {
		key, ok := d.bytes()
		if !ok || key == nil {
			return false
		}
		value, ok := d.bytes()
		if !ok {
			return false
		}
		r.Headers = append(r.Headers, HeaderField{Key: string(key), Value: value})
	}
	return true
}

// scanner walks the framing of records without keeping them: through bytes, or
// through a decompressor with a small window.
type scanner struct {
	window   []byte
	pos, end int       // window[pos:end] is unread
	r        io.Reader // nil: the window is all there is
	read     int64     // bytes taken so far
	limit    int64     // no record of r may end behind it: what is refused is not read
	err      error     // why the walk cannot go on; io.EOF at the end of r
}

// fill makes at least one byte available, or sets err.
func (s *scanner) fill() bool {
	for s.pos == s.end && s.err == nil {
		if s.r == nil {
			s.err = io.EOF
			break
		}
		var n int
		n, s.err = s.r.Read(s.window)
		s.pos, s.end = 0, n
		if n > 0 && errors.Is(s.err, io.EOF) {
			s.err = nil // it comes again
		}
	}
	return s.pos < s.end
}

func (s *scanner) byte() (byte, bool) {
	if s.pos == s.end && !s.fill() {
		return 0, false
	}
	c := s.window[s.pos]
	s.pos++
	s.read++
	return c, true
}

func (s *scanner) varlong() (int64, bool) {
	var u uint64
	for shift := 0; shift < 64; shift += 7 {
		c, ok := s.byte()
		if !ok || shift == 63 && c > 1 {
			return 0, false
		}
		u |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return int64(u>>1) ^ -int64(u&1), true
		}
	}
	return 0, false
}

func (s *scanner) varint() (int64, bool) {
	start := s.read
	v, ok := s.varlong()
	return v, ok && s.read-start <= binary.MaxVarintLen32 && v >= math.MinInt32 && v <= math.MaxInt32
}

func (s *scanner) skip(n int64) bool {
	for n > 0 {
		if s.pos == s.end && !s.fill() {
			return false
		}
		k := min(n, int64(s.end-s.pos))
		s.pos += int(k)
		s.read += k
		n -= k
	}
	return true
}

// field skips a length and its bytes, which must end at or before stop.
func (s *scanner) field(stop int64, nullable bool) (null, ok bool) {
	n, ok := s.varint()
	if !ok || n > stop-s.read || n < 0 && !nullable {
		return false, false
	}
	return n < 0, s.skip(n)
}

// scanned is what a walk learns about one record.
type scanned struct {
	timestampDelta int64
	offsetDelta    int64
	nullKey        bool
}

// record walks one record; false means its framing is wrong, or err.
func (s *scanner) record() (r scanned, ok bool) {
	size, ok := s.varint()
	if !ok || size < 0 {
		return r, false
	}
	stop := s.read + size
	if s.r != nil && stop > s.limit {
		s.err = errLimit(int(s.limit))
		return r, false
	}
	if _, ok = s.byte(); !ok {
		return r, false
	}
	if r.timestampDelta, ok = s.varlong(); !ok {
		return r, false
	}
	if r.offsetDelta, ok = s.varint(); !ok {
		return r, false
	}
	if r.nullKey, ok = s.field(stop, true); !ok {
		return r, false
	}
	if _, ok = s.field(stop, true); !ok {
		return r, false
	}
	headers, ok := s.varint()
	if !ok || headers < 0 || headers > stop-s.read {
		return r, false
	}
	for range headers {
		if _, ok = s.field(stop, false); !ok {
			return r, false
		}
		if _, ok = s.field(stop, true); !ok {
			return r, false
		}
	}
	return r, s.read == stop
}
