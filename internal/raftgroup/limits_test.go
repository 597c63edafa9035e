package raftgroup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pebble "github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
	"chronik/internal/raftlog"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// Rule 18: a held replica does not even ask for votes.
func TestRule18HeldReplicaDoesNotTick(t *testing.T) {
	inCluster(t, 3, func(c *cluster) { c.hold = true }, func(c *cluster) {
		c.create(3)
		var asked int
		c.nodes[1].setFilter(func(_ transport.PeerInfo, it item) bool {
			if it.to != 0 { // beats are the node's, not a replica's
				asked++
			}
			return false
		})
		time.Sleep(10 * time.Second)
		if asked > 0 {
			t.Errorf("held replicas sent %d messages", asked)
		}
		for id, nd := range c.nodes {
			if st := nd.replica().Status(); st.Role != RoleFollower || st.State != StateHeld {
				t.Errorf("node %d: %v, %v", id, st.State, st.Role)
			}
		}
	})
}

// Rule 19: a frame for a replica that is here, but of another group, or one that
// is sent in another's name, says nothing.
func TestRule19FramesOfOthersSayNothing(t *testing.T) {
	inCluster(t, 1, nil, func(c *cluster) {
		c.create(1)
		c.leader()
		nd := c.nodes[1]
		two, three := transport.PeerInfo{Node: 2, Store: storeOf(2, 0)}, transport.PeerInfo{Node: 3, Store: storeOf(3, 0)}
		from, to, term := uint64(50), uint64(11), uint64(1000)
		heartbeat := func(g ident.GroupID) []byte {
			var f frameBuilder
			f.begin(frameSource{node: 2, store: two.Store, lsn: 77})
			f.message(g, &pb.Message{Type: pb.MsgHeartbeat.Enum(), From: &from, To: &to, Term: &term})
			return join(f.take())
		}
		must(t, nd.host.HandleFrame(two, heartbeat(testGroup+1)))
		time.Sleep(time.Second)
		if got := nd.replica().Status().Term; got >= 1000 {
			t.Errorf("term %d: a frame of another group was heard", got)
		}
		if got := nd.ev.saw[2]; got != 77 {
			t.Errorf("saw LSN %d of node 2, want 77", got)
		}
		clear(nd.ev.saw)
		must(t, nd.host.HandleFrame(three, heartbeat(testGroup)))
		if len(nd.ev.saw) > 0 {
			t.Errorf("saw %v by a frame in another's name", nd.ev.saw)
		}
	})
}

// Rule 8: no message makes a replica, whatever it says.
func TestRule8MessagesCreateNothing(t *testing.T) {
	inCluster(t, 1, nil, func(c *cluster) {
		c.create(1)
		c.leader()
		nd := c.nodes[1]
		from, to, term, one := uint64(50), uint64(61), uint64(1000), uint64(1)
		var f frameBuilder
		f.begin(frameSource{node: 2, store: storeOf(2, 0), lsn: 77})
		for _, typ := range []pb.MessageType{pb.MsgApp, pb.MsgHeartbeat, pb.MsgPreVote, pb.MsgVote, pb.MsgTimeoutNow} {
			f.message(testGroup+1, &pb.Message{Type: typ.Enum(), From: &from, To: &to, Term: &term, Index: &one, LogTerm: &one, Commit: &one})
		}
		f.offer(testGroup+1, ident.ReplicaID(from), ident.ReplicaID(to), ident.Term(term), nil)
		must(t, nd.host.HandleFrame(transport.PeerInfo{Node: 2, Store: storeOf(2, 0)}, join(f.take())))
		time.Sleep(time.Second)
		if n := len(nd.log.Creations()); n != 1 || len(nd.host.Replicas()) != 1 {
			t.Errorf("the log has %d creations, the host %d replicas", n, len(nd.host.Replicas()))
		}
	})
}

