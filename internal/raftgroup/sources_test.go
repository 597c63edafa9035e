package raftgroup

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"chronik/internal/ident"
	"chronik/internal/raftlog"
	"chronik/internal/snapshot"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// fileMachine appends every entry to one file; its blob is the file's length.
type fileMachine struct {
	fs   vfs.FS
	name string
	f    vfs.File
	size atomic.Int64
}

const machineFile = "0.log"

func openFileMachine(fs vfs.FS, dir string, blob []byte, _ []CaptureFile) (StateMachine, error) {
	m := &fileMachine{fs: fs}
	return m, m.open(dir, blob)
}

func (m *fileMachine) open(dir string, blob []byte) (err error) {
	m.name = path.Join(dir, machineFile)
	m.size.Store(0)
	if len(blob) == 8 {
		m.size.Store(int64(binary.BigEndian.Uint64(blob)))
	}
	m.f, err = m.fs.OpenReadWrite(m.name, vfs.CategorySegment)
	return err
}

func (m *fileMachine) Apply(es []Entry) ([]Result, error) {
	for _, e := range es {
		if _, err := m.f.WriteAt(bytes.Clone(e.Data), m.size.Load()); err != nil {
			return nil, err
		}
		m.size.Add(int64(len(e.Data)))
	}
	return make([]Result, len(es)), nil
}

func (m *fileMachine) Capture() (Capture, error) { return &fileCapture{m.f, m.size.Load()}, nil }

func (m *fileMachine) Install(dir string, blob []byte) error {
	return errors.Join(m.f.Close(), m.open(dir, blob))
}

func (m *fileMachine) Close() error { return m.f.Close() }

type fileCapture struct {
	f    vfs.File
	size int64
}

func (c *fileCapture) Sync() error { return c.f.Sync() }

func (c *fileCapture) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(binary.BigEndian.AppendUint64(nil, uint64(c.size)))
	return int64(n), err
}

func (c *fileCapture) Files() []CaptureFile { return []CaptureFile{{Name: machineFile, Size: c.size}} }
func (c *fileCapture) Published()           {}
func (c *fileCapture) Release()             {}

// write appends n bytes of b's.
func (c *cluster) write(from, to int) {
	c.t.Helper()
	for i := from; i < to; i++ {
		c.put("k", strings.Repeat(fmt.Sprintf("%08d", i), 8<<10)) // 64 KiB
	}
}

// same waits until all nodes hold the same file of the given length.
func (c *cluster) same(size int64) {
	c.t.Helper()
	c.eventually("the same bytes everywhere", func() bool {
		var want []byte
		for _, nd := range c.nodes {
			r := nd.replica()
			if r == nil || r.Status().AppliedIndex != c.leader().replica().Status().AppliedIndex || r.Status().State != StateRunning {
				return false
			}
			b, err := vfs.ReadFile(nd.fs, path.Join(snapshot.GenDir(r.base, r.liveGen.Load()), machineFile), 1<<30)
			must(c.t, err)
			if want == nil {
				want = b
			}
			if int64(len(b)) != size || !bytes.Equal(b, want) {
				return false
			}
		}
		return true
	})
}

const entryBytes = 2 + 64<<10 // "k=" and the value

