package raftlog

import (
	"errors"
	"slices"
	"sync"
	"testing"

	"chronik/internal/ident"
	"chronik/internal/vfs"
)

// While one sync is slow, everything that arrives waits together, and one following
// sync makes all of it durable, in order.
func TestSlowSyncBatchesAllThatWaits(t *testing.T) {
	mem := vfs.NewCrashableMem()
	fs := &syncFS{FS: mem}
	l := open(t, fs)
	const replicas, each = 20, 5
	var cs []Creation
	for i := range replicas {
		cs = append(cs, voter(ident.ReplicaID(i+1)))
	}
	before := fs.syncs
	check(t, l.Create(cs))
	if fs.syncs != before+1 {
		t.Fatalf("%d syncs for %d creations", fs.syncs-before, replicas)
	}
	gate, entered := make(chan struct{}), make(chan struct{})
	fs.set(func() { fs.gate, fs.entered = gate, entered })
	first := make(chan error, 1)
	l.Append(&Append{Replica: 1, HardState: HardState{2, 0, 1}, Done: func(err error) { first <- err }})
	<-entered // the first one is being synced

	var all sync.WaitGroup
	var mu sync.Mutex
	order := make(map[ident.ReplicaID][]int)
	done := make(chan error, replicas*each)
	for r := range replicas {
		all.Go(func() {
			id := ident.ReplicaID(r + 1)
			for i := range each {
				l.Append(&Append{
					Replica: id, HardState: HardState{2, 0, 1}, Entries: run(id, ident.Index(2+i), 1, 2, 10),
					Done: func(err error) {
						mu.Lock()
						order[id] = append(order[id], i)
						mu.Unlock()
						done <- err
					},
				})
			}
		})
	}
	all.Wait()
	if len(first) > 0 {
		t.Fatal("done before its sync")
	}
	syncs := fs.syncs
	gate <- struct{}{}
	check(t, <-first)
	<-entered
	if len(done) > 0 {
		t.Fatal("done before its sync")
	}
	gate <- struct{}{}
	for range replicas * each {
		check(t, <-done)
	}
	fs.set(func() { fs.gate = nil })
	if fs.syncs != syncs+1 {
		t.Fatalf("%d appends took %d syncs", replicas*each, fs.syncs-syncs)
	}
	if s := l.Stats(); s.MaxBatchFrames != replicas*each || s.Frames != replicas+1+replicas*each || s.Entries != replicas*each {
		t.Fatalf("%+v", s)
	}
	for id, o := range order {
		if !slices.IsSorted(o) || len(o) != each {
			t.Fatalf("replica %d: order %v", id, o)
		}
	}
}

// An idle log syncs once an append, and not at all without one.
func TestIdleAppendIsOneWriteOneSync(t *testing.T) {
	fs := &syncFS{FS: vfs.NewCrashableMem()}
	l := open(t, fs)
	check(t, l.Create([]Creation{voter(5)}))
	for i := range ident.Index(10) {
		syncs, writes := fs.syncs, fs.written
		check(t, add(l, 5, HardState{1, 0, 1}, run(5, 2+i, 1, 1, 100)))
		if fs.syncs != syncs+1 || fs.written != writes+1 {
			t.Fatalf("%d syncs, %d writes", fs.syncs-syncs, fs.written-writes)
		}
	}
}

// An append larger than a file, and batches larger than one, work.
func TestLargeFrames(t *testing.T) {
	mem := vfs.NewCrashableMem()
	l := open(t, mem)
	check(t, l.Create([]Creation{voter(5), voter(6)}))
	want := run(5, 2, 3, 1, 2*testFile)
	done := make(chan error, 60)
	l.Append(&Append{Replica: 5, HardState: HardState{1, 0, 1}, Entries: want, Done: func(err error) { done <- err }})
	many := run(6, 2, 59, 1, 5000)
	for i := range many {
		l.Append(&Append{Replica: 6, HardState: HardState{1, 0, 1}, Entries: many[i : i+1], Done: func(err error) { done <- err }})
	}
	for range 60 {
		check(t, <-done)
	}
	for range 2 {
		wantEntries(t, l, 5, want)
		wantEntries(t, l, 6, many)
		l = open(t, crash(mem, 0, 1))
	}
	l.Trim(5, 4)
	fill(t, l, 6, 9)
	if s := settled(t, l); s.TotalBytes > testMaxBytes {
		t.Fatalf("the large file must be gone: %+v", s)
	}
}

