package raftgroup

import (
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

// spaceRetry is how long apply waits for disk space before it tries again by itself.
const spaceRetry = time.Second

// applySide is a replica's second half: a queue in index order, and the state
// machine, which only the apply worker touches.
type applySide struct {
	mu    sync.Mutex
	queue []applyItem
	// size of the entries queued since the last pass, in bytes.
	size int
	// queued: on an apply worker. paused: waits for disk space (rule 31).
	queued, paused bool

	sm   StateMachine
	open bool
	// index, term: the last entry applied.
	index ident.Index
	term  ident.Term
	mem   *membership
	// gen and dir: the live generation, where checkpoints go.
	gen  uint64
	dir  string
	ckpt ckptSide
	run  []Entry // scratch
	// unreported is how many bytes were applied since the raft worker was woken for it.
	unreported int
}

// applyItem is one thing for the apply worker, done in order.
type applyItem struct {
	entries   []*pb.Entry
	responses []*pb.Message
	install   *install
	fn        func()
	// ahead: fn does not stand in line behind what waits for disk space.
	ahead bool
}

func (a *applySide) post(r *Replica, it applyItem) {
	a.mu.Lock()
	a.queue = append(a.queue, it)
	a.wakeLocked(r)
	a.mu.Unlock()
}

// postEntries is post for committed entries. If patient, they may wait for more (see patience.go).
func (a *applySide) postEntries(r *Replica, it applyItem, patient bool) {
	size := 0
	for _, e := range it.entries {
		size += len(e.GetData()) + entryOverhead
		patient = patient && e.GetType() == pb.EntryNormal
	}
	a.mu.Lock()
	a.queue = append(a.queue, it)
	a.size += size
	if total := r.h.unapplied.Add(int64(size)); !patient || a.size >= maxUnapplied || total >= maxUnappliedAll {
		a.wakeLocked(r)
	}
	a.mu.Unlock()
}

// wake has what waits applied.
func (a *applySide) wake(r *Replica) {
	a.mu.Lock()
	a.wakeLocked(r)
	a.mu.Unlock()
}

func (a *applySide) wakeLocked(r *Replica) {
	if !a.queued && !a.paused && len(a.queue) > 0 {
		a.queued = true
		r.h.apply.add(r.applyShard, r)
	}
}

// waits tells whether apply waits for disk space.
func (a *applySide) waits() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.paused
}

// resume ends a pause.
func (a *applySide) resume(r *Replica) {
	a.mu.Lock()
	a.paused = false
	a.wakeLocked(r)
	a.mu.Unlock()
}

// applyPass is one turn on an apply worker: everything that waited.
func (r *Replica) applyPass() {
	a := &r.as
	a.mu.Lock()
	a.queued = false
	items := a.queue
	r.h.unapplied.Add(-int64(a.size))
	a.queue, a.size = nil, 0
	a.mu.Unlock()
	for i := range items {
		if items[i].ahead {
			r.applyOne(&items[i])
			items[i] = applyItem{fn: func() {}}
		}
	}
	for i := range items {
		if r.applyOne(&items[i]) {
			items[i] = applyItem{}
			continue
		}
		// Disk full: the rest stays in line, this replica alone waits.
		a.mu.Lock()
		a.queue = append(items[i:len(items):len(items)], a.queue...)
		a.paused = true
		a.mu.Unlock()
		r.h.timers.after(spaceRetry, func() { a.resume(r) })
		return
	}
}

// applyOne does one item. False: no space, do it again later.
func (r *Replica) applyOne(it *applyItem) (done bool) {
	defer func() {
		if p := recover(); p != nil {
			if v, ok := p.(invariant.Violation); ok {
				panic(v)
			}
			r.log.Error("apply panicked", "panic", p, "stack", string(debug.Stack()))
			r.failApply(fmt.Errorf("apply panicked: %v", p))
			done = true
		}
	}()
	switch {
	case it.fn != nil:
		it.fn()
		return true
	case r.dying.Load():
		return true
	case it.install != nil:
		return r.installState(it.install)
	}
	if !r.applyEntries(it) {
		return false
	}
	if !r.dying.Load() {
		r.reportApplied(it)
		r.checkpointIfDue()
	}
	return true
}

