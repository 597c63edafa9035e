package main

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"chronik/internal/ident"
	"chronik/internal/raftgroup"
	"chronik/internal/raftlog"
	"chronik/internal/transport"
)

// promises stands between a node's groups and its transport, and looks at what leaves: an acknowledgement
// or a vote is a promise, which the disk must hold by then and a quarantined replica does not give.
type promises struct {
	transport.Sender
	w *world
	n *node
	r *run

	mu   sync.Mutex
	out  map[ident.ReplicaID]time.Time // quarantined, as first seen
	acks int
}

// ackEvery is of how many acknowledged indexes one is looked for on the disk; the others are compared with what the log
// says is durable.
const ackEvery = 100

// Send implements transport.Sender.
func (p *promises) Send(to ident.NodeID, class transport.Class, bufs ...[]byte) bool {
	if class == transport.Control { // answers travel on no other
		frame := slices.Concat(bufs...)
		ms, err := messages(frame)
		if err != nil {
			p.w.fail("frames are readable", "node %d sends: %v", p.n.id, err)
		}
		host, log := p.r.groups()
		for _, m := range ms {
			if m.reject || host == nil {
				continue
			}
			if m.kind == msgAppResp || m.kind == msgVoteResp || m.kind == msgPreVoteResp {
				p.given(host, m)
			}
			if m.kind == msgAppResp {
				p.acked(log, frame, m)
			}
		}
	}
	return p.Sender.Send(to, class, bufs...)
}

// look notes which replicas are quarantined.
func (p *promises) look(host *raftgroup.Host) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range host.Replicas() {
		p.see(r)
	}
}

// see notes since when r is known as quarantined and returns how long that is. Caller holds p.mu.
func (p *promises) see(r *raftgroup.Replica) time.Duration {
	if r.Status().State != raftgroup.StateQuarantined {
		return 0
	}
	since, ok := p.out[r.ID()]
	if !ok {
		since = time.Now()
		p.out[r.ID()] = since
		p.w.count("quarantined replicas seen", 1)
	}
	return time.Since(since)
}

// sameMoment is more virtual time than a pass of a raft worker takes, in which nothing waits: what a replica has said
// before the pass finds the damage leaves at its end.
const sameMoment = time.Millisecond

// given checks a vote or an acknowledgement as it leaves. A halted replica gives both (docs/adr/0028).
func (p *promises) given(host *raftgroup.Host, m message) {
	r := host.ByID(m.from)
	if r == nil {
		return // removed meanwhile
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := p.see(r); d > sameMoment {
		p.w.fail("a quarantined replica never votes", "node %d: replica %d, quarantined for %v, sends %+v", p.n.id, m.from, d, m)
	}
}

// acked checks an acknowledged index as it leaves.
func (p *promises) acked(log *raftlog.Log, frame []byte, m message) {
	if p.r.ended() {
		return // what a dead process does is no news
	}
	p.mu.Lock()
	p.acks++
	n := p.acks
	p.mu.Unlock()
	p.durable("log", log, m)
	if n%ackEvery != 0 {
		return
	}
	mem := p.r.disk.durable()
	if mem == nil {
		return
	}
	opt := raftlog.Options{FS: mem, Dir: "data/raftlog", Store: storeOf(frame), FileBytes: logFileBytes, MaxBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler)}
	left, err := raftlog.Open(opt)
	if err != nil {
		p.w.count("acks not looked for: damaged raftlog", 1) // a fault's work, and found out later
		return
	}
	p.w.count("acked indexes looked for on disks", 1)
	p.durable("disk", left, m)
	_ = left.Close() // a clone's
}

// durable checks that what log has of m's sender reaches to what m says. Entries of the term that it said it in stay
// until a later one's overwrite them.
func (p *promises) durable(what string, log *raftlog.Log, m message) {
	v := log.Replica(m.from)
	if v == nil || uint64(v.HardState().Term) > m.term {
		return
	}
	if last := max(v.LastIndex(), v.FirstIndex()-1); uint64(last) < m.index {
		p.w.fail("acked index ≤ durable index when sent", "node %d: %+v, the %s has %d", p.n.id, m, what, last)
	}
}

// Raft's numbers of the messages that promise something.
const (
	msgAppResp     = 4
	msgVoteResp    = 6
	msgPreVoteResp = 18
)

// message is what a raft message on the wire says.
type message struct {
	kind        byte
	from, to    ident.ReplicaID
	term, index uint64
	reject      bool
}

// frameHeader is how long a frame's header is, and storeAt where it names the sender's store (internal/raftgroup/frame.go
// draws both, and what follows).
const (
	frameHeader = 30
	storeAt     = 6
)

func storeOf(frame []byte) (s ident.StoreID) {
	copy(s[:], frame[storeAt:])
	return s
}

// messages returns the raft messages of a frame.
func messages(frame []byte) (ms []message, err error) {
	if len(frame) < frameHeader || frame[0] != raftgroup.FrameMagic {
		return nil, fmt.Errorf("no raft frame of %d bytes", len(frame))
	}
	r := fields{b: frame[frameHeader:]}
	for len(r.b) > 0 && !r.bad {
		kind := r.byte()
		r.uvarint() // the group
		m := message{from: ident.ReplicaID(r.uvarint()), to: ident.ReplicaID(r.uvarint())}
		switch kind {
		case 1:
			r.message(&m)
			ms = append(ms, m)
		case 2: // an offer
			r.uvarint()
			r.skip(r.uvarint())
		case 3: // a status
			r.uvarint()
			r.uvarint()
			r.byte()
		case 4: // a leader's word to rest
			r.uvarint()
			r.uvarint()
			r.uvarint()
		default:
			r.bad = true
		}
	}
	if r.bad {
		return nil, fmt.Errorf("an item of a frame of %d bytes is not readable: %x", len(frame), frame)
	}
	return ms, nil
}

// fields takes numbers off a frame.
type fields struct {
	b   []byte
	bad bool
}

func (r *fields) message(m *message) {
	m.kind = r.byte()
	present := r.byte()
	m.term = r.uvarint()
	optional := func(bit byte) (v uint64) {
		if present&bit != 0 {
			v = r.uvarint()
		}
		return v
	}
	optional(1) // the log term
	m.index = optional(2)
	optional(4) // the commit index
	m.reject = present&8 != 0
	optional(16) // a hint
	r.skip(optional(32))
	if present&64 == 0 {
		return
	}
	size := uint64(0)
	for range r.uvarint() {
		r.byte()
		r.uvarint()
		r.uvarint()
		size += r.uvarint()
		if r.bad {
			return
		}
	}
	r.skip(size)
}

func (r *fields) skip(n uint64) {
	if n > uint64(len(r.b)) {
		r.b, r.bad = nil, true
		return
	}
	r.b = r.b[n:]
}

func (r *fields) byte() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *fields) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.b, r.bad = nil, true
		return 0
	}
	r.b = r.b[n:]
	return v
}
