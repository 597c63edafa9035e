package raftgroup

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/snapshot"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// receiving is a snapshot on its way here. One job at a time works in the
// replica's staging: a fetch, or the removal of what a fetch left.
type receiving struct {
	// busy: a job runs. cancel ends it early.
	busy   bool
	cancel context.CancelFunc
	// current is the offer being fetched; next the one to fetch after it.
	current, next *offerMsg
	// staged is complete and waits for raft to take it.
	staged *install
	// installing: raft took it, and it is not applied yet.
	installing bool
	// left: an earlier job, or an earlier process, left a staging. A fetch goes on from it; who comes to
	// leftIndex, the snapshot's, by the log alone removes it.
	left      bool
	leftIndex ident.Index
}

// install is a snapshot that is staged, and then the replica's state.
type install struct {
	index    ident.Index
	term     ident.Term
	gen      uint64
	mem      *membership
	dir      string
	blob     []byte
	offer    snapshot.Offer
	received int64
	from     []snapshot.SourceBytes // of received
	reused   int64
	// started: the offer came. staged: everything was here.
	started, staged time.Time
}

// offered takes a leader's offer of a snapshot.
func (r *Replica) offered(o *outbox, it *item) {
	rs := &r.rs
	if rs.state == StateHalted {
		return
	}
	msg, err := decodeOfferMsg(it.offer)
	if err != nil {
		r.log.Warn("bad snapshot offer", "peer", it.src.node, "err", err)
		return
	}
	if !r.heedLeader(o, it) {
		return
	}
	rc := &rs.recv
	if rs.durable.Commit+1 >= msg.first {
		// What the leader still has reaches down to what is durable here: no
		// transfer (correctness rule 15). The commit index is durable, with all
		// entries up to it, so the acknowledgement is true.
		r.wantNoSnapshot()
		index, term := uint64(rs.durable.Commit), uint64(rs.hs.Term)
		from, to := uint64(r.spec.Replica), uint64(it.from)
		r.route(o, &pb.Message{Type: pb.MsgAppResp.Enum(), From: &from, To: &to, Term: &term, Index: &index})
		return
	}
	r.sendStatus(o, transferAlive, msg.offer.Index)
	switch {
	case rc.installing:
	case rc.staged != nil && rc.staged.index+1 >= msg.first:
		r.retryStaged(o)
	case rc.busy:
		rc.next = &msg
		if c := rc.current; c != nil && c.offer.Index+1 >= msg.first && c.offer.Sources[0].Node != msg.offer.Sources[0].Node {
			return // another leader, but what is on its way from the old one will do, if it comes
		}
		rc.cancel()
	default:
		rc.staged = nil
		r.fetch(msg)
	}
}

// heedLeader makes raft know the offer's sender as leader of its term: an offer
// stands for a MsgSnap. It returns false if raft does not agree.
func (r *Replica) heedLeader(o *outbox, it *item) bool {
	rs := &r.rs
	if it.term < rs.hs.Term {
		return false
	}
	if it.term > rs.hs.Term || rs.lead != uint64(it.from) {
		from, to, term := uint64(it.from), uint64(r.spec.Replica), uint64(it.term)
		_ = rs.rn.Step(&pb.Message{Type: pb.MsgHeartbeat.Enum(), From: &from, To: &to, Term: &term}) // judged below
		r.handleReady(o)
	}
	return rs.role == raft.StateFollower && rs.lead == uint64(it.from)
}

// fetch stages an offered snapshot on a goroutine of its own; the receiver's
// slots bound how many move at a time.
func (r *Replica) fetch(msg offerMsg) {
	rs := &r.rs
	ctx, cancel := context.WithCancel(r.h.ctx)
	rs.recv.busy, rs.recv.cancel, rs.recv.current, rs.recv.left = true, cancel, &msg, false
	r.setState(StateReceiving)
	gen, voter := rs.gen, r.votes()
	r.fetches.Go(func() {
		inst, err := r.stage(ctx, msg.offer, gen, voter)
		cancel()
		r.postLocal(localEvent{fn: func(o *outbox) { r.fetched(o, inst, err) }})
	})
}

