package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/config"
	"chronik/internal/ident"
	"chronik/internal/identity"
	"chronik/internal/metadata"
	"chronik/internal/raftgroup"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// trio is three nodes in this process over memory disks, linked by real sockets.
type trio struct {
	t   *testing.T
	cfg [4]*config.Config
	fs  [4]*vfs.MemFS
	b   [4]*Broker
	net [4]Net // zero: real
	// wall are the nodes' dates; nil: the real one.
	wall [4]func() time.Time
	// logged counts messages of all nodes.
	logged messages
}

// messages is a log's reader that counts messages.
type messages struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *messages) count(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.MessageKey {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.n == nil {
			c.n = map[string]int{}
		}
		c.n[a.Value.String()]++
	}
	return a
}

func (c *messages) of(msg string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[msg]
}

func newTrio(t *testing.T) *trio {
	t.Helper()
	return newNodes(t, 3)
}

// newPair is a trio of nodes 1 and 2 alone.
func newPair(t *testing.T) *trio {
	t.Helper()
	return newNodes(t, 2)
}

func newNodes(t *testing.T, n int) *trio {
	t.Helper()
	c := &trio{t: t}
	addrs := make([]string, n+1)
	var peers []string
	for i := 1; i <= n; i++ {
		addrs[i] = freeAddr(t)
		peers = append(peers, fmt.Sprintf("%d@%s", i, addrs[i]))
	}
	for i := 1; i <= n; i++ {
		c.cfg[i] = testConfig(t, map[string]string{
			"node.id": fmt.Sprint(i), "raft.listen": addrs[i], "cluster.peers": strings.Join(peers, ","),
			"group.partitions": "1",
		})
		c.fs[i] = vfs.NewCrashableMem()
	}
	t.Cleanup(func() {
		for i := 1; i <= n; i++ {
			c.stop(i)
		}
	})
	return c
}

func (c *trio) start(nodes ...int) {
	c.t.Helper()
	for _, i := range nodes {
		log := slog.New(slog.NewTextHandler(c.t.Output(), &slog.HandlerOptions{ReplaceAttr: c.logged.count})).With("at", i)
		c.fs[i].TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 40, AvailBytes: 1 << 39, UsedBytes: 1 << 39})
		b, err := Start(context.Background(), Options{Config: c.cfg[i], Log: log, Version: "test", FS: c.fs[i], Net: c.net[i], Wall: c.wall[i]})
		if err != nil {
			c.t.Fatal(err)
		}
		c.b[i] = b
		eventually(c.t, 5*time.Second, "a session", func() error {
			if b.session() == nil {
				return errors.New("none")
			}
			return nil
		})
	}
}

// stop ends nodes in order; a node that ended by itself must not have failed.
func (c *trio) stop(nodes ...int) {
	c.t.Helper()
	for _, i := range nodes {
		if c.b[i] == nil {
			continue
		}
		c.b[i].Stop()
		if err := c.b[i].Wait(context.Background()); err != nil {
			c.t.Errorf("node %d: %v", i, err)
		}
		c.b[i] = nil
	}
}

// disk is a copy of a stopped node's disk.
func (c *trio) disk(i int) *vfs.MemFS {
	c.t.Helper()
	if c.b[i] != nil {
		c.t.Fatalf("node %d runs", i)
	}
	return c.fs[i].CrashClone(vfs.CrashCloneCfg{})
}

func (c *trio) serving(nodes ...int) {
	c.t.Helper()
	for _, i := range nodes {
		eventually(c.t, 20*time.Second, fmt.Sprintf("node %d serves", i), func() error {
			if s := c.b[i].session(); s == nil || !s.serving.Load() {
				return errors.New("not yet")
			}
			return nil
		})
	}
}

