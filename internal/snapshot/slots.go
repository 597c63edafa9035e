package snapshot

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Priority orders the Fetches that wait for a slot; lower goes first.
type Priority int

// Priorities, most urgent first.
const (
	PriorityMeta        Priority = iota // the metadata group
	PriorityCoordinator                 // groups of coordinators
	PriorityUnderMinISR                 // partitions below min.insync.replicas
	PriorityVoter
	PriorityLearner
)

// A slot is divided into shares. A snapshot of at most shareBytes takes one,
// any other the whole slot: a small one does not load disk or network, it waits
// for syncs, which many at a time share. Together they move no more than a slot's
// worth: shares × shareBytes is what a large one has in flight, twice.
const (
	shares     = 8
	shareBytes = 1 << 20
)

// sharesOf is how many shares a snapshot of that size takes.
func sharesOf(bytes int64) int {
	if bytes <= shareBytes {
		return 1
	}
	return shares
}

// slots is a semaphore whose waiters are served by priority, then by age.
// Nobody is passed by: one that needs more than is free holds up those behind it.
type slots struct {
	mu      sync.Mutex
	free    int // shares
	waiting []*slotWaiter
}

type slotWaiter struct {
	priority Priority
	shares   int
	granted  chan struct{}
}

func (s *slots) ask(p Priority, n int) *slotWaiter {
	w := &slotWaiter{priority: p, shares: n, granted: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := len(s.waiting)
	for at > 0 && s.waiting[at-1].priority > p {
		at--
	}
	s.waiting = slices.Insert(s.waiting, at, w)
	s.grantLocked()
	return w
}

func (s *slots) grantLocked() {
	for len(s.waiting) > 0 && s.free >= s.waiting[0].shares {
		s.free -= s.waiting[0].shares
		close(s.waiting[0].granted)
		s.waiting = s.waiting[1:]
	}
}

// release gives back n shares.
func (s *slots) release(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free += n
	s.grantLocked()
}

// cancel takes back w, which may have been granted meanwhile.
func (s *slots) cancel(w *slotWaiter) {
	s.mu.Lock()
	i := slices.Index(s.waiting, w)
	if i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
		s.grantLocked() // it may have held up smaller ones
	}
	s.mu.Unlock()
	if i < 0 {
		s.release(w.shares)
	}
}

// acquire waits for n shares and calls alive every so often meanwhile; an error
// of it ends the wait.
func (s *slots) acquire(ctx context.Context, p Priority, n int, every time.Duration, alive func() error) error {
	w := s.ask(p, n)
	select {
	case <-w.granted:
		return nil
	default:
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-w.granted:
			return nil
		case <-ctx.Done():
			s.cancel(w)
			return context.Cause(ctx)
		case <-tick.C:
			if err := alive(); err != nil {
				s.cancel(w)
				return err
			}
		}
	}
}
