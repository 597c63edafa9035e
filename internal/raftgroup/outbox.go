package raftgroup

import (
	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
	"chronik/internal/transport"
)

const (
	// passGroups is after how many groups a worker sends what it has: more make
	// fuller frames, fewer a shorter wait.
	passGroups = 32
	// frameBytes is the size at which a frame is sent at once.
	frameBytes = 1 << 20
)

// outbox collects one raft worker's messages by node and class, so that those
// of many groups share a frame.
type outbox struct {
	h      *Host
	frames map[frameKey]*outFrame
}

type frameKey struct {
	node  ident.NodeID
	class transport.Class
}

type outFrame struct {
	frameBuilder
	// sent are those to tell if the transport drops the frame.
	sent []dropNote
}

// dropNote is an append or an offer within a frame.
type dropNote struct {
	r     *Replica
	to    uint64
	offer bool
}

func newOutbox(h *Host) *outbox {
	return &outbox{h: h, frames: make(map[frameKey]*outFrame)}
}

// run gives each replica its turn and sends what they leave.
func (o *outbox) run(rs []*Replica) {
	for i, r := range rs {
		r.pass(o)
		if (i+1)%passGroups == 0 {
			o.flush()
		}
	}
	o.flush()
}

// frame returns the frame to append to.
func (o *outbox) frame(node ident.NodeID, class transport.Class) *outFrame {
	k := frameKey{node, class}
	f := o.frames[k]
	if f != nil && f.len() >= frameBytes {
		o.send(k, f)
		f = nil
	}
	if f == nil {
		f = &outFrame{}
		f.begin(frameSource{node: o.h.opt.Node, store: o.h.opt.Store, lsn: o.h.opt.Log.DurableLSN()})
		o.frames[k] = f
	}
	return f
}

func (o *outbox) flush() {
	for k, f := range o.frames {
		o.send(k, f)
	}
	clear(o.frames)
}

func (o *outbox) send(k frameKey, f *outFrame) {
	if o.h.opt.Sender.Send(k.node, k.class, f.take()...) {
		return
	}
	for _, d := range f.sent {
		d.r.postLocal(localEvent{fn: func(ob *outbox) { d.r.dropNoted(ob, d) }})
	}
}

// route sends a raft message. Appends keep their order among themselves on the
// append stream, empty ones too: one that overtakes another would be rejected
// and sent again. Everything else is small and never waits behind them: answers
// keep their order on the control stream, and a heartbeat commits at most what
// the receiver has acknowledged, so overtaking appends does no harm.
func (r *Replica) route(o *outbox, m *pb.Message) {
	if m.GetType() == pb.MsgSnap {
		r.offerSnapshot(m)
		return
	}
	node := r.nodeOf(m.GetTo())
	if node == 0 || node == r.h.opt.Node || !sendable(m.GetType()) {
		return
	}
	class := transport.Control
	if m.GetType() == pb.MsgApp {
		class = transport.Append
	}
	f := o.frame(node, class)
	f.message(r.spec.Group, m)
	if m.GetType() == pb.MsgApp {
		f.sent = append(f.sent, dropNote{r: r, to: m.GetTo()})
	}
}

// dropNoted: the transport dropped a frame, so raft must probe again.
func (r *Replica) dropNoted(_ *outbox, d dropNote) {
	if r.rs.rn == nil {
		return
	}
	if d.offer {
		r.offerFailed(ident.ReplicaID(d.to))
		return
	}
	r.rs.rn.ReportUnreachable(d.to)
}
