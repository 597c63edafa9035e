// Package backed makes a virtual machine's memory alike for everything that is measured on it.
//
// Free memory of a virtual machine may have no memory of the host behind it: the guest told the host that it
// is free, and the host took it. The first write to such a page then waits for the host. Here that made a write through
// the page cache cost 2.7 s of processor time a GB instead of 0.26, so that figures told what the server measured before
// had left behind, more than what the present one did.
package backed

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// Enough is what a cluster of three and its page cache need for some ten seconds of full load.
const Enough = 12 << 30

const (
	piece = 1 << 30
	// reserve is left alone: whoever takes the last of the memory pushes out what others have.
	reserve = 2 << 30
)

// Touch has the host give so many bytes of the memory that is free, or as many as there are,
// and frees them. It returns how many there were. What it takes is used again first, but the guest
// gives it back to the host within a minute or so.
func Touch(ctx context.Context, bytes int64) (touched int64, err error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, err
	}
	free := int64(info.Freeram) * int64(info.Unit)
	var held [][]byte
	defer func() {
		for _, b := range held {
			_ = unix.Munmap(b)
		}
	}()
	for bytes-touched >= piece && free-touched >= piece+reserve && ctx.Err() == nil {
		b, err := unix.Mmap(-1, 0, piece, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return touched, fmt.Errorf("map %d bytes: %w", piece, err)
		}
		held = append(held, b)
		_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // faster, if it may
		if err := unix.Madvise(b, unix.MADV_POPULATE_WRITE); err != nil {
			return touched, fmt.Errorf("populate %d bytes: %w", piece, err)
		}
		touched += piece
	}
	return touched, ctx.Err()
}
