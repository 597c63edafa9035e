package raftlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

func logPath(number uint64) string { return testDir + "/" + fileName(number, logSuffix) }

func readFile(t testing.TB, fs vfs.FS, path string) []byte {
	t.Helper()
	b, err := vfs.ReadFile(fs, path, 1<<30)
	check(t, err)
	return b
}

// disk makes a memory disk that durably holds a log with these files.
func disk(t testing.TB, files map[string][]byte) *vfs.MemFS {
	t.Helper()
	fs := vfs.NewCrashableMem()
	check(t, vfs.MkdirAllSync(fs, testDir))
	for path, b := range files {
		// The memory disk may scribble on what it was given, in race builds.
		check(t, vfs.WriteFileSync(fs, path, slices.Clone(b), vfs.CategoryLog))
	}
	return fs
}

// frameOffsets returns where the frames of a file begin.
func frameOffsets(t testing.TB, b []byte) []int64 {
	t.Helper()
	h, err := decodeFileHeader(b)
	check(t, err)
	res := scan(b, &h)
	var offs []int64
	for i := range res.frames {
		offs = append(offs, res.frames[i].off)
	}
	return append(offs, res.end())
}

// Without fdatasync an acknowledged append is lost in a power loss: this is what the
// other tests would see if the sync were missing.
func TestSyncIsWhatMakesAppendsDurable(t *testing.T) {
	for _, lie := range []bool{false, true} {
		mem := vfs.NewCrashableMem()
		fs := &syncFS{FS: mem}
		l := open(t, fs)
		check(t, l.Create([]Creation{voter(5)}))
		fs.set(func() { fs.lie = lie })
		want := run(5, 2, 3, 1, 100)
		before := fs.syncs
		check(t, add(l, 5, HardState{2, 3, 2}, want))
		if fs.syncs != before+1 {
			t.Fatalf("%d syncs for one append", fs.syncs-before)
		}
		v := open(t, crash(mem, 0, 1)).Replica(5)
		if lost := v.LastIndex() == 1 && v.HardState().Term == 1; lost != lie {
			t.Fatalf("sync swallowed: %v, append lost: %v", lie, lost)
		}
	}
}

// Correctness rules 5 and 6: whichever blocks of an unsynced batch reach the disk, entries
// and hard state of a frame appear together, a prefix of the frames appears, and nothing is
// quarantined, also where valid frames follow a torn one.
func TestAnySubsetOfBlocksIsTorn(t *testing.T) {
	mem := vfs.NewCrashableMem()
	fs := &syncFS{FS: mem}
	l := open(t, fs)
	check(t, l.Create([]Creation{voter(5), voter(6)}))
	check(t, add(l, 5, HardState{2, 0, 1}, run(5, 2, 2, 2, 1500)))
	done := make(chan error, 4)
	// While one sync is held, three appends gather: they are one batch.
	gate, entered := make(chan struct{}), make(chan struct{})
	fs.set(func() { fs.gate, fs.entered = gate, entered })
	l.Append(&Append{Replica: 6, HardState: HardState{1, 0, 1}, Done: func(err error) { done <- err }})
	<-entered
	base := bytes.TrimRight(readFile(t, mem, logPath(1)), "\x00") // durable before the three are written
	fs.set(func() { fs.gate, fs.entered = nil, nil })
	for i := range 3 {
		id := ident.ReplicaID(5 + i%2)
		first := ident.Index(4)
		if id == 6 {
			first = 2
		}
		if i == 2 {
			first = 6
		}
		l.Append(&Append{
			Replica: id, HardState: HardState{Term: 3, Commit: ident.Index(i)},
			Entries: run(id, first, 2, 3, 3500), Done: func(err error) { done <- err },
		})
	}
	gate <- struct{}{}
	for range 4 {
		check(t, <-done)
	}
	full := readWritten(t, mem, logPath(1))
	const block = 4096
	firstBlock := len(base) / block
	blocks := (len(full)+block-1)/block - firstBlock
	if blocks < 5 {
		t.Fatalf("only %d blocks", blocks)
	}
	states := make(map[string]int)
	for set := range 1 << blocks {
		b := make([]byte, len(full))
		copy(b, base)
		for i := range blocks {
			if set&(1<<i) != 0 {
				from := (firstBlock + i) * block
				copy(b[from:min(from+block, len(b))], full[from:])
			}
		}
		l := open(t, disk(t, map[string][]byte{logPath(1): b}))
		if q := l.Recovery().Quarantined; len(q) > 0 {
			t.Fatalf("blocks %b: quarantined %+v", set, q)
		}
		a, c := l.Replica(5), l.Replica(6)
		states[fmt.Sprint(a.LastIndex(), a.HardState(), c.LastIndex(), c.HardState())]++
		closeLog(t, l)
	}
	want := []string{
		"3 {2 0 1} 1 {1 0 1}",
		"5 {3 0 0} 1 {1 0 1}",
		"5 {3 0 0} 3 {3 0 1}",
		"7 {3 0 2} 3 {3 0 1}",
	}
	if len(states) != len(want) {
		t.Fatalf("states %v", states)
	}
	for _, s := range want {
		if states[s] == 0 {
			t.Errorf("state %s missing in %v", s, states)
		}
	}
}

