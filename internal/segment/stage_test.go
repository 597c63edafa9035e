package segment

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"chronik/internal/vfs"
)

// Batches that are copied and batches that are written from where they lie land one
// behind the other, stamped, whatever the order and wherever a segment ends; the
// caller's bytes stay as they were.
func TestStageMixedSizes(t *testing.T) {
	for name, o := range map[string]Options{
		"memory": memOptions(), "disk": {FS: vfs.Default, Dir: filepath.Join(t.TempDir(), "p")},
	} {
		t.Run(name, func(t *testing.T) {
			o.SegmentBytes = 100_000
			l := mustOpen(t, o)
			var want []byte
			for range 60 {
				for range rand.IntN(12) {
					pad := rand.IntN(2 * copyBelow)
					if rand.IntN(4) == 0 {
						pad = rand.IntN(40_000)
					}
					b := build(t, 1, pad, 1)
					before := bytes.Clone(b)
					want = append(want, stamped(b, l.Stage(b, 7), 7)...)
					if !bytes.Equal(b, before) {
						t.Fatal("a batch was changed")
					}
				}
				if err := l.Flush(); err != nil {
					t.Fatal(err)
				}
			}
			if got := all(t, l); !bytes.Equal(got, want) {
				t.Fatalf("%d bytes, want %d", len(got), len(want))
			}
			after := checkpoint(t, l, o)
			closeLog(t, l)
			l = mustOpen(t, after)
			if err := l.Verify(t.Context(), nil); err != nil || !bytes.Equal(all(t, l), want) {
				t.Fatalf("after a start: %v", err)
			}
			closeLog(t, l)
		})
	}
}

// A large batch costs no copy and, past the first, next to no memory.
func TestAppendAllocates(t *testing.T) {
	l := mustOpen(t, Options{FS: vfs.Default, Dir: filepath.Join(t.TempDir(), "p")})
	for _, tt := range []struct {
		pad  int
		most float64
	}{{100, 3}, {256 << 10, 6}} { // the new view, its index, and what pwritev makes of the pieces
		b := build(t, 1, tt.pad, 1)
		if n := testing.AllocsPerRun(100, func() { mustAppend(t, l, b, 1) }); n > tt.most {
			t.Errorf("a batch of %d bytes: %v allocations, want at most %v", len(b), n, tt.most)
		}
	}
	closeLog(t, l)
}
