package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

func TestCompressDecompress(t *testing.T) {
	for _, c := range codecs {
		for _, size := range []int{0, 1, 100, xerialBlock, xerialBlock + 1, 1 << 20} {
			src := bytes.Repeat([]byte("chronik!"), size/8+1)[:size]
			packed, err := Compress([]byte("head"), src, c)
			if err != nil || !bytes.HasPrefix(packed, []byte("head")) {
				t.Fatalf("%s, %d bytes: %v", c, size, err)
			}
			got, err := Decompress([]byte("dst"), packed[4:], c, size)
			if c == Lz4 && size == 0 && len(packed) == 4 {
				continue // no frame at all
			}
			if err != nil || !bytes.Equal(got, append([]byte("dst"), src...)) {
				t.Errorf("%s, %d bytes: %d back, %v", c, size, len(got), err)
			}
			if size > 0 {
				if _, err := Decompress(nil, packed[4:], c, size-1); !errors.Is(err, ErrTooLarge) {
					t.Errorf("%s, %d bytes, limit one less: %v", c, size, err)
				}
			}
		}
	}
	if _, err := Decompress(nil, nil, 5, 10); !errors.Is(err, ErrUnsupportedCodec) {
		t.Errorf("codec 5: %v", err)
	}
	if _, err := Compress(nil, nil, 7); !errors.Is(err, ErrUnsupportedCodec) {
		t.Errorf("codec 7: %v", err)
	}
}

func TestSnappyRawBlock(t *testing.T) {
	src := bytes.Repeat([]byte("raw block "), 10000)
	got, err := Decompress(nil, s2.EncodeSnappy(nil, src), Snappy, len(src))
	if err != nil || !bytes.Equal(got, src) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestMalformedCompression(t *testing.T) {
	claim := binary.AppendUvarint(nil, 1<<30) // a snappy block of 1 GiB in 5 bytes
	chunk := append(append(bytes.Clone(xerialMagic[:]), 0, 0, 0, 1, 0, 0, 0, 1), 0x7f, 0xff, 0xff, 0xff, 1, 2)
	window := append([]byte{0x28, 0xB5, 0x2F, 0xFD, 0x00, 0x80}, 1, 0, 0) // a zstd frame with a 64 MiB window
	tests := []struct {
		name string
		c    Codec
		src  []byte
		want error
	}{
		{"gzip garbage", Gzip, []byte("garbage garbage"), ErrCorrupt},
		{"gzip empty", Gzip, nil, ErrCorrupt},
		{"snappy claim", Snappy, claim, ErrTooLarge},
		{"snappy small lie", Snappy, binary.AppendUvarint(nil, 50<<20), ErrCorrupt},
		{"snappy garbage", Snappy, []byte("\xff\xff\xff\xff\xff\xff"), ErrCorrupt},
		{"xerial header only half", Snappy, xerialMagic[:], ErrCorrupt},
		{"xerial chunk too long", Snappy, chunk, ErrCorrupt},
		{"xerial chunk length cut", Snappy, chunk[:xerialHeader+2], ErrCorrupt},
		{"lz4 garbage", Lz4, []byte("garbage garbage"), ErrCorrupt},
		{"lz4 empty", Lz4, nil, ErrCorrupt},
		{"zstd garbage", Zstd, []byte("garbage garbage"), ErrCorrupt},
		{"zstd window", Zstd, window, ErrTooLarge},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Decompress(nil, tc.src, tc.c, 1<<30)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
				t.Errorf("%d bytes allocated for a lie", n)
			}
		})
	}
}

// A bomb stops at the bound, and validation holds a window of it, not all.
func TestBombs(t *testing.T) {
	zeros := make([]byte, 100<<20)
	// One record, whose value is the zeros.
	body := binary.AppendVarint(nil, int64(len(zeros)+10))
	body = append(body, 0, 0, 0, 1)
	body = binary.AppendVarint(body, int64(len(zeros)))
	body = append(body, zeros...)
	body = append(body, 0)
	plain := build(t, &Builder{}, Record{Value: []byte("x")})
	for _, c := range []Codec{Gzip, Snappy, Lz4, Zstd} {
		b, err := Compress(bytes.Clone(plain[:HeaderSize]), body, c)
		if err != nil {
			t.Fatal(err)
		}
		binary.BigEndian.PutUint32(b[offBatchLength:], uint32(len(b)-lengthOverhead))
		binary.BigEndian.PutUint16(b[offAttributes:], uint16(c))
		reseal(b)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err = Validate(b, ValidateOptions{})
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", c, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
			t.Errorf("%s: validate allocated %d bytes", c, n)
		}
		if _, err := Decompress(nil, b[HeaderSize:], c, 1<<20); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: decompress: %v", c, err)
		}
	}
}

