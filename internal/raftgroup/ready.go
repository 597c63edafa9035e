package raftgroup

import (
	"fmt"
	"runtime/debug"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/raftlog"
)

// maxPropBytes bounds the entries of one MsgProp: raft drops a MsgProp as a whole.
const maxPropBytes = 1 << 20

// pass is one turn of a replica on its raft worker: everything that waited is
// stepped, then what raft has ready is handed on.
//
// Proposals come first: no Ready waits at that moment, so rs.last is exact and
// gives each proposal its index.
func (r *Replica) pass(o *outbox) {
	in := r.takeInbox()
	defer in.recycle()
	defer func() {
		if p := recover(); p != nil {
			r.recovered(p)
			r.refuse(in, r.closedError())
		}
	}()
	if r.ended() {
		r.refuse(in, r.closedError())
		for i := range in.local {
			r.stepLocal(o, &in.local[i])
		}
		return
	}
	if !in.now.IsZero() {
		r.rs.now = in.now
	}
	r.wakeIfDisturbed(o, in)
	if len(in.props)+len(in.reads)+len(in.local) > 0 || in.flags&^(flagPeers|flagLook) != 0 {
		r.rs.quiet.idle = 0
	}
	r.rs.prompted, r.rs.noBeat = false, false
	r.stepProposals(in.props)
	reads := in.reads
	in.reads = nil
	r.stepReads(reads)
	for i := range in.items {
		r.stepItem(o, &in.items[i])
	}
	for i := range in.local {
		r.stepLocal(o, &in.local[i])
	}
	if in.flags != 0 || in.ticks > 0 {
		r.stepClock(o, in)
	}
	r.handleReady(o)
	r.settle(o, in)
}

// ended: nothing is stepped, sent or stored any more. Once quarantined, a
// replica must not even send what the same pass made raft say.
func (r *Replica) ended() bool {
	return r.rs.state == StateQuarantined || r.rs.state == StateStopped
}

// refuse answers what a closed replica's inbox held and nobody took.
func (r *Replica) refuse(in *inbox, err error) {
	for _, p := range in.props {
		if p.w != nil {
			p.w.Applied(0, 0, nil, err)
		}
	}
	for _, q := range in.reads {
		q.done(0, err)
	}
	in.props, in.reads = in.props[:0], in.reads[:0]
}

// recovered quarantines the replica after a panic of raft or of this package's
// own handling. A broken invariant ends the process instead.
func (r *Replica) recovered(p any) {
	if v, ok := p.(invariant.Violation); ok {
		panic(v)
	}
	err, ok := p.(error)
	if !ok {
		err = fmt.Errorf("panic: %v", p)
	}
	r.log.Error("raft worker panicked", "err", err, "stack", string(debug.Stack()))
	// What raft refuses in a panic is durable state that contradicts the group's.
	r.quarantineForGood(fmt.Errorf("group %d replica %d: %w", r.spec.Group, r.spec.Replica, err))
}

// stepProposals gives raft everything that was proposed, in runs of at most
// maxPropBytes, and notes which index each got.
func (r *Replica) stepProposals(props []proposal) {
	if len(props) == 0 {
		return
	}
	if !r.serving.Load() {
		refuseRun(props, ErrNotLeader)
		return
	}
	if r.crowded(true) {
		refuseRun(props, ErrBusy)
		return
	}
	for from := 0; from < len(props); {
		to, size := from, 0
		for to < len(props) {
			if to > from && (size+len(props[to].data) > maxPropBytes || props[to].conf || props[from].conf) {
				break
			}
			size += len(props[to].data)
			to++
		}
		r.stepRun(props[from:to])
		from = to
	}
}

// refuseRun tells proposals that were not appended. Each is forgotten first, so
// that a panic tells nobody twice.
func refuseRun(run []proposal, err error) {
	for i := range run {
		w := run[i].w
		run[i].w = nil
		w.Applied(0, 0, nil, err)
	}
}

func (r *Replica) stepRun(run []proposal) {
	rs := &r.rs
	bufs := make([]entryBuf, len(run))
	es := make([]*pb.Entry, len(run))
	for i, p := range run {
		typ := pb.EntryNormal
		if p.conf {
			typ = pb.EntryConfChangeV2
		}
		bufs[i].typ = typ
		bufs[i].e.Type, bufs[i].e.Data = &bufs[i].typ, p.data
		es[i] = &bufs[i].e
	}
	id := uint64(r.spec.Replica)
	if err := rs.rn.Step(&pb.Message{Type: pb.MsgProp.Enum(), From: &id, Entries: es}); err != nil {
		refuseRun(run, ErrBusy)
		return
	}
	for i := range run {
		p := run[i]
		run[i].w = nil
		rs.last++
		pd := pending{index: rs.last, term: rs.hs.Term, w: p.w, size: len(p.data), min: p.opt.MinReplicas, conf: p.conf, deadline: p.opt.Deadline}
		r.waiters.add(pd)
		if p.opt.Release != nil {
			p.opt.Release(p.data) // Step has copied it: TestProposedDataIsCopied
		}
	}
}

