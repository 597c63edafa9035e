package vfs

import (
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// StartWriteBack starts writing n bytes at from to the device, without waiting
// for the end and without a promise: errors come back from the sync that must
// follow, which then finds little left to do. Whoever writes much in the
// background calls it often: dirty pages that pile up until a sync go to the
// device in one burst, and the raftlog's fdatasync waits behind them. It may wait
// while the device's queue is full. (SyncTo would wait for what is already on its way.)
func StartWriteBack(f File, from, n int64) {
	if fd := f.Fd(); fd != vfs.InvalidFd {
		_ = unix.SyncFileRange(int(fd), from, n, unix.SYNC_FILE_RANGE_WRITE)
	}
}
