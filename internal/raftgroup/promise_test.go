package raftgroup

import (
	"sync/atomic"
	"testing"
	"time"

	pebble "github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
	"chronik/internal/raftlog"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// Rule 5: while a follower's disk syncs, nobody hears of what it appends or for whom
// it votes: with the third node away nothing is committed, and nobody is elected.
func TestRule5NoPromiseBeforeTheSync(t *testing.T) {
	disks := map[ident.NodeID]*heldSync{}
	inCluster(t, 3, func(c *cluster) { c.logsOn(disks) }, func(c *cluster) {
		c.create(3)
		c.put("a", "1")
		c.converge(1)
		l, f := c.leader(), c.follower()
		third := c.nodes[6-l.id-f.id]
		var promised atomic.Int64
		hear := func(nd, from *node, typ pb.MessageType) {
			id := from.replica().ID()
			promised.Store(0)
			nd.setFilter(func(_ transport.PeerInfo, it item) bool {
				if it.kind == itemMessage && it.from == id && it.msg.GetType() == typ && !it.msg.GetReject() {
					promised.Add(1)
				}
				return false
			})
		}
		time.Sleep(time.Second) // what the elections and the first entries wrote is durable

		gate := disks[f.id].hold()
		hear(l, f, pb.MsgAppResp)
		c.net.Isolate(third.id)
		got := l.propose("b=1", ProposeOptions{Deadline: time.Now().Add(3 * time.Second)})
		if got.err == nil || promised.Load() > 0 {
			t.Errorf("entry: %v, after %d acknowledgements of a disk that syncs", got.err, promised.Load())
		}
		close(gate)
		c.net.HealAll()
		c.converge(2)
		time.Sleep(time.Second)

		l, f = c.leader(), c.follower()
		third = c.nodes[6-l.id-f.id]
		gate = disks[f.id].hold()
		hear(third, f, pb.MsgVoteResp)
		c.net.Isolate(l.id)
		third.replica().Campaign()
		time.Sleep(5 * time.Second)
		for _, nd := range []*node{f, third} { // f's own vote is a promise too
			if nd.replica().Status().Role == RoleLeader || promised.Load() > 0 {
				t.Errorf("node %d leads, by a vote of a disk that syncs (%d were sent)", nd.id, promised.Load())
			}
		}
		close(gate)
		c.net.HealAll()
		c.put("c", "1")
		c.converge(3)
	})
}

// "Never" 1 and 3: a sole voter is a majority by itself, and waits for its disk all the same: while that syncs, what
// it appends is not answered and not applied.
func TestSoleVoterWaitsForItsDisk(t *testing.T) {
	disks := map[ident.NodeID]*heldSync{}
	inCluster(t, 1, func(c *cluster) { c.logsOn(disks) }, func(c *cluster) {
		c.create(1)
		c.put("a", "1")
		time.Sleep(time.Second)
		l := c.leader()
		gate := disks[l.id].hold()
		got := l.propose("b=1", ProposeOptions{Deadline: time.Now().Add(3 * time.Second)})
		st := l.replica().Status()
		close(gate)
		isErr(t, got.err, ErrTimeout)
		if st.AppliedIndex >= st.LastIndex {
			t.Errorf("applied %d of %d while the disk syncs", st.AppliedIndex, st.LastIndex)
		}
		c.converge(2)
	})
}

// logsOn gives each node a raftlog whose syncs a test can hold.
func (c *cluster) logsOn(disks map[ident.NodeID]*heldSync) {
	c.tune = func(o *Options) {
		disks[o.Node] = &heldSync{FS: o.FS}
		l, err := raftlog.Open(raftlog.Options{FS: disks[o.Node], Dir: "/slow", Store: o.Store, Create: true, FileBytes: 1 << 20, MaxBytes: 8 << 20, Logger: c.log})
		must(c.t, err)
		must(c.t, o.Log.Close())
		o.Log, c.nodes[o.Node].log = l, l
	}
}

// heldSync is a file system whose files sync when they are let.
type heldSync struct {
	vfs.FS
	gate atomic.Pointer[chan struct{}]
}

// hold makes every sync from now on wait until the channel is closed.
func (s *heldSync) hold() chan struct{} {
	gate := make(chan struct{})
	s.gate.Store(&gate)
	return gate
}

func (s *heldSync) Create(name string, cat vfs.WriteCategory) (vfs.File, error) {
	f, err := s.FS.Create(name, cat)
	return &heldFile{f, s}, err
}

func (s *heldSync) ReuseForWrite(from, to string, cat vfs.WriteCategory) (vfs.File, error) {
	f, err := s.FS.ReuseForWrite(from, to, cat)
	return &heldFile{f, s}, err
}

func (s *heldSync) OpenReadWrite(name string, cat vfs.WriteCategory, opts ...pebble.OpenOption) (vfs.File, error) {
	f, err := s.FS.OpenReadWrite(name, cat, opts...)
	return &heldFile{f, s}, err
}

type heldFile struct {
	vfs.File
	s *heldSync
}

func (f *heldFile) Sync() error     { return f.wait(f.File.Sync) }
func (f *heldFile) SyncData() error { return f.wait(f.File.SyncData) }

func (f *heldFile) wait(sync func() error) error {
	if gate := f.s.gate.Load(); gate != nil {
		<-*gate
	}
	return sync()
}