// After a torn end was dropped, the log goes on in a new file; what was dropped does
// not come back, neither as data nor as corruption, however often that happens.
func TestDroppedStaysDropped(t *testing.T) {
	mem := vfs.NewCrashableMem()
	o := testOptions(mem)
	o.MaxBytes *= 4 // all files stay
	l := openWith(t, o)
	check(t, l.Create([]Creation{voter(5)}))
	var want []Entry
	for round := range 6 {
		next := ident.Index(2 + len(want))
		es := run(5, next, 2, ident.Term(round+2), 500)
		want = append(want, es...)
		check(t, add(l, 5, HardState{Term: ident.Term(round + 2), Commit: 1}, es))
		// A batch of two frames, the first of which does not reach the disk.
		b := bytes.TrimRight(readFile(t, mem, logPath(uint64(round+1))), "\x00")
		lsn := l.DurableLSN()
		check(t, add(l, 5, HardState{Term: 50, Commit: 1}, run(5, next+2, 1, 50, 5000)))
		check(t, add(l, 5, HardState{Term: 60, Commit: 1}, run(5, next+3, 1, 60, 300)))
		full := readWritten(t, mem, logPath(uint64(round+1)))
		offs := frameOffsets(t, full)
		last, lost := offs[len(offs)-2], offs[len(offs)-3]
		copy(full[lost:last], make([]byte, last-lost))
		// The last frame, as if written in the same batch: it vouches for no more than lsn.
		setDurable(full[last:], lsn)
		copy(full[:len(b)], b)
		files := map[string][]byte{logPath(uint64(round + 1)): full}
		for i := range uint64(round) {
			files[logPath(i+1)] = readFile(t, mem, logPath(i+1))
		}
		mem = disk(t, files)
		o.FS = mem
		l = openWith(t, o)
		r := l.Recovery()
		if r.TornFile != logPath(uint64(round+1)) || r.TornAt != lost || r.TornFrames != 1 || r.LastLSN != lsn {
			t.Fatalf("round %d: recovery %+v, want torn at %d, LSN %d", round, r, lost, lsn)
		}
		wantEntries(t, l, 5, want)
	}
	check(t, add(l, 5, HardState{Term: 70, Commit: 1}, nil))
	if got := l.DurableLSN(); got <= l.Recovery().LastLSN+1 {
		t.Fatalf("LSN %d must lie above all that was seen", got)
	}
}

// setDurable changes durable_upto of the frame at the start of b.
func setDurable(b []byte, lsn uint64) {
	binary.BigEndian.PutUint64(b[24:], lsn)
	binary.BigEndian.PutUint32(b[72:], checksum(b[:72]))
	body := binary.BigEndian.Uint32(b[4:])
	whole := slices.Concat(b[:76], b[80:80+body])
	binary.BigEndian.PutUint32(b[76:], checksum(whole))
}

