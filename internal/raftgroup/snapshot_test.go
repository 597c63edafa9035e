package raftgroup

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
	"chronik/internal/raftlog"
	"chronik/internal/snapshot"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// The panic of snapshots.md: a node loses its disk and comes back under the same
// raft id, the same leader still remembers what it had. It must end in
// quarantine and a wish for replacement, not in a panic, and the others go on.
func TestReusedIDIsQuarantined(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 31)
		f := c.follower()
		id, r := f.id, f.replica().ID()
		l := c.leader()
		f.kill(0)
		nd := c.boot(id, storeOf(id, 0), vfs.NewCrashableMem())
		ms := members(3)
		must(t, nd.host.Create([]Spec{specFor(ms[id-1], ms)}))
		nd.host.Start(testGroup)
		c.eventually("quarantine", func() bool { return nd.ev.quarantine(r) != nil })
		if !errors.Is(nd.ev.quarantine(r), ErrCorrupt) || nd.ev.replace[r] == "" {
			t.Fatalf("event %v, replacement %q", nd.ev.quarantine(r), nd.ev.replace[r])
		}
		if c.leads() != l {
			t.Fatal("the leader changed")
		}
		if st := nd.replica().Status(); st.State != StateQuarantined || st.Role != RoleFollower {
			t.Fatalf("status %+v", st)
		}
		c.put("more", "1")
		// A quarantined replica never votes, after a restart neither.
		nd = c.boot(id, storeOf(id, 0), nd.kill(0))
		if st := nd.replica().Status(); st.State != StateQuarantined {
			t.Fatalf("status after a restart %+v", st)
		}
		for _, o := range c.nodes {
			if o.id != id && o != l {
				o.kill(0)
			}
		}
		time.Sleep(5 * time.Second)
		if c.leads() != nil {
			t.Fatal("somebody leads with the vote of a quarantined replica")
		}
	})
}

// stuckCluster runs a test with a follower whose apply can be made to wait.
func stuckCluster(t *testing.T, n int, test func(c *cluster, stick func(*node), release func())) {
	var stuck atomic.Int32
	var gate chan struct{}
	inCluster(t, n, func(c *cluster) {
		smallSteps(c)
		gate = make(chan struct{})
		c.open = func(fs vfs.FS, dir string, blob []byte, files []CaptureFile) (StateMachine, error) {
			var at int32
			for id, nd := range c.nodes {
				if nd.fs == fs {
					at = int32(id)
				}
			}
			sm, err := OpenMemory(fs, dir, blob, files)
			return &stallable{MemoryStateMachine: sm.(*MemoryStateMachine), stall: func() {
				if stuck.Load() == at {
					<-gate
				}
			}}, err
		}
	}, func(c *cluster) {
		test(c, func(nd *node) { stuck.Store(int32(nd.id)) }, func() { close(gate) })
	})
}

type stallable struct {
	*MemoryStateMachine
	stall func()
}

func (s *stallable) Apply(es []Entry) ([]Result, error) {
	s.stall()
	return s.MemoryStateMachine.Apply(es)
}

func (nd *node) installing(c *cluster) {
	c.t.Helper()
	c.eventually("installing", func() bool { return strings.Contains(c.logText.String(), "Installing snapshot for orders-0") })
	time.Sleep(time.Second)
}

// Rule 10: a snapshot arrives while apply is stuck in older entries, so many
// that raft hands out no more. They are dropped, their responses are not: else
// raft would count them as being applied for ever and hand out nothing again.
func TestRule10DroppedAppliesAnswer(t *testing.T) {
	stuckCluster(t, 3, func(c *cluster, stick func(*node), release func()) {
		c.create(3)
		c.fill("k", 0, 5)
		f := c.follower()
		stick(f)
		big := strings.Repeat("x", maxCommittedReady/3)
		for i := 5; i < 8; i++ {
			c.put(fmt.Sprintf("k%d", i), big)
		}
		time.Sleep(time.Second)
		c.net.Isolate(f.id)
		c.fill("k", 8, 80)
		c.trimmedLeader(60)
		c.net.HealAll()
		f.installing(c)
		release()
		c.fill("k", 80, 85)
		c.eventually("all applied", func() bool {
			return f.replica().StateMachine().(*stallable).Len() == 85 && f.replica().Status().State == StateRunning
		})
	})
}

