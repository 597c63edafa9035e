package main

import (
	"errors"
	"io"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	pebble "github.com/cockroachdb/pebble/v2/vfs"

	"chronik/internal/vfs"
)

// errPowerOff is what a node that has been killed gets from its disk.
var errPowerOff = errors.New("the power is off")

// disk is a node's memory disk: what it holds outlives the node's runs.
type disk struct {
	w    *world
	node int

	mu   sync.Mutex
	mem  *vfs.MemFS
	runs *mount // the running node's; nil: none
	// serial changes when the disk is replaced by an empty one. (An older one may lack nothing.)
	serial int
	slow   int           // times as long as it should take; 0 and 1: as it should
	hung   chan struct{} // until it is closed nothing goes on; nil: not hung
	room   int64         // bytes that the files may have; 0: enough
	fail   int           // of so many syncs the last one fails; 0: none
	// rotten: a sync has failed. The kernel takes the pages for written; a restart finds what really is.
	rotten bool
	// flipped: a bit of it was, and it has not been replaced since.
	flipped bool
}

// mount is the disk as one run of the node sees it.
type mount struct {
	*vfs.MemFS
	d    *disk
	dead bool // under d.mu
}

// op numbers what a disk does, for the trace.
const (
	opWrite = iota + 1
	opSync
	opName // create, link, rename, remove
	opRead
)

// times are how long an operation takes at most.
var times = map[int]time.Duration{opWrite: 20 * time.Microsecond, opSync: 2 * time.Millisecond, opName: 50 * time.Microsecond}

func (d *disk) mount() *mount {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.runs = &mount{MemFS: d.mem, d: d}
	return d.runs
}

// cut ends the running node's use of the disk at once. Of what was not synced percent stays.
func (d *disk) cut(percent int) {
	rng := d.w.rand("crash")
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.runs != nil {
		d.runs.dead = true
		d.runs = nil
	}
	if d.rotten {
		percent, d.rotten = 0, false
	}
	d.mem = d.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
}

// unmount ends a stopped node's use of the disk; the page cache stays.
func (d *disk) unmount() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.runs != nil {
		d.runs.dead = true
		d.runs = nil
	}
	if d.rotten {
		d.mem, d.rotten = d.mem.CrashClone(vfs.CrashCloneCfg{}), false
	}
}

// durable returns what a power loss now would leave.
func (d *disk) durable() *vfs.MemFS {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mem.CrashClone(vfs.CrashCloneCfg{})
}

// durable returns what a power loss now would leave to the run, nil if the disk is not its own any more.
func (m *mount) durable() *vfs.MemFS {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	if m.dead {
		return nil
	}
	return m.MemFS.CrashClone(vfs.CrashCloneCfg{})
}

// put replaces the disk's bytes.
func (d *disk) put(mem *vfs.MemFS) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mem = mem
}

// wipe leaves an empty disk.
func (d *disk) wipe() {
	d.put(newMem())
	d.mu.Lock()
	defer d.mu.Unlock()
	d.serial++
	d.flipped = false
}

func (d *disk) flip() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flipped = true
}

func (d *disk) isFlipped() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flipped
}

func (d *disk) setHung(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case on && d.hung == nil:
		d.hung = make(chan struct{})
	case !on && d.hung != nil:
		close(d.hung)
		d.hung = nil
	}
}

func (d *disk) setSlow(times int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow = times
}

// setRoom leaves so many bytes free; 0 leaves enough.
func (d *disk) setRoom(free int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.room = 0
	if free > 0 {
		d.room = used(d.mem, "data") + free
	}
}

// enter is the beginning of every operation: it takes its time, and waits while the disk hangs.
func (m *mount) enter(op, n int) error {
	d := m.d
	d.mu.Lock()
	dead, hung, slow := m.dead, d.hung, max(1, d.slow)
	d.mu.Unlock()
	if dead {
		return errPowerOff
	}
	if limit := times[op]; limit > 0 {
		time.Sleep(time.Duration(slow) * time.Duration(1+d.w.rand("disk").Int64N(int64(limit))))
	}
	if hung != nil {
		<-hung
	}
	d.mu.Lock()
	dead = m.dead
	d.mu.Unlock()
	if dead {
		return errPowerOff
	}
	d.w.trace.disk(d.node, op, n)
	return nil
}

// full tells whether n more bytes find no room.
func (m *mount) full(n int64) bool {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	return m.d.room > 0 && used(m.MemFS, "data")+n > m.d.room
}

// used is how many bytes the files below dir have.
func used(fs *vfs.MemFS, dir string) (n int64) {
	names, err := fs.List(dir)
	if err != nil {
		return 0
	}
	for _, name := range names {
		p := path.Join(dir, name)
		st, err := fs.Stat(p)
		switch {
		case err != nil:
		case st.IsDir():
			n += used(fs, p)
		default:
			n += st.Size()
		}
	}
	return n
}

func (m *mount) name(fn func() error) error {
	if err := m.enter(opName, 0); err != nil {
		return err
	}
	return fn()
}