// applyEntries applies what is not yet applied and not within an installed
// snapshot. On a full disk it applies one entry after the other, so that what frees room does not wait for what takes
// it, and leaves the rest in the item.
func (r *Replica) applyEntries(it *applyItem) bool {
	a := &r.as
	es := it.entries
	most := len(es)
	for len(es) > 0 && !r.dying.Load() {
		e := es[0]
		if i := ident.Index(e.GetIndex()); uint64(i) <= r.fence.Load() || i <= a.index {
			es = es[1:]
			continue
		}
		invariant.Check(ident.Index(e.GetIndex()) == a.index+1, "group %d: entry %d applied after %d", r.spec.Group, e.GetIndex(), a.index)
		n := 1
		if e.GetType() == pb.EntryNormal {
			for n < min(most, len(es)) && es[n].GetType() == pb.EntryNormal {
				n++
			}
			if !r.applyRun(es[:n]) {
				if n > 1 {
					most = 1
					continue
				}
				it.entries = es
				r.checkpointForSpace()
				return false
			}
		} else {
			r.applyConf(e)
		}
		es = es[n:]
	}
	return true
}

// applyRun gives normal entries to the state machine, at once.
func (r *Replica) applyRun(es []*pb.Entry) bool {
	a := &r.as
	run := a.run[:0]
	size := 0
	for _, e := range es {
		if len(e.GetData()) > 0 {
			run = append(run, Entry{Index: ident.Index(e.GetIndex()), Term: ident.Term(e.GetTerm()), Data: e.GetData()})
			size += len(e.GetData())
		}
	}
	a.run = run
	var results []Result
	if len(run) > 0 {
		var err error
		start := time.Now()
		results, err = a.sm.Apply(run)
		r.h.timing.observeApply(start)
		if vfs.IsNoSpace(err) {
			r.log.Warn("apply waits for disk space", "index", run[0].Index, "err", err)
			return false
		}
		if err == nil && len(results) != len(run) {
			err = fmt.Errorf("%d results for %d entries", len(results), len(run))
		}
		if err != nil {
			r.failApply(fmt.Errorf("apply from index %d: %w", run[0].Index, err))
			return true
		}
	}
	r.appliedTo(es, size)
	next := 0 // waiters come in index order, and so do results
	first := ident.Index(es[0].GetIndex())
	r.waiters.applied(a.index, func(i ident.Index, t ident.Term, conf bool) (Result, error) {
		if i < first || ident.Term(es[i-first].GetTerm()) != t {
			return nil, ErrLeadershipLost
		}
		if conf {
			return nil, ErrConfChangeRefused // raft put an empty entry in its place
		}
		for next < len(run) && run[next].Index < i {
			next++
		}
		return results[next], nil
	})
	clear(run)
	return true
}

// appliedTo moves the applied index to the end of es.
func (r *Replica) appliedTo(es []*pb.Entry, size int) {
	a := &r.as
	last := es[len(es)-1]
	a.index, a.term = ident.Index(last.GetIndex()), ident.Term(last.GetTerm())
	a.ckpt.bytes += int64(size)
	first := es[0].GetIndex()
	if to := min(r.replayTo.Load(), last.GetIndex()); to >= first {
		r.count.replayed.Add(to - first + 1)
	}
	r.applied.Store(uint64(a.index))
}

// applyConf decides on a membership change, alike on every replica, and hands
// an accepted one to the raft worker ahead of the entry's response.
func (r *Replica) applyConf(e *pb.Entry) {
	a := &r.as
	cc, err := decodeConfChange(e)
	if err != nil {
		r.failApply(fmt.Errorf("membership change at index %d: %w", e.GetIndex(), err))
		return
	}
	next, err := a.mem.next(cc, ident.Index(e.GetIndex()))
	if err != nil {
		r.log.Info("refused membership change", "index", e.GetIndex(), "err", err)
	} else {
		a.mem = next
		r.postLocal(localEvent{conf: &confApplied{index: ident.Index(e.GetIndex()), cc: cc, after: next}})
	}
	r.appliedTo([]*pb.Entry{e}, len(e.GetData()))
	r.waiters.applied(a.index, func(i ident.Index, t ident.Term, _ bool) (Result, error) {
		if i != ident.Index(e.GetIndex()) || t != ident.Term(e.GetTerm()) {
			return nil, ErrLeadershipLost
		}
		return nil, err
	})
}

func decodeConfChange(e *pb.Entry) (*pb.ConfChangeV2, error) {
	if e.GetType() != pb.EntryConfChangeV2 {
		return nil, fmt.Errorf("%w: entry of type %v", ErrCorrupt, e.GetType())
	}
	cc := &pb.ConfChangeV2{}
	if err := proto.Unmarshal(e.GetData(), cc); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return cc, nil
}