// stepLocal takes an event of this node's storage or apply.
func (r *Replica) stepLocal(o *outbox, ev *localEvent) {
	rs := &r.rs
	if r.ended() {
		if ev.fn != nil {
			ev.fn(o)
		}
		return
	}
	if ev.durable != nil {
		rs.durable = *ev.durable
	}
	if ev.conf != nil {
		r.confChanged(o, ev.conf)
	}
	if ev.install != nil {
		r.installDurable(ev.install)
	}
	if ev.fn != nil {
		ev.fn(o)
	}
	for _, m := range ev.responses {
		if m.GetTo() == uint64(r.spec.Replica) {
			_ = rs.rn.Step(m) // the errors say that a message no longer matters
		} else {
			r.route(o, m)
		}
	}
	rs.moved = true
}

// handleReady hands on everything raft has ready.
func (r *Replica) handleReady(o *outbox) {
	rs := &r.rs
	for !r.ended() && rs.rn.HasReady() {
		rd := rs.rn.Ready()
		rs.moved = true
		if !raft.IsEmptyHardState(rd.HardState) {
			rs.hs = raftlog.HardState{
				Term: ident.Term(rd.HardState.GetTerm()), Vote: ident.ReplicaID(rd.HardState.GetVote()),
				Commit: ident.Index(rd.HardState.GetCommit()),
			}
		}
		if rd.SoftState != nil {
			r.softState(rd.SoftState)
		}
		last := rs.last // with what this Ready appends
		if n := len(rd.Entries); n > 0 {
			last = ident.Index(rd.Entries[n-1].GetIndex())
		}
		entries := 0
		for _, m := range rd.Messages {
			switch m.GetTo() {
			case raft.LocalAppendThread:
				r.storageAppend(m)
			case raft.LocalApplyThread:
				it := applyItem{entries: m.GetEntries(), responses: m.GetResponses()}
				r.as.postEntries(r, it, rs.role != raft.StateLeader && !r.spec.Priority)
			default:
				if r.isNeedless(m, last) {
					continue
				}
				r.route(o, m)
				if m.GetType() == pb.MsgApp && len(m.GetEntries()) > 0 {
					entries++
				}
			}
		}
		r.sentEntries(entries)
		r.readStates(rd.ReadStates)
	}
}

// softState notes a change of role or leader. What this replica proposed and is
// not committed yet is uncertain once it does not lead any more (rule 4).
func (r *Replica) softState(ss *raft.SoftState) {
	rs := &r.rs
	was := rs.role
	rs.lead, rs.role = ss.Lead, ss.RaftState
	if was == raft.StateLeader && rs.role != raft.StateLeader {
		r.leadershipLost()
	}
	if rs.role == raft.StateLeader && was != raft.StateLeader {
		rs.termStart = 0
		r.heardCommit(rs.last) // what a leader finds in its log is what it had to catch up with
	}
	rs.camp.doubt = rs.lead != raft.None && rs.role == raft.StateFollower
}

func (r *Replica) leadershipLost() {
	rs := &r.rs
	rs.termStart, rs.notable, rs.acked = 0, 0, nil
	r.serving.Store(false)
	r.waiters.fail(rs.hs.Commit, ErrLeadershipLost)
	rs.reads.fail(ErrLeadershipLost)
	clear(rs.offers)
	clear(rs.halted)
	r.reignEnded()
}

// storageAppend submits one MsgStorageAppend as one frame with the whole latest
// HardState, changed or not (correctness rule 5).
func (r *Replica) storageAppend(m *pb.Message) {
	rs := &r.rs
	a := &raftlog.Append{Replica: r.spec.Replica, HardState: rs.hs}
	var inst *install
	if s := m.GetSnapshot(); !raft.IsEmptySnap(s) {
		inst = r.installRecord(s)
		a.Install = &raftlog.Install{
			Index: inst.index, Term: inst.term,
			Generation: inst.gen, ConfState: inst.mem.confBytes(),
		}
		rs.last = inst.index
		rs.st.installed(inst.index, inst.term)
	}
	var sent int64 // bytes of entries that a leader sent
	if es := m.GetEntries(); len(es) > 0 {
		a.Entries = toLog(es)
		rs.last = a.Entries[len(es)-1].Index
		if rs.role == raft.StateLeader {
			a.Own = true // raft has copied what was proposed
			r.ownEntries(es)
		} else {
			sent = dataBytes(es)
			r.h.unstored.Add(sent)
		}
	}
	responses := m.GetResponses()
	hs := rs.hs
	a.Done = func(err error) {
		r.h.unstored.Add(-sent)
		switch {
		case err == nil && (len(responses) > 0 || inst != nil):
			r.postLocal(localEvent{durable: &hs, install: inst, responses: responses})
		case err != nil && r.h.opt.Log.Err() == nil:
			// The log lives and refuses this replica alone. If it had failed for good,
			// the host would tell Events.Fatal.
			r.failLog(fmt.Errorf("append to the raftlog: %w", err))
		}
	}
	a.Patient = r.onlyCommit(a, responses)
	rs.logged = hs
	invariant.Point("raftgroup.append.submit")
	r.h.opt.Log.Append(a)
}