// Rule 10: a membership change that waited in apply is contained in the
// snapshot that came meanwhile; given to raft now it would undo a later one.
func TestRule10DroppedMembershipChange(t *testing.T) {
	stuckCluster(t, 4, func(c *cluster, stick func(*node), release func()) {
		c.create(3)
		c.fill("k", 0, 5)
		fresh := Member{Replica: 99, Node: 4, Store: storeOf(4, 0)}
		must(t, c.nodes[4].host.Create([]Spec{specFor(fresh, nil)}))
		c.nodes[4].host.Start(testGroup)
		f := c.nodes[c.leader().id%3+1]
		stick(f)
		c.fill("k", 5, 6)
		c.change(func(l *Replica, w Waiter) { l.AddLearner(fresh, 1, ProposeOptions{}, w) })
		time.Sleep(time.Second)
		c.net.Isolate(f.id)
		c.change(func(l *Replica, w Waiter) {
			l.ProposeConfChange(ConfChange{Generation: 2, AddVoter: []Member{fresh}}, ProposeOptions{}, w)
		})
		c.fill("k", 6, 80)
		c.trimmedLeader(60)
		before := c.logText.String()
		c.net.HealAll()
		c.eventually("the stuck one installs", func() bool {
			return strings.Contains(c.logText.String()[len(before):], "Installing snapshot for orders-0")
		})
		time.Sleep(time.Second)
		release()
		c.eventually("the newcomer is a voter everywhere", func() bool {
			for _, nd := range c.nodes {
				m := nd.replica().Status().Members
				if len(m) != 4 || m[3].Replica != 99 || m[3].Learner || nd.replica().Status().State != StateRunning {
					return false
				}
			}
			return true
		})
		var voters []uint64
		done := make(chan struct{})
		f.replica().postLocal(localEvent{fn: func(*outbox) {
			voters = f.replica().rs.rn.Status().Config.Voters[0].Slice()
			close(done)
		}})
		<-done
		if len(voters) != 4 {
			t.Fatalf("raft's voters at the follower: %v", voters)
		}
	})
}

// trimmedLeader waits until the leader's log begins after an index.
func (c *cluster) trimmedLeader(after ident.Index) *node {
	c.t.Helper()
	l := c.leader()
	l.replica().TakeCheckpoint(nil)
	c.eventually("log trimmed", func() bool { return l.replica().Status().FirstIndex > after })
	return l
}

// Rule 10: nothing is trimmed that raft does not know as applied.
func TestRule10TrimStopsAtApplied(t *testing.T) {
	inCluster(t, 1, nil, func(c *cluster) {
		c.create(1)
		c.fill("k", 0, 30)
		nd := c.nodes[1]
		r := nd.replica()
		done := make(chan struct{})
		r.postLocal(localEvent{fn: func(*outbox) {
			defer close(done)
			// A checkpoint ahead of what raft was told: only a bug makes one.
			r.rs.ckpt = &checkpoint{index: r.rs.last + 5, term: r.rs.hs.Term, mem: r.rs.mem, gen: r.rs.gen}
			r.h.opt.Policy.KeepEntries = 0
			r.trim()
			if applied := ident.Index(r.rs.rn.BasicStatus().Applied); r.rs.st.first != applied+1 {
				t.Errorf("first index %d, applied %d", r.rs.st.first, applied)
			}
		}})
		<-done
		c.put("more", "1")
	})
}

// Rule 13: a checkpoint that was running when a snapshot was installed, or is
// not above the current one, is not published.
func TestRule13StaleCheckpointIsNotPublished(t *testing.T) {
	inCluster(t, 1, nil, func(c *cluster) {
		c.create(1)
		c.fill("k", 0, 10)
		r := c.nodes[1].replica()
		taken := make(chan ident.Index, 1)
		r.TakeCheckpoint(func(i ident.Index, err error) { must(t, err); taken <- i })
		at := <-taken
		done := make(chan struct{})
		r.postLocal(localEvent{fn: func(*outbox) {
			defer close(done)
			r.published(&checkpoint{index: at - 3, mem: r.rs.mem, gen: r.rs.gen})
			r.published(&checkpoint{index: at + 3, mem: r.rs.mem, gen: r.rs.gen + 1})
		}})
		<-done
		if got := r.Status().SnapshotIndex; got != at {
			t.Fatalf("snapshot index %d, want %d", got, at)
		}
	})
}

