package raftgroup

import (
	"errors"
	"fmt"
	"os"
	"path"

	"go.etcd.io/raft/v3"

	"chronik/internal/vfs"
)

// quarantine ends the replica's part in its group for good: it never votes,
// ticks or answers again under this id. Runs on the raft worker.
func (r *Replica) quarantine(err error) {
	if r.ended() {
		return
	}
	r.log.Error("quarantined replica", "err", err)
	halted := r.rs.state == StateHalted
	r.close(StateQuarantined, err, fmt.Errorf("%w: %w", ErrQuarantined, err))
	if !halted { // else it was told then
		r.h.opt.Events.Quarantined(r.spec.Group, r.spec.Replica, err)
	}
	r.h.opt.Events.ReplacementNeeded(r.spec.Group, r.spec.Replica, err.Error())
}

// quarantineMark is the file in a replica's directory that says that it must
// not take part again: its text is the reason.
const quarantineMark = "quarantined"

// quarantineForGood is for a replica whose durable state cannot be what the
// group counts on: it must not vote after a restart either. The mark is written in the
// background; a crash before it is durable only means that the same is found again.
func (r *Replica) quarantineForGood(err error) {
	if r.ended() {
		return
	}
	r.quarantine(err)
	r.fetches.Go(func() {
		r.bg.Lock()
		defer r.bg.Unlock()
		name := path.Join(r.base, quarantineMark)
		if werr := vfs.WriteFileSync(r.h.opt.FS, name, []byte(err.Error()), vfs.CategoryNode); werr != nil {
			r.log.Error("quarantine not written", "err", werr)
		}
	})
}

// readMark fails if the replica was quarantined for good.
func (r *Replica) readMark() error {
	reason, err := vfs.ReadFile(r.h.opt.FS, path.Join(r.base, quarantineMark), maxMarkBytes)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%w: quarantined before: %s", ErrCorrupt, reason)
}

const maxMarkBytes = 64 << 10

// close refuses everything from now on and closes the state machine.
func (r *Replica) close(st State, reason, err error) {
	rs := &r.rs
	rs.state, rs.reason = st, reason
	r.mu.Lock()
	r.closed = err
	r.mu.Unlock()
	rs.quiet.on = false
	r.h.ticking.remove(r)
	r.reignEnded()
	rs.lead, rs.role = raft.None, raft.StateFollower
	r.endState(err)
	r.refresh()
}

// endState closes the state machine, which leads no more, and ends what waits for it.
func (r *Replica) endState(err error) {
	r.dying.Store(true)
	r.serving.Store(false)
	r.announce()
	r.rs.stateless = true
	r.waiters.fail(0, err)
	r.rs.reads.fail(err)
	r.dropTransfers()
	if r.rs.verifying != nil {
		r.rs.verifying()
	}
	r.as.resume(r)
	r.as.post(r, applyItem{fn: r.closeStateMachine})
}

// shutdown closes the replica; done is closed when its files are. It may be
// called more than once, from any goroutine.
func (r *Replica) shutdown(err error) {
	r.postLocal(localEvent{fn: func(*outbox) {
		if r.rs.state == StateStopped {
			return
		}
		if r.rs.state == StateQuarantined {
			r.rs.state = StateStopped
			r.refresh()
		} else {
			r.close(StateStopped, err, err)
		}
		r.as.post(r, applyItem{fn: r.finish})
	}})
}

func (r *Replica) closedError() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

// closeStateMachine runs on the apply worker, behind everything that was queued.
// While a checkpoint of it is being written it waits for that.
func (r *Replica) closeStateMachine() {
	a := &r.as
	if a.ckpt.busy {
		a.ckpt.after = append(a.ckpt.after, r.closeStateMachine)
		return
	}
	a.ckpt.fail(ErrStopped)
	if a.open {
		a.open = false
		if err := a.sm.Close(); err != nil {
			r.log.Warn("closed state machine", "err", err)
		}
	}
}

// finish is the last thing that happens to a replica.
func (r *Replica) finish() {
	a := &r.as
	if a.ckpt.busy {
		a.ckpt.after = append(a.ckpt.after, r.finish)
		return
	}
	r.waiters.fail(0, ErrStopped)
	go func() {
		r.fetches.Wait()
		close(r.done) // Host.Stop and Remove wait for it
	}()
}

// failApply halts from the apply worker.
func (r *Replica) failApply(err error) {
	r.dying.Store(true)
	r.postLocal(localEvent{fn: func(*outbox) { r.halt(err) }})
}

// failLog quarantines from any goroutine: the log is not sound.
func (r *Replica) failLog(err error) {
	r.dying.Store(true)
	r.postLocal(localEvent{fn: func(*outbox) { r.quarantine(err) }})
}

// isStopped tells errors that only say that the replica is going away.
func isStopped(err error) bool {
	return errors.Is(err, ErrStopped) || errors.Is(err, ErrQuarantined)
}
