package harness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// diskPrefix begins the source of our mounts; this process's id follows.
const diskPrefix = "chronik-disk-"

// DisksMissing tells why there can be no small disks here, nil if there can.
func DisksMissing() error {
	if os.Geteuid() != 0 {
		return errors.New("mounting a small disk needs root")
	}
	return nil
}

// mountDisk makes dir a file system of size bytes. It goes when the test ends, and when
// that died, with the next one.
func mountDisk(tb testing.TB, dir string, size int64) {
	tb.Helper()
	if err := DisksMissing(); err != nil {
		tb.Skip(err)
	}
	removeLeftDisks(tb)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := syscall.Mount(diskPrefix+strconv.Itoa(os.Getpid()), dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		tb.Fatalf("mounting a disk of %d bytes: %v", size, err)
	}
	tb.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			tb.Errorf("unmounting %s: %v", dir, err)
		}
	})
}

func removeLeftDisks(tb testing.TB) {
	tb.Helper()
	b, err := os.ReadFile("/proc/mounts")
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) < 3 || f[2] != "tmpfs" {
			continue
		}
		digits, ours := strings.CutPrefix(f[0], diskPrefix)
		if pid, err := strconv.Atoi(digits); ours && err == nil && !running(pid) {
			tb.Logf("unmounting %s of a process that died", f[1])
			_ = syscall.Unmount(f[1], syscall.MNT_DETACH) // another may have been quicker
		}
	}
}

// fillerName is the file that takes a disk's space.
const fillerName = "filler"

// FillDisk leaves left bytes of the small disk of node id. Freeing them is EmptyDisk's.
func (c *Cluster) FillDisk(id int, left int64) {
	c.TB.Helper()
	disk := filepath.Dir(c.Node(id).Dir)
	var st syscall.Statfs_t
	if err := syscall.Statfs(disk, &st); err != nil {
		c.TB.Fatal(err)
	}
	f, err := os.Create(filepath.Join(disk, fillerName))
	if err != nil {
		c.TB.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	// The node writes meanwhile: what does not fit is tried again, a little less.
	for take := int64(st.Bavail)*st.Bsize - left; take >= st.Bsize; {
		err := syscall.Fallocate(int(f.Fd()), 0, 0, take)
		switch {
		case err == nil:
			return
		case errors.Is(err, syscall.ENOSPC):
			take -= max(take/64, st.Bsize)
		case !errors.Is(err, syscall.EINTR):
			c.TB.Fatal(err)
		}
	}
}

// EmptyDisk gives back what FillDisk took.
func (c *Cluster) EmptyDisk(id int) {
	c.TB.Helper()
	if err := os.Remove(filepath.Join(filepath.Dir(c.Node(id).Dir), fillerName)); err != nil {
		c.TB.Error(err)
	}
}
