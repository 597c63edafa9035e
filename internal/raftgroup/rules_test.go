package raftgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
	"chronik/internal/snapshot"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// smallSteps makes checkpoints and trims happen within a short test.
func smallSteps(c *cluster) {
	c.tune = func(o *Options) {
		o.Policy = Policy{ThresholdEntries: 20, KeepEntries: 2}
	}
}

func TestLeaderKilledIsReplacedSoon(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		for range 3 {
			l := c.leader()
			start := time.Now()
			disk := l.kill(0)
			c.leader()
			if took := time.Since(start); took > 600*time.Millisecond {
				t.Fatalf("a new leader after %v", took)
			}
			c.boot(l.id, l.store, disk)
		}
		c.fill("k", 5, 10)
		c.converge(10)
	})
}

// Rule 29: all killed at once by a power cut, then back.
func TestRule29AllKilledLeadSoon(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 30)
		for round := range 3 {
			disks := make(map[ident.NodeID]*vfs.MemFS)
			for id, nd := range c.nodes {
				disks[id] = nd.kill(0)
			}
			time.Sleep(time.Second)
			start := time.Now()
			for id, d := range disks {
				c.boot(id, storeOf(id, 0), d)
			}
			c.leader()
			if took := time.Since(start); took > time.Second {
				t.Fatalf("round %d: a leader after %v", round, took)
			}
			c.converge(30)
		}
	})
}

// Rule 4: what a deposed leader had appended is uncertain, and nothing waits for ever.
func TestRule4WaitersFailOnStepDown(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 3)
		l := c.leader()
		c.net.Isolate(l.id)
		w := make(waiter, 1)
		l.replica().Propose([]byte("lost=1"), ProposeOptions{}, w)
		got := <-w
		isErr(t, got.err, ErrLeadershipLost)
		if got.index == 0 {
			t.Fatal("the outcome names no index although the entry was appended")
		}
		isErr(t, l.propose("x=1", ProposeOptions{}).err, ErrNotLeader)
		c.eventually("another leader", func() bool { o := c.leads(); return o != nil && o != l })
		c.net.HealAll()
		c.put("k0", "2")
		c.converge(3)
	})
}

// Rule 5: a commit that comes without entries is written too.
func TestRule5CommitReachesTheLog(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		got := c.put("a", "1")
		c.converge(1)
		for id, nd := range c.nodes {
			r := nd.replica().ID()
			c.eventually("commit durable", func() bool { return nd.log.Replica(r).HardState().Commit >= got.index })
			if hs := nd.log.Replica(r).HardState(); hs.Term != got.term {
				t.Fatalf("node %d: durable %+v, want term %d", id, hs, got.term)
			}
		}
	})
}

// The story of the design: away for longer than the log, back with the disk.
func TestRejoinWithDiskThroughSnapshot(t *testing.T) {
	inCluster(t, 3, smallSteps, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 50)
		f := c.follower()
		id, store := f.id, f.store
		disk := f.kill(0)
		c.fill("k", 50, 150)
		l := c.trimmedLeader(100)
		back := c.boot(id, store, disk)
		c.converge(150)
		st := back.replica().Status()
		if st.SnapshotsInstalled != 1 {
			t.Fatalf("%d snapshots installed, want 1", st.SnapshotsInstalled)
		}
		if st.FirstIndex != st.SnapshotIndex+1 {
			t.Fatalf("first index %d, snapshot index %d", st.FirstIndex, st.SnapshotIndex)
		}
		if st.EntriesReplayed > 60 {
			t.Fatalf("%d entries replayed", st.EntriesReplayed)
		}
		for _, want := range []string{"Received", "Installing", "Successfully installed"} {
			if !strings.Contains(c.logText.String(), want+" snapshot for orders-0") {
				t.Fatalf("no log line %q", want)
			}
		}
		c.fill("k", 150, 160)
		c.converge(160)
		// The pin ends, the staging is gone, one generation is left.
		time.Sleep(5 * time.Second)
		if n := l.srv.Stats().Pins; n != 0 {
			t.Fatalf("%d pins left", n)
		}
		names, err := back.fs.List("/data/replicas/" + dirName(back.replica().Spec()))
		must(t, err)
		if len(names) != 1 || names[0] != "g2" {
			t.Fatalf("generations left: %v", names)
		}
		// And from the installed generation a power cut recovers.
		disk = back.kill(0)
		c.fill("k", 160, 165)
		c.boot(id, store, disk)
		c.converge(165)
	})
}

