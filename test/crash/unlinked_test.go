package crash

import (
	"math/rand/v2"
	"path"
	"sync"

	"chronik/internal/vfs"
)

// unlinked are the names that were taken out of a directory since its last sync. MemFS's
// clone puts them all back: a removal that comes too early would never be seen.
type unlinked struct {
	mu    sync.Mutex
	names map[string]string // each name, and the one it was renamed to; "": removed
}

// gone notes that a change took name away, unless it failed with err, which it returns.
func (u *unlinked) gone(name, renamedTo string, err error) error {
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.names == nil {
		u.names = map[string]string{}
	}
	if renamedTo != "" {
		renamedTo = path.Clean(renamedTo)
	}
	u.names[path.Clean(name)] = renamedTo
	return nil
}

// back notes that there is a name again.
func (u *unlinked) back(name string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.names, path.Clean(name))
}

// settle notes a sync of dir.
func (u *unlinked) settle(dir string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for name := range u.names {
		if path.Dir(name) == path.Clean(dir) {
			delete(u.names, name)
		}
	}
}

// strike takes percent of the names out of a clone. A rename is one change: the old
// name goes only if the new one is there.
func (u *unlinked) strike(mem *vfs.MemFS, percent int, rng *rand.Rand) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for name, to := range u.names {
		if rng.IntN(100) >= percent {
			continue
		}
		if _, err := mem.Stat(name); err != nil {
			continue
		}
		if to != "" {
			if _, err := mem.Stat(to); err != nil {
				continue
			}
		}
		if err := mem.RemoveAll(name); err != nil {
			panic(err)
		}
		if err := vfs.SyncDir(mem, path.Dir(name)); err != nil {
			panic(err)
		}
	}
}
