package raftgroup

import (
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/transport"
)

// An idle group goes to rest: its replicas are not ticked and send nothing (correctness rule 30).
//
// The leader decides, when for quiesceAfter ticks nothing but heartbeats went on, everything is
// committed and applied, and every member on a connected node holds the whole log, is in contact
// and has answered since. Those are a majority. It tells them, and rests without waiting for their
// answer. A follower rests if it agrees in term, leader, last and committed index, and has
// heard the epoch that the leader names.
//
// Raft's safety rests on nothing that ticks do, and no read is served on time alone (rule 26). What ticks
// give is that a leader nobody hears is replaced and steps down. At rest these stand in:
//
//   - the leader's node dies or starts anew: its connection ends;
//   - nobody hears it, or it hears nobody: contact ends on either side, and both wake;
//   - the leader alone ends, by quarantine, a lost election or removal: its node's epoch is raised;
//   - a member comes back: its node connects;
//   - a word got lost: a follower that is awake and hears nothing asks the leader to wake, and
//     each replica at rest looks up from time to time, leaders before their followers.
//
// Any other message, proposal, read, or event wakes, so that no step is ever taken at rest.
type quiet struct {
	on bool
	// idle counts the ticks of a leader since anything but heartbeats went on.
	idle int
	// answered are the members that answered a heartbeat since idle reached quiesceAfter.
	answered []uint64
	// told: this leader has told followers to rest, in this reign.
	told bool
	// unheard counts the ticks of a follower since its leader was heard.
	unheard int
	// armed: a timer will set flagLook. until is when to look up.
	armed bool
	until time.Time
}

// wakeUp says why replicas with a member on node shall wake.
type wakeUp struct {
	node ident.NodeID
	// silent: it was not heard for Options.silence.
	silent bool
}

const (
	// quiesceAfter is for how many ticks a leader must have been idle before it asks who is there.
	quiesceAfter = 3
	// askAfter is after how many ticks a follower asks a leader that it does not hear. It must be
	// less than an election timeout's ticks to be of use.
	askAfter = 5
	// lookUpLeader and lookUpFollower bound what a lost word, or a mistake, can cost: a replica at rest wakes
	// by itself after that. Inequality: leaders come first, with room for jitter, so that
	// in a healthy group a follower's time never comes.
	lookUpLeader   = 30 * time.Second
	lookUpFollower = 75 * time.Second
)

// disturbed tells whether anything in the inbox ends the replica's rest.
func (r *Replica) disturbed(in *inbox) bool {
	if len(in.props)+len(in.reads)+len(in.local) > 0 || in.flags&(flagStart|flagCampaign) != 0 {
		return true
	}
	if in.flags&flagLook != 0 && !time.Now().Before(r.rs.quiet.until) {
		return true
	}
	if slices.ContainsFunc(in.items, func(it item) bool { return !r.restful(&it) }) {
		return true
	}
	return slices.ContainsFunc(in.wakes, func(w wakeUp) bool { return r.livesOn(w.node) })
}

// restful is an item that a replica at rest takes without waking: an answer to a heartbeat from before,
// and its leader's word to rest.
func (r *Replica) restful(it *item) bool {
	rs := &r.rs
	switch it.kind {
	case itemMessage:
		return rs.role == raft.StateLeader && it.msg.GetType() == pb.MsgHeartbeatResp && it.msg.GetTerm() == uint64(rs.hs.Term) && len(it.msg.GetContext()) == 0
	case itemQuiesce:
		return rs.lead == uint64(it.from) && it.term == rs.hs.Term && it.index == rs.last
	case itemOffer, itemStatus:
	}
	return false
}

// livesOn tells whether a member lives on a node, or may.
func (r *Replica) livesOn(node ident.NodeID) bool {
	rs := &r.rs
	if node == 0 || len(rs.mem.members) == 0 || len(rs.learned) > 0 {
		return true
	}
	return slices.ContainsFunc(rs.mem.members, func(m Member) bool { return m.Node == node })
}