// Rule 15: an offer to one whose log the leader can still reach is answered by
// an acknowledgement, and no transfer happens.
func TestRule15NoTransferWithinReach(t *testing.T) {
	inCluster(t, 3, smallSteps, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 50)
		l, f := c.leader(), c.follower()
		c.converge(50)
		time.Sleep(2 * time.Second)
		r := l.replica()
		acks := 0
		l.setFilter(func(_ transport.PeerInfo, it item) bool {
			if it.kind == itemMessage && it.from == f.replica().ID() && it.msg.GetType() == pb.MsgAppResp {
				acks++
			}
			return false
		})
		to := uint64(f.replica().ID())
		r.postLocal(localEvent{fn: func(*outbox) {
			r.offerSnapshot(&pb.Message{To: &to, Snapshot: r.rs.ckpt.raftSnapshot()})
		}})
		time.Sleep(3 * time.Second)
		if st := f.rcv.Stats(); st.Completed+st.Failed != 0 || st.BytesReceived != 0 {
			t.Fatalf("a transfer happened: %+v", st)
		}
		if acks == 0 {
			t.Fatal("no acknowledgement")
		}
		c.eventually("pin ended", func() bool { return l.srv.Stats().Pins == 0 })
	})
}

// Rule 16: the leader changes while a snapshot is on its way.
func TestRule16LeaderChangesInTransfer(t *testing.T) {
	inCluster(t, 3, smallSteps, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 20)
		f := c.follower()
		id, store := f.id, f.store
		disk := f.kill(0)
		c.fill("k", 20, 90)
		l := c.trimmedLeader(80)
		c.net.SetDelay(100*time.Millisecond, 150*time.Millisecond)
		back := c.boot(id, store, disk)
		c.eventually("receiving", func() bool { return back.replica().Status().State == StateReceiving })
		for _, o := range c.nodes {
			if o != l && o != back {
				l.replica().TransferLeadership(o.replica().ID())
			}
		}
		c.eventually("another leader", func() bool { o := c.leads(); return o != nil && o != l })
		c.converge(90)
		c.eventually("running", func() bool { return back.replica().Status().State == StateRunning })
		c.put("k0", "w")
	})
}

// The transfer's source dies: the other leader serves it.
func TestSourceDiesInTransfer(t *testing.T) {
	inCluster(t, 3, smallSteps, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 20)
		f := c.follower()
		id, store := f.id, f.store
		disk := f.kill(0)
		c.fill("k", 20, 90)
		l := c.trimmedLeader(80)
		c.net.SetDelay(50*time.Millisecond, 80*time.Millisecond)
		back := c.boot(id, store, disk)
		c.eventually("receiving", func() bool { return back.replica().Status().State == StateReceiving })
		ldisk := l.kill(0)
		// With the newcomer behind, only the third can lead, and needs its vote.
		c.converge(90)
		c.put("k0", "w")
		c.boot(l.id, l.store, ldisk)
		c.converge(90)
	})
}

// Rule 17: raft wants nothing at or below its commit index; the staging goes.
func TestRule17ObsoleteSnapshotIsDiscarded(t *testing.T) {
	inCluster(t, 3, smallSteps, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 50)
		c.converge(50)
		f := c.follower()
		r := f.replica()
		dir := snapshot.GenDir(r.base, 2)
		must(t, f.fs.MkdirAll(dir, 0o755))
		done := make(chan struct{})
		r.postLocal(localEvent{fn: func(o *outbox) {
			defer close(done)
			r.rs.recv.staged = &install{index: r.rs.hs.Commit - 1, term: r.rs.hs.Term, gen: 2, mem: r.rs.mem, dir: dir}
			r.retryStaged(o)
			if r.rs.recv.staged != nil || r.rs.recv.installing {
				t.Error("the snapshot was taken")
			}
		}})
		<-done
		c.eventually("staging removed", func() bool { _, err := f.fs.Stat(dir); return err != nil })
		c.put("k0", "w")
	})
}

