package raftgroup

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/raftlog"
	"chronik/internal/snapshot"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// hooked is a state machine whose steps a test looks at or holds up.
type hooked struct {
	*MemoryStateMachine
	install       func() error
	sync, publish func()
}

func (h *hooked) Install(dir string, blob []byte) error {
	if h.install != nil {
		if err := h.install(); err != nil {
			return err
		}
	}
	return h.MemoryStateMachine.Install(dir, blob)
}

func (h *hooked) Capture() (Capture, error) {
	c, err := h.MemoryStateMachine.Capture()
	return &hookedCapture{Capture: c, h: h}, err
}

type hookedCapture struct {
	Capture
	h *hooked
}

func (c *hookedCapture) Sync() error {
	if c.h.sync != nil {
		c.h.sync()
	}
	return c.Capture.Sync()
}

func (c *hookedCapture) Published() {
	if c.h.publish != nil {
		c.h.publish()
	}
	c.Capture.Published()
}

// openHooked makes every state machine h's, around its own state.
func (c *cluster) openHooked(h hooked) {
	c.open = func(fs vfs.FS, dir string, blob []byte, files []CaptureFile) (StateMachine, error) {
		sm, err := OpenMemory(fs, dir, blob, files)
		own := h
		own.MemoryStateMachine, _ = sm.(*MemoryStateMachine)
		return &own, err
	}
}

func powerCut(fs *vfs.MemFS) *vfs.MemFS {
	return fs.CrashClone(vfs.CrashCloneCfg{RNG: rand.New(rand.NewPCG(1, 1))})
}

// Rule 12: the state machine may unlink what it dropped only when a power cut
// would find the new checkpoint, and its files are synced while it would still find
// the old one.
func TestRule12PublishedFollowsTheCheckpoint(t *testing.T) {
	var h hooked
	inCluster(t, 1, func(c *cluster) { c.openHooked(h) }, func(c *cluster) {
		c.create(1)
		nd := c.nodes[1]
		r := nd.replica()
		sm := r.StateMachine().(*hooked)
		found := func() ident.Index {
			ck, err := snapshot.ReadHeader(powerCut(nd.fs), snapshot.GenDir(r.base, 1))
			if err != nil {
				return 0
			}
			return ck.Point.Index
		}
		var steps []string
		sm.sync = func() { steps = append(steps, fmt.Sprint("sync ", found())) }
		sm.publish = func() { steps = append(steps, fmt.Sprint("published ", found())) }
		var want []string
		old := ident.Index(0)
		for k := range 3 {
			c.fill(fmt.Sprintf("k%d", k), 0, 5)
			done := make(chan ident.Index, 1)
			r.TakeCheckpoint(func(i ident.Index, err error) { must(t, err); done <- i })
			at := <-done
			want = append(want, fmt.Sprint("sync ", old), fmt.Sprint("published ", at))
			old = at
		}
		if got := strings.Join(steps, ", "); got != strings.Join(want, ", ") {
			t.Fatalf("got %s\nwant %s", got, strings.Join(want, ", "))
		}
	})
}

// Rule 14: a membership change is applied while a checkpoint is being written;
// the checkpoint has the configuration as of its own index.
func TestRule14ConfStateIsThatAtTheIndex(t *testing.T) {
	var h hooked
	inCluster(t, 1, func(c *cluster) { c.openHooked(h) }, func(c *cluster) {
		c.create(1)
		c.put("a", "1")
		r := c.nodes[1].replica()
		gate, at := make(chan struct{}), make(chan struct{})
		sm := r.StateMachine().(*hooked)
		sm.sync = func() { close(at); <-gate; sm.sync = nil }
		done := make(chan ident.Index, 1)
		r.TakeCheckpoint(func(i ident.Index, err error) { must(t, err); done <- i })
		<-at
		c.change(func(l *Replica, w Waiter) {
			l.AddLearner(Member{Replica: 99, Node: 4, Store: storeOf(4, 0)}, 3, ProposeOptions{}, w)
		})
		close(gate)
		index := <-done
		ck, err := snapshot.ReadHeader(c.nodes[1].fs, snapshot.GenDir(r.base, 1))
		must(t, err)
		m, err := checkpointMembership(ck)
		must(t, err)
		if ck.Point.Index != index || len(m.members) != 1 || len(m.conf.GetLearners()) != 0 || ck.Point.ConfGeneration != 0 {
			t.Fatalf("checkpoint at %d (%d): %v, %+v", ck.Point.Index, index, m.conf, m.members)
		}
	})
}

// away makes a follower whose log ends before the leader's begins, and returns
// what boots it again.
func (c *cluster) away() (id ident.NodeID, store ident.StoreID, disk *vfs.MemFS) {
	c.t.Helper()
	c.create(3)
	c.fill("k", 0, 20)
	f := c.follower()
	id, store, disk = f.id, f.store, f.kill(0)
	c.fill("k", 20, 90)
	c.trimmedLeader(60)
	return id, store, disk
}

