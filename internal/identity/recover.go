package identity

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

// A data directory is given another store offline in these steps (package recovery
// does the ones between):
//
//	Hold            the LOCK, so that no node runs there
//	Announce        store.id.recovered: everything the new store needs lies beside the old, durable
//	                … the other parts change places …
//	Adopt           store.id gets what store.id.recovered says; then that goes
//
// Before Announce nothing has changed. After it nobody but who goes on with these steps
// opens the directory: OpenStore refuses. The old store.id stays under another name.

// ErrRecovering says that a recovery of the directory was begun and not finished.
var ErrRecovering = errors.New("a recovery of the data directory was interrupted")

const (
	// RecoveredSuffix marks what is to take the place of the name before it.
	RecoveredSuffix = ".recovered"
	// BeforeSuffix marks what had the name before it until a recovery; the store's id follows.
	BeforeSuffix = ".before-recovery-"
)

// Identity is what store.id says.
type Identity struct {
	Node    ident.NodeID
	Store   ident.StoreID
	Cluster string
	State   State
}

// Holding is a data directory that no node runs in.
type Holding struct {
	fs   vfs.FS
	dir  string
	lock io.Closer
}

// Hold takes the LOCK of dir, which exists, and changes nothing else.
func Hold(fsys vfs.FS, dir string) (*Holding, error) {
	if _, err := fsys.Stat(dir); err != nil {
		return nil, err
	}
	lock, err := fsys.Lock(path.Join(dir, lockName))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInUse, dir, err)
	}
	return &Holding{fs: fsys, dir: dir, lock: lock}, nil
}

// Close lets go of the directory.
func (h *Holding) Close() error { return h.lock.Close() }

// Identity reads store.id. fs.ErrNotExist: there is none.
func (h *Holding) Identity() (Identity, error) { return h.identity(fileName) }

// Announced reads store.id.recovered. fs.ErrNotExist: there is none.
func (h *Holding) Announced() (Identity, error) { return h.identity(fileName + RecoveredSuffix) }

func (h *Holding) identity(name string) (Identity, error) {
	c, err := read(h.fs, path.Join(h.dir, name))
	if err != nil {
		return Identity{}, err
	}
	return Identity{Node: c.Node, Store: c.Store, Cluster: c.Cluster, State: c.State}, nil
}

// Announce makes durable that the directory is to become a store of a cluster that
// only it is a member of so far.
func (h *Holding) Announce(node ident.NodeID, store ident.StoreID, cluster string) error {
	c := content{Node: node, Store: store, State: Member, Cluster: cluster}
	if err := c.check(); err != nil {
		return err
	}
	b, err := encode(c)
	if err != nil {
		return err
	}
	return vfs.WriteFileSync(h.fs, path.Join(h.dir, fileName+RecoveredSuffix), b, vfs.CategoryNode)
}

// Adopt makes what was announced the directory's store. What announces it goes last,
// so that it can be repeated after a crash in it.
func (h *Holding) Adopt() error {
	name := path.Join(h.dir, fileName)
	next, err := read(h.fs, name+RecoveredSuffix)
	if err != nil {
		return err
	}
	switch old, err := read(h.fs, name); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case old.Store != next.Store:
		if err := h.keep(name, name+BeforeSuffix+old.Store.String()); err != nil {
			return err
		}
	}
	b, err := encode(*next)
	if err != nil {
		return err
	}
	if err := vfs.WriteFileSync(h.fs, name, b, vfs.CategoryNode); err != nil {
		return err
	}
	invariant.Point("identity.adopted")
	if err := h.fs.Remove(name + RecoveredSuffix); err != nil {
		return err
	}
	return vfs.SyncDir(h.fs, h.dir)
}

// keep gives a file a second name, unless an interrupted Adopt has.
func (h *Holding) keep(name, second string) error {
	if _, err := h.fs.Stat(second); err == nil {
		return nil
	}
	b, err := vfs.ReadFile(h.fs, name, maxFile)
	if err != nil {
		return err
	}
	return vfs.WriteFileSync(h.fs, second, b, vfs.CategoryNode)
}

// recovering tells whether an announced store waits in dir.
func recovering(fsys vfs.FS, dir string) error {
	_, err := fsys.Stat(path.Join(dir, fileName+RecoveredSuffix))
	switch {
	case err == nil:
		return fmt.Errorf("%w: %s", ErrRecovering, dir)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	default:
		return err
	}
}
