package raftlog

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"chronik/internal/ident"
	"chronik/internal/vfs"
)

type vfsOpenOption = pebblevfs.OpenOption

func TestAppendReadReopen(t *testing.T) {
	fs := vfs.NewCrashableMem()
	l := open(t, fs)
	if !l.Recovery().Created {
		t.Fatal("a new log must say so")
	}
	check(t, l.Create([]Creation{voter(5), voter(6), {Replica: 7, Group: 9, Info: []byte("joins empty")}}))

	v := l.Replica(5)
	if v.FirstIndex() != 2 || v.LastIndex() != 1 {
		t.Fatalf("new voter: %d to %d", v.FirstIndex(), v.LastIndex())
	}
	if term, err := v.Term(1); term != 1 || err != nil {
		t.Fatalf("term before first: %d %v", term, err)
	}
	if hs := v.HardState(); hs != (HardState{Term: 1, Commit: 1}) {
		t.Fatalf("implied hard state: %+v", hs)
	}
	if v := l.Replica(7); v.FirstIndex() != 1 || v.LastIndex() != 0 || v.HardState() != (HardState{}) {
		t.Fatal("a joining replica is empty")
	}

	want := run(5, 2, 50, 3, 100)
	check(t, add(l, 5, HardState{3, 5, 10}, want))
	check(t, add(l, 5, HardState{4, 6, 20}, run(5, 40, 20, 4, 2000)))
	want = append(want[:38], run(5, 40, 20, 4, 2000)...)
	for range 2 {
		wantEntries(t, l, 5, want)
		v = l.Replica(5)
		if v.HardState() != (HardState{4, 6, 20}) {
			t.Fatalf("hard state %+v", v.HardState())
		}
		if term, _ := v.Term(39); term != 3 {
			t.Fatalf("term of 39: %d", term)
		}
		if term, _ := v.Term(40); term != 4 {
			t.Fatalf("term of 40: %d", term)
		}
		if _, err := v.Term(60); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
		if _, err := v.Term(0); !errors.Is(err, ErrCompacted) {
			t.Fatal(err)
		}
		if _, err := v.Entries(1, 3, 100); !errors.Is(err, ErrCompacted) {
			t.Fatal(err)
		}
		if _, err := v.Entries(59, 61, 100); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
		if es, err := v.Entries(2, 60, 0); err != nil || len(es) != 1 {
			t.Fatalf("at least one entry: %d %v", len(es), err)
		}
		if es, err := v.Entries(30, 60, 5000); err != nil || len(es) != 11 {
			t.Fatalf("up to 5000 bytes: %d %v", len(es), err)
		}
		cs := l.Creations()
		if len(cs) != 3 || cs[0].Replica != 5 || string(cs[0].Info) != "info 5" || cs[0].CreatedAt != 7 || cs[2].Group != 9 {
			t.Fatalf("creations %+v", cs)
		}
		lsn := l.DurableLSN()
		closeLog(t, l)
		l = open(t, fs)
		if l.DurableLSN() != lsn || l.Recovery().Scanned != 0 || l.Recovery().Created {
			t.Fatalf("lsn %d, want %d; recovery %+v", l.DurableLSN(), lsn, l.Recovery())
		}
	}
}

func TestInstallVoidsEarlier(t *testing.T) {
	fs := vfs.NewCrashableMem()
	l := open(t, fs)
	check(t, l.Create([]Creation{voter(5)}))
	check(t, add(l, 5, HardState{3, 0, 2}, run(5, 2, 50, 3, 100)))
	in := &Install{Index: 500, Term: 9, Generation: 2, ConfState: []byte("conf")}
	after := run(5, 501, 3, 9, 10)
	check(t, appendWait(l, &Append{Replica: 5, HardState: HardState{9, 0, 500}, Install: in, Entries: after}))
	for _, percent := range []int{-1, 0} {
		v := l.Replica(5)
		if v.FirstIndex() != 501 || v.LastIndex() != 503 {
			t.Fatalf("%d to %d", v.FirstIndex(), v.LastIndex())
		}
		if term, err := v.Term(500); term != 9 || err != nil {
			t.Fatal(term, err)
		}
		if got := v.Install(); got == nil || got.Generation != 2 || string(got.ConfState) != "conf" || got.Index != 500 {
			t.Fatalf("install %+v", got)
		}
		wantEntries(t, l, 5, after)
		if percent < 0 {
			l = open(t, crash(fs, 0, 1))
		}
	}
}

