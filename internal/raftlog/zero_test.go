package raftlog

import (
	"bytes"
	"sync"
	"testing"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"chronik/internal/ident"
	"chronik/internal/vfs"
)

// writesFS records the writes to log files.
type writesFS struct {
	vfs.FS
	mu     sync.Mutex
	writes []write
}

type write struct {
	path    string
	from, n int64
	zero    bool
}

type writesFile struct {
	vfs.File
	fs   *writesFS
	path string
}

func (w *writesFS) OpenReadWrite(name string, c vfs.WriteCategory, opts ...pebblevfs.OpenOption) (vfs.File, error) {
	f, err := w.FS.OpenReadWrite(name, c, opts...)
	return &writesFile{f, w, name}, err
}

func (f *writesFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	f.fs.writes = append(f.fs.writes, write{f.path, off, int64(len(p)), len(bytes.TrimRight(p, "\x00")) == 0})
	f.fs.mu.Unlock()
	return f.File.WriteAt(p, off)
}

func (w *writesFS) zeroed() (n int, to int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.writes {
		if o.zero {
			n++
			to = max(to, o.from+o.n)
		}
	}
	return n, to
}

// Small batches write into blocks that were zeroed a step ahead, large ones do
// not, nothing is zeroed behind the file's size or in a file that is used again.
func TestZeroAhead(t *testing.T) {
	fs := &writesFS{FS: vfs.NewCrashableMem()}
	o := testOptions(fs)
	o.FileBytes, o.MaxBytes = 4<<20, 16<<20
	l := openWith(t, o)
	check(t, l.Create([]Creation{voter(5)}))
	next := ident.Index(2)
	put := func(bytes int) {
		t.Helper()
		check(t, add(l, 5, HardState{Term: 1, Commit: 1}, run(5, next, 1, 1, bytes)))
		next++
	}
	n, to := fs.zeroed()
	if n != 1 || to < zeroStep || to > zeroStep+64<<10 {
		t.Fatalf("%d writes of zeros up to %d for the first batch", n, to)
	}
	for range 100 {
		put(1000) // 100 kB: within the step
	}
	if again, _ := fs.zeroed(); again != n {
		t.Fatalf("%d writes of zeros for a hundred small batches", again)
	}
	for range 15 {
		put(zeroBelow) // the batch is larger than that: 1 MB, beyond the step
	}
	if again, _ := fs.zeroed(); again != n {
		t.Fatalf("%d writes of zeros for large batches", again)
	}
	put(1000)
	if again, _ := fs.zeroed(); again != n+1 {
		t.Fatalf("%d writes of zeros for a small batch after large ones", again)
	}
	for l.Stats().Rolls < 2 {
		put(50_000)
	}
	if _, to := fs.zeroed(); to > o.FileBytes {
		t.Fatalf("zeros up to %d in a file of %d", to, o.FileBytes)
	}
	for l.Stats().Recycled == 0 {
		fs.mu.Lock()
		fs.writes = nil
		fs.mu.Unlock()
		l.Trim(5, next-2)
		put(50_000)
	}
	if n, _ := fs.zeroed(); n != 0 {
		t.Fatal("zeros in a file that was written before")
	}
	closeLog(t, l)
	l = openWith(t, o)
	if got := l.Replica(5).LastIndex(); got != next-1 {
		t.Fatalf("after opening again the log ends at %d, want %d", got, next-1)
	}
	closeLog(t, l)
}
