package raftlog

import (
	"errors"
	"slices"
	"testing"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

func isCompacted(err error) bool { return errors.Is(err, ErrCompacted) }

// Correctness rule 7: everything live of a quiet replica survives the files it was first
// written to: creation, hard state, base by trim, install, entries, node record.
func TestQuietReplicasAreRelocated(t *testing.T) {
	mem := vfs.NewCrashableMem()
	o := testOptions(mem)
	o.MaxBytes = 4 * testFile
	l := openWith(t, o)
	check(t, l.Create([]Creation{voter(1), voter(2), voter(3), {Replica: 4, Group: 8}, voter(5)}))
	trimmed := run(2, 2, 20, 3, 50)
	check(t, add(l, 2, HardState{3, 2, 15}, trimmed))
	l.Trim(2, 11)
	in := &Install{Index: 90, Term: 4, Generation: 7, ConfState: []byte("cs")}
	installed := run(3, 91, 2, 4, 50)
	check(t, appendWait(l, &Append{Replica: 3, HardState: HardState{4, 3, 90}, Install: in, Entries: installed}))
	done := make(chan error, 1)
	l.PutNode([]byte("node"), func(err error) { done <- err })
	check(t, <-done)
	fill(t, l, 5, 10)
	s := settled(t, l)
	if s.TotalBytes > o.MaxBytes || s.RelocatedFrames == 0 || s.Recycled == 0 {
		t.Fatalf("%+v", s)
	}
	if _, err := mem.Stat(logPath(1)); err == nil {
		t.Fatal("file 1 is still there")
	}
	for i := range 2 {
		if i == 1 {
			o.FS = crash(mem, 0, 1)
			l = openWith(t, o)
		}
		if q := l.Recovery().Quarantined; len(q) > 0 {
			t.Fatalf("%+v", q)
		}
		if string(l.NodeBlob()) != "node" || len(l.Creations()) != 5 {
			t.Fatal("node record or creations lost")
		}
		if v := l.Replica(1); v.FirstIndex() != 2 || v.HardState() != (HardState{1, 0, 1}) || string(v.Creation().Info) != "info 1" {
			t.Fatal("replica 1", v.FirstIndex(), v.HardState())
		}
		if v := l.Replica(2); v.FirstIndex() != 12 || v.HardState() != (HardState{3, 2, 15}) {
			t.Fatal("replica 2", v.FirstIndex(), v.HardState())
		}
		wantEntries(t, l, 2, trimmed[10:])
		if v := l.Replica(3); v.FirstIndex() != 91 || v.Install() == nil || v.Install().Generation != 7 || v.HardState() != (HardState{4, 3, 90}) {
			t.Fatal("replica 3", v.FirstIndex(), v.Install(), v.HardState())
		}
		wantEntries(t, l, 3, installed)
		if v := l.Replica(4); v.FirstIndex() != 1 || v.HardState() != (HardState{}) {
			t.Fatal("replica 4", v.FirstIndex(), v.HardState())
		}
	}
	// They are replicas like any other.
	check(t, add(l, 2, HardState{5, 2, 15}, run(2, 18, 3, 5, 50)))
	wantEntries(t, l, 2, append(trimmed[10:16:16], run(2, 18, 3, 5, 50)...))
}

// The log asks for trims when the oldest file is held by much, names who holds
// it, and shrinks as soon as they trim, without any further append.
func TestPressure(t *testing.T) {
	mem := vfs.NewCrashableMem()
	o := testOptions(mem)
	l := openWith(t, o)
	asked := make(chan []Holder, 100)
	l.OnPressure(func(rs []Holder, _ bool) { asked <- slices.Clone(rs) })
	check(t, l.Create([]Creation{voter(4), voter(5), voter(6)}))
	for i := ident.Index(0); len(asked) == 0; i++ {
		if s := settled(t, l); s.TotalBytes > o.MaxBytes/2+testFile {
			t.Fatalf("not asked: %+v", s)
		}
		check(t, add(l, 5, HardState{1, 0, 1 + i}, run(5, 2+i, 1, 1, 2000)))
		check(t, add(l, 6, HardState{1, 0, 1 + i}, run(6, 2+i, 1, 1, 1000)))
	}
	got := <-asked
	if len(got) != 3 || got[0] != (Holder{Replica: 4}) || got[1].Replica != 5 || got[2].Replica != 6 || got[1].UpTo < 5 || got[1].UpTo > l.Replica(5).LastIndex() {
		t.Fatalf("asked %v", got)
	}
	before := l.Stats()
	freed := make(chan struct{}, 100)
	invariant.SetPointHook(func(p string) {
		if p == "raftlog/free-durable" {
			freed <- struct{}{}
		}
	})
	defer invariant.SetPointHook(nil)
	l.Trim(5, l.Replica(5).HardState().Commit)
	l.Trim(6, l.Replica(6).HardState().Commit)
	<-freed // the trims wake the log; it then relocates replica 4 and frees files
	check(t, l.Close())
	if s := l.Stats(); s.Files >= before.Files || s.LiveBytes > before.LiveBytes/4 || s.Spare == 0 {
		t.Fatalf("before %+v, now %+v", before, s)
	}
	l = openWith(t, o)
	if v := l.Replica(4); v == nil || v.FirstIndex() != 2 {
		t.Fatal("replica 4 lost")
	}
}

// A replica that never trims, idle or quarantined, and fills the oldest file keeps
// the files behind it from being freed only until the log nears its limit.
func TestDenseOldestFileIsRelocated(t *testing.T) {
	l := open(t, vfs.NewCrashableMem())
	check(t, l.Create([]Creation{voter(1), voter(2)}))
	kept := run(1, 2, 40, 1, 1000) // 40 KB of the first file
	check(t, add(l, 1, HardState{1, 0, 1}, kept))
	next := ident.Index(2)
	for range 2000 {
		check(t, add(l, 2, HardState{1, 0, next - 1}, run(2, next, 1, 1, 1000)))
		l.Trim(2, next-2)
		next++
	}
	if s := settled(t, l); s.TotalBytes > testMaxBytes {
		t.Fatalf("the log takes %d bytes of at most %d, live are %d", s.TotalBytes, testMaxBytes, s.LiveBytes)
	}
	wantEntries(t, l, 1, kept)
}

// Many short runs of the process leave many short files; they are freed again
// when they are too many, though nothing is appended.
func TestRestartsDoNotPileUpFiles(t *testing.T) {
	mem := vfs.NewCrashableMem()
	o := testOptions(mem)
	l := openWith(t, o)
	check(t, l.Create([]Creation{voter(5)}))
	want := run(5, 2, 60, 1, 100)
	for i := range want {
		check(t, add(l, 5, HardState{1, 0, 1}, want[i:i+1]))
		if i%3 == 0 {
			closeLog(t, l)
		} else {
			o.FS = crash(o.FS.(*vfs.MemFS), 0, 1)
		}
		l = openWith(t, o)
		if s := l.Stats(); s.TotalBytes > o.MaxBytes {
			t.Fatalf("restart %d: %+v", i, s)
		}
		wantEntries(t, l, 5, want[:i+1])
	}
	for range 20 { // restarts without a write leave nothing
		closeLog(t, l)
		l = openWith(t, o)
	}
	if s := l.Stats(); s.TotalBytes > o.MaxBytes {
		t.Fatalf("%+v", s)
	}
}

// Damage found in an open log is told at once, and does not pull the last index back:
// raft has acknowledged what it covers.
func TestDamageFoundKeepsTheLastIndex(t *testing.T) {
	for _, entry := range []int{1, 2, 5} { // the first one of five, one between, the last
		mem := vfs.NewCrashableMem()
		o := testOptions(mem)
		o.MaxBytes = 4 * testFile
		l := openWith(t, o)
		told := make(chan ident.ReplicaID, 10)
		l.OnDamage(func(id ident.ReplicaID, _ error) { told <- id })
		check(t, l.Create([]Creation{voter(5), voter(6)}))
		for i := range ident.Index(5) {
			check(t, add(l, 6, HardState{1, 0, 1}, run(6, 2+i, 1, 1, 2*vfs.BlockBytes)))
		}
		check(t, add(l, 5, HardState{1, 0, 1}, run(5, 2, 1, 1, vfs.BlockBytes)))
		flip(t, mem, logPath(1), frameOffsets(t, readFile(t, mem, logPath(1)))[1+entry]+150)
		fill(t, l, 5, 8)
		if id := <-told; id != 6 || len(told) > 0 || !errors.Is(l.Damage(6), ErrCorrupt) || l.Damage(5) != nil {
			t.Fatalf("told of %d, damage %v", id, l.Damage(6))
		}
		v := l.Replica(6)
		if got := v.LastIndex(); got != 6 {
			t.Fatalf("entry %d: the last index is %d", entry, got)
		}
		if _, err := v.Term(1 + ident.Index(entry)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("entry %d: %v", entry, err)
		}
		if err := add(l, 6, HardState{1, 0, 1}, run(6, 7, 1, 1, 10)); !errors.Is(err, ErrQuarantined) {
			t.Fatal(err)
		}
		closeLog(t, l)
	}
}

// flip changes a byte on the disk.
func flip(t testing.TB, fs vfs.FS, name string, at int64) {
	t.Helper()
	b := readFile(t, fs, name)
	f, err := fs.OpenReadWrite(name, vfs.CategoryLog)
	check(t, err)
	_, err = f.WriteAt([]byte{b[at] ^ 1}, at)
	check(t, err)
	check(t, f.Sync())
	check(t, f.Close())
}

// An entry that has become unreadable does not pin its file for ever: its replica is
// quarantined, durably, and the others go on.
func TestUnreadableEntryIsQuarantinedByRelocation(t *testing.T) {
	mem := vfs.NewCrashableMem()
	o := testOptions(mem)
	o.MaxBytes = 4 * testFile
	l := openWith(t, o)
	check(t, l.Create([]Creation{voter(5), voter(6)}))
	for i := range ident.Index(5) {
		check(t, add(l, 6, HardState{1, 0, 1}, run(6, 2+i, 1, 1, 100)))
	}
	// The block of the entry is finished: while it is not, it is written again from memory.
	check(t, add(l, 5, HardState{1, 0, 1}, run(5, 2, 1, 1, 2*vfs.BlockBytes)))
	off := frameOffsets(t, readFile(t, mem, logPath(1)))[4]
	flip(t, mem, logPath(1), off+150)
	fill(t, l, 5, 8)
	if err := add(l, 6, HardState{1, 0, 1}, nil); !errors.Is(err, ErrQuarantined) {
		t.Fatal(err)
	}
	o.FS = crash(mem, 0, 1)
	l = openWith(t, o)
	if q := l.Recovery().Quarantined; len(q) != 1 || q[0].Replica != 6 {
		t.Fatalf("%+v", q)
	}
	if s := l.Stats(); s.TotalBytes > o.MaxBytes {
		t.Fatalf("%+v", s)
	}
	// The readable ones are still there, for whoever wants to save them.
	es, err := l.Replica(6).Entries(5, 7, 1000)
	check(t, err)
	check(t, sameEntries(es, run(6, 5, 2, 1, 100)))
	if _, err := l.Replica(6).Entries(4, 5, 1000); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	check(t, l.Remove(6))
}
