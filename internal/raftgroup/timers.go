package raftgroup

import (
	"container/heap"
	"sync"
	"time"
)

// timers runs callbacks at a time, from one goroutine and one timer for the
// whole host: campaign hints, retries after a full disk, periodic checkpoints.
// Callbacks must not block.
type timers struct {
	mu     sync.Mutex
	heap   timerHeap
	wake   chan struct{}
	stop   chan struct{}
	done   chan struct{}
	closed bool
}

type timerItem struct {
	at time.Time
	fn func()
}

type timerHeap []timerItem

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h timerHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *timerHeap) Push(x any)        { *h = append(*h, x.(timerItem)) }
func (h *timerHeap) Pop() any {
	old := *h
	it := old[len(old)-1]
	old[len(old)-1] = timerItem{}
	*h = old[:len(old)-1]
	return it
}

func newTimers() *timers {
	t := &timers{wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	go t.loop()
	return t
}

// after runs fn once, d from now, unless the host stops before.
func (t *timers) after(d time.Duration, fn func()) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return
	}
	it := timerItem{at: time.Now().Add(d), fn: fn}
	heap.Push(&t.heap, it)
	first := t.heap[0].at.Equal(it.at)
	t.mu.Unlock()
	if first {
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
}

func (t *timers) loop() {
	defer close(t.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next := t.fire()
		timer.Reset(next)
		select {
		case <-timer.C:
		case <-t.wake:
		case <-t.stop:
			return
		}
	}
}

// fire runs what is due and returns how long to sleep.
func (t *timers) fire() time.Duration {
	for {
		t.mu.Lock()
		if len(t.heap) == 0 {
			t.mu.Unlock()
			return time.Hour
		}
		d := time.Until(t.heap[0].at)
		if d > 0 {
			t.mu.Unlock()
			return d
		}
		it := heap.Pop(&t.heap).(timerItem)
		t.mu.Unlock()
		it.fn()
	}
}

func (t *timers) close() {
	t.mu.Lock()
	was := t.closed
	t.closed = true
	t.heap = nil
	t.mu.Unlock()
	if !was {
		close(t.stop)
	}
	<-t.done
}
