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

// slots is a semaphore whose waiters are served by priority, then by age.
type slots struct {
	mu      sync.Mutex
	free    int
	waiting []*slotWaiter
}

type slotWaiter struct {
	priority Priority
	granted  chan struct{}
}

func (s *slots) ask(p Priority) *slotWaiter {
	w := &slotWaiter{priority: p, granted: make(chan struct{})}
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
	for s.free > 0 && len(s.waiting) > 0 {
		s.free--
		close(s.waiting[0].granted)
		s.waiting = s.waiting[1:]
	}
}

func (s *slots) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free++
	s.grantLocked()
}

// cancel takes back w, which may have been granted meanwhile.
func (s *slots) cancel(w *slotWaiter) {
	s.mu.Lock()
	i := slices.Index(s.waiting, w)
	if i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
	s.mu.Unlock()
	if i < 0 {
		s.release()
	}
}

// acquire waits for a slot and calls alive every so often meanwhile; an error
// of it ends the wait.
func (s *slots) acquire(ctx context.Context, p Priority, every time.Duration, alive func() error) error {
	w := s.ask(p)
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
