package partition

import (
	"bytes"
	"testing"

	"chronik/internal/alloctest"
)

// An entry is built in the buffer of one that was released, whatever its size; it
// costs what names the buffer.
func TestEntryBuffersAreReused(t *testing.T) {
	sizes := []int{256 << 10, 10, 100_000}
	var payloads [][]byte
	for i, n := range sizes {
		payloads = append(payloads, bytes.Repeat([]byte{byte(i + 1)}, n))
	}
	for range 3 {
		for i, p := range payloads {
			b := encodeEntry(KindBatch, int64(i), p)
			kind, ms, got, err := decodeEntry(b)
			if kind != KindBatch || ms != int64(i) || !bytes.Equal(got, p) || err != nil {
				t.Fatalf("%d bytes: kind %d, time %d, %d bytes, %v", len(p), kind, ms, len(got), err)
			}
			releaseEntry(b)
		}
	}
	if alloctest.Racing {
		return // sync.Pool then loses some on purpose
	}
	k := 0
	allocs := testing.AllocsPerRun(100, func() {
		releaseEntry(encodeEntry(KindBatch, 1, payloads[k%len(payloads)]))
		k++
	})
	if allocs > 1 {
		t.Errorf("%v allocations an entry", allocs)
	}
}
