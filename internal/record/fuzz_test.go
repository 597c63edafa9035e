package record

import (
	"bytes"
	"errors"
	"testing"

	"github.com/klauspost/compress/s2"

	"chronik/internal/alloctest"
)

func seeds(f *testing.F) {
	for _, c := range codecs {
		b := build(f, &Builder{Codec: c}, sample()[:3]...)
		f.Add(b)
		f.Add(b[:len(b)/2])
		f.Add(b[:HeaderSize])
	}
}

// documented tells whether err is one of the package's sentinels.
func documented(err error) bool {
	for _, s := range []error{ErrCorrupt, ErrTooLarge, ErrUnsupportedCodec, ErrInvalidRecord, ErrUnsupportedMagic, ErrTimestampType} {
		if errors.Is(err, s) {
			return true
		}
	}
	return false
}

func FuzzParseBatch(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		h, n, err := ParseBatch(b)
		if err != nil {
			if !documented(err) {
				t.Fatalf("undocumented error: %v", err)
			}
			return
		}
		if n < HeaderSize || n > len(b) || n != h.Size() || len(h.Bytes()) != n {
			t.Fatalf("%d bytes of %d, size %d", n, len(b), h.Size())
		}
		Stamp(b, 1<<40, 7)
		if _, _, err := ParseBatch(b); err != nil {
			t.Fatalf("stamped: %v", err)
		}
	})
}

// The walk of Validate and the decoder of ForEach must agree on what is well formed.
func FuzzForEach(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		h, err := Header(b)
		if err != nil || h.Size() > len(b) {
			if err := ForEach(b, func(Record) error { return nil }); len(b) > 0 && err == nil {
				t.Fatal("bytes without a header pass")
			}
			return
		}
		b = b[:h.Size()]
		putCRC(b)
		n, dense := 0, true
		walkErr := ForEach(b, func(r Record) error {
			dense = dense && r.OffsetDelta == int32(n)
			n++
			return nil
		})
		if walkErr != nil && !documented(walkErr) {
			t.Fatalf("undocumented error: %v", walkErr)
		}
		_, err = Validate(b, ValidateOptions{})
		if err == nil && (walkErr != nil || !dense) {
			t.Fatalf("validated, but the walk says %v, dense %v", walkErr, dense)
		}
		if walkErr == nil && dense && h.validateHeader() == nil && err != nil {
			t.Fatalf("walked %d dense records, but validate says %v", n, err)
		}
	})
}

func FuzzUpConvert(f *testing.F) {
	for magic := range int8(2) {
		set := oldSet(magic, 0, oldSample())
		f.Add(set)
		f.Add(set[:len(set)-3])
		for _, c := range codecs[1:4] {
			f.Add(wrap(f, magic, c, 1, set))
		}
	}
	f.Fuzz(func(t *testing.T, set []byte) {
		defer alloctest.Bound(t, len(set))()
		// Mutations seldom hit the checksum: repair the first message's.
		if len(set) >= setEntry+4 {
			if size := be32(set, setSizeAt); size >= 4 && int(size) <= len(set)-setEntry {
				copy(set, resealMessage(bytes.Clone(set[:setEntry+size])))
			}
		}
		b, err := UpConvert(set, ValidateOptions{MaxDecompressed: 1 << 20})
		if err != nil {
			if !documented(err) {
				t.Fatalf("undocumented error: %v", err)
			}
			return
		}
		if _, err := Validate(b, ValidateOptions{}); err != nil {
			t.Fatalf("converted batch is refused: %v", err)
		}
		if _, err := DownConvert(nil, b, 1); err != nil {
			t.Fatalf("down again: %v", err)
		}
	})
}

// FuzzDecompress takes bytes for a stream of each codec: an error of the package,
// or no more than the limit, the same in one piece and in many.
func FuzzDecompress(f *testing.F) {
	text := bytes.Repeat([]byte("some text, some more text. "), 40)
	for _, c := range codecs {
		b, err := Compress(nil, text, c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(int8(c), b, uint32(1<<20))
		f.Add(int8(c), b, uint32(100))
		f.Add(int8(c), b[:len(b)/2], uint32(1<<20))
		f.Add(int8(c), append(bytes.Clone(b), b...), uint32(1<<20))
	}
	f.Add(int8(Snappy), s2.EncodeSnappy(nil, text), uint32(1<<20))
	f.Fuzz(func(t *testing.T, codec int8, b []byte, limit uint32) {
		defer alloctest.Bound(t, len(b))()
		bound := int(limit % (8 << 20))
		out, err := Decompress(nil, b, Codec(codec), bound)
		if err != nil {
			if !documented(err) {
				t.Fatalf("undocumented error: %v", err)
			}
			return
		}
		if len(out) > bound {
			t.Fatalf("%d bytes, the limit is %d", len(out), bound)
		}
		again, err := Decompress([]byte("before"), b, Codec(codec), len(out))
		if err != nil || !bytes.Equal(again[6:], out) {
			t.Fatalf("%d bytes the first time, then %d, %v", len(out), len(again)-6, err)
		}
	})
}
