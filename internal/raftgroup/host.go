package raftgroup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/raftlog"
	"chronik/internal/snapshot"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// Chooser says how to open the state machine of a replica.
type Chooser func(Spec) OpenFunc

// Host drives all replicas of a node.
type Host struct {
	opt    Options
	log    *slog.Logger
	raft   *pool[*Replica]
	apply  *pool[*Replica]
	bg     *background // writes checkpoints
	pins   *background // opens checkpoints to offer them; never waits behind a write
	timers *timers
	choose Chooser
	timing timings
	// unapplied is the size of the entries in the apply queues, in bytes.
	unapplied atomic.Int64
	// unstored is the bytes of entries that leaders sent and that are on their way to the disk. Raft workers
	// add to it, the raftlog takes away.
	unstored atomic.Int64
	// contacts and ticking: which peers are in contact, and which replicas do not rest.
	contacts *contacts
	ticking  ticking

	mu sync.RWMutex
	// byReplica holds every replica here. byGroup holds the newest of each group:
	// an older one may linger, quarantined, until it is removed.
	byReplica map[ident.ReplicaID]*Replica
	byGroup   map[ident.GroupID]*Replica
	// up holds the connected peers.
	up       map[ident.NodeID]transport.PeerInfo
	stopping bool

	ctx    context.Context // ends when Stop has begun to close replicas
	cancel context.CancelFunc
	loops  sync.WaitGroup // the ticker, the raftlog's watcher, transfers
}

