package raftlog

import (
	"fmt"
	"sync"
	"testing"

	"chronik/internal/ident"
	"chronik/internal/vfs"
)

// BenchmarkAppend appends entries of many replicas to a real disk; each replica
// has one append in flight at a time, as a busy Raft group has.
func BenchmarkAppend(b *testing.B) {
	for _, c := range []struct{ replicas, size int }{{1, 100}, {1, 64 << 10}, {64, 100}, {64, 4 << 10}, {256, 16 << 10}} {
		b.Run(fmt.Sprintf("replicas=%d/bytes=%d", c.replicas, c.size), func(b *testing.B) {
			benchAppend(b, c.replicas, c.size)
		})
	}
}

func benchAppend(b *testing.B, replicas, size int) {
	l, err := Open(Options{FS: vfs.Default, Dir: b.TempDir() + "/log", Store: testStore, Create: true})
	check(b, err)
	var cs []Creation
	for i := range replicas {
		cs = append(cs, voter(ident.ReplicaID(i+1)))
	}
	check(b, l.Create(cs))
	start := l.Stats()
	data := make([]byte, size)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i := range replicas {
		n := b.N / replicas
		if i < b.N%replicas {
			n++
		}
		wg.Go(func() { appendMany(b, l, ident.ReplicaID(i+1), n, data) })
	}
	wg.Wait()
	b.StopTimer()
	s := l.Stats()
	fsyncs := float64(s.Batches - start.Batches)
	b.ReportMetric(fsyncs, "fsyncs")
	b.ReportMetric(float64(b.N)/fsyncs, "entries/fsync")
	b.ReportMetric(float64((s.FsyncTotal-start.FsyncTotal).Microseconds())/fsyncs, "µs/fsync")
	check(b, l.Close())
}

func appendMany(b *testing.B, l *Log, id ident.ReplicaID, n int, data []byte) {
	done := make(chan error, 1)
	a := Append{Replica: id, Entries: make([]Entry, 1), Done: func(err error) { done <- err }}
	for i := range n {
		index := ident.Index(i + 2)
		a.HardState = HardState{Term: 1, Commit: index - 1}
		a.Entries[0] = Entry{Index: index, Term: 1, Data: data}
		l.Append(&a)
		if err := <-done; err != nil {
			b.Error(err)
			return
		}
		if i%1000 == 999 {
			l.Trim(id, index-100)
		}
	}
}

// BenchmarkCache adds appends of received entries of 1 KiB to the tail cache, and drops each.
func BenchmarkCache(b *testing.B) {
	for _, c := range []struct {
		n   int
		own bool
	}{{1, true}, {1, false}, {4, false}, {16, false}, {64, false}} {
		b.Run(fmt.Sprintf("entries=%d/own=%v", c.n, c.own), func(b *testing.B) {
			r := &replica{}
			var cache tailCache
			es := run(1, 1, c.n, 1, 1<<10)
			b.SetBytes(int64(c.n) << 10)
			b.ReportAllocs()
			for range b.N {
				cache.add(r, es, c.own)
				cache.shrink()
			}
		})
	}
}

// BenchmarkOpen opens a log of about 512 MiB in sealed files.
func BenchmarkOpen(b *testing.B) {
	o := Options{FS: vfs.Default, Dir: b.TempDir() + "/log", Store: testStore, Create: true, MaxBytes: 1 << 30}
	l, err := Open(o)
	check(b, err)
	const replicas, frames = 100, 125_000
	var cs []Creation
	for i := range replicas {
		cs = append(cs, voter(ident.ReplicaID(i+1)))
	}
	check(b, l.Create(cs))
	data := make([]byte, 4<<10)
	done := make(chan error, frames)
	for i := range frames {
		l.Append(&Append{
			Replica: ident.ReplicaID(i%replicas + 1), HardState: HardState{Term: 1, Commit: 1},
			Entries: []Entry{{Index: ident.Index(i/replicas + 2), Term: 1, Data: data}}, Done: func(err error) { done <- err },
		})
	}
	for range frames {
		check(b, <-done)
	}
	check(b, l.Close())
	b.ResetTimer()
	for range b.N {
		l, err := Open(o)
		check(b, err)
		b.StopTimer()
		check(b, l.Close())
		b.StartTimer()
	}
}