func TestCacheIsBounded(t *testing.T) {
	l := open(t, vfs.NewCrashableMem()) // 16 KiB
	check(t, l.Create([]Creation{voter(5), voter(6)}))
	var want [2][]Entry
	for i := range ident.Index(40) {
		for k := range 2 {
			id := ident.ReplicaID(5 + k)
			es := run(id, 2+i, 1, 1, 900)
			want[k] = append(want[k], es...)
			check(t, add(l, id, HardState{1, 0, 1}, es))
			if c := settled(t, l).CacheBytes; c > 16<<10 {
				t.Fatalf("cache has %d bytes", c)
			}
		}
	}
	full := settled(t, l).CacheBytes
	if full < 14<<10 {
		t.Fatalf("cache has %d bytes only", full)
	}
	wantEntries(t, l, 5, want[0])
	wantEntries(t, l, 6, want[1])
	check(t, add(l, 5, HardState{2, 0, 1}, run(5, 35, 2, 2, 10))) // truncates cached ones
	wantEntries(t, l, 5, append(want[0][:33:33], run(5, 35, 2, 2, 10)...))
	l.Trim(6, 40)
	check(t, add(l, 5, HardState{2, 0, 1}, nil))
	if c := settled(t, l).CacheBytes; c > 2000 {
		t.Fatalf("cache has %d bytes of trimmed entries, had %d", c, full)
	}
	check(t, l.Remove(5))
	check(t, l.Remove(6))
	if c := settled(t, l).CacheBytes; c != 0 {
		t.Fatalf("cache has %d bytes of nobody", c)
	}
}

// What trims take from the cache, and no eviction, leaves nothing behind either.
func TestCacheForgetsTheTrimmed(t *testing.T) {
	o := testOptions(vfs.NewCrashableMem())
	o.CacheBytes = 1 << 20
	l := openWith(t, o)
	check(t, l.Create([]Creation{voter(1), voter(2)}))
	idle := run(2, 2, 1, 1, 50)
	check(t, add(l, 2, HardState{1, 0, 1}, idle)) // stays the oldest one in the cache
	for next := ident.Index(2); next < 5000; next++ {
		check(t, add(l, 1, HardState{1, 0, next - 1}, run(1, next, 1, 1, 50)))
		if next%100 == 0 {
			l.Trim(1, next-10)
		}
	}
	settled(t, l)
	closeLog(t, l)
	if n := len(l.w.cache.order); n > 1500 {
		t.Fatalf("%d elements for %d entries cached", n, len(l.replicas[1].cache))
	}
	if c := l.replicas[2].cache; len(c) != 1 || sameEntries(c, idle) != nil {
		t.Fatalf("the oldest entry has left the cache: %v", c)
	}
}

// A small append that was received keeps nothing in memory of what it was received with; one that
// is large, or the caller's own, is not copied.
func TestCacheCopiesSmallReceivedAppends(t *testing.T) {
	o := testOptions(vfs.NewCrashableMem())
	o.CacheBytes = 1 << 20
	l := openWith(t, o)
	check(t, l.Create([]Creation{voter(1)}))
	next := ident.Index(2)
	for _, tc := range []struct {
		size           int // of each of two
		own, sameBytes bool
	}{{100, false, false}, {copyUpTo / 2, false, false}, {copyUpTo/2 + 1, false, true}, {100, true, true}} {
		want := run(1, next, 2, 1, tc.size)
		check(t, appendWait(l, &Append{Replica: 1, HardState: HardState{1, 0, 1}, Entries: want, Own: tc.own}))
		got, err := l.Replica(1).Entries(next, next+2, 1<<20)
		check(t, err)
		check(t, sameEntries(got, want))
		for i := range got {
			if same := &got[i].Data[0] == &want[i].Data[0]; same != tc.sameBytes {
				t.Fatalf("%+v: same memory: %v", tc, same)
			}
			if cap(got[i].Data) != len(got[i].Data) && !tc.sameBytes {
				t.Fatalf("%+v: entry %d has room for %d bytes of the next", tc, i, cap(got[i].Data)-len(got[i].Data))
			}
		}
		next += 2
	}
}