// NewHost returns a host without replicas; OpenAll opens them.
func NewHost(opt Options) (*Host, error) {
	if err := opt.complete(); err != nil {
		return nil, err
	}
	h := &Host{
		opt: opt, log: opt.Logger,
		byReplica: make(map[ident.ReplicaID]*Replica),
		byGroup:   make(map[ident.GroupID]*Replica),
		up:        make(map[ident.NodeID]transport.PeerInfo),
		timers:    newTimers(),
		contacts:  newContacts(),
		bg:        newBackground(opt.Policy.MaxConcurrent * checkpointShares),
		pins:      newBackground(1),
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.raft = newPool(opt.Workers+1, func() func([]*Replica) {
		o := newOutbox(h)
		return func(rs []*Replica) { o.run(rs) }
	})
	h.apply = newPool(opt.Workers+1, func() func([]*Replica) {
		return func(rs []*Replica) {
			for _, r := range rs {
				r.applyPass()
			}
		}
	})
	h.loops.Go(h.tickLoop)
	h.loops.Go(h.watchLog)
	opt.Log.OnPressure(h.onPressure)
	opt.Log.OnDamage(h.onDamage)
	opt.Server.SetFinder(h.findCheckpoint)
	opt.Server.SetSpoilt(h.spoilt)
	return h, nil
}

func (o *Options) complete() error {
	switch {
	case o.Node == 0 || o.Store.IsZero():
		return errors.New("raftgroup: Node and Store are required")
	case o.FS == nil || o.Dir == "" || o.Log == nil || o.Sender == nil || o.Events == nil:
		return errors.New("raftgroup: FS, Dir, Log, Sender and Events are required")
	case o.Server == nil || o.Receiver == nil:
		return errors.New("raftgroup: Server and Receiver are required")
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.HeartbeatInterval <= 0 {
		o.HeartbeatInterval = 100 * time.Millisecond
	}
	if o.ElectionTimeout <= 0 {
		o.ElectionTimeout = 10 * o.HeartbeatInterval
	}
	if o.ElectionTimeout < 2*o.HeartbeatInterval {
		return fmt.Errorf("raftgroup: ElectionTimeout %v is below twice HeartbeatInterval %v", o.ElectionTimeout, o.HeartbeatInterval)
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.MaxInflightBytes <= 0 {
		o.MaxInflightBytes = 64 << 20
	}
	if o.MaxUnstoredBytes <= 0 {
		o.MaxUnstoredBytes = 256 << 20
	}
	o.MaxInflightBytes = max(o.MaxInflightBytes, maxSizePerMsg) // raft refuses less
	o.Policy.complete()
	return vfs.MkdirAllSync(o.FS, o.Dir)
}

func (p *Policy) complete() {
	if p.ThresholdEntries == 0 {
		p.ThresholdEntries = 10_000
	}
	if p.ThresholdBytes == 0 {
		p.ThresholdBytes = 64 << 20
	}
	if p.KeepEntries == 0 {
		p.KeepEntries = int64(snapshot.KeepEntries(p.ThresholdEntries))
	}
	p.KeepEntries = max(p.KeepEntries, 0)
	if p.HoldBytes == 0 {
		p.HoldBytes = 64 << 20
	}
	if p.MaxConcurrent <= 0 {
		p.MaxConcurrent = 2
	}
}

// OpenAll opens every replica the raftlog has a creation of. A replica whose
// state cannot be read is quarantined and does not fail the call; a full disk
// does, since it says nothing about the replica (correctness rule 31). Replicas wait
// for Start. choose is kept for Create.
func (h *Host) OpenAll(choose Chooser) error {
	h.mu.Lock()
	h.choose = choose
	h.mu.Unlock()
	return h.openEach(h.opt.Log.Creations())
}

// openEach opens replicas, several at a time.
func (h *Host) openEach(cs []raftlog.Creation) error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
		next = make(chan raftlog.Creation)
	)
	for range min(len(cs), 2*h.opt.Workers) {
		wg.Go(func() {
			for c := range next {
				if err := h.open(c); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	for _, c := range cs {
		next <- c
	}
	close(next)
	wg.Wait()
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) }) // the same failures, the same text
	return errors.Join(errs...)
}

// Create makes new replicas durable and opens them; they wait for Start. Specs
// that exist here already are skipped. It blocks for one raftlog append.
func (h *Host) Create(specs []Spec) error {
	var cs []raftlog.Creation
	for _, s := range specs {
		if h.byID(s.Replica) != nil {
			continue
		}
		c, err := s.creation()
		if err != nil {
			return err
		}
		cs = append(cs, c)
	}
	h.mu.RLock()
	ready := h.choose != nil && !h.stopping
	h.mu.RUnlock()
	if !ready {
		return fmt.Errorf("raftgroup: create: %w", ErrStopped)
	}
	var fresh []raftlog.Creation
	for _, c := range cs {
		if h.opt.Log.Replica(c.Replica) == nil { // else an earlier Create was durable and opening it failed
			fresh = append(fresh, c)
		}
	}
	if len(fresh) > 0 {
		if err := h.opt.Log.Create(fresh); err != nil {
			return fmt.Errorf("raftgroup: create %d replicas: %w", len(fresh), err)
		}
	}
	return h.openEach(cs)
}

// check refuses what cannot be a directory or a member.
func (s *Spec) check() error {
	switch {
	case s.Group == 0 || s.Replica == 0:
		return fmt.Errorf("raftgroup: spec %q has no group or no replica id", s.Name)
	case s.Key == "" || len(s.Key) > 200 || strings.ContainsAny(s.Key, "/\\") || strings.HasPrefix(s.Key, "."):
		return fmt.Errorf("raftgroup: key %.250q of group %d is no directory name", s.Key, s.Group)
	}
	if len(s.Members) > 0 {
		for _, m := range s.Members {
			if m.Replica == s.Replica {
				return nil
			}
		}
		return fmt.Errorf("raftgroup: replica %d is not among the members of group %d", s.Replica, s.Group)
	}
	return nil
}

// Start releases a replica that OpenAll or Create opened: it ticks, votes and
// handles messages from now on (correctness rule 18 says when that is safe).
func (h *Host) Start(group ident.GroupID) {
	if r := h.Replica(group); r != nil && !r.released.Swap(true) {
		h.ticking.add(r)
		_ = r.post(func(in *inbox) { in.flags |= flagStart }) // a closed replica does not start
	}
}

// Replica returns the group's replica here, nil if there is none.
func (h *Host) Replica(group ident.GroupID) *Replica {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.byGroup[group]
}

func (h *Host) byID(id ident.ReplicaID) *Replica {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.byReplica[id]
}

// ByID returns a replica by its id, nil if it does not live here.
func (h *Host) ByID(id ident.ReplicaID) *Replica { return h.byID(id) }

// Replicas returns all replicas here, by group and id.
func (h *Host) Replicas() []*Replica {
	h.mu.RLock()
	out := make([]*Replica, 0, len(h.byReplica))
	for _, r := range h.byReplica {
		out = append(out, r)
	}
	h.mu.RUnlock()
	sort.Slice(out, func(i, j int) bool {
		if out[i].Group() != out[j].Group() {
			return out[i].Group() < out[j].Group()
		}
		return out[i].ID() < out[j].ID()
	})
	return out
}

// insert makes a replica known.
func (h *Host) insert(r *Replica) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopping {
		return ErrStopped
	}
	if h.byReplica[r.ID()] != nil {
		return fmt.Errorf("%w: replica %d of group %d", ErrExists, r.ID(), r.Group())
	}
	h.byReplica[r.ID()] = r
	if old := h.byGroup[r.Group()]; old == nil || old.ID() < r.ID() {
		h.byGroup[r.Group()] = r
	}
	return nil
}

// Remove ends a replica that the metadata has retired, and deletes its log and
// its files. Its directory is gone when Remove returns nil. The replica may be one that Create
// made and could not open.
func (h *Host) Remove(id ident.ReplicaID) error {
	r := h.byID(id)
	if r == nil {
		return h.removeUnopened(id)
	}
	r.shutdown(ErrStopped)
	<-r.done
	if err := r.remove(); err != nil {
		return fmt.Errorf("raftgroup: remove replica %d: %w", id, err)
	}
	h.forget(r)
	return nil
}

// removeUnopened removes a replica of which the raftlog has the creation and the host nothing.
func (h *Host) removeUnopened(id ident.ReplicaID) error {
	for _, c := range h.opt.Log.Creations() {
		if c.Replica != id {
			continue
		}
		spec, err := specOf(c)
		if err == nil {
			err = h.newReplica(spec).remove()
		}
		if err != nil {
			return fmt.Errorf("raftgroup: remove replica %d, which was not opened: %w", id, err)
		}
	}
	return nil
}

// remove deletes the log first: a start that finds the log, trimmed, and not the checkpoint takes the
// replica for corrupt. After a crash in between the directory is nobody's, as that of a donor is, and
// the owner of Options.Dir sweeps those of retired replicas.
func (r *Replica) remove() error {
	err := r.h.opt.Log.Remove(r.ID())
	if err != nil && !errors.Is(err, raftlog.ErrUnknownReplica) { // an earlier attempt failed at the files
		return err
	}
	invariant.Point("raftgroup.remove.log")
	r.bg.Lock()
	defer r.bg.Unlock()
	if err := r.h.opt.FS.RemoveAll(r.base); err != nil {
		return err
	}
	return vfs.SyncDir(r.h.opt.FS, r.h.opt.Dir)
}

func (h *Host) forget(r *Replica) {
	h.ticking.remove(r)
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.byReplica, r.ID())
	if h.byGroup[r.Group()] != r {
		return
	}
	delete(h.byGroup, r.Group())
	for _, o := range h.byReplica {
		if cur := h.byGroup[o.Group()]; o.Group() == r.Group() && (cur == nil || cur.ID() < o.ID()) {
			h.byGroup[o.Group()] = o
		}
	}
}