// A follower comes back: the two others that caught up give the bytes, the leader
// next to nothing, and status and log say from where they came. At the end nothing is
// pinned anywhere.
func TestFollowersGiveTheBytes(t *testing.T) {
	inCluster(t, 4, func(c *cluster) { smallSteps(c); c.open = openFileMachine }, func(c *cluster) {
		c.create(4)
		c.write(0, 4)
		f := c.follower()
		id, store := f.id, f.store
		disk := f.kill(0)
		c.write(4, 230)
		l := c.trimmedLeader(200)
		before := l.srv.Stats().BytesSent
		back := c.boot(id, store, disk)
		c.same(230 * entryBytes)
		total := int64(226 * entryBytes)
		st := back.rcv.Stats()
		if sent := l.srv.Stats().BytesSent - before; sent*20 >= total {
			t.Errorf("the leader sent %d of %d bytes; received %v", sent, total, st.From)
		}
		if back.replica().Status().SnapshotsInstalled != 1 || st.BytesReceived < total {
			t.Errorf("%+v", st)
		}
		if text := c.logText.String(); !strings.Contains(text, "Received snapshot for orders-0") || !strings.Contains(text, `from="node `) {
			t.Error("the log does not say from where the bytes came")
		}
		c.eventually("no pins", func() bool {
			for _, nd := range c.nodes {
				if nd.srv.Stats().Pins != 0 {
					return false
				}
			}
			return true
		})
	})
}

// archiveOf is an object store that has the bytes of a node's live generation.
type archiveOf struct {
	nd     *node
	opened *atomic.Int32
	closed *atomic.Int32
}

func (a archiveOf) open(context.Context, ident.GroupID) (snapshot.ChunkSource, error) {
	a.opened.Add(1)
	return a, nil
}

func (a archiveOf) Name() string { return "object store" }
func (a archiveOf) Close()       { a.closed.Add(1) }

func (a archiveOf) ReadChunk(_ context.Context, f *snapshot.ManifestFile, i int, _ []byte) ([]byte, error) {
	r := a.nd.replica()
	b, err := vfs.ReadFile(a.nd.fs, path.Join(snapshot.GenDir(r.base, r.liveGen.Load()), f.Name), 1<<30)
	off, n := f.Range(i)
	if err != nil || f.Name == snapshot.CheckpointName || int64(len(b)) < off+int64(n) {
		return nil, snapshot.ErrNoChunk
	}
	return b[off : off+int64(n)], nil
}

// With an object store nobody else is asked for what it has.
func TestArchiveGivesTheBytes(t *testing.T) {
	var a archiveOf
	inCluster(t, 3, func(c *cluster) {
		smallSteps(c)
		c.open = openFileMachine
		a = archiveOf{opened: &atomic.Int32{}, closed: &atomic.Int32{}}
		tune := c.tune
		c.tune = func(o *Options) {
			tune(o)
			o.Archive = func(ctx context.Context, g ident.GroupID, _ int64) (snapshot.ChunkSource, error) {
				return a.open(ctx, g)
			}
		}
	}, func(c *cluster) {
		c.create(3)
		c.write(0, 4)
		f := c.follower()
		id, store := f.id, f.store
		disk := f.kill(0)
		c.write(4, 100)
		a.nd = c.trimmedLeader(80)
		back := c.boot(id, store, disk)
		c.same(100 * entryBytes)
		var fromStore int64
		for _, s := range back.rcv.Stats().From {
			if s.Source == "object store" {
				fromStore = s.Bytes
			}
		}
		if fromStore < 80*entryBytes || a.opened.Load() != 1 || a.closed.Load() != 1 {
			t.Errorf("from %v; opened %d, closed %d", back.rcv.Stats().From, a.opened.Load(), a.closed.Load())
		}
	})
}

