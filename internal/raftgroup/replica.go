package raftgroup

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"google.golang.org/protobuf/proto"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/raftlog"
)

// Replica is one member of a Raft group on this node. Its methods may be called
// from any goroutine.
//
// Three parties work on it and share nothing but what is named here: its raft
// worker owns raftSide, its apply worker owns applySide, everybody else fills
// the inbox and reads the atomics.
type Replica struct {
	h    *Host
	spec Spec
	log  *slog.Logger
	// base holds the generation directories.
	base       string
	shard      int
	applyShard int

	mu sync.Mutex
	// in is filled by anyone under mu, nil while nothing waits. The raft worker takes it whole.
	in *inbox
	// queued: in the worker's queue, and what is in the inbox will be seen.
	queued bool
	// closed is why nothing is accepted any more; nil while open.
	closed error

	released atomic.Bool // by Host.Start
	// tickAt is the place in Host.ticking, from 1; 0: not there. Its mutex guards it.
	tickAt int
	status atomic.Pointer[Status]
	// commit, last and first are the Status's, which is not made anew for them alone.
	// The raft worker moves them; commit is at most last whenever it is read before.
	commit, last, first atomic.Uint64
	// applied is the index of the last entry the state machine has applied. The apply worker moves it.
	applied atomic.Uint64
	// snapIndex is the current checkpoint's index, 0 if there is none. The raft worker moves it.
	snapIndex atomic.Uint64
	// liveGen is the live generation. The raft worker moves it.
	liveGen atomic.Uint64
	serving atomic.Bool
	// awaited is from which applied index on the raft worker wants to be woken; it moves it (see patience.go).
	awaited atomic.Uint64
	// allSent: this replica leads, and its followers keep up and were sent everything. The raft worker moves it.
	allSent atomic.Bool
	// fence: entries at or below it belong to an installed snapshot and are not
	// applied, yet their responses are delivered (rule 10). The raft worker moves it.
	fence atomic.Uint64
	// replayTo: applying up to it counts as replay (see catchUp). The raft worker moves it.
	replayTo atomic.Uint64
	// dying: closed or about to be; nothing more is applied or captured.
	dying atomic.Bool
	// harmed: Damaged was called, or the replica was halted.
	harmed  atomic.Bool
	waiters waiters
	count   counters
	dropped atomic.Uint64
	// done is closed once the replica is closed and its files are.
	done chan struct{}
	// fetches are the goroutines that move snapshots here.
	fetches sync.WaitGroup
	// bg is held while a background job writes into base.
	bg sync.Mutex

	rs raftSide
	as applySide
}

// counters since the process started.
type counters struct {
	created, installed, received, reused, replayed atomic.Uint64
}

