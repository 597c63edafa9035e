package transport

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func cpu() time.Duration {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		return 0
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// BenchmarkFrames sends frames of one size over loopback as fast as they are
// taken. cpu-ns/op is what both ends cost together.
func BenchmarkFrames(b *testing.B) {
	for _, size := range []int{200, 1 << 10, 16 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			var got atomic.Int64
			done := make(chan struct{}, 1)
			want := new(atomic.Int64)
			sink := newHost(2)
			sink.onFrame = func(PeerInfo, Class, []byte) {
				if got.Add(1) == want.Load() {
					done <- struct{}{}
				}
			}
			a, _ := pairOf(b, newHost(1), sink)
			frame, head := make([]byte, size-32), make([]byte, 32)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			want.Store(int64(b.N))
			start := cpu()
			b.ResetTimer()
			for range b.N {
				for !a.t.Send(2, Append, head, frame) {
					time.Sleep(100 * time.Microsecond)
				}
			}
			<-done
			b.ReportMetric(float64((cpu()-start).Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
}

// BenchmarkRoundTrip bounces one small Control frame.
func BenchmarkRoundTrip(b *testing.B) {
	back := make(chan struct{}, 1)
	x, y := newHost(1), newHost(2)
	x.onFrame = func(PeerInfo, Class, []byte) { back <- struct{}{} }
	y.onFrame = func(_ PeerInfo, _ Class, f []byte) { y.t.Send(1, Control, f) }
	pairOf(b, x, y)
	f := make([]byte, 100)
	for b.Loop() {
		x.t.Send(2, Control, f)
		<-back
	}
}
