//go:build !linux

package vfs

// WriteVec writes the pieces one behind the other from off on.
func WriteVec(f File, bufs [][]byte, off int64) error { return writeJoined(f, bufs, off) }
