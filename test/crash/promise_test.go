package crash

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"chronik/internal/ident"
	"chronik/internal/raftgroup"
	"chronik/internal/raftlog"
	"chronik/internal/snapshot"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// The one group of this file: replicas 11, 12, 13 on nodes 1, 2, 3.
const (
	promiseGroup = ident.GroupID(7)
	firstReplica = ident.ReplicaID(11)
)

// Raft's numbers of the messages that promise or claim something.
const (
	msgApp       = 3
	msgAppResp   = 4
	msgVoteResp  = 6
	msgHeartbeat = 8
)

// message is what a raft message on the wire says (internal/raftgroup/frame.go draws it).
type message struct {
	kind                byte
	from, to            ident.ReplicaID
	term, index, commit uint64
	reject              bool
}

// messages decodes the messages of a frame; it stops at what is none.
func messages(frame []byte) (ms []message, err error) {
	const header = 30
	if len(frame) < header || frame[0] != raftgroup.FrameMagic {
		return nil, fmt.Errorf("no raft frame of %d bytes", len(frame))
	}
	r := fields{b: frame[header:]}
	for len(r.b) > 0 && r.err == nil {
		kind := r.byte()
		_ = r.uvarint() // the group
		m := message{from: ident.ReplicaID(r.uvarint()), to: ident.ReplicaID(r.uvarint())}
		if kind != 1 {
			return ms, r.err // an offer or a status: alone in its frame as far as this test goes
		}
		m.kind = r.byte()
		present := r.byte()
		m.term = r.uvarint()
		optional := func(bit byte) (v uint64) {
			if present&bit != 0 {
				v = r.uvarint()
			}
			return v
		}
		_ = optional(1) // logTerm
		m.index, m.commit = optional(2), optional(4)
		m.reject = present&8 != 0
		_ = optional(16) // rejectHint
		r.skip(optional(32))
		if present&64 != 0 {
			size := uint64(0)
			for range r.uvarint() {
				_, _, _ = r.byte(), r.uvarint(), r.uvarint() // type, term, index
				size += r.uvarint()
			}
			r.skip(size)
		}
		ms = append(ms, m)
	}
	return ms, r.err
}

// fields takes numbers off a frame.
type fields struct {
	b   []byte
	err error
}

func (r *fields) skip(n uint64) {
	if n > uint64(len(r.b)) {
		r.b, r.err = nil, errors.New("frame ends too early")
		return
	}
	r.b = r.b[n:]
}

func (r *fields) byte() byte {
	if len(r.b) == 0 {
		r.err = errors.New("frame ends too early")
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *fields) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.b, r.err = nil, errors.New("frame ends too early")
		return 0
	}
	r.b = r.b[n:]
	return v
}

// trio is three hosts of one group over an in-memory network, whose every frame
// is looked at as it is sent.
type trio struct {
	t     *testing.T
	power *power
	disks []*disk
	nodes []*host

	mu       sync.Mutex
	checked  map[byte]int
	commit   uint64 // the highest claimed so far
	promises []error
}

// host is one of them, and its transport's Handler.
type host struct {
	trio  *trio
	i     int
	end   *transport.Node
	log   *raftlog.Log
	srv   *snapshot.Server
	host  *raftgroup.Host
	ready chan struct{}
}

func storeID(i int) ident.StoreID { return ident.StoreID{byte(i + 1), 1} }

