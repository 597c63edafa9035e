package raftlog

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

// Log is a node's write-ahead log. Its methods may be called from any goroutine.
type Log struct {
	opts Options
	fs   vfs.FS
	log  *slog.Logger

	// durable is the highest LSN known durable. Only the sync loop moves it.
	durable atomic.Uint64
	// pressed: the files take more than half of MaxBytes, so a Trim is written at once.
	pressed  atomic.Bool
	recovery Recovery
	failed   chan struct{}
	stopped  chan struct{} // closed when the sync loop has ended

	// mu guards what waits for the sync loop. It is held for moments only.
	mu       sync.Mutex
	cond     sync.Cond
	waiting  []op
	trims    []*replica
	wake     bool
	closing  bool
	err      error // set once
	pressure func([]Holder, bool)
	damage   func(ident.ReplicaID, error)

	// repMu guards the map and node; the sync loop, their only writer, reads them without.
	repMu    sync.RWMutex
	replicas map[ident.ReplicaID]*replica
	node     []byte

	statsMu sync.Mutex
	stats   Stats

	w writer
}

// opKind says what an op asks for.
type opKind uint8

const (
	opAppend opKind = iota
	opCreate
	opRemove
	opNode
)

// op waits for the sync loop.
type op struct {
	kind    opKind
	app     *Append
	cs      []Creation
	replica ident.ReplicaID
	blob    []byte
	done    func(error)
}

func (o *op) finish(err error) {
	switch {
	case o.kind == opAppend && o.app.Done != nil:
		o.app.Done(err)
	case o.done != nil:
		o.done(err)
	}
}

// enqueue hands o to the sync loop, or finishes it here if that has been closed.
func (l *Log) enqueue(o op) {
	l.mu.Lock()
	if l.closing {
		l.mu.Unlock()
		o.finish(ErrClosed)
		return
	}
	l.waiting = append(l.waiting, o)
	if o.kind != opAppend || !o.app.Patient {
		l.wake = true
		l.cond.Signal()
	}
	l.mu.Unlock()
}

// Nudge has the log write what is patient. It does not wait for it.
func (l *Log) Nudge() {
	l.mu.Lock()
	if len(l.waiting) > 0 && !l.wake {
		l.wake = true
		l.cond.Signal()
	}
	l.mu.Unlock()
}

// Append enqueues a and returns. a must not be changed before Done, its entries'
// Data never. Done gets ErrUnknownReplica, ErrQuarantined or ErrTooLarge if
// the record was refused, an error that is ErrFailed if the log has failed,
// and, on the caller's goroutine, ErrClosed after Close.
func (l *Log) Append(a *Append) {
	for i := 1; i < len(a.Entries); i++ {
		invariant.Check(a.Entries[i].Index == a.Entries[0].Index+ident.Index(i),
			"raftlog: replica %d: entries %d and %d in one append are not adjacent",
			a.Replica, a.Entries[i-1].Index, a.Entries[i].Index)
	}
	if a.Install != nil && len(a.Entries) > 0 {
		invariant.Check(a.Entries[0].Index == a.Install.Index+1,
			"raftlog: replica %d: entry %d follows the install of %d", a.Replica, a.Entries[0].Index, a.Install.Index)
	}
	l.enqueue(op{kind: opAppend, app: a})
}

// await runs o and waits for it.
func (l *Log) await(o op) error {
	done := make(chan error, 1)
	o.done = func(err error) { done <- err }
	l.enqueue(o)
	return <-done
}

// Create makes the replicas durable, all with one sync. If one exists
// (ErrExists) or is too large, none is made; a crash may leave only the first ones.
func (l *Log) Create(cs []Creation) error {
	if len(cs) == 0 {
		return nil
	}
	own := make([]Creation, len(cs))
	for i, c := range cs {
		if len(c.Info) > MaxInfoBytes {
			return fmt.Errorf("create replica %d: info of %d bytes: %w", c.Replica, len(c.Info), ErrTooLarge)
		}
		invariant.Check(c.Replica != 0, "raftlog: create replica 0 of group %d", c.Group)
		c.Info = slices.Clone(c.Info)
		own[i] = c
	}
	return l.await(op{kind: opCreate, cs: own})
}

// Remove ends the replica durably: its records are void.
func (l *Log) Remove(r ident.ReplicaID) error { return l.await(op{kind: opRemove, replica: r}) }

// PutNode replaces the node-wide record. done is called like Append.Done and may be nil.
func (l *Log) PutNode(blob []byte, done func(error)) {
	if done == nil {
		done = func(error) {}
	}
	if len(blob) > MaxNodeBytes {
		done(fmt.Errorf("node record of %d bytes: %w", len(blob), ErrTooLarge))
		return
	}
	l.enqueue(op{kind: opNode, blob: slices.Clone(blob), done: done})
}