// Rule 27: a learner that has the entry is none of the replicas asked for.
func TestRule27LearnersDoNotCount(t *testing.T) {
	inCluster(t, 4, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 2)
		fresh := Member{Replica: 99, Node: 4, Store: storeOf(4, 0)}
		must(t, c.nodes[4].host.Create([]Spec{specFor(fresh, nil)}))
		c.nodes[4].host.Start(testGroup)
		c.change(func(l *Replica, w Waiter) { l.AddLearner(fresh, 1, ProposeOptions{}, w) })
		c.eventually("the learner has it all", func() bool { return c.nodes[4].sm().Len() == 2 })
		l := c.leader()
		for _, nd := range c.nodes {
			if nd != l && nd.id != 4 {
				c.net.Isolate(nd.id)
				break
			}
		}
		c.eventually("known as away", func() bool { return l.replica().Alive() == 2 })
		got := l.propose("a=1", ProposeOptions{MinReplicas: 3, Deadline: time.Now().Add(2 * time.Second)})
		isErr(t, got.err, ErrNotEnoughReplicasAfterAppend)
		if c.nodes[4].sm().Get("a") != "1" {
			t.Fatal("the learner lacks the entry: this proved nothing")
		}
	})
}

// Rule 28: a live follower that is behind holds the log only up to hold_bytes.
func TestRule28HoldIsBounded(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		c.tune = func(o *Options) { o.Policy = Policy{ThresholdEntries: 20, KeepEntries: 2, HoldBytes: 500} }
	}, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 10)
		l, f := c.leader(), c.follower()
		f.setFilter(func(_ transport.PeerInfo, it item) bool {
			return it.kind == itemMessage && it.msg.GetType() == pb.MsgApp
		})
		c.fill("k", 10, 100)
		c.eventually("the log is trimmed past a live follower", func() bool { return l.replica().Status().FirstIndex > 60 })
	})
}

// Rule 29: after a power cut whoever voted for itself goes first, without a
// delay, though the others come before it in the order of members.
func TestRule29OwnVoteGoesFirst(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 3)
		c.eventually("node 3 leads", func() bool {
			l := c.leads()
			if l != nil && l.id != 3 {
				l.replica().TransferLeadership(13)
			}
			return l != nil && l.id == 3
		})
		c.put("a", "1")
		disks := make(map[ident.NodeID]*vfs.MemFS)
		for id, nd := range c.nodes {
			disks[id] = nd.kill(0)
		}
		start := time.Now()
		for id, d := range disks {
			c.boot(id, storeOf(id, 0), d)
		}
		if l := c.leader(); l.id != 3 || time.Since(start) > campaignFirst {
			t.Fatalf("node %d leads after %v", l.id, time.Since(start))
		}
	})
}

// Rule 29: a sole voter needs no timeout, at its start and after a restart.
func TestRule29SoleVoterAtOnce(t *testing.T) {
	inCluster(t, 1, nil, func(c *cluster) {
		start := time.Now()
		c.create(1)
		c.leader()
		disk := c.nodes[1].kill(0)
		c.boot(1, storeOf(1, 0), disk)
		c.leader()
		if took := time.Since(start); took >= campaignFirst {
			t.Fatalf("leads after %v", took)
		}
	})
}

// Rule 31: a disk that is full when the node starts says nothing about a replica:
// the start fails and can be tried again.
func TestRule31FullDiskAtStart(t *testing.T) {
	full := false
	inCluster(t, 1, func(c *cluster) {
		c.open = func(fs vfs.FS, dir string, blob []byte, files []CaptureFile) (StateMachine, error) {
			if full {
				return nil, fmt.Errorf("open: %w", syscall.ENOSPC)
			}
			return OpenMemory(fs, dir, blob, files)
		}
	}, func(c *cluster) {
		c.create(1)
		c.put("a", "1")
		nd := c.nodes[1]
		ms := members(1)
		spec := specFor(Member{Replica: 50, Node: 1, Store: nd.store}, nil)
		spec.Group, spec.Key, spec.Members = testGroup+1, "bb-0", []Member{{Replica: 50, Node: 1, Store: ms[0].Store}}
		full = true
		isErr(t, nd.host.Create([]Spec{spec}), syscall.ENOSPC)
		if err := nd.ev.quarantine(50); err != nil {
			t.Fatalf("quarantined: %v", err)
		}
		full = false
		must(t, nd.host.Create([]Spec{spec}))
		if st := nd.host.ByID(50).Status(); st.State != StateHeld {
			t.Fatalf("state %v", st.State)
		}
	})
}