func (tr *trio) boot(net *transport.Network, i int) *host {
	tr.t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	h := &host{trio: tr, i: i, ready: make(chan struct{})}
	fs := tr.disks[i]
	must(tr.t, vfs.MkdirAllSync(fs, dataDir))
	var err error
	h.log, err = raftlog.Open(raftlog.Options{FS: fs, Dir: dataDir + "/raftlog", Store: storeID(i), Create: true, FileBytes: fileBytes, MaxBytes: logBytes, Logger: quiet})
	must(tr.t, err)
	h.srv = snapshot.NewServer(snapshot.ServerOptions{FS: fs, Logger: quiet})
	h.end = net.Join(ident.NodeID(i+1), h)
	h.host, err = raftgroup.NewHost(raftgroup.Options{
		Node: ident.NodeID(i + 1), Store: storeID(i), FS: fs, Dir: dataDir + "/replicas", Log: h.log, Sender: watched{h.end, h}, Server: h.srv,
		Receiver: snapshot.NewReceiver(snapshot.ReceiverOptions{FS: fs, Logger: quiet}), Events: noEvents{}, Logger: quiet,
		ElectionTimeout: 400 * time.Millisecond, HeartbeatInterval: 40 * time.Millisecond, Workers: 1,
		Policy: raftgroup.Policy{ThresholdEntries: threshold, KeepEntries: -1, MaxConcurrent: 1},
	})
	must(tr.t, err)
	close(h.ready)
	must(tr.t, h.host.OpenAll(func(raftgroup.Spec) raftgroup.OpenFunc { return raftgroup.OpenMemory }))
	for _, r := range h.host.Replicas() {
		h.host.Start(r.Group())
	}
	return h
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// watched is a host's Sender.
type watched struct {
	transport.Sender
	h *host
}

// Send looks at the frame with the sender's disk as it is now.
func (w watched) Send(node ident.NodeID, class transport.Class, bufs ...[]byte) bool {
	var frame []byte
	for _, b := range bufs {
		frame = append(frame, b...)
	}
	ms, err := messages(frame)
	if err != nil {
		w.h.trio.t.Errorf("node %d sends: %v", w.h.i+1, err)
	}
	for _, m := range ms {
		w.h.trio.judge(w.h.i, m)
	}
	return w.Sender.Send(node, class, bufs...)
}

// judge checks what a message of node i says against the disks without their unsynced data.
func (tr *trio) judge(i int, m message) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	var err error
	switch {
	case m.kind == msgAppResp && !m.reject:
		err = tr.checkAck(i, m)
	case m.kind == msgVoteResp && !m.reject:
		err = tr.checkVote(i, m)
	case (m.kind == msgApp || m.kind == msgHeartbeat) && m.commit > tr.commit:
		tr.commit = m.commit
		err = tr.checkCommit(m)
	default:
		return
	}
	tr.checked[m.kind]++
	if err != nil {
		tr.promises = append(tr.promises, err)
	}
}

