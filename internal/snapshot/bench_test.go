package snapshot

import (
	"fmt"
	"io"
	"testing"
	"time"

	"chronik/internal/vfs"
)

// BenchmarkWrite: a checkpoint by size of its blob, on a memory disk.
func BenchmarkWrite(b *testing.B) {
	for _, size := range []int{200, 1 << 20} {
		b.Run(fmt.Sprintf("blob=%d", size), func(b *testing.B) {
			fs := vfs.NewCrashableMem()
			noErr(b, fs.MkdirAll("/d", 0o755))
			blob := noise(1, size)
			b.ReportAllocs()
			for range b.N {
				ck := Checkpoint{Group: 1, Point: Point{Index: 7, Term: 1}, CreatedAt: time.Unix(1, 0)}
				if _, err := Write(fs, "/d", ck, Zstd, func(w io.Writer) (int64, error) {
					n, err := w.Write(blob)
					return int64(n), err
				}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
