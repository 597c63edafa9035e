package broker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"chronik/internal/ident"
	"chronik/internal/identity"
	"chronik/internal/raftgroup"
	"chronik/internal/snapshot"
	"chronik/internal/transport"
)

// peerHandler is what the transport calls.
type peerHandler struct{ s *session }

var _ transport.Handler = peerHandler{}

// hello is what this node says of itself now.
func (s *session) hello() identity.Hello {
	st := s.store
	h := identity.Hello{
		Cluster: st.ClusterID(), Node: s.node, Store: st.ID(), State: st.State(), JoinOnly: st.JoinOnly(), PeersHash: s.boot.hash,
		Boot: st.Boot(), Run: st.Run(), LSN: s.openedLSN, RaftAddr: s.raftAddr(), Seen: s.memory.witness.Sightings(),
	}
	if h.State == identity.Prepared {
		h.Genesis = st.Genesis()
	}
	return h
}

// Hello implements transport.Handler.
func (h peerHandler) Hello() []byte {
	b, err := h.s.hello().Encode()
	if err != nil {
		h.s.log.Error("hello not encoded", "err", err)
	}
	return b
}

// AcceptHello implements transport.Handler (correctness rule 18).
func (h peerHandler) AcceptHello(b []byte) (transport.PeerInfo, error) {
	s := h.s
	hello, err := identity.DecodeHello(b)
	if err != nil {
		return transport.PeerInfo{}, err
	}
	info := transport.PeerInfo{Node: hello.Node, Store: hello.Store, Addr: hello.RaftAddr}
	mine := s.store.ClusterID()
	switch {
	case hello.Node == s.node:
		return info, fmt.Errorf("node %d is my own id: two nodes are configured with it", hello.Node)
	case mine != "" && hello.Cluster != "" && mine != hello.Cluster:
		return info, fmt.Errorf("%s: node %d is of cluster %s, I am of cluster %s", foreign, hello.Node, hello.Cluster, mine)
	}
	s.lookAtMyself(hello)
	if alive := s.aliveStore(hello.Node, hello.Store); alive != (ident.StoreID{}) {
		return info, fmt.Errorf("%s: node %d is running with store %s", claimed, hello.Node, alive)
	}
	behind, err := s.memory.greeted(hello)
	switch {
	case err != nil:
		return info, err
	case behind != "":
		return info, fmt.Errorf("store %s of node %d is a restored copy: %s", hello.Store, hello.Node, behind)
	}
	s.boot.greeted(hello)
	return info, nil
}

// What refusals begin with: a second process with the id of a running node, and a
// node whose data is of another cluster.
const (
	claimed = "node id is taken"
	foreign = "another cluster"
)

// aliveStore returns the store under which node is connected, if it is another one.
func (s *session) aliveStore(node ident.NodeID, store ident.StoreID) ident.StoreID {
	for _, p := range s.tr.Peers() {
		if p.Node == node && p.Up && p.Info.Store != store {
			return p.Info.Store
		}
	}
	return ident.StoreID{}
}

// lookAtMyself learns from a peer's Hello what it has seen of this store.
func (s *session) lookAtMyself(h identity.Hello) {
	me := s.store.ID()
	for _, seen := range h.Seen {
		if seen.Store != me {
			continue
		}
		if behind := seen.Behind(s.store.Boot(), s.store.Run(), s.openedLSN); behind != "" {
			s.mu.Lock()
			s.restored = true // before another peer's arrival releases what must not vote
			s.mu.Unlock()
			s.host.Silence() // what an earlier arrival released must not vote on while the session ends
			s.endWith(fmt.Errorf("%w: node %d says: %s", errRestored, h.Node, behind))
		}
	}
}

// Refused implements transport.Handler.
func (h peerHandler) Refused(node ident.NodeID, reason string) {
	if strings.Contains(reason, claimed) {
		h.s.watchClaim(node)
		return
	}
	h.s.log.Warn("refused by a peer", "peer", int32(node), "err", reason)
	if h.s.store.State() == identity.Member {
		return // it may have a majority without them, in a moment: awaitMetadata looks when it has had time
	}
	if err := h.s.strange(); err != nil {
		h.s.endWith(err)
	}
}

// claimGrace is how long a peer may say that another process has this node's id before it is believed. A process that
// ended is missed when its connections end, or when keepalives are not answered, after 3 s: until then its successor on another
// store is refused.
const claimGrace = 5 * time.Second

// watchClaim ends the session if node still says after claimGrace that another process has this node's id.
func (s *session) watchClaim(node ident.NodeID) {
	var look func()
	look = func() {
		for _, p := range s.tr.Peers() {
			switch {
			case s.life.Err() != nil || p.Node != node || !strings.Contains(p.Refusal, claimed):
			case !strings.Contains(p.LastError, claimed): // it did not answer the last time
				time.AfterFunc(claimGrace, look)
			default:
				s.endWith(&Error{
					Msg:  fmt.Sprintf("node %d refuses this process: %s", node, p.Refusal),
					Hint: "another process runs with this node id; stop it or choose another node.id",
				})
			}
		}
	}
	time.AfterFunc(claimGrace, look)
}

