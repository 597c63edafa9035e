package broker

import (
	"context"
	"log/slog"
	"path"
	"sync/atomic"
	"time"

	"chronik/internal/vfs"
)

// disk watches the free space below the data directory. A ballast file keeps
// room that is given up when everything else is full, so that the raftlog, whose
// failed write would end the node, always finds space (correctness rule 31).
//
//	free ≥ reserve + in flight  records are accepted
//	free < reserve + in flight  records are refused; reads, commits and elections go on
//	free < reserve / 4          the ballast is given up too
//
// In flight is twice what was accepted and not answered: it will be written to the
// log and to a segment. The space is looked at on a timer, and by Full at most every fullEvery.
type disk struct {
	fs      vfs.FS
	dir     string
	reserve uint64
	ballast uint64
	log     *slog.Logger
	full    atomic.Bool
	looked  atomic.Int64 // when Full last looked, nanoseconds
	// memory holds the bytes of requests accepted and not answered.
	memory interface{ Used() int64 }
	free   atomic.Uint64
	// onSpace is called when space has returned.
	onSpace func()
	has     bool // the ballast exists; watch's goroutine only
}

const (
	ballastName  = "ballast"
	diskInterval = 500 * time.Millisecond
	fullEvery    = 5 * time.Millisecond
)

// newDisk takes the reserve from what the raftlog may need before old files are freed: two of its files.
func newDisk(fs vfs.FS, dir string, memory interface{ Used() int64 }, logFileBytes int64, log *slog.Logger) *disk {
	d := &disk{fs: fs, dir: dir, memory: memory, onSpace: func() {}, reserve: 2 * uint64(logFileBytes), ballast: uint64(logFileBytes), log: log}
	if st, err := fs.Stat(path.Join(dir, ballastName)); err == nil {
		d.has = st.Size() > 0
	}
	return d
}

// Full tells whether records are refused.
func (d *disk) Full() bool {
	if at, now := d.looked.Load(), time.Now().UnixNano(); now-at >= int64(fullEvery) && d.looked.CompareAndSwap(at, now) {
		if u, err := d.fs.GetDiskUsage(d.dir); err == nil {
			d.judge(u.AvailBytes)
		}
	}
	return d.full.Load()
}

// judge closes or opens the gate for records, with some slack between the two.
func (d *disk) judge(free uint64) {
	d.free.Store(free)
	need := d.reserve + 2*uint64(max(0, d.memory.Used()))
	switch {
	case free < need && d.full.CompareAndSwap(false, true):
		d.log.Error("disk full: records are refused", "bytes", free, "reserve", need)
	case free >= need+d.reserve/8 && d.full.CompareAndSwap(true, false):
		d.log.Info("disk has space again: records are accepted", "bytes", free)
		d.onSpace()
	}
}

// size returns how large the file system is and how much of it is free; -1 if unknown.
func (d *disk) size() (total, free int64) {
	u, err := d.fs.GetDiskUsage(d.dir)
	if err != nil {
		return -1, -1
	}
	return int64(u.TotalBytes), int64(u.AvailBytes)
}

func (d *disk) watch(ctx context.Context) {
	t := time.NewTicker(diskInterval)
	defer t.Stop()
	for {
		d.look()
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (d *disk) look() {
	u, err := d.fs.GetDiskUsage(d.dir)
	if err != nil {
		d.log.Warn("disk usage unknown", "err", err)
		return
	}
	d.judge(u.AvailBytes)
	if d.has && u.AvailBytes < d.reserve/4 {
		d.drop()
	}
	if !d.has && u.AvailBytes >= d.reserve+2*d.ballast {
		d.make()
	}
}

// make reserves the ballast's blocks.
func (d *disk) make() {
	name := path.Join(d.dir, ballastName)
	f, err := d.fs.Create(name, vfs.CategoryNode)
	if err == nil {
		err = f.Preallocate(0, int64(d.ballast))
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	if err != nil {
		d.log.Warn("ballast not made", "err", err)
		return
	}
	d.has = true
}

func (d *disk) drop() {
	if err := d.fs.Remove(path.Join(d.dir, ballastName)); err != nil {
		d.log.Warn("ballast not given up", "err", err)
		return
	}
	d.has = false
	d.log.Warn("gave up the ballast", "bytes", d.ballast)
}