// Who is asked for bytes: voters on connected nodes that hold the log up to the
// snapshot, and neither the receiver nor a learner nor one that is away.
func TestPeersFor(t *testing.T) {
	inCluster(t, 5, smallSteps, func(c *cluster) {
		c.create(4)
		fresh := Member{Replica: 99, Node: 5, Store: storeOf(5, 0)}
		must(t, c.nodes[5].host.Create([]Spec{specFor(fresh, nil)}))
		c.nodes[5].host.Start(testGroup)
		c.change(func(l *Replica, w Waiter) { l.AddLearner(fresh, 1, ProposeOptions{}, w) })
		c.fill("k", 0, 20)
		c.converge(20)
		l := c.leader()
		var others []*node
		for id := ident.NodeID(1); id <= 4; id++ {
			if id != l.id {
				others = append(others, c.nodes[id])
			}
		}
		ask := func(to *node, index ident.Index) string {
			r, got := l.replica(), ""
			done := make(chan struct{})
			r.postLocal(localEvent{fn: func(*outbox) {
				defer close(done)
				got = fmt.Sprint(r.peersFor(to.replica().ID(), index))
			}})
			<-done
			return got
		}
		last := l.replica().Status().LastIndex
		// What is applied everywhere is not yet acknowledged everywhere.
		want := fmt.Sprint([]ident.NodeID{others[1].id, others[2].id})
		c.eventually("both others are asked", func() bool { return ask(others[0], last) == want })
		if got := ask(others[0], last+1); got != "[]" {
			t.Errorf("got %s for an index that nobody has", got)
		}
		c.net.Isolate(others[1].id)
		c.eventually("away", func() bool { return ask(others[0], last) == fmt.Sprint([]ident.NodeID{others[2].id}) })
		c.net.HealAll()
	})
}

// A follower's checkpoint that is older than the offered one is renewed for whoever
// asks; a replica that is not sound gives nothing.
func TestFindCheckpoint(t *testing.T) {
	inCluster(t, 1, nil, func(c *cluster) {
		c.create(1)
		c.fill("k", 0, 10)
		nd := c.nodes[1]
		r := nd.replica()
		find := func() (string, ident.ReplicaID, error) {
			return nd.host.findCheckpoint(context.Background(), testGroup, r.Status().AppliedIndex)
		}
		dir, id, err := find()
		must(t, err)
		ck, err := snapshot.ReadHeader(nd.fs, dir)
		must(t, err)
		if ck.Point.Index != r.Status().AppliedIndex || id != r.ID() {
			t.Fatalf("checkpoint at %d of replica %d", ck.Point.Index, id)
		}
		if _, _, err := nd.host.findCheckpoint(context.Background(), testGroup+1, 1); !errors.Is(err, errNotServing) {
			t.Fatal(err)
		}
		r.harmed.Store(true)
		if _, _, err := find(); !errors.Is(err, errNotServing) {
			t.Fatalf("a damaged replica: %v", err)
		}
		r.harmed.Store(false)
		r.shutdown(ErrStopped)
		<-r.done
		if _, _, err := find(); !errors.Is(err, errNotServing) {
			t.Fatalf("a closed replica: %v", err)
		}
	})
}

func TestPriority(t *testing.T) {
	min := 2
	h := &Host{opt: Options{MinReplicas: func(Spec) int { return min }}}
	for _, c := range []struct {
		spec  Spec
		voter bool
		peers int
		want  snapshot.Priority
	}{
		{Spec{Group: ident.MetaGroup, Priority: true}, true, 0, snapshot.PriorityMeta},
		{Spec{Group: 5, Priority: true}, true, 0, snapshot.PriorityCoordinator},
		{Spec{Group: 5}, true, 0, snapshot.PriorityUnderMinISR},
		{Spec{Group: 5}, true, 1, snapshot.PriorityVoter},
		{Spec{Group: 5}, false, 0, snapshot.PriorityLearner},
	} {
		r := &Replica{h: h, spec: c.spec}
		if got := r.priority(c.voter, snapshot.Offer{Peers: make([]ident.NodeID, c.peers)}); got != c.want {
			t.Errorf("%+v: %d, want %d", c, got, c.want)
		}
	}
	r := &Replica{h: &Host{}, spec: Spec{Group: 5}}
	if got := r.priority(true, snapshot.Offer{}); got != snapshot.PriorityVoter {
		t.Errorf("without a minimum: %d", got)
	}
}

// lateTransfers begin when an election timeout has passed, and the log is not held
// for who is behind.
func lateTransfers(c *cluster) {
	c.tune = func(o *Options) {
		o.Policy = Policy{ThresholdEntries: 20, KeepEntries: 2, HoldBytes: 1}
		o.Archive = func(context.Context, ident.GroupID, int64) (snapshot.ChunkSource, error) {
			time.Sleep(5 * time.Second)
			return nil, nil
		}
	}
}

