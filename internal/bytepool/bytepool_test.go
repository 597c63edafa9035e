package bytepool

import (
	"testing"
)

func TestSizes(t *testing.T) {
	for _, tc := range []struct{ n, size int }{
		{0, 4 << 10},
		{1, 4 << 10},
		{4 << 10, 4 << 10},
		{4<<10 + 1, 5 << 10},
		{6 << 10, 6 << 10},
		{6<<10 + 1, 7 << 10},
		{8<<10 - 1, 8 << 10},
		{8 << 10, 8 << 10},
		{1 << 20, 1 << 20},
		{1<<20 + 1, 5 << 18},
		{8 << 20, 8 << 20},
		{8<<20 + 1, 8<<20 + 1},
		{55 << 20, 55 << 20},
	} {
		for range 2 { // new, and again
			if b := Get(tc.n); len(b) != tc.n || cap(b) != tc.size && tc.size <= maxSize {
				t.Errorf("%d: length %d, capacity %d, want %d", tc.n, len(b), cap(b), tc.size)
			} else {
				Put(b)
			}
		}
	}
	Put(nil)
}

// TestClasses: every length fits into its class, wastes at most a quarter, and each class
// has a place of its own.
func TestClasses(t *testing.T) {
	sizes := map[int]int{}
	for n := 1; n <= maxSize; n += 1 + n/1000 {
		c, size := class(n)
		if size < n || n > 1<<minBits && (size-n)*4 > n || c >= len(pools) {
			t.Fatalf("%d: class %d of %d", n, c, size)
		}
		if known, ok := sizes[c]; ok && known != size {
			t.Fatalf("class %d has sizes %d and %d", c, known, size)
		}
		sizes[c] = size
		if again, same := class(size); again != c || same != size {
			t.Fatalf("%d: class %d of %d, its size is of class %d of %d", n, c, size, again, same)
		}
	}
	if len(sizes) != len(pools) {
		t.Errorf("%d classes, %d pools", len(sizes), len(pools))
	}
}

func TestUsedAgain(t *testing.T) {
	defer Poison()()
	b := Get(100_000)
	for i := range b {
		b[i] = 1
	}
	Put(b)
	if b[0] != 0xdb || b[len(b)-1] != 0xdb {
		t.Error("not overwritten")
	}
	if n := testing.AllocsPerRun(100, func() { Put(Get(100_000)) }); n > 0.5 && !racing {
		t.Errorf("%v allocations a buffer", n)
	}
}

// TestForeign: a slice that cannot be told to hold a whole buffer is not taken.
func TestForeign(t *testing.T) {
	Put(make([]byte, 5000))
	b := Get(8 << 10)
	Put(b[1:])
	if c := Get(8 << 10); cap(c) != 8<<10 {
		t.Errorf("capacity %d", cap(c))
	}
}
