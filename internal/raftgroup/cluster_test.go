package raftgroup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"chronik/internal/ident"
	"chronik/internal/raftlog"
	"chronik/internal/snapshot"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testGroup   = ident.GroupID(7)
	testTimeout = time.Minute // of a synctest bubble's clock
)

// cluster is a few nodes over crashable memory disks and an in-memory network,
// in a synctest bubble.
type cluster struct {
	t     *testing.T
	net   *transport.Network
	nodes map[ident.NodeID]*node
	// tune changes a node's options before its host starts.
	tune func(*Options)
	// hold keeps groups back after OpenAll.
	hold bool
	log  *slog.Logger
	// logWriter receives every node's log lines.
	logText *lockedBuffer
	open    OpenFunc
	// mu is held by tests that look for the leader while nodes come and go.
	mu sync.Mutex
}

// node is one node's process.
type node struct {
	c     *cluster
	id    ident.NodeID
	store ident.StoreID
	fs    *vfs.MemFS
	end   *transport.Node
	log   *raftlog.Log
	srv   *snapshot.Server
	rcv   *snapshot.Receiver
	host  *Host
	ready chan struct{}
	ev    *recorder
	// filter drops frames on arrival, by what they hold; nil: none.
	mu     sync.Mutex
	filter func(from transport.PeerInfo, it item) bool
	// tap sees every frame on arrival; nil: nobody does.
	tap func(from transport.PeerInfo, frame []byte)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	return len(p), nil
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}

// recorder remembers Events.
type recorder struct {
	mu          sync.Mutex
	quarantined map[ident.ReplicaID]error
	told        int // of quarantined ones
	replace     map[ident.ReplicaID]string
	leaders     []leadership
	members     []Member
	saw         map[ident.NodeID]uint64
	fatal       error
}

func newRecorder() *recorder {
	return &recorder{
		quarantined: make(map[ident.ReplicaID]error), replace: make(map[ident.ReplicaID]string),
		saw: make(map[ident.NodeID]uint64),
	}
}

func (e *recorder) LeaderChanged(_ ident.GroupID, _ ident.ReplicaID, n ident.NodeID, t ident.Term, me bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.leaders = append(e.leaders, leadership{n, t, me})
}

func (e *recorder) Quarantined(_ ident.GroupID, r ident.ReplicaID, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.quarantined[r] = err
	e.told++
}

func (e *recorder) ReplacementNeeded(_ ident.GroupID, r ident.ReplicaID, why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.replace[r] = why
}

func (e *recorder) MembersChanged(_ ident.GroupID, ms []Member) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.members = ms
}

func (e *recorder) Saw(n ident.NodeID, _ ident.StoreID, lsn uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.saw[n] = max(e.saw[n], lsn)
}

func (e *recorder) Fatal(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.fatal = err
}

func (e *recorder) quarantine(r ident.ReplicaID) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.quarantined[r]
}

// inCluster runs a test in a bubble with n started nodes.
func inCluster(t *testing.T, n int, prepare func(*cluster), test func(c *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{t: t, net: transport.NewNetwork(transport.NetworkOptions{Seed: 1}), nodes: make(map[ident.NodeID]*node), open: OpenMemory}
		c.logText = &lockedBuffer{}
		var w io.Writer = c.logText
		if os.Getenv("RAFTGROUP_LOG") != "" {
			w = io.MultiWriter(w, os.Stderr)
		}
		c.log = slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
		if prepare != nil {
			prepare(c)
		}
		for i := range n {
			c.boot(ident.NodeID(i+1), storeOf(ident.NodeID(i+1), 0), vfs.NewCrashableMem())
		}
		defer func() {
			for _, nd := range c.nodes {
				nd.stop(context.Background())
			}
			c.net.Close()
		}()
		test(c)
	})
}

// startAll releases every replica.
func startAll(h *Host) {
	for _, r := range h.Replicas() {
		h.Start(r.Group())
	}
}

func storeOf(n ident.NodeID, life byte) ident.StoreID { return ident.StoreID{byte(n), life, 1} }

