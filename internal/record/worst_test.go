package record

import (
	"bytes"
	"encoding/binary"
	"runtime/metrics"
	"testing"

	"github.com/klauspost/compress/s2"

	"chronik/internal/alloctest"
)

// TestWorstBatches: a batch of 1 MiB that decompresses to more than is allowed costs
// little, one that decompresses to just as much as is allowed costs that and the
// decompressor's own memory, whoever reads it.
func TestWorstBatches(t *testing.T) {
	zeros := make([]byte, DefaultMaxDecompressed)
	for _, c := range codecs[1:] {
		fits, err := Compress(nil, zeros, c)
		if err != nil {
			t.Fatal(err)
		}
		over, err := Compress(nil, append(zeros, 0), c)
		if err != nil {
			t.Fatal(err)
		}
		if len(fits) > alloctest.MaxInput {
			continue // snappy: 22 bytes from one at most
		}
		t.Run(c.String(), func(t *testing.T) {
			end := alloctest.Bound(t, len(over))
			if _, err := Decompress(nil, over, c, DefaultMaxDecompressed); err == nil {
				t.Error("over the limit, and it passes")
			}
			end()
			at := allocated()
			out, err := Decompress(nil, fits, c, DefaultMaxDecompressed)
			if n := allocated() - at; err != nil || len(out) != len(zeros) || n > uint64(len(zeros)+24<<20) {
				t.Errorf("%d bytes allocated for %d, %v", n, len(out), err)
			}
		})
	}
}

func allocated() uint64 {
	s := [...]metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s[:])
	return s[0].Value.Uint64()
}

// TestWorstStreams: 1 MiB of compressed bytes in each form that asks for memory.
func TestWorstStreams(t *testing.T) {
	inputs := map[string][]byte{}
	one := []byte("x")
	for _, c := range codecs[1:] {
		b, err := Compress(nil, one, c)
		if err != nil {
			t.Fatal(err)
		}
		inputs["many of "+c.String()] = bytes.Repeat(b, alloctest.MaxInput/len(b))
	}
	// A zstd frame of each window from 1 KiB to 32 MiB: magic, no checksum, window, empty raw last block.
	var windows []byte
	for exp := range byte(16) {
		for mantissa := range byte(8) {
			windows = append(windows, 0x28, 0xb5, 0x2f, 0xfd, 0, exp<<3|mantissa, 3, 0, 0, 'x')
		}
	}
	inputs["rising windows"] = windows
	// An lz4 frame of 4 MiB blocks, over and over.
	inputs["lz4 blocks"] = bytes.Repeat([]byte{0x04, 0x22, 0x4d, 0x18, 0x60, 0x70, 0x73, 0, 0, 0, 0}, 90_000)
	// Snappy chunks, each of which decodes to a little more than the one before.
	x := append(xerialMagic[:len(xerialMagic):len(xerialMagic)], 0, 0, 0, 1, 0, 0, 0, 1)
	for n := 1000; len(x) < alloctest.MaxInput-10_000; n += 1000 {
		chunk := s2.EncodeSnappy(nil, make([]byte, n))
		x = append(binary.BigEndian.AppendUint32(x, uint32(len(chunk))), chunk...)
	}
	inputs["rising chunks"] = x
	decoders := make([]func([]byte), 0, 4)
	for _, c := range codecs[1:] {
		decoders = append(decoders, func(b []byte) { _, _ = Decompress(nil, b, c, 16<<20) })
	}
	alloctest.Worst(t, inputs, decoders...)
}
