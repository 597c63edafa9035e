package raftgroup

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
)

// maxLearned bounds the senders remembered that no configuration names.
const maxLearned = 64

// catchUp says whether the replica has heard what was committed while it was away.
type catchUp struct {
	// heard: a leader's append, or own leadership, has told it. Until then, and
	// up to that index, applying counts as replay.
	heard bool
}

// stepItem takes a piece of a peer's frame.
func (r *Replica) stepItem(o *outbox, it *item) {
	if r.ended() || !r.admit(it) {
		return
	}
	r.noteItem(it)
	switch it.kind {
	case itemMessage:
		r.stepMessage(o, it.msg)
	case itemOffer:
		r.offered(o, it)
	case itemStatus:
		r.transferStatus(it)
	case itemQuiesce:
		r.askedToRest(o, it)
	}
}

// admit drops what contradicts a binding; a sender nobody has named passes and
// is answered where it came from (correctness rule 19).
func (r *Replica) admit(it *item) bool {
	rs := &r.rs
	known, ok := rs.mem.find(it.from)
	if !ok {
		known, ok = rs.learned[it.from]
	}
	if ok {
		return known.Store.IsZero() || known.Store == it.src.store
	}
	if len(rs.learned) >= maxLearned {
		clear(rs.learned)
	}
	rs.learned[it.from] = Member{Replica: it.from, Node: it.src.node, Store: it.src.store}
	return true
}

func (r *Replica) stepMessage(o *outbox, m *pb.Message) {
	rs := &r.rs
	switch m.GetType() { //nolint:exhaustive // the others need no care
	case pb.MsgHeartbeat:
		if ident.Index(m.GetCommit()) > rs.last && r.lostLog(o, m) {
			return
		}
	case pb.MsgTimeoutNow, pb.MsgVoteResp, pb.MsgPreVoteResp:
		if rs.state == StateHalted {
			return // who hands over gives up after an election timeout, and leads on; a candidate that was halted wins no more
		}
	case pb.MsgHeartbeatResp, pb.MsgAppResp:
		r.answered(m)
	case pb.MsgApp:
		if !isSmall(m.GetEntries()) && (r.h.unstored.Load() > r.h.opt.MaxUnstoredBytes || r.crowded(false)) {
			r.dropped.Add(1)
			return
		}
		if m.GetTerm() >= uint64(rs.hs.Term) {
			r.heardCommit(ident.Index(m.GetCommit()))
		}
	}
	_ = rs.rn.Step(m) // the errors say that a message no longer matters
}

// smallEntry is the largest data of an entry that finds room on a crowded disk: what a new leader begins with has none, what
// frees room (a log start) has 17 bytes, a membership change tens; a batch of records has 70 at least.
const smallEntry = 64

// isSmall tells entries that a crowded disk takes: without them no leader could begin, and none of its reads go on.
func isSmall(es []*pb.Entry) bool {
	for _, e := range es {
		if e.GetType() == pb.EntryNormal && len(e.GetData()) > smallEntry {
			return false
		}
	}
	return true
}

// crowded tells whether the disk has no room for entries of this group (correctness rule 31): the log ends the node
// if it finds none.
func (r *Replica) crowded(own bool) bool {
	fn := r.h.opt.Crowded
	return fn != nil && fn(r.spec, own)
}

// lostLog catches the one message that makes raft panic: a leader of this term
// or a later one remembers that this id held more than it does. Its durable
// state was lost, so it must never vote again under this id.
func (r *Replica) lostLog(o *outbox, m *pb.Message) bool {
	r.handleReady(o) // what this pass appended counts
	rs := &r.rs
	if ident.Index(m.GetCommit()) <= rs.last || m.GetTerm() < uint64(rs.hs.Term) {
		return false
	}
	r.quarantineForGood(fmt.Errorf("%w: the leader remembers index %d as durable here, the log ends at %d", ErrCorrupt, m.GetCommit(), rs.last))
	return true
}

// heardCommit ends the count of replayed entries at the index that was
// committed when the group was first heard.
func (r *Replica) heardCommit(commit ident.Index) {
	if !r.rs.catch.heard {
		r.rs.catch.heard = true
		r.replayTo.Store(uint64(commit))
	}
}