// Entries behind the snapshot's index are void too: they are of another history.
func TestInstallVoidsLater(t *testing.T) {
	fs := vfs.NewCrashableMem()
	l := open(t, fs)
	check(t, l.Create([]Creation{voter(5)}))
	check(t, add(l, 5, HardState{3, 0, 2}, run(5, 2, 50, 3, 100)))
	in := &Install{Index: 20, Term: 9, Generation: 2}
	check(t, appendWait(l, &Append{Replica: 5, HardState: HardState{9, 0, 20}, Install: in}))
	for again := range 2 {
		v := l.Replica(5)
		if v.FirstIndex() != 21 || v.LastIndex() != 20 {
			t.Fatalf("restart %d: %d to %d", again, v.FirstIndex(), v.LastIndex())
		}
		if _, err := v.Term(21); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("restart %d: term of an entry that is void: %v", again, err)
		}
		l = open(t, crash(fs, 0, 1))
	}
	after := run(5, 21, 3, 9, 10)
	check(t, add(l, 5, HardState{9, 0, 21}, after))
	wantEntries(t, l, 5, after)
}

func TestTrimIsSeenAtOnceAndForgottenHarmlessly(t *testing.T) {
	fs := vfs.NewCrashableMem()
	l := open(t, fs)
	check(t, l.Create([]Creation{voter(5)}))
	want := run(5, 2, 50, 3, 100)
	check(t, add(l, 5, HardState{3, 0, 40}, want))
	l.Trim(5, 20)
	v := l.Replica(5)
	if v.FirstIndex() != 21 {
		t.Fatal(v.FirstIndex())
	}
	if term, err := v.Term(20); term != 3 || err != nil {
		t.Fatal(term, err)
	}
	l.Trim(5, 10) // backward: nothing
	if v.FirstIndex() != 21 {
		t.Fatal(v.FirstIndex())
	}
	wantEntries(t, open(t, crash(fs, 0, 1)), 5, want) // not written yet: all are back
	check(t, add(l, 5, HardState{3, 0, 41}, nil))
	l2 := open(t, crash(fs, 0, 1)) // written with the next batch
	wantEntries(t, l2, 5, want[19:])
	if term, err := l2.Replica(5).Term(20); term != 3 || err != nil {
		t.Fatal(term, err)
	}
	l.Trim(5, 1000) // beyond the end: the whole log
	if v.FirstIndex() != 52 || v.LastIndex() != 51 {
		t.Fatal(v.FirstIndex(), v.LastIndex())
	}
	closeLog(t, l) // writes what waits
	l = open(t, fs)
	if v := l.Replica(5); v.FirstIndex() != 52 || v.LastIndex() != 51 {
		t.Fatal(v.FirstIndex(), v.LastIndex())
	}
	check(t, add(l, 5, HardState{3, 0, 41}, run(5, 52, 1, 3, 1)))
}

// While the record of one trim is being synced, the next one has moved on; it stays moved.
func TestTrimNeverGoesBack(t *testing.T) {
	gate, entered := make(chan struct{}), make(chan struct{})
	fs := &syncFS{FS: vfs.NewCrashableMem()}
	l := open(t, fs)
	check(t, l.Create([]Creation{voter(5)}))
	want := run(5, 2, 50, 3, 100)
	check(t, add(l, 5, HardState{3, 0, 40}, want))
	fs.set(func() { fs.gate, fs.entered = gate, entered })
	l.Trim(5, 10)
	done := make(chan error, 1)
	l.Append(&Append{Replica: 5, HardState: HardState{3, 0, 40}, Done: func(err error) { done <- err }})
	<-entered
	l.Trim(5, 20)
	fs.set(func() { fs.gate = nil })
	gate <- struct{}{}
	check(t, <-done)
	if first := l.Replica(5).FirstIndex(); first != 21 {
		t.Fatal(first)
	}
	wantEntries(t, l, 5, want[19:])
	closeLog(t, l)
	if first := open(t, fs).Replica(5).FirstIndex(); first != 21 {
		t.Fatal(first)
	}
}

