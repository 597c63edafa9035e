package raftgroup

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
	"chronik/internal/jsonbound"
	"chronik/internal/raftlog"
	"chronik/internal/snapshot"
	"chronik/internal/vfs"
)

// Limits of one group's raft instance.
const (
	maxSizePerMsg      = 1 << 20
	maxInflightMsgs    = 256
	maxUncommitted     = 64 << 20
	maxCommittedReady  = 8 << 20
	firstGeneration    = 1
	initialVoterIndex  = 1
	initialVoterTerm   = 1
	maxSpecMembers     = 1 << 10
	fallbackKeyPattern = "unreadable-%d"
)

// creation encodes the spec for the raftlog (JSON: written once a replica, read
// by people too).
func (s Spec) creation() (raftlog.Creation, error) {
	if err := s.check(); err != nil {
		return raftlog.Creation{}, err
	}
	info, err := json.Marshal(s)
	if err != nil {
		return raftlog.Creation{}, fmt.Errorf("raftgroup: encode spec of %s: %w", s.Name, err)
	}
	c := raftlog.Creation{Replica: s.Replica, Group: s.Group, CreatedAt: s.CreatedAt, Info: info}
	if len(s.Members) > 0 {
		c.First, c.FirstTerm = initialVoterIndex, initialVoterTerm
	}
	return c, nil
}

// specOf decodes a creation.
func specOf(c raftlog.Creation) (Spec, error) {
	var s Spec
	err := jsonbound.Check(c.Info)
	if err == nil {
		err = json.Unmarshal(c.Info, &s)
	}
	if err != nil {
		return s, fmt.Errorf("%w: creation of replica %d: %w", ErrCorrupt, c.Replica, err)
	}
	if s.Group != c.Group || s.Replica != c.Replica || len(s.Members) > maxSpecMembers {
		return s, fmt.Errorf("%w: creation of replica %d of group %d describes replica %d of group %d",
			ErrCorrupt, c.Replica, c.Group, s.Replica, s.Group)
	}
	return s, s.check()
}

// open makes a created replica known. What cannot be read quarantines it; an
// error is returned only if it is known already, the host stops or the disk is full.
func (h *Host) open(c raftlog.Creation) error {
	spec, err := specOf(c)
	if err != nil {
		if d := h.damaged(c.Replica); d != nil {
			err = d // its creation record is what is damaged
		}
		spec = Spec{Group: c.Group, Replica: c.Replica, Name: fmt.Sprintf(fallbackKeyPattern, c.Replica), Key: fmt.Sprintf(fallbackKeyPattern, c.Replica)}
	}
	r := h.newReplica(spec)
	if err == nil {
		err = r.load(c)
	}
	if vfs.IsNoSpace(err) {
		return fmt.Errorf("raftgroup: open %s: %w", spec.Name, err)
	}
	if err != nil {
		r.openFailed(err)
	} else {
		r.refresh()
	}
	if ierr := h.insert(r); ierr != nil {
		if r.as.open {
			ierr = errors.Join(ierr, r.as.sm.Close())
		}
		return ierr
	}
	switch d := h.damaged(spec.Replica); {
	case err != nil:
		h.opt.Events.Quarantined(spec.Group, spec.Replica, err)
		h.opt.Events.ReplacementNeeded(spec.Group, spec.Replica, err.Error())
	case d != nil:
		r.failLog(d) // found since load looked, when nobody knew the replica yet
	}
	return nil
}

func (h *Host) newReplica(spec Spec) *Replica {
	r := &Replica{
		h: h, spec: spec, base: h.baseOf(spec),
		shard:      h.raft.shardOf(uint64(spec.Replica), spec.Priority),
		applyShard: h.apply.shardOf(uint64(spec.Replica), spec.Priority),
		done:       make(chan struct{}),
	}
	r.log = h.log.With(slog.String("group", spec.Name), slog.Uint64("replica", uint64(spec.Replica)))
	r.rs.learned = make(map[ident.ReplicaID]Member)
	r.rs.offers = make(map[ident.ReplicaID]*offering)
	r.rs.mem = initialMembership(spec.Members)
	r.rs.state = StateRunning
	r.rs.now = time.Now()
	r.replayTo.Store(math.MaxUint64)
	r.status.Store(&Status{Group: spec.Group, Replica: spec.Replica, Name: spec.Name, Topic: spec.Topic, Partition: spec.Partition, Kind: spec.Kind})
	return r
}

