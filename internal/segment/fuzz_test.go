package segment

import (
	"errors"
	"hash/crc32"
	"io"
	"math"
	"testing"

	"chronik/internal/alloctest"
	"chronik/internal/record"
	"chronik/internal/vfs"
)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// FuzzIndex decodes anything, with its CRC made right: no panic, and what is
// accepted encodes to the same bytes.
func FuzzIndex(f *testing.F) {
	o := filled(f)
	f.Add(content(f, o, idxName(FileName(0))))
	f.Add([]byte(idxMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		if len(b) < idxCRCSize {
			return
		}
		b = recrc(b)
		index, size, next, err := decodeIndex(b, 0)
		if err != nil {
			if !errors.Is(err, errIndex) {
				t.Fatal(err)
			}
			return
		}
		if got := encodeIndex(0, &published{size: size, next: next, index: index}); string(got) != string(b) {
			t.Fatal("decodes to something else")
		}
	})
}

// FuzzSegment walks, opens and reads any bytes as a segment: an error of the
// documented kind or batches in order, never a panic.
func FuzzSegment(f *testing.F) {
	o := filled(f)
	f.Add(content(f, o, FileName(0))[:2000], int64(20))
	f.Add([]byte{}, int64(1))
	f.Fuzz(func(t *testing.T, b []byte, next int64) {
		defer alloctest.Bound(t, len(b))()
		fs := vfs.NewCrashableMem()
		if err := vfs.WriteFileSync(fs, FileName(0), b, vfs.CategorySegment); err != nil {
			t.Fatal(err)
		}
		if err := Dump(fs, FileName(0), io.Discard); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		o := Options{FS: fs, Segments: []Info{{NextOffset: next, Size: int64(len(b)), MaxTimestamp: math.MaxInt64}}, NextOffset: next}
		l, err := Open(o)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		defer func() { _ = l.Close() }()
		last := int64(0)
		err = l.EachBatch(0, math.MaxInt64, func(b record.Batch) error {
			if b.BaseOffset() != last {
				t.Fatalf("offset %d after %d", b.BaseOffset(), last)
			}
			last = b.NextOffset()
			return nil
		})
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		if _, _, _, err := l.OffsetForTimestamp(5, math.MaxInt64); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
	})
}
