package raftgroup

import (
	"chronik/internal/snapshot"
)

// PinCheckpoint pins the replica's durable checkpoint for this node's own use
// and calls done with the pin and the directory it is of, on another goroutine.
// The caller ends it by Server.Unpin. A replica that ends meanwhile may never call.
func (r *Replica) PinCheckpoint(done func(p *snapshot.Pin, dir string, err error)) {
	r.postLocal(localEvent{fn: func(*outbox) {
		if r.ended() || r.rs.ckpt == nil {
			r.h.pins.run(1, func() { done(nil, "", snapshot.ErrNoCheckpoint) })
			return
		}
		dir := snapshot.GenDir(r.base, r.rs.gen)
		r.h.pins.run(1, func() {
			p, err := r.h.opt.Server.Pin(r.spec.Group, r.spec.Replica, dir, 0)
			done(p, dir, err)
		})
	}})
}
