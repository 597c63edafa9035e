package crash

import (
	"errors"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"chronik/internal/vfs"
)

// inspection reads the disks of each cut on goroutines of its own.
type inspection struct {
	gate     sync.RWMutex // held while a cut is handed on
	finished bool
	c        *cluster
	l        *load
	cuts     chan cut
	wg       sync.WaitGroup
	// found is closed at the first loss: of records, or of a replica if that is enough.
	found   chan struct{}
	replica bool

	once sync.Once

	mu     sync.Mutex
	n      int
	losses []*loss
}

type cut struct {
	left []*vfs.MemFS
	acks []acked
}

func newInspection(c *cluster) *inspection {
	in := &inspection{c: c, cuts: make(chan cut, 4), found: make(chan struct{})}
	for range 2 {
		in.wg.Go(in.work)
	}
	return in
}

func (in *inspection) work() {
	for k := range in.cuts {
		err := verdictOf(k.left, k.acks)
		var l *loss
		in.mu.Lock()
		in.n++
		if errors.As(err, &l) {
			in.losses = append(in.losses, l)
			if l.records > 0 || in.replica {
				in.once.Do(func() { close(in.found) })
			}
		}
		in.mu.Unlock()
	}
}

// cut cuts the power for what was acknowledged until now. A disk may still be about to
// call it when nobody watches any more.
func (in *inspection) cut(percent int) {
	in.gate.RLock()
	defer in.gate.RUnlock()
	if in.finished {
		return
	}
	acks := in.l.sofar()
	in.cuts <- cut{left: in.c.power.cut(in.c.disks, percent), acks: acks}
}

// atCheckpoints cuts the power each time a checkpoint has got its name and the directory
// is not synced yet, and lets chance decide on what was not synced.
func (in *inspection) atCheckpoints() {
	watch := func(s step) {
		if s.op == opRename && s.when == after && isCheckpoint(s.name) {
			in.cut(50)
		}
	}
	for _, d := range in.c.disks {
		d.watch.Store(&watch)
	}
}

func (in *inspection) unwatch() {
	for _, d := range in.c.disks {
		d.watch.Store(nil)
	}
}

// finish waits for what was cut.
func (in *inspection) finish() {
	in.gate.Lock() // the workers take what is being sent
	in.finished = true
	in.gate.Unlock()
	close(in.cuts)
	in.wg.Wait()
}