// Rule 31: a replica that was retired before the disk had room to open it leaves no record and no files.
func TestRule31RemoveOfAReplicaThatDidNotOpen(t *testing.T) {
	full := false
	inCluster(t, 1, func(c *cluster) {
		c.open = func(fs vfs.FS, dir string, blob []byte, files []CaptureFile) (StateMachine, error) {
			if full {
				return nil, fmt.Errorf("open: %w", syscall.ENOSPC)
			}
			return OpenMemory(fs, dir, blob, files)
		}
	}, func(c *cluster) {
		c.create(1)
		nd := c.nodes[1]
		spec := specFor(Member{Replica: 50, Node: 1, Store: nd.store}, nil)
		spec.Group, spec.Key = testGroup+1, "bb-0"
		full = true
		isErr(t, nd.host.Create([]Spec{spec}), syscall.ENOSPC)
		must(t, nd.host.Remove(50))
		if nd.log.Replica(50) != nil {
			t.Error("the raftlog still has it")
		}
		if _, err := nd.fs.Stat(nd.host.baseOf(spec)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("its directory is there: %v", err)
		}
		must(t, nd.host.Remove(50))
	})
}

// The shared log's failure is the node's: its owner hears of it and no replica is
// blamed, let alone replaced, for it.
func TestFailedLogIsTheNodes(t *testing.T) {
	broken := &brokenSync{FS: vfs.NewCrashableMem()}
	inCluster(t, 1, func(c *cluster) {
		c.tune = func(o *Options) {
			l, err := raftlog.Open(raftlog.Options{FS: broken, Dir: "/other", Store: o.Store, Create: true, FileBytes: 1 << 20, MaxBytes: 8 << 20, Logger: c.log})
			must(t, err)
			must(t, o.Log.Close())
			o.Log = l
			c.nodes[1].log = l
		}
	}, func(c *cluster) {
		c.create(1)
		c.put("a", "1")
		broken.bad.Store(true)
		nd := c.nodes[1]
		w := make(waiter, 1)
		nd.replica().Propose([]byte("b=1"), ProposeOptions{Deadline: time.Now().Add(time.Second)}, w)
		if got := <-w; got.err == nil {
			t.Fatal("acknowledged although the log failed")
		}
		c.eventually("the owner hears of it", func() bool {
			nd.ev.mu.Lock()
			defer nd.ev.mu.Unlock()
			return errors.Is(nd.ev.fatal, raftlog.ErrFailed)
		})
		if err := nd.ev.quarantine(nd.replica().ID()); err != nil || len(nd.ev.replace) > 0 {
			t.Fatalf("a replica is blamed: %v, %v", err, nd.ev.replace)
		}
		if n := broken.failed.Load(); n != 1 {
			t.Fatalf("a failed sync was tried %d times", n)
		}
		must(t, nd.host.Stop(context.Background()))
		nd.end.Close()
		must(t, nd.srv.Close())
		isErr(t, nd.log.Close(), raftlog.ErrFailed)
		delete(c.nodes, 1)
	})
}

// brokenSync is a file system on which syncing a file fails.
type brokenSync struct {
	vfs.FS
	bad    atomic.Bool
	failed atomic.Int64
}