// A wiped disk comes back under a fresh replica id: learner, snapshot, one joint change.
func TestRejoinWipedThroughFreshReplica(t *testing.T) {
	inCluster(t, 3, smallSteps, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 60)
		f := c.follower()
		old := f.replica().ID()
		id := f.id
		f.kill(0)
		c.fill("k", 60, 80)
		store := storeOf(id, 1)
		nd := c.boot(id, store, vfs.NewCrashableMem())
		fresh := Member{Replica: 99, Node: id, Store: store}
		must(t, nd.host.Create([]Spec{specFor(fresh, nil)}))
		nd.host.Start(testGroup)
		c.change(func(l *Replica, w Waiter) { l.AddLearner(fresh, 5, ProposeOptions{}, w) })
		c.converge(80)
		if got := nd.replica().Status().Role; got != RoleLearner {
			t.Fatalf("role %v before the swap", got)
		}
		c.change(func(l *Replica, w Waiter) { l.ReplaceVoter(fresh, old, 5, ProposeOptions{}, w) })
		c.eventually("the joint configuration is left", func() bool {
			st := c.leader().replica().Status()
			return len(st.Members) == 3 && nd.replica().Status().Role == RoleFollower
		})
		// The newcomer counts now: with the other follower away, writes go on.
		for _, o := range c.nodes {
			if o.id != id && o != c.leader() {
				o.kill(0)
				break
			}
		}
		c.put("after", "1")
	})
}

// change proposes a membership change at the leader until it is applied.
func (c *cluster) change(do func(l *Replica, w Waiter)) {
	c.t.Helper()
	c.eventually("membership change", func() bool {
		l := c.leads()
		if l == nil {
			return false
		}
		w := make(waiter, 1)
		do(l.replica(), w)
		got := <-w
		if got.err != nil && !errors.Is(got.err, ErrConfChangeRefused) && !errors.Is(got.err, ErrNotLeader) {
			c.t.Fatal(got.err)
		}
		return got.err == nil
	})
}

// refused proposes a change until raft has no other pending, and wants an error.
func (c *cluster) refused(want error, do func(l *Replica, w Waiter)) {
	c.t.Helper()
	c.eventually("a change to be judged", func() bool {
		w := make(waiter, 1)
		do(c.leader().replica(), w)
		got := <-w
		if errors.Is(got.err, ErrConfChangeRefused) {
			return false
		}
		isErr(c.t, got.err, want)
		return true
	})
}

// Rule 22: an order of an older generation has no effect, on any replica.
func TestRule22StaleGenerationIsRefused(t *testing.T) {
	inCluster(t, 4, nil, func(c *cluster) {
		c.create(3)
		fresh := Member{Replica: 99, Node: 4, Store: storeOf(4, 0)}
		must(t, c.nodes[4].host.Create([]Spec{specFor(fresh, nil)}))
		c.nodes[4].host.Start(testGroup)
		c.change(func(l *Replica, w Waiter) { l.AddLearner(fresh, 9, ProposeOptions{}, w) })
		c.refused(ErrStaleGeneration, func(l *Replica, w Waiter) {
			l.ProposeConfChange(ConfChange{Generation: 8, Remove: []ident.ReplicaID{11}}, ProposeOptions{}, w)
		})
		c.change(func(l *Replica, w Waiter) { l.ReplaceVoter(fresh, 11, 9, ProposeOptions{}, w) })
		c.eventually("joint configuration left", func() bool { return len(c.leader().replica().Status().Members) == 3 })
		// Leaving it is an entry without a generation: the group's stays.
		c.refused(ErrStaleGeneration, func(l *Replica, w Waiter) {
			l.ProposeConfChange(ConfChange{Generation: 8, Remove: []ident.ReplicaID{12}}, ProposeOptions{}, w)
		})
		// The same order once more would turn a voter into a learner.
		c.refused(ErrStaleGeneration, func(l *Replica, w Waiter) { l.AddLearner(fresh, 9, ProposeOptions{}, w) })
		// Meant as a demotion it is done.
		c.change(func(l *Replica, w Waiter) {
			l.ProposeConfChange(ConfChange{Generation: 9, Demote: []ident.ReplicaID{99}}, ProposeOptions{}, w)
		})
		c.put("a", "1")
		c.eventually("a learner again", func() bool { return c.nodes[4].replica().Status().Role == RoleLearner })
		c.eventually("the newcomer has the write", func() bool { return c.nodes[4].sm().Len() == 1 })
	})
}