// TestFsyncIsReal cuts the power at acknowledgements: what was not synced is gone,
// all or by chance, and every record acknowledged so far is on a majority of the disks,
// at its offset. Files roll, checkpoints are taken and the log is trimmed meanwhile.
func TestFsyncIsReal(t *testing.T) {
	t.Parallel()
	every, acked := 6, 1320
	if long {
		every, acked = 1, 660 // each acknowledgement
	}
	c := newCluster(t, func(d *disk) { d.lag = 2 * time.Millisecond })
	c.startAll()
	c.createTopic(true)
	in := newInspection(c)
	in.l = newLoad(c, func(n int) {
		switch {
		case n%30 == 0:
			in.cut(50)
		case n%every == 0:
			in.cut(0)
		}
	})
	in.atCheckpoints()
	in.l.run()
	in.l.await(acked, nil)
	in.l.stop()
	in.unwatch()
	in.finish()
	for _, l := range in.losses {
		t.Errorf("power cut: %v", l)
	}
	if cuts := acked / every; in.n < cuts {
		t.Errorf("%d cuts, want %d", in.n, cuts)
	}
	r, err := c.replica(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if r.SnapshotIndex < 2*threshold || r.FirstIndex <= r.SnapshotIndex/2 {
		t.Errorf("no checkpoints were taken, or no log trimmed: %+v", r)
	}
	if n := c.segments(0); n < 2*partitions {
		t.Errorf("%d segments: none has rolled", n)
	}
	t.Logf("%d cuts, %d records; %s is at index %d, checkpoint %d, log from %d", in.n, len(in.l.sofar()), r.Group, r.LastIndex, r.SnapshotIndex, r.FirstIndex)
}

// faults are the kinds of sync, each left out by all three disks. A cluster that loses nothing
// then does not need the sync, or the test does not see that it does.
var faults = []struct {
	name  string
	judge func(d *disk, name string, dir bool) verdict
	// replica: what a cut shows is a replica that cannot be opened, not a record on fewer than two disks.
	replica bool
	// segments: segments must roll.
	segments bool
}{
	{name: "raftlog data", judge: only(func(_ *disk, name string, dir bool) bool { return isLog(name) && !dir })},
	{name: "raftlog data in time", judge: func(_ *disk, name string, dir bool) verdict {
		if isLog(name) && !dir {
			return syncLate
		}
		return syncNow
	}},
	{name: "raftlog directory", judge: only(func(_ *disk, name string, dir bool) bool { return dir && path.Base(name) == "raftlog" })},
	{name: "segment data", judge: only(func(_ *disk, name string, _ bool) bool { return strings.HasSuffix(name, ".seg") })},
	{name: "checkpoint data", judge: only(func(_ *disk, name string, _ bool) bool { return strings.HasPrefix(path.Base(name), "checkpoint") })},
	{name: "checkpoint directory", judge: only(func(d *disk, name string, dir bool) bool {
		return dir && isGeneration(name) && d.namedCheckpoint(name)
	})},
	// The checkpoint's directory sync, the same directory's, follows before the log
	// is trimmed. In between chance may keep the checkpoint's name and not the segment's.
	{name: "segment directory", replica: true, segments: true, judge: only(func(d *disk, name string, dir bool) bool {
		return dir && isGeneration(name) && !d.namedCheckpoint(name)
	})},
	{name: "generation's parent", judge: only(func(_ *disk, name string, dir bool) bool {
		return dir && path.Base(path.Dir(name)) == "replicas"
	})},
	{name: "replicas' parent", judge: only(func(_ *disk, name string, dir bool) bool { return dir && path.Base(name) == "replicas" })},
	{name: "store.id data", judge: only(func(_ *disk, name string, _ bool) bool { return strings.HasPrefix(path.Base(name), "store.id") })},
	{name: "store.id directory", judge: only(func(_ *disk, name string, dir bool) bool { return dir && name == dataDir })},
}

// only leaves out the syncs that match.
func only(match func(d *disk, name string, dir bool) bool) func(*disk, string, bool) verdict {
	return func(d *disk, name string, dir bool) verdict {
		if match(d, name, dir) {
			return syncNot
		}
		return syncNow
	}
}

// isCheckpoint tells whether a path is a replica's checkpoint file.
func isCheckpoint(name string) bool { return path.Base(name) == "checkpoint" }

// isGeneration tells whether a path is a replica's generation directory.
func isGeneration(name string) bool {
	return path.Base(path.Dir(path.Dir(name))) == "replicas"
}

// TestMissingFsyncIsNoticed leaves out one kind of sync at a time: the same check
// as in TestFsyncIsReal must find that acknowledged records are lost.
func TestMissingFsyncIsNoticed(t *testing.T) {
	t.Parallel()
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			const every, most = 10, 2000
			c := newCluster(t, func(d *disk) { d.judge = f.judge })
			c.startAll()
			c.createTopic(f.segments)
			in := newInspection(c)
			in.replica = f.replica
			in.l = newLoad(c, func(n int) {
				if n%every == 0 {
					in.cut(0)
				}
			})
			if f.replica {
				in.atCheckpoints()
			}
			in.l.run()
			in.l.await(most, in.found)
			in.l.stop()
			in.unwatch()
			in.finish()
			select {
			case <-in.found:
				t.Logf("%d syncs left out: %d of %d cuts lost something, the first: %v", c.dropped(), len(in.losses), in.n, in.losses[0])
			default:
				t.Errorf("%d syncs were left out and nothing was lost in %d cuts", c.dropped(), in.n)
			}
		})
	}
}

// dropped counts the syncs left out.
func (c *cluster) dropped() (n int64) {
	for _, d := range c.disks {
		n += d.dropped.Load()
	}
	return n
}