func (b *brokenSync) Create(name string, cat vfs.WriteCategory) (vfs.File, error) {
	f, err := b.FS.Create(name, cat)
	return &brokenFile{f, b}, err
}

func (b *brokenSync) ReuseForWrite(from, to string, cat vfs.WriteCategory) (vfs.File, error) {
	f, err := b.FS.ReuseForWrite(from, to, cat)
	return &brokenFile{f, b}, err
}

func (b *brokenSync) OpenReadWrite(name string, cat vfs.WriteCategory, opts ...pebble.OpenOption) (vfs.File, error) {
	f, err := b.FS.OpenReadWrite(name, cat, opts...)
	return &brokenFile{f, b}, err
}

type brokenFile struct {
	vfs.File
	b *brokenSync
}

func (f *brokenFile) Sync() error     { return f.try(f.File.Sync) }
func (f *brokenFile) SyncData() error { return f.try(f.File.SyncData) }

func (f *brokenFile) try(sync func() error) error {
	if f.b.bad.Load() {
		f.b.failed.Add(1)
		return syscall.EIO
	}
	return sync()
}

// Rule 26: a read is confirmed only once what was committed before it is applied here.
func TestRule26ReadIndexWaitsForApply(t *testing.T) {
	gate := make(chan struct{})
	close(gate)
	g := &gated{}
	inCluster(t, 1, func(c *cluster) {
		c.open = func(fs vfs.FS, dir string, blob []byte, files []CaptureFile) (StateMachine, error) {
			sm, err := OpenMemory(fs, dir, blob, files)
			g.StateMachine, g.gate = sm, gate
			return g, err
		}
	}, func(c *cluster) {
		c.create(1)
		c.leader()
		nd := c.nodes[1]
		shut := make(chan struct{}) // of the bubble, so that its clock runs while Apply waits
		ready := make(chan struct{})
		nd.replica().as.post(nd.replica(), applyItem{fn: func() { g.gate = shut; close(ready) }})
		<-ready
		w := make(waiter, 1)
		nd.replica().Propose([]byte("a=1"), ProposeOptions{}, w)
		c.eventually("committed", func() bool { st := nd.replica().Status(); return st.CommitIndex > st.AppliedIndex })
		done := make(chan ident.Index, 1)
		nd.replica().ReadIndex(time.Now().Add(time.Minute), func(i ident.Index, err error) {
			if err != nil {
				t.Error(err)
			}
			done <- i
		})
		time.Sleep(5 * time.Second)
		if len(done) > 0 {
			t.Error("confirmed before the committed entry is applied")
		}
		close(shut)
		put := <-w
		if i := <-done; put.err != nil || i < put.index {
			t.Errorf("read at %d, written at %d: %v", i, put.index, put.err)
		}
	})
}

// Rule 26: a read that comes while the answer to another is on its way must not take
// that answer, which may be older than a write that was acknowledged in between.
func TestRule26ReadAsksForItself(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		before := c.put("a", "1")
		l, f := c.leader(), c.follower()
		c.eventually("the follower has it", func() bool { return f.replica().Status().AppliedIndex >= before.index })
		c.net.Drop(l.id, f.id, true) // the first answer is late, and so is the next write
		type answer struct {
			index ident.Index
			err   error
		}
		read := func() chan answer {
			ch := make(chan answer, 1)
			f.replica().ReadIndex(time.Now().Add(10*time.Second), func(i ident.Index, err error) { ch <- answer{i, err} })
			return ch
		}
		first := read()
		time.Sleep(10 * time.Millisecond)
		after := c.put("a", "2")
		second := read()
		time.Sleep(10 * time.Millisecond)
		f.replica().postLocal(localEvent{fn: func(*outbox) {
			rs := &f.replica().rs
			from, to, term, index := rs.lead, uint64(f.replica().ID()), uint64(rs.hs.Term), uint64(before.index)
			ctx := binary.LittleEndian.AppendUint64(nil, rs.reads.seq)
			_ = rs.rn.Step(&pb.Message{
				Type: pb.MsgReadIndexResp.Enum(), From: &from, To: &to, Term: &term, Index: &index, Entries: []*pb.Entry{{Data: ctx}},
			})
		}})
		if a := <-first; a.err != nil || a.index != before.index {
			t.Fatalf("the first read: %+v, written was %d", a, before.index)
		}
		c.net.Drop(l.id, f.id, false)
		if a := <-second; a.err != nil || a.index < after.index || f.sm().Get("a") != "2" {
			t.Fatalf("the second read: %+v and %q, written was %d", a, f.sm().Get("a"), after.index)
		}
	})
}

