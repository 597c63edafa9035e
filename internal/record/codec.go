package record

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Codec is a compression type as the low three bits of the attributes name it.
type Codec int8

// The compression types of Kafka.
const (
	None   Codec = 0
	Gzip   Codec = 1
	Snappy Codec = 2
	Lz4    Codec = 3
	Zstd   Codec = 4
)

// DefaultMaxDecompressed bounds what a batch may decompress to where a caller sets no bound.
const DefaultMaxDecompressed = 64 << 20

// measureFrom is how much of a batch is decompressed before it is asked how much there
// is in all. Most have less.
const measureFrom = 1 << 20

// maxZstdWindow is the largest window a zstd frame may ask for: level 19 uses
// 8 MiB. A decoder keeps this much per stream, so it is no place for trust.
const maxZstdWindow = 32 << 20

// maxPooledBuffer is the largest buffer a pool keeps: one big batch must not
// pin its memory for ever.
const maxPooledBuffer = 4 << 20

// String returns Kafka's name of the compression type, as compression.type spells it.
func (c Codec) String() string {
	switch c {
	case None:
		return "none"
	case Gzip:
		return "gzip"
	case Snappy:
		return "snappy"
	case Lz4:
		return "lz4"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("codec-%d", int8(c))
}

// Known tells whether c is one of Kafka's compression types.
func (c Codec) Known() bool { return c >= None && c <= Zstd }

// Compress appends src, compressed, to dst. Snappy is written in xerial
// framing, as the Java client does.
func Compress(dst, src []byte, c Codec) ([]byte, error) {
	switch c {
	case None:
		return append(dst, src...), nil
	case Snappy:
		return appendXerial(dst, src), nil
	case Zstd:
		return zstdEncoder().EncodeAll(src, dst), nil
	case Gzip:
		w := gzipWriters.Get().(*gzip.Writer)
		defer gzipWriters.Put(w)
		return deflate(dst, src, w)
	case Lz4:
		w := lz4Writers.Get().(*lz4.Writer)
		defer lz4Writers.Put(w)
		return deflate(dst, src, w)
	}
	return dst, fmt.Errorf("%w: %d", ErrUnsupportedCodec, int8(c))
}

// Decompress appends src, decompressed, to dst. More than limit bytes are
// ErrTooLarge, anything malformed is ErrCorrupt. Memory grows with what really
// comes out, never with what src claims.
func Decompress(dst, src []byte, c Codec, limit int) ([]byte, error) {
	if c == None {
		if len(src) > limit {
			return dst, errLimit(limit)
		}
		return append(dst, src...), nil
	}
	return decompress(dst, src, c, limit, false)
}

// decompress is Decompress; old tolerates the lz4 frame header of message format 0.
func decompress(dst, src []byte, c Codec, limit int, old bool) ([]byte, error) {
	r, err := newInflater(c, src, old)
	if err != nil {
		return dst, err
	}
	defer func() { r.release() }()
	start := len(dst)
	for {
		if len(dst) == cap(dst) {
			if len(dst)-start >= measureFrom {
				// Growing step by step would allocate several times what comes out. So the rest is
				// counted, room made for all of it, and the work begun anew.
				n, err := r.count(limit - (len(dst) - start))
				if err != nil {
					return dst[:start], decompressError(c, err)
				}
				sized := make([]byte, start, len(dst)+n+1)
				copy(sized, dst)
				r.release()
				if r, err = newInflater(c, src, old); err != nil {
					return dst[:start], err
				}
				dst = sized
			} else {
				dst = append(dst, 0)[:len(dst)]
			}
		}
		// One byte over the limit may be read, to see that there is one.
		room := dst[len(dst):min(cap(dst), start+limit+1)]
		n, err := r.Read(room)
		dst = dst[:len(dst)+n]
		if len(dst)-start > limit {
			return dst[:start], errLimit(limit)
		}
		if errors.Is(err, io.EOF) {
			return dst, nil
		}
		if err != nil {
			return dst[:start], decompressError(c, err)
		}
	}
}

// count reads to the end and returns how much that was; more than limit is ErrTooLarge.
func (f *inflater) count(limit int) (int, error) {
	buf := getBuffer()
	defer putBuffer(buf)
	scratch := (*buf)[:cap(*buf)]
	for total := 0; ; {
		n, err := f.Read(scratch)
		if total += n; total > limit {
			return 0, errLimit(limit)
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

func errLimit(limit int) error {
	return fmt.Errorf("%w: decompresses to more than %d bytes", ErrTooLarge, limit)
}

func decompressError(c Codec, err error) error {
	if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrTooLarge) {
		return err
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return fmt.Errorf("%w: zstd window over %d bytes", ErrTooLarge, maxZstdWindow)
	}
	return fmt.Errorf("%w: %s: %w", ErrCorrupt, c, err)
}

type resetWriter interface {
	io.WriteCloser
	Reset(io.Writer)
}

func deflate(dst, src []byte, w resetWriter) ([]byte, error) {
	out := sliceWriter{dst}
	w.Reset(&out)
	if _, err := w.Write(src); err != nil {
		return dst, fmt.Errorf("compress: %w", err)
	}
	if err := w.Close(); err != nil {
		return dst, fmt.Errorf("compress: %w", err)
	}
	return out.b, nil
}

type sliceWriter struct{ b []byte }

func (w *sliceWriter) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	return len(p), nil
}

var (
	gzipWriters = sync.Pool{New: func() any { return gzip.NewWriter(io.Discard) }}
	lz4Writers  = sync.Pool{New: func() any {
		w := lz4.NewWriter(io.Discard)
		// Old readers know neither block checksums nor sizes above 64 KiB blocks.
		if err := w.Apply(lz4.BlockSizeOption(lz4.Block64Kb)); err != nil {
			panic(err) // a fixed, valid option
		}
		return w
	}}
	zstdEncoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(2), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic(err) // fixed, valid options
		}
		return e
	})
)