// forgetCommit begins a new catch-up.
func (r *Replica) forgetCommit() {
	r.rs.catch.heard = false
	r.replayTo.Store(math.MaxUint64)
}

// stepClock takes ticks and what the host's events ask for.
func (r *Replica) stepClock(o *outbox, in *inbox) {
	if r.ended() {
		return
	}
	if in.flags&(flagStart|flagPeers) != 0 && r.released.Load() {
		r.peersChanged(o, in.downs)
	}
	if in.flags&flagCampaign != 0 {
		r.campaignNow(o)
	}
	if in.ticks == 0 || r.rs.quiet.on || r.quiesceTick(o, in.ticks) {
		return
	}
	rs := &r.rs
	if rs.notable <= rs.hs.Commit {
		rs.notable = 0 // they have been told
	}
	rs.noBeat = !r.needsBeat(in.ticks)
	r.tickRaft(in.ticks)
	r.as.wake(r) // for what a follower let wait
	rs.dirty = rs.dirty || rs.stale
	r.waiters.expire(in.now)
	r.expireReads(in.now)
	rs.slow += in.ticks
	if time.Duration(rs.slow)*r.h.opt.HeartbeatInterval >= slowInterval {
		rs.slow = 0
		r.handleReady(o)
		r.slowTick(o)
	}
}

// slowInterval is how often a replica looks at what need not be exact.
const slowInterval = time.Second

func (r *Replica) slowTick(o *outbox) {
	r.watchOffers()
	r.reportTransfer(o)
	r.retryStaged(o)
	r.removeLeft()
	r.standBack()
	r.trim()
	rs := &r.rs
	rs.moved = true
	if rs.state == StateRunning && !rs.nextCkpt.IsZero() && rs.now.After(rs.nextCkpt) {
		r.scheduleCheckpoint()
		if r.applied.Load() > r.snapIndex.Load() {
			r.as.post(r, applyItem{fn: func() { r.checkpointNow("interval", nil) }})
		}
	}
	rs.dirty = rs.dirty || rs.role == raft.StateLeader
}

// scheduleCheckpoint sets the time of the next periodic one.
func (r *Replica) scheduleCheckpoint() {
	if iv := r.h.opt.Policy.Interval; iv > 0 {
		r.rs.nextCkpt = time.Now().Add(r.h.jitter(iv, r.spec.Replica))
	}
}

// transfer hands leadership over.
func (r *Replica) transfer(to ident.ReplicaID) {
	rs := &r.rs
	if rs.state != StateRunning && rs.state != StateHalted || rs.role != raft.StateLeader {
		return
	}
	if to == 0 {
		to = r.bestSuccessor()
	}
	if to != 0 && to != r.spec.Replica {
		if rs.heir != to || rs.heirTerm != rs.hs.Term || time.Since(rs.heirAt) >= r.h.opt.ElectionTimeout {
			rs.heir, rs.heirTerm, rs.heirAt = to, rs.hs.Term, time.Now()
		}
		rs.rn.TransferLeader(uint64(to))
	}
}

// bestSuccessor is the connected voter with the highest match. One that was asked
// in this term and did not take over is asked again after all others.
func (r *Replica) bestSuccessor() ident.ReplicaID {
	rs := &r.rs
	fs := slices.DeleteFunc(r.followers(), func(f Follower) bool {
		return f.Learner || !f.Alive || f.Halted || f.State != stateReplicate
	})
	if len(fs) == 0 {
		return 0
	}
	if rs.heir != 0 && rs.heirTerm == rs.hs.Term {
		trying := time.Since(rs.heirAt) < r.h.opt.ElectionTimeout // after that raft has given up
		if trying && slices.ContainsFunc(fs, func(f Follower) bool { return f.Replica == rs.heir }) {
			return rs.heir
		}
		if i := slices.IndexFunc(fs, func(f Follower) bool { return f.Replica > rs.heir }); i >= 0 {
			return fs[i].Replica
		}
		return fs[0].Replica
	}
	return slices.MaxFunc(fs, func(a, b Follower) int { return cmp.Compare(a.Match, b.Match) }).Replica
}