// damagedLog is an unsealed file with appends of two replicas in separate batches.
func damagedLog(t *testing.T) (file []byte, offs []int64) {
	mem := vfs.NewCrashableMem()
	l := open(t, mem)
	check(t, l.Create([]Creation{voter(5), voter(6)}))
	for i := range ident.Index(6) {
		id := ident.ReplicaID(5 + i%2)
		check(t, add(l, id, HardState{2, id, 1}, run(id, 2+i/2, 1, 2, 300)))
	}
	file = readFile(t, mem, logPath(1))
	return file, frameOffsets(t, file)
}

// Rule 6: a flipped bit below D is corruption; above D it is a torn end.
func TestBitFlips(t *testing.T) {
	file, offs := damagedLog(t)
	frames := len(offs) - 1 // 0, 1: creations; then 5, 6, 5, 6, 5, 6
	for bit := int64(0); bit < offs[frames]*8; bit += 37 {
		at := bit / 8
		b := slices.Clone(file)
		b[at] ^= 1 << (bit % 8)
		n := slices.IndexFunc(offs, func(o int64) bool { return o > at }) - 1 // the frame hit
		l, err := Open(testOptions(disk(t, map[string][]byte{logPath(1): b})))
		switch {
		case at < fileHeaderBytes:
			wantCorrupt(t, at, err, 0)
		case at < dataOffset: // unused, or the seal of a file that has none
			check(t, err)
		case at-offs[n] < 76 && n < frames-1: // the header: nobody knows whose
			wantCorrupt(t, at, err, offs[n])
		case n < frames-1:
			check(t, err)
			q := l.Recovery().Quarantined
			id := ident.ReplicaID(5 + n%2)
			if at >= offs[n]+padded(file[offs[n]:]) {
				id = 0 // padding
			}
			if id == 0 && len(q) != 0 || id != 0 && (len(q) != 1 || q[0].Replica != id || q[0].Group != ident.GroupID(id+100)) {
				t.Fatalf("byte %d in frame %d: quarantined %+v", at, n, q)
			}
			if id == 0 {
				break
			}
			wantCorrupt(t, at, q[0].Err, -1)
			if !strings.Contains(q[0].Err.Error(), fmt.Sprintf("%s at byte %d", logPath(1), offs[n])) {
				t.Fatalf("byte %d: %v", at, q[0].Err)
			}
			if err := add(l, id, HardState{9, 0, 1}, nil); !errors.Is(err, ErrQuarantined) {
				t.Fatal(err)
			}
			check(t, add(l, 11-id, HardState{9, 0, 1}, nil)) // the other one goes on
		default: // the last frame: nothing vouches for it
			check(t, err)
			if q := l.Recovery().Quarantined; len(q) > 0 {
				t.Fatalf("byte %d: %+v", at, q)
			}
			if at < offs[n]+padded(file[offs[n]:]) && l.Recovery().TornAt != offs[n] && at-offs[n] > 40 {
				t.Fatalf("byte %d: %+v", at, l.Recovery())
			}
		}
		if l != nil {
			closeLog(t, l)
		}
	}
}

// padded returns where the padding of the frame at the start of b begins.
func padded(b []byte) int64 { return frameHeaderBytes + int64(binary.BigEndian.Uint32(b[4:])) }

func wantCorrupt(t *testing.T, at int64, err error, off int64) {
	t.Helper()
	if !errors.Is(err, ErrCorrupt) {
		t.Fatalf("byte %d: %v, want corruption", at, err)
	}
	var ce *CorruptError
	if off >= 0 && (!errors.As(err, &ce) || ce.File != logPath(1) || ce.Offset != off) {
		t.Fatalf("byte %d: %v, want %s at %d", at, err, logPath(1), off)
	}
}

