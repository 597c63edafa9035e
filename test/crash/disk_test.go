package crash

import (
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
// and percent of the blocks and directory entries that were not.
func (p *power) cut(disks []*disk, percent int) []*vfs.MemFS {
	p.mu.Lock()
	defer p.mu.Unlock()
	rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
	left := make([]*vfs.MemFS, len(disks))
	for i, d := range disks {
		left[i] = d.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
	}
	return left
}

// op is a step that a disk may be told to leave out, or be watched at.
type op string

const (
	opSync    op = "sync" // of a file, or a directory's entries
	opCreate  op = "create"
	opLink    op = "link"
	opRename  op = "rename"
	opRemove  op = "remove"
	opMkdir   op = "mkdir"
	opSynced  op = "synced"
	opRenamed op = "renamed"
)

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
	// watch hears of a step before it is made, and of syncs and renames after; nil: nobody.
	watch atomic.Pointer[func(o op, name string)]
	// lag is the most a sync of the raftlog takes. Without it an acknowledgement
	// that does not wait would still come after the sync.
	lag     time.Duration
	dropped atomic.Int64
	late    sync.WaitGroup

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

func (d *disk) saw(o op, name string) {
	if w := d.watch.Load(); w != nil {
		(*w)(o, name)
	}
}

// step makes a change of the disk with the power on.
func (d *disk) step(o op, name string, fn func() error) error {
	name = path.Clean(name)
	d.saw(o, name)
	d.power.mu.RLock()
	defer d.power.mu.RUnlock()
	return fn()
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
	err = d.step(opRename, name, func() error { f, err = d.mem.ReuseForWrite(old, name, c); return err })
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
	return d.step(opRemove, name, func() error { return d.mem.Remove(name) })
}

func (d *disk) RemoveAll(name string) error {
	return d.step(opRemove, name, func() error { return d.mem.RemoveAll(name) })
}

func (d *disk) MkdirAll(name string, perm os.FileMode) error {
	return d.step(opMkdir, name, func() error { return d.mem.MkdirAll(name, perm) })
}

func (d *disk) Rename(old, name string) error {
	err := d.step(opRename, name, func() error {
		if isCheckpoint(name) {
			d.mu.Lock()
			d.named[path.Dir(path.Clean(name))] = true
			d.mu.Unlock()
		}
		return d.mem.Rename(old, name)
	})
	d.saw(opRenamed, path.Clean(name))
	return err
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
	f.d.power.mu.RLock()
	defer f.d.power.mu.RUnlock()
	return f.File.Write(p)
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	f.d.power.mu.RLock()
	defer f.d.power.mu.RUnlock()
	return f.File.WriteAt(p, off)
}

func (f *file) Sync() error     { return f.sync() }
func (f *file) SyncData() error { return f.sync() }

func (f *file) sync() error {
	d := f.d
	d.saw(opSync, f.name)
	v := syncNow
	if d.judge != nil {
		v = d.judge(d, f.name, f.dir)
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
		return f.File.Sync()
	}()
	d.saw(opSynced, f.name)
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
