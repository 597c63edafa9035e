package vfs

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// BenchmarkSyncBesideWriter measures a small write and fdatasync, as the raftlog
// does, beside a writer of 32 MiB a second on the same disk, which leaves its
// bytes to one sync (burst), or has them written as they come (paced).
func BenchmarkSyncBesideWriter(b *testing.B) {
	for _, m := range []struct {
		name  string
		every int64 // bytes between syncs of the writer
		start bool  // StartWriteBack after each write
	}{{"alone", 0, false}, {"burst", 64 << 20, false}, {"paced", 8 << 20, true}} {
		b.Run(m.name, func(b *testing.B) { syncBesideWriter(b, m.every, m.start) })
	}
}

func syncBesideWriter(b *testing.B, every int64, start bool) {
	dir := b.TempDir()
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- writeAside(filepath.Join(dir, "aside"), every, start, stop) }()
	f, err := Default.Create(filepath.Join(dir, "log"), CategoryLog)
	if err == nil {
		err = f.Preallocate(0, 64<<20)
	}
	if err != nil {
		b.Fatal(err)
	}
	block := make([]byte, 4096)
	var took []time.Duration
	for b.Loop() {
		if _, err := f.Write(block); err != nil {
			b.Fatal(err)
		}
		t := time.Now()
		if err := f.SyncData(); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(t))
		time.Sleep(time.Millisecond)
	}
	close(stop)
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	slices.Sort(took)
	for name, q := range map[string]float64{"p50-us": 0.5, "p99-us": 0.99, "p99.9-us": 0.999} {
		b.ReportMetric(float64(took[int(q*float64(len(took)-1))].Microseconds()), name)
	}
}

func writeAside(name string, every int64, start bool, stop <-chan struct{}) error {
	if every == 0 {
		return nil
	}
	f, err := Default.Create(name, CategorySnapshot)
	if err != nil {
		return err
	}
	const piece = 1 << 20
	buf := make([]byte, piece)
	for i := range buf {
		buf[i] = byte(rand.Uint32())
	}
	began := time.Now()
	for n := int64(0); ; n += piece {
		select {
		case <-stop:
			return f.Close()
		case <-time.After(time.Until(began.Add(time.Duration(n) * time.Second / (32 << 20)))):
		}
		if _, err := f.Write(buf); err != nil {
			return err
		}
		if start {
			StartWriteBack(f, n, piece)
		}
		if (n+piece)%every == 0 {
			if err := f.SyncData(); err != nil {
				return err
			}
		}
	}
}