// The same on the operating system's file system, with preallocation and reuse.
func TestOnDisk(t *testing.T) {
	o := testOptions(vfs.Default)
	o.Dir = t.TempDir() + "/a/raftlog"
	o.MaxBytes = 4 * testFile
	l := openWith(t, o)
	check(t, l.Create([]Creation{voter(5), voter(6)}))
	want := run(6, 2, 3, 1, 100)
	check(t, add(l, 6, HardState{1, 0, 1}, want))
	fill(t, l, 5, 7)
	if s := settled(t, l); s.Recycled == 0 || s.RelocatedFrames == 0 || s.TotalBytes > o.MaxBytes {
		t.Fatalf("%+v", s)
	}
	closeLog(t, l)
	o.Create = false
	l = openWith(t, o)
	if r := l.Recovery(); r.Scanned != 0 || r.TornFile != "" {
		t.Fatalf("%+v", r)
	}
	wantEntries(t, l, 6, want)
	names, err := vfs.List(o.FS, o.Dir)
	check(t, err)
	if err := Dump(o.FS, o.Dir+"/"+names[len(names)-1], io.Discard); err != nil {
		t.Fatal(err)
	}
}

func TestRefusals(t *testing.T) {
	fs := vfs.NewCrashableMem()
	l := open(t, fs)
	check(t, l.Create([]Creation{voter(5)}))
	for _, c := range []struct {
		name string
		got  error
		want error
	}{
		{"create twice", l.Create([]Creation{voter(5)}), ErrExists},
		{"create twice in one call", l.Create([]Creation{voter(8), voter(8)}), ErrExists},
		{"create with too much info", l.Create([]Creation{{Replica: 9, Info: make([]byte, MaxInfoBytes+1)}}), ErrTooLarge},
		{"append to nobody", add(l, 77, HardState{}, nil), ErrUnknownReplica},
		{"remove nobody", l.Remove(77), ErrUnknownReplica},
		{
			"huge ConfState",
			appendWait(l, &Append{Replica: 5, Install: &Install{Index: 9, Term: 1, ConfState: make([]byte, MaxInfoBytes+1)}}),
			ErrTooLarge,
		},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, c.got, c.want)
		}
	}
	if l.Replica(8) != nil || l.Replica(77) != nil || len(l.Creations()) != 1 {
		t.Fatal("a refused creation must leave nothing")
	}
	check(t, l.Remove(5))
	if l.Replica(5) != nil {
		t.Fatal("removed")
	}
	if err := add(l, 5, HardState{}, nil); !errors.Is(err, ErrUnknownReplica) {
		t.Fatal(err)
	}
	if l.Err() != nil {
		t.Fatal("a refusal is no failure", l.Err())
	}
	closeLog(t, l)
	if err := add(l, 5, HardState{}, nil); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if l = open(t, fs); l.Replica(5) != nil || len(l.Creations()) != 0 {
		t.Fatal("removed for good")
	}
}

func TestMissingAndForeign(t *testing.T) {
	fs := vfs.NewCrashableMem()
	o := testOptions(fs)
	o.Create = false
	if _, err := Open(o); !errors.Is(err, ErrMissing) {
		t.Fatal(err)
	}
	l := open(t, fs)
	// The log exists durably as soon as Open returned, without any append.
	o.FS = crash(fs, 0, 1)
	closeLog(t, openWith(t, o))
	closeLog(t, l)
	o.FS = fs
	closeLog(t, openWith(t, o))
	o.Store = ident.StoreID{9}
	o.Create = true
	if _, err := Open(o); !errors.Is(err, ErrForeign) {
		t.Fatal(err)
	}
}

func TestNodeBlob(t *testing.T) {
	fs := vfs.NewCrashableMem()
	l := open(t, fs)
	if l.NodeBlob() != nil {
		t.Fatal("none yet")
	}
	done := make(chan error, 3)
	for i := range 3 {
		l.PutNode(fmt.Appendf(nil, "blob %d", i), func(err error) { done <- err })
	}
	for range 3 {
		check(t, <-done)
	}
	l2 := open(t, crash(fs, 0, 1))
	if string(l.NodeBlob()) != "blob 2" || string(l2.NodeBlob()) != "blob 2" {
		t.Fatalf("%q %q", l.NodeBlob(), l2.NodeBlob())
	}
}