// openFailed makes a replica that only says why it does not work.
func (r *Replica) openFailed(err error) {
	r.log.Error("quarantined replica", "err", err)
	r.rs.state, r.rs.reason = StateQuarantined, err
	r.closed = fmt.Errorf("%w: %w", ErrQuarantined, err)
	r.dying.Store(true)
	r.refresh()
}

// load reads everything durable of the replica and starts raft on it.
func (r *Replica) load(c raftlog.Creation) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("open replica: %v", p)
		}
		if err != nil && r.as.open {
			r.as.open = false
			err = errors.Join(err, r.as.sm.Close())
		}
	}()
	rs := &r.rs
	if err := r.readMark(); err != nil {
		return err
	}
	if rs.view = r.h.opt.Log.Replica(r.spec.Replica); rs.view == nil {
		return fmt.Errorf("%w: the raftlog does not know the replica", ErrCorrupt)
	}
	if err := r.h.damaged(r.spec.Replica); err != nil {
		return err
	}
	rs.gen = firstGeneration
	if in := rs.view.Install(); in != nil {
		rs.gen = in.Generation
	}
	r.liveGen.Store(rs.gen)
	if err := r.openState(c); err != nil {
		return err
	}
	return r.startRaft(c)
}

// damaged tells what the raftlog found wrong with a replica.
func (h *Host) damaged(id ident.ReplicaID) error {
	if err := h.opt.Log.Damage(id); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return nil
}

// openState opens the state machine of the live generation, if log and checkpoint agree.
func (r *Replica) openState(c raftlog.Creation) error {
	fs, a, rs := r.h.opt.FS, &r.as, &r.rs
	a.gen, a.dir = rs.gen, snapshot.GenDir(r.base, rs.gen)
	if err := snapshot.RemoveOthers(fs, r.base, rs.gen); err != nil {
		return err
	}
	gens, err := snapshot.Generations(fs, r.base)
	if err != nil {
		return err
	}
	rs.recv.left = slices.ContainsFunc(gens, func(g snapshot.Generation) bool { return g.Staging })
	ck, blob, err := snapshot.Read(fs, a.dir)
	switch {
	case errors.Is(err, snapshot.ErrNoCheckpoint) && rs.gen == firstGeneration:
		if err := r.makeFirst(a.dir); err != nil {
			return err
		}
		a.index, a.term, a.mem, blob = c.First, c.FirstTerm, rs.mem, nil
		ck = snapshot.Checkpoint{}
	case err != nil:
		return err
	default:
		if ck.Group != r.spec.Group {
			return fmt.Errorf("%w: %s is of group %d", ErrCorrupt, a.dir, ck.Group)
		}
		if a.mem, err = checkpointMembership(ck); err != nil {
			return err
		}
		a.index, a.term = ck.Point.Index, ck.Point.Term
		a.ckpt.index, a.ckpt.has = a.index, true
		rs.mem = a.mem
		rs.ckpt = &checkpoint{index: a.index, term: a.term, mem: a.mem, gen: a.gen}
		r.snapIndex.Store(uint64(a.index))
	}
	if !a.ckpt.has {
		a.ckpt.index = a.index
	}
	// First: a state machine removes files that its checkpoint does not name, and one that is lost names none.
	if err := r.checkLog(c); err != nil {
		return err
	}
	sm, err := r.h.choose(r.spec)(fs, a.dir, blob, captureFiles(ck))
	if err != nil {
		return fmt.Errorf("open state machine in %s: %w", a.dir, err)
	}
	a.sm, a.open = sm, true
	r.applied.Store(uint64(a.index))
	return nil
}