// stage brings the snapshot into the next generation's directory.
func (r *Replica) stage(ctx context.Context, offer snapshot.Offer, gen uint64, voter bool) (*install, error) {
	h := r.h
	started := time.Now()
	donors, err := snapshot.Donors(h.opt.FS, h.opt.Dir, r.spec.Key, r.spec.Replica)
	if err != nil {
		r.log.Warn("no donor directories", "err", err)
	}
	var more []snapshot.ChunkSource
	if src := r.archive(ctx, offer.Bytes); src != nil {
		defer src.Close()
		more = append(more, src)
	}
	staged, err := h.opt.Receiver.Fetch(ctx, offer, snapshot.FetchOptions{
		Base: r.base, Live: gen, Next: gen + 1, Donors: donors, Reserve: h.opt.DiskReserve,
		Priority: r.priority(voter, offer), Node: h.opt.Node, More: more,
	}, h.opt.Sender)
	if err != nil {
		return nil, err
	}
	stop := h.opt.Receiver.KeepPins(ctx, offer, h.opt.Sender)
	defer stop()
	inst, err := r.prove(ctx, staged)
	if err != nil {
		return nil, staged.Failed(err)
	}
	inst.offer, inst.started = offer, started
	return inst, nil
}

// prove reads a staged snapshot and all its files. That takes as long as the disk wants; ctx ends it.
func (r *Replica) prove(ctx context.Context, staged *snapshot.Staged) (*install, error) {
	ck, blob, err := snapshot.Read(r.h.opt.FS, staged.Dir)
	if errors.Is(err, snapshot.ErrCorrupt) {
		return nil, sentDamage(err)
	}
	if err != nil {
		return nil, err
	}
	if ck.Group != r.spec.Group {
		return nil, fmt.Errorf("%w: snapshot of group %d for group %d", ErrCorrupt, ck.Group, r.spec.Group)
	}
	if err := r.verifyStaged(ctx, staged.Dir, blob, ck); err != nil {
		return nil, err
	}
	mem, err := checkpointMembership(ck)
	if err != nil {
		return nil, err
	}
	return &install{
		index: ck.Point.Index, term: ck.Point.Term, gen: staged.Generation, mem: mem, dir: staged.Dir, blob: blob,
		received: staged.BytesReceived, from: staged.From, reused: staged.BytesReused,
	}, nil
}

// fetched takes a job's result on the raft worker.
func (r *Replica) fetched(o *outbox, inst *install, err error) {
	rs := &r.rs
	rc := &rs.recv
	failed := rc.current
	rc.busy, rc.current, rc.left, rc.leftIndex = false, nil, err != nil, failed.offer.Index
	if r.ended() || rs.state == StateHalted {
		return
	}
	if next := rc.next; next != nil && err != nil {
		rc.next = nil
		r.fetch(*next)
		return
	}
	rc.next = nil
	if err != nil {
		r.setState(StateRunning)
		if !errors.Is(err, context.Canceled) {
			got := snapshot.FetchedBefore(err)
			r.log.Warn("Failed to install snapshot for "+r.spec.Name, "topic", r.spec.Topic, "partition", r.spec.Partition,
				"index", failed.offer.Index, "term", failed.offer.Term, "bytes", got.Received, "reused", got.Reused, "took", got.Took, "err", err)
			st := transferFailed
			if errors.Is(err, errSentDamage) {
				st = transferDamaged
			}
			r.sendStatus(o, st, failed.offer.Index)
		}
		return
	}
	inst.staged = time.Now()
	r.h.timing.received.observe(inst.staged.Sub(inst.started))
	r.count.received.Add(uint64(inst.received))
	r.count.reused.Add(uint64(inst.reused))
	r.log.Info("Received snapshot for "+r.spec.Name, "topic", r.spec.Topic, "partition", r.spec.Partition,
		"index", inst.index, "term", inst.term, "bytes", inst.received, "reused", inst.reused, "from", fromText(inst.from), "took", time.Since(inst.started))
	rc.staged = inst
	r.retryStaged(o)
}

