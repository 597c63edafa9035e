// Package vfs is the file system every durable byte goes through: the operating
// system's, or a crashable memory twin that can lose what was not synced
// (pebble's vfs, which CockroachDB runs).
//
// Files are never truncated: what lies behind a file's logical length, which
// its owner keeps in a checkpoint or finds by checksum, is overwritten.
package vfs

import (
	"errors"
	"fmt"
	"io"
	"path"
	"sort"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

type (
	// FS is a file system.
	FS = vfs.FS
	// File is an open file.
	File = vfs.File
	// MemFS is the memory twin. Its CrashClone is the disk after a power loss.
	MemFS = vfs.MemFS
	// CrashCloneCfg says how much of what was not synced a crash leaves.
	CrashCloneCfg = vfs.CrashCloneCfg
	// DiskUsage is how full a file system is.
	DiskUsage = vfs.DiskUsage
	// WriteCategory labels what a file is written for.
	WriteCategory = vfs.DiskWriteCategory
)

// Default is the operating system's file system.
var Default FS = vfs.Default

// Write categories.
const (
	CategoryLog      WriteCategory = "raftlog"
	CategorySegment  WriteCategory = "segment"
	CategorySnapshot WriteCategory = "snapshot"
	CategoryNode     WriteCategory = "node"
)

// NewCrashableMem returns a memory file system with CrashClone.
func NewCrashableMem() *MemFS { return vfs.NewCrashableMem() }

// SyncDir makes the entries of dir durable: creations, renames, unlinks.
func SyncDir(fs FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// MkdirAllSync makes dir and its missing parents and syncs each parent that gained an entry.
// A dir that is there is taken for durable, which it need not be if its maker was killed.
func MkdirAllSync(fs FS, dir string) error {
	dir = path.Clean(dir)
	if _, err := fs.Stat(dir); err == nil {
		return nil
	}
	parent := path.Dir(dir)
	if parent != dir {
		if err := MkdirAllSync(fs, parent); err != nil {
			return err
		}
	}
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return SyncDir(fs, parent)
}

// WriteFileSync replaces name by data, all or nothing across a crash: a temporary
// file is written and synced, renamed, and the directory synced.
func WriteFileSync(fs FS, name string, data []byte, cat WriteCategory) error {
	tmp := name + ".tmp"
	f, err := fs.Create(tmp, cat)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", tmp, err)
	}
	if err := fs.Rename(tmp, name); err != nil {
		return err
	}
	return SyncDir(fs, path.Dir(name))
}

// ReadFile returns name's bytes, refusing files longer than limit.
func ReadFile(fs FS, name string, limit int64) ([]byte, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() > limit {
		return nil, fmt.Errorf("%s: %d bytes, limit %d", name, st.Size(), limit)
	}
	b := make([]byte, st.Size())
	n, err := f.ReadAt(b, 0)
	if n == len(b) && (err == nil || errors.Is(err, io.EOF)) {
		return b, nil
	}
	return nil, fmt.Errorf("read %s: %w", name, errors.Join(err, io.ErrUnexpectedEOF))
}

// List returns dir's entries, sorted.
func List(fs FS, dir string) ([]string, error) {
	names, err := fs.List(dir)
	sort.Strings(names)
	return names, err
}

// IsNoSpace tells whether err says the disk (or quota) is full.
func IsNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
