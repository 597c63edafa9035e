package segment

import (
	"math"
	"testing"

	"chronik/internal/bytepool"
	"chronik/internal/vfs"
)

// TestReadsUseBuffersAgain: what a read allocates does not depend on what it reads, and what
// it returns is not touched until it is given back.
func TestReadsUseBuffersAgain(t *testing.T) {
	defer bytepool.Poison()()
	l := mustOpen(t, Options{FS: vfs.Default, Dir: t.TempDir() + "/p"})
	batch := build(t, 1, 1000, 1)
	for range 3000 {
		mustAppend(t, l, batch, 1)
	}
	first, buf, err := l.ReadBuffer(0, 1<<20, math.MaxInt64)
	if err != nil {
		t.Fatal(err)
	}
	for from := int64(1); from < 50; from++ {
		_, other, err := l.ReadBuffer(from, 1<<20, math.MaxInt64)
		if err != nil {
			t.Fatal(err)
		}
		bytepool.Put(other)
	}
	if _, err := checked((*l.list.Load())[0], 0, first); err != nil {
		t.Errorf("changed before it was given back: %v", err)
	}
	bytepool.Put(buf)
	allocs := testing.AllocsPerRun(100, func() {
		_, buf, err := l.ReadBuffer(1000, 1<<20, math.MaxInt64)
		if err != nil {
			t.Fatal(err)
		}
		bytepool.Put(buf)
	})
	if allocs > 4 {
		t.Errorf("%v allocations a read of a megabyte", allocs)
	}
	t.Logf("%v allocations", allocs)
}

// TestReadOfALargeBatch: a batch larger than was asked for is read into a second buffer; the
// first is given back, the second is not.
func TestReadOfALargeBatch(t *testing.T) {
	defer bytepool.Poison()()
	l := mustOpen(t, Options{FS: vfs.Default, Dir: t.TempDir() + "/p"})
	mustAppend(t, l, build(t, 1, 500_000, 1), 1)
	for range 3 {
		b, buf, err := l.ReadBuffer(0, 10, math.MaxInt64)
		if err != nil || len(b) < 500_000 {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		if other := bytepool.Get(len(b)); &other[0] == &buf[0] {
			t.Fatal("given back while it is in use")
		}
		if _, err := checked((*l.list.Load())[0], 0, b); err != nil {
			t.Fatal(err)
		}
		bytepool.Put(buf)
	}
}
