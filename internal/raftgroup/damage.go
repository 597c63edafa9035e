package raftgroup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/raft/v3"

	"chronik/internal/ident"
	"chronik/internal/snapshot"
	"chronik/internal/vfs"
)

// Verifier is what a state machine may implement besides StateMachine: Verify
// reads all it stores and returns an error that wraps ErrCorrupt if that is not
// what was written. It is called concurrently with Apply, and ends soon after ctx.
type Verifier interface {
	Verify(ctx context.Context) error
}

// errSentDamage: a snapshot arrived as it was sent, and is not what was once written.
var errSentDamage = errors.New("the sender's files are damaged")

// Damaged tells that stored data of the replica is not what was written. Unlike
// a quarantined replica it goes on voting: its log is sound, and the group may need
// the vote to replace it. It asks for a replacement and leads only while
// nobody else can.
func (r *Replica) Damaged(err error) {
	if r.harmed.Swap(true) {
		return
	}
	r.log.Error("found damage", "err", err)
	r.postLocal(localEvent{fn: func(*outbox) {
		if r.ended() {
			return
		}
		r.rs.damage, r.rs.dirty = err, true
		if r.rs.reason == nil {
			r.rs.reason = err
		}
		r.standBack()
	}})
}

// halt ends the replica's state machine, whose files can no longer be written,
// synced or read, and not its log: the replica goes on storing entries, acknowledging
// them and voting, because the group may lack a majority for its replacement
// without it. It never stands for election and applies nothing, so the
// configuration it knows may be an old one: that decides elections of its own only.
// After a restart it is a replica like others: the log brings back what the files lack.
// A sole voter has nobody to vote for. Runs on the raft worker.
func (r *Replica) halt(err error) {
	rs := &r.rs
	if r.ended() || rs.state == StateHalted {
		return
	}
	if len(rs.mem.voters()) < 2 {
		r.quarantine(err)
		return
	}
	r.log.Error("halted replica", "err", err)
	r.harmed.Store(true)
	r.endState(fmt.Errorf("%w: %w", ErrQuarantined, err))
	rs.state, rs.reason, rs.damage, rs.dirty = StateHalted, err, err, true
	r.h.opt.Events.Quarantined(r.spec.Group, r.spec.Replica, err)
	r.standBack()
}

// tickRaft gives raft its ticks. A halted follower has another clock: raft's would
// have it stand for election, which raft refuses while a membership change is not
// applied, and then counts the leader's lease from anew, in which no vote is given.
func (r *Replica) tickRaft(ticks int) {
	rs := &r.rs
	if rs.state != StateHalted || rs.role == raft.StateLeader {
		for range ticks {
			rs.rn.Tick()
		}
		return
	}
	if rs.deaf += ticks; time.Duration(rs.deaf)*r.h.opt.HeartbeatInterval >= r.h.opt.ElectionTimeout {
		rs.deaf = 0
		_ = rs.rn.ForgetLeader() // never fails on a follower
	}
}

// haltedKeeps is what a halted replica's log may take while the raftlog's need is urgent.
const haltedKeeps = 1 << 20

// giveWay ends a halted replica whose log has grown large, when the raftlog needs
// room: nobody trims it above its last checkpoint. A disk that fails halts many at once, and together
// they must not outgrow the log.
func (r *Replica) giveWay(urgent bool) {
	most := r.h.opt.Policy.HoldBytes
	if urgent {
		most = min(most, haltedKeeps)
	}
	if r.rs.view.Bytes() >= most {
		r.quarantine(fmt.Errorf("the log needs room: %w", r.rs.reason))
	}
}

// followerHalted notes the word that a halted follower says each slow tick.
func (r *Replica) followerHalted(id ident.ReplicaID) {
	rs := &r.rs
	if rs.halted == nil {
		rs.halted = make(map[ident.ReplicaID]time.Time)
	}
	rs.halted[id] = time.Now()
	rs.dirty = true
}

// isHalted tells whether a follower has said so lately: a start makes it whole.
func (r *Replica) isHalted(id ident.ReplicaID) bool {
	at, ok := r.rs.halted[id]
	return ok && time.Since(at) < 5*slowInterval
}

// askAgain is how often a replacement is asked for: who asks repeats it until it is granted.
const askAgain = 10 * time.Second

// standBack hands leadership to a replica with sound data and has this one
// replaced. A sole voter stays: there is nothing to replace it from.
func (r *Replica) standBack() {
	rs := &r.rs
	if rs.damage == nil || len(rs.mem.voters()) < 2 {
		return
	}
	r.transfer(0)
	if rs.asked.IsZero() || time.Since(rs.asked) >= askAgain {
		rs.asked = time.Now()
		r.h.opt.Events.ReplacementNeeded(r.spec.Group, r.spec.Replica, rs.damage.Error())
	}
}

// verifySelf reads the own state after a receiver said that what was sent is damaged.
func (r *Replica) verifySelf() {
	v, ok := r.as.sm.(Verifier)
	if !ok || r.rs.verifying != nil || r.harmed.Load() {
		return
	}
	ctx, cancel := context.WithCancel(r.h.ctx)
	r.rs.verifying = cancel
	r.fetches.Go(func() {
		defer cancel()
		if err := v.Verify(ctx); errors.Is(err, ErrCorrupt) {
			r.Damaged(err)
		}
		r.postLocal(localEvent{fn: func(*outbox) { r.rs.verifying = nil }})
	})
}

// spoilt hears of a file here that others cannot be given. A checkpoint is written anew; of
// other files nobody here has the bytes, and who leads without them keeps out whoever needs them.
func (h *Host) spoilt(s snapshot.Spoilt) {
	r := h.byID(s.Replica)
	switch {
	case r == nil || r.dying.Load() || s.Dir != snapshot.GenDir(r.base, r.liveGen.Load()): // on its way out
	case s.Name == snapshot.CheckpointName:
		r.renewCheckpoint(s.Err)
	default:
		r.Damaged(s.Err)
	}
}

// verifyStaged proves that a complete snapshot is what was once written: its
// hashes only say that it is what the sender has.
func (r *Replica) verifyStaged(ctx context.Context, dir string, blob []byte, ck snapshot.Checkpoint) error {
	if r.h.opt.Verify == nil {
		return nil
	}
	err := r.h.opt.Verify(ctx, r.h.opt.FS, r.spec, dir, blob, captureFiles(ck))
	if errors.Is(err, ErrCorrupt) {
		return sentDamage(err)
	}
	return err
}

func sentDamage(err error) error { return fmt.Errorf("%w: %w", errSentDamage, err) }

// captureFiles lists a checkpoint's files as OpenFunc wants them.
func captureFiles(ck snapshot.Checkpoint) []CaptureFile {
	files := make([]CaptureFile, 0, len(ck.Files))
	for _, f := range ck.Files {
		files = append(files, CaptureFile{Name: f.Name, Size: f.Size})
	}
	return files
}

// VerifyFunc reads a staged snapshot as the group's state machine would, and
// returns an error that wraps ErrCorrupt if it is not what was once written. It ends soon after ctx.
type VerifyFunc func(ctx context.Context, fs vfs.FS, spec Spec, dir string, blob []byte, files []CaptureFile) error
