package crash

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pebble "github.com/cockroachdb/pebble/v2/vfs"

	"chronik/internal/vfs"
)

// power is what all disks hang on: no disk changes while it is cut, so that the
// clones are of one instant. It also keeps CrashClone from a MemFS.Link, which
// takes MemFS's own lock twice.
type power struct{ mu sync.RWMutex }

// cut returns what is left of each disk if the power goes now: all that was synced,
// and percent of the blocks, new names and removed names that were not.
func (p *power) cut(disks []*disk, percent int) []*vfs.MemFS {
	p.mu.Lock()
	defer p.mu.Unlock()
	rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
	left := make([]*vfs.MemFS, len(disks))
	for i, d := range disks {
		left[i] = d.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
		d.unlinked.strike(left[i], percent, rng)
	}
	return left
}

// op is a change of a disk.
type op string

const (
	opSync   op = "sync" // of a file, or a directory's entries
	opWrite  op = "write"
	opCreate op = "create"
	opLink   op = "link"
	opRename op = "rename"
	opRemove op = "remove"
	opMkdir  op = "mkdir"
)

// when says how much of a change is made.
type when string

const (
	before when = "before"
	torn   when = "in the midst of" // a write of which a part is made
	after  when = "after"
)

// step is a moment at which a disk may be looked at.
type step struct {
	op   op
	name string
	when when
}

func (s step) String() string { return fmt.Sprintf("%s %s %s", s.when, s.op, s.name) }

// verdict says what becomes of a sync.
type verdict int

const (
	syncNow  verdict = iota
	syncNot          // reported as done, never done
	syncLate         // reported as done, done some time later
)

// lateness is how much later.
const lateness = 30 * time.Millisecond

// disk is a memory disk that takes its time to sync, and that may lie.
type disk struct {
	vfs.FS
	mem   *vfs.MemFS
	power *power
	// judge decides on a sync of a file or directory by its path; nil: all are made.
	judge func(d *disk, name string, dir bool) verdict
	// omit decides on a sync by the places in the code that it is called from; nil: all are made.
	omit func(places []string) bool
	// watch hears of every change before it is made, after, and of writes in the midst; nil: nobody.
	watch atomic.Pointer[func(step)]
	// lag is the most a sync of the raftlog takes. Without it an acknowledgement
	// that does not wait would still come after the sync.
	lag     time.Duration
	dropped atomic.Int64
	late    sync.WaitGroup
	// unlinked are the names that are gone and may come back.
	unlinked unlinked
	places   places
	writes   atomic.Int64

	mu      sync.Mutex
	named   map[string]bool // directories in which a checkpoint was named since their last sync
	held    chan struct{}   // closed: raftlog syncs go on; nil: they are not held
	waiting chan struct{}   // gets a token when a sync is held
}

func newDisk(mem *vfs.MemFS, p *power) *disk {
	return &disk{FS: mem, mem: mem, power: p, named: map[string]bool{}, waiting: make(chan struct{}, 1)}
}

// isLog tells whether a path is in the raftlog's directory.
func isLog(name string) bool { return strings.HasPrefix(name, dataDir+"/raftlog/") }

func (d *disk) saw(o op, name string, w when) {
	if watch := d.watch.Load(); watch != nil {
		(*watch)(step{o, name, w})
	}
}

// step makes a change of the disk with the power on.
func (d *disk) step(o op, name string, fn func() error) error {
	name = path.Clean(name)
	d.saw(o, name, before)
	err := func() error {
		d.power.mu.RLock()
		defer d.power.mu.RUnlock()
		err := fn()
		if err == nil && o != opRemove {
			d.unlinked.back(name)
		}
		return err
	}()
	d.saw(o, name, after)
	return err
}

// hold makes the raftlog's syncs wait until the returned function is called.
func (d *disk) hold() (release func()) {
	held := make(chan struct{})
	d.mu.Lock()
	d.held = held
	d.mu.Unlock()
	return sync.OnceFunc(func() {
		d.mu.Lock()
		d.held = nil
		d.mu.Unlock()
		close(held)
	})
}

// wait is the time that a sync of the raftlog takes.
func (d *disk) wait(name string) {
	if !isLog(name) {
		return
	}
	d.mu.Lock()
	held := d.held
	d.mu.Unlock()
	if held != nil {
		select {
		case d.waiting <- struct{}{}:
		default:
		}
		<-held
	}
	if d.lag > 0 {
		time.Sleep(rand.N(d.lag))
	}
}

func (d *disk) Create(name string, c pebble.DiskWriteCategory) (f pebble.File, err error) {
	err = d.step(opCreate, name, func() error { f, err = d.mem.Create(name, c); return err })
	return d.file(f, name, false), err
}

func (d *disk) OpenReadWrite(name string, c pebble.DiskWriteCategory, o ...pebble.OpenOption) (f pebble.File, err error) {
	err = d.step(opCreate, name, func() error { f, err = d.mem.OpenReadWrite(name, c, o...); return err })
	return d.file(f, name, false), err
}

func (d *disk) ReuseForWrite(old, name string, c pebble.DiskWriteCategory) (f pebble.File, err error) {
	err = d.step(opRename, name, func() error {
		f, err = d.mem.ReuseForWrite(old, name, c)
		return d.unlinked.gone(old, name, err)
	})
	return d.file(f, name, false), err
}

