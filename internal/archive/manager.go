package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"chronik/internal/ident"
	"chronik/internal/snapshot"
)

// Led is a group this node leads and serves.
type Led struct {
	// Info names the group; index and offsets are not set.
	Info Info
	// Term is the leader's.
	Term ident.Term
	// Checkpoint is the index of the durable one.
	Checkpoint ident.Index
	// Prompt has every checkpoint uploaded at once.
	Prompt bool
}

// Held is a pinned checkpoint, with what its owner knows of its records.
type Held struct {
	Pin                        *snapshot.Pin
	CreatedAt                  time.Time
	LogStartOffset, NextOffset int64
}

// Groups is what a Manager asks its node.
type Groups interface {
	// Led lists the groups this node leads and serves now.
	Led() []Led
	// Hold pins a led group's checkpoint; the Manager unpins it.
	Hold(ctx context.Context, g ident.GroupID) (Held, error)
}

// Pins is what a Manager uses of snapshot.Server.
type Pins interface {
	Manifest(ctx context.Context, id uint64) (*snapshot.Manifest, snapshot.ManifestID, error)
	ReadPinned(ctx context.Context, id uint64, name string, b []byte, off int64) error
	Unpin(id uint64)
}

// ManagerOptions configure a Manager. Zero fields take the default in brackets.
type ManagerOptions struct {
	Cluster *Cluster
	Node    ident.NodeID
	Groups  Groups
	Pins    Pins
	// Keep is how many snapshots of a group are kept [3].
	Keep int
	// Interval is the least time between two uploads of a group that is not Prompt [1 min].
	Interval time.Duration
	// MaxConcurrent uploads run at a time [2].
	MaxConcurrent int
	Write         WriteOptions
	Logger        *slog.Logger
}

const (
	// lookEvery is how often the Manager looks for new checkpoints.
	lookEvery = time.Second
	// backoffFirst is the wait after a failure, doubled each time.
	backoffFirst = time.Second
	backoffMax   = 5 * time.Minute
)

// errNotLed says that another node must be asked.
var errNotLed = errors.New("this node does not lead the group")

// Manager uploads the checkpoints of the groups this node leads and collects
// what they leave behind. What goes wrong costs a log line, a metric and time,
// never the node: it holds no lock while it waits and keeps nothing but open files.
type Manager struct {
	opt   ManagerOptions
	slots chan struct{}
	stats stats

	mu     sync.Mutex
	groups map[ident.GroupID]*managed
	// fails counts failures of the store since the last success; until then nothing is tried.
	fails int
	until time.Time
}

// managed is a group the Manager has seen this node lead.
type managed struct {
	turn chan struct{} // held by whoever uploads or collects

	// Guarded by turn.
	claim *Claim

	// Guarded by Manager.mu.
	term      ident.Term // of what follows
	busy      bool
	uploaded  ident.Index // 0: not known yet
	at        time.Time
	collectAt time.Time
	fails     int
	until     time.Time
}

// NewManager returns a Manager; Run it.
func NewManager(opt ManagerOptions) *Manager {
	if opt.Keep <= 0 {
		opt.Keep = 3
	}
	if opt.Interval <= 0 {
		opt.Interval = time.Minute
	}
	if opt.MaxConcurrent <= 0 {
		opt.MaxConcurrent = 2
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	opt.Write.complete()
	return &Manager{opt: opt, slots: make(chan struct{}, opt.MaxConcurrent), groups: map[ident.GroupID]*managed{}}
}

// Cluster is the archive the Manager writes to.
func (m *Manager) Cluster() *Cluster { return m.opt.Cluster }

// Run works until ctx ends, and returns when all it started has.
func (m *Manager) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		for _, l := range m.due(time.Now()) {
			select {
			case m.slots <- struct{}{}:
			default:
				m.idle(l.Info.Group) // the next look tries again
				continue
			}
			wg.Go(func() {
				defer func() { <-m.slots }()
				defer m.idle(l.Info.Group)
				_, err := m.work(ctx, l, false)
				m.judge(ctx, l, err)
			})
		}
	}
}