// HandleFrame takes a raft frame from a peer: the transport's Handler.Frame.
// The frame is owned by the callee. It never blocks on I/O.
func (h *Host) HandleFrame(from transport.PeerInfo, frame []byte) error {
	src, err := decodeFrame(frame, func(it item) {
		// A contradiction with the Hello of the connection, or a replica that is
		// not mine: dropped (correctness rule 19).
		if it.src.node != from.Node || it.src.store != from.Store {
			return
		}
		if it.to == 0 && it.kind == itemStatus && it.state == nodeBeat {
			h.beaten(from.Node, &it)
			return
		}
		if r := h.byID(it.to); r != nil && r.Group() == it.group && r.released.Load() {
			r.postItem(it)
		}
	})
	if src != nil && src.node == from.Node && src.store == from.Store {
		h.opt.Events.Saw(src.node, src.store, src.lsn)
	}
	if err != nil {
		return fmt.Errorf("from node %d: %w", from.Node, err)
	}
	return nil
}

// IsFrame tells raft frames from others on a shared stream.
func IsFrame(b []byte) bool { return len(b) > 0 && b[0] == FrameMagic }

// PeerUp says that a node is connected.
func (h *Host) PeerUp(p transport.PeerInfo) {
	h.mu.Lock()
	h.up[p.Node] = p
	h.mu.Unlock()
	h.contacts.connected(p.Node)
	h.peersChanged(p.Node, false)
}

