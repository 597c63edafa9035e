package raftlog

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"chronik/internal/ident"
	"chronik/internal/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testDir      = "/log"
	testFile     = 64 << 10
	testMaxBytes = 8 * testFile
)

var testStore = ident.StoreID{1, 2, 3}

func testOptions(fs vfs.FS) Options {
	return Options{
		FS: fs, Dir: testDir, Store: testStore, Create: true,
		MaxBytes: testMaxBytes, FileBytes: testFile, CacheBytes: 16 << 10,
	}
}

func open(t testing.TB, fs vfs.FS) *Log {
	t.Helper()
	return openWith(t, testOptions(fs))
}

func openWith(t testing.TB, o Options) *Log {
	t.Helper()
	l, err := Open(o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func closeLog(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// crash returns the disk after a power loss now, with percent of what was not synced.
func crash(fs *vfs.MemFS, percent int, seed uint64) *vfs.MemFS {
	return fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(seed, 1))})
}

// settled returns the sizes as they are once the sync loop has done with all that
// was acknowledged: it tells the callers first, and cleans up and measures then.
func settled(t testing.TB, l *Log) Stats {
	t.Helper()
	const nobody = 1 << 40 // refused, in order behind all the others
	if err := add(l, nobody, HardState{}, nil); !errors.Is(err, ErrUnknownReplica) {
		t.Fatal(err)
	}
	return l.Stats()
}

// voter is a creation at (1,1).
func voter(id ident.ReplicaID) Creation {
	return Creation{
		Replica: id, Group: ident.GroupID(id + 100), CreatedAt: 7, First: 1, FirstTerm: 1,
		Info: fmt.Appendf(nil, "info %d", id),
	}
}

// run makes n entries from first on, with payloads of size bytes that tell who they are.
func run(id ident.ReplicaID, first ident.Index, n int, term ident.Term, size int) []Entry {
	es := make([]Entry, n)
	for i := range es {
		index := first + ident.Index(i)
		data := fmt.Appendf(nil, "r%d i%d t%d ", id, index, term)
		if len(data) < size {
			data = append(data, bytes.Repeat([]byte{byte('a' + index%26)}, size-len(data))...)
		}
		es[i] = Entry{Index: index, Term: term, Type: uint8(index % 3), Data: data}
	}
	return es
}

// add appends entries and waits; the commit stays behind them.
func add(l *Log, id ident.ReplicaID, hs HardState, es []Entry) error {
	return appendWait(l, &Append{Replica: id, HardState: hs, Entries: es})
}

func appendWait(l *Log, a *Append) error {
	done := make(chan error, 1)
	a.Done = func(err error) { done <- err }
	l.Append(a)
	return <-done
}

func sameEntries(a, b []Entry) error {
	if len(a) != len(b) {
		return fmt.Errorf("%d entries, want %d", len(a), len(b))
	}
	for i := range a {
		if a[i].Index != b[i].Index || a[i].Term != b[i].Term || a[i].Type != b[i].Type || !bytes.Equal(a[i].Data, b[i].Data) {
			return fmt.Errorf("entry %d: (%d,%d,%d,%.40q), want (%d,%d,%d,%.40q)", i,
				a[i].Index, a[i].Term, a[i].Type, a[i].Data, b[i].Index, b[i].Term, b[i].Type, b[i].Data)
		}
	}
	return nil
}

// entries reads all of a replica's entries, in steps of at most maxBytes.
func entries(v *View, maxBytes int64) ([]Entry, error) {
	var all []Entry
	last := v.LastIndex()
	for i := v.FirstIndex(); i <= last; {
		es, err := v.Entries(i, last+1, maxBytes)
		if err != nil {
			return nil, err
		}
		if len(es) == 0 {
			return nil, fmt.Errorf("no entry from %d of %d", i, last)
		}
		all = append(all, es...)
		i += ident.Index(len(es))
	}
	return all, nil
}

func wantEntries(t testing.TB, l *Log, id ident.ReplicaID, want []Entry) {
	t.Helper()
	v := l.Replica(id)
	if v == nil {
		t.Fatalf("replica %d unknown", id)
	}
	got, err := entries(v, 1<<20)
	check(t, err)
	if err := sameEntries(got, want); err != nil {
		t.Fatalf("replica %d: %v", id, err)
	}
}

// syncFS wraps an FS: it counts syncs of log data, can swallow or fail them, and
// can hold them at a gate.
type syncFS struct {
	vfs.FS
	mu      sync.Mutex
	syncs   int   // SyncData calls on files
	lie     bool  // SyncData returns nil and does nothing
	syncErr error // SyncData returns it
	wrErr   error // WriteAt returns it
	mkErr   error // Preallocate returns it
	dirErr  error // OpenDir returns it
	written int
	read    int64
	// gate, if set, is received from before each SyncData; entered is sent to before that.
	gate, entered chan struct{}
	// readGate, if set, does the same for ReadAt.
	readGate, reading chan struct{}
}

func (fs *syncFS) set(f func()) { fs.mu.Lock(); defer fs.mu.Unlock(); f() }

func (fs *syncFS) wrap(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &syncFile{f, fs}, nil
}

func (fs *syncFS) OpenReadWrite(name string, c vfs.WriteCategory, o ...vfsOpenOption) (vfs.File, error) {
	return fs.wrap(fs.FS.OpenReadWrite(name, c, o...))
}

func (fs *syncFS) OpenDir(name string) (vfs.File, error) {
	var err error
	fs.set(func() { err = fs.dirErr })
	if err != nil {
		return nil, err
	}
	return fs.FS.OpenDir(name)
}

type syncFile struct {
	vfs.File
	fs *syncFS
}

func (f *syncFile) ReadAt(b []byte, off int64) (int, error) {
	var gate, reading chan struct{}
	f.fs.set(func() {
		f.fs.read += int64(len(b))
		gate, reading = f.fs.readGate, f.fs.reading
	})
	if gate != nil {
		reading <- struct{}{}
		<-gate
	}
	return f.File.ReadAt(b, off)
}

func (f *syncFile) WriteAt(b []byte, off int64) (int, error) {
	var err error
	f.fs.set(func() { err = f.fs.wrErr; f.fs.written++ })
	if err != nil {
		return 0, err
	}
	return f.File.WriteAt(b, off)
}

func (f *syncFile) Preallocate(off, n int64) error {
	var err error
	f.fs.set(func() { err = f.fs.mkErr })
	if err != nil {
		return err
	}
	return f.File.Preallocate(off, n)
}

func (f *syncFile) SyncData() error {
	var lie bool
	var err error
	var gate, entered chan struct{}
	f.fs.set(func() {
		f.fs.syncs++
		lie, err, gate, entered = f.fs.lie, f.fs.syncErr, f.fs.gate, f.fs.entered
	})
	if gate != nil {
		entered <- struct{}{}
		<-gate
	}
	if lie || err != nil {
		return err
	}
	return f.File.SyncData()
}

// readWritten is readFile without the zeros that were written ahead, but for those
// of the last block that holds something.
func readWritten(t testing.TB, fs vfs.FS, path string) []byte {
	t.Helper()
	b := readFile(t, fs, path)
	n := len(bytes.TrimRight(b, "\x00"))
	return b[:min(len(b), (n+4095)&^4095)]
}