// makeFirst makes the first generation's directory, durably. A process that was killed may have left it without a sync
// of the directories above, and a checkpoint would not be found after a power loss. So they are
// synced at each start until there is a checkpoint; with one, whoever wrote it came by here.
func (r *Replica) makeFirst(dir string) error {
	fs := r.h.opt.FS
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return errors.Join(vfs.SyncDir(fs, r.base), vfs.SyncDir(fs, r.h.opt.Dir))
}

// checkpointMembership decodes the membership that a checkpoint carries.
func checkpointMembership(ck snapshot.Checkpoint) (*membership, error) {
	rd := &reader{b: ck.Point.Members}
	members := rd.members()
	if rd.bad || len(rd.b) > 0 {
		return nil, fmt.Errorf("%w: members of the checkpoint at index %d", ErrCorrupt, ck.Point.Index)
	}
	return membershipOf(ck.Point.ConfState, members, ck.Point.ConfGeneration)
}

// checkLog compares the log with the checkpoint: the log must reach from at
// most the entry after the checkpoint to at least the checkpoint.
func (r *Replica) checkLog(c raftlog.Creation) error {
	rs, a := &r.rs, &r.as
	rs.hs = rs.view.HardState()
	first, last := rs.view.FirstIndex(), rs.view.LastIndex()
	last = max(last, first-1)
	rs.hs.Term = max(rs.hs.Term, c.FirstTerm)
	// Applied may be ahead of the commit index on disk, never of the log (raft
	// applies only what is stable here).
	rs.hs.Commit = max(rs.hs.Commit, c.First, a.index)
	switch {
	case a.index+1 < first:
		return fmt.Errorf("%w: the log begins at %d, the checkpoint is at %d", ErrCorrupt, first, a.index)
	case rs.hs.Commit > last:
		return fmt.Errorf("%w: the log ends at %d, committed is %d, the checkpoint is at %d", ErrCorrupt, last, rs.hs.Commit, a.index)
	}
	term, err := rs.view.Term(first - 1)
	if err != nil {
		return fmt.Errorf("term before the log's first index %d: %w", first, err)
	}
	if a.index >= first-1 && a.ckpt.has {
		t, err := rs.view.Term(a.index)
		if err != nil {
			return fmt.Errorf("term at the checkpoint's index %d: %w", a.index, err)
		}
		if t != a.term {
			return fmt.Errorf("%w: the log has term %d at index %d, the checkpoint %d", ErrCorrupt, t, a.index, a.term)
		}
	}
	rs.durable, rs.logged = rs.hs, rs.hs
	rs.last = last
	rs.st = &storage{view: rs.view, first: first, firstTerm: term, snapshot: r.snapshotForRaft}
	return nil
}

// startRaft makes the RawNode.
func (r *Replica) startRaft(raftlog.Creation) error {
	rs, o := &r.rs, &r.h.opt
	t, v, cm := uint64(rs.hs.Term), uint64(rs.hs.Vote), uint64(rs.hs.Commit)
	rs.st.hs = &pb.HardState{Term: &t, Vote: &v, Commit: &cm}
	rs.st.cs = rs.mem.conf
	rn, err := raft.NewRawNode(&raft.Config{
		ID:            uint64(r.spec.Replica),
		ElectionTick:  int((o.ElectionTimeout + o.HeartbeatInterval - 1) / o.HeartbeatInterval),
		HeartbeatTick: 1,
		Storage:       rs.st,
		Applied:       uint64(r.as.index),

		AsyncStorageWrites:        true,
		MaxSizePerMsg:             maxSizePerMsg,
		MaxCommittedSizePerReady:  maxCommittedReady,
		MaxUncommittedEntriesSize: maxUncommitted,
		MaxInflightMsgs:           maxInflightMsgs,
		MaxInflightBytes:          uint64(o.MaxInflightBytes),
		CheckQuorum:               true,
		PreVote:                   true,
		DisableProposalForwarding: true,
		StepDownOnRemoval:         true,
		Logger:                    &raftLogger{log: r.log},
	})
	if err != nil {
		return err
	}
	rs.rn = rn
	r.scheduleCheckpoint()
	return nil
}
