package wire

import (
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