// inflater is a pooled decompressor of one codec, reading from bytes.
type inflater struct {
	codec Codec
	src   bytes.Reader
	head  bytes.Reader       // lz4: patch, before src
	patch [lz4MaxHeader]byte // lz4: the frame header with a repaired checksum
	gz    *gzip.Reader
	zs    *zstd.Decoder
	lz    *lz4.Reader
	sn    snappyReader
	r     io.Reader
}

var inflaters [Zstd + 1]sync.Pool

// newInflater returns a decompressor of src. release gives it back.
func newInflater(c Codec, src []byte, old bool) (*inflater, error) {
	if c <= None || c > Zstd {
		return nil, fmt.Errorf("%w: %d", ErrUnsupportedCodec, int8(c))
	}
	f, _ := inflaters[c].Get().(*inflater)
	if f == nil {
		f = &inflater{codec: c}
	}
	f.src.Reset(src)
	if err := f.reset(src, old); err != nil {
		f.release()
		return nil, decompressError(c, err)
	}
	return f, nil
}

func (f *inflater) reset(src []byte, old bool) error {
	switch f.codec {
	case Gzip:
		if f.gz == nil {
			f.gz = new(gzip.Reader)
		}
		f.r = f.gz
		return f.gz.Reset(&f.src)
	case Snappy:
		f.r = &f.sn
		return f.sn.reset(src)
	case Lz4:
		in, err := f.lz4Source(src, old)
		if err != nil {
			return err
		}
		if f.lz == nil {
			f.lz = lz4.NewReader(in)
		} else {
			f.lz.Reset(in)
		}
		f.r = f.lz
		return nil
	case Zstd:
		if err := checkWindows(src); err != nil {
			return err
		}
		if f.zs == nil {
			d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderMaxMemory(math.MaxInt32))
			if err != nil {
				return err
			}
			f.zs = d
		}
		f.r = f.zs
		return f.zs.Reset(&f.src)
	case None:
	}
	return ErrUnsupportedCodec
}