// A transfer that an end of the process, or an error, cut short leaves a staging. Who catches up by
// the log needs it no more: it goes before the group rests.
func TestLeftStagingIsRemoved(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		f := c.follower()
		dir := snapshot.StagingDir(f.replica().base, 2)
		id, store := f.id, f.store
		disk := f.kill(100)
		must(t, disk.MkdirAll(dir, 0o755))
		c.fill("k", 5, 10)
		f = c.boot(id, store, disk)
		gone := func() bool { _, err := f.fs.Stat(dir); return errors.Is(err, os.ErrNotExist) }
		c.resting()
		if !gone() {
			t.Error("left of an earlier process")
		}
		r := f.replica()
		must(t, f.fs.MkdirAll(dir, 0o755))
		last := r.Status().LastIndex
		r.postLocal(localEvent{fn: func(o *outbox) {
			r.rs.recv.busy, r.rs.recv.current = true, &offerMsg{offer: snapshot.Offer{Index: last + 2}}
			r.fetched(o, nil, errors.New("cut short"))
		}})
		<-time.After(10 * time.Second)
		if gone() {
			t.Error("the next offer would have gone on from it")
		}
		c.fill("k", 10, 12)
		c.eventually("left of a transfer that failed", gone)
		c.resting()
	})
}

// Rule 19: what contradicts a binding is dropped, a stranger is heard.
func TestRule19ContradictionsAreDropped(t *testing.T) {
	inCluster(t, 1, nil, func(c *cluster) {
		c.create(1)
		c.leader()
		r := c.nodes[1].replica()
		done := make(chan struct{})
		r.postLocal(localEvent{fn: func(*outbox) {
			defer close(done)
			a, b := &frameSource{node: 2, store: storeOf(2, 0)}, &frameSource{node: 3, store: storeOf(3, 0)}
			if !r.admit(&item{from: 50, src: a}) || r.nodeOf(50) != 2 {
				t.Error("a stranger was not admitted and bound")
			}
			if r.admit(&item{from: 50, src: b}) {
				t.Error("a replica id from another store was admitted")
			}
			// Its node with an emptied disk is another store, and so another replica.
			if r.admit(&item{from: 50, src: &frameSource{node: 2, store: storeOf(2, 1)}}) {
				t.Error("a replica id from its node's next store was admitted")
			}
			if r.admit(&item{from: 11, src: b}) {
				t.Error("a member's id from another store was admitted")
			}
		}})
		<-done
		// A frame that says another sender than the connection's Hello.
		var f frameBuilder
		f.begin(frameSource{node: 2, store: storeOf(2, 0)})
		from, to, term := uint64(50), uint64(11), uint64(1000)
		f.message(testGroup, &pb.Message{Type: pb.MsgHeartbeat.Enum(), From: &from, To: &to, Term: &term})
		must(t, c.nodes[1].host.HandleFrame(transport.PeerInfo{Node: 3, Store: storeOf(3, 0)}, join(f.take())))
		time.Sleep(time.Second)
		if got := r.Status().Term; got >= 1000 {
			t.Fatalf("term %d: a contradictory frame was heard", got)
		}
		must(t, c.nodes[1].host.HandleFrame(transport.PeerInfo{Node: 2, Store: storeOf(2, 0)}, join(f.take())))
		c.eventually("the stranger is heard", func() bool { return r.Status().Term >= 1000 })
	})
}

func join(bufs [][]byte) []byte {
	var b []byte
	for _, p := range bufs {
		b = append(b, p...)
	}
	return b
}

// A held replica takes no part until it is released (rule 18).
func TestHeldReplicaTakesNoPart(t *testing.T) {
	inCluster(t, 3, func(c *cluster) { c.hold = true }, func(c *cluster) {
		c.create(3)
		c.nodes[1].host.Start(testGroup)
		time.Sleep(10 * time.Second)
		if st := c.nodes[2].replica().Status(); c.leads() != nil || st.State != StateHeld {
			t.Fatalf("leader %v, status %+v", c.leads(), st)
		}
		c.nodes[2].host.Start(testGroup)
		c.leader()
	})
}

