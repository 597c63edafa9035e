package archive

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"syscall"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/snapshot"
	"chronik/internal/vfs"
)

// Download brings a snapshot into dir, which must not exist: checkpoint and data
// files, as snapshot.Read and the state machines want them. Everything is put
// together in dir+".staging", each chunk judged by its hash, each file synced,
// the checkpoint decoded and compared with the manifest; then one rename. At no
// crash is there a part of it under its name.
func (c *Cluster) Download(ctx context.Context, m *Manifest, fs vfs.FS, dir string) error {
	if err := c.download(ctx, m, fs, dir); err != nil {
		return fmt.Errorf("download %s at index %d into %s: %w", m.Name, m.Index, dir, err)
	}
	return nil
}

func (c *Cluster) download(ctx context.Context, m *Manifest, fs vfs.FS, dir string) (err error) {
	dir = path.Clean(dir)
	staging := dir + ".staging"
	if _, err := fs.Stat(dir); err == nil {
		return ErrExists
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := fs.RemoveAll(staging); err != nil {
		return err
	}
	if err := vfs.MkdirAllSync(fs, staging); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, fs.RemoveAll(staging))
		}
	}()
	if err := c.fetchFiles(ctx, m, fs, staging); err != nil {
		return err
	}
	invariant.Point("archive.download.files")
	if err := vfs.SyncDir(fs, staging); err != nil {
		return err
	}
	if err := checkStaged(m, fs, staging); err != nil {
		// Every byte was what the store's hash says: what the operating system fails
		// to read back is no damage of the snapshot, whatever the reader calls it.
		if errno, ok := errors.AsType[syscall.Errno](err); ok {
			return fmt.Errorf("read back what was written: %w: %s", errno, err.Error())
		}
		return err
	}
	invariant.Point("archive.download.synced")
	if err := fs.Rename(staging, dir); err != nil {
		return err
	}
	return vfs.SyncDir(fs, path.Dir(dir))
}

// fetchFiles writes and syncs every file of m into dir.
func (c *Cluster) fetchFiles(ctx context.Context, m *Manifest, fs vfs.FS, dir string) (err error) {
	files := make([]vfs.File, len(m.Files))
	defer func() {
		for _, f := range files {
			if f != nil {
				err = errors.Join(err, f.Close())
			}
		}
	}()
	// File by file: few are open at a time, and each is read with several calls.
	for i := range m.Files {
		if files[i], err = fs.Create(path.Join(dir, m.Files[i].Name), vfs.CategorySnapshot); err != nil {
			return err
		}
		one := &Manifest{Info: m.Info, Objects: m.Objects, Files: m.Files[i : i+1]}
		err = c.eachChunk(ctx, one, func(r chunkRef, b []byte, err error) error {
			if err == nil {
				off, _ := m.Files[i].Range(r.i)
				_, err = files[i].WriteAt(b, off)
			}
			return err
		})
		if err == nil {
			err = files[i].Sync()
		}
		err = errors.Join(err, files[i].Close())
		files[i] = nil
		if err != nil {
			return err
		}
	}
	return nil
}

// checkStaged opens what was downloaded as its owner will.
func checkStaged(m *Manifest, fs vfs.FS, dir string) error {
	f, err := snapshot.Open(fs, dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	if f.Group != m.Group || f.Point.Index != m.Index || f.Point.Term != m.Term {
		return fmt.Errorf("%w: its checkpoint is of group %d at index %d, term %d", ErrCorrupt, f.Group, f.Point.Index, f.Point.Term)
	}
	var files []snapshot.DataFile
	for i := range m.Files[1:] {
		files = append(files, snapshot.DataFile{Name: m.Files[i+1].Name, Size: m.Files[i+1].Size})
	}
	if !slices.Equal(f.Files, files) {
		return fmt.Errorf("%w: its files are not the checkpoint's", ErrCorrupt)
	}
	return f.Verify()
}

// DownloadNewest downloads the newest snapshot of a group that is whole. skipped,
// if set, hears of newer ones that are not, and why.
func (c *Cluster) DownloadNewest(ctx context.Context, g ident.GroupID, fs vfs.FS, dir string, skipped func(Ref, error)) (m *Manifest, err error) {
	err = c.TryNewest(ctx, g, func(r Ref) (err error) {
		if m, err = c.Manifest(ctx, r); err == nil {
			err = c.Download(ctx, m, fs, dir)
		}
		return err
	}, skipped)
	return m, err
}