// wakeIfDisturbed is the beginning of a pass. The leader of a follower that wakes by itself is asked to wake as well.
func (r *Replica) wakeIfDisturbed(o *outbox, in *inbox) {
	rs := &r.rs
	q := &rs.quiet
	if in.flags&flagLook != 0 {
		q.armed = false
	}
	if !q.on {
		return
	}
	if !r.disturbed(in) {
		r.armLook()
		return
	}
	r.wake()
	for _, w := range in.wakes {
		if w.silent && rs.role != raft.StateLeader && rs.lead != raft.None && r.nodeOf(rs.lead) == w.node {
			// The ticks that were not given: raft's clock of this leader stands where it would without rest.
			for range int(r.h.opt.silence() / r.h.opt.HeartbeatInterval) {
				rs.rn.Tick()
			}
			break
		}
	}
	if rs.role == raft.StateFollower && rs.lead != raft.None && !slices.ContainsFunc(in.items, func(it item) bool { return uint64(it.from) == rs.lead }) {
		r.sendWake(o, rs.lead)
	}
	if in.flags&flagLook != 0 {
		q.idle = quiesceAfter - 1 // it was idle all the time
		r.slowTick(o)
	}
}

// wake ends the rest.
func (r *Replica) wake() {
	q := &r.rs.quiet
	q.on, q.idle, q.unheard = false, 0, 0
	r.rs.dirty = true
	r.rs.now = time.Now() // it was that of the last tick
	r.h.ticking.add(r)
}

// rest begins it.
func (r *Replica) rest(lookUp time.Duration) {
	rs := &r.rs
	q := &rs.quiet
	invariant.Check(rs.last == rs.hs.Commit, "group %d: at rest with last %d, commit %d", r.spec.Group, rs.last, rs.hs.Commit)
	q.on = true
	rs.dirty = true
	r.h.ticking.remove(r)
	now := time.Now()
	q.until = now.Add(r.h.jitter(lookUp, r.spec.Replica))
	if !rs.nextCkpt.IsZero() && r.applied.Load() > r.snapIndex.Load() && rs.nextCkpt.Before(q.until) {
		q.until = rs.nextCkpt
	}
	r.armLook()
}

// armLook has one timer, and not more, look at until.
func (r *Replica) armLook() {
	q := &r.rs.quiet
	if q.armed {
		return
	}
	q.armed = true
	r.h.timers.after(max(time.Until(q.until), time.Millisecond), func() {
		_ = r.post(func(in *inbox) { in.flags |= flagLook }) // a closed replica rests for good
	})
}

// noteItem is told of every item of a replica that is awake.
func (r *Replica) noteItem(it *item) {
	rs := &r.rs
	q := &rs.quiet
	if uint64(it.from) == rs.lead {
		q.unheard, rs.deaf = 0, 0
	}
	if it.kind == itemMessage {
		switch it.msg.GetType() { //nolint:exhaustive // all others are activity
		case pb.MsgHeartbeat:
			return
		case pb.MsgHeartbeatResp:
			if len(it.msg.GetContext()) == 0 {
				if rs.role == raft.StateLeader && q.idle >= quiesceAfter && it.msg.GetTerm() == uint64(rs.hs.Term) && !slices.Contains(q.answered, uint64(it.from)) {
					q.answered = append(q.answered, uint64(it.from))
				}
				return
			}
		}
	}
	q.idle = 0
}

// quiesceTick is a tick of a replica that is awake, before raft's. It tells whether the replica went to
// rest instead.
func (r *Replica) quiesceTick(o *outbox, ticks int) bool {
	rs := &r.rs
	q := &rs.quiet
	switch rs.role {
	case raft.StateLeader:
		q.idle += ticks
		if q.idle < quiesceAfter+ticks {
			q.answered = q.answered[:0] // who answers from now on was there when the group was idle
			return false
		}
		if !r.mayQuiesce() {
			return false
		}
		r.quiesce(o)
		return true
	case raft.StateFollower:
		if rs.lead == raft.None {
			break
		}
		if q.unheard += ticks; q.unheard >= askAfter {
			q.unheard = 0
			r.sendWake(o, rs.lead)
		}
	case raft.StateCandidate, raft.StatePreCandidate:
	}
	return false
}