// Rule 22: a group without traffic leaves its joint configuration.
func TestRule22IdleGroupLeavesJoint(t *testing.T) {
	inCluster(t, 4, nil, func(c *cluster) {
		c.create(3)
		c.leader()
		fresh := Member{Replica: 99, Node: 4, Store: storeOf(4, 0)}
		must(t, c.nodes[4].host.Create([]Spec{specFor(fresh, nil)}))
		c.nodes[4].host.Start(testGroup)
		c.change(func(l *Replica, w Waiter) { l.ReplaceVoter(fresh, 12, 3, ProposeOptions{}, w) })
		c.eventually("three members", func() bool {
			l := c.leads()
			return l != nil && len(l.replica().Status().Members) == 3 && len(c.nodes[4].replica().Status().Members) == 3
		})
	})
}

// A leader that is taken out is followed at once.
func TestRemovedLeaderIsFollowedSoon(t *testing.T) {
	inCluster(t, 4, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		fresh := Member{Replica: 99, Node: 4, Store: storeOf(4, 0)}
		must(t, c.nodes[4].host.Create([]Spec{specFor(fresh, nil)}))
		c.nodes[4].host.Start(testGroup)
		c.change(func(l *Replica, w Waiter) { l.AddLearner(fresh, 1, ProposeOptions{}, w) })
		c.eventually("caught up", func() bool { return c.nodes[4].sm().Len() == 5 })
		l := c.leader()
		start := time.Now()
		c.change(func(r *Replica, w Waiter) { r.ReplaceVoter(fresh, l.replica().ID(), 1, ProposeOptions{}, w) })
		c.eventually("another leads", func() bool { o := c.leads(); return o != nil && o != l })
		if took := time.Since(start); took > 600*time.Millisecond {
			t.Fatalf("after %v", took)
		}
		c.put("more", "1")
	})
}

// Rule 14: a checkpoint from before a membership change is not offered.
func TestRule14SnapshotHoldsTheNewcomer(t *testing.T) {
	inCluster(t, 4, smallSteps, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 45)
		l := c.leader()
		c.eventually("trimmed", func() bool { return l.replica().Status().FirstIndex > 10 })
		before := l.replica().Status().SnapshotIndex
		fresh := Member{Replica: 99, Node: 4, Store: storeOf(4, 0)}
		must(t, c.nodes[4].host.Create([]Spec{specFor(fresh, nil)}))
		c.nodes[4].host.Start(testGroup)
		c.change(func(l *Replica, w Waiter) { l.AddLearner(fresh, 1, ProposeOptions{}, w) })
		c.eventually("the learner has it all", func() bool { return c.nodes[4].sm().Len() == 45 })
		st := c.nodes[4].replica().Status()
		if st.SnapshotIndex <= before || st.SnapshotsInstalled != 1 {
			t.Fatalf("installed %d snapshots, at %d; the one from before the change was at %d", st.SnapshotsInstalled, st.SnapshotIndex, before)
		}
	})
}

