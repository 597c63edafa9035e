package group

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"chronik/internal/ident"
	"chronik/internal/raftgroup"
)

// Replica is what a Coordinator needs of its shard's replica: *raftgroup.Replica.
type Replica interface {
	Propose(data []byte, opt raftgroup.ProposeOptions, w raftgroup.Waiter)
	ReadIndex(deadline time.Time, done func(ident.Index, error))
}

// Options configure a Coordinator. Zero fields take the default in brackets.
type Options struct {
	// InitialDelay is how long a rebalance of an empty group waits for more
	// members after the last that came. Negative: not at all. [500 ms]
	InitialDelay time.Duration
	// MinSession and MaxSession bound the session timeouts members may ask for [6 s, 30 min].
	MinSession, MaxSession time.Duration
	// MaxMetadata bounds the metadata of a committed offset, in bytes [4096].
	MaxMetadata int
	// MaxMembers bounds a group; 0: no bound.
	MaxMembers int
	// OffsetsRetention is how long the offsets of a group without members are kept [7 days].
	OffsetsRetention time.Duration
	// RetentionInterval is how often that is looked at [10 min].
	RetentionInterval time.Duration
	// ProposeTimeout bounds how long a client waits for a commit [5 s].
	ProposeTimeout time.Duration
	// Wall tells the date of commits and of what expires; nil: time.Now. Sessions do not go by it.
	Wall   func() time.Time
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.InitialDelay, 500*time.Millisecond)
	def(&o.MinSession, 6*time.Second)
	def(&o.MaxSession, 30*time.Minute)
	def(&o.OffsetsRetention, 7*24*time.Hour)
	def(&o.RetentionInterval, 10*time.Minute)
	def(&o.ProposeTimeout, 5*time.Second)
	if o.MaxMetadata == 0 {
		o.MaxMetadata = 4096
	}
	o.MaxMetadata = min(o.MaxMetadata, maxString)
	if o.Wall == nil {
		o.Wall = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// phase is how far a Coordinator is with its leadership.
type phase uint8

const (
	phaseFollower phase = iota // not the leader: NOT_COORDINATOR
	phaseLoading               // leads, but ReadIndex has not answered: COORDINATOR_LOAD_IN_PROGRESS
	phaseReady
	phaseClosed
)

// Coordinator is the live side of a shard: sessions, rebalances, answers. It
// serves while its replica leads; what must outlive it is proposed, and answered
// once applied.
//
// All methods may be called from any goroutine. Each answer is given by calling
// reply exactly once, now or later, without a lock held.
type Coordinator struct {
	r   Replica
	sm  *StateMachine
	opt Options
	log *slog.Logger

	mu     sync.Mutex // held for CPU work only: no proposal, no reply under it
	phase  phase
	term   ident.Term // of the leadership that phase is about
	groups map[string]*liveGroup
	timers timerHeap
	alarm  *time.Timer // fires at the earliest timer
	alarmd time.Time   // when; zero: not set
	after  []func()    // to run once mu is released: replies and proposals, in order
	// version is the highest Group.Version given. Two proposals may change places on
	// their way; apply keeps the one with the higher version.
	version  uint64
	sweeps   []sweep // scans to be done
	sweeping bool    // a goroutine does them
	wg       sync.WaitGroup
}

// New returns the Coordinator of a shard whose replica is r and state machine sm.
func New(r Replica, sm *StateMachine, opt Options) *Coordinator {
	opt = opt.withDefaults()
	c := &Coordinator{r: r, sm: sm, opt: opt, log: opt.Logger, groups: map[string]*liveGroup{}}
	sm.watchRole(c.roleChanged)
	c.roleChanged()
	return c
}

// Close ends the Coordinator: whoever waits gets NOT_COORDINATOR.
func (c *Coordinator) Close() {
	c.sm.watchRole(nil)
	c.locked(func() {
		c.unload()
		c.phase = phaseClosed
		if c.alarm != nil {
			c.alarm.Stop()
		}
	})
	c.wg.Wait()
}

// locked runs fn under mu and then, without it, what fn has put off.
func (c *Coordinator) locked(fn func()) {
	c.mu.Lock()
	fn()
	after := c.after
	c.after = nil
	c.mu.Unlock()
	for _, f := range after {
		f()
	}
}

// later puts f off until mu is released.
func (c *Coordinator) later(f func()) { c.after = append(c.after, f) }

// roleChanged starts or ends serving. It runs on a raft worker and must not
// block: loading goes on when ReadIndex answers, what waits is told by another goroutine.
// Calls may overtake each other, so each looks at the role there is once mu is held.
func (c *Coordinator) roleChanged() {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.sm.currentRole()
	if c.phase == phaseClosed || r.leading && c.phase != phaseFollower && c.term == r.term {
		return
	}
	c.unload()
	told := c.after
	c.after = nil
	if r.leading {
		c.phase, c.term = phaseLoading, r.term
	}
	c.spawn(func() {
		for _, f := range told {
			f()
		}
		if r.leading {
			c.confirm(r.term)
		}
	})
}

// spawn runs fn on a goroutine that Close waits for. mu is held.
func (c *Coordinator) spawn(fn func()) {
	if c.phase != phaseClosed {
		c.wg.Go(fn)
	}
}

// confirm asks the group, once a leadership, that nothing newer was committed by
// another leader (correctness rule 26), and then loads.
func (c *Coordinator) confirm(term ident.Term) {
	c.r.ReadIndex(time.Now().Add(c.opt.ProposeTimeout), func(_ ident.Index, err error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.spawn(func() { c.confirmed(term, err) })
	})
}

func (c *Coordinator) confirmed(term ident.Term, err error) {
	if err == nil {
		c.locked(func() { c.load(term) })
		return
	}
	c.mu.Lock()
	again := c.phase == phaseLoading && c.term == term
	c.mu.Unlock()
	if again {
		c.log.Warn("coordinator cannot confirm its leadership yet", "term", uint64(term), "err", err)
		time.AfterFunc(time.Second, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.phase == phaseLoading && c.term == term {
				c.spawn(func() { c.confirm(term) })
			}
		})
	}
}