// A full disk delays an install like any entry: later entries wait for it.
func TestInstallWaitsForDiskSpace(t *testing.T) {
	var mu sync.Mutex
	full := 3
	inCluster(t, 3, func(c *cluster) {
		smallSteps(c)
		c.openHooked(hooked{install: func() error {
			mu.Lock()
			defer mu.Unlock()
			if full--; full >= 0 {
				return fmt.Errorf("install: %w", syscall.ENOSPC)
			}
			return nil
		}})
	}, func(c *cluster) {
		back := c.boot(c.away())
		c.fill("k", 90, 95)
		c.eventually("all applied", func() bool {
			return back.replica().StateMachine().(*hooked).Len() == 95 && back.replica().Status().State == StateRunning
		})
		mu.Lock()
		defer mu.Unlock()
		if full >= 0 {
			t.Fatalf("%d failures left", full+1)
		}
	})
}

// Rule 13: the state machine switches only when the log's record of the install is
// durable, however slow the disk is: else the old state could go too early.
func TestRule13StateFollowsTheRecord(t *testing.T) {
	var check func()
	inCluster(t, 3, func(c *cluster) {
		smallSteps(c)
		c.openHooked(hooked{install: func() error { check(); return nil }})
	}, func(c *cluster) {
		id, store, disk := c.away()
		found := make(chan ident.Index, 1)
		check = func() { found <- installedOn(t, powerCut(disk), store, members(3)[id-1].Replica) }
		invariant.SetPointHook(func(point string) {
			if point == "raftlog/batch-encoded" {
				time.Sleep(20 * time.Millisecond)
			}
		})
		defer invariant.SetPointHook(nil)
		c.boot(id, store, disk)
		if got := <-found; got < 60 {
			t.Fatalf("the disk has an install at %d", got)
		}
	})
}

// Rule 16: a leader hears that a snapshot is installed only when a power cut
// would leave the receiver with it.
func TestRule16DoneIsDurable(t *testing.T) {
	inCluster(t, 3, smallSteps, func(c *cluster) {
		id, store, disk := c.away()
		var done atomic.Int32
		for _, nd := range c.nodes {
			nd.setFilter(func(_ transport.PeerInfo, it item) bool {
				if it.kind != itemStatus || it.state != transferDone {
					return false
				}
				done.Add(1)
				if got := installedOn(t, powerCut(disk), store, it.from); got < it.index {
					t.Errorf("done at index %d, the disk has %d", it.index, got)
				}
				return false
			})
		}
		c.boot(id, store, disk)
		c.converge(90)
		time.Sleep(time.Second)
		if n := done.Load(); n != 1 {
			t.Fatalf("told %d times", n)
		}
	})
}

// installedOn returns the index of a replica's install record on a disk, 0 if there is none.
func installedOn(t *testing.T, fs *vfs.MemFS, store ident.StoreID, r ident.ReplicaID) (index ident.Index) {
	l, err := raftlog.Open(raftlog.Options{FS: fs, Dir: "/data/raftlog", Store: store, FileBytes: 1 << 20, MaxBytes: 8 << 20})
	if err != nil {
		t.Error(err)
		return 0
	}
	if in := l.Replica(r).Install(); in != nil {
		index = in.Index
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	return index
}

// Rule 15: the answer to an offer that is not needed acknowledges what is
// durable here, not what raft has heard to be committed.
func TestRule15AcknowledgesWhatIsDurable(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 20)
		c.converge(20)
		l, f := c.leader(), c.follower()
		time.Sleep(time.Second)
		var mu sync.Mutex
		var acks []uint64
		l.setFilter(func(_ transport.PeerInfo, it item) bool {
			if it.kind == itemMessage && it.from == f.replica().ID() && it.msg.GetType() == pb.MsgAppResp {
				mu.Lock()
				defer mu.Unlock()
				acks = append(acks, it.msg.GetIndex())
			}
			return false
		})
		r := f.replica()
		done := make(chan ident.Index, 1)
		r.postLocal(localEvent{fn: func(o *outbox) {
			r.rs.durable.Commit -= 3 // the last appends are still on their way to the disk
			body := offerMsg{first: 2, offer: snapshot.Offer{
				Group: testGroup, Index: r.rs.hs.Commit, Term: r.rs.hs.Term, Files: 1, Sources: []snapshot.OfferSource{{Node: l.id, Pin: 1}},
			}}
			r.offered(o, &item{
				kind: itemOffer, from: l.replica().ID(), to: r.ID(), group: testGroup, term: r.rs.hs.Term, offer: body.encode(),
				src: &frameSource{node: l.id, store: l.store},
			})
			done <- r.rs.durable.Commit
		}})
		durable := <-done
		c.eventually("an acknowledgement", func() bool { mu.Lock(); defer mu.Unlock(); return len(acks) > 0 })
		mu.Lock()
		defer mu.Unlock()
		if acks[0] != uint64(durable) {
			t.Fatalf("acknowledged %d, durable is %d", acks[0], durable)
		}
	})
}

