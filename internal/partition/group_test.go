package partition

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"chronik/internal/ident"
	"chronik/internal/raftgroup"
	"chronik/internal/raftlog"
	"chronik/internal/snapshot"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

const orders ident.GroupID = 7

// node is a node's process with one replica of orders-0, over a crashable disk
// and an in-memory network.
type node struct {
	t     *testing.T
	id    ident.NodeID
	fs    *vfs.MemFS
	end   *transport.Node
	log   *raftlog.Log
	srv   *snapshot.Server
	host  *raftgroup.Host
	ready chan struct{}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func storeOf(id ident.NodeID) ident.StoreID { return ident.StoreID{byte(id), 1} }

// boot starts a node on a disk; a blank one gets its replica of members.
func boot(t *testing.T, net *transport.Network, id ident.NodeID, fs *vfs.MemFS, members []raftgroup.Member) *node {
	t.Helper()
	n := &node{t: t, id: id, fs: fs, ready: make(chan struct{})}
	logger := slog.New(slog.DiscardHandler)
	must(t, vfs.MkdirAllSync(fs, "/data"))
	var err error
	n.log, err = raftlog.Open(raftlog.Options{FS: fs, Dir: "/data/raftlog", Store: storeOf(id), Create: true, FileBytes: 1 << 20, MaxBytes: 8 << 20, Logger: logger})
	must(t, err)
	n.srv = snapshot.NewServer(snapshot.ServerOptions{FS: fs, Logger: logger})
	n.end = net.Join(id, n)
	n.host, err = raftgroup.NewHost(raftgroup.Options{
		Node: id, Store: storeOf(id), FS: fs, Dir: "/data/replicas", Log: n.log, Sender: n.end, Server: n.srv,
		Receiver: snapshot.NewReceiver(snapshot.ReceiverOptions{FS: fs, Logger: logger}), Events: n, Logger: logger,
		ElectionTimeout: time.Second, HeartbeatInterval: 100 * time.Millisecond, Workers: 2,
		Policy: raftgroup.Policy{ThresholdEntries: 50, KeepEntries: -1},
	})
	must(t, err)
	close(n.ready)
	must(t, n.host.OpenAll(func(raftgroup.Spec) raftgroup.OpenFunc { return Opener{}.Open }))
	if members != nil {
		must(t, n.host.Create([]raftgroup.Spec{{
			Group: orders, Replica: members[id-1].Replica, Name: "orders-0", Key: "aa-0", Topic: "orders", Members: members,
		}}))
	}
	for _, r := range n.host.Replicas() {
		n.host.Start(r.Group())
	}
	return n
}

func (n *node) stop(ctx context.Context) {
	n.t.Helper()
	must(n.t, n.host.Stop(ctx))
	n.end.Close()
	must(n.t, n.srv.Close())
	must(n.t, n.log.Close())
}

// kill is a power cut: it returns the disk with what was synced.
func (n *node) kill(net *transport.Network) *vfs.MemFS {
	n.t.Helper()
	net.Kill(n.id) // first: what was promised until now must be on the disk
	disk := n.fs.CrashClone(vfs.CrashCloneCfg{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	n.stop(ctx)
	return disk
}

func (n *node) partition() *Partition {
	r := n.host.Replica(orders)
	return New(r, r.StateMachine().(*StateMachine))
}

// The transport's Handler.

func (n *node) Hello() []byte {
	b, err := json.Marshal(transport.PeerInfo{Node: n.id, Store: storeOf(n.id)})
	must(n.t, err)
	return b
}

func (n *node) AcceptHello(b []byte) (p transport.PeerInfo, err error) {
	return p, json.Unmarshal(b, &p)
}

func (n *node) Refused(ident.NodeID, string) {}

func (n *node) Frame(from transport.PeerInfo, _ transport.Class, frame []byte) {
	<-n.ready
	if err := n.host.HandleFrame(from, frame); err != nil {
		n.t.Errorf("node %d: %v", n.id, err)
	}
}

func (n *node) Call(ctx context.Context, _ transport.PeerInfo, method string, req []byte) ([]byte, error) {
	<-n.ready
	return n.srv.Handle(ctx, method, req)
}

func (n *node) PeerUp(p transport.PeerInfo) { <-n.ready; n.host.PeerUp(p) }
func (n *node) PeerDown(peer ident.NodeID)  { <-n.ready; n.host.PeerDown(peer) }

// The engine's Events.

func (n *node) LeaderChanged(ident.GroupID, ident.ReplicaID, ident.NodeID, ident.Term, bool) {}
func (n *node) ReplacementNeeded(ident.GroupID, ident.ReplicaID, string)                     {}
func (n *node) MembersChanged(ident.GroupID, []raftgroup.Member)                             {}
func (n *node) Saw(ident.NodeID, ident.StoreID, uint64)                                      {}
func (n *node) Fatal(err error)                                                              { n.t.Errorf("node %d: %v", n.id, err) }

func (n *node) Quarantined(_ ident.GroupID, _ ident.ReplicaID, err error) {
	n.t.Errorf("node %d: quarantined: %v", n.id, err)
}

// eventually waits on the bubble's clock.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in a minute: %s", what)
		}
	}
}

