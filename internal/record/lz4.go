package record

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
)

// lz4MaxHeader is the longest lz4 frame header: magic, FLG, BD, content size,
// dictionary id, header checksum.
const lz4MaxHeader = 4 + 2 + 8 + 4 + 1

const lz4Magic = 0x184D2204

// lz4Source positions f.src at a standard lz4 frame and returns what to read.
//
// Clients of message format 0 computed the header checksum over the frame's
// magic as well (KAFKA-3160), and some kept doing so for format 1. With old set
// the wrong checksum is replaced by the right one before the decoder sees it.
func (f *inflater) lz4Source(src []byte, old bool) (io.Reader, error) {
	if len(src) < 7 || binary.LittleEndian.Uint32(src) != lz4Magic {
		return nil, fmt.Errorf("%w: lz4: no frame", ErrCorrupt)
	}
	if !old {
		return &f.src, nil
	}
	n := 6 // magic, FLG, BD
	if flg := src[4]; flg&0x08 != 0 {
		n += 8
	} else if flg&0x01 != 0 {
		n += 4
	}
	if src[4]&0x09 == 0x09 {
		n += 4
	}
	if len(src) <= n {
		return nil, io.ErrUnexpectedEOF
	}
	if src[n] != byte(xxh32(src[:n])>>8) {
		return &f.src, nil // not the known mistake: the decoder judges it
	}
	copy(f.patch[:], src[:n])
	f.patch[n] = byte(xxh32(src[4:n]) >> 8)
	f.head.Reset(f.patch[:n+1])
	f.src.Reset(src[n+1:])
	return io.MultiReader(&f.head, &f.src), nil
}

// xxh32 is xxHash32 with seed 0. The lz4 package keeps its own to itself.
func xxh32(b []byte) uint32 {
	const (
		p1 uint32 = 2654435761
		p2 uint32 = 2246822519
		p3 uint32 = 3266489917
		p4 uint32 = 668265263
		p5 uint32 = 374761393
	)
	size := uint32(len(b))
	h := p5
	if len(b) >= 16 {
		v := [4]uint32{0, p2, 0, 0}
		v[0] = p1
		v[0] += p2
		v[3] -= p1
		for ; len(b) >= 16; b = b[16:] {
			for i := range v {
				v[i] = bits.RotateLeft32(v[i]+binary.LittleEndian.Uint32(b[4*i:])*p2, 13) * p1
			}
		}
		h = bits.RotateLeft32(v[0], 1) + bits.RotateLeft32(v[1], 7) + bits.RotateLeft32(v[2], 12) + bits.RotateLeft32(v[3], 18)
	}
	h += size
	for ; len(b) >= 4; b = b[4:] {
		h = bits.RotateLeft32(h+binary.LittleEndian.Uint32(b)*p3, 17) * p4
	}
	for _, c := range b {
		h = bits.RotateLeft32(h+uint32(c)*p5, 11) * p1
	}
	h = (h ^ h>>15) * p2
	h = (h ^ h>>13) * p3
	return h ^ h>>16
}
