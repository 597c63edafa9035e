package snapshot

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"chronik/internal/vfs"
)

// Who writes a long blob rests as long as it worked, and no longer than paceMost
// at a time: a disk that is slow for a while does not make it slower still.
func TestWriteRests(t *testing.T) {
	for name, c := range map[string]struct {
		blob       int
		work, want time.Duration // work for each 64 KiB
	}{
		"long":  {4 << 20, time.Millisecond, 128 * time.Millisecond},
		"slow":  {4 << 20, time.Second, 64*time.Second + 32*paceMost},
		"short": {64 << 10, time.Millisecond, time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			fs := vfs.NewCrashableMem()
			noErr(t, fs.MkdirAll("/d", 0o755))
			began := time.Now()
			ck := Checkpoint{Group: 1, Point: Point{Index: 7, Term: 1}, CreatedAt: began}
			_, err := Write(fs, "/d", ck, None, func(w io.Writer) (int64, error) {
				piece := noise(1, 64<<10)
				for n := 0; n < c.blob; n += len(piece) {
					time.Sleep(c.work)
					if _, err := w.Write(piece); err != nil {
						return 0, err
					}
				}
				return int64(c.blob), nil
			})
			noErr(t, err)
			if took := time.Since(began); took != c.want {
				t.Errorf("%s: took %v, want %v", name, took, c.want)
			}
		})
	}
}
