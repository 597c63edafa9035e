// Package bytepool keeps byte buffers for use again: those that records travel in
// from a segment file to a socket, which are large and live for milliseconds. A new
// one of a megabyte is cleared first and collected later; both cost as much as
// filling it.
//
// # Who owns what
//
// Whoever calls Get owns the buffer, or passes it on with the bytes in it, and the
// last owner may call Put, once. Not calling it is always right: the garbage
// collector has the buffer then. Calling it while someone may still read is never
// right: the next owner writes into what that one reads. So a buffer goes back only
// from where its last reader has ended for certain; an error's path drops it.
package bytepool

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"unsafe"
)

const (
	minBits = 12 // 4 KiB: smaller ones are not worth it
	maxBits = 23 // 8 MiB: one huge response does not pin its memory
	// steps are the sizes between two powers of two: a quarter at most is not used.
	steps = 4

	maxSize = 1 << maxBits
)

// pools hold buffers by size, as pointers to their first byte: a slice's header would be
// allocated at every Put.
var pools [(maxBits-minBits)*steps + 1]sync.Pool

// poison: Put overwrites.
var poison atomic.Bool

// Poison has Put overwrite each buffer from now on, until the function that it returns is
// called: who reads what was given back finds no records. For tests.
func Poison() func() {
	poison.Store(true)
	return func() { poison.Store(false) }
}

// Get returns a buffer of length n whose content is arbitrary.
func Get(n int) []byte {
	c, size := class(n)
	if size > maxSize {
		return make([]byte, n)
	}
	if p, ok := pools[c].Get().(*byte); ok {
		return unsafe.Slice(p, size)[:n]
	}
	return make([]byte, n, size)
}

// Put gives back what Get returned, or a slice of it that begins where it began. nil is
// no buffer.
func Put(b []byte) {
	c, size := class(cap(b))
	if size > maxSize || cap(b) != size {
		return
	}
	b = b[:size]
	if poison.Load() {
		for i := range b {
			b[i] = 0xdb
		}
	}
	pools[c].Put(unsafe.SliceData(b))
}

// class is the smallest size that has room for n, and its place in pools.
func class(n int) (place, size int) {
	if n <= 1<<minBits {
		return 0, 1 << minBits
	}
	shift := bits.Len(uint(n-1)) - 1 // 1<<shift < n, at most twice that
	step := 1 << shift / steps
	above := (n - 1<<shift + step - 1) / step // 1 to steps
	return (shift-minBits)*steps + above, 1<<shift + above*step
}