// A quarantine is remembered when the damaged file is long gone, and ends with Remove.
func TestQuarantineOutlivesItsFile(t *testing.T) {
	file, offs := damagedLog(t)
	file[offs[2]+100] ^= 1 // first append of replica 5
	fs := disk(t, map[string][]byte{logPath(1): file})
	o := testOptions(fs)
	o.MaxBytes = 4 * testFile
	l := openWith(t, o)
	fill(t, l, 6, 6)
	if _, err := fs.Stat(logPath(1)); err == nil {
		t.Fatal("the damaged file must have been freed")
	}
	fs = crash(fs, 0, 1)
	o.FS = fs
	l = openWith(t, o)
	if q := l.Recovery().Quarantined; len(q) != 1 || q[0].Replica != 5 || !errors.Is(q[0].Err, ErrCorrupt) ||
		!strings.Contains(q[0].Err.Error(), logPath(1)) {
		t.Fatalf("%+v", q)
	}
	check(t, l.Remove(5))
	o.FS = crash(fs, 0, 1)
	if q := openWith(t, o).Recovery().Quarantined; len(q) != 0 {
		t.Fatalf("%+v", q)
	}
}

// fill appends and trims replica id until the log has begun that many more files.
func fill(t testing.TB, l *Log, id ident.ReplicaID, files uint64) {
	t.Helper()
	for until := l.Stats().Rolls + files; l.Stats().Rolls < until; {
		v := l.Replica(id)
		next := v.LastIndex() + 1
		hs := v.HardState()
		check(t, add(l, id, HardState{max(hs.Term, 1), 0, next - 1}, run(id, next, 4, max(hs.Term, 1), 2000)))
		l.Trim(id, next-1)
	}
}

func TestDamageToSealedFiles(t *testing.T) {
	mem := vfs.NewCrashableMem()
	l := open(t, mem)
	check(t, l.Create([]Creation{voter(5)}))
	want := run(5, 2, 60, 2, 2000)
	for i := range want {
		check(t, add(l, 5, HardState{2, 0, 1}, want[i:i+1]))
	}
	closeLog(t, l)
	h, err := decodeFileHeader(readFile(t, mem, logPath(1)))
	check(t, err)
	s, ok := decodeSeal(readFile(t, mem, logPath(1))[sealOffset:], &h)
	if !ok {
		t.Fatal("file 1 is not sealed")
	}
	damage := func(number uint64, at int64) *vfs.MemFS {
		files := make(map[string][]byte)
		for i := uint64(1); ; i++ {
			if _, err := mem.Stat(logPath(i)); err != nil {
				break
			}
			files[logPath(i)] = readFile(t, mem, logPath(i))
		}
		if at >= 0 {
			files[logPath(number)][at] ^= 16
		} else {
			delete(files, logPath(number))
		}
		return disk(t, files)
	}
	for _, at := range []int64{s.footerOff + 20, sealOffset + 20} { // footer, seal: scanned instead
		l := open(t, damage(1, at))
		if l.Recovery().Scanned != 1 {
			t.Fatalf("byte %d: scanned %d", at, l.Recovery().Scanned)
		}
		wantEntries(t, l, 5, want)
	}
	// A payload: found when read, with file and byte; the entries of other files are fine.
	off := frameOffsets(t, readFile(t, mem, logPath(1)))[4]
	l = open(t, damage(1, off+500))
	var ce *CorruptError
	if _, err := l.Replica(5).Entries(2, 10, 1<<20); !errors.As(err, &ce) || ce.File != logPath(1) || ce.Offset != off {
		t.Fatalf("%v, want %s at %d", err, logPath(1), off)
	}
	es, err := l.Replica(5).Entries(55, 62, 1<<20)
	check(t, err)
	check(t, sameEntries(es, want[53:]))
	// Headers and whole files.
	_, err = Open(testOptions(damage(2, 5)))
	if !errors.As(err, &ce) || ce.File != logPath(2) || ce.Offset != 0 {
		t.Fatal(err)
	}
	if _, err = Open(testOptions(damage(2, -1))); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "file 2 is missing") {
		t.Fatal(err)
	}
}

