package partition

import (
	"sync"
	"sync/atomic"
)

// Watcher is told when a partition has something new to say. One may watch any
// number of partitions.
type Watcher struct{ notify func() }

// NewWatcher returns a watcher that calls notify, from an apply goroutine or a
// raft worker: it must not block.
func NewWatcher(notify func()) *Watcher { return &Watcher{notify: notify} }

// Notify calls the watcher's function.
func (w *Watcher) Notify() { w.notify() }

// watchers are those of one partition. n lets an apply that nobody watches pass
// without the lock.
type watchers struct {
	n   atomic.Int32
	mu  sync.Mutex
	set map[*Watcher]struct{}
}

func (s *watchers) add(w *Watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.set == nil {
		s.set = make(map[*Watcher]struct{})
	}
	s.set[w] = struct{}{}
	s.n.Store(int32(len(s.set)))
}

func (s *watchers) remove(w *Watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.set, w)
	s.n.Store(int32(len(s.set)))
}

// notify tells all. Whoever added itself before the news was published is told:
// it looks after it added itself, and finds either the news or this call.
func (s *watchers) notify() {
	if s.n.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.set {
		w.notify()
	}
}