// A failure is final, reaches everybody who waits, and says what it was.
func TestFailureIsFinal(t *testing.T) {
	boom := errors.New("boom")
	for _, c := range []struct {
		name  string
		set   func(*syncFS)
		want  error
		entry int
	}{
		{"sync", func(fs *syncFS) { fs.syncErr = boom }, boom, 10},
		{"write", func(fs *syncFS) { fs.wrErr = boom }, boom, 10},
		{"disk full", func(fs *syncFS) { fs.wrErr = syscall.ENOSPC }, ErrNoSpace, 10},
		{"no room for a file", func(fs *syncFS) { fs.mkErr = syscall.ENOSPC }, ErrNoSpace, testFile - 20000},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := vfs.NewCrashableMem()
			fs := &syncFS{FS: mem}
			l := open(t, fs)
			check(t, l.Create([]Creation{voter(5)}))
			first := run(5, 2, 1, 2, 20000)
			check(t, add(l, 5, HardState{2, 0, 1}, first))
			lsn := l.DurableLSN()
			fs.set(func() { c.set(fs) })
			for i := range ident.Index(2) {
				// The second follows on the first, as from a replica that has not heard yet.
				err := add(l, 5, HardState{2, 0, 1}, run(5, 3+i, 1, 2, c.entry))
				if !errors.Is(err, c.want) || !errors.Is(err, ErrFailed) {
					t.Fatalf("%v, want %v", err, c.want)
				}
				// The second must fail although the disk is well again: nothing is retried.
				fs.set(func() { fs.syncErr, fs.wrErr, fs.mkErr = nil, nil, nil })
			}
			select {
			case <-l.Failed():
			default:
				t.Fatal("Failed not closed")
			}
			if !errors.Is(l.Err(), c.want) || l.DurableLSN() != lsn {
				t.Fatal(l.Err(), l.DurableLSN(), lsn)
			}
			wantEntries(t, l, 5, first)
			if err := l.Close(); !errors.Is(err, c.want) {
				t.Fatal(err)
			}
			wantEntries(t, open(t, crash(mem, 0, 1)), 5, first)
		})
	}
}

// TestRoomIsMade: when the disk has no room for the next file, room is asked for once, and the log goes on. What was tried is gone.
func TestRoomIsMade(t *testing.T) {
	for _, made := range []bool{true, false} {
		mem := vfs.NewCrashableMem()
		fs := &syncFS{FS: mem}
		o := testOptions(fs)
		asked := 0
		o.MakeRoom = func() bool {
			asked++
			if made {
				fs.set(func() { fs.mkErr = nil })
			}
			if names, err := vfs.List(mem, testDir); err != nil || len(names) != 1 {
				t.Errorf("%v, %v", names, err)
			}
			return made
		}
		l := openWith(t, o)
		check(t, l.Create([]Creation{voter(5)}))
		check(t, add(l, 5, HardState{2, 0, 1}, run(5, 2, 1, 2, 20000)))
		fs.set(func() { fs.mkErr = syscall.ENOSPC })
		err := add(l, 5, HardState{2, 0, 1}, run(5, 3, 1, 2, testFile-20000))
		if made {
			check(t, err)
			check(t, add(l, 5, HardState{2, 0, 1}, run(5, 4, 1, 2, 10)))
		} else if !errors.Is(err, ErrNoSpace) {
			t.Fatal(err)
		}
		if asked != 1 {
			t.Errorf("asked %d times", asked)
		}
		if made {
			closeLog(t, l)
			wantEntries(t, open(t, crash(mem, 0, 1)), 5, append(run(5, 2, 1, 2, 20000), append(run(5, 3, 1, 2, testFile-20000), run(5, 4, 1, 2, 10)...)...))
		}
	}
}

// A patient append waits for the next batch or for Nudge, and keeps its place.
func TestPatientAppend(t *testing.T) {
	l := open(t, vfs.NewCrashableMem())
	check(t, l.Create([]Creation{voter(1), voter(2)}))
	check(t, add(l, 1, HardState{1, 0, 1}, run(1, 2, 3, 1, 10)))
	var order []string
	done := make(chan struct{}, 3)
	put := func(name string, patient bool, hs HardState, es []Entry) {
		l.Append(&Append{Replica: 1, HardState: hs, Entries: es, Patient: patient, Done: func(err error) {
			if err != nil {
				t.Error(err)
			}
			order = append(order, name)
			done <- struct{}{}
		}})
	}
	before := l.Stats().Batches
	put("commit 2", true, HardState{1, 0, 2}, nil)
	time.Sleep(20 * time.Millisecond)
	if n := l.Stats().Batches - before; n != 0 {
		t.Fatalf("%d batches for a patient append", n)
	}
	put("entries", false, HardState{1, 0, 2}, run(1, 5, 1, 1, 10))
	<-done
	<-done
	put("commit 3", true, HardState{1, 0, 3}, nil)
	l.Nudge()
	<-done
	if got := strings.Join(order, ", "); got != "commit 2, entries, commit 3" {
		t.Fatal(got)
	}
	put("commit 4", true, HardState{1, 0, 4}, nil)
	check(t, l.Close()) // takes along what waits
	<-done
}
