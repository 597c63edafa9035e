package recovery

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	"chronik/internal/ident"
	"chronik/internal/identity"
	"chronik/internal/invariant"
	"chronik/internal/raftgroup"
	"chronik/internal/raftlog"
	"chronik/internal/vfs"
)

// parts are the directories below a data directory that change places.
var parts = []string{"raftlog", "replicas"}

// dir is a data directory that is being given a new store.
type dir struct {
	fs   vfs.FS
	path string
	hold *identity.Holding
}

func (d *dir) join(name string) string { return path.Join(d.path, name) }
func (d *dir) built(part string) string {
	return d.join(part + identity.RecoveredSuffix)
}

func (d *dir) exists(name string) (bool, error) {
	_, err := d.fs.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// clear removes what an attempt built that was never announced.
func (d *dir) clear() error {
	for _, part := range parts {
		if err := d.fs.RemoveAll(d.built(part)); err != nil {
			return err
		}
	}
	return vfs.SyncDir(d.fs, d.path)
}

// abandon removes what an attempt built that failed with err, so that it takes no space,
// unless its result was announced: that is to be finished.
func (d *dir) abandon(err error) error {
	if err == nil {
		return nil
	}
	if _, aerr := d.hold.Announced(); !errors.Is(aerr, fs.ErrNotExist) {
		return errors.Join(err, &Error{Msg: "what was made is complete and not in place yet", Hint: "run the same command again: it goes on from here"})
	}
	return errors.Join(err, d.clear())
}

// seedFileBytes is small: the node begins another file when it starts.
const seedFileBytes = 1 << 20

// seed makes the new raftlog with the replicas kept.
func (d *dir) seed(store ident.StoreID, kept []raftgroup.Kept) error {
	invariant.Point("recovery.seed")
	log, err := raftlog.Open(raftlog.Options{
		FS: d.fs, Dir: d.built("raftlog"), Store: store, Create: true, FileBytes: seedFileBytes, MaxBytes: 1 << 50,
	})
	if err != nil {
		return err
	}
	return errors.Join(raftgroup.Seed(log, kept), log.Close())
}

// announce makes the new store the one that counts: from here on it is finished, never undone.
func (d *dir) announce(node ident.NodeID, store ident.StoreID, cluster string) error {
	invariant.Point("recovery.announce") // the parts' names are durable since they were made
	if err := d.hold.Announce(node, store, cluster); err != nil {
		return err
	}
	invariant.Point("recovery.announced")
	return nil
}

// finish puts the announced store in place. It may be repeated after a crash in it.
// It returns the names under which the old files remain.
//
// The old parts get their other names first, durably; from then on whatever has a
// part's own name may be written over. No rename relies on another one that is not
// durable.
func (d *dir) finish() ([]string, error) {
	suffix := ""
	switch old, err := d.hold.Identity(); {
	case err == nil:
		suffix = identity.BeforeSuffix + old.Store.String()
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	var aside []string
	for _, part := range parts {
		there, err := d.putAside(part, suffix)
		if err != nil {
			return nil, fmt.Errorf("put %s aside: %w", d.join(part), err)
		}
		if there {
			aside = append(aside, part+suffix)
		}
	}
	invariant.Point("recovery.aside")
	if err := vfs.SyncDir(d.fs, d.path); err != nil {
		return nil, err
	}
	invariant.Point("recovery.swap")
	for _, part := range parts {
		if ready, err := d.exists(d.built(part)); err != nil {
			return nil, err
		} else if !ready {
			continue // done before
		}
		if err := d.fs.Rename(d.built(part), d.join(part)); err != nil {
			return nil, fmt.Errorf("put %s in place: %w", d.built(part), err)
		}
	}
	invariant.Point("recovery.swapped")
	if err := vfs.SyncDir(d.fs, d.path); err != nil {
		return nil, err
	}
	invariant.Point("recovery.adopt")
	if err := d.hold.Adopt(); err != nil {
		return nil, err
	}
	invariant.Point("recovery.adopted")
	return aside, nil
}

// putAside gives an old part its other name, unless that was done, and tells whether it has it.
func (d *dir) putAside(part, suffix string) (bool, error) {
	old, err := d.exists(d.join(part))
	if suffix == "" || err != nil {
		return false, err
	}
	aside, err := d.exists(d.join(part + suffix))
	if err != nil || aside || !old {
		return aside, err
	}
	if ready, err := d.exists(d.built(part)); err != nil || !ready {
		return false, err // this is the new one already
	}
	return true, d.fs.Rename(d.join(part), d.join(part+suffix))
}

// free refuses a directory in which the names for the old parts are taken.
func (d *dir) free(old ident.StoreID) error {
	for _, part := range parts {
		name := d.join(part + identity.BeforeSuffix + old.String())
		if taken, err := d.exists(name); err != nil {
			return err
		} else if taken {
			return &Error{
				Msg:  name + " exists: this store was recovered before and put back",
				Hint: "move it out of the data directory first",
			}
		}
	}
	return nil
}

// bring puts a file of the old store into the new: linked if nobody writes to it any
// more, else copied. Where links are refused everything is copied.
func (d *dir) bring(from, to string, size int64, open bool) error {
	if !open && d.fs.Link(from, to) == nil {
		return nil
	}
	return copyFile(d.fs, from, to, size)
}

const copyBlock = 1 << 20

// copyFile makes to, durably, of the first size bytes of from.
func copyFile(fsys vfs.FS, from, to string, size int64) (err error) {
	src, err := fsys.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }() // read only
	dst, err := fsys.Create(to, vfs.CategorySegment)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	buf := make([]byte, min(size, copyBlock))
	for at := int64(0); at < size; {
		b := buf[:min(int64(len(buf)), size-at)]
		if n, err := src.ReadAt(b, at); n < len(b) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("%s at byte %d: %w", from, at+int64(n), err)
		}
		at += int64(len(b))
		if _, err := dst.Write(b); err != nil {
			return err
		}
	}
	return dst.Sync()
}