// durable returns the last index and the hard state that each disk keeps.
func (tr *trio) durable(nodes ...int) (last []ident.Index, hs []raftlog.HardState) {
	disks := make([]*disk, len(nodes))
	for k, i := range nodes {
		disks[k] = tr.disks[i]
	}
	for k, mem := range tr.power.cut(disks, 0) {
		last, hs = append(last, 0), append(hs, raftlog.HardState{})
		l, err := raftlog.Open(raftlog.Options{
			FS: mem, Dir: dataDir + "/raftlog", Store: storeID(nodes[k]), FileBytes: fileBytes, MaxBytes: logBytes, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			continue // nothing is durable there
		}
		if v := l.Replica(firstReplica + ident.ReplicaID(nodes[k])); v != nil {
			last[k], hs[k] = max(v.LastIndex(), v.FirstIndex()-1), v.HardState()
		}
		_ = l.Close() // a clone's
	}
	return last, hs
}

func (tr *trio) checkAck(i int, m message) error {
	last, hs := tr.durable(i)
	if uint64(last[0]) < m.index || uint64(hs[0].Term) < m.term {
		return fmt.Errorf("node %d acknowledges index %d in term %d, its disk has index %d, term %d", i+1, m.index, m.term, last[0], hs[0].Term)
	}
	return nil
}

func (tr *trio) checkVote(i int, m message) error {
	_, hs := tr.durable(i)
	if uint64(hs[0].Term) < m.term || uint64(hs[0].Term) == m.term && hs[0].Vote != m.to {
		return fmt.Errorf("node %d votes for %d in term %d, its disk has vote %d, term %d", i+1, m.to, m.term, hs[0].Vote, hs[0].Term)
	}
	return nil
}

func (tr *trio) checkCommit(m message) error {
	n := 0
	last, _ := tr.durable(0, 1, 2)
	for _, l := range last {
		if uint64(l) >= m.commit {
			n++
		}
	}
	if n < 2 {
		return fmt.Errorf("replica %d says that %d is committed, the disks have %d", m.from, m.commit, last)
	}
	return nil
}

func (h *host) Hello() []byte {
	b, _ := json.Marshal(transport.PeerInfo{Node: ident.NodeID(h.i + 1), Store: storeID(h.i)}) // plain fields
	return b
}

func (h *host) AcceptHello(b []byte) (p transport.PeerInfo, err error) {
	return p, json.Unmarshal(b, &p)
}

func (h *host) Refused(ident.NodeID, string) {}

func (h *host) Frame(from transport.PeerInfo, _ transport.Class, frame []byte) {
	<-h.ready
	if err := h.host.HandleFrame(from, frame); err != nil {
		h.trio.t.Errorf("node %d: %v", h.i+1, err)
	}
}

func (h *host) Call(ctx context.Context, _ transport.PeerInfo, method string, req []byte) ([]byte, error) {
	return h.srv.Handle(ctx, method, req)
}

func (h *host) PeerUp(p transport.PeerInfo) { <-h.ready; h.host.PeerUp(p) }
func (h *host) PeerDown(n ident.NodeID)     { <-h.ready; h.host.PeerDown(n) }

// noEvents hears nothing.
type noEvents struct{}

func (noEvents) LeaderChanged(ident.GroupID, ident.ReplicaID, ident.NodeID, ident.Term, bool) {}
func (noEvents) Quarantined(ident.GroupID, ident.ReplicaID, error)                            {}
func (noEvents) ReplacementNeeded(ident.GroupID, ident.ReplicaID, string)                     {}
func (noEvents) MembersChanged(ident.GroupID, []raftgroup.Member)                             {}
func (noEvents) Saw(ident.NodeID, ident.StoreID, uint64)                                      {}
func (noEvents) Fatal(error)                                                                  {}

// answer is a Waiter.
type answer chan error

func (a answer) Applied(_ ident.Index, _ ident.Term, _ raftgroup.Result, err error) { a <- err }

// runTrio proposes entries, changes the leader now and then, and returns what was promised and not kept.
func runTrio(t *testing.T, judge func(*disk, string, bool) verdict) *trio {
	t.Helper()
	tr := &trio{t: t, power: &power{}, checked: map[byte]int{}}
	net := transport.NewNetwork(transport.NetworkOptions{Seed: 1})
	var members []raftgroup.Member
	for i := range 3 {
		d := newDisk(vfs.NewCrashableMem(), tr.power)
		d.lag, d.judge = 2*time.Millisecond, judge
		tr.disks = append(tr.disks, d)
		members = append(members, raftgroup.Member{Replica: firstReplica + ident.ReplicaID(i), Node: ident.NodeID(i + 1), Store: storeID(i)})
	}
	for i := range 3 {
		tr.nodes = append(tr.nodes, tr.boot(net, i))
	}
	defer func() {
		for _, h := range tr.nodes {
			must(t, h.host.Stop(context.Background()))
			h.end.Close()
			must(t, h.srv.Close())
			must(t, h.log.Close())
			tr.disks[h.i].late.Wait()
		}
		net.Close()
	}()
	for i, m := range members {
		must(t, tr.nodes[i].host.Create([]raftgroup.Spec{{
			Group: promiseGroup, Replica: m.Replica, Name: "promise-0", Key: "promise-0", Topic: "promise", Members: members,
		}}))
		tr.nodes[i].host.Start(promiseGroup)
	}
	for n := range 240 {
		tr.propose(fmt.Sprintf("k%d=%0100d", n%10, n))
		if n%60 == 59 {
			leader := tr.leader()
			leader.TransferLeadership(firstReplica + (leader.ID()-firstReplica+1)%3)
		}
	}
	return tr
}

// leader waits for a replica that serves.
func (tr *trio) leader() *raftgroup.Replica {
	tr.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(settle); time.Now().Before(end); <-tick.C {
		for _, h := range tr.nodes {
			if r := h.host.Replica(promiseGroup); r != nil && r.IsLeader() {
				return r
			}
		}
	}
	tr.t.Fatalf("no leader in %v", settle)
	return nil
}

// propose proposes until it is applied.
func (tr *trio) propose(data string) {
	tr.t.Helper()
	for end := time.Now().Add(settle); time.Now().Before(end); {
		a := make(answer, 1)
		tr.leader().Propose([]byte(data), raftgroup.ProposeOptions{Deadline: time.Now().Add(time.Second)}, a)
		if err := <-a; err == nil {
			return
		}
	}
	tr.t.Fatalf("not applied in %v", settle)
}

// TestPromisesAreDurable looks at every acknowledgement, vote and commit index as it leaves a
// node: the disk has it by then, without what is not synced (correctness rule 5).
func TestPromisesAreDurable(t *testing.T) {
	t.Parallel()
	tr := runTrio(t, nil)
	for _, err := range tr.promises {
		t.Error(err)
	}
	t.Logf("%d acknowledgements, %d votes, %d commit indexes", tr.checked[msgAppResp], tr.checked[msgVoteResp], tr.checked[msgApp]+tr.checked[msgHeartbeat])
	if tr.checked[msgAppResp] < 200 || tr.checked[msgVoteResp] == 0 || tr.checked[msgApp] == 0 {
		t.Errorf("too little was checked: %v", tr.checked)
	}
}

// TestBrokenPromisesAreNoticed says that the raftlog is synced a little before it is.
func TestBrokenPromisesAreNoticed(t *testing.T) {
	t.Parallel()
	tr := runTrio(t, func(_ *disk, name string, dir bool) verdict {
		if isLog(name) && !dir {
			return syncLate
		}
		return syncNow
	})
	if len(tr.promises) == 0 {
		t.Errorf("no broken promise among %v", tr.checked)
		return
	}
	t.Logf("%d of %v broken, the first: %v", len(tr.promises), tr.checked, tr.promises[0])
}