// boot starts a node on a disk.
func (c *cluster) boot(id ident.NodeID, store ident.StoreID, fs *vfs.MemFS) *node {
	c.t.Helper()
	nd := &node{c: c, id: id, store: store, fs: fs, ready: make(chan struct{}), ev: newRecorder()}
	c.nodes[id] = nd
	log := c.log.With("at", id)
	must(c.t, vfs.MkdirAllSync(fs, "/data"))
	var err error
	nd.log, err = raftlog.Open(raftlog.Options{
		FS: fs, Dir: "/data/raftlog", Store: store, Create: true, FileBytes: 1 << 20, MaxBytes: 8 << 20, Logger: log,
	})
	must(c.t, err)
	nd.srv = snapshot.NewServer(snapshot.ServerOptions{FS: fs, Logger: log})
	nd.rcv = snapshot.NewReceiver(snapshot.ReceiverOptions{FS: fs, Logger: log})
	nd.end = c.net.Join(id, nd)
	o := Options{
		Node: id, Store: store, FS: fs, Dir: "/data/replicas", Log: nd.log, Sender: nd.end, Server: nd.srv, Receiver: nd.rcv,
		Events: nd.ev, Logger: log, ElectionTimeout: time.Second, HeartbeatInterval: 100 * time.Millisecond, Workers: 2,
	}
	if c.tune != nil {
		c.tune(&o)
	}
	nd.host, err = NewHost(o)
	must(c.t, err)
	close(nd.ready)
	must(c.t, nd.host.OpenAll(func(Spec) OpenFunc { return c.open }))
	if !c.hold {
		startAll(nd.host)
	}
	return nd
}

// stop ends a node in order.
func (nd *node) stop(ctx context.Context) {
	nd.c.t.Helper()
	must(nd.c.t, nd.host.Stop(ctx))
	nd.end.Close()
	must(nd.c.t, nd.srv.Close())
	must(nd.c.t, nd.log.Close())
	delete(nd.c.nodes, nd.id)
}

// kill is kill -9 and, with keep 0, a power cut: what was not synced is lost.
// It returns the disk that is left.
func (nd *node) kill(keep int) *vfs.MemFS {
	nd.c.t.Helper()
	nd.c.net.Kill(nd.id) // first: what was promised until now must be on the disk
	disk := nd.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: keep, RNG: rand.New(rand.NewPCG(1, uint64(nd.id)))})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	must(nd.c.t, nd.host.Stop(ctx))
	must(nd.c.t, nd.srv.Close())
	must(nd.c.t, nd.log.Close())
	delete(nd.c.nodes, nd.id)
	return disk
}

// The node is its transport's Handler.

func (nd *node) Hello() []byte {
	b, err := json.Marshal(transport.PeerInfo{Node: nd.id, Store: nd.store})
	must(nd.c.t, err)
	return b
}

func (nd *node) AcceptHello(b []byte) (p transport.PeerInfo, err error) {
	return p, json.Unmarshal(b, &p)
}

func (nd *node) Refused(ident.NodeID, string) {}

func (nd *node) Frame(from transport.PeerInfo, _ transport.Class, frame []byte) {
	<-nd.ready
	nd.mu.Lock()
	filter, tap := nd.filter, nd.tap
	nd.mu.Unlock()
	if tap != nil {
		tap(from, frame)
	}
	if filter != nil {
		drop := false
		if _, err := decodeFrame(frame, func(it item) { drop = drop || filter(from, it) }); err != nil || drop {
			return
		}
	}
	if err := nd.host.HandleFrame(from, frame); err != nil {
		nd.c.t.Errorf("node %d: %v", nd.id, err)
	}
}

func (nd *node) setFilter(f func(from transport.PeerInfo, it item) bool) {
	nd.mu.Lock()
	nd.filter = f
	nd.mu.Unlock()
}

func (nd *node) setTap(f func(from transport.PeerInfo, frame []byte)) {
	nd.mu.Lock()
	nd.tap = f
	nd.mu.Unlock()
}

func (nd *node) Call(ctx context.Context, _ transport.PeerInfo, method string, req []byte) ([]byte, error) {
	<-nd.ready
	return nd.srv.Handle(ctx, method, req)
}