// An append missing from the middle of a replica's log, because its whole file is gone from the
// old end, is noticed.
func TestLostOldFileQuarantines(t *testing.T) {
	mem := vfs.NewCrashableMem()
	l := open(t, mem)
	check(t, l.Create([]Creation{voter(5), voter(6)}))
	for i := range ident.Index(60) {
		check(t, add(l, 5, HardState{2, 0, 1}, run(5, 2+i, 1, 2, 2000)))
	}
	closeLog(t, l)
	check(t, mem.Remove(logPath(1)))
	l = open(t, mem)
	q := l.Recovery().Quarantined
	if len(q) != 1 || q[0].Replica != 5 || !strings.Contains(q[0].Err.Error(), "no creation record") {
		t.Fatalf("%+v", q)
	}
	// It is known all the same, lest it be taken for one that never was; and it can be removed.
	if cs := l.Creations(); len(cs) != 1 || cs[0].Replica != 5 || cs[0].Group == 0 || cs[0].Info != nil {
		t.Fatalf("creations %+v", cs)
	}
	check(t, l.Remove(5))
	closeLog(t, l)
	l = open(t, mem)
	if q, cs := l.Recovery().Quarantined, l.Creations(); len(q)+len(cs) != 0 {
		t.Fatalf("after its removal: %+v, %+v", q, cs)
	}
	closeLog(t, l)
}

// A reused file is full of valid frames of its last use; they are not seen.
func TestRecycledFileHidesOldFrames(t *testing.T) {
	mem := vfs.NewCrashableMem()
	o := testOptions(mem)
	o.MaxBytes = 4 * testFile
	l := openWith(t, o)
	check(t, l.Create([]Creation{voter(5)}))
	fill(t, l, 5, 8)
	if l.Stats().Recycled == 0 {
		t.Fatalf("%+v", l.Stats())
	}
	check(t, add(l, 5, HardState{1, 0, 1}, nil)) // the last trim too
	want, err := entries(l.Replica(5), 1<<20)
	check(t, err)
	names, err := vfs.List(mem, testDir)
	check(t, err)
	path := testDir + "/" + names[len(names)-1]
	b := readFile(t, mem, path)
	h, err := decodeFileHeader(b)
	check(t, err)
	res := scan(b, &h)
	end := res.end()
	old := 0
	for off := end &^ 7; off < int64(len(b))-frameHeaderBytes; off += 8 {
		epoch := binary.BigEndian.Uint64(b[off+32:])
		if _, err := decodeFrame(b[off:], epoch, false); err == nil && epoch != h.epoch {
			old++
		}
	}
	if old == 0 {
		t.Fatal("no old valid frame behind the new ones: the test shows nothing")
	}
	o.FS = crash(mem, 100, 1)
	l2 := openWith(t, o)
	if r := l2.Recovery(); r.TornFile != "" || len(r.Quarantined) > 0 {
		t.Fatalf("%+v", r)
	}
	wantEntries(t, l2, 5, want)
}

// Start reads headers and footers of sealed files, not their frames.
func TestOpenDoesNotScanSealedFiles(t *testing.T) {
	mem := vfs.NewCrashableMem()
	o := testOptions(mem)
	o.MaxBytes, o.FileBytes = 64<<20, 4<<20
	l := openWith(t, o)
	check(t, l.Create([]Creation{voter(5), voter(6)}))
	const frames = 2400
	done := make(chan error, frames)
	for i := range ident.Index(frames) {
		id := ident.ReplicaID(5 + i%2)
		l.Append(&Append{
			Replica: id, HardState: HardState{2, 0, 1}, Entries: run(id, 2+i/2, 1, 2, 8000), Done: func(err error) { done <- err },
		})
	}
	for range frames {
		check(t, <-done)
	}
	closeLog(t, l)
	fs := &syncFS{FS: mem}
	o.FS = fs
	l = openWith(t, o)
	s := l.Stats()
	if s.TotalBytes < 16<<20 || fs.read > 100_000 || l.Recovery().Scanned != 0 {
		t.Fatalf("read %d bytes of %d, scanned %d", fs.read, s.TotalBytes, l.Recovery().Scanned)
	}
	o.FS = crash(mem, 0, 1)
	if n := openWith(t, o).Recovery().Scanned; n != 0 {
		t.Fatalf("scanned %d sealed files after a power loss", n)
	}
	if v := l.Replica(6); v.LastIndex() != 1+frames/2 || v.HardState() != (HardState{2, 0, 1}) {
		t.Fatal(v.LastIndex(), v.HardState())
	}
	es, err := l.Replica(6).Entries(700, 800, 1<<20)
	check(t, err)
	check(t, sameEntries(es, run(6, 700, 100, 2, 8000)))
}