func (m *mount) Create(name string, c pebble.DiskWriteCategory) (f pebble.File, err error) {
	err = m.name(func() error { f, err = m.MemFS.Create(name, c); return err })
	return m.file(f, name), err
}

func (m *mount) OpenReadWrite(name string, c pebble.DiskWriteCategory, o ...pebble.OpenOption) (f pebble.File, err error) {
	err = m.name(func() error { f, err = m.MemFS.OpenReadWrite(name, c, o...); return err })
	return m.file(f, name), err
}

func (m *mount) ReuseForWrite(old, name string, c pebble.DiskWriteCategory) (f pebble.File, err error) {
	err = m.name(func() error { f, err = m.MemFS.ReuseForWrite(old, name, c); return err })
	return m.file(f, name), err
}

func (m *mount) Open(name string, o ...pebble.OpenOption) (pebble.File, error) {
	if err := m.enter(opRead, 0); err != nil {
		return nil, err
	}
	f, err := m.MemFS.Open(name, o...)
	return m.file(f, name), err
}

func (m *mount) OpenDir(name string) (pebble.File, error) {
	if err := m.enter(opRead, 0); err != nil {
		return nil, err
	}
	f, err := m.MemFS.OpenDir(name)
	return m.file(f, name), err
}

func (m *mount) Link(old, name string) error {
	return m.name(func() error { return m.MemFS.Link(old, name) })
}

func (m *mount) Remove(name string) error {
	return m.name(func() error { return m.MemFS.Remove(name) })
}

func (m *mount) RemoveAll(name string) error {
	return m.name(func() error { return m.MemFS.RemoveAll(name) })
}

func (m *mount) MkdirAll(name string, perm os.FileMode) error {
	return m.name(func() error { return m.MemFS.MkdirAll(name, perm) })
}

func (m *mount) Rename(old, name string) error {
	return m.name(func() error { return m.MemFS.Rename(old, name) })
}

// Lock is the run's own: a killed process holds none.
func (m *mount) Lock(string) (io.Closer, error) { return io.NopCloser(strings.NewReader("")), nil }

func (m *mount) GetDiskUsage(string) (pebble.DiskUsage, error) {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	total := uint64(m.d.room)
	if total == 0 {
		return pebble.DiskUsage{TotalBytes: 1 << 40, AvailBytes: 1 << 40}, nil
	}
	u := uint64(used(m.MemFS, "data"))
	return pebble.DiskUsage{TotalBytes: total, UsedBytes: u, AvailBytes: total - min(u, total)}, nil
}

func (m *mount) file(f pebble.File, name string) pebble.File {
	if f == nil {
		return nil
	}
	return &file{File: f, m: m, name: name}
}

type file struct {
	pebble.File
	m    *mount
	name string
	// failed: a sync has. What it was to sync is unknown for good, and no later sync tells.
	failed atomic.Bool
}

func (f *file) Write(p []byte) (int, error) {
	if err := f.room(int64(len(p))); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	grow := int64(0)
	if st, err := f.Stat(); err == nil {
		grow = max(0, off+int64(len(p))-st.Size())
	}
	if err := f.room(grow); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *file) room(grow int64) error {
	if err := f.m.enter(opWrite, int(grow)); err != nil {
		return err
	}
	if grow > 0 && f.m.full(grow) {
		return &os.PathError{Op: "write", Path: f.name, Err: syscall.ENOSPC}
	}
	return nil
}

// Preallocate takes the room, as a real disk does.
func (f *file) Preallocate(off, length int64) error {
	if path.Base(f.name) != "ballast" {
		return f.File.Preallocate(off, length)
	}
	_, err := f.WriteAt(make([]byte, length), off)
	return err
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if err := f.m.enter(opRead, len(p)); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *file) sync() error {
	if err := f.m.enter(opSync, 0); err != nil {
		return err
	}
	if f.failed.Load() {
		f.m.d.w.fail("no fsync is tried again", "node %d: %s is synced once more after a sync of it has failed", f.m.d.node, f.name)
	}
	if f.m.d.fails() {
		f.failed.Store(true)
		f.m.d.w.count("syncs failed", 1)
		return &os.PathError{Op: "sync", Path: f.name, Err: syscall.EIO}
	}
	return f.File.Sync()
}

// fails tells whether this sync is the one that fails.
func (d *disk) fails() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail == 0 {
		return false
	}
	d.fail--
	d.rotten = d.rotten || d.fail == 0
	return d.fail == 0
}

// setFail makes the nth sync from now fail; 0: none.
func (d *disk) setFail(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = n
}

func (f *file) Sync() error                { return f.sync() }
func (f *file) SyncData() error            { return f.sync() }
func (f *file) SyncTo(int64) (bool, error) { return true, f.sync() }

func newMem() *vfs.MemFS { return vfs.NewCrashableMem() }

func (d *disk) number() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.serial
}

func (d *disk) files() *vfs.MemFS {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mem
}