// A checkpoint beyond the end of its log means that the log has lost entries: the
// replica is quarantined at start and never reaches raft, which would end the process.
func TestCheckpointBeyondTheLogQuarantines(t *testing.T) {
	inCluster(t, 3, smallSteps, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		f := c.follower()
		id, store, replica := f.id, f.store, f.replica().ID()
		older := f.fs.CrashClone(vfs.CrashCloneCfg{})
		c.fill("k", 5, 60)
		c.eventually("checkpoint", func() bool { return f.replica().Status().SnapshotIndex > 40 })
		newer := f.kill(0)
		dir := "/data/replicas/" + dirName(specFor(Member{Replica: replica}, nil))
		must(t, older.RemoveAll(dir))
		if ok, err := pebble.Clone(newer, older, dir, dir, pebble.CloneSync); !ok || err != nil {
			t.Fatalf("copied %v: %v", ok, err)
		}
		nd := c.boot(id, store, older)
		isErr(t, nd.ev.quarantine(replica), ErrCorrupt)
		if st := nd.replica().Status(); st.State != StateQuarantined || nd.ev.replace[replica] == "" {
			t.Errorf("%+v", st)
		}
	})
}

// An offer that is lost on its way is missed by nobody but the leader's watchdog: it
// is made again.
func TestLostOfferIsMadeAgain(t *testing.T) {
	inCluster(t, 3, smallSteps, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 10)
		f := c.follower()
		id, store := f.id, f.store
		disk := f.kill(0)
		c.fill("k", 10, 100)
		c.hold = true
		back := c.boot(id, store, disk)
		lost := 0
		back.setFilter(func(_ transport.PeerInfo, it item) bool {
			if it.kind != itemOffer || lost > 0 {
				return false
			}
			lost++
			return true
		})
		startAll(back.host)
		c.converge(100)
		if lost != 1 {
			t.Fatal("no offer was lost: this proved nothing")
		}
	})
}

// After an install the log ends at the snapshot, also when nothing comes behind
// it: the leader's heartbeats, which commit up to there, contradict nothing.
func TestLogEndsAtTheInstalledSnapshot(t *testing.T) {
	inCluster(t, 3, smallSteps, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 10)
		f := c.follower()
		id, store, replica := f.id, f.store, f.replica().ID()
		disk := f.kill(0)
		c.fill("k", 10, 60)
		l := c.leader()
		done := make(chan ident.Index, 1)
		l.replica().TakeCheckpoint(func(i ident.Index, _ error) { done <- i })
		<-done
		back := c.boot(id, store, disk)
		c.converge(60)
		time.Sleep(5 * time.Second)
		st := back.replica().Status()
		if err := back.ev.quarantine(replica); err != nil || st.SnapshotsInstalled != 1 {
			t.Fatalf("quarantined %v, %d installed", err, st.SnapshotsInstalled)
		}
		if want := l.replica().Status().CommitIndex; st.LastIndex != want || st.SnapshotIndex != want || st.FirstIndex != want+1 {
			t.Fatalf("snapshot at %d, log from %d to %d, the group is at %d", st.SnapshotIndex, st.FirstIndex, st.LastIndex, want)
		}
	})
}
