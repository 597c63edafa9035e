package raftgroup

import (
	"context"
	"time"

	"chronik/internal/ident"
)

// Stop hands leadership over, takes last checkpoints and closes everything.
// When ctx ends, the first two are cut short; closing is not. No call of an
// Event, a Waiter or a state machine happens after it returns. The raftlog
// stays open and is closed by its owner afterwards.
func (h *Host) Stop(ctx context.Context) error {
	h.mu.Lock()
	if h.stopping {
		h.mu.Unlock()
		return ErrStopped
	}
	h.stopping = true
	h.mu.Unlock()
	h.opt.Server.SetFinder(nil)
	h.opt.Server.SetSpoilt(nil)
	h.handOver(ctx)
	h.lastCheckpoints(ctx)
	all := h.Replicas()
	for _, r := range all {
		r.shutdown(ErrStopped)
	}
	h.cancel()
	for _, r := range all {
		<-r.done
	}
	h.loops.Wait()
	h.pins.close()
	h.bg.close()
	h.timers.close()
	h.apply.close()
	h.raft.close()
	return nil
}

// Silence ends the part of every replica in its group at once: nothing more is
// voted for, acknowledged or handed over. Stop is to follow. It is for a store that
// turns out to be a restored copy (correctness rule 18).
func (h *Host) Silence() {
	for _, r := range h.Replicas() {
		r.shutdown(ErrStopped)
	}
}

// handOver moves leaderships to connected voters and waits until none is left
// that could move. A leadership that has come back in a later term stays: its taker
// is stopping too, and two that stop would hand it to and fro.
func (h *Host) handOver(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*h.opt.ElectionTimeout)
	defer cancel()
	given := map[ident.ReplicaID]ident.Term{} // the term in which it was first handed over
	for {
		left := 0
		for _, r := range h.Replicas() {
			st := r.Status()
			if st.Role != RoleLeader || st.State != StateRunning || r.Alive() < 2 {
				continue
			}
			if term, ok := given[st.Replica]; ok && st.Term > term {
				continue
			}
			given[st.Replica] = st.Term
			left++
			r.TransferLeadership(0)
		}
		if left == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(h.opt.HeartbeatInterval):
		}
	}
}

// lastCheckpointsMost bounds the time for them: they are only a convenience.
const lastCheckpointsMost = 10 * time.Second

// lastCheckpoints makes the next start fast: less is applied again. A replica
// that waits for disk space is left out.
func (h *Host) lastCheckpoints(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lastCheckpointsMost)
	defer cancel()
	all := h.Replicas()
	done := make(chan struct{}, len(all))
	n := 0
	for _, r := range all {
		st := r.Status()
		if (st.State == StateRunning || st.State == StateReceiving) && st.AppliedIndex > st.SnapshotIndex && !r.as.waits() {
			r.TakeCheckpoint(func(ident.Index, error) { done <- struct{}{} })
			n++
		}
	}
	for range n {
		select {
		case <-done:
		case <-ctx.Done():
			return
		}
	}
}
