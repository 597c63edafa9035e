package raftgroup

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"go.etcd.io/raft/v3"

	"chronik/internal/ident"
)

// readRequest is one ReadIndex call.
type readRequest struct {
	deadline time.Time
	done     func(ident.Index, error)
	// index is raft's answer: the request is done once that is applied.
	index ident.Index
}

// reads are a replica's ReadIndex calls: those that wait for the next request
// to raft, those that share the one in flight, those that wait for apply.
type reads struct {
	waiting  []readRequest
	inflight []readRequest
	applying []readRequest
	// seq is the context of the request in flight, from a random number on: what a leader answers to the process that was
	// here before, or asks for another follower, must not look like this one's (correctness rule 26).
	seq uint64
	// since is when it was sent; raft may drop it silently, so it is given up
	// after an election timeout and what waits is asked anew.
	since time.Time
}

func (q *reads) empty() bool { return len(q.waiting)+len(q.inflight)+len(q.applying) == 0 }

func (q *reads) fail(err error) {
	for _, l := range []*[]readRequest{&q.waiting, &q.inflight, &q.applying} {
		all := *l
		*l = nil
		for _, rq := range all {
			rq.done(0, err)
		}
	}
}

// stepReads takes new calls.
func (r *Replica) stepReads(calls []readRequest) {
	rs := &r.rs
	if len(calls) == 0 {
		return
	}
	var err error
	switch {
	case rs.state == StateHalted:
		err = fmt.Errorf("%w: %w", ErrQuarantined, rs.reason)
	case rs.lead == raft.None:
		err = ErrNotLeader
	}
	if err != nil {
		for _, c := range calls {
			c.done(0, err)
		}
		return
	}
	rs.reads.waiting = append(rs.reads.waiting, calls...)
	r.askRead()
}

// askRead sends one request to raft for all calls that wait, unless one is in
// flight: a call that comes after the request was sent must wait for the next.
func (r *Replica) askRead() {
	q := &r.rs.reads
	if len(q.inflight) > 0 || len(q.waiting) == 0 {
		return
	}
	q.inflight, q.waiting = q.waiting, nil
	if q.seq == 0 {
		q.seq = rand.Uint64()
	}
	q.seq++
	q.since = time.Now()
	r.rs.rn.ReadIndex(binary.LittleEndian.AppendUint64(nil, q.seq))
}

// readStates takes raft's answers.
func (r *Replica) readStates(states []raft.ReadState) {
	q := &r.rs.reads
	for _, s := range states {
		if len(s.RequestCtx) != 8 || binary.LittleEndian.Uint64(s.RequestCtx) != q.seq {
			continue // given up before
		}
		for _, rq := range q.inflight {
			rq.index = ident.Index(s.Index)
			q.applying = append(q.applying, rq)
		}
		q.inflight = nil
		r.askRead()
	}
}

// readsApplied finishes the calls whose index is applied.
func (r *Replica) readsApplied() {
	q := &r.rs.reads
	if len(q.applying) == 0 {
		return
	}
	applied := ident.Index(r.applied.Load())
	kept := q.applying[:0]
	var ready []readRequest
	for _, rq := range q.applying {
		if rq.index <= applied {
			ready = append(ready, rq)
		} else {
			kept = append(kept, rq)
		}
	}
	clear(q.applying[len(kept):])
	q.applying = kept
	for _, rq := range ready {
		rq.done(rq.index, nil)
	}
}

// expireReads ends the calls whose deadline has passed and asks again for the
// others if raft has lost the request.
func (r *Replica) expireReads(now time.Time) {
	q := &r.rs.reads
	if q.empty() {
		return
	}
	var late []readRequest
	for _, l := range []*[]readRequest{&q.waiting, &q.inflight, &q.applying} {
		kept := (*l)[:0]
		for _, rq := range *l {
			if rq.deadline.After(now) {
				kept = append(kept, rq)
			} else {
				late = append(late, rq)
			}
		}
		clear((*l)[len(kept):])
		*l = kept
	}
	for _, rq := range late {
		rq.done(0, ErrTimeout)
	}
	if len(q.inflight) > 0 && now.Sub(q.since) >= r.h.opt.ElectionTimeout {
		q.waiting = append(q.inflight, q.waiting...)
		q.inflight = nil
	}
	if r.rs.lead == raft.None {
		q.fail(ErrNotLeader)
		return
	}
	r.askRead()
}
