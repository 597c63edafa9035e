package vfs

import (
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// maxVec is how many pieces the kernel takes at once.
const maxVec = 1024

// WriteVec writes the pieces one behind the other from off on, without joining
// them first where the file is the operating system's. bufs is used up: only its
// array is changed, no byte.
func WriteVec(f File, bufs [][]byte, off int64) error {
	fd := f.Fd()
	if len(bufs) == 1 || fd == vfs.InvalidFd {
		return writeJoined(f, bufs, off)
	}
	for len(bufs) > 0 {
		n, err := unix.Pwritev(int(fd), bufs[:min(len(bufs), maxVec)], off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("pwritev: %w", err)
		}
		left := skip(bufs, n)
		if n == 0 && len(left) > 0 {
			return io.ErrShortWrite
		}
		bufs, off = left, off+int64(n)
	}
	return nil
}

// skip returns what of bufs is behind its first n bytes.
func skip(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		bufs[0] = bufs[0][n:]
	}
	return bufs
}