// Rule 15: a snapshot that was staged while nobody led is what a new leader's offer
// asks for, if that leader's log reaches down to it: it is used, not fetched again.
func TestRule15StagedSnapshotServesANewLeader(t *testing.T) {
	inCluster(t, 3, lateTransfers, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 20)
		f := c.follower()
		id, store := f.id, f.store
		disk := f.kill(0)
		c.fill("k", 20, 90)
		old := c.trimmedLeader(80)
		c.hold = true
		back := c.boot(id, store, disk)
		var cut atomic.Bool
		back.setFilter(func(_ transport.PeerInfo, it item) bool {
			if it.kind == itemOffer && it.src.node == old.id {
				cut.Store(true) // the offer itself passes; then it hears nobody
				return false
			}
			return cut.Load()
		})
		startAll(back.host)
		c.eventually("staged", func() bool { return back.rcv.Stats().Completed == 1 })
		time.Sleep(3 * time.Second) // no leader is known any more
		staged := func() bool {
			ok := false
			done := make(chan struct{})
			r := back.replica()
			r.postLocal(localEvent{fn: func(*outbox) { ok = r.rs.recv.staged != nil && r.rs.lead == 0; close(done) }})
			<-done
			return ok
		}
		if !staged() {
			t.Fatal("the snapshot does not wait for a leader: this proves nothing")
		}
		for _, o := range c.nodes {
			if o != old && o != back {
				old.replica().TransferLeadership(o.replica().ID())
			}
		}
		c.eventually("another leader", func() bool { o := c.leads(); return o != nil && o != old })
		offers := 0
		back.setFilter(func(_ transport.PeerInfo, it item) bool {
			if it.kind == itemOffer {
				offers++
			}
			return false
		})
		c.converge(90)
		st := back.rcv.Stats()
		if st.Completed != 1 || st.Failed != 0 || back.replica().Status().SnapshotsInstalled != 1 {
			t.Fatalf("%+v, %d installed, %d offers", st, back.replica().Status().SnapshotsInstalled, offers)
		}
	})
}

// Rule 15: a new leader whose log begins behind what was staged sends another
// snapshot; the chunks are kept.
func TestRule15RetargetsAndKeepsChunks(t *testing.T) {
	inCluster(t, 4, func(c *cluster) { lateTransfers(c); c.open = openFileMachine }, func(c *cluster) {
		c.create(4)
		c.write(0, 2)
		f := c.follower()
		id, store := f.id, f.store
		disk := f.kill(0)
		c.write(2, 100)
		old := c.trimmedLeader(80)
		c.hold = true
		back := c.boot(id, store, disk)
		var cut atomic.Bool
		back.setFilter(func(_ transport.PeerInfo, it item) bool {
			if it.kind == itemOffer && !cut.Swap(true) {
				return false
			}
			return cut.Load()
		})
		startAll(back.host)
		c.eventually("staged", func() bool { return back.rcv.Stats().Completed == 1 })
		first := back.rcv.Stats().BytesReceived
		c.write(100, 200)
		c.trimmedLeader(180)
		for _, o := range c.nodes {
			if o != old && o != back {
				old.replica().TransferLeadership(o.replica().ID())
				break
			}
		}
		c.eventually("another leader", func() bool { o := c.leads(); return o != nil && o != old })
		c.trimmedLeader(180)
		back.setFilter(nil)
		c.same(200 * entryBytes)
		st := back.rcv.Stats()
		again, missing := st.BytesReceived-first, int64(100*entryBytes)
		if again > missing+1<<20 || again < missing/2 || back.replica().Status().SnapshotsInstalled != 1 {
			t.Fatalf("received %d bytes again, missing were %d; %+v", again, missing, st)
		}
	})
}