// fromText lists sources and what each gave: "node 2: 1048576, node 1: 300".
func fromText(from []snapshot.SourceBytes) string {
	parts := make([]string, 0, len(from))
	for _, s := range from {
		parts = append(parts, fmt.Sprintf("%s: %d", s.Source, s.Bytes))
	}
	return strings.Join(parts, ", ")
}

// retryStaged gives a staged snapshot to raft, as from the current leader in
// the current term: raft ignores another's. Without a leader it waits.
func (r *Replica) retryStaged(o *outbox) {
	rs := &r.rs
	inst := rs.recv.staged
	if inst == nil || rs.lead == raft.None || rs.role != raft.StateFollower {
		return
	}
	c := checkpoint{index: inst.index, term: inst.term, mem: inst.mem}
	from, to, term := rs.lead, uint64(r.spec.Replica), uint64(rs.hs.Term)
	_ = rs.rn.Step(&pb.Message{Type: pb.MsgSnap.Enum(), From: &from, To: &to, Term: &term, Snapshot: c.raftSnapshot()}) // judged below
	r.handleReady(o)
	if rs.recv.staged != nil {
		r.log.Info("snapshot not needed any more", "index", inst.index, "term", inst.term)
		r.wantNoSnapshot()
	}
}

// installRecord is called when raft hands the staged snapshot back for storage.
// From now on no entry at or below it is applied (correctness rule 10).
func (r *Replica) installRecord(s *pb.Snapshot) *install {
	rs := &r.rs
	inst := rs.recv.staged
	invariant.Check(inst != nil && uint64(inst.index) == s.GetMetadata().GetIndex(),
		"group %d: raft stores a snapshot at %d that is not staged", r.spec.Group, s.GetMetadata().GetIndex())
	rs.recv.staged, rs.recv.installing = nil, true
	r.fence.Store(uint64(inst.index))
	r.log.Info("Installing snapshot for "+r.spec.Name, "topic", r.spec.Topic, "partition", r.spec.Partition,
		"index", inst.index, "term", inst.term, "bytes", inst.received, "reused", inst.reused, "took", time.Since(inst.started))
	return inst
}

// installDurable: the raftlog says that the replica is the snapshot now. Its
// state machine follows in the apply queue, ahead of every later entry, since
// raft hears of this only afterwards.
func (r *Replica) installDurable(inst *install) {
	rs := &r.rs
	invariant.Point("raftgroup.install.durable")
	rs.gen = inst.gen
	r.liveGen.Store(rs.gen)
	rs.ckpt = &checkpoint{index: inst.index, term: inst.term, mem: inst.mem, gen: inst.gen}
	rs.lastConf = 0 // the snapshot's configuration is exact at its index
	r.snapIndex.Store(uint64(inst.index))
	r.forgetCommit()
	r.setMembers(inst.mem)
	r.as.post(r, applyItem{install: inst})
}

// installState switches the state machine, on the apply worker.
func (r *Replica) installState(inst *install) bool {
	a := &r.as
	invariant.Point("raftgroup.install.state")
	if err := a.sm.Install(inst.dir, inst.blob); err != nil {
		if vfs.IsNoSpace(err) {
			r.log.Warn("install waits for disk space", "index", inst.index, "err", err)
			return false
		}
		r.log.Error("Failed to install snapshot for "+r.spec.Name, "topic", r.spec.Topic, "partition", r.spec.Partition,
			"index", inst.index, "term", inst.term, "bytes", inst.received, "reused", inst.reused, "took", time.Since(inst.started), "err", err)
		r.failApply(fmt.Errorf("install at index %d: %w", inst.index, err))
		return true
	}
	invariant.Point("raftgroup.install.switched")
	a.index, a.term, a.mem, a.gen, a.dir = inst.index, inst.term, inst.mem, inst.gen, inst.dir
	a.ckpt.index, a.ckpt.has, a.ckpt.bytes = inst.index, true, 0
	r.applied.Store(uint64(inst.index))
	r.count.installed.Add(1)
	r.h.timing.installed.observe(time.Since(inst.staged))
	r.waiters.applied(inst.index, func(ident.Index, ident.Term, bool) (Result, error) { return nil, ErrLeadershipLost })
	r.log.Info("Successfully installed snapshot for "+r.spec.Name, "topic", r.spec.Topic, "partition", r.spec.Partition,
		"index", inst.index, "term", inst.term, "bytes", inst.received, "reused", inst.reused, "took", time.Since(inst.started))
	r.postLocal(localEvent{fn: func(o *outbox) { r.installed(o, inst) }})
	return true
}