// produce writes n records to topic t through all nodes that run.
func (c *trio) produce(from, n int) {
	c.t.Helper()
	var seeds []string
	for i, b := range c.b {
		if b != nil {
			seeds = append(seeds, c.cfg[i].Kafka.Listen)
		}
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(seeds...), kgo.AllowAutoTopicCreation(), kgo.DefaultProduceTopic("t"),
		kgo.RetryBackoffFn(func(int) time.Duration { return 20 * time.Millisecond }))
	if err != nil {
		c.t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	for i := from; i < from+n; i++ {
		r := kgo.StringRecord(fmt.Sprint(i))
		if err := cl.ProduceSync(ctx, r).FirstErr(); err != nil {
			c.t.Fatal(err)
		}
		if r.Offset != int64(i) {
			c.t.Fatalf("record %d got offset %d", i, r.Offset)
		}
	}
}

// records waits until the node's replica of topic t runs and has n of them.
func (c *trio) records(i, n int) {
	c.t.Helper()
	eventually(c.t, 20*time.Second, fmt.Sprintf("node %d has %d records", i, n), func() error {
		s := c.b[i].session()
		if s == nil {
			return errors.New("no session")
		}
		p := s.meta.Image().TopicPartition("t", 0)
		if p == nil {
			return errors.New("no topic")
		}
		part := s.registry.partition(p.Group)
		if part == nil {
			return errors.New("no replica")
		}
		if hw := part.HighWatermark(); hw != int64(n) {
			return fmt.Errorf("it is at %d", hw)
		}
		return nil
	})
}

// states are those of a node's replicas, by group.
func states(s *session) map[ident.GroupID]raftgroup.State {
	all := map[ident.GroupID]raftgroup.State{}
	for _, r := range s.host.Replicas() {
		all[r.Group()] = r.Status().State
	}
	return all
}

// TestRestoredCopyGetsANewIdentity holds correctness rule 18: a disk that is older
// than what a peer saw of it never takes part under its old ids, even if that
// peer was restarted and no other is there.
func TestRestoredCopyGetsANewIdentity(t *testing.T) {
	for _, witnesses := range [][]int{{1, 2}, {1}} {
		t.Run(fmt.Sprint("witnesses ", witnesses), func(t *testing.T) {
			c := newTrio(t)
			c.start(1, 2, 3)
			c.serving(1, 2, 3)
			c.produce(0, 5)
			c.records(3, 5)
			c.stop(3)
			older := c.disk(3)
			c.start(3)
			c.serving(3)
			c.produce(5, 5)
			c.records(3, 10)
			store := c.b[3].session().store.ID()
			c.stop(1, 2, 3)
			c.fs[3] = older
			c.start(append(witnesses, 3)...)
			eventually(t, 20*time.Second, "node 3 has a new identity", func() error {
				s := c.b[3].session()
				if s == nil || s.store.ID() == store {
					return errors.New("the old one")
				}
				return nil
			})
			if len(witnesses) == 1 {
				c.start(2)
			}
			c.serving(1, 2, 3)
			c.records(3, 10)
			eventually(t, 20*time.Second, "no replica is on the old store", func() error {
				p := c.b[1].session().meta.Image().TopicPartition("t", 0)
				if slices.ContainsFunc(p.Replicas, func(r metadata.Replica) bool { return r.Store == store }) {
					return fmt.Errorf("%+v", p.Replicas)
				}
				return nil
			})
			c.produce(10, 2)
		})
	}
}

// TestReplicasWaitForAMajority holds correctness rule 18: alone, a restarted node's replicas take no part.
func TestReplicasWaitForAMajority(t *testing.T) {
	c := newTrio(t)
	c.start(1, 2, 3)
	c.serving(1, 2, 3)
	c.produce(0, 1)
	c.records(1, 1)
	c.stop(1, 2, 3)
	c.start(1)
	s := c.b[1].session()
	eventually(t, 10*time.Second, "node 1 has released what it may", func() error {
		if p := s.phase.Load(); p != "waiting for the metadata group" {
			return fmt.Errorf("%v", p)
		}
		return nil
	})
	settle(t, s)
	for g, st := range states(s) {
		if st != raftgroup.StateHeld {
			t.Errorf("group %d is %v although nobody has said Hello", g, st)
		}
	}
	c.start(2)
	c.serving(1, 2)
	c.produce(1, 1)
}

// settle returns once every replica has worked off what was asked of it before.
func settle(t *testing.T, s *session) {
	t.Helper()
	for range 2 { // the status is published at the end of a pass, the answer comes within it
		for _, r := range s.host.Replicas() {
			done := make(chan error, 1)
			r.ReadIndex(time.Now().Add(time.Second), func(_ ident.Index, err error) { done <- err })
			if err := <-done; err != nil {
				t.Logf("group %d: %v", r.Group(), err) // that it was answered is enough
			}
		}
	}
}

// TestRestoredCopyIsNotReleased holds the order of a verdict and an arrival
// (correctness rule 18): between them the session has not ended yet. A late verdict
// ends at once what an earlier arrival released.
func TestRestoredCopyIsNotReleased(t *testing.T) {
	c := newTrio(t)
	c.start(1, 2, 3)
	c.serving(1, 2, 3)
	c.stop(1, 2, 3)
	for _, verdict := range []struct{ restored, late bool }{{false, false}, {true, false}, {true, true}} {
		restored := verdict.restored
		b := &Broker{opt: Options{Config: c.cfg[3], Version: "test"}, log: slog.New(slog.DiscardHandler), fs: c.disk(3)}
		ls, err := b.listenAgain()
		if err != nil {
			t.Fatal(err)
		}
		s, err := b.open(ls)
		if err != nil {
			t.Fatal(err)
		}
		h := peerHandler{s}
		hello := identity.Hello{Cluster: s.store.ClusterID(), Node: 1, Store: ident.NewStoreID(), State: identity.Member, Boot: 1, Run: 1}
		if restored {
			hello.Seen = []identity.Sighting{{Store: s.store.ID(), Boot: s.store.Boot() + 1, Run: 7}}
		}
		said, err := hello.Encode()
		if err != nil {
			t.Fatal(err)
		}
		arrive := func() { h.PeerUp(transport.PeerInfo{Node: 2, Store: ident.NewStoreID()}) }
		if verdict.late {
			arrive()
			settle(t, s)
		}
		if _, err := h.AcceptHello(said); err != nil {
			t.Fatal(err)
		}
		if !verdict.late {
			arrive()
		}
		settle(t, s)
		for g, st := range states(s) {
			if idle := st == raftgroup.StateHeld || st == raftgroup.StateStopped; idle != restored {
				t.Errorf("%+v: group %d is %v", verdict, g, st)
			}
		}
		if got := len(s.fatal) > 0; got != restored {
			t.Errorf("%+v: the session ends: %v", verdict, got)
		}
		s.stop(t.Context())
		if err := s.store.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestAcceptHello is what a running node answers to Hellos that contradict what it knows.
func TestAcceptHello(t *testing.T) {
	c := newTrio(t)
	c.start(1, 2, 3)
	c.serving(1, 2, 3)
	s := c.b[1].session()
	eventually(t, 10*time.Second, "node 3 is connected", func() error {
		if !s.tr.Connected(3) {
			return errors.New("not yet")
		}
		return nil
	})
	three := c.b[3].session()
	good := three.hello()
	for _, tc := range []struct {
		name string
		edit func(h *identity.Hello)
		want string
	}{
		{"as it is", func(*identity.Hello) {}, ""},
		{"my own id", func(h *identity.Hello) { h.Node = 1 }, "node 1 is my own id"},
		{"another cluster", func(h *identity.Hello) { h.Cluster = identity.NewClusterID() }, "another cluster: node 3"},
		{"a second process on another store", func(h *identity.Hello) { h.Store = ident.NewStoreID() }, "node id is taken: node 3 is running with store"},
		{"an older boot", func(h *identity.Hello) { h.Run, h.Boot = h.Run+2, h.Boot-1 }, "is a restored copy: boot"},
		{"the same boot in another run", func(h *identity.Hello) { h.Run += 2 }, "is a restored copy: boot"},
		{"a blank newcomer", func(h *identity.Hello) {
			h.Node, h.Store, h.Cluster, h.State = 4, ident.NewStoreID(), "", identity.Blank
		}, ""},
	} {
		h := good
		tc.edit(&h)
		b, err := h.Encode()
		if err != nil {
			t.Fatal(err)
		}
		_, err = peerHandler{s}.AcceptHello(b)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	// What a peer says of the durable LSN counts too, and is told on.
	lsn := three.rlog.DurableLSN() + 1<<40
	s.Saw(3, three.store.ID(), lsn)
	h := good
	h.Boot, h.Run = h.Boot+1, h.Run+2
	b, err := h.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (peerHandler{s}).AcceptHello(b); err == nil || !strings.Contains(err.Error(), "durable LSN") {
		t.Errorf("an older LSN: %v", err)
	}
	if !slices.ContainsFunc(s.hello().Seen, func(g identity.Sighting) bool { return g.Store == three.store.ID() && g.LSN == lsn }) {
		t.Errorf("the Hello does not tell what was seen: %+v", s.hello().Seen)
	}
}

// TestWitnessIsDurable: what was seen of a store survives this node's power loss
// once it is written, and a later record never gives way to an earlier one.
func TestWitnessIsDurable(t *testing.T) {
	fs := vfs.NewCrashableMem()
	cfg := testConfig(t, nil)
	b := standalone(t, cfg, fs)
	var s *session
	eventually(t, 10*time.Second, "a session", func() error {
		if s = b.session(); s == nil || !s.serving.Load() {
			return errors.New("not yet")
		}
		return nil
	})
	h := identity.Hello{Node: 9, Store: ident.NewStoreID(), Boot: 4, Run: 8, LSN: 100}
	s.memory.witness.Greeted(h)
	s.memory.created(77)
	if err := s.memory.persist(); err != nil {
		t.Fatal(err)
	}
	disk := fs.CrashClone(vfs.CrashCloneCfg{})
	crashed := &Broker{opt: Options{Config: testConfig(t, nil)}, log: slog.New(slog.DiscardHandler), fs: disk}
	ls, err := crashed.listen()
	if err != nil {
		t.Fatal(err)
	}
	defer ls.close()
	again, err := crashed.open(ls)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		again.stop(t.Context())
		if err := again.store.Close(); err != nil {
			t.Error(err)
		}
	}()
	h.Boot, h.Run = 3, 9
	if behind := again.memory.witness.Greeted(h); behind == "" {
		t.Error("after a power loss an older boot is welcome")
	}
	if got := again.memory.createdUpTo(); got != 77 {
		t.Errorf("created up to %d, want 77", got)
	}
}

// TestDamagedMetadataReplicaIsReplaced flips a byte in node 3's metadata
// checkpoint: the replica is quarantined, and a fresh one takes its place
// although no Image reaches the node before.
func TestDamagedMetadataReplicaIsReplaced(t *testing.T) {
	for what, damage := range map[string]func(t *testing.T, fs vfs.FS, id ident.ReplicaID){
		"checkpoint": func(t *testing.T, fs vfs.FS, id ident.ReplicaID) {
			flip(t, fs, fmt.Sprintf("/data/replicas/meta.%d/g1/checkpoint", id), nil)
		},
		"creation": func(t *testing.T, fs vfs.FS, _ ident.ReplicaID) {
			flip(t, fs, "/data/raftlog/00000001.log", []byte(metadata.MetaTopic))
		},
	} {
		t.Run(what, func(t *testing.T) { damagedMetadataReplica(t, damage) })
	}
}

func damagedMetadataReplica(t *testing.T, damage func(t *testing.T, fs vfs.FS, id ident.ReplicaID)) {
	c := newTrio(t)
	c.start(1, 2, 3)
	c.serving(1, 2, 3)
	c.produce(0, 3)
	c.records(3, 3)
	before := c.b[3].session()
	old := before.host.Replica(ident.MetaGroup).ID()
	topic := before.host.Replica(before.meta.Image().TopicPartition("t", 0).Group).ID()
	c.stop(3)
	damage(t, c.fs[3], old)
	c.produce(3, 3)
	c.start(3)
	eventually(t, 20*time.Second, "node 3's metadata replica is another and votes", func() error {
		s := c.b[3].session()
		if s == nil {
			return errors.New("no session")
		}
		r := s.host.Replica(ident.MetaGroup)
		if r == nil || r.ID() == old {
			return errors.New("the old one")
		}
		if st := r.Status(); st.State != raftgroup.StateRunning || st.Role == raftgroup.RoleLearner || len(st.Members) != 3 {
			return fmt.Errorf("%v %v of %d", st.State, st.Role, len(st.Members))
		}
		if s.host.ByID(old) != nil {
			return errors.New("the old one is still here")
		}
		return nil
	})
	c.serving(3)
	c.records(3, 6)
	c.produce(6, 1)
	// Nothing else was touched: not to read the metadata is no reason to delete (docs/architecture.md).
	s := c.b[3].session()
	p := s.meta.Image().TopicPartition("t", 0)
	if r := s.host.Replica(p.Group); r.ID() != topic || r.Status().SnapshotsInstalled != 0 {
		t.Errorf("the topic's replica is %d, was %d, with %d installs", r.ID(), topic, r.Status().SnapshotsInstalled)
	}
}

// TestLostAnswerAboutAMetadataLearner damages a metadata learner whose successor was named in an answer that never
// came: the metadata does not know the learner any more, and the node makes the successor all the same.
func TestLostAnswerAboutAMetadataLearner(t *testing.T) {
	c := newPair(t)
	c.start(1, 2)
	c.serving(1, 2)
	r := c.b[2].session().host.Replica(ident.MetaGroup)
	old, role := r.ID(), r.Status().Role
	if role != raftgroup.RoleLearner {
		t.Fatalf("node 2's metadata replica is a %v", role)
	}
	c.stop(2)
	flip(t, c.fs[2], fmt.Sprintf("/data/replicas/meta.%d/g1/checkpoint", old), nil)
	if _, err := c.b[1].session().submit(t.Context(), &metadata.ReplaceReplica{Group: ident.MetaGroup, Replica: old, Reason: "damaged"}); err != nil {
		t.Fatal(err)
	}
	c.start(2)
	c.serving(2)
	if id, want := c.b[2].session().host.Replica(ident.MetaGroup).ID(), c.b[1].session().meta.Image().Meta.OnNode(2).ID; id != want || id == old {
		t.Errorf("node 2 has metadata replica %d, the metadata names %d", id, want)
	}
}

// flip flips a bit of the first place of text in a file, nil: of its middle.
func flip(t *testing.T, fs vfs.FS, name string, text []byte) {
	t.Helper()
	b, err := vfs.ReadFile(fs, name, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	at := len(b) / 2
	if text != nil {
		if at = bytes.Index(b, text); at < 0 {
			t.Fatalf("%s does not have %q", name, text)
		}
	}
	b[at] ^= 1
	if err := vfs.WriteFileSync(fs, name, b, vfs.CategorySnapshot); err != nil {
		t.Fatal(err)
	}
}

// TestReplacementWaitsForACurrentImage: a replica found damaged at start may be
// younger than the Image of this node's checkpoint.
func TestReplacementWaitsForACurrentImage(t *testing.T) {
	fs := vfs.NewCrashableMem()
	cfg := testConfig(t, nil)
	b, err := Start(t.Context(), Options{Config: cfg, Log: slog.New(slog.DiscardHandler), FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "it serves", func() error {
		if s := b.session(); s == nil || !s.serving.Load() {
			return errors.New("not yet")
		}
		return nil
	})
	b.Stop()
	if err := b.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	b = &Broker{opt: Options{Config: cfg}, log: slog.New(slog.DiscardHandler), fs: fs}
	ls, err := b.listen()
	if err != nil {
		t.Fatal(err)
	}
	defer ls.close()
	s, err := b.open(ls)
	if err != nil {
		t.Fatal(err)
	}
	if s.meta.Image().ClusterID == "" {
		t.Fatal("the checkpoint holds no Image")
	}
	ended := make(chan struct{})
	s.ReplacementNeeded(999, 77, "damaged")
	go func() {
		s.tasks.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		t.Error("given up by an Image that is not known to be current")
	case <-time.After(100 * time.Millisecond):
	}
	close(s.metaCurrent)
	<-ended // now the Image says that nobody knows the replica
	s.stop(t.Context())
	if err := s.store.Close(); err != nil {
		t.Error(err)
	}
}

// fakePeer is a node of which only the transport is real.
type fakePeer struct {
	hello []byte
	tr    atomic.Pointer[transport.Transport]
	calls atomic.Int32
	call  func(ctx context.Context, method string) ([]byte, error)
	up    chan struct{}
	// refuses, if not empty, is what it answers to Hellos.
	refuses string
}

func (d *fakePeer) Hello() []byte { return d.hello }

func (d *fakePeer) AcceptHello(b []byte) (transport.PeerInfo, error) {
	h, err := identity.DecodeHello(b)
	if d.refuses != "" {
		err = errors.New(d.refuses)
	}
	return transport.PeerInfo{Node: h.Node, Store: h.Store, Addr: h.RaftAddr}, err
}

func (d *fakePeer) Refused(ident.NodeID, string) {}

func (d *fakePeer) Frame(transport.PeerInfo, transport.Class, []byte) {}

func (d *fakePeer) PeerUp(transport.PeerInfo) { close(d.up) }

func (d *fakePeer) PeerDown(ident.NodeID) {}

func (d *fakePeer) Call(ctx context.Context, _ transport.PeerInfo, method string, _ []byte) ([]byte, error) {
	d.calls.Add(1)
	return d.call(ctx, method)
}

// fake connects a peer that says hello to the node at raft until the test ends.
func fake(t *testing.T, hello identity.Hello, raft string, call func(d *fakePeer, ctx context.Context, method string) ([]byte, error)) *fakePeer {
	t.Helper()
	return fakeThat(t, "", hello, raft, call)
}

// fakeThat is fake of a peer that refuses Hellos with what refuses says, if anything.
func fakeThat(t *testing.T, refuses string, hello identity.Hello, raft string, call func(d *fakePeer, ctx context.Context, method string) ([]byte, error)) *fakePeer {
	t.Helper()
	said, err := hello.Encode()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", hello.RaftAddr)
	if err != nil {
		t.Fatal(err)
	}
	d := &fakePeer{hello: said, up: make(chan struct{}), refuses: refuses}
	d.call = func(ctx context.Context, method string) ([]byte, error) { return call(d, ctx, method) }
	tr, err := transport.New(transport.Options{
		Node: hello.Node, Listen: l, Peers: map[ident.NodeID]string{1: raft}, Handler: d, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	d.tr.Store(tr)
	t.Cleanup(tr.Close)
	tr.Start()
	return d
}

// underFakeLeader is a session to which a fake peer is the metadata's leader.
func underFakeLeader(t *testing.T, answer func(*fakePeer, context.Context, string) ([]byte, error)) (*session, *fakePeer) {
	t.Helper()
	cfg := testConfig(t, nil)
	b := standalone(t, cfg, vfs.NewCrashableMem())
	var s *session
	eventually(t, 10*time.Second, "it serves", func() error {
		if s = b.session(); s == nil || !s.serving.Load() {
			return errors.New("not yet")
		}
		return nil
	})
	addr := freeAddr(t)
	hello := identity.Hello{Cluster: s.store.ClusterID(), Node: 9, Store: ident.NewStoreID(), State: identity.Member, Boot: 1, Run: 1, RaftAddr: addr}
	d := fake(t, hello, cfg.Raft.Listen, answer)
	s.tr.SetPeer(9, addr)
	<-d.up
	other := metadata.NewLeaders(9)
	other.Set(ident.MetaGroup, 1000, true)
	if err := s.leaders.Merge(9, other.Snapshot()); err != nil {
		t.Fatal(err)
	}
	return s, d
}

// TestSubmitOfUncertainOutcomeIsNotRepeated: only what was certainly not proposed
// is submitted again; a leader that died with the command in hand may have proposed it.
func TestSubmitOfUncertainOutcomeIsNotRepeated(t *testing.T) {
	s, d := underFakeLeader(t, func(d *fakePeer, ctx context.Context, _ string) ([]byte, error) {
		go d.tr.Load().Close()
		<-ctx.Done()
		return nil, ctx.Err()
	})
	_, err := s.submitOnce(t.Context(), &metadata.AllocateProducerIDs{})
	if err == nil || errors.Is(err, errRefused) {
		t.Errorf("a command whose outcome is unknown: %v", err)
	}
	if n := d.calls.Load(); n != 1 {
		t.Fatalf("sent %d times", n)
	}
	eventually(t, 5*time.Second, "a dead leader was asked for nothing", func() error {
		if _, err := s.submitOnce(t.Context(), &metadata.AllocateProducerIDs{}); !errors.Is(err, errRefused) {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
}

// TestSubmitTellsWhyTheOutcomeIsUnknown: a leader's words across the network are the errors that they
// would be on the leader itself, which clients know to repeat.
func TestSubmitTellsWhyTheOutcomeIsUnknown(t *testing.T) {
	for _, c := range []struct {
		answer byte
		want   error
	}{{submitUnknown, raftgroup.ErrLeadershipLost}, {submitLate, raftgroup.ErrTimeout}, {77, raftgroup.ErrLeadershipLost}} {
		s, _ := underFakeLeader(t, func(*fakePeer, context.Context, string) ([]byte, error) {
			return append([]byte{c.answer}, "so it is"...), nil
		})
		if _, err := s.submit(t.Context(), &metadata.AllocateProducerIDs{}); !errors.Is(err, c.want) || errors.Is(err, errRefused) {
			t.Errorf("answer %d is %v, want %v", c.answer, err, c.want)
		}
	}
}
