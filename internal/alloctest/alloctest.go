// Package alloctest holds decoders to what they may allocate. Only tests import it.
package alloctest

import (
	"runtime/metrics"
	"strings"
	"testing"
)

const (
	// MaxInput is the largest input, in bytes, that Bound holds to MaxAlloc.
	MaxInput = 1 << 20
	// MaxAlloc bounds the bytes allocated in total, kept or not, for one such input.
	MaxAlloc = 64 << 20
)

// Bound fails tb if, until the function that it returns is called, the process
// allocates more than MaxAlloc bytes, whichever goroutine does it: what a decoder
// starts counts too. size is the input's, in bytes; above MaxInput all may be allocated.
//
//	defer alloctest.Bound(t, len(b))()
//
// The figure may miss what lies in the allocator's caches of small objects, at most
// some MiB. It needs no pause of the world, so that it can stand in each fuzz target.
// Under the race detector it holds nobody to anything.
func Bound(tb testing.TB, size int) func() {
	tb.Helper()
	if size > MaxInput || Racing {
		return func() {}
	}
	before := allocated()
	return func() {
		tb.Helper()
		if n := allocated() - before; n > MaxAlloc {
			tb.Errorf("%d bytes allocated for an input of %d, at most %d are allowed", n, size, MaxAlloc)
		}
	}
}

// allocated is what the process has allocated since its start, in bytes.
func allocated() uint64 {
	s := [...]metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s[:])
	return s[0].Value.Uint64()
}

// Worst gives each of decoders each input, by itself under Bound.
func Worst(t *testing.T, inputs map[string][]byte, decoders ...func(b []byte)) {
	t.Helper()
	if Racing {
		t.Skip("what is allocated under the race detector says nothing; the plain run counts it")
	}
	for name, b := range inputs {
		t.Run(name, func(t *testing.T) {
			if len(b) > MaxInput {
				t.Fatalf("%d bytes, at most %d are bounded", len(b), MaxInput)
			}
			for _, decode := range decoders {
				end := Bound(t, len(b))
				decode(b)
				end()
			}
		})
	}
}

// Fill repeats element between head and tail up to MaxInput.
func Fill(head, element, tail string) []byte {
	n := (MaxInput - len(head) - len(tail)) / len(element)
	return []byte(head + strings.Repeat(element, n) + tail)
}
