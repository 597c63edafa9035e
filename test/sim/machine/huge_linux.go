package machine

import (
	"bytes"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	mapFlags = unix.MAP_ANON | unix.MAP_PRIVATE | unix.MAP_NORESERVE
	hugePage = 2 << 20
	muchCode = 16 << 20
)

// adviseHuge has b in large pages, where the kernel has any.
func adviseHuge(b []byte) {
	_ = advise(uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MADV_HUGEPAGE)
}

// collapseCode moves guests' machine code, 200 MB that are run all over the place, into large pages. With small ones
// a processor looks up addresses for much of its time. Where the kernel cannot, all stays as it is.
func collapseCode() {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range bytes.Lines(maps) {
		var from, to uintptr
		var can string
		// Five fields (addresses, permissions, offset, device, inode): what is no file's.
		if n, _ := fmt.Sscanf(string(line), "%x-%x %s", &from, &to, &can); n != 3 || can != "r-xp" || to-from < muchCode || len(bytes.Fields(line)) != 5 {
			continue
		}
		from, to = (from+hugePage-1)&^(hugePage-1), to&^(hugePage-1)
		if advise(from, to-from, unix.MADV_HUGEPAGE) == nil {
			_ = advise(from, to-from, unix.MADV_COLLAPSE)
		}
	}
}

func advise(at, size uintptr, what int) error {
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, at, size, uintptr(what)); errno != 0 {
		return errno
	}
	return nil
}
