package wire

import (
	"sync"
	"time"
)

// Quota counts the bytes of requests in flight on the node. Readers that want
// room for a large frame wait in line for it; nobody is overtaken.
// A nil Quota does not limit.
type Quota struct {
	mu      sync.Mutex
	limit   int64
	used    int64 // may exceed limit: add never waits
	waiters []*quotaWaiter
}

type quotaWaiter struct {
	n       int64
	granted chan struct{}
}

// NewQuota returns a quota of limit bytes.
func NewQuota(limit int64) *Quota { return &Quota{limit: limit} }

// Used is the number of bytes in flight.
func (q *Quota) Used() int64 {
	if q == nil {
		return 0
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.used
}

// acquire takes n bytes, waiting until there is room or stop is closed; false
// means stopped. More than the whole limit waits until nothing else is held.
func (q *Quota) acquire(n int64, stop <-chan struct{}) bool {
	return q.acquireNudging(n, stop, nil)
}

// acquireNudging is acquire that calls nudge from time to time while it waits.
func (q *Quota) acquireNudging(n int64, stop <-chan struct{}, nudge func()) bool {
	if q == nil {
		return true
	}
	q.mu.Lock()
	if len(q.waiters) == 0 && q.fits(n) {
		q.used += n
		q.mu.Unlock()
		return true
	}
	w := &quotaWaiter{n, make(chan struct{})}
	q.waiters = append(q.waiters, w)
	q.mu.Unlock()
	if q.wait(w, stop, nudge) {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, x := range q.waiters {
		if x == w {
			q.waiters = append(q.waiters[:i], q.waiters[i+1:]...)
			q.grant() // who stood behind w may fit
			return false
		}
	}
	q.used -= n // granted meanwhile
	q.grant()
	return false
}

// wait until w has room; false: stop was closed first.
func (q *Quota) wait(w *quotaWaiter, stop <-chan struct{}, nudge func()) bool {
	var tick <-chan time.Time
	if nudge != nil {
		t := time.NewTicker(shedEvery)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case <-w.granted:
			return true
		case <-tick:
			nudge()
		case <-stop:
			return false
		}
	}
}

func (q *Quota) fits(n int64) bool { return q.used+n <= q.limit || q.used <= 0 }

// add takes n bytes without waiting: for what is small, and for what is already
// in memory.
func (q *Quota) add(n int64) {
	if q == nil {
		return
	}
	q.mu.Lock()
	q.used += n
	q.mu.Unlock()
}

// release gives n bytes back.
func (q *Quota) release(n int64) {
	if q == nil || n == 0 {
		return
	}
	q.mu.Lock()
	q.used -= n
	q.grant()
	q.mu.Unlock()
}

// grant serves waiters in line while they fit.
func (q *Quota) grant() {
	for len(q.waiters) > 0 && q.fits(q.waiters[0].n) {
		w := q.waiters[0]
		q.waiters[0] = nil
		q.waiters = q.waiters[1:]
		q.used += w.n
		close(w.granted)
	}
}
