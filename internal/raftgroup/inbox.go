package raftgroup

import (
	"sync"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
	"chronik/internal/raftlog"
)

const (
	// maxInboxBytes bounds the entry bytes that wait in an inbox: of proposals,
	// and of appends from the leader. Beyond it a proposal is refused, and an
	// append is dropped: the newest, since those before it are a contiguous run.
	maxInboxBytes = 64 << 20
	// maxTicks that wait. A worker that is late does not make up for more.
	maxTicks = 2
)

// flag is something a replica's raft worker is to look at.
type flag uint8

const (
	flagStart    flag = 1 << iota // released by Host.Start
	flagPeers                     // a peer's connection came or went
	flagCampaign                  // the time of a campaign hint has come
	flagLook                      // the time to look up from rest has come
)

// proposal is a proposal that is not yet stepped.
type proposal struct {
	data []byte
	conf bool
	opt  ProposeOptions
	w    Waiter
}

// localEvent is what this node's own storage and apply tell a replica. Events
// of one replica keep their order.
type localEvent struct {
	// durable is the HardState that a completed append carried.
	durable *raftlog.HardState
	// conf is an applied membership change, before the response of its entry (rule 22).
	conf *confApplied
	// install is a snapshot whose record is durable.
	install *install
	// fn is anything rare.
	fn func(o *outbox)
	// responses are raft's, to be delivered after what is above.
	responses []*pb.Message
}

// confApplied is a membership change that the apply worker accepted.
type confApplied struct {
	index ident.Index
	cc    *pb.ConfChangeV2
	after *membership
}

// inbox is what waits for a replica's raft worker.
type inbox struct {
	items     []item
	itemBytes int
	local     []localEvent
	props     []proposal
	propBytes int
	reads     []readRequest
	downs     []ident.NodeID
	wakes     []wakeUp
	ticks     int
	now       time.Time // of the last tick
	flags     flag
}

// inboxes are those that nothing waits in. A replica has one of its own only while something
// waits for it or is worked on: what idle groups cost does not depend on how busy they once were.
var inboxes = sync.Pool{New: func() any { return new(inbox) }}

// recycle empties the inbox and gives it back.
func (in *inbox) recycle() {
	in.reset()
	inboxes.Put(in)
}

// reset empties the inbox, keeping arrays unless they have grown large.
func (in *inbox) reset() {
	in.items = reuse(in.items)
	in.local = reuse(in.local)
	in.props = reuse(in.props)
	in.reads = reuse(in.reads)
	in.downs = reuse(in.downs)
	in.wakes = reuse(in.wakes)
	in.itemBytes, in.propBytes, in.ticks, in.flags = 0, 0, 0, 0
	in.now = time.Time{}
}

func reuse[T any](s []T) []T {
	if cap(s) > 1024 {
		return nil
	}
	clear(s)
	return s[:0]
}

// inboxLocked is the inbox to fill.
func (r *Replica) inboxLocked() *inbox {
	if r.in == nil {
		r.in = inboxes.Get().(*inbox)
	}
	return r.in
}

// post changes the inbox under its lock and wakes the worker. It returns why
// the replica takes nothing any more; then fill was not called.
func (r *Replica) post(fill func(in *inbox)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed != nil {
		return r.closed
	}
	fill(r.inboxLocked())
	r.wakeLocked()
	return nil
}

// wakeLocked queues the replica on its raft worker unless it is queued.
func (r *Replica) wakeLocked() {
	if !r.queued {
		r.queued = true
		r.h.raft.add(r.shard, r)
	}
}

// postLocal delivers an event of this node, also to a replica that is closed:
// the worker decides what still matters.
func (r *Replica) postLocal(ev localEvent) {
	r.mu.Lock()
	in := r.inboxLocked()
	in.local = append(in.local, ev)
	r.wakeLocked()
	r.mu.Unlock()
}

// postItem delivers a piece of a frame.
func (r *Replica) postItem(it item) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed != nil {
		return
	}
	in := r.inboxLocked()
	if it.size > 0 && in.itemBytes+it.size > maxInboxBytes && in.itemBytes > 0 {
		r.dropped.Add(1)
		return
	}
	in.itemBytes += it.size
	in.items = append(in.items, it)
	if !r.canWait(&it) {
		r.wakeLocked()
	}
}

// tick is the host's ticker.
func (r *Replica) tick(now time.Time) {
	r.mu.Lock()
	if r.closed == nil {
		in := r.inboxLocked()
		in.ticks = min(in.ticks+1, maxTicks)
		in.now = now
		r.wakeLocked()
	}
	r.mu.Unlock()
}

// takeInbox gives the worker all that waits. The worker returns it by recycle.
func (r *Replica) takeInbox() *inbox {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queued = false
	in := r.inboxLocked()
	r.in = nil
	return in
}