// Rule 25: a new leader takes nothing before it has applied its own term's entry.
func TestRule25LeaderServesAfterOwnEntry(t *testing.T) {
	var gate chan struct{} // made in the bubble, so that its clock runs while Apply waits
	inCluster(t, 1, func(c *cluster) {
		gate = make(chan struct{})
		c.open = func(fs vfs.FS, dir string, blob []byte, files []CaptureFile) (StateMachine, error) {
			sm, err := OpenMemory(fs, dir, blob, files)
			return &gated{StateMachine: sm, gate: gate}, err
		}
	}, func(c *cluster) {
		c.create(1)
		c.leader()
		w := make(waiter, 1)
		c.nodes[1].replica().Propose([]byte("a=1"), ProposeOptions{}, w)
		time.Sleep(time.Second)
		// The entry is committed and apply is stuck in it: a restart elects at
		// once, but its own entry lies behind this one.
		disk := c.nodes[1].fs
		nd := c.nodes[1]
		snap := disk.CrashClone(vfs.CrashCloneCfg{})
		close(gate)
		<-w
		nd.kill(0)
		gate = make(chan struct{})
		nd = c.boot(1, storeOf(1, 0), snap)
		c.eventually("raft leads", func() bool { return nd.replica().Status().Role == RoleLeader })
		if nd.replica().IsLeader() {
			close(gate) // else the cleanup waits for ever
			t.Fatal("serves before its own entry is applied")
		}
		isErr(t, nd.propose("b=1", ProposeOptions{}).err, ErrNotLeader)
		close(gate)
		c.leader()
	})
}

// gated is a state machine whose Apply waits.
type gated struct {
	StateMachine
	gate chan struct{}
}

func (g *gated) Apply(es []Entry) ([]Result, error) {
	<-g.gate
	return g.StateMachine.Apply(es)
}

// Rule 27: three of three, while one is away.
func TestRule27MinReplicas(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 2)
		l := c.leader()
		all := ProposeOptions{MinReplicas: 3, Deadline: time.Now().Add(2 * time.Second)}
		if got := l.propose("a=1", all); got.err != nil {
			t.Fatal(got.err)
		}
		f := c.follower()
		c.net.Isolate(f.id)
		c.eventually("known as away", func() bool { return l.replica().Alive() == 2 })
		start := time.Now()
		isErr(t, l.propose("b=1", ProposeOptions{MinReplicas: 3, Deadline: start.Add(time.Second)}).err, ErrNotEnoughReplicasAfterAppend)
		if took := time.Since(start); took < time.Second || took > 1300*time.Millisecond {
			t.Fatalf("answered after %v", took)
		}
		if l.sm().Get("b") != "1" {
			t.Fatal("not applied")
		}
		w := make(waiter, 1)
		l.replica().Propose([]byte("d=1"), ProposeOptions{MinReplicas: 3, Deadline: time.Now().Add(10 * time.Second)}, w)
		time.Sleep(time.Second)
		c.net.HealAll()
		if got := <-w; got.err != nil {
			t.Fatal(got.err)
		}
	})
}

// A deadline ends a wait for a commit too.
func TestProposeDeadline(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		l := c.leader()
		c.net.Isolate(l.id)
		isErr(t, l.propose("a=1", ProposeOptions{Deadline: time.Now().Add(300 * time.Millisecond)}).err, ErrTimeout)
	})
}

// Rule 28: a follower whose node is away holds no log.
func TestRule28DeadFollowerHoldsNothing(t *testing.T) {
	inCluster(t, 3, smallSteps, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 10)
		f := c.follower()
		f.kill(0)
		c.fill("k", 10, 60)
		c.trimmedLeader(40)
	})
}

// Rule 28: one that is connected and behind holds the log, so that it needs no
// snapshot; when it goes away it lets go.
func TestRule28AliveFollowerHoldsTheLog(t *testing.T) {
	inCluster(t, 3, smallSteps, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 10)
		l, f := c.leader(), c.follower()
		f.setFilter(func(_ transport.PeerInfo, it item) bool {
			return it.kind == itemMessage && it.msg.GetType() == pb.MsgApp
		})
		c.fill("k", 10, 60)
		l.replica().TakeCheckpoint(nil)
		c.eventually("checkpoint", func() bool { return l.replica().Status().SnapshotIndex > 50 })
		time.Sleep(3 * time.Second)
		if st := l.replica().Status(); st.FirstIndex > 20 {
			t.Fatalf("log begins at %d although a live follower needs index 13", st.FirstIndex)
		}
		c.net.Isolate(f.id)
		c.eventually("let go", func() bool { return l.replica().Status().FirstIndex > 40 })
	})
}