// raftSide is owned by the replica's raft worker.
type raftSide struct {
	rn   *raft.RawNode
	st   *storage
	view *raftlog.View
	// hs is raft's latest HardState: what every append carries (rule 5).
	// durable is the latest that is known to be on disk.
	hs, durable raftlog.HardState
	// logged is the HardState of the latest append submitted.
	logged raftlog.HardState
	// prompted: in this pass an answer to a heartbeat was stepped behind which something may have got lost.
	// noBeat: this pass sends no heartbeats.
	prompted, noBeat bool
	// acked are the followers that have acknowledged entries since they last answered a heartbeat.
	acked []uint64
	// sinceEntries counts ticks since all followers were sent entries, up to beatAfter.
	sinceEntries int
	// last is raft's last index. Exact whenever no Ready waits.
	last ident.Index
	// lead and role are raft's SoftState.
	lead uint64
	role raft.StateType
	// termStart is the index of this leader's own term's empty entry, 0 before it is known.
	termStart ident.Index
	// notable is the latest entry of this reign whose commit followers are told of at once: its first,
	// or a membership change. 0: none, or they have been told.
	notable ident.Index
	mem     *membership
	// learned binds senders that no configuration names yet (rule 19).
	learned map[ident.ReplicaID]Member
	// lastConf is the index of the last applied membership change (rule 14).
	lastConf ident.Index
	// gen is the live generation.
	gen uint64
	// ckpt is the current checkpoint, nil if there is none.
	ckpt  *checkpoint
	reads reads
	camp  campaign
	catch catchUp
	// offers are the snapshots on their way to followers.
	offers map[ident.ReplicaID]*offering
	recv   receiving
	quiet  quiet
	// announced is the last leadership that was told.
	announced leadership
	state     State
	reason    error
	// damage is what is wrong with the stored data. verifying ends the search for it, nil: nobody looks.
	damage    error
	verifying context.CancelFunc
	now       time.Time
	slow      int // ticks since the last slow tick
	nextCkpt  time.Time
	// pressedUntil: the raftlog needs room; until then pins hold no log and, if that
	// is urgent, nothing else does.
	pressedUntil time.Time
	// pressedTo is the last entry in the file that is to become free.
	pressedTo ident.Index
	urgent    bool
	// stateless: the state machine was told its last and is closed, or about to be.
	stateless bool
	// halted: when a leader's followers last said so. deaf: ticks since a halted follower heard its leader.
	halted map[ident.ReplicaID]time.Time
	deaf   int
	// heir was asked last to take over, since heirAt in the term heirTerm.
	heir     ident.ReplicaID
	heirTerm ident.Term
	heirAt   time.Time
	// asked: when a replacement was asked for last.
	asked time.Time
	// dirty: status wants to be made anew; moved: perhaps only its indexes have
	// changed; stale: those of followers have, which the next tick makes good.
	dirty, moved, stale bool
}

// leadership as Events.LeaderChanged tells it.
type leadership struct {
	node ident.NodeID
	term ident.Term
	me   bool
}

// Spec returns what the replica was created from.
func (r *Replica) Spec() Spec { return r.spec }

// Group returns the replica's group.
func (r *Replica) Group() ident.GroupID { return r.spec.Group }

// ID returns the replica's id.
func (r *Replica) ID() ident.ReplicaID { return r.spec.Replica }

// StateMachine returns the group's state machine as OpenFunc made it, nil if
// it could not be opened.
func (r *Replica) StateMachine() StateMachine { return r.as.sm }

// IsLeader tells whether this replica leads and may serve (correctness rule 25).
func (r *Replica) IsLeader() bool { return r.serving.Load() }

// Status returns the latest status. What it says of followers that keep up may be
// a heartbeat interval old.
func (r *Replica) Status() Status {
	s := *r.status.Load()
	s.CommitIndex = ident.Index(r.commit.Load())
	s.LastIndex = ident.Index(r.last.Load())
	s.FirstIndex = ident.Index(r.first.Load())
	s.AppliedIndex = ident.Index(r.applied.Load())
	s.SnapshotIndex = ident.Index(r.snapIndex.Load())
	s.SnapshotsCreated = r.count.created.Load()
	s.SnapshotsInstalled = r.count.installed.Load()
	s.SnapshotBytesReceived = r.count.received.Load()
	s.SnapshotBytesReused = r.count.reused.Load()
	s.EntriesReplayed = r.count.replayed.Load()
	return s
}

// Alive returns how many of the group's voters, this one included, live on
// connected nodes.
func (r *Replica) Alive() int {
	n := 0
	for _, m := range r.status.Load().Members {
		if !m.Learner && r.h.reachable(m.Node) {
			n++
		}
	}
	return n
}

// Propose appends data as one entry, if this replica leads and serves. It must not
// be empty nor larger than MaxEntry, nor modified before opt.Release says so. w is told the outcome.
func (r *Replica) Propose(data []byte, opt ProposeOptions, w Waiter) {
	invariant.Check(len(data) > 0, "group %d: empty proposal", r.spec.Group)
	if len(data) > MaxEntry {
		w.Applied(0, 0, nil, fmt.Errorf("%w: %d bytes, at most %d are possible", ErrTooLarge, len(data), MaxEntry))
		return
	}
	r.propose(proposal{data: data, opt: opt, w: w})
}

