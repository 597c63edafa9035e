package wire

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestBacklogIsAboutTime: whatever a node can do, work waits for about the target;
// below its capacity nothing waits.
func TestBacklogIsAboutTime(t *testing.T) {
	const frame = 16 << 10
	for _, rate := range []int{4 << 20, 40 << 20, 400 << 20} { // bytes a second
		synctest.Test(t, func(t *testing.T) {
			b := NewBacklog(256 << 20)
			stop := make(chan struct{})
			queue := make(chan *work, 1<<20)
			for range 200 { // each offers as much as it may
				go func() {
					for {
						w := b.acquire(frame, stop)
						if w == nil {
							return
						}
						queue <- w
					}
				}()
			}
			var last time.Duration
			served := 0
			for began := time.Now(); time.Since(began) < 10*time.Second; served++ { // the node, ever so fast
				w := <-queue
				<-time.After(time.Duration(frame) * time.Second / time.Duration(rate))
				last = time.Since(w.began)
				b.release(w)
			}
			close(stop)
			synctest.Wait()
			floor := time.Duration(backlogFloor) * time.Second / time.Duration(rate)
			if most := max(backlogTarget, floor) * 5 / 4; last > most {
				t.Errorf("%d MB/s: work waits %v, want at most %v", rate>>20, last, most)
			}
			if least := rate / frame * 9; served < least {
				t.Errorf("%d MB/s: %d served, want %d", rate>>20, served, least)
			}
			for len(queue) > 0 {
				b.drop(<-queue)
			}
			if b.used != 0 || len(b.held) != 0 || len(b.waiters) != 0 {
				t.Errorf("%d bytes of %d held, %d wait", b.used, len(b.held), len(b.waiters))
			}
		})
	}
}

// TestBacklogGrowsWithTheRate: work that takes its time beside other work, as replication does, is let in until the node is at its
// capacity: the rate times the time it takes, not the floor. What came to nothing is no rate, and the ceiling holds.
func TestBacklogGrowsWithTheRate(t *testing.T) {
	const (
		frame   = 16 << 10
		rate    = 64 << 20 // bytes a second the node can do
		latency = 200 * time.Millisecond
	)
	for _, c := range []struct {
		name        string
		ceiling     int64
		nothing     bool // all of it comes to nothing
		least, most float64
	}{
		{"it grows", 256 << 20, false, 0.9 * rate, 1.1 * rate},
		{"to the ceiling", 4 << 20, false, 0.9 * (4 << 20) * 5, 1.1 * (4 << 20) * 5},
		{"not by what came to nothing", 256 << 20, true, 0, 1.1 * backlogFloor * 5},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := NewBacklog(c.ceiling)
			stop := make(chan struct{})
			turn := time.NewTicker(time.Duration(frame) * time.Second / rate)
			defer turn.Stop()
			var done atomic.Int64
			var over atomic.Bool
			for range 2000 {
				go func() {
					for !over.Load() {
						w := b.acquire(frame, stop)
						if w == nil {
							return
						}
						<-turn.C
						<-time.After(latency)
						done.Add(frame)
						if c.nothing {
							b.drop(w)
						} else {
							b.release(w)
						}
					}
				}()
			}
			<-time.After(10 * time.Second)
			before := done.Load()
			<-time.After(5 * time.Second)
			if got := float64(done.Load()-before) / 5; got < c.least || got > c.most {
				t.Errorf("%s: %.1f MB/s, want %.1f to %.1f", c.name, got/(1<<20), c.least/(1<<20), c.most/(1<<20))
			}
			over.Store(true)
			close(stop)
			<-time.After(time.Minute) // what is under way ends
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.used != 0 || len(b.held) != 0 {
				t.Errorf("%s: %d bytes held", c.name, b.used)
			}
		})
	}
}

// TestBacklogStuck: what waits for something else, for a replica perhaps, holds up
// others for no longer than two seconds.
func TestBacklogStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBacklog(256 << 20)
		stuck := b.acquire(backlogFloor, nil)
		began := time.Now()
		w := b.acquire(100, nil)
		if took := time.Since(began); took < backlogStuck || took > backlogStuck+2*backlogStep {
			t.Errorf("let in after %v", took)
		}
		b.release(stuck)
		b.release(w)
		if b.used != 0 {
			t.Errorf("%d bytes held", b.used)
		}
	})
}

// TestBacklogLine: first come, first served, also behind one that is too large to
// pass and behind one that leaves.
func TestBacklogLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBacklog(256 << 20)
		first := b.acquire(1, nil)
		var order []string
		enter := func(name string, n int64, stop chan struct{}) {
			go func() {
				w := b.acquire(n, stop)
				if w == nil {
					order = append(order, name+" left")
					return
				}
				order = append(order, name)
				b.release(w)
			}()
			synctest.Wait()
		}
		gone := make(chan struct{})
		enter("large", 64<<20, nil) // alone, if at all
		enter("leaving", 10, gone)
		enter("small", 10, nil)
		close(gone)
		synctest.Wait()
		b.release(first)
		synctest.Wait()
		if len(order) != 3 || order[0] != "leaving left" || order[1] != "large" || order[2] != "small" {
			t.Errorf("%v", order)
		}
	})
}

// TestBacklogLeaving: who leaves the line lets in who stood behind, at once; who is let in at the moment it
// leaves gives back what it got.
func TestBacklogLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBacklog(256 << 20)
		first := b.acquire(1, nil)
		stop := make(chan struct{})
		go b.acquire(64<<20, stop) // alone, if at all
		synctest.Wait()
		behind := make(chan *work, 1)
		go func() { behind <- b.acquire(10, nil) }()
		synctest.Wait()
		close(stop)
		synctest.Wait()
		select {
		case w := <-behind:
			b.release(w)
		default:
			t.Error("it waits for one that has left")
		}
		b.release(first)
	})
	left := 0
	for range 100 {
		synctest.Test(t, func(t *testing.T) {
			b := NewBacklog(256 << 20)
			first := b.acquire(1, nil)
			stop, got := make(chan struct{}), make(chan *work, 1)
			go func() { got <- b.acquire(64<<20, stop) }()
			synctest.Wait()
			b.mu.Lock() // it comes to look whether something is stuck, and finds both when it goes on
			<-time.After(backlogStep)
			b.end(first, time.Now())
			close(stop)
			b.mu.Unlock()
			w := <-got
			if w == nil {
				left++
			}
			b.drop(w)
			if b.used != 0 {
				t.Fatalf("%d bytes held", b.used)
			}
		})
	}
	if left == 0 || left == 100 {
		t.Errorf("%d of 100 left", left)
	}
}
