package broker

import (
	"context"
	"errors"
	"log/slog"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"chronik/internal/metadata"
	"chronik/internal/raftgroup"
	"chronik/internal/vfs"
)

// disk watches the free space below the data directory (correctness rule 31). What must always find room is the raftlog,
// whose failed write ends the node: its active file has its room, and for the next one there is a ballast file, which the
// log has removed when it finds none. What would use the room up meanwhile waits:
//
//	free ≥ reserve + in flight  records are accepted
//	free < reserve + in flight  clients' records are refused; reads, commits and elections go on
//	free < reserve / 2          tight: leaders' records are not taken either, and records that are committed not applied. To
//	                            the group this node is one that lags; it catches up when there is space. Small entries
//	                            pass: leaders begin with one, and a log start frees room
//	and the log's file nearly full, with no ballast for the next
//	                            nothing is taken for any group; votes, which are small, go on
//
// In flight is twice what was accepted and not answered: it will be written to the
// log and to a segment. The space is looked at on a timer, and by Full and Tight at most every fullEvery.
type disk struct {
	fs      vfs.FS
	dir     string
	reserve uint64
	ballast uint64
	log     *slog.Logger
	full    atomic.Bool
	tight   atomic.Bool
	looked  atomic.Int64 // when Full or Tight last looked, nanoseconds
	// memory holds the bytes of requests accepted and not answered.
	memory interface{ Used() int64 }
	free   atomic.Uint64
	// onSpace is called when space has returned.
	onSpace func()
	mu      sync.Mutex
	has     bool // the ballast exists
}

const (
	ballastName  = "ballast"
	diskInterval = 500 * time.Millisecond
	fullEvery    = 5 * time.Millisecond
)

// newDisk takes the reserve from what the raftlog may need before old files are freed: two of its files. The ballast is one, and
// a little for the blocks of directories.
func newDisk(fs vfs.FS, dir string, memory interface{ Used() int64 }, logFileBytes int64, log *slog.Logger) *disk {
	d := &disk{fs: fs, dir: dir, memory: memory, onSpace: func() {}, reserve: 2 * uint64(logFileBytes), ballast: uint64(logFileBytes + logFileBytes/16), log: log}
	if _, err := fs.Stat(path.Join(dir, ballastName)); err == nil {
		d.make() // it takes no room that it has: a disk without free space does not hinder it
	}
	return d
}

// Full tells whether records are refused.
func (d *disk) Full() bool {
	d.glance()
	return d.full.Load()
}

// Tight tells whether what is left is the raftlog's alone.
func (d *disk) Tight() bool {
	d.glance()
	return d.tight.Load()
}

func (d *disk) glance() {
	if at, now := d.looked.Load(), time.Now().UnixNano(); now-at >= int64(fullEvery) && d.looked.CompareAndSwap(at, now) {
		if u, err := d.fs.GetDiskUsage(d.dir); err == nil {
			d.judge(u.AvailBytes)
		}
	}
}

// judge closes or opens the gates, with some slack between the two.
func (d *disk) judge(free uint64) {
	d.free.Store(free)
	slack := d.reserve / 8
	switch {
	case free < d.reserve/2 && d.tight.CompareAndSwap(false, true):
		d.log.Error("disk tight: nothing is taken from leaders and nothing applied", "bytes", free, "reserve", d.reserve)
	case free >= d.reserve+slack && d.tight.CompareAndSwap(true, false):
		d.log.Info("disk has space again: leaders are followed", "bytes", free)
		d.onSpace()
	}
	need := d.reserve + 2*uint64(max(0, d.memory.Used()))
	switch {
	case free < need && d.full.CompareAndSwap(false, true):
		d.log.Error("disk full: records are refused", "bytes", free, "reserve", need)
	case free >= need+slack && d.full.CompareAndSwap(true, false):
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
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.has && u.AvailBytes >= d.reserve+2*d.ballast {
		d.make()
	}
}

// make reserves the ballast's blocks, which its size does not tell of; those it has already it keeps. What
// is not whole does not stay: it would be taken for room. Caller holds d.mu.
func (d *disk) make() {
	name := path.Join(d.dir, ballastName)
	f, err := d.fs.OpenReadWrite(name, vfs.CategoryNode)
	if err == nil {
		err = errors.Join(f.Preallocate(0, int64(d.ballast)), f.Close())
		if err != nil {
			err = errors.Join(err, d.fs.Remove(name))
		}
	}
	if err != nil {
		d.log.Warn("ballast not made", "err", err)
		return
	}
	d.has = true
}

// giveUp frees the ballast's room for a file of the raftlog. It says false if there is none.
func (d *disk) giveUp() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.has {
		return false
	}
	if err := d.fs.Remove(path.Join(d.dir, ballastName)); err != nil {
		d.log.Warn("ballast not given up", "err", err)
		return false
	}
	d.has = false
	d.log.Warn("gave up the ballast", "bytes", d.ballast)
	return true
}

// hasBallast tells whether the raftlog finds room for one more file.
func (d *disk) hasBallast() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.has
}

// crowded is raftgroup's Options.Crowded. Of its own, a leader refuses clients' records before; what else it proposes
// of a topic is little, and may free room.
func (s *session) crowded(spec raftgroup.Spec, own bool) bool {
	if !s.disk.Tight() {
		return false
	}
	if spec.Kind == metadata.KindTopic && !own {
		return true
	}
	st := s.rlog.Stats()
	return st.Spare == 0 && st.ActiveLeft < int64(s.disk.reserve/8) && !s.disk.hasBallast()
}
