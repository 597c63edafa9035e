package vfs

import (
	"errors"
	"os"
	"unsafe"
)

// BlockBytes is what direct writes are multiples of: no device in use has larger sectors.
const BlockBytes = 4096

// ErrNotDirect says that a file takes no direct writes.
var ErrNotDirect = errors.New("no direct writes here")

// Direct is a handle for writes past the page cache. See OpenDirect.
type Direct struct{ f *os.File }

// Close closes the handle.
func (d *Direct) Close() error { return d.f.Close() }

// Blocks returns an empty slice with room for n bytes, whole blocks of them,
// whose first byte lies at a multiple of BlockBytes in memory.
func Blocks(n int) []byte {
	n = (n + BlockBytes - 1) &^ (BlockBytes - 1)
	b := make([]byte, n+BlockBytes)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (BlockBytes - 1)
	return b[skip : skip : skip+n]
}
