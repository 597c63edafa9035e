//go:build unix

package broker

import (
	"math"
	"syscall"
)

// openFiles is how many files the process may have open; 0: unknown. The runtime has raised
// the soft limit to the hard one.
func openFiles() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0
	}
	return int(min(l.Cur, math.MaxInt32))
}
