package raftlog

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"chronik/internal/ident"
	"chronik/internal/vfs"
)

// Frames are written in whole blocks, and a write changes no byte that was durable.
func TestWholeBlocksKeepWhatIsDurable(t *testing.T) {
	fs := &writesFS{FS: vfs.NewCrashableMem()}
	o := testOptions(fs)
	o.FileBytes, o.MaxBytes = 4<<20+100, 16<<20+400 // no whole blocks
	l := openWith(t, o)
	check(t, l.Create([]Creation{voter(5)}))
	fill := vfs.BlockBytes - frameHeaderBytes - 24 - entryHeaderBytes // a frame of one block
	var want []Entry
	for i, bytes := range []int{1, 3000, 5000, fill, fill, 100_000, 300_000, 1, 600_000, 1, 200} {
		before := readFile(t, fs, logPath(1))[:l.w.active.end]
		fs.mu.Lock()
		fs.writes = nil
		fs.mu.Unlock()
		want = append(want, run(5, ident.Index(2+i), 1, 1, bytes)...)
		check(t, add(l, 5, HardState{Term: 1, Commit: 1}, want[i:]))
		for _, w := range fs.writes {
			if w.from%vfs.BlockBytes != 0 || w.n%vfs.BlockBytes != 0 || w.from+w.n > l.w.active.size {
				t.Fatalf("entry of %d bytes: %d bytes written at %d", bytes, w.n, w.from)
			}
		}
		if !hasPrefix(readFile(t, fs, logPath(1)), before) {
			t.Fatalf("entry of %d bytes: bytes before it have changed", bytes)
		}
	}
	closeLog(t, l)
	l = openWith(t, o)
	wantEntries(t, l, 5, want)
	closeLog(t, l)
}

func hasPrefix(b, prefix []byte) bool {
	return len(b) >= len(prefix) && bytes.Equal(b[:len(prefix)], prefix)
}

// On a real disk writes go past the page cache. What is read, while the log is
// written and after a start, with and without a seal, is what was appended.
func TestDirectWritesOnARealDisk(t *testing.T) {
	o := testOptions(vfs.Default)
	o.Dir = filepath.Join(t.TempDir(), "log")
	o.FileBytes, o.MaxBytes, o.CacheBytes = 256<<10, 64<<20, 1 // reads come from the files
	l := openWith(t, o)
	check(t, l.Create([]Creation{voter(5)}))
	if l.w.active.direct == nil {
		t.Log("no direct writes in the directory of temporary files: the other way is tested")
	}
	var want []Entry
	for start := range 4 {
		for range 100 {
			size := rand.IntN(300)
			if rand.IntN(5) == 0 {
				size = rand.IntN(40_000)
			}
			n := len(want)
			want = append(want, run(5, ident.Index(2+n), 1+rand.IntN(3), 1, size)...)
			check(t, add(l, 5, HardState{Term: 1, Commit: 1}, want[n:]))
			lo := rand.IntN(len(want))
			got, err := l.Replica(5).Entries(ident.Index(2+lo), ident.Index(2+len(want)), 10_000)
			check(t, err)
			check(t, sameEntries(got, want[lo:lo+len(got)]))
		}
		if start%2 == 0 {
			closeLog(t, l)
		} else { // as a crash leaves it: not sealed
			old := l
			defer func() { _ = old.Close() }()
		}
		l = openWith(t, o)
		wantEntries(t, l, 5, want)
	}
	closeLog(t, l)
}

// A file that takes no direct writes is written through the page cache.
func TestDirectWritesRefused(t *testing.T) {
	o := testOptions(vfs.Default)
	o.Dir = filepath.Join(t.TempDir(), "log")
	l := openWith(t, o)
	check(t, l.Create([]Creation{voter(5)}))
	f := l.w.active
	odd := vfs.Blocks(2 * vfs.BlockBytes)[1 : 1+vfs.BlockBytes] // not at a block's address
	copy(odd, "odd")
	check(t, f.writeBlocks(odd, (f.end+(8<<10))&^(vfs.BlockBytes-1)))
	if f.direct != nil {
		t.Fatal("direct writes go on after one was refused")
	}
	want := run(5, 2, 3, 1, 2000)
	check(t, add(l, 5, HardState{Term: 1, Commit: 1}, want))
	wantEntries(t, l, 5, want)
	closeLog(t, l)
}