// A killed process leaves a batch in the page cache. The next one reads it and builds on it; so
// it must be durable before anything that follows.
func TestWhatRecoveryReadIsSynced(t *testing.T) {
	mem := vfs.NewCrashableMem()
	gate, entered := make(chan struct{}), make(chan struct{})
	fs := &syncFS{FS: mem}
	killed := open(t, fs)
	check(t, killed.Create([]Creation{voter(5)}))
	fs.set(func() { fs.gate, fs.entered = gate, entered })
	defer func() {
		fs.set(func() { fs.gate = nil })
		gate <- struct{}{}
	}()
	want := run(5, 2, 2, 1, 100)
	killed.Append(&Append{Replica: 5, HardState: HardState{1, 0, 1}, Entries: want})
	<-entered // written, not synced
	l := open(t, mem)
	wantEntries(t, l, 5, want)
	check(t, add(l, 5, HardState{2, 0, 1}, run(5, 4, 1, 2, 100)))
	l = open(t, crash(mem, 0, 1))
	if q := l.Recovery().Quarantined; len(q) > 0 {
		t.Fatalf("%+v", q)
	}
	wantEntries(t, l, 5, append(want, run(5, 4, 1, 2, 100)...))
}

// A frame in a place where its LSN does not belong is none, however valid its bytes.
func TestFrameOutOfOrderIsNone(t *testing.T) {
	file, offs := damagedLog(t)
	h, err := decodeFileHeader(file)
	check(t, err)
	n := len(offs) - 1
	b := slices.Concat(file[:offs[n]], file[offs[2]:offs[3]], file[offs[n]:])
	res := scan(b, &h)
	if len(res.frames) != n || res.end() != offs[n] || len(res.bad) != 1 {
		t.Fatalf("%d frames, want %d; bad %+v", len(res.frames), n, res.bad)
	}
}

// handmade is a file with these frames; LSNs and sizes are given here.
func handmade(t *testing.T, frames []frame) *vfs.MemFS {
	t.Helper()
	h := fileHeader{store: testStore, number: 1, epoch: fuzzEpoch, size: testFile, firstLSN: 1}
	b := make([]byte, dataOffset)
	copy(b, h.encode())
	for i := range frames {
		f := &frames[i]
		f.lsn, f.durable = uint64(i+1), uint64(i)
		if n := len(f.entries); n > 0 {
			f.first, f.n, f.lastTerm = f.entries[0].Index, uint32(n), f.entries[n-1].Term
		}
		f.size = frameSize(f.bodyBytes())
		b = appendFrame(b, f, h.epoch)
	}
	return disk(t, map[string][]byte{logPath(1): b})
}

// What no correct history leaves behind is quarantined, not believed.
func TestImpossibleStatesAreQuarantined(t *testing.T) {
	c := voter(5)
	create := frame{kind: kindCreate, flags: hasCreation, replica: 5, creation: &c}
	entries := func(first ident.Index, hs HardState) frame {
		return frame{kind: kindAppend, flags: hasHardState, replica: 5, hs: hs, entries: run(5, first, 2, 1, 10)}
	}
	for _, tc := range []struct {
		frames []frame
		want   string // "" = fine
	}{
		{[]frame{create, entries(2, HardState{1, 0, 3})}, ""},
		{[]frame{create, entries(3, HardState{1, 0, 1})}, "entries 2 to 2 are missing"},
		{[]frame{create, entries(2, HardState{1, 0, 1}), entries(9, HardState{1, 0, 1})}, "entries 4 to 8 are missing"},
		{[]frame{create, entries(2, HardState{1, 0, 4})}, "commit 4, last index 3"},
		{[]frame{entries(1, HardState{1, 0, 1})}, "no creation record"},
	} {
		q := open(t, handmade(t, tc.frames)).Recovery().Quarantined
		if (len(q) == 0) != (tc.want == "") || len(q) > 0 && !strings.Contains(q[0].Err.Error(), tc.want) {
			t.Errorf("%+v, want %q", q, tc.want)
		}
	}
}