// load makes live what the state holds. Members get a full session timeout to
// find their new coordinator; nobody has to rejoin.
func (c *Coordinator) load(term ident.Term) {
	if c.phase != phaseLoading || c.term != term {
		return
	}
	c.phase = phaseReady
	st := c.sm.view()
	now := time.Now()
	st.groups.Scan(func(id string, g *groupState) bool {
		if g.meta != nil {
			c.version = max(c.version, g.meta.Version)
			if len(g.meta.Members) > 0 {
				c.addLive(restore(g.meta), now)
			}
		}
		return true
	})
	c.schedule(&timer{at: now.Add(c.opt.RetentionInterval), kind: timerRetention})
	c.log.Info("loaded coordinator", "term", uint64(term), "groups", st.groups.Len(), "members", c.memberCount(), "offsets", st.offsets.Len())
}

func (c *Coordinator) addLive(g *liveGroup, now time.Time) {
	c.groups[g.id] = g
	for _, m := range g.members {
		m.rebalance = min(m.rebalance, maxRebalance) // stored before there was a bound
		c.touch(g, m, now)
	}
}

// unload forgets everything live and tells whoever waits.
func (c *Coordinator) unload() {
	for _, g := range c.groups {
		for _, m := range g.members {
			c.answerJoin(m, joinError(m.id, errNotCoordinator))
			c.answerSync(m, syncResult{code: errNotCoordinator})
		}
		g.state = Dead
	}
	clear(c.groups)
	c.timers, c.sweeps = nil, nil
	if c.phase != phaseClosed {
		c.phase = phaseFollower
	}
}

// refuse returns why nothing can be answered now, or 0.
func (c *Coordinator) refuse() int16 {
	switch c.phase {
	case phaseReady:
		return 0
	case phaseLoading:
		return errLoadInProgress
	default:
		return errNotCoordinator
	}
}

// Ready tells whether the Coordinator serves.
func (c *Coordinator) Ready() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.phase == phaseReady
}

// Stats are numbers for metrics.
type Stats struct {
	Groups, Members, Offsets int
}

// Stats returns the shard's numbers: replicated groups and offsets, live members.
func (c *Coordinator) Stats() Stats {
	c.sm.mu.RLock()
	s := Stats{Groups: c.sm.st.groups.Len(), Offsets: c.sm.st.offsets.Len()}
	c.sm.mu.RUnlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Members = c.memberCount()
	return s
}

func (c *Coordinator) memberCount() int {
	n := 0
	for _, g := range c.groups {
		n += len(g.members)
	}
	return n
}

// propose appends an entry once mu is released; done gets 0 or an error code.
func (c *Coordinator) propose(data []byte, done func(code int16)) {
	deadline := time.Now().Add(c.opt.ProposeTimeout)
	c.later(func() {
		c.r.Propose(data, raftgroup.ProposeOptions{Deadline: deadline}, waiter(done))
	})
}

type waiter func(code int16)

// Applied implements raftgroup.Waiter.
func (w waiter) Applied(_ ident.Index, _ ident.Term, res raftgroup.Result, err error) {
	said, _ := res.(error)
	switch {
	case err != nil:
		w(codeOf(err))
	case errors.Is(said, errKept):
		w(errNonEmpty)
	case res != nil:
		w(errUnknown) // an entry that does not decode: nobody else may think it did
	default:
		w(0)
	}
}

// nowMs is the leader's time as entries carry it.
func (c *Coordinator) nowMs() int64 { return c.opt.Wall().UnixMilli() }