// Many small records behind a bomb must stop at the bound as well: the claim of
// one record's length is not what stops it.
func TestBombOfSmallRecords(t *testing.T) {
	b := &Builder{Codec: Zstd}
	for range 5000 {
		b.Append(Record{Value: make([]byte, 100)})
	}
	out := build(t, b)
	if _, err := Validate(out, ValidateOptions{MaxDecompressed: 100_000}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	if _, err := Validate(out, ValidateOptions{MaxDecompressed: 1_000_000}); err != nil {
		t.Errorf("within the bound: %v", err)
	}
}

// A pooled decompressor that failed must work for the next caller.
func TestDecompressorsRecover(t *testing.T) {
	src := bytes.Repeat([]byte("again "), 1000)
	for _, c := range codecs[1:] {
		good, err := Compress(nil, src, c)
		if err != nil {
			t.Fatal(err)
		}
		for cut := 0; cut < len(good); cut += 7 {
			_, _ = Decompress(nil, good[:cut], c, len(src))
			_, _ = Decompress(nil, good, c, cut)
			got, err := Decompress(nil, good, c, len(src))
			if err != nil || !bytes.Equal(got, src) {
				t.Fatalf("%s after a failure at %d: %v", c, cut, err)
			}
		}
	}
}

func TestZstdOfJavaLevels(t *testing.T) {
	src := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(w, bytes.NewReader(src)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := Decompress(nil, out.Bytes(), Zstd, len(src))
	if err != nil || !bytes.Equal(got, src) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// lz4Old frames src as clients of format 0 do: with a header checksum over the
// magic as well.
func lz4Old(t testing.TB, src []byte, opts ...lz4.Option) []byte {
	t.Helper()
	var out bytes.Buffer
	w := lz4.NewWriter(&out)
	if err := w.Apply(opts...); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(src); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b := out.Bytes()
	n := 6
	if b[4]&0x08 != 0 {
		n += 8
	}
	if byte(xxh32(b[4:n])>>8) != b[n] {
		t.Fatalf("xxh32 does not agree with the lz4 package: %x", b[:n+1])
	}
	b[n] = byte(xxh32(b[:n]) >> 8)
	return b
}

func TestLz4OldHeaderChecksum(t *testing.T) {
	src := bytes.Repeat([]byte("kafka-3160 "), 5000)
	for name, opts := range map[string][]lz4.Option{
		"plain":        {lz4.BlockSizeOption(lz4.Block64Kb)},
		"content size": {lz4.SizeOption(uint64(len(src))), lz4.BlockSizeOption(lz4.Block256Kb)},
	} {
		old := lz4Old(t, src, opts...)
		got, err := decompress(nil, old, Lz4, len(src), true)
		if err != nil || !bytes.Equal(got, src) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		if _, err := Decompress(nil, old, Lz4, len(src)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: format 2 must not tolerate it: %v", name, err)
		}
		for cut := range 20 {
			if _, err := decompress(nil, old[:cut], Lz4, len(src), true); err == nil {
				t.Errorf("%s: %d bytes pass", name, cut)
			}
		}
	}
}

// xxHash32's own test vectors for seed 0.
func TestXXH32(t *testing.T) {
	for in, want := range map[string]uint32{
		"":    0x02CC5D05,
		"a":   0x550D7456,
		"abc": 0x32D153FF,
		"Nobody inspects the spammish repetition": 0xE2293B2F,
	} {
		if got := xxh32([]byte(in)); got != want {
			t.Errorf("%q: %08x, want %08x", in, got, want)
		}
	}
}