// Unreadable files quarantine the replica at start, not the node.
func TestUnreadableCheckpointQuarantines(t *testing.T) {
	inCluster(t, 1, smallSteps, func(c *cluster) {
		c.create(1)
		c.fill("k", 0, 60)
		nd := c.nodes[1]
		r := nd.replica()
		c.eventually("trimmed", func() bool { return r.Status().FirstIndex > 10 })
		name := snapshot.GenDir(r.base, 1) + "/" + snapshot.CheckpointName
		disk := nd.kill(0)
		b, err := vfs.ReadFile(disk, name, math.MaxInt32)
		must(t, err)
		b[len(b)/2] ^= 0xFF
		must(t, vfs.WriteFileSync(disk, name, b, vfs.CategorySnapshot))
		nd = c.boot(1, storeOf(1, 0), disk)
		if st := nd.replica().Status(); st.State != StateQuarantined || nd.ev.replace[11] == "" {
			t.Fatalf("status %+v", st)
		}
		must(t, nd.host.Remove(11))
		if nd.replica() != nil || len(nd.log.Creations()) != 0 {
			t.Fatal("still there after Remove")
		}
		if _, err := disk.Stat("/data/replicas/aa-0.11"); err == nil {
			t.Fatal("directory still there after Remove")
		}
		for _, cr := range nd.log.Creations() {
			t.Fatalf("creation left: %+v", cr)
		}
	})
}

// A replica whose creation record is damaged is known as one that wants replacement, and can be removed.
func TestDamagedCreationQuarantines(t *testing.T) {
	inCluster(t, 1, nil, func(c *cluster) {
		c.create(1)
		c.fill("k", 0, 5)
		nd := c.leader()
		disk := nd.kill(100)
		damage(t, disk, "/data/raftlog", "orders-0")
		nd = c.boot(1, storeOf(1, 0), disk)
		if st := nd.replica().Status(); st.State != StateQuarantined || !strings.Contains(st.Reason, "frame checksum") || nd.ev.replace[11] == "" {
			t.Fatalf("status %+v", st)
		}
		must(t, nd.host.Remove(11))
		if cs := nd.log.Creations(); nd.replica() != nil || len(cs) != 0 {
			t.Fatalf("after its removal: %+v", cs)
		}
	})
}

// damage flips a bit of the first place in dir's files that has text.
func damage(t *testing.T, fs vfs.FS, dir, text string) {
	t.Helper()
	names, err := vfs.List(fs, dir)
	must(t, err)
	for _, name := range names {
		b, err := vfs.ReadFile(fs, path.Join(dir, name), 1<<30)
		must(t, err)
		if i := bytes.Index(b, []byte(text)); i >= 0 {
			b[i] ^= 1
			must(t, vfs.WriteFileSync(fs, path.Join(dir, name), b, vfs.CategoryNode))
			return
		}
	}
	t.Fatalf("%q is not in %s", text, dir)
}

// A replica removed while it works leaves nothing, and the others go on.
func TestRemoveRunningReplica(t *testing.T) {
	inCluster(t, 3, smallSteps, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 25)
		l := c.leader()
		id := l.replica().ID()
		must(t, l.host.Remove(id))
		if l.host.ByID(id) != nil || l.log.Replica(id) != nil {
			t.Fatal("still there")
		}
		c.put("k0", "w")
	})
}

// A group under the raftlog's pressure takes a checkpoint below its thresholds.
func TestPressureTakesCheckpoint(t *testing.T) {
	inCluster(t, 1, nil, func(c *cluster) {
		c.create(1)
		c.fill("k", 0, 5)
		nd := c.nodes[1]
		nd.host.onPressure([]raftlog.Holder{{Replica: 11, UpTo: 6}, {Replica: 12}}, false)
		c.eventually("checkpoint", func() bool { return nd.replica().Status().SnapshotIndex >= 6 })
	})
}

// A follower that takes nothing and the entries kept behind a checkpoint hold the log,
// also when the raftlog needs room, but not when it needs it urgently (rule 28).
func TestUrgentPressureKeepsNothing(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		c.tune = func(o *Options) { o.Policy = Policy{ThresholdEntries: 20, KeepEntries: 10} }
	}, func(c *cluster) {
		c.create(3)
		c.put("a", "1")
		f := c.follower()
		c.converge(1)
		f.setFilter(func(transport.PeerInfo, item) bool { return true })
		c.fill("k", 0, 60)
		r := c.leader().replica()
		press := func(urgent bool) Status {
			r.h.onPressure([]raftlog.Holder{{Replica: r.ID(), UpTo: r.Status().LastIndex}}, urgent)
			time.Sleep(time.Second)
			return r.Status()
		}
		if st := press(false); st.FirstIndex > 4 || st.SnapshotIndex < 60 {
			t.Fatalf("first index %d, snapshot %d", st.FirstIndex, st.SnapshotIndex)
		}
		if st := press(true); st.FirstIndex != st.SnapshotIndex+1 {
			t.Fatalf("urgent: first index %d, snapshot %d", st.FirstIndex, st.SnapshotIndex)
		}
		f.setFilter(nil)
		time.Sleep(pressureLasts)
		c.fill("l", 0, 60)
		c.converge(121)
		time.Sleep(time.Second)
		if st := r.Status(); st.FirstIndex != st.SnapshotIndex-9 {
			t.Fatalf("after it: first index %d, snapshot %d", st.FirstIndex, st.SnapshotIndex)
		}
	})
}