// Read implements io.Reader. It never returns 0, nil for a non-empty p for ever:
// each codec's reader makes progress or fails.
func (f *inflater) Read(p []byte) (int, error) { return f.r.Read(p) }

// release drops every reference to the input and pools the decompressor.
func (f *inflater) release() {
	f.src.Reset(nil)
	f.head.Reset(nil)
	if f.sn.release() {
		inflaters[f.codec].Put(f)
	}
}

// snappyReader reads Kafka's two snappy forms: xerial's chunks, which begin
// with a fixed header, and one raw block.
type snappyReader struct {
	src    []byte
	xerial bool
	out    []byte // the decoded block; out[pos:] is unread
	pos    int
}

// xerialMagic opens xerial's framing; two big-endian versions (1, 1) follow.
var xerialMagic = [8]byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0}

const (
	xerialHeader = 16
	xerialBlock  = 32 << 10
	// maxSnappyBlock bounds one block's claim. A raw block is a whole batch.
	maxSnappyBlock = DefaultMaxDecompressed
)

func (s *snappyReader) reset(src []byte) error {
	s.src, s.out, s.pos, s.xerial = src, s.out[:0], 0, false
	if len(src) >= len(xerialMagic) && [8]byte(src[:8]) == xerialMagic {
		if len(src) < xerialHeader {
			return io.ErrUnexpectedEOF
		}
		s.xerial, s.src = true, src[xerialHeader:]
	}
	return nil
}

func (s *snappyReader) release() (poolable bool) {
	s.src = nil
	return cap(s.out) <= maxPooledBuffer
}

func (s *snappyReader) Read(p []byte) (int, error) {
	for s.pos == len(s.out) {
		if len(s.src) == 0 {
			return 0, io.EOF
		}
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.out[s.pos:])
	s.pos += n
	return n, nil
}

func (s *snappyReader) next() error {
	block, used := s.src, len(s.src)
	if s.xerial {
		if len(s.src) < 4 {
			return io.ErrUnexpectedEOF
		}
		n := be32(s.src, 0)
		if n <= 0 || int(n) > len(s.src)-4 {
			return fmt.Errorf("%w: snappy: chunk of %d bytes, %d left", ErrCorrupt, n, len(s.src)-4)
		}
		block, used = s.src[4:4+n], 4+int(n)
	}
	s.src = s.src[used:]
	size, err := s2.DecodedLen(block)
	if err != nil {
		return err
	}
	// A copy element of 3 bytes yields at most 64: a claim beyond that is a lie,
	// refused before it is allocated.
	if size > maxSnappyBlock {
		return fmt.Errorf("%w: snappy block of %d bytes", ErrTooLarge, size)
	}
	if size > 22*len(block)+64 {
		return fmt.Errorf("%w: snappy: %d bytes claim to hold %d", ErrCorrupt, len(block), size)
	}
	if cap(s.out) < size {
		s.out = make([]byte, size)
	}
	s.out, s.pos = s.out[:cap(s.out)], 0
	s.out, err = s2.Decode(s.out, block)
	return err
}

// appendXerial appends src in xerial's snappy framing.
func appendXerial(dst, src []byte) []byte {
	dst = append(dst, xerialMagic[:]...)
	dst = append(dst, 0, 0, 0, 1, 0, 0, 0, 1)
	var scratch []byte
	for len(src) > 0 {
		block := src[:min(len(src), xerialBlock)]
		src = src[len(block):]
		scratch = s2.EncodeSnappy(scratch[:cap(scratch)], block)
		dst = append(dst, byte(len(scratch)>>24), byte(len(scratch)>>16), byte(len(scratch)>>8), byte(len(scratch)))
		dst = append(dst, scratch...)
	}
	return dst
}