// Readers run while the log appends, trims, relocates, frees and reuses files:
// each entry they get is right, or compacted.
func TestReadersDuringWrites(t *testing.T) {
	o := testOptions(vfs.NewCrashableMem())
	o.MaxBytes, o.CacheBytes = 4*testFile, 3000
	l := openWith(t, o)
	check(t, l.Create([]Creation{voter(5), voter(6)}))
	quiet := run(6, 2, 3, 1, 100)
	check(t, add(l, 6, HardState{1, 0, 1}, quiet))
	stop := make(chan struct{})
	fail := make(chan error, 3)
	for range 2 {
		go func() { fail <- readUntil(l, 5, stop) }()
	}
	go func() { fail <- readUntil(l, 6, stop) }()
	for range 60 {
		v := l.Replica(5)
		next := v.LastIndex() + 1
		check(t, add(l, 5, HardState{1, 0, next - 1}, run(5, next, 10, 1, 2000)))
		if next > 20 {
			l.Trim(5, next-15)
		}
	}
	close(stop)
	for range 3 {
		check(t, <-fail)
	}
	if s := settled(t, l); s.RelocatedFrames == 0 || s.TotalBytes > o.MaxBytes {
		t.Fatalf("%+v", s)
	}
	wantEntries(t, l, 6, quiet)
}

// A reader that is slow neither keeps its file from being freed nor sees it reused.
func TestFileIsFreedUnderAReader(t *testing.T) {
	fs := &syncFS{FS: vfs.NewCrashableMem()}
	o := testOptions(fs)
	o.MaxBytes, o.CacheBytes = 4*testFile, 1
	l := openWith(t, o)
	check(t, l.Create([]Creation{voter(5), voter(6)}))
	want := run(6, 2, 3, 1, 9000)
	check(t, add(l, 6, HardState{1, 0, 4}, want))
	gate, reading := make(chan struct{}), make(chan struct{})
	fs.set(func() { fs.readGate, fs.reading = gate, reading })
	type answer struct {
		es  []Entry
		err error
	}
	got := make(chan answer, 1)
	go func() {
		es, err := l.Replica(6).Entries(2, 5, 1<<20)
		got <- answer{es, err}
	}()
	<-reading
	fs.set(func() { fs.readGate = nil })
	l.Trim(6, 4)
	fill(t, l, 5, 9)
	if s := settled(t, l); s.Recycled == 0 || s.TotalBytes > o.MaxBytes {
		t.Fatalf("%+v", s)
	}
	if _, err := fs.Stat(logPath(1)); err == nil {
		t.Fatal("file 1 is still there")
	}
	gate <- struct{}{}
	a := <-got
	check(t, a.err)
	check(t, sameEntries(a.es, want))
}

// A batch ends at 16 MiB, so that the buffer stays bounded.
func TestBatchBytesAreBounded(t *testing.T) {
	fs := &syncFS{FS: vfs.NewCrashableMem()}
	o := testOptions(fs)
	o.MaxBytes, o.FileBytes = 1<<30, 64<<20
	l := openWith(t, o)
	check(t, l.Create([]Creation{voter(5)}))
	gate, entered := make(chan struct{}), make(chan struct{})
	fs.set(func() { fs.gate, fs.entered = gate, entered })
	const n = 5
	done := make(chan error, n+1)
	l.Append(&Append{Replica: 5, HardState: HardState{1, 0, 1}, Done: func(err error) { done <- err }})
	<-entered
	data := make([]byte, 5<<20)
	for i := range ident.Index(n) {
		l.Append(&Append{
			Replica: 5, HardState: HardState{1, 0, 1}, Entries: []Entry{{Index: 2 + i, Term: 1, Data: data}},
			Done: func(err error) { done <- err },
		})
	}
	fs.set(func() { fs.gate = nil })
	gate <- struct{}{}
	for range n + 1 {
		check(t, <-done)
	}
	if s := l.Stats(); s.MaxBatchFrames != 3 {
		t.Fatalf("%d frames of 5 MiB in one batch", s.MaxBatchFrames)
	}
}

func TestReadAfterClose(t *testing.T) {
	o := testOptions(vfs.NewCrashableMem())
	o.CacheBytes = 1
	l := openWith(t, o)
	check(t, l.Create([]Creation{voter(5)}))
	check(t, add(l, 5, HardState{1, 0, 1}, run(5, 2, 3, 1, 100)))
	v := l.Replica(5)
	closeLog(t, l)
	if _, err := v.Entries(2, 4, 100); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

func readUntil(l *Log, id ident.ReplicaID, stop chan struct{}) error {
	v := l.Replica(id)
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		lo, hi := v.FirstIndex(), v.LastIndex()+1
		es, err := v.Entries(lo, hi, 30_000)
		if isCompacted(err) || lo >= hi {
			continue
		}
		if err != nil {
			return err
		}
		size := 2000
		if id == 6 {
			size = 100
		}
		if err := sameEntries(es, run(id, lo, len(es), 1, size)); err != nil {
			return err
		}
	}
}