// Rule 10: a membership change that apply handed over just before a snapshot
// with a later configuration was taken does not reach raft.
func TestRule10MembershipChangeBelowTheFence(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.leader()
		r := c.nodes[1].replica()
		done := make(chan struct{})
		r.postLocal(localEvent{fn: func(o *outbox) {
			defer close(done)
			before, at := r.rs.rn.Status().Config.String(), r.rs.hs.Commit
			cc := ConfChange{Generation: 1, AddLearner: []Member{{Replica: 99, Node: 4, Store: storeOf(4, 0)}}}.toRaft()
			after, err := r.rs.mem.next(proto.CloneOf(cc), at)
			if err != nil {
				t.Error(err)
				return
			}
			r.fence.Store(uint64(at))
			r.confChanged(o, &confApplied{index: at, cc: cc, after: after})
			if got := r.rs.rn.Status().Config.String(); got != before || len(r.rs.mem.members) != 3 {
				t.Errorf("raft has %s, before %s; %d members", got, before, len(r.rs.mem.members))
			}
		}})
		<-done
	})
}

// Rule 15: a receiver that waits for a slot, longer than a transfer may show no
// life, says that it lives: the leader does not offer again and again.
func TestRule15QueuedReceiverLives(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		smallSteps(c)
		tune := c.tune
		c.tune = func(o *Options) {
			tune(o)
			o.Archive = func(ctx context.Context, _ ident.GroupID, _ int64) (snapshot.ChunkSource, error) { // asked before the slot is
				<-ctx.Done() // archiveTimeout is twice the transfer's
				return nil, ctx.Err()
			}
		}
	}, func(c *cluster) {
		back := c.boot(c.away())
		offers := func() int { return strings.Count(c.logText.String(), "offered snapshot") }
		c.eventually("receiving", func() bool { return back.replica().Status().State == StateReceiving })
		time.Sleep(2 * time.Second)
		before := offers()
		c.converge(90)
		if got := back.replica().Status().SnapshotsInstalled; got != 1 {
			t.Fatalf("%d snapshots installed", got)
		}
		if n := offers(); n != before || strings.Contains(c.logText.String(), "shows no life") {
			t.Fatalf("%d offers, %d at first", n, before)
		}
	})
}

// TestCrashInRemove cuts the power while a retired replica with a trimmed log is removed: it is
// there or not, and never taken for corrupt.
func TestCrashInRemove(t *testing.T) {
	for _, keep := range []int{0, 100} {
		inCluster(t, 1, smallSteps, func(c *cluster) {
			c.create(1)
			c.fill("k", 0, 60)
			nd := c.nodes[1]
			c.eventually("the log is trimmed", func() bool { return nd.replica().Status().FirstIndex > 2 })
			id := nd.replica().ID()
			var left *vfs.MemFS
			invariant.SetPointHook(func(point string) {
				if strings.HasPrefix(point, "raftgroup.remove.") {
					left = nd.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: keep, RNG: rand.New(rand.NewPCG(1, 1))})
				}
			})
			defer invariant.SetPointHook(nil)
			must(t, nd.host.Remove(id))
			invariant.SetPointHook(nil)
			if left == nil {
				t.Fatal("no point was passed")
			}
			nd.kill(0)
			back := c.boot(1, nd.store, left)
			if err := back.ev.quarantine(id); err != nil {
				t.Errorf("%d %% left: %v", keep, err)
			}
		})
	}
}

// TestFirstDirectoryIsDurable: an earlier process was killed between the making of a replica's directories and their sync. What
// this one says is durable in them is so after a power loss.
func TestFirstDirectoryIsDurable(t *testing.T) {
	base := "/data/replicas/aa-0.11"
	for _, left := range []string{base, base + "/g1"} {
		t.Run(path.Base(left), func(t *testing.T) {
			inCluster(t, 1, smallSteps, func(c *cluster) {
				nd := c.nodes[1]
				must(t, nd.fs.MkdirAll(left, 0o755))
				c.create(1)
				c.fill("k", 0, 100)
				c.trimmedLeader(50)
				id, store := nd.id, nd.store
				nd = c.boot(id, store, nd.kill(0))
				if err := nd.ev.quarantine(nd.replica().ID()); err != nil {
					t.Fatal(err)
				}
				c.converge(100)
			})
		})
	}
}
