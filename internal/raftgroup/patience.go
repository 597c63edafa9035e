package raftgroup

import (
	"math"
	"slices"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"chronik/internal/ident"
	"chronik/internal/raftlog"
)

// Not everything is worth a pass, a frame or a sync of its own. What nobody waits for goes along with
// what comes next, at the latest with the next tick:
//
//   - an answer of apply to raft (reportApplied), but one that a read or a new leader waits for, that has a
//     membership change, or without which raft would hold entries back;
//   - what a follower applies (postEntries), but of the metadata: the fewer the writes, the less they cost;
//   - an acknowledgement of what is committed anyway (canWait), but where the leader has more to send or a
//     proposal waits for more than a majority;
//   - the commit index alone in the log (storageAppend): its append goes with the next batch;
//   - the commit index alone to a follower that was sent everything (isNeedless): it is not sent at all,
//     the next entries or the next heartbeat bring it;
//   - a heartbeat to followers that were all sent entries a moment ago (needsBeat): those say as much.
//
// A replica at rest is not ticked. So a follower rests only when raft has been told of all that was applied
// (askedToRest), as its leader does (mayQuiesce); the leader has every acknowledgement by then.

// maxUnreported is how many bytes of applied entries raft is not told of at most. Inequality: far
// less than maxCommittedReady, at which raft gives nothing more to apply.
const maxUnreported = maxCommittedReady / 8

const (
	// maxUnapplied is how much a follower lets wait at most before it applies it, in bytes, maxUnappliedAll how much
	// all of a node do together.
	maxUnapplied    = 64 << 10
	maxUnappliedAll = 16 << 20
)

// entryOverhead is about what raft counts for an entry beside its data.
const entryOverhead = 32

// reportApplied gives raft's answer to an apply to the raft worker.
func (r *Replica) reportApplied(it *applyItem) {
	a := &r.as
	change := false
	for _, m := range it.responses {
		for _, e := range m.GetEntries() {
			a.unreported += len(e.GetData()) + entryOverhead
			change = change || e.GetType() != pb.EntryNormal
		}
	}
	ev := localEvent{responses: it.responses}
	if change || a.unreported >= maxUnreported || uint64(a.index) >= r.awaited.Load() {
		a.unreported = 0
		r.postLocal(ev)
		return
	}
	r.mu.Lock()
	in := r.inboxLocked()
	in.local = append(in.local, ev)
	r.mu.Unlock()
}

// awaitApplied says from which index on the raft worker wants to hear at once of what is applied. It must
// do so before it looks at what is: then either sees the other.
func (r *Replica) awaitApplied() {
	rs := &r.rs
	at := ident.Index(math.MaxUint64)
	if rs.role == raft.StateLeader && rs.termStart > 0 && !r.serving.Load() {
		at = rs.termStart
	}
	for i := range rs.reads.applying {
		at = min(at, rs.reads.applying[i].index)
	}
	r.awaited.Store(uint64(at))
	if at != math.MaxUint64 {
		r.as.wake(r)
	}
}

// canWait tells an item for which no pass need be made. Anyone may ask.
func (r *Replica) canWait(it *item) bool {
	return it.kind == itemMessage && it.msg.GetType() == pb.MsgAppResp && !it.msg.GetReject() &&
		it.msg.GetIndex() <= r.commit.Load() && r.allSent.Load() && !r.waiters.wantMore()
}

// beatAfter is for how many ticks entries do as a heartbeat. Inequality: beatAfter + 1 < askAfter.
const beatAfter = 2

// needsBeat tells, at a tick, whether followers are to get heartbeats. Raft's own clocks do not need them: both an
// append and its answer count as a sign of life.
func (r *Replica) needsBeat(ticks int) bool {
	rs := &r.rs
	needed := rs.sinceEntries >= beatAfter || !r.allSent.Load() || r.spec.Priority
	rs.sinceEntries = min(rs.sinceEntries+ticks, beatAfter)
	return needed
}

// sentEntries notes that entries were sent to so many followers at once.
func (r *Replica) sentEntries(followers int) {
	if followers > 0 && followers >= len(r.rs.mem.members)-1 {
		r.rs.sinceEntries = 0
	}
}

// answered notes an answer of a follower. If it answers a heartbeat and has acknowledged nothing since the one before,
// something may have got lost, and raft's next append to it is to be sent whatever it brings.
func (r *Replica) answered(m *pb.Message) {
	rs := &r.rs
	if _, ok := rs.mem.find(ident.ReplicaID(m.GetFrom())); !ok || rs.role != raft.StateLeader {
		return
	}
	at := slices.Index(rs.acked, m.GetFrom())
	switch {
	case m.GetType() == pb.MsgAppResp && at < 0 && !m.GetReject():
		rs.acked = append(rs.acked, m.GetFrom())
	case m.GetType() == pb.MsgHeartbeatResp && at >= 0:
		rs.acked = slices.Delete(rs.acked, at, at+1)
	case m.GetType() == pb.MsgHeartbeatResp:
		rs.prompted = true
	}
}

// isNeedless tells an append that brings a follower nothing but the commit index, when it was sent
// all entries up to last, and a heartbeat that needs none. An answer to a heartbeat makes raft send such appends to find
// out what got lost: those are needed (answered). The metadata's followers hear at once, since whole nodes wait for it; all
// do of a membership change, since the leader may be gone with it.
func (r *Replica) isNeedless(m *pb.Message, last ident.Index) bool {
	rs := &r.rs
	if m.GetType() == pb.MsgHeartbeat {
		return rs.noBeat && len(m.GetContext()) == 0
	}
	if m.GetType() != pb.MsgApp || len(m.GetEntries()) > 0 || ident.Index(m.GetIndex()) != last ||
		rs.role != raft.StateLeader || rs.prompted || r.spec.Priority || rs.notable > 0 && m.GetCommit() >= uint64(rs.notable) {
		return false
	}
	replicates := false
	rs.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		replicates = replicates || id == m.GetTo() && pr.State == tracker.StateReplicate && !pr.IsLearner
	})
	return replicates
}

// onlyCommit tells an append of nothing but a commit index, for which nobody waits.
func (r *Replica) onlyCommit(a *raftlog.Append, responses []*pb.Message) bool {
	if len(a.Entries) > 0 || a.Install != nil || a.HardState.Term != r.rs.logged.Term || a.HardState.Vote != r.rs.logged.Vote {
		return false
	}
	for _, m := range responses {
		// This one says once more what an earlier append's said or will say.
		if m.GetType() != pb.MsgStorageAppendResp {
			return false
		}
	}
	return true
}