// PeerDown says that a node is not connected any more.
func (h *Host) PeerDown(node ident.NodeID) {
	h.mu.Lock()
	delete(h.up, node)
	h.mu.Unlock()
	h.contacts.gone(node)
	h.peersChanged(node, true)
}

func (h *Host) peersChanged(node ident.NodeID, down bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, r := range h.byReplica {
		_ = r.post(func(in *inbox) { // a closed replica has no peers
			in.flags |= flagPeers
			in.wakes = append(in.wakes, wakeUp{node: node})
			if down {
				in.downs = append(in.downs, node)
			}
		})
	}
}

// reachable tells whether a node is this one or connected.
func (h *Host) reachable(node ident.NodeID) bool {
	if node == h.opt.Node {
		return true
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	_, ok := h.up[node]
	return ok
}

// SpaceAvailable retries what waits for disk space at once.
func (h *Host) SpaceAvailable() {
	for _, r := range h.Replicas() {
		r.as.resume(r)
	}
}

// onPressure is the raftlog's wish: these replicas pin its oldest file. They keep nothing there behind their checkpoints,
// and take one if theirs is not beyond it. Their snapshots under way hold no log for a while: raftlog.max_bytes is the
// cap on what pins hold, and who received one may need another, which is then a small one. If it is
// urgent they keep nothing for followers either, nor behind their checkpoints.
func (h *Host) onPressure(holders []raftlog.Holder, urgent bool) {
	for _, held := range holders {
		if r := h.byID(held.Replica); r != nil {
			r.postLocal(localEvent{fn: func(*outbox) { r.pressed(held.UpTo, urgent) }})
		}
	}
}

func (r *Replica) pressed(upTo ident.Index, urgent bool) {
	rs := &r.rs
	rs.pressedUntil, rs.pressedTo, rs.urgent = time.Now().Add(pressureLasts), upTo, urgent
	r.trim()
	if rs.state == StateHalted {
		r.giveWay(urgent)
	}
	if c := rs.ckpt; urgent || upTo > 0 && (c == nil || c.index < upTo) {
		r.as.post(r, applyItem{fn: func() { r.checkpointNow(logPressure, nil) }})
	}
}

// pressureLasts is how long a wish of the raftlog is heeded; it repeats it.
const pressureLasts = 10 * time.Second

// onDamage is the raftlog's word that it cannot read what a replica relies on.
func (h *Host) onDamage(id ident.ReplicaID, err error) {
	if r := h.byID(id); r != nil {
		r.failLog(fmt.Errorf("%w: %w", ErrCorrupt, err))
	}
}

func (h *Host) tickLoop() {
	t := time.NewTicker(h.opt.HeartbeatInterval)
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			h.keepContact(now)
			h.ticking.tick(now)
			h.opt.Log.Nudge()
		case <-h.ctx.Done():
			return
		}
	}
}

func (h *Host) watchLog() {
	select {
	case <-h.opt.Log.Failed():
		h.opt.Events.Fatal(h.opt.Log.Err())
	case <-h.ctx.Done():
	}
}
