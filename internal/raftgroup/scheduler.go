package raftgroup

import (
	"sync"
	"time"
)

// pool runs items on sharded workers: one goroutine a shard, one queue a shard,
// no goroutine, channel or timer an item. The items' own queued flag keeps each
// in at most one queue, once.
type pool[T any] struct {
	shards []*shard[T]
	wg     sync.WaitGroup
}

// shard is one worker's queue.
type shard[T any] struct {
	mu   sync.Mutex
	cond sync.Cond
	// queue holds what waits, in order. The worker swaps it for an empty one.
	queue  []T
	closed bool
	// began is when the worker took what it works on, zero while it waits.
	began time.Time
}

// newPool starts n workers. newWork is called once a worker and returns what
// that worker does with everything that waited, in order.
func newPool[T any](n int, newWork func() func([]T)) *pool[T] {
	p := &pool[T]{}
	for range n {
		s := &shard[T]{}
		s.cond.L = &s.mu
		p.shards = append(p.shards, s)
		work := newWork()
		p.wg.Go(func() { s.loop(work) })
	}
	return p
}

func (s *shard[T]) loop(work func([]T)) {
	var batch []T
	for {
		s.mu.Lock()
		s.began = time.Time{}
		for len(s.queue) == 0 && !s.closed {
			s.cond.Wait()
		}
		if len(s.queue) == 0 {
			s.mu.Unlock()
			return
		}
		s.queue, batch = batch[:0], s.queue
		s.began = time.Now()
		s.mu.Unlock()
		work(batch)
		clear(batch)
	}
}

// add queues an item on a shard. After close it does nothing.
func (p *pool[T]) add(at int, item T) {
	s := p.shards[at]
	s.mu.Lock()
	if !s.closed {
		s.queue = append(s.queue, item)
		if len(s.queue) == 1 {
			s.cond.Signal()
		}
	}
	s.mu.Unlock()
}

// stuck tells whether a worker has been at one batch for as long as limit.
func (p *pool[T]) stuck(now time.Time, limit time.Duration) bool {
	for _, s := range p.shards {
		s.mu.Lock()
		began := s.began
		s.mu.Unlock()
		if !began.IsZero() && now.Sub(began) >= limit {
			return true
		}
	}
	return false
}

// close lets the workers finish what is queued and waits for them.
func (p *pool[T]) close() {
	for _, s := range p.shards {
		s.mu.Lock()
		s.closed = true
		s.cond.Broadcast()
		s.mu.Unlock()
	}
	p.wg.Wait()
}

// shardOf spreads replicas over the shards from 1; shard 0 is for priority replicas.
func (p *pool[T]) shardOf(id uint64, priority bool) int {
	if priority || len(p.shards) == 1 {
		return 0
	}
	// Fibonacci hashing: neighbouring ids land on different shards.
	return 1 + int((id*0x9E3779B97F4A7C15)>>33)%(len(p.shards)-1)
}

// ticking are the replicas that are ticked: those released and not at rest.
type ticking struct {
	mu  sync.Mutex
	all []*Replica
}

func (t *ticking) add(r *Replica) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.tickAt == 0 {
		t.all = append(t.all, r)
		r.tickAt = len(t.all)
	}
}

func (t *ticking) remove(r *Replica) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.tickAt == 0 {
		return
	}
	n := len(t.all) - 1
	last := t.all[n]
	t.all[r.tickAt-1], last.tickAt = last, r.tickAt
	t.all[n] = nil
	t.all = t.all[:n]
	r.tickAt = 0
}

func (t *ticking) tick(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.all {
		r.tick(now)
	}
}