// NodeBlob returns the latest durable node-wide record, nil if there is none. It must not be changed.
func (l *Log) NodeBlob() []byte {
	l.repMu.RLock()
	defer l.repMu.RUnlock()
	return l.node
}

// lookup returns the replica or nil.
func (l *Log) lookup(id ident.ReplicaID) *replica {
	l.repMu.RLock()
	defer l.repMu.RUnlock()
	return l.replicas[id]
}

// all returns every replica known, in no order.
func (l *Log) all() []*replica {
	l.repMu.RLock()
	defer l.repMu.RUnlock()
	rs := make([]*replica, 0, len(l.replicas))
	for _, r := range l.replicas {
		rs = append(rs, r)
	}
	return rs
}

// Creations returns the live replicas, by id. Quarantined ones are among them; one whose creation
// record is damaged has only its ids. Info must not be changed.
func (l *Log) Creations() []Creation {
	var cs []Creation
	for _, r := range l.all() {
		r.mu.Lock()
		switch {
		case r.removed:
		case r.creation != nil:
			cs = append(cs, *r.creation)
		case r.damage != nil: // else it is not durable yet
			cs = append(cs, Creation{Replica: r.id, Group: r.group})
		}
		r.mu.Unlock()
	}
	slices.SortFunc(cs, func(a, b Creation) int { return cmp.Compare(a.Replica, b.Replica) })
	return cs
}

// Trim says that entries up to index to are not needed any more. They are gone
// for readers at once; the record is written with the next batch. A trim
// forgotten by a crash leaves more entries, nothing else.
func (l *Log) Trim(id ident.ReplicaID, to ident.Index) {
	r := l.lookup(id)
	if r == nil {
		return
	}
	r.mu.Lock()
	to = min(to, r.last())
	term, err := r.term(to)
	if to <= r.base || err != nil || r.removed {
		r.mu.Unlock()
		return
	}
	r.base, r.baseTerm = to, term
	queued := r.trimQueued
	r.trimQueued = true
	r.mu.Unlock()
	if queued {
		return
	}
	l.mu.Lock()
	l.trims = append(l.trims, r)
	if l.pressed.Load() {
		l.wake = true
		l.cond.Signal()
	}
	l.mu.Unlock()
}

// Holder is a replica that keeps a file from being freed.
type Holder struct {
	Replica ident.ReplicaID
	// UpTo is its last entry there, 0 if only a record of the replica itself is.
	UpTo ident.Index
}

// OnPressure sets the function called when old files should become free and
// cannot: with the replicas that hold the oldest one. They should checkpoint and
// Trim up to UpTo at least; urgent, when more than 7/8 of MaxBytes are taken, they should keep nothing
// that they can do without. It runs on the sync loop and must not block; it is called
// again with each new file while that lasts.
func (l *Log) OnPressure(fn func(holders []Holder, urgent bool)) {
	l.mu.Lock()
	l.pressure = fn
	l.wake = true
	l.cond.Signal()
	l.mu.Unlock()
}

// OnDamage sets the function called when durable records of a replica turn out to be
// unreadable while the log is open: the replica takes no append any more. It runs on the
// sync loop and must not block. What was found before, Damage tells.
func (l *Log) OnDamage(fn func(replica ident.ReplicaID, err error)) {
	l.mu.Lock()
	l.damage = fn
	l.mu.Unlock()
}

// Damage tells why a replica is quarantined; nil: it is not.
func (l *Log) Damage(id ident.ReplicaID) error {
	r := l.lookup(id)
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.damage
}

// DurableLSN returns the highest LSN known durable.
func (l *Log) DurableLSN() uint64 { return l.durable.Load() }

// Recovery returns what Open found.
func (l *Log) Recovery() Recovery { return l.recovery }

// Stats returns counters and sizes as of the last batch.
func (l *Log) Stats() Stats {
	l.statsMu.Lock()
	defer l.statsMu.Unlock()
	s := l.stats
	s.DurableLSN = l.durable.Load()
	return s
}

// Failed is closed when the log has failed for good.
func (l *Log) Failed() <-chan struct{} { return l.failed }

// Err returns why the log has failed, or nil. It is an ErrFailed, and an ErrNoSpace if the disk is full.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// fail makes err final. Called on the sync loop.
func (l *Log) fail(what string, err error) {
	if l.w.err != nil {
		return
	}
	if vfs.IsNoSpace(err) {
		err = errors.Join(ErrNoSpace, err)
	}
	err = fmt.Errorf("%w: %s: %w", ErrFailed, what, err)
	l.w.err = err
	l.mu.Lock()
	l.err = err
	l.mu.Unlock()
	close(l.failed)
	l.log.Error("raftlog failed", "err", err)
}

// Close writes what waits, seals the active file and ends the log. It returns
// the error the log failed with, if it did.
func (l *Log) Close() error {
	l.mu.Lock()
	l.closing = true
	l.cond.Signal()
	l.mu.Unlock()
	<-l.stopped
	return l.Err()
}
