package limits

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cpus watches whether the processors that this test may use run at all. A hypervisor can take one away for a
// second; the threads that it carried stand still as long, whatever the others do, and a group whose worker is
// one of them holds an election with every right.
type cpus struct {
	worst []atomic.Int64 // by processor: the longest that a thread which wants it every 5 ms did not get it, ns
	quit  atomic.Bool
	wg    sync.WaitGroup
}

func watchCPUs(tb testing.TB) *cpus {
	tb.Helper()
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		tb.Fatal(err)
	}
	w := &cpus{}
	for cpu := range len(all) * 64 {
		if all.IsSet(cpu) {
			w.worst = append(w.worst, atomic.Int64{})
		}
	}
	i := 0
	for cpu := range len(all) * 64 {
		if all.IsSet(cpu) {
			worst := &w.worst[i]
			w.wg.Go(func() { w.watch(cpu, worst) })
			i++
		}
	}
	tb.Cleanup(func() {
		w.quit.Store(true)
		w.wg.Wait()
	})
	return w
}

func (w *cpus) watch(cpu int, worst *atomic.Int64) {
	runtime.LockOSThread() // not given back: the thread ends with this goroutine, its affinity with it
	var one unix.CPUSet
	one.Set(cpu)
	if unix.SchedSetaffinity(0, &one) != nil {
		return // the machine lost it
	}
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -20) // without the right to, the load itself delays it by tens of ms
	for last := time.Now(); !w.quit.Load(); {
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 5e6}, nil)
		now := time.Now()
		worst.Store(max(worst.Load(), int64(now.Sub(last))))
		last = now
	}
}

// stood is the longest standstill of a processor since it was last asked.
func (w *cpus) stood() time.Duration {
	var d int64
	for i := range w.worst {
		d = max(d, w.worst[i].Swap(0))
	}
	return time.Duration(d)
}
