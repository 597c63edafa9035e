package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path"

	"chronik/internal/vfs"
)

// A sync that failed proves nothing when it succeeds later: the kernel may take what it could not write
// for written, and go on to read it from memory. So a file or a staging directory whose sync failed is
// marked, and never again taken for durable: of a file the bytes whose hash is right are copied into
// one that is written and synced anew, a staging directory is removed and made anew. A generation is marked
// when its owner could not sync its files, and with it all of them: which it was, the owner does not say.
//
// The mark is an empty file beside it. It need not be durable: what it guards against is this kernel's
// memory, and ends with it. After a power loss the bytes are read from the disk, and hashes judge them. A mark
// that stays costs a copy.
const unsyncedSuffix = ".unsynced"

// MarkUnsynced notes that the sync of name failed, a file's or a directory's, or that of files in a
// generation directory. What the disk will not take is remembered in memory.
func (r *Receiver) MarkUnsynced(name string) {
	r.mu.Lock()
	r.unsynced[name] = true
	r.mu.Unlock()
	f, err := r.opt.FS.Create(name+unsyncedSuffix, vfs.CategorySnapshot)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		r.opt.Logger.Warn("not marked as never synced", "file", name, "err", err)
	}
}

// isUnsynced tells whether a sync of name has failed. An error of the disk is a yes.
func (r *Receiver) isUnsynced(name string) bool {
	r.mu.Lock()
	known := r.unsynced[name]
	r.mu.Unlock()
	if known {
		return true
	}
	_, err := r.opt.FS.Stat(name + unsyncedSuffix)
	return !errors.Is(err, os.ErrNotExist)
}

// clearUnsynced says that name is gone, and whatever gets that name is new.
func (r *Receiver) clearUnsynced(name string) error {
	r.mu.Lock()
	delete(r.unsynced, name)
	r.mu.Unlock()
	return removeIfThere(r.opt.FS, name+unsyncedSuffix)
}

// syncStagingDirs makes the names in staging and in base durable.
func (t *transfer) syncStagingDirs(dirs ...string) error {
	for _, dir := range dirs {
		if err := vfs.SyncDir(t.r.opt.FS, dir); err != nil {
			t.r.MarkUnsynced(t.staging)
			return fmt.Errorf("sync directory %s: %w", dir, err)
		}
	}
	return nil
}

// removeUnsynced removes a staging of which a directory's sync failed, in either of its forms.
func (t *transfer) removeUnsynced() error {
	if !t.r.isUnsynced(t.staging) {
		return nil
	}
	fs := t.r.opt.FS
	err := errors.Join(fs.RemoveAll(t.staging), fs.RemoveAll(GenDir(t.opt.Base, t.opt.Next)))
	if err != nil {
		return fmt.Errorf("remove %s, which could not be synced: %w", path.Base(t.staging), err)
	}
	return t.r.clearUnsynced(t.staging)
}
