package backed

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// DropCache writes every file below dir to the disk and takes its pages out of
// the page cache. It returns the bytes that stayed there. Files may come and go meanwhile.
func DropCache(dir string) (stayed int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		left, err := dropFile(path)
		stayed += left
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return stayed, err
}

func dropFile(path string) (stayed int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	fd := int(f.Fd())
	if err := unix.Fdatasync(fd); err != nil { // dirty pages would stay
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	var st unix.Cachestat_t
	if err := unix.Cachestat(uint(fd), &unix.CachestatRange{}, &st, 0); err != nil {
		return 0, nil // a kernel before 6.5 does not say
	}
	return int64(st.Cache) * int64(os.Getpagesize()), nil
}