// Rule 31: a full disk pauses apply and ends with the space.
func TestRule31NoSpacePauses(t *testing.T) {
	full := &fullDisk{}
	inCluster(t, 1, func(c *cluster) {
		c.open = func(fs vfs.FS, dir string, blob []byte, files []CaptureFile) (StateMachine, error) {
			sm, err := OpenMemory(fs, dir, blob, files)
			full.StateMachine = sm
			return full, err
		}
	}, func(c *cluster) {
		c.create(1)
		c.leader()
		full.full.Store(true)
		w := make(waiter, 1)
		c.nodes[1].replica().Propose([]byte("a=1"), ProposeOptions{}, w)
		time.Sleep(10 * time.Second)
		if st := c.nodes[1].replica().Status(); st.State != StateRunning || len(w) != 0 {
			t.Fatalf("state %v, told %d", st.State, len(w))
		}
		full.full.Store(false)
		c.nodes[1].host.SpaceAvailable()
		if got := <-w; got.err != nil || full.calls.Load() < 5 {
			t.Fatalf("error %v after %d tries", got.err, full.calls.Load())
		}
		full.full.Store(true)
		w2 := make(waiter, 1)
		c.nodes[1].replica().Propose([]byte("b=1"), ProposeOptions{}, w2)
		time.Sleep(time.Second)
		c.nodes[1].stop(context.Background())
		isErr(t, (<-w2).err, ErrStopped)
	})
}

// fullForSome finds no space for runs with entries that begin with "take".
type fullForSome struct {
	StateMachine
	full    atomic.Bool
	refused atomic.Int64 // entries of the longest run that found no space
}

func (f *fullForSome) Apply(es []Entry) ([]Result, error) {
	takes := func(e Entry) bool { return bytes.HasPrefix(e.Data, []byte("take")) }
	if f.full.Load() && slices.ContainsFunc(es, takes) {
		f.refused.Store(max(f.refused.Load(), int64(len(es))))
		return nil, fmt.Errorf("write: %w", syscall.ENOSPC)
	}
	return f.StateMachine.Apply(es)
}

// TestRule31WhatFreesRoomIsApplied: an entry that needs no room is applied, and answered once, also if one that finds none
// came with it; and a checkpoint is taken, without which no file goes.
func TestRule31WhatFreesRoomIsApplied(t *testing.T) {
	sm := &fullForSome{}
	inCluster(t, 1, func(c *cluster) {
		c.open = func(fs vfs.FS, dir string, blob []byte, files []CaptureFile) (StateMachine, error) {
			var err error
			sm.StateMachine, err = OpenMemory(fs, dir, blob, files)
			return sm, err
		}
	}, func(c *cluster) {
		c.create(1)
		nd := c.leader()
		sm.full.Store(true)
		var ws []waiter
		for _, data := range []string{"free=1", "take=1", "free=2"} {
			ws = append(ws, make(waiter, 1))
			nd.replica().Propose([]byte(data), ProposeOptions{}, ws[len(ws)-1])
		}
		time.Sleep(5 * time.Second)
		if n := sm.refused.Load(); n < 2 {
			c.t.Fatalf("the longest run without space was of %d: this proves nothing", n)
		}
		if len(ws[0]) != 1 || len(ws[1]) != 0 || len(ws[2]) != 0 {
			c.t.Fatalf("told: %d, %d, %d", len(ws[0]), len(ws[1]), len(ws[2]))
		}
		first := <-ws[0]
		must(c.t, first.err)
		ck, err := snapshot.ReadHeader(nd.fs, snapshot.GenDir(nd.replica().base, firstGeneration))
		if err != nil || ck.Point.Index != first.index {
			c.t.Errorf("checkpoint at %d, %v; applied is %d", ck.Point.Index, err, first.index)
		}
		sm.full.Store(false)
		nd.host.SpaceAvailable()
		for k, w := range ws[1:] {
			if got := <-w; got.err != nil || got.index != first.index+ident.Index(k+1) {
				c.t.Errorf("entry %d: index %d, %v", k+1, got.index, got.err)
			}
		}
		time.Sleep(time.Second)
		if nd.replica().StateMachine().(*fullForSome).StateMachine.(*MemoryStateMachine).Get("free") != "2" || len(ws[0]) != 0 {
			c.t.Errorf("told again: %d", len(ws[0]))
		}
	})
}

