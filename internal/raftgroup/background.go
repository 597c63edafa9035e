package raftgroup

import "sync"

// background is the bounded pool for checkpoints and clean-up: one queue, and jobs that share so many units.
type background struct {
	mu     sync.Mutex
	cond   sync.Cond
	queue  []backgroundJob
	free   int // units
	closed bool
	wg     sync.WaitGroup
}

type backgroundJob struct {
	do    func()
	units int
}

func newBackground(units int) *background {
	b := &background{free: units}
	b.cond.L = &b.mu
	for range units {
		b.wg.Go(b.loop)
	}
	return b
}

// run queues a job that takes so many units, at most all there are. Jobs queued before close still run.
func (b *background) run(units int, job func()) {
	b.mu.Lock()
	b.queue = append(b.queue, backgroundJob{job, units})
	b.mu.Unlock()
	b.cond.Signal()
}

func (b *background) loop() {
	for {
		b.mu.Lock()
		for len(b.queue) == 0 && !b.closed || len(b.queue) > 0 && b.queue[0].units > b.free {
			b.cond.Wait()
		}
		if len(b.queue) == 0 {
			b.mu.Unlock()
			return
		}
		job := b.queue[0]
		b.queue[0] = backgroundJob{}
		b.queue = b.queue[1:]
		b.free -= job.units
		b.mu.Unlock()
		job.do()
		b.mu.Lock()
		b.free += job.units
		b.mu.Unlock()
		b.cond.Broadcast() // the next may need what several gave back
	}
}

func (b *background) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.cond.Broadcast()
	b.wg.Wait()
}
