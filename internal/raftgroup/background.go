package raftgroup

import "sync"

// background is the bounded pool for checkpoints and clean-up: a few workers,
// one queue.
type background struct {
	mu     sync.Mutex
	cond   sync.Cond
	queue  []func()
	closed bool
	wg     sync.WaitGroup
}

func newBackground(n int) *background {
	b := &background{}
	b.cond.L = &b.mu
	for range n {
		b.wg.Go(b.loop)
	}
	return b
}

// run queues a job. Jobs queued before close still run.
func (b *background) run(job func()) {
	b.mu.Lock()
	b.queue = append(b.queue, job)
	b.mu.Unlock()
	b.cond.Signal()
}

func (b *background) loop() {
	for {
		b.mu.Lock()
		for len(b.queue) == 0 && !b.closed {
			b.cond.Wait()
		}
		if len(b.queue) == 0 {
			b.mu.Unlock()
			return
		}
		job := b.queue[0]
		b.queue[0] = nil
		b.queue = b.queue[1:]
		b.mu.Unlock()
		job()
	}
}

func (b *background) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.cond.Broadcast()
	b.wg.Wait()
}
