package machine

import (
	"bytes"
	"testing"
)

// TestMemoryIsZeros: a memory is as long as asked, never moves, and the next run finds nothing of the last one's.
func TestMemoryIsZeros(t *testing.T) {
	m := memories{limit: 8 << 20}
	defer m.close()
	for range 3 {
		mem, err := m.take()
		if err != nil {
			t.Fatal(err)
		}
		small := mem.Reallocate(1 << 20)
		large := mem.Reallocate(5 << 20)
		if len(large) != 5<<20 || cap(large) != len(large) || &large[0] != &small[0] || mem.Reallocate(8<<20+1) != nil {
			t.Errorf("%d bytes, room for %d", len(large), cap(large))
		}
		if n := len(large) - bytes.Count(large, []byte{0}); n > 0 {
			t.Fatalf("%d bytes of an earlier run", n)
		}
		for i := range large {
			large[i] = 7
		}
		mem.Free()
		mem.leave()
	}
	if len(m.idle) != 1 {
		t.Errorf("%d memories for one run at a time", len(m.idle))
	}
}