func (d *disk) Open(name string, o ...pebble.OpenOption) (pebble.File, error) {
	f, err := d.mem.Open(name, o...)
	return d.file(f, name, false), err
}

func (d *disk) OpenDir(name string) (pebble.File, error) {
	f, err := d.mem.OpenDir(name)
	return d.file(f, name, true), err
}

func (d *disk) Link(old, name string) error {
	return d.step(opLink, name, func() error { return d.mem.Link(old, name) })
}

func (d *disk) Remove(name string) error {
	return d.step(opRemove, name, func() error { return d.unlinked.gone(name, "", d.mem.Remove(name)) })
}

func (d *disk) RemoveAll(name string) error {
	return d.step(opRemove, name, func() error { return d.unlinked.gone(name, "", d.mem.RemoveAll(name)) })
}

func (d *disk) MkdirAll(name string, perm os.FileMode) error {
	return d.step(opMkdir, name, func() error { return d.mem.MkdirAll(name, perm) })
}

func (d *disk) Rename(old, name string) error {
	return d.step(opRename, name, func() error {
		if isCheckpoint(name) {
			d.mu.Lock()
			d.named[path.Dir(path.Clean(name))] = true
			d.mu.Unlock()
		}
		return d.unlinked.gone(old, name, d.mem.Rename(old, name))
	})
}

func (d *disk) Lock(name string) (c io.Closer, err error) {
	err = d.step(opCreate, name, func() error { c, err = d.mem.Lock(name); return err })
	return c, err
}

// GetDiskUsage reports a disk with plenty of room.
func (d *disk) GetDiskUsage(string) (pebble.DiskUsage, error) {
	return pebble.DiskUsage{AvailBytes: 1 << 40, TotalBytes: 1 << 41, UsedBytes: 1 << 40}, nil
}

func (d *disk) file(f pebble.File, name string, dir bool) pebble.File {
	if f == nil {
		return nil
	}
	return &file{File: f, d: d, name: path.Clean(name), dir: dir}
}

// namedCheckpoint tells, at a sync of dir, whether a checkpoint was named in it since the last one.
func (d *disk) namedCheckpoint(dir string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	named := d.named[dir]
	delete(d.named, dir)
	return named
}

// file is an open file of a disk. It keeps the name it was opened by.
type file struct {
	pebble.File
	d    *disk
	name string
	dir  bool
}

func (f *file) Write(p []byte) (int, error) {
	return f.write(p, true, func(p []byte, _ int) (int, error) { return f.File.Write(p) })
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	return f.write(p, f.d.writes.Add(1)%2 == 0, func(p []byte, at int) (int, error) { return f.File.WriteAt(p, off+int64(at)) })
}

// sector is what a disk writes at once.
const sector = 512

// write makes a write, in two halves if somebody watches: either may come first.
func (f *file) write(p []byte, inOrder bool, do func(p []byte, at int) (int, error)) (int, error) {
	do = f.powered(do)
	if f.d.watch.Load() == nil || len(p) < 2 {
		return do(p, 0)
	}
	f.d.saw(opWrite, f.name, before)
	half := len(p) / 2
	if half > sector {
		half -= half % sector
	}
	parts := [2][2]int{{0, half}, {half, len(p)}}
	if !inOrder {
		parts[0], parts[1] = parts[1], parts[0]
	}
	n := 0
	for i, part := range parts {
		k, err := do(p[part[0]:part[1]], part[0])
		if n += k; err != nil {
			return n, err
		}
		f.d.saw(opWrite, f.name, []when{torn, after}[i])
	}
	return n, nil
}

func (f *file) powered(do func([]byte, int) (int, error)) func([]byte, int) (int, error) {
	return func(p []byte, at int) (int, error) {
		f.d.power.mu.RLock()
		defer f.d.power.mu.RUnlock()
		return do(p, at)
	}
}

func (f *file) Sync() error     { return f.sync() }
func (f *file) SyncData() error { return f.sync() }

func (f *file) sync() error {
	d := f.d
	d.saw(opSync, f.name, before)
	v := syncNow
	if d.judge != nil {
		v = d.judge(d, f.name, f.dir)
	}
	if here := d.places.here(); d.omit != nil && d.omit(here) {
		v = syncNot
	}
	if v != syncNow {
		d.dropped.Add(1)
		if v == syncLate {
			d.late.Go(f.syncLater())
		}
		return nil
	}
	d.wait(f.name)
	err := func() error {
		d.power.mu.RLock()
		defer d.power.mu.RUnlock()
		if f.dir {
			d.unlinked.settle(f.name)
		}
		return f.File.Sync()
	}()
	d.saw(opSync, f.name, after)
	return err
}

// syncLater returns a sync of the same file that does not need f to stay open.
func (f *file) syncLater() func() {
	g, err := f.d.mem.Open(f.name)
	return func() {
		time.Sleep(lateness)
		if err != nil {
			return // renamed meanwhile: never synced, which is later still
		}
		f.d.power.mu.RLock()
		defer f.d.power.mu.RUnlock()
		_ = g.Sync()  // memory
		_ = g.Close() // memory
	}
}
