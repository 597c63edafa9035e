package snapshot

import (
	"encoding/binary"
	"fmt"

	"chronik/internal/format"
)

// decoder reads big-endian fields from a byte slice. The first field that is
// not there sets err; later reads return zeros, so callers check err once
// before they use a number to allocate or to loop.
type decoder struct {
	buf []byte
	off int
	err error
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s at byte %d of %d", ErrCorrupt, what, d.off, len(d.buf))
	}
}

// bytes returns the next n bytes, aliasing the input.
func (d *decoder) bytes(n int, what string) []byte {
	if d.err != nil {
		return nil
	}
	if n < 0 || n > len(d.buf)-d.off {
		d.fail(fmt.Sprintf("%s of %d bytes does not fit", what, n))
		return nil
	}
	b := d.buf[d.off : d.off+n : d.off+n]
	d.off += n
	return b
}

// version reads a format version, which must be known.
func (d *decoder) version(known uint8) {
	if v := d.u8("version"); d.err == nil {
		if err := format.Check(int(v), int(known)); err != nil {
			d.err = fmt.Errorf("%w: at byte %d of %d: %w", ErrCorrupt, d.off-1, len(d.buf), err)
		}
	}
}

func (d *decoder) u8(what string) uint8 {
	if b := d.bytes(1, what); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) u16(what string) uint16 {
	if b := d.bytes(2, what); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (d *decoder) u32(what string) uint32 {
	if b := d.bytes(4, what); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) u64(what string) uint64 {
	if b := d.bytes(8, what); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// size reads a file size, which is at most maxFileBytes.
func (d *decoder) size(what string) int64 {
	n := d.u64(what)
	if d.err == nil && n > maxFileBytes {
		d.off -= 8
		d.fail(fmt.Sprintf("%s %d above %d", what, n, int64(maxFileBytes)))
		return 0
	}
	return int64(n)
}

// lenBytes reads a 32-bit length and that many bytes, at most limit.
func (d *decoder) lenBytes(limit int, what string) []byte {
	n := d.u32(what)
	if d.err == nil && n > uint32(limit) {
		d.off -= 4
		d.fail(fmt.Sprintf("%s of %d bytes above %d", what, n, limit))
		return nil
	}
	return d.bytes(int(n), what)
}

// name reads a length byte and a file name, which it validates.
func (d *decoder) name(what string) string {
	at := d.off
	s := string(d.bytes(int(d.u8(what)), what))
	if d.err != nil {
		return ""
	}
	if err := CheckName(s); err != nil {
		d.off = at
		d.fail(err.Error())
		return ""
	}
	return s
}

// end fails if bytes are left.
func (d *decoder) end() error {
	if d.err == nil && d.off != len(d.buf) {
		d.fail("trailing bytes")
	}
	return d.err
}

func appendName(dst []byte, name string) []byte {
	return append(append(dst, byte(len(name))), name...)
}