// put appends on whoever leads until it is acknowledged by two.
func put(t *testing.T, nodes map[ident.NodeID]*node, batch []byte) AppendResult {
	t.Helper()
	var got AppendResult
	eventually(t, "an append", func() bool {
		for _, n := range nodes {
			p := n.partition()
			if ok, _ := p.Leader(); !ok {
				continue
			}
			answer := make(chan AppendResult, 1)
			p.Append(batch, AppendOptions{Acks: -1, MinISR: 2, Timeout: 5 * time.Second}, func(r AppendResult) { answer <- r })
			if got = <-answer; got.Err == nil || errors.Is(got.Err, ErrDuplicateSequence) {
				return true
			}
		}
		return false
	})
	return got
}

// agree tells whether all replicas have the same bytes up to an offset, in batches of two.
func agree(t *testing.T, nodes map[ident.NodeID]*node, to int64) bool {
	t.Helper()
	want, err := nodes[1].partition().Digest(0, to)
	must(t, err)
	for _, n := range nodes {
		if d, err := n.partition().Digest(0, to); err != nil || d != want || d.Batches != to/2 {
			return false
		}
	}
	return true
}

// TestRejoin is the story of a node that was away for longer than the log
// reaches: it comes back through a snapshot, has the same bytes as the others, and
// can lead them, producers included.
func TestRejoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := transport.NewNetwork(transport.NetworkOptions{Seed: 1})
		defer net.Close()
		var members []raftgroup.Member
		for id := ident.NodeID(1); id <= 3; id++ {
			members = append(members, raftgroup.Member{Replica: ident.ReplicaID(10 + id), Node: id, Store: storeOf(id)})
		}
		nodes := make(map[ident.NodeID]*node)
		for id := ident.NodeID(1); id <= 3; id++ {
			nodes[id] = boot(t, net, id, vfs.NewCrashableMem(), members)
		}
		defer func() {
			for _, n := range nodes {
				n.stop(context.Background())
			}
		}()
		sent := int32(0)
		var last []byte
		write := func(n int) {
			for range n {
				last = build(t, 2, 100, int64(sent), 42, 0, sent)
				if r := put(t, nodes, last); r.BaseOffset != int64(sent) {
					t.Fatalf("sequence %d at offset %d: %v", sent, r.BaseOffset, r.Err)
				}
				sent += 2
			}
		}
		write(150)
		disk := nodes[3].kill(net)
		delete(nodes, 3)
		write(120)
		for _, n := range nodes { // nobody waits for the dead
			eventually(t, "the log is trimmed past what node 3 has", func() bool { return n.host.Replica(orders).Status().FirstIndex > 200 })
		}
		nodes[3] = boot(t, net, 3, disk, nil)
		same := func() bool { return agree(t, nodes, int64(sent)) }
		eventually(t, "node 3 has the same bytes", same)
		if s := nodes[3].host.Replica(orders).Status(); s.SnapshotsInstalled != 1 {
			t.Fatalf("%d snapshots installed", s.SnapshotsInstalled)
		}
		write(10)
		eventually(t, "all have the same bytes", same)

		eventually(t, "node 3 leads", func() bool {
			for _, n := range nodes {
				n.host.Replica(orders).TransferLeadership(13)
			}
			ok, _ := nodes[3].partition().Leader()
			return ok
		})
		if r := put(t, nodes, last); !errors.Is(r.Err, ErrDuplicateSequence) || r.BaseOffset != int64(sent)-2 {
			t.Fatalf("the last batch again: %+v", r)
		}
		write(1)
		must(t, nodes[3].partition().ReadIndex(context.Background()))
		must(t, nodes[3].partition().SetLogStart(context.Background(), 100))
		eventually(t, "the log start moves everywhere", func() bool {
			return nodes[1].partition().LogStartOffset() == 100 && nodes[2].partition().LogStartOffset() == 100
		})
		for _, n := range nodes {
			must(t, n.partition().Verify(t.Context()))
		}
	})
}
