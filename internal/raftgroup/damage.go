package raftgroup

import (
	"errors"
	"fmt"

	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/snapshot"
	"chronik/internal/vfs"
)

// Verifier is what a state machine may implement besides StateMachine: Verify
// reads all it stores and returns an error that wraps ErrCorrupt if that is not
// what was written. It is called concurrently with Apply.
type Verifier interface {
	Verify() error
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
// What it stores nobody trims; under the raftlog's pressure it is quarantined (Host.onPressure).
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
	r.announce() // its leadership is over, before the state machine is
	rs.state, rs.reason, rs.damage, rs.dirty = StateHalted, err, err, true
	r.h.opt.Events.Quarantined(r.spec.Group, r.spec.Replica, err)
	r.standBack()
}

// asksForVote tells what a halted replica does not send: without it no election is won.
func asksForVote(m *pb.Message) bool {
	return m.GetType() == pb.MsgPreVote || m.GetType() == pb.MsgVote
}

// standBack hands leadership to a replica with sound data and has this one
// replaced. A sole voter stays: there is nothing to replace it from.
func (r *Replica) standBack() {
	rs := &r.rs
	if rs.damage == nil || len(rs.mem.voters()) < 2 {
		return
	}
	r.transfer(0)
	r.h.opt.Events.ReplacementNeeded(r.spec.Group, r.spec.Replica, rs.damage.Error())
}

// verifySelf reads the own state after a receiver said that what was sent is damaged.
func (r *Replica) verifySelf() {
	v, ok := r.as.sm.(Verifier)
	if !ok || r.rs.verifying || r.harmed.Load() {
		return
	}
	r.rs.verifying = true
	r.fetches.Go(func() {
		if err := v.Verify(); errors.Is(err, ErrCorrupt) {
			r.Damaged(err)
		}
		r.postLocal(localEvent{fn: func(*outbox) { r.rs.verifying = false }})
	})
}

// verifyStaged proves that a complete snapshot is what was once written: its
// hashes only say that it is what the sender has.
func (r *Replica) verifyStaged(dir string, blob []byte, ck snapshot.Checkpoint) error {
	if r.h.opt.Verify == nil {
		return nil
	}
	err := r.h.opt.Verify(r.h.opt.FS, r.spec, dir, blob, captureFiles(ck))
	if errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("%w: %w", errSentDamage, err)
	}
	return err
}

// captureFiles lists a checkpoint's files as OpenFunc wants them.
func captureFiles(ck snapshot.Checkpoint) []CaptureFile {
	files := make([]CaptureFile, 0, len(ck.Files))
	for _, f := range ck.Files {
		files = append(files, CaptureFile{Name: f.Name, Size: f.Size})
	}
	return files
}

// VerifyFunc reads a staged snapshot as the group's state machine would, and
// returns an error that wraps ErrCorrupt if it is not what was once written.
type VerifyFunc func(fs vfs.FS, spec Spec, dir string, blob []byte, files []CaptureFile) error