func (r *Replica) propose(p proposal) {
	full := false
	err := r.post(func(in *inbox) {
		full = in.propBytes > 0 && in.propBytes+len(p.data) > maxInboxBytes
		if !full {
			in.propBytes += len(p.data)
			in.props = append(in.props, p)
		}
	})
	if full {
		err = ErrBusy
	}
	if err != nil {
		p.w.Applied(0, 0, nil, err)
	}
}

// ProposeConfChange proposes a change of membership. The waiter's error is
// ErrStaleGeneration or ErrConfChangeRefused when it was committed or proposed
// without effect. A joint change is applied twice: entering, which the waiter
// hears, and leaving, which the leader proposes by itself.
func (r *Replica) ProposeConfChange(c ConfChange, opt ProposeOptions, w Waiter) {
	data, err := proto.Marshal(c.toRaft())
	if err != nil {
		w.Applied(0, 0, nil, err)
		return
	}
	r.propose(proposal{data: data, conf: true, opt: opt, w: w})
}

// AddLearner adds a newcomer that does not vote.
func (r *Replica) AddLearner(m Member, generation uint64, opt ProposeOptions, w Waiter) {
	r.ProposeConfChange(ConfChange{Generation: generation, AddLearner: []Member{m}}, opt, w)
}

// ReplaceVoter makes add, usually a learner that caught up, a voter and removes
// another replica, in one joint change (correctness rule 21).
func (r *Replica) ReplaceVoter(add Member, remove ident.ReplicaID, generation uint64, opt ProposeOptions, w Waiter) {
	r.ProposeConfChange(ConfChange{Generation: generation, AddVoter: []Member{add}, Remove: []ident.ReplicaID{remove}}, opt, w)
}

// ReadIndex calls done once this replica has applied everything that was
// committed in the group when ReadIndex was called, with the index; on a
// follower the leader is asked. done runs on a raft worker, or before ReadIndex
// returns on a closed replica, and must not block. Errors: ErrNotLeader when no
// leader is known, ErrLeadershipLost, ErrTimeout at the deadline, whose grain is
// a heartbeat interval. Zero deadline: five election timeouts.
func (r *Replica) ReadIndex(deadline time.Time, done func(ident.Index, error)) {
	if deadline.IsZero() {
		deadline = time.Now().Add(5 * r.h.opt.ElectionTimeout)
	}
	err := r.post(func(in *inbox) { in.reads = append(in.reads, readRequest{deadline: deadline, done: done}) })
	if err != nil {
		done(0, err)
	}
}

// TransferLeadership asks the group to be led by another voter: to, or if 0
// the most advanced one on a connected node. Nothing happens if this replica
// does not lead.
func (r *Replica) TransferLeadership(to ident.ReplicaID) {
	r.postLocal(localEvent{fn: func(*outbox) { r.transfer(to) }})
}

// TakeCheckpoint takes a checkpoint of what is applied soon. done, if not nil,
// is told when a checkpoint at or above the index applied now is durable.
func (r *Replica) TakeCheckpoint(done func(ident.Index, error)) {
	r.as.post(r, applyItem{fn: func() { r.checkpointNow("request", done) }})
}

// Campaign asks the replica to stand for election now, if no leader is known.
func (r *Replica) Campaign() {
	_ = r.post(func(in *inbox) { in.flags |= flagCampaign }) // a closed replica never leads
}

// dirName is the replica's directory below Options.Dir.
func dirName(s Spec) string {
	return s.Key + "." + strconv.FormatUint(uint64(s.Replica), 10)
}

func (h *Host) baseOf(s Spec) string { return path.Join(h.opt.Dir, dirName(s)) }