func dataBytes(es []*pb.Entry) (n int64) {
	for _, e := range es {
		n += int64(len(e.GetData()))
	}
	return n
}

// ownEntries looks at what this leader appends: the first entry of its term
// opens its reign, the others must be what was proposed.
func (r *Replica) ownEntries(es []*pb.Entry) {
	rs := &r.rs
	for _, e := range es {
		if rs.termStart == 0 && e.GetTerm() == uint64(rs.hs.Term) {
			rs.termStart = ident.Index(e.GetIndex())
			rs.notable = rs.termStart
		}
		if e.GetType() != pb.EntryNormal {
			rs.notable = ident.Index(e.GetIndex())
		}
	}
	r.waiters.check(es)
}

// settle is the end of a pass: what follows from all that was stepped.
func (r *Replica) settle(o *outbox, in *inbox) {
	rs := &r.rs
	if r.ended() {
		return
	}
	r.doubtLeader(o)
	r.awaitApplied()
	if rs.role == raft.StateLeader && rs.termStart > 0 && !r.serving.Load() && !r.dying.Load() && r.applied.Load() >= uint64(rs.termStart) {
		r.serving.Store(true)
		rs.dirty = true
	}
	if len(in.items)+len(in.local)+len(in.props) > 0 {
		r.noteProgress()
	}
	r.readsApplied()
	r.announce()
	if rs.moved && !rs.dirty {
		r.indexesMoved()
	}
	if rs.dirty {
		r.refresh()
	}
}

// announce tells of leadership once it differs from what was told last. Of its
// own it tells when it may serve (correctness rule 25).
func (r *Replica) announce() {
	rs := &r.rs
	now := leadership{term: rs.hs.Term}
	if rs.lead != raft.None {
		now.node = r.nodeOf(rs.lead)
		now.me = rs.lead == uint64(r.spec.Replica)
	}
	if now.me && !r.serving.Load() {
		if !rs.announced.me {
			return
		}
		now = leadership{term: rs.hs.Term} // lost it and won it again: not yet serving
	}
	if now.node == 0 && rs.announced.node == 0 || now == rs.announced {
		return
	}
	rs.announced = now
	r.log.Debug("leader changed", "leader", now.node, "term", now.term)
	if w, ok := r.as.sm.(RoleWatcher); ok && !rs.stateless {
		w.RoleChanged(now.node, now.term, now.me)
	}
	r.h.opt.Events.LeaderChanged(r.spec.Group, r.spec.Replica, now.node, now.term, now.me)
}

// confChanged gives an accepted membership change to raft, before the response
// of its entry (correctness rule 22). One that lies within an installed snapshot
// is contained in it.
func (r *Replica) confChanged(o *outbox, c *confApplied) {
	rs := &r.rs
	if uint64(c.index) <= r.fence.Load() {
		return
	}
	cs := rs.rn.ApplyConfChange(c.cc)
	invariant.Check(cs.Equivalent(c.after.conf) == nil, "group %d: raft's configuration %v at %d, applied was %v", r.spec.Group, cs, c.index, c.after.conf)
	rs.lastConf = c.index
	r.setMembers(c.after)
	if _, ok := c.after.find(ident.ReplicaID(rs.lead)); !ok && rs.lead != raft.None && rs.role == raft.StateFollower {
		_ = rs.rn.ForgetLeader() // it stepped down on its removal: do not wait for its lease to run out
		r.handleReady(o)
		r.considerCampaign(o)
	}
}

func (r *Replica) setMembers(m *membership) {
	r.rs.mem = m
	r.rs.dirty = true
	for _, mb := range m.members {
		delete(r.rs.learned, mb.Replica)
	}
	r.h.opt.Events.MembersChanged(r.spec.Group, m.members)
}

// nodeOf says where a replica lives, 0 if nobody has said so.
func (r *Replica) nodeOf(id uint64) ident.NodeID {
	if id == uint64(r.spec.Replica) {
		return r.h.opt.Node
	}
	if m, ok := r.rs.mem.find(ident.ReplicaID(id)); ok {
		return m.Node
	}
	return r.rs.learned[ident.ReplicaID(id)].Node
}
