package segment

import (
	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"chronik/internal/vfs"
)

// writeBack starts writing n bytes at from to the device, without waiting for it
// and without a promise: its errors come back from the sync of the checkpoint.
// (SyncTo would wait for what is already on its way.)
func writeBack(f vfs.File, from, n int64) {
	if fd := f.Fd(); fd != pebblevfs.InvalidFd {
		_ = unix.SyncFileRange(int(fd), from, n, unix.SYNC_FILE_RANGE_WRITE)
	}
}