// A damaged node record matters only if it is the latest.
func TestDamagedNodeRecord(t *testing.T) {
	node := func(s string) frame { return frame{kind: kindNode, flags: hasBlob, blob: []byte(s)} }
	for damaged := range 2 {
		fs := handmade(t, []frame{node("a"), node("b"), {kind: kindRemove, replica: 9}})
		file := readFile(t, fs, logPath(1))
		file[frameOffsets(t, file)[damaged]+84] ^= 1
		l, err := Open(testOptions(disk(t, map[string][]byte{logPath(1): file})))
		if damaged == 1 {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			continue
		}
		check(t, err)
		if string(l.NodeBlob()) != "b" {
			t.Fatalf("%q", l.NodeBlob())
		}
		closeLog(t, l)
	}
}

// A damaged remove record still removes, told by the frame's header or by the footer.
func TestDamagedRemoveRecord(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		mem := vfs.NewCrashableMem()
		l := open(t, mem)
		check(t, l.Create([]Creation{voter(5), voter(6)}))
		check(t, l.Remove(5))
		check(t, add(l, 6, HardState{1, 0, 1}, nil))
		check(t, add(l, 6, HardState{1, 0, 1}, nil)) // says that the record was durable
		fs := crash(mem, 0, 1)
		if closeLog(t, l); sealed {
			fs = mem
		}
		file := readFile(t, fs, logPath(1))
		file[frameOffsets(t, file)[2]+77] ^= 1
		l = open(t, disk(t, map[string][]byte{logPath(1): file}))
		if cs, q := l.Creations(), l.Recovery().Quarantined; len(cs) != 1 || len(q) > 0 || (l.Recovery().Scanned == 0) != sealed {
			t.Fatalf("sealed %v: replicas %+v, quarantined %+v", sealed, cs, q)
		}
	}
}

// A file that was about to be freed and is back under both names after a crash is the log's.
func TestFreedFileUnderBothNames(t *testing.T) {
	file, _ := damagedLog(t)
	fs := disk(t, map[string][]byte{logPath(1): file, testDir + "/00000001.free": file, testDir + "/00000007.new": nil})
	l := open(t, fs)
	if q := l.Recovery().Quarantined; len(q) > 0 || l.Replica(5).LastIndex() != 4 {
		t.Fatalf("%+v", q)
	}
	if s := l.Stats(); s.Spare != 0 {
		t.Fatalf("%+v", s)
	}
	names, err := vfs.List(fs, testDir)
	check(t, err)
	if len(names) != 1 {
		t.Fatal(names)
	}
}

// A process that ends between the rename of an emptied file and the sync of the directory leaves a
// name that the disk does not have: the next one may use the file only once it does.
func TestSpareIsDurableBeforeItIsUsed(t *testing.T) {
	mem := vfs.NewCrashableMem()
	fs := &syncFS{FS: mem}
	var left *vfs.MemFS
	invariant.SetPointHook(func(p string) {
		switch p {
		case "raftlog/free-renamed": // the first process ends here
			fs.set(func() { fs.dirErr = errors.New("killed") })
		case "raftlog/file-header-synced": // the power goes here, under the second
			left = crash(mem, 0, 1)
		}
	})
	defer invariant.SetPointHook(nil)
	l := open(t, fs)
	check(t, l.Create([]Creation{voter(1)}))
	for next := ident.Index(2); l.Stats().Files < 5; next++ {
		check(t, add(l, 1, HardState{1, 0, 1}, run(1, next, 1, 1, 4000)))
	}
	l.Trim(1, 20)                           // empties the first file alone
	_ = add(l, 1, HardState{1, 0, 20}, nil) // the trim goes with it, if it was not seen before
	<-l.Failed()
	_ = l.Close()
	l = open(t, mem)
	check(t, add(l, 1, HardState{1, 0, 20}, nil))
	closeLog(t, l)
	if s := l.Stats(); s.Recycled != 1 {
		t.Fatalf("the emptied file was not used again: %+v", s)
	}
	closeLog(t, open(t, left))
}
