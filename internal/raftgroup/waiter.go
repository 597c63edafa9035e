package raftgroup

import (
	"sort"
	"sync"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
	"chronik/internal/invariant"
)

// pending is a proposal that was appended and waits to be applied, or applied
// and waits for replicas.
type pending struct {
	index    ident.Index
	term     ident.Term
	w        Waiter // nil: already told
	res      Result
	size     int
	min      int
	conf     bool
	deadline time.Time // zero: none
}

// outcome is what a waiter is to be told, outside the lock.
type outcome struct {
	p   pending
	err error
}

func tell(outs []outcome) {
	for i := range outs {
		o := &outs[i]
		o.p.w.Applied(o.p.index, o.p.term, o.p.res, o.err)
	}
}

// waiters keeps the proposals of one replica, keyed by (index, term)
// (correctness rule 4). The raft worker adds in index order, the apply worker
// takes in index order.
type waiters struct {
	mu sync.Mutex
	// q holds what is not applied, by ascending index.
	q []pending
	// held holds what is applied and waits for min replicas (rule 27).
	held []pending
	// replicated[k] is the highest index that k+1 voters hold durably; only the leader keeps it.
	replicated []ident.Index
	// majority of the current voters: a commit implies that many.
	majority int
	// earliest is a lower bound of the deadlines in q and held; zero: none.
	earliest time.Time
}

// add appends pendings whose indexes are above all that wait.
func (w *waiters) add(p pending) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.q); n > 0 {
		invariant.Check(w.q[n-1].index < p.index, "waiter for index %d behind one for %d", p.index, w.q[n-1].index)
	}
	w.q = append(w.q, p)
	w.bound(p.deadline)
}

// bound lowers earliest to a deadline; zero: there is none. mu is held.
func (w *waiters) bound(deadline time.Time) {
	if !deadline.IsZero() && (w.earliest.IsZero() || deadline.Before(w.earliest)) {
		w.earliest = deadline
	}
}

// applied releases the waiters of entries from..from+len(terms)-1. resultOf
// gives the result or error of entry i of them.
func (w *waiters) applied(upTo ident.Index, resultOf func(index ident.Index, term ident.Term, conf bool) (Result, error)) {
	w.mu.Lock()
	var outs []outcome
	n := 0
	for ; n < len(w.q) && w.q[n].index <= upTo; n++ {
		p := w.q[n]
		if p.w == nil {
			continue
		}
		res, err := resultOf(p.index, p.term, p.conf)
		p.res = res
		if err == nil && p.min > w.majority && !w.reached(p) {
			w.held = append(w.held, p)
			continue
		}
		outs = append(outs, outcome{p: p, err: err})
	}
	w.drop(n)
	w.mu.Unlock()
	tell(outs)
}

// drop removes the first n of q, keeping the array for reuse.
func (w *waiters) drop(n int) {
	if n == 0 {
		return
	}
	rest := copy(w.q, w.q[n:])
	clear(w.q[rest:])
	w.q = w.q[:rest]
}

func (w *waiters) reached(p pending) bool {
	return p.min <= len(w.replicated) && w.replicated[p.min-1] >= p.index
}

// progress tells how far each number of voters has come (descending indexes)
// and releases what waited for it.
func (w *waiters) progress(replicated []ident.Index) {
	w.mu.Lock()
	w.replicated = append(w.replicated[:0], replicated...)
	w.majority = len(replicated)/2 + 1
	var outs []outcome
	kept := w.held[:0]
	for _, p := range w.held {
		if w.reached(p) {
			outs = append(outs, outcome{p: p})
		} else {
			kept = append(kept, p)
		}
	}
	clear(w.held[len(kept):])
	w.held = kept
	w.mu.Unlock()
	tell(outs)
}

// wantMore tells whether a proposal waits for more voters than a commit takes.
func (w *waiters) wantMore() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	// What is proposed at a time wants the same, unless the topic's setting has just changed.
	return len(w.held) > 0 || len(w.q) > 0 && max(w.q[0].min, w.q[len(w.q)-1].min) > w.majority
}

// wanting tells whether progress matters to anyone.
func (w *waiters) wanting() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.q)+len(w.held) > 0
}

// expire ends what waited past its deadline.
func (w *waiters) expire(now time.Time) {
	w.mu.Lock()
	if w.earliest.IsZero() || now.Before(w.earliest) {
		w.mu.Unlock()
		return
	}
	var outs []outcome
	w.earliest = time.Time{}
	note := func(p *pending) bool {
		if p.w == nil || p.deadline.IsZero() {
			return false
		}
		if p.deadline.After(now) {
			w.bound(p.deadline)
			return false
		}
		return true
	}
	for i := range w.q {
		if p := &w.q[i]; note(p) {
			outs = append(outs, outcome{p: *p, err: ErrTimeout})
			p.w, p.res = nil, nil
		}
	}
	kept := w.held[:0]
	for _, p := range w.held {
		if note(&p) {
			outs = append(outs, outcome{p: p, err: ErrNotEnoughReplicasAfterAppend})
		} else {
			kept = append(kept, p)
		}
	}
	clear(w.held[len(kept):])
	w.held = kept
	w.mu.Unlock()
	tell(outs)
}

// fail ends everything above keep with err, and what waits for replicas.
func (w *waiters) fail(keep ident.Index, err error) {
	w.mu.Lock()
	var outs []outcome
	n := 0
	for n < len(w.q) && w.q[n].index <= keep {
		n++
	}
	for _, p := range w.q[n:] {
		if p.w != nil {
			outs = append(outs, outcome{p: p, err: err})
		}
	}
	clear(w.q[n:])
	w.q = w.q[:n]
	for _, p := range w.held {
		p.res = nil
		outs = append(outs, outcome{p: p, err: err})
	}
	clear(w.held)
	w.held = w.held[:0]
	w.replicated = w.replicated[:0]
	w.mu.Unlock()
	tell(outs)
}

// check asserts that the entries leaving for the log are those their waiters proposed.
func (w *waiters) check(es []*pb.Entry) {
	if len(es) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	at := sort.Search(len(w.q), func(i int) bool { return uint64(w.q[i].index) >= es[0].GetIndex() })
	for _, e := range es {
		for at < len(w.q) && uint64(w.q[at].index) < e.GetIndex() {
			at++
		}
		if at == len(w.q) {
			return
		}
		if p := &w.q[at]; uint64(p.index) == e.GetIndex() && uint64(p.term) == e.GetTerm() && !p.conf {
			invariant.Check(p.size == len(e.GetData()), "entry %d of term %d has %d bytes, proposed were %d", p.index, p.term, len(e.GetData()), p.size)
		}
	}
}
