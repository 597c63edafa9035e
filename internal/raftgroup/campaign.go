package raftgroup

import (
	"slices"
	"time"

	"go.etcd.io/raft/v3"

	"chronik/internal/ident"
)

// campaign are the hints that spare a group its election timeout: at start once
// a majority is connected (correctness rule 29), and when the leader's node goes
// away. They are safe because a hint is a PreVote: a group whose majority hears
// a leader refuses it.
type campaign struct {
	// armed: a timer will set flagCampaign.
	armed bool
	// attempts since a leader was last known or the peers changed.
	attempts int
	// doubt: a leader became known in this pass; is its node connected?
	doubt bool
	// led: a leader was known since the process started.
	led bool
}

const (
	campaignFirst = 50 * time.Millisecond  // the shortest hint
	campaignRank  = 100 * time.Millisecond // between two voters in order
	campaignRetry = 100 * time.Millisecond // more, after an attempt that did not win
	// campaignAttempts bounds the hints; after that raft's own timeout decides.
	campaignAttempts = 8
	// Whoever voted for itself asks ownVoteAttempts times before anybody else's
	// first hint: a peer is connected a little before its replicas are released,
	// and what reaches it in between is dropped.
	// Inequality: (ownVoteAttempts-1) * ownVoteRetry < campaignFirst.
	ownVoteAttempts = 4
	ownVoteRetry    = 15 * time.Millisecond
)

// peersChanged reacts to nodes that came and went.
func (r *Replica) peersChanged(o *outbox, downs []ident.NodeID) {
	rs := &r.rs
	for _, node := range downs {
		if r.h.reachable(node) {
			continue // back already
		}
		r.nodeDown(node)
	}
	r.handleReady(o)
	rs.camp.attempts = 0
	r.considerCampaign(o)
	if len(downs) > 0 {
		r.trim() // what is not connected holds nothing (rule 28)
	}
	rs.dirty = true
}

func (r *Replica) nodeDown(node ident.NodeID) {
	rs := &r.rs
	if rs.role != raft.StateLeader {
		if rs.lead != raft.None && r.nodeOf(rs.lead) == node {
			// Without this the followers would refuse each other's PreVote until
			// their lease on the dead leader runs out.
			_ = rs.rn.ForgetLeader() // never fails on a follower
		}
		return
	}
	for _, f := range r.followers() {
		if f.Node != node {
			continue
		}
		rs.rn.ReportUnreachable(uint64(f.Replica))
		if f.State == "StateSnapshot" {
			r.offerFailed(f.Replica)
		}
	}
}

// doubtLeader looks at a leader that just became known. What a dead node sent
// last may arrive after its PeerDown, and must not renew its lease here.
func (r *Replica) doubtLeader(o *outbox) {
	rs := &r.rs
	if !rs.camp.doubt {
		return
	}
	rs.camp.doubt = false
	node := r.nodeOf(rs.lead)
	if node == 0 || r.h.reachable(node) {
		rs.camp.attempts = 0
		return
	}
	_ = rs.rn.ForgetLeader() // never fails on a follower
	r.handleReady(o)
	r.considerCampaign(o)
}

// considerCampaign arms a hint if this voter knows no leader and a majority is connected.
func (r *Replica) considerCampaign(o *outbox) {
	rs := &r.rs
	if rs.camp.armed || rs.camp.attempts >= campaignAttempts || !r.mayCampaign() {
		return
	}
	d := r.campaignDelay()
	if d == 0 {
		r.campaignNow(o)
		return
	}
	rs.camp.armed = true
	r.h.timers.after(d, r.Campaign)
}

// mayCampaign: released, a voter without a leader, a majority connected.
func (r *Replica) mayCampaign() bool {
	rs := &r.rs
	if rs.state != StateRunning || rs.lead != raft.None || !r.released.Load() {
		return false
	}
	return r.votes() && r.quorumReachable(rs.mem.conf.GetVoters()) && r.quorumReachable(rs.mem.conf.GetVotersOutgoing())
}

func (r *Replica) votes() bool {
	return slices.Contains(r.rs.mem.conf.GetVoters(), uint64(r.spec.Replica))
}

// quorumReachable tells whether most of the ids live on connected nodes.
func (r *Replica) quorumReachable(ids []uint64) bool {
	n := 0
	for _, id := range ids {
		if node := r.nodeOf(id); node != 0 && r.h.reachable(node) {
			n++
		}
	}
	return len(ids) == 0 || n > len(ids)/2
}

// campaignDelay orders the voters: a sole voter and whoever voted for itself
// last go first, the others in the order of the membership, 100 ms apart, so
// that two rarely ask at once.
func (r *Replica) campaignDelay() time.Duration {
	rs := &r.rs
	voters := rs.mem.conf.GetVoters()
	if len(voters) == 1 && len(rs.mem.conf.GetVotersOutgoing()) == 0 {
		return 0
	}
	if rs.camp.attempts < ownVoteAttempts && !rs.camp.led && rs.durable.Vote == r.spec.Replica {
		if rs.camp.attempts == 0 {
			return 0
		}
		return ownVoteRetry
	}
	rank := 0
	for _, m := range rs.mem.voters() {
		if m.Replica == r.spec.Replica {
			break
		}
		if r.h.reachable(m.Node) {
			rank++
		}
	}
	d := campaignFirst + time.Duration(min(rank, 2))*campaignRank + time.Duration(uint64(r.spec.Replica)*0x9E3779B97F4A7C15>>58)*time.Millisecond/2
	if rs.camp.attempts > 0 {
		d += campaignRetry
	}
	return d
}

// campaignNow stands for election, and arms another attempt in case the others
// were not there yet.
func (r *Replica) campaignNow(o *outbox) {
	rs := &r.rs
	rs.camp.armed = false
	if !r.mayCampaign() {
		return
	}
	rs.camp.attempts++
	_ = rs.rn.Campaign() // refused while a membership change is not applied: the retry comes
	r.handleReady(o)
	if rs.lead == raft.None && rs.camp.attempts < campaignAttempts {
		rs.camp.armed = true
		r.h.timers.after(r.campaignDelay(), r.Campaign)
	}
}