func (nd *node) PeerUp(p transport.PeerInfo) { <-nd.ready; nd.host.PeerUp(p) }
func (nd *node) PeerDown(peer ident.NodeID)  { <-nd.ready; nd.host.PeerDown(peer) }

// replica returns the test group's replica.
func (nd *node) replica() *Replica { return nd.host.Replica(testGroup) }

func (nd *node) sm() *MemoryStateMachine { return nd.replica().StateMachine().(*MemoryStateMachine) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// members are replicas 11, 12, ... on nodes 1, 2, ...
func members(n int) []Member {
	var ms []Member
	for i := range n {
		id := ident.NodeID(i + 1)
		ms = append(ms, Member{Replica: ident.ReplicaID(10 + i + 1), Node: id, Store: storeOf(id, 0)})
	}
	return ms
}

func specFor(m Member, ms []Member) Spec {
	return Spec{Group: testGroup, Replica: m.Replica, Name: "orders-0", Key: "aa-0", Topic: "orders", Members: ms}
}

// create makes the test group on the first n nodes.
func (c *cluster) create(n int) {
	c.t.Helper()
	ms := members(n)
	for _, m := range ms {
		must(c.t, c.nodes[m.Node].host.Create([]Spec{specFor(m, ms)}))
		if !c.hold {
			c.nodes[m.Node].host.Start(testGroup)
		}
	}
}

// eventually waits on the bubble's clock.
func (c *cluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	for end := time.Now().Add(testTimeout); ; time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			for _, nd := range c.nodes {
				for _, r := range nd.host.Replicas() {
					c.t.Logf("node %d: %+v", nd.id, r.Status())
				}
			}
			if len(c.logText.b) < 1<<16 {
				c.t.Log(c.logText.String())
			}
			c.t.Fatalf("not in %v: %s", testTimeout, what)
		}
	}
}

// leader waits for a serving leader.
func (c *cluster) leader() *node {
	c.t.Helper()
	var at *node
	c.eventually("a leader that serves", func() bool {
		at = c.leads()
		return at != nil
	})
	return at
}

func (c *cluster) leads() *node {
	for _, nd := range c.nodes {
		if r := nd.replica(); r != nil && r.IsLeader() {
			return nd
		}
	}
	return nil
}

// follower returns a node that does not lead.
func (c *cluster) follower() *node {
	c.t.Helper()
	l := c.leader()
	ids := make([]ident.NodeID, 0, len(c.nodes))
	for id := range c.nodes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		if id != l.id && c.nodes[id].replica() != nil {
			return c.nodes[id]
		}
	}
	c.t.Fatal("no follower")
	return nil
}

// told is a waiter's outcome.
type told struct {
	index ident.Index
	term  ident.Term
	res   Result
	err   error
}

type waiter chan told

func (w waiter) Applied(i ident.Index, t ident.Term, res Result, err error) {
	w <- told{i, t, res, err}
}

// propose returns the outcome of key=value at a node.
func (nd *node) propose(data string, opt ProposeOptions) told {
	w := make(waiter, 1)
	nd.replica().Propose([]byte(data), opt, w)
	return <-w
}

// put writes on whoever leads until it succeeds.
func (c *cluster) put(key, value string) told {
	c.t.Helper()
	var got told
	c.eventually("put "+key, func() bool {
		l := c.leads()
		if l == nil {
			return false
		}
		got = l.propose(key+"="+value, ProposeOptions{Deadline: time.Now().Add(5 * time.Second)})
		return got.err == nil
	})
	return got
}

func (c *cluster) fill(prefix string, from, to int) {
	c.t.Helper()
	for i := from; i < to; i++ {
		c.put(fmt.Sprintf("%s%d", prefix, i), "v")
	}
}

// converge waits until every replica of the group has applied the same.
func (c *cluster) converge(keys int) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("%d keys everywhere", keys), func() bool {
		for _, nd := range c.nodes {
			if r := nd.replica(); r != nil && (r.StateMachine() == nil || nd.sm().Len() != keys) {
				return false
			}
		}
		return true
	})
}

func isErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}
