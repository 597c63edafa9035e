package raftgroup

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// TimingBuckets counts the buckets of a Timing.
const TimingBuckets = 56

// TimingBound is the upper bound of bucket i: 1 µs, then in steps of the square
// root of two; 0 for the last: none.
func TimingBound(i int) time.Duration {
	if i >= TimingBuckets-1 {
		return 0
	}
	d := time.Microsecond << (i / 2)
	if i%2 == 1 {
		d = d * 1414 / 1000
	}
	return d
}

// Timing is a histogram of durations since the host's start.
type Timing struct {
	Buckets [TimingBuckets]uint64
	Count   uint64
	Sum     time.Duration
	Max     time.Duration
}

// timing collects a Timing: an observation is a few atomic additions, no lock.
type timing struct {
	buckets  [TimingBuckets]atomic.Uint64
	sum, max atomic.Int64
}

func (t *timing) observe(d time.Duration) {
	t.buckets[timingBucket(d)].Add(1)
	t.sum.Add(int64(d))
	for {
		old := t.max.Load()
		if int64(d) <= old || t.max.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}

func timingBucket(d time.Duration) int {
	us := uint64(d / time.Microsecond)
	if us == 0 {
		return 0
	}
	// 1 µs << k is the largest power of two at or below d.
	for i := min(2*(bits.Len64(us)-1), TimingBuckets-1); i < TimingBuckets-1; i++ {
		if d <= TimingBound(i) {
			return i
		}
	}
	return TimingBuckets - 1
}

func (t *timing) get() Timing {
	v := Timing{Sum: time.Duration(t.sum.Load()), Max: time.Duration(t.max.Load())}
	for i := range t.buckets {
		v.Buckets[i] = t.buckets[i].Load()
		v.Count += v.Buckets[i]
	}
	return v
}

// timings are a host's.
type timings struct {
	stall, applyQuiet, applyWriting, created, received, installed timing
	// writing is how many checkpoints are being written now.
	writing      atomic.Int32
	createdBytes atomic.Uint64
}

// Timings says how long things took since the host's start.
type Timings struct {
	// Stall is what one checkpoint takes of its apply worker's time, in which
	// nothing of that shard is applied: the capture, and taking note of its end.
	Stall Timing
	// ApplyQuiet and ApplyWriting are the state machines' Apply calls, one a run
	// of entries, while no checkpoint of this node is being written, and while one is.
	ApplyQuiet, ApplyWriting Timing
	// Created: writing a checkpoint, from its first sync to durable. CreatedBytes
	// is the size of their files.
	Created      Timing
	CreatedBytes uint64
	// Received: bringing a snapshot into staging, from the offer on. Installed:
	// from there to the switch of the state machine.
	Received, Installed Timing
}

// Timings returns a copy.
func (h *Host) Timings() Timings {
	t := &h.timing
	return Timings{
		Stall: t.stall.get(), ApplyQuiet: t.applyQuiet.get(), ApplyWriting: t.applyWriting.get(),
		Created: t.created.get(), CreatedBytes: t.createdBytes.Load(),
		Received: t.received.get(), Installed: t.installed.get(),
	}
}

// observeApply books one Apply call that began at start.
func (t *timings) observeApply(start time.Time) {
	into := &t.applyQuiet
	if t.writing.Load() > 0 {
		into = &t.applyWriting
	}
	into.observe(time.Since(start))
}