// mayQuiesce: see above quiet.
func (r *Replica) mayQuiesce() bool {
	rs := &r.rs
	if r.h.opt.NeverQuiesce || r.spec.Priority || rs.state != StateRunning || !r.serving.Load() || !r.still() {
		return false
	}
	st := rs.rn.BasicStatus()
	conf := rs.mem.conf
	if st.Applied != uint64(rs.last) || st.LeadTransferee != raft.None || len(conf.GetVotersOutgoing()) > 0 || len(rs.offers) > 0 {
		return false
	}
	there, all := 0, true
	rs.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		voter := slices.Contains(conf.GetVoters(), id)
		if id != uint64(r.spec.Replica) {
			node := r.nodeOf(id)
			if node != 0 && !r.h.reachable(node) {
				return // its connection will wake the group
			}
			all = all && node != 0 && r.h.contacts.with(node) != 0 && pr.Match == uint64(rs.last) &&
				pr.State == tracker.StateReplicate && pr.RecentActive && slices.Contains(rs.quiet.answered, id) && !r.isHalted(ident.ReplicaID(id))
		}
		if voter {
			there++
		}
	})
	return all && there > len(conf.GetVoters())/2 && len(r.h.opt.Server.Live(r.spec.Group)) == 0 // a pin's end trims
}

// still: on leader and follower alike, nothing waits, moves or is to be stepped.
func (r *Replica) still() bool {
	rs := &r.rs
	rc := &rs.recv
	return rs.last == rs.hs.Commit && uint64(rs.last) == r.applied.Load() && rs.damage == nil && rs.verifying == nil &&
		!rc.busy && !rc.left && rc.staged == nil && !rc.installing && rs.reads.empty() && !r.waiters.wanting() && !rs.rn.HasReady()
}

// quiesce has the group rest.
func (r *Replica) quiesce(o *outbox) {
	rs := &r.rs
	r.trim()
	epoch := r.h.contacts.own() // before anything is told: who hears of a later one does not rest on this
	for _, m := range rs.mem.members {
		if m.Replica == r.spec.Replica || !r.h.reachable(m.Node) {
			continue
		}
		rs.quiet.told = true
		o.frame(m.Node, transport.Control).quiesce(r.spec.Group, r.spec.Replica, m.Replica, rs.hs.Term, rs.last, epoch)
	}
	r.rest(lookUpLeader)
}

// askedToRest takes the leader's word. What does not fit is not answered: who stays awake
// hears nothing, and asks.
func (r *Replica) askedToRest(o *outbox, it *item) {
	rs := &r.rs
	r.handleReady(o) // what this pass stepped before counts
	if r.ended() || r.h.opt.NeverQuiesce || rs.state != StateRunning || rs.role != raft.StateFollower ||
		rs.lead != uint64(it.from) || it.term != rs.hs.Term || it.index != rs.last || !r.still() ||
		rs.rn.BasicStatus().Applied != uint64(rs.last) {
		return
	}
	if it.epoch == 0 || r.h.contacts.with(it.src.node) != it.epoch || r.nodeOf(rs.lead) != it.src.node {
		return
	}
	r.rest(lookUpFollower)
}

// sendWake asks a replica to wake. Who does not rest takes no notice.
func (r *Replica) sendWake(o *outbox, to uint64) {
	node := r.nodeOf(to)
	if node == 0 || node == r.h.opt.Node || !r.h.reachable(node) {
		return
	}
	o.frame(node, transport.Control).status(r.spec.Group, r.spec.Replica, ident.ReplicaID(to), r.rs.hs.Term, r.rs.last, wakeAsked)
}

// reignEnded raises the epoch if followers may rest on this leader's word.
func (r *Replica) reignEnded() {
	if r.rs.quiet.told {
		r.rs.quiet.told = false
		r.h.contacts.raise()
	}
}