// Whatever followers lack and hold_bytes allows, the raftlog stays within max_bytes (rule 11).
func TestLaggingFollowerKeepsToMaxBytes(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		c.tune = func(o *Options) { o.Policy = Policy{ThresholdEntries: 600, KeepEntries: 60, HoldBytes: 64 << 20} }
	}, func(c *cluster) {
		c.create(3)
		c.put("a", "1")
		c.follower().setFilter(func(transport.PeerInfo, item) bool { return true })
		for range 2000 {
			c.put("b", strings.Repeat("y", 5<<10))
		}
		c.eventually("a log of at most 8 MiB", func() bool { return c.leader().log.Stats().TotalBytes <= 8<<20 })
	})
}

func TestCheckpointByInterval(t *testing.T) {
	inCluster(t, 1, func(c *cluster) {
		c.tune = func(o *Options) { o.Policy.Interval = 10 * time.Minute }
	}, func(c *cluster) {
		c.create(1)
		c.fill("k", 0, 5)
		time.Sleep(8 * time.Minute)
		r := c.nodes[1].replica()
		if got := r.Status().SnapshotsCreated; got != 0 {
			t.Fatalf("%d checkpoints before the interval", got)
		}
		time.Sleep(4 * time.Minute)
		if got := r.Status().SnapshotsCreated; got != 1 {
			t.Fatalf("%d checkpoints after the interval", got)
		}
		time.Sleep(time.Hour)
		if got := r.Status().SnapshotsCreated; got != 1 {
			t.Fatalf("%d checkpoints although nothing was applied", got)
		}
	})
}

// Many groups share frames and workers.
func TestManyGroups(t *testing.T) {
	const groups = 60
	inCluster(t, 3, nil, func(c *cluster) {
		for g := range groups {
			ms := members(3)
			for i := range ms {
				ms[i].Replica = ident.ReplicaID(1000 + 3*g + i)
			}
			ms[0], ms[g%3] = ms[g%3], ms[0]
			for _, m := range ms {
				must(t, c.nodes[m.Node].host.Create([]Spec{{
					Group: ident.GroupID(100 + g), Replica: m.Replica, Name: fmt.Sprintf("many-%d", g), Key: fmt.Sprintf("bb-%d", g), Members: ms,
				}}))
				c.nodes[m.Node].host.Start(ident.GroupID(100 + g))
			}
		}
		led := make(map[ident.NodeID]int)
		c.eventually("a leader each", func() bool {
			clear(led)
			n := 0
			for _, nd := range c.nodes {
				for _, r := range nd.host.Replicas() {
					if r.IsLeader() {
						led[nd.id]++
						n++
					}
				}
			}
			return n == groups
		})
		for id, n := range led {
			if n < groups/6 {
				t.Fatalf("node %d leads %d of %d groups: %v", id, n, groups, led)
			}
		}
		w := make(waiter, groups)
		for _, nd := range c.nodes {
			for _, r := range nd.host.Replicas() {
				if r.IsLeader() {
					r.Propose([]byte("a=1"), ProposeOptions{}, w)
				}
			}
		}
		for range groups {
			if got := <-w; got.err != nil {
				t.Fatal(got.err)
			}
		}
	})
}

// The raftlog fails for good: the host says so once, and nothing is acknowledged.
func TestLogFailureIsFatal(t *testing.T) {
	inCluster(t, 1, nil, func(c *cluster) {
		c.create(1)
		c.leader()
		nd := c.nodes[1]
		must(t, nd.log.Close())
		w := make(waiter, 1)
		nd.replica().Propose([]byte("a=1"), ProposeOptions{Deadline: time.Now().Add(time.Second)}, w)
		if got := <-w; got.err == nil {
			t.Fatal("acknowledged without a log")
		}
		if err := nd.log.Err(); err != nil && !errors.Is(err, raftlog.ErrClosed) {
			t.Fatal(err)
		}
	})
}