// tardyCaptures' checkpoints take a second; the first fails of them find no space.
type tardyCaptures struct {
	*fullForSome
	fails int
}

func (s *tardyCaptures) Capture() (Capture, error) {
	c, err := s.fullForSome.Capture()
	s.fails--
	return tardyCapture{c, s.fails >= 0}, err
}

type tardyCapture struct {
	Capture
	fails bool
}

func (c tardyCapture) WriteTo(w io.Writer) (int64, error) {
	time.Sleep(time.Second)
	if c.fails {
		return 0, syscall.ENOSPC
	}
	return c.Capture.WriteTo(w)
}

// TestRule31CheckpointsGoOn: the checkpoint that lets go of dropped files is taken while apply waits for space, also if
// one was being written when the space ran out, or one finds no space itself.
func TestRule31CheckpointsGoOn(t *testing.T) {
	for what, sm := range map[string]*tardyCaptures{
		"beside one that is being written": {&fullForSome{}, 0},
		"after one that failed":            {&fullForSome{}, 1},
	} {
		t.Run(what, func(t *testing.T) {
			inCluster(t, 1, func(c *cluster) {
				c.open = func(fs vfs.FS, dir string, blob []byte, files []CaptureFile) (StateMachine, error) {
					var err error
					sm.StateMachine, err = OpenMemory(fs, dir, blob, files)
					return sm, err
				}
			}, func(c *cluster) {
				c.create(1)
				nd := c.leader()
				must(t, nd.propose("free=0", ProposeOptions{}).err)
				if sm.fails == 0 {
					nd.replica().TakeCheckpoint(nil)
					time.Sleep(100 * time.Millisecond)
				}
				sm.full.Store(true)
				free, take := make(waiter, 1), make(waiter, 1)
				nd.replica().Propose([]byte("free=1"), ProposeOptions{}, free)
				nd.replica().Propose([]byte("take=1"), ProposeOptions{}, take)
				first := <-free
				must(t, first.err)
				c.within(20*time.Second, "a checkpoint of what frees room, and the log trimmed", func() bool {
					return nd.replica().Status().SnapshotIndex == first.index
				})
				sm.full.Store(false)
				must(t, (<-take).err)
			})
		})
	}
}

// TestRule31FailedSyncHalts: a sync that finds the disk full has failed, once and for all. The replica does not go on as if a
// later checkpoint could succeed.
func TestRule31FailedSyncHalts(t *testing.T) {
	var bad atomic.Pointer[vfs.FS]
	inCluster(t, 3, func(c *cluster) {
		c.open = func(fs vfs.FS, dir string, blob []byte, files []CaptureFile) (StateMachine, error) {
			sm, err := OpenMemory(fs, dir, blob, files)
			return brittle{StateMachine: sm, fs: fs, bad: &bad, sync: true, err: syscall.ENOSPC, closed: new(atomic.Bool), t: t}, err
		}
	}, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 10)
		hurt := c.leader()
		fs := vfs.FS(hurt.fs)
		bad.Store(&fs)
		hurt.replica().TakeCheckpoint(nil)
		c.eventually("it is halted", func() bool { return hurt.replica().Status().State == StateHalted })
		c.eventually("another leads", func() bool { l := c.leads(); return l != nil && l != hurt })
	})
}

