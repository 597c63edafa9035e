package vfs

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"unsafe"
)

func TestBlocks(t *testing.T) {
	for _, n := range []int{0, 1, BlockBytes, BlockBytes + 1, 1 << 20} {
		b := Blocks(n)
		if at := uintptr(unsafe.Pointer(unsafe.SliceData(b[:cap(b)]))); n > 0 && at%BlockBytes != 0 {
			t.Errorf("%d bytes begin at %#x", n, at)
		}
		if len(b) != 0 || cap(b) < n || cap(b)%BlockBytes != 0 || cap(b) >= n+BlockBytes {
			t.Errorf("%d bytes: length %d, capacity %d", n, len(b), cap(b))
		}
	}
}

// What goes past the page cache is what other handles read, also where they have
// read before and where they write in between.
func TestDirectBesideBuffered(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	f, err := Default.Create(name, CategoryLog)
	if err == nil {
		err = f.Preallocate(0, 64*BlockBytes)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	r, err := Default.OpenReadWrite(name, CategoryLog)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	d := OpenDirect(Default, name)
	if d == nil {
		t.Log("no direct writes in the directory of temporary files: only the answer is tested")
		return
	}
	defer func() { _ = d.Close() }()
	want := make([]byte, 64*BlockBytes)
	for range 200 {
		at, n := rand.IntN(60), 1+rand.IntN(4)
		piece := Blocks(n * BlockBytes)[:n*BlockBytes]
		for i := range piece {
			piece[i] = byte(rand.Uint32())
		}
		if rand.IntN(3) == 0 {
			_, err = r.WriteAt(piece[:len(piece)-7], int64(at*BlockBytes))
			copy(want[at*BlockBytes:], piece[:len(piece)-7])
		} else {
			_, err = d.WriteAt(piece, int64(at*BlockBytes))
			copy(want[at*BlockBytes:], piece)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := f.SyncData(); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		k, _ := r.ReadAt(got, 0) // the file may end before
		if !bytes.Equal(got[:k], want[:k]) || len(bytes.Trim(want[k:], "\x00")) > 0 {
			t.Fatal("another handle reads something else")
		}
	}
}

// A memory file system, or one that is wrapped, has no way around it.
func TestDirectOnlyOnTheRealDisk(t *testing.T) {
	if OpenDirect(NewCrashableMem(), "/f") != nil || OpenDirect(struct{ FS }{Default}, "/f") != nil {
		t.Fatal("direct writes pass by the file system they were asked of")
	}
}