// strange is an error if all configured peers refuse this node as one of another cluster, each the last time it was
// spoken to: then this node is the stranger. One foreign node among sound peers is their operator's mistake, not
// ours; and a node whose metadata is current has its cluster, whoever else has the peers' addresses: so do old disks
// beside one that was recovered.
func (s *session) strange() error {
	select {
	case <-s.metaCurrent:
		return nil
	default:
	}
	last, peers := "", s.tr.Peers()
	for _, c := range s.cfg.Cluster.Peers {
		if c.ID == s.node {
			continue
		}
		i := slices.IndexFunc(peers, func(p transport.PeerStatus) bool { return p.Node == c.ID })
		if i < 0 || !strings.Contains(peers[i].Refusal, foreign) || !strings.Contains(peers[i].LastError, foreign) {
			return nil
		}
		last = peers[i].Refusal
	}
	if last == "" {
		return nil
	}
	return &Error{
		Msg:  fmt.Sprintf("every peer refuses this node: %s", last),
		Hint: fmt.Sprintf("%s holds the data of another cluster, or cluster.peers names another cluster's nodes", s.cfg.Node.DataDir),
	}
}

// Frame implements transport.Handler.
func (h peerHandler) Frame(from transport.PeerInfo, _ transport.Class, frame []byte) {
	var err error
	if raftgroup.IsFrame(frame) {
		err = h.s.host.HandleFrame(from, frame)
	} else {
		err = h.s.handleGossip(from, frame)
	}
	if err != nil {
		h.s.log.Warn("dropped frame", "peer", int32(from.Node), "bytes", len(frame), "err", err)
	}
}

// Call implements transport.Handler.
func (h peerHandler) Call(ctx context.Context, from transport.PeerInfo, method string, req []byte) ([]byte, error) {
	s := h.s
	switch method {
	case methodSubmit:
		return s.serveSubmit(ctx, req)
	case methodStoreOf:
		return s.serveStoreOf(ctx, req)
	case methodReached:
		return s.serveReached(), nil
	case methodPrepare:
		return nil, s.boot.servePrepare(from.Store, req)
	case methodCommit:
		return nil, s.boot.serveCommit(from.Store, string(req))
	case methodJoin:
		return s.serveJoin(ctx, from.Node, req)
	}
	if strings.HasPrefix(method, snapshot.MethodPrefix) {
		return s.server.Handle(ctx, method, req)
	}
	return nil, fmt.Errorf("unknown method %q", method)
}

// Sent implements transport.Recycler.
func (h peerHandler) Sent(method string, resp []byte) {
	if strings.HasPrefix(method, snapshot.MethodPrefix) {
		h.s.server.Sent(method, resp)
	}
}

// PeerUp implements transport.Handler.
func (h peerHandler) PeerUp(p transport.PeerInfo) {
	s := h.s
	s.away.set(p.Node, true)
	s.mu.Lock()
	s.greeted[p.Node] = true
	s.mu.Unlock()
	s.host.PeerUp(p)
	s.releaseAll()
	s.gossip()
	s.boot.changed.notify()
	s.changed.notify()
}

// PeerDown implements transport.Handler.
func (h peerHandler) PeerDown(node ident.NodeID) {
	s := h.s
	s.away.set(node, false)
	s.host.PeerDown(node)
	s.changed.notify()
}

// releaseAll lets those replicas take part whose voters' nodes have, by majority,
// said Hello since the start and know nothing newer of this store (correctness rule 18).
func (s *session) releaseAll() {
	if s.store.State() != identity.Member {
		return
	}
	for _, r := range s.host.Replicas() {
		s.release(r.Group())
	}
}

func (s *session) release(group ident.GroupID) {
	r := s.host.Replica(group)
	if r == nil {
		return
	}
	voters, greeted := 0, 0
	s.mu.Lock()
	restored := s.restored
	for _, m := range r.Status().Members {
		if m.Learner {
			continue
		}
		voters++
		if s.greeted[m.Node] {
			greeted++
		}
	}
	s.mu.Unlock()
	if !restored && (voters == 0 || greeted >= voters/2+1) {
		s.host.Start(group)
	}
}

// Events of the host that are not gossip's.

// Quarantined implements raftgroup.Events.
func (s *session) Quarantined(group ident.GroupID, replica ident.ReplicaID, err error) {
	s.b.quarantines.Inc()
	s.registry.forget(group, replica)
	s.changed.notify()
	_ = err // the host has logged it
}

// ReplacementNeeded implements raftgroup.Events.
func (s *session) ReplacementNeeded(group ident.GroupID, replica ident.ReplicaID, why string) {
	s.askReplacement(s.ctx(), group, replica, why)
}

// MembersChanged implements raftgroup.Events.
func (s *session) MembersChanged(ident.GroupID, []raftgroup.Member) { s.kick() }

// Saw implements raftgroup.Events.
func (s *session) Saw(_ ident.NodeID, store ident.StoreID, lsn uint64) {
	s.memory.witness.Saw(store, lsn)
}

// Fatal implements raftgroup.Events.
func (s *session) Fatal(err error) {
	s.endWith(&Error{
		Msg: "the raftlog failed and the node must stop", Err: err,
		Hint: "see the disk; what was acknowledged is on the other nodes, and on this one up to the last success",
	})
}