// due marks the groups that want work as busy, as many as may run, and returns
// them: the prompt ones first, then those that waited longest.
func (m *Manager) due(now time.Time) []Led {
	led := m.opt.Groups.Led()
	m.mu.Lock()
	defer m.mu.Unlock()
	seen := make(map[ident.GroupID]bool, len(led))
	var out []Led
	for _, l := range led {
		g := m.groupLocked(l)
		seen[l.Info.Group] = true
		upload := l.Checkpoint > g.uploaded && (l.Prompt || g.at.IsZero() || now.Sub(g.at) >= m.opt.Interval)
		collect := !g.collectAt.IsZero() && !now.Before(g.collectAt)
		if (upload || collect) && !g.busy && !now.Before(g.until) && !now.Before(m.until) {
			out = append(out, l)
		}
	}
	for id, g := range m.groups {
		if !seen[id] && !g.busy {
			delete(m.groups, id)
		}
	}
	slices.SortStableFunc(out, func(a, b Led) int {
		if a.Prompt != b.Prompt {
			return cmp.Compare(rank(b.Prompt), rank(a.Prompt))
		}
		return m.groups[a.Info.Group].at.Compare(m.groups[b.Info.Group].at)
	})
	out = out[:min(len(out), m.opt.MaxConcurrent)]
	for _, l := range out {
		m.groups[l.Info.Group].busy = true
	}
	return out
}

func rank(first bool) int {
	if first {
		return 1
	}
	return 0
}

// groupLocked returns a group's record, emptied if the term is new.
func (m *Manager) groupLocked(l Led) *managed {
	g := m.groups[l.Info.Group]
	if g == nil {
		g = &managed{turn: make(chan struct{}, 1)}
		m.groups[l.Info.Group] = g
	}
	if g.term != l.Term {
		g.term, g.uploaded, g.at, g.collectAt, g.fails, g.until = l.Term, 0, time.Time{}, time.Time{}, 0, time.Time{}
	}
	return g
}

func (m *Manager) idle(id ident.GroupID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if g := m.groups[id]; g != nil {
		g.busy = false
	}
}