// TestRule31CrowdedNodeTakesNothing: a node without room takes no entries, neither a leader's nor its own, and goes on
// voting; to the group it lags. With room it catches up. When all are crowded leaders still come and go, for reads.
func TestRule31CrowdedNodeTakesNothing(t *testing.T) {
	const all = -1
	value := strings.Repeat("v", 2*smallEntry)
	var crowded atomic.Int32 // the node
	inCluster(t, 3, func(c *cluster) {
		c.tune = func(o *Options) {
			node := int32(o.Node)
			o.Crowded = func(s Spec, _ bool) bool {
				at := crowded.Load()
				return s.Group == testGroup && (at == node || at == all)
			}
		}
	}, func(c *cluster) {
		c.create(3)
		c.fill("a", 0, 10)
		c.converge(10)
		f := c.follower()
		crowded.Store(int32(f.id))
		last := f.replica().Status().LastIndex
		for i := range 10 {
			c.put(fmt.Sprintf("b%d", i), value)
		}
		time.Sleep(10 * time.Second)
		if st := f.replica().Status(); st.LastIndex != last || st.State != StateRunning || st.LeaderNode == 0 {
			t.Fatalf("it took entries or left: %+v", st)
		}
		crowded.Store(0)
		c.converge(20)
		crowded.Store(all)
		for range 2 {
			l := c.leader()
			isErr(t, l.propose("c=1", ProposeOptions{}).err, ErrBusy)
			l.replica().TransferLeadership(0)
			c.eventually("another serves", func() bool { n := c.leads(); return n != nil && n != l })
		}
		crowded.Store(0)
		c.fill("c", 0, 1)
		c.converge(21)
	})
}

type fullDisk struct {
	StateMachine
	full  atomic.Bool
	calls atomic.Int64
}

func (f *fullDisk) Apply(es []Entry) ([]Result, error) {
	f.calls.Add(1)
	if f.full.Load() {
		return nil, fmt.Errorf("write: %w", syscall.ENOSPC)
	}
	return f.StateMachine.Apply(es)
}

// An error of one group's own files ends that replica's state alone.
func TestApplyErrorHalts(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		l := c.leader()
		got := l.propose("no equal sign", ProposeOptions{})
		isErr(t, got.err, ErrQuarantined)
		id := l.replica().ID()
		synctest.Wait() // the waiter is told first
		if err := l.ev.quarantine(id); err == nil {
			t.Fatal("no event")
		}
		st := l.replica().Status()
		if st.State != StateHalted || st.Serving || st.Reason == "" || l.ev.replace[id] == "" {
			t.Fatalf("status %+v", st)
		}
		isErr(t, l.propose("a=1", ProposeOptions{}).err, ErrNotLeader)
		read := make(chan error, 1)
		l.replica().ReadIndex(time.Time{}, func(_ ident.Index, err error) { read <- err })
		isErr(t, <-read, ErrQuarantined)
		synctest.Wait()
		l.replica().failLog(errors.New("its log as well"))
		c.eventually("it takes no part any more", func() bool { return l.replica().Status().State == StateQuarantined })
		isErr(t, l.propose("a=1", ProposeOptions{}).err, ErrQuarantined)
	})
}

// Handing over on stop: the others need no election timeout.
func TestStopHandsLeadershipOver(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		l := c.leader()
		start := time.Now()
		l.stop(context.Background())
		c.leader()
		if took := time.Since(start); took > 500*time.Millisecond {
			t.Fatalf("a new leader after %v", took)
		}
	})
}

func TestReadIndex(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		got := c.put("a", "1")
		l, f := c.leader(), c.follower()
		read := func(nd *node, d time.Duration) (ident.Index, error) {
			type answer struct {
				i   ident.Index
				err error
			}
			ch := make(chan answer, 1)
			nd.replica().ReadIndex(time.Now().Add(d), func(i ident.Index, err error) { ch <- answer{i, err} })
			a := <-ch
			return a.i, a.err
		}
		for _, nd := range []*node{l, f} {
			i, err := read(nd, 5*time.Second)
			if err != nil || i < got.index {
				t.Fatalf("node %d: index %d, error %v; written was %d", nd.id, i, err, got.index)
			}
			if nd.sm().Get("a") != "1" {
				t.Fatalf("node %d has not applied what it read", nd.id)
			}
		}
		c.net.Isolate(l.id)
		_, err := read(l, 500*time.Millisecond)
		isErr(t, err, ErrTimeout)
		if _, err = read(l, 10*time.Second); err == nil {
			t.Fatal("a cut-off leader answered a read")
		}
	})
}
