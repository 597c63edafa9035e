package vfs

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// OpenDirect opens an existing file of the operating system for writes that go
// past the page cache: no copy into it, no page to find, to mark and to write
// back later. It returns nil where that cannot be had: other file systems than
// the operating system's, and those of it that refuse.
//
// What was written is durable after SyncData of any handle of the file, as
// always. Offset, length and address of a write are multiples of BlockBytes
// (Blocks makes such a slice). Reads of other handles see it once it returned.
func OpenDirect(fs FS, name string) *Direct {
	if fs != Default {
		return nil
	}
	f, err := os.OpenFile(name, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil
	}
	return &Direct{f}
}

// WriteAt writes whole blocks. ErrNotDirect: nothing was tried, write another way.
func (d *Direct) WriteAt(b []byte, off int64) (int, error) {
	n, err := d.f.WriteAt(b, off)
	if n == 0 && errors.Is(err, unix.EINVAL) {
		err = errors.Join(ErrNotDirect, err)
	}
	return n, err
}