// Rule 15: what is on its way from a deposed leader will do for the new one; if that
// leader then dies, the new one's offer is taken up at once.
func TestRule15OldLeaderDiesInTransfer(t *testing.T) {
	inCluster(t, 4, func(c *cluster) { lateTransfers(c); c.open = openFileMachine }, func(c *cluster) {
		c.create(4)
		c.write(0, 2)
		f := c.follower()
		id, store := f.id, f.store
		disk := f.kill(0)
		c.write(2, 100)
		old := c.trimmedLeader(80)
		var offers, failed atomic.Int32
		back := c.boot(id, store, disk)
		back.setFilter(func(_ transport.PeerInfo, it item) bool {
			if it.kind == itemOffer {
				offers.Add(1)
			}
			return false
		})
		c.eventually("receiving", func() bool { return back.replica().Status().State == StateReceiving })
		for _, o := range c.nodes {
			if o != old && o != back {
				old.replica().TransferLeadership(o.replica().ID())
				break
			}
		}
		c.eventually("another leader", func() bool { o := c.leads(); return o != nil && o != old })
		for _, o := range c.nodes {
			o.setFilter(func(_ transport.PeerInfo, it item) bool {
				if it.kind == itemStatus && it.state == transferFailed {
					failed.Add(1)
				}
				return false
			})
		}
		time.Sleep(time.Second)
		old.kill(0)
		c.same(100 * entryBytes)
		if st := back.rcv.Stats(); failed.Load() != 0 || st.Completed != 1 || back.replica().Status().SnapshotsInstalled != 1 {
			t.Fatalf("%d failures told, %+v", failed.Load(), st)
		}
	})
}

// A pin holds the log behind its snapshot, until the raftlog needs the room.
func TestPinYieldsToPressure(t *testing.T) {
	inCluster(t, 1, smallSteps, func(c *cluster) {
		c.create(1)
		c.fill("k", 0, 30)
		nd := c.nodes[1]
		r := nd.replica()
		c.eventually("checkpoint", func() bool { return r.Status().SnapshotIndex > 10 })
		pin, err := nd.srv.Pin(testGroup, r.ID(), snapshot.GenDir(r.base, 1), 3)
		must(t, err)
		c.fill("m", 0, 60)
		time.Sleep(3 * time.Second)
		if st := r.Status(); st.FirstIndex != pin.Point.Index+1 && st.FirstIndex > pin.Point.Index || st.SnapshotIndex < 70 { // one is due every 20 entries
			t.Fatalf("pin at %d: first index %d, snapshot %d", pin.Point.Index, st.FirstIndex, st.SnapshotIndex)
		}
		nd.host.onPressure([]raftlog.Holder{{Replica: r.ID(), UpTo: r.Status().LastIndex}}, false)
		time.Sleep(100 * time.Millisecond)
		if st := r.Status(); st.FirstIndex < 80 {
			t.Fatalf("under pressure: first index %d", st.FirstIndex)
		}
		c.fill("n", 0, 60)
		time.Sleep(pressureLasts + 2*time.Second)
		first := r.Status().FirstIndex
		pin, err = nd.srv.Pin(testGroup, r.ID(), snapshot.GenDir(r.base, 1), 3)
		must(t, err)
		c.fill("o", 0, 60)
		time.Sleep(3 * time.Second)
		if st := r.Status(); st.FirstIndex > pin.Point.Index+1 || first < 100 {
			t.Fatalf("after it: first index %d, pin at %d", st.FirstIndex, pin.Point.Index)
		}
		nd.srv.Unpin(pin.ID)
		time.Sleep(2 * time.Second) // the end of a pin is seen by the next slow tick
		if st := r.Status(); st.FirstIndex <= pin.Point.Index+1 {
			t.Fatalf("without pin: first index %d", st.FirstIndex)
		}
	})
}
