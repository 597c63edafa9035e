package wire

import (
	"sync"
	"time"
)

const (
	// backlogTarget is how much work may wait on the node: what it does in that time.
	backlogTarget = 500 * time.Millisecond
	// backlogFloor is allowed at any rate; what is allowed grows from here.
	backlogFloor = 1 << 20
	// backlogStep is how long a rate is measured, and backlogSteps how many of them
	// count: the best of them is what the node can do.
	backlogStep, backlogSteps = 250 * time.Millisecond, 8
	// backlogStuck is when a request no longer counts as work. It waits for
	// something else, a replica that is behind perhaps, and what works must go on.
	backlogStuck = 4 * backlogTarget
)

// Backlog bounds the Produce requests that are worked on at a time, on the whole
// node, by time instead of bytes: to what the node answers in half a second. A
// bound in bytes that suits a fast disk is a minute's queue before a slow one:
// every producer's requests time out, are sent again, and the queue never ends.
// Those beyond the bound wait on their connections, one a connection, first come
// first served. So a producer that sends much waits in its own socket, and one that
// sends little waits for about the target and one turn of the others.
//
// By Little's law work in flight is rate times latency. As long as latency is
// below the target, the bound lies above what is in flight and grows with the
// rate; at the node's capacity it stands still, and latency is the target.
//
// A nil Backlog does not limit.
type Backlog struct {
	mu      sync.Mutex
	limit   int64
	used    int64
	ceiling int64
	waiters []*workWaiter
	// held are those that count, oldest first; released ones leave when they are at the head.
	held []*work

	since time.Time // begin of the step that is measured
	done  int64     // bytes released in it
	rates [backlogSteps]float64
	step  int
}

// work is a request that counts.
type work struct {
	n     int64
	began time.Time
	over  bool // released, or stuck: counts no longer
}

type workWaiter struct {
	n       int64
	granted chan *work
}

// NewBacklog returns a Backlog that never lets more than ceiling bytes in.
func NewBacklog(ceiling int64) *Backlog {
	return &Backlog{limit: min(backlogFloor, ceiling), ceiling: ceiling}
}

// acquire lets a request of n bytes in, waiting for its turn; nil: stopped. One of
// more than the bound waits until it is alone.
func (b *Backlog) acquire(n int64, stop <-chan struct{}) *work {
	if b == nil {
		return &work{}
	}
	b.mu.Lock()
	now := time.Now()
	b.expire(now)
	if len(b.waiters) == 0 && b.fits(n) {
		w := b.admit(n, now)
		b.mu.Unlock()
		return w
	}
	x := &workWaiter{n, make(chan *work, 1)}
	b.waiters = append(b.waiters, x)
	b.mu.Unlock()
	look := time.NewTicker(backlogStep)
	defer look.Stop()
	for {
		select {
		case w := <-x.granted:
			return w
		case <-look.C: // nothing may be released any more: all stuck
			b.mu.Lock()
			b.expire(time.Now())
			b.mu.Unlock()
		case <-stop:
			b.leave(x)
			return nil
		}
	}
}

// leave takes x out of the line.
func (b *Backlog) leave(x *workWaiter) {
	b.mu.Lock()
	for i, y := range b.waiters {
		if y == x {
			b.waiters = append(b.waiters[:i], b.waiters[i+1:]...)
			b.grant(time.Now()) // who stood behind x may fit
			b.mu.Unlock()
			return
		}
	}
	b.mu.Unlock()
	b.drop(<-x.granted) // granted meanwhile
}

func (b *Backlog) fits(n int64) bool { return b.used+n <= b.limit || b.used <= 0 }

func (b *Backlog) admit(n int64, now time.Time) *work {
	w := &work{n: n, began: now}
	b.used += n
	b.held = append(b.held, w)
	return w
}

// grant lets in those in line while they fit.
func (b *Backlog) grant(now time.Time) {
	for len(b.waiters) > 0 && b.fits(b.waiters[0].n) {
		x := b.waiters[0]
		b.waiters[0] = nil
		b.waiters = b.waiters[1:]
		x.granted <- b.admit(x.n, now)
	}
}

// expire no longer counts what is stuck.
func (b *Backlog) expire(now time.Time) {
	for len(b.held) > 0 {
		w := b.held[0]
		if !w.over {
			if now.Sub(w.began) < backlogStuck {
				break
			}
			w.over = true
			b.used -= w.n
		}
		b.held[0] = nil
		b.held = b.held[1:]
	}
	b.grant(now)
}

// release says that w was done.
func (b *Backlog) release(w *work) {
	if b == nil || w == nil {
		return
	}
	b.mu.Lock()
	now := time.Now()
	b.done += w.n
	b.measure(now)
	b.end(w, now)
	b.mu.Unlock()
}

// drop says that w came to nothing.
func (b *Backlog) drop(w *work) {
	if b == nil || w == nil {
		return
	}
	b.mu.Lock()
	b.end(w, time.Now())
	b.mu.Unlock()
}

func (b *Backlog) end(w *work, now time.Time) {
	if !w.over {
		w.over = true
		b.used -= w.n
	}
	b.expire(now)
}

// measure sets the bound by the best rate of late.
func (b *Backlog) measure(now time.Time) {
	if b.since.IsZero() {
		b.since = now
	}
	took := now.Sub(b.since)
	if took < backlogStep {
		return
	}
	b.rates[b.step] = float64(b.done) / took.Seconds()
	b.step = (b.step + 1) % backlogSteps
	b.since, b.done = now, 0
	best := 0.0
	for _, r := range b.rates {
		best = max(best, r)
	}
	b.limit = min(b.ceiling, max(backlogFloor, int64(best*backlogTarget.Seconds())))
}
