package raftgroup

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
	"chronik/internal/raftlog"
	"chronik/internal/transport"
)

// arrivals counts what a node's replica of the test group gets.
type arrivals struct{ entries, commits, beats atomic.Int64 }

func (a *arrivals) watch(nd *node) {
	nd.setFilter(func(_ transport.PeerInfo, it item) bool {
		if it.msg == nil {
			return false
		}
		switch it.msg.GetType() { //nolint:exhaustive // the others are not counted
		case pb.MsgApp:
			if len(it.msg.GetEntries()) > 0 {
				a.entries.Add(1)
			} else {
				a.commits.Add(1)
			}
		case pb.MsgHeartbeat:
			a.beats.Add(1)
		}
		return false
	})
}

// While entries follow each other, a follower gets them and nothing else, and afterwards it hears
// soon what is committed.
func TestBusyGroupSendsEntriesAlone(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		f := c.follower()
		time.Sleep(2 * time.Second) // the first entry of the reign is told at once
		var got arrivals
		c.put("wake", "up")
		got.watch(f)
		for i := range 100 {
			c.put(fmt.Sprint("m", i), "v")
			time.Sleep(10 * time.Millisecond)
		}
		if e, n, b := got.entries.Load(), got.commits.Load(), got.beats.Load(); e < 100 || n > 3 || b > 2 {
			t.Errorf("%d appends with entries, %d without, %d heartbeats", e, n, b)
		}
		time.Sleep((beatAfter + 2) * 100 * time.Millisecond)
		st, l := f.replica().Status(), c.leader().replica().Status()
		if st.CommitIndex != l.LastIndex || st.AppliedIndex != l.LastIndex {
			t.Errorf("commit %d, applied %d, the leader's last is %d", st.CommitIndex, st.AppliedIndex, l.LastIndex)
		}
	})
}

// An append that is lost without a word is found out, though nothing follows it.
func TestLostAppendIsFoundOut(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		f := c.follower()
		for round := range 5 {
			var lost atomic.Bool
			f.setFilter(func(_ transport.PeerInfo, it item) bool {
				return it.msg != nil && len(it.msg.GetEntries()) > 0 && lost.CompareAndSwap(false, true)
			})
			// With an entry before or behind it, and alone.
			for i := range round%3 + 1 {
				c.put(fmt.Sprintf("r%d-%d", round, i), "v")
			}
			start := time.Now()
			c.eventually("the follower has it", func() bool {
				return lost.Load() && f.replica().Status().AppliedIndex == c.leader().replica().Status().LastIndex
			})
			if took := time.Since(start); took > time.Second {
				t.Errorf("round %d: after %v", round, took)
			}
		}
	})
}

// What somebody waits for does not wait for a tick: a write for all replicas, and a read of a follower, which
// lets what it applies wait.
func TestNobodyWaitsForATick(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		l, f := c.leader(), c.follower()
		var writes, reads time.Duration
		const n = 20
		for i := range n {
			start := time.Now()
			must(t, l.propose(fmt.Sprintf("w%d=1", i), ProposeOptions{MinReplicas: 3, Deadline: start.Add(5 * time.Second)}).err)
			writes += time.Since(start)
			start = time.Now()
			done := make(chan error, 1)
			f.replica().ReadIndex(time.Time{}, func(_ ident.Index, err error) { done <- err })
			must(t, <-done)
			reads += time.Since(start)
			if f.sm().Get(fmt.Sprintf("w%d", i)) != "1" {
				t.Fatalf("read %d came before it was applied", i)
			}
		}
		if writes > n*20*time.Millisecond || reads > n*20*time.Millisecond {
			t.Errorf("%d writes took %v, %d reads %v", n, writes, n, reads)
		}
	})
}

// Nodes wait for the metadata: its followers hear of a commit, and apply it, at once.
func TestMetadataIsAppliedAtOnce(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		ms := members(3)
		for _, m := range ms {
			s := specFor(m, ms)
			s.Priority = true
			must(t, c.nodes[m.Node].host.Create([]Spec{s}))
			c.nodes[m.Node].host.Start(testGroup)
		}
		c.fill("k", 0, 5)
		f := c.follower()
		for i := range 20 {
			key := fmt.Sprint("m", i)
			c.put(key, "v")
			time.Sleep(20 * time.Millisecond)
			if f.sm().Get(key) != "v" {
				t.Fatalf("%s is not applied on node %d", key, f.id)
			}
		}
	})
}

// A follower that has much to catch up with gets it at the speed of its disk, though every acknowledgement is of
// what is committed already.
func TestCatchingUpDoesNotWaitForTicks(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		c.tune = func(o *Options) { o.MaxInflightBytes, o.Policy.HoldBytes = maxSizePerMsg, 64<<20 }
	}, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		f := c.follower()
		f.setFilter(func(transport.PeerInfo, item) bool { return true })
		for i := range 36 {
			c.put(fmt.Sprint("big", i), strings.Repeat("x", 100<<10))
		}
		f.setFilter(nil)
		last := c.leader().replica().Status().LastIndex
		c.eventually("it hears of it", func() bool { return f.replica().Status().LastIndex > last-34 })
		start := time.Now()
		c.eventually("it has caught up", func() bool { return f.replica().Status().LastIndex >= last })
		if took := time.Since(start); took > 50*time.Millisecond { // three windows, a tick is 100 ms
			t.Errorf("after %v", took)
		}
	})
}

// A group under pressure whose checkpoint lies beyond the file that is to become free takes none: it gives
// up what it keeps there behind the checkpoint, and no more.
func TestPressureWithinTheCheckpointTrimsOnly(t *testing.T) {
	inCluster(t, 1, func(c *cluster) {
		c.tune = func(o *Options) { o.Policy = Policy{ThresholdEntries: 40, KeepEntries: 30} }
	}, func(c *cluster) {
		c.create(1)
		c.fill("k", 0, 50)
		nd := c.nodes[1]
		c.eventually("checkpoint", func() bool { return nd.replica().Status().SnapshotIndex >= 40 })
		time.Sleep(2 * time.Second)
		was := nd.replica().Status()
		up := was.FirstIndex + 5
		nd.host.onPressure([]raftlog.Holder{{Replica: nd.replica().ID(), UpTo: up}}, false)
		time.Sleep(time.Second)
		if st := nd.replica().Status(); st.SnapshotIndex != was.SnapshotIndex || st.FirstIndex != up+1 {
			t.Fatalf("snapshot %d, then %d; first index %d, then %d, wanted %d", was.SnapshotIndex, st.SnapshotIndex, was.FirstIndex, st.FirstIndex, up+1)
		}
	})
}

// Small checkpoints share what one large one takes.
func TestBackgroundShares(t *testing.T) {
	b := newBackground(8)
	var now, most atomic.Int64
	step := make(chan struct{})
	job := func(units int64) func() {
		return func() {
			n := now.Add(units)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-step
			now.Add(-units)
		}
	}
	for range 4 {
		b.run(8, job(8))
		for range 8 {
			b.run(1, job(1))
		}
	}
	for range 36 {
		step <- struct{}{}
	}
	b.close()
	if most.Load() != 8 {
		t.Errorf("%d units were in use at once, of 8", most.Load())
	}
}
