package broker

import (
	"sync"
	"time"

	"chronik/internal/ident"
)

// notifier wakes all who wait for a change.
type notifier struct {
	mu sync.Mutex
	ch chan struct{} // closed at the next notify; nil: nobody waits
}

// wait returns a channel that is closed at the next notify.
func (n *notifier) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch == nil {
		n.ch = make(chan struct{})
	}
	return n.ch
}

func (n *notifier) notify() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch != nil {
		close(n.ch)
		n.ch = nil
	}
}

// absence knows since when each peer is out of reach.
type absence struct {
	mu   sync.Mutex
	from map[ident.NodeID]time.Time // peers that are down
	up   map[ident.NodeID]bool
	born time.Time
}

func newAbsence() *absence {
	return &absence{from: map[ident.NodeID]time.Time{}, up: map[ident.NodeID]bool{}, born: time.Now()}
}

func (a *absence) set(node ident.NodeID, up bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.up[node] = up
	if up {
		delete(a.from, node)
	} else {
		a.from[node] = time.Now()
	}
}

// since returns for how long node has been out of reach, 0 if it is connected.
// A peer never seen counts from this session's start.
func (a *absence) since(node ident.NodeID) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.up[node] {
		return 0
	}
	if from, ok := a.from[node]; ok {
		return time.Since(from)
	}
	return time.Since(a.born)
}