// installed ends the transfer on the raft worker.
func (r *Replica) installed(o *outbox, inst *install) {
	rs := &r.rs
	if r.ended() {
		return
	}
	rs.recv.installing = false
	r.setState(StateRunning)
	r.scheduleCheckpoint()
	r.sendStatus(o, transferDone, inst.index)
	r.fetches.Go(func() {
		ctx, cancel := context.WithTimeout(r.h.ctx, 5*time.Second)
		defer cancel()
		_ = r.h.opt.Receiver.Done(ctx, inst.offer, r.h.opt.Sender) // the pin expires by itself otherwise
		r.bg.Lock()
		defer r.bg.Unlock()
		// Done may have taken its time: the next generation may be live by now.
		if err := snapshot.RemoveOlder(r.h.opt.FS, r.base, inst.gen); err != nil && r.h.ctx.Err() == nil {
			r.log.Warn("old generation not removed", "err", err) // the next start does it
		}
	})
}

// wantNoSnapshot ends a transfer that is not needed and removes its staging.
func (r *Replica) wantNoSnapshot() {
	rc := &r.rs.recv
	rc.staged, rc.next = nil, nil
	if rc.busy {
		rc.cancel()
		return
	}
	if rc.installing {
		return
	}
	r.setState(StateRunning)
	rc.busy, rc.cancel, rc.left = true, func() {}, false
	gen := r.rs.gen
	r.fetches.Go(func() {
		r.bg.Lock()
		err := r.h.opt.Receiver.Discard(r.spec.Group, r.base, gen)
		r.bg.Unlock()
		if err != nil {
			r.log.Warn("staging not removed", "err", err)
		}
		r.postLocal(localEvent{fn: func(*outbox) {
			rc.busy = false
			if next := rc.next; next != nil && !r.ended() {
				rc.next = nil
				r.fetch(*next)
			}
		}})
	})
}

// removeLeft removes what is left of a transfer that is not needed any more. Of an
// earlier process's nobody knows the index: it is at most what was committed when the group was heard after the start.
func (r *Replica) removeLeft() {
	rs := &r.rs
	if rs.recv.left && !rs.recv.busy && rs.state == StateRunning && rs.lead != raft.None &&
		r.applied.Load() >= max(r.replayTo.Load(), uint64(rs.recv.leftIndex)) {
		r.wantNoSnapshot()
	}
}

// dropTransfers ends both directions when the replica closes.
func (r *Replica) dropTransfers() {
	rs := &r.rs
	if rs.recv.busy {
		rs.recv.cancel()
	}
	rs.recv.staged, rs.recv.next = nil, nil
	for _, of := range rs.offers {
		if of.pin != 0 {
			r.h.opt.Server.Unpin(of.pin)
		}
	}
	clear(rs.offers)
}

// reportTransfer tells the leader that the transfer lives; a queued one does too
// (correctness rule 15). A halted replica takes none and says so.
func (r *Replica) reportTransfer(o *outbox) {
	rc := &r.rs.recv
	if r.rs.state == StateHalted {
		r.sendStatus(o, haltedHere, 0)
		return
	}
	if rc.busy && rc.current != nil || rc.staged != nil || rc.installing {
		r.sendStatus(o, transferAlive, 0)
	}
}

// sendStatus tells the current leader.
func (r *Replica) sendStatus(o *outbox, st transferState, index ident.Index) {
	rs := &r.rs
	node := r.nodeOf(rs.lead)
	if rs.lead == raft.None || node == 0 || node == r.h.opt.Node {
		return
	}
	o.frame(node, transport.Control).status(r.spec.Group, r.spec.Replica, ident.ReplicaID(rs.lead), rs.hs.Term, index, st)
}

func (r *Replica) setState(st State) {
	rs := &r.rs
	if !r.ended() && rs.state != StateHalted && rs.state != st {
		rs.state = st
		rs.dirty = true
	}
}