// Upload brings a group's current checkpoint into the store now, whatever the
// interval and earlier failures say, and returns its index there.
func (m *Manager) Upload(ctx context.Context, id ident.GroupID) (ident.Index, error) {
	for _, l := range m.opt.Groups.Led() {
		if l.Info.Group != id {
			continue
		}
		select {
		case m.slots <- struct{}{}:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
		defer func() { <-m.slots }()
		index, err := m.work(ctx, l, true)
		m.judge(ctx, l, err)
		return index, err
	}
	return 0, errNotLed
}

// work claims the group if need be, uploads its checkpoint if the store does not
// have it, and collects.
func (m *Manager) work(ctx context.Context, l Led, now bool) (ident.Index, error) {
	// No single call lasts without progress, but a store may be slow in many small steps.
	ctx, cancel := context.WithTimeout(ctx, m.opt.Write.Grace)
	defer cancel()
	m.mu.Lock()
	g := m.groupLocked(l)
	m.mu.Unlock()
	select {
	case g.turn <- struct{}{}:
		defer func() { <-g.turn }()
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	fresh, err := m.claim(ctx, g, l)
	if err != nil {
		return 0, err
	}
	m.mu.Lock()
	known := g.uploaded
	m.mu.Unlock()
	if fresh || now { // what is there is not known, or somebody wants to be sure
		if known, err = m.opt.Cluster.newestWhole(ctx, l.Info.Group); err != nil {
			return 0, err
		}
	}
	if l.Checkpoint > known {
		up, err := m.upload(ctx, g.claim, l)
		if err != nil {
			return 0, err
		}
		known = up.Ref.Index
	}
	m.mu.Lock()
	if g.term == l.Term {
		g.uploaded, g.at = known, time.Now()
	}
	m.mu.Unlock()
	return known, m.collect(ctx, g, l)
}

// claim makes sure of the group's claim, and says whether it is new.
func (m *Manager) claim(ctx context.Context, g *managed, l Led) (fresh bool, err error) {
	if g.claim != nil && g.claim.Term() == l.Term {
		return false, nil
	}
	g.claim, err = m.opt.Cluster.Claim(ctx, l.Info.Group, l.Term, m.opt.Node, m.opt.Write)
	return true, err
}

// newestWhole is the index of the newest snapshot whose objects are all there, 0 if there is none.
func (c *Cluster) newestWhole(ctx context.Context, g ident.GroupID) (ident.Index, error) {
	u := upload{cl: &Claim{c: c, group: g}}
	if err := u.findBase(ctx); err != nil || u.base == nil {
		return 0, err
	}
	return u.base.Index, nil
}

// pinnedFiles reads a pin's files.
type pinnedFiles struct {
	pins Pins
	id   uint64
}

// ReadPinned implements Pinned.
func (p pinnedFiles) ReadPinned(ctx context.Context, file string, b []byte, off int64) error {
	return p.pins.ReadPinned(ctx, p.id, file, b, off)
}

func (m *Manager) upload(ctx context.Context, cl *Claim, l Led) (Uploaded, error) {
	began := time.Now()
	held, err := m.opt.Groups.Hold(ctx, l.Info.Group)
	if err != nil {
		return Uploaded{}, fmt.Errorf("pin the checkpoint: %w", err)
	}
	defer m.opt.Pins.Unpin(held.Pin.ID)
	man, _, err := m.opt.Pins.Manifest(ctx, held.Pin.ID)
	if err != nil {
		return Uploaded{}, fmt.Errorf("hash the checkpoint: %w", err)
	}
	info := l.Info
	info.Index, info.Term, info.Node, info.CreatedAt = held.Pin.Point.Index, held.Pin.Point.Term, m.opt.Node, held.CreatedAt
	info.LogStartOffset, info.NextOffset = held.LogStartOffset, held.NextOffset
	up, err := cl.Upload(ctx, info, man, pinnedFiles{m.opt.Pins, held.Pin.ID})
	m.stats.sent(up)
	if err != nil {
		return up, err
	}
	m.stats.uploads.Add(1)
	m.opt.Logger.Info("Uploaded snapshot for "+info.Name, "topic", info.Topic, "partition", info.Partition, "index", info.Index,
		"term", info.Term, "bytes", up.BytesSent, "reused", up.BytesReused, "took", time.Since(began))
	return up, nil
}

// collect removes what is no longer wanted, and says when to look again.
func (m *Manager) collect(ctx context.Context, g *managed, l Led) error {
	got, err := g.claim.Collect(ctx, m.opt.Keep)
	m.stats.collected(got)
	m.mu.Lock()
	defer m.mu.Unlock()
	g.collectAt = time.Now() // also where nothing is uploaded any more
	if err != nil {
		return err
	}
	if !got.Unfinished {
		g.collectAt = g.collectAt.Add(m.opt.Write.Grace / 4)
	}
	if g.term == l.Term && got.NewestIncomplete {
		g.uploaded = 0 // and the next checkpoint, or this one, is uploaded
		g.claim = nil
	}
	if got.Snapshots+got.Objects > 0 {
		m.opt.Logger.Info("removed old snapshots from the object store", "group", l.Info.Name,
			"snapshots", got.Snapshots, "objects", got.Objects, "bytes", got.BytesFreed)
	}
	return nil
}

// judge spaces out what failed. A store that fails is left alone by all groups.
func (m *Manager) judge(ctx context.Context, l Led, err error) {
	if err == nil {
		m.stats.ok.Store(time.Now().Unix())
		m.mu.Lock()
		defer m.mu.Unlock()
		m.fails, m.until = 0, time.Time{}
		if g := m.groups[l.Info.Group]; g != nil {
			g.fails, g.until = 0, time.Time{}
		}
		return
	}
	if ctx.Err() != nil {
		return // the node stops, or who asked gave up
	}
	m.stats.failures.Add(1)
	own := isDamage(err) || errors.Is(err, ErrDeposed) || errors.Is(err, errSlow) || errors.Is(err, snapshot.ErrPinGone) ||
		errors.Is(err, snapshot.ErrNoCheckpoint) || errors.Is(err, snapshot.ErrTooManyPins)
	m.mu.Lock()
	wait := backoffFirst
	if g := m.groups[l.Info.Group]; g != nil {
		wait = backoff(g.fails)
		g.fails++
		g.until = time.Now().Add(wait)
	}
	if !own {
		wait = max(wait, backoff(m.fails))
		m.fails++
		m.until = time.Now().Add(backoff(m.fails - 1))
	}
	m.mu.Unlock()
	m.opt.Logger.Warn("Failed to upload snapshot for "+l.Info.Name, "topic", l.Info.Topic, "partition", l.Info.Partition,
		"index", l.Checkpoint, "retry_in", wait, "err", err)
}

func backoff(fails int) time.Duration { return min(backoffFirst<<min(fails, 20), backoffMax) }
