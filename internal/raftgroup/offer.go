package raftgroup

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
	"chronik/internal/snapshot"
	"chronik/internal/transport"
)

// offering is a snapshot on its way to a follower, on the leader. Invariant: a
// follower in raft's StateSnapshot has one that was heard of lately, or
// watchOffers reports Failure.
type offering struct {
	// seq tells the latest attempt from earlier ones still being prepared.
	seq uint64
	pin uint64 // of the snapshot server; 0: none yet
	// index of the pinned checkpoint, or raft's placeholder before.
	index ident.Index
	// heard is when the transfer last showed life.
	heard time.Time
	// attempts without success; they space out the next.
	attempts int
}

const (
	// offerBackoff is the least time between a failed offer and the next, doubled each time.
	offerBackoff    = 200 * time.Millisecond
	offerBackoffMax = 10 * time.Second
)

// offerMsg is the body of an offer item: uvarint FirstIndex of the sender's
// log, then package snapshot's offer.
type offerMsg struct {
	first ident.Index
	offer snapshot.Offer
}

func (m offerMsg) encode() []byte {
	return m.offer.Append(binary.AppendUvarint(nil, uint64(m.first)))
}

func decodeOfferMsg(b []byte) (offerMsg, error) {
	r := &reader{b: b}
	m := offerMsg{first: ident.Index(r.uvarint())}
	if r.bad {
		return m, fmt.Errorf("%w: offer of %d bytes", ErrBadFrame, len(b))
	}
	var err error
	m.offer, err = snapshot.DecodeOffer(r.b)
	return m, err
}

// offerSnapshot takes raft's MsgSnap: the checkpoint is pinned in the
// background and offered to the follower.
func (r *Replica) offerSnapshot(m *pb.Message) {
	rs := &r.rs
	to := ident.ReplicaID(m.GetTo())
	of := rs.offers[to]
	if of == nil {
		of = &offering{}
		rs.offers[to] = of
	}
	of.seq++
	of.attempts++
	of.heard = time.Now()
	of.index = ident.Index(m.GetSnapshot().GetMetadata().GetIndex())
	seq := of.seq
	pin := func() { r.pin(to, seq) }
	if of.attempts == 1 {
		pin()
		return
	}
	wait := min(offerBackoff<<min(of.attempts-2, 10), offerBackoffMax)
	of.heard = of.heard.Add(wait) // waiting is not silence
	r.h.timers.after(wait, pin)
}

// pin has the checkpoint pinned in the background, unless the attempt is void by then.
func (r *Replica) pin(to ident.ReplicaID, seq uint64) {
	r.postLocal(localEvent{fn: func(*outbox) {
		node := r.nodeOf(uint64(to))
		if of := r.rs.offers[to]; of == nil || of.seq != seq || r.rs.ckpt == nil || r.ended() || r.isHalted(to) {
			return
		}
		dir := snapshot.GenDir(r.base, r.rs.gen)
		r.h.pins.run(1, func() {
			p, err := r.h.opt.Server.Pin(r.spec.Group, r.spec.Replica, dir, node)
			r.postLocal(localEvent{fn: func(o *outbox) { r.pinned(o, to, seq, p, err) }})
		})
	}})
}

// pinned sends the offer.
func (r *Replica) pinned(o *outbox, to ident.ReplicaID, seq uint64, p *snapshot.Pin, err error) {
	rs := &r.rs
	of := rs.offers[to]
	if of == nil || of.seq != seq || rs.role != raft.StateLeader {
		if err == nil {
			r.h.opt.Server.Unpin(p.ID)
		}
		return
	}
	if err != nil {
		r.log.Warn("snapshot not offered", "replica", to, "err", err)
		r.offerFailed(to)
		return
	}
	if of.pin != 0 {
		r.h.opt.Server.Unpin(of.pin)
	}
	of.pin, of.index, of.heard = p.ID, p.Point.Index, time.Now()
	r.h.opt.Server.Attempt(p.ID, of.attempts)
	node := r.nodeOf(uint64(to))
	f := o.frame(node, transport.Control)
	body := offerMsg{first: rs.st.first, offer: p.Offer(r.h.opt.Node)}
	body.offer.Peers = r.peersFor(to, p.Point.Index)
	f.offer(r.spec.Group, r.spec.Replica, to, rs.hs.Term, body.encode())
	f.sent = append(f.sent, dropNote{r: r, to: uint64(to), offer: true})
	r.log.Info("offered snapshot", "peer", node, "index", p.Point.Index, "term", p.Point.Term, "bytes", p.Bytes,
		"peers", len(body.offer.Peers))
}

// transferStatus is a receiver's word about the transfer.
func (r *Replica) transferStatus(it *item) {
	rs := &r.rs
	if rs.role != raft.StateLeader || it.term != rs.hs.Term {
		return
	}
	if it.state == haltedHere {
		r.followerHalted(it.from)
		return
	}
	of := rs.offers[it.from]
	if of == nil {
		return
	}
	switch it.state {
	case transferAlive:
		of.heard = time.Now()
	case transferFailed:
		r.offerFailed(it.from)
	case transferDamaged:
		r.offerFailed(it.from)
		r.verifySelf()
		r.renewCheckpoint(errSentDamage) // which of its files it was, the receiver does not say
	case transferDone:
		r.h.opt.Server.Unpin(of.pin)
		of.pin = 0
		rs.rn.ReportSnapshot(uint64(it.from), raft.SnapshotFinish)
	case wakeAsked, nodeBeat, haltedHere: // not of a transfer
	}
}

// offerFailed tells raft, which probes the follower and sends another if it must.
func (r *Replica) offerFailed(to ident.ReplicaID) {
	rs := &r.rs
	if of := rs.offers[to]; of != nil {
		if of.pin != 0 {
			r.h.opt.Server.Unpin(of.pin)
			of.pin = 0
		}
		of.seq++ // what is still being prepared is void
	}
	if rs.rn != nil {
		rs.rn.ReportSnapshot(uint64(to), raft.SnapshotFailure)
	}
}

// transferTimeout is how long a transfer may show no life.
func (r *Replica) transferTimeout() time.Duration {
	return max(5*r.h.opt.ElectionTimeout, 4*slowInterval)
}

// watchOffers reports Failure for every follower in StateSnapshot whose
// transfer shows no life, and forgets offers that have served.
func (r *Replica) watchOffers() {
	rs := &r.rs
	if rs.role != raft.StateLeader {
		return
	}
	now := time.Now()
	followers := r.followers()
	for to, of := range rs.offers { // a member that was removed takes none, and a group with one under way never rests
		if !slices.ContainsFunc(followers, func(f Follower) bool { return f.Replica == to }) {
			r.forgetOffer(to, of)
		}
	}
	for _, f := range followers {
		of := rs.offers[f.Replica]
		switch {
		case f.State == "StateSnapshot" && of == nil:
			rs.rn.ReportSnapshot(uint64(f.Replica), raft.SnapshotFailure)
		case f.State == "StateSnapshot" && now.Sub(of.heard) > r.transferTimeout():
			r.log.Warn("snapshot transfer shows no life", "peer", f.Node, "index", of.index)
			r.offerFailed(f.Replica)
		case f.State == "StateReplicate" && of != nil:
			r.forgetOffer(f.Replica, of)
		}
	}
}

func (r *Replica) forgetOffer(to ident.ReplicaID, of *offering) {
	if of.pin != 0 {
		r.h.opt.Server.Unpin(of.pin)
	}
	delete(r.rs.offers, to)
}
