package partition

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"pgregory.net/rapid"

	"chronik/internal/alloctest"
	"chronik/internal/ident"
	"chronik/internal/raftgroup"
	"chronik/internal/vfs"
)

// history draws a log of entries: plain and idempotent batches of several terms,
// repeats and gaps, settings, log starts, time that jumps.
func history(t *rapid.T) []raftgroup.Entry {
	var entries []raftgroup.Entry
	now, term, next := int64(10_000), ident.Term(1), int64(0)
	seqs := make(map[int64]int32)
	for k := range rapid.IntRange(1, 60).Draw(t, "entries") {
		now += rapid.Int64Range(-50, 300).Draw(t, "step")
		if rapid.IntRange(0, 9).Draw(t, "election") == 0 {
			term++
		}
		var data []byte
		switch kind := rapid.IntRange(0, 19).Draw(t, "kind"); {
		case kind == 0:
			data = configEntry(now, Config{
				SegmentBytes:     rapid.Int64Range(0, 3000).Draw(t, "segment bytes"),
				SegmentMs:        rapid.Int64Range(0, 2000).Draw(t, "segment ms"),
				ProducerMaxAgeMs: rapid.Int64Range(0, 1000).Draw(t, "max age"),
			})
		case kind == 1:
			data = startEntry(now, rapid.Int64Range(0, next+2).Draw(t, "start"))
		case kind < 8:
			n := rapid.IntRange(1, 4).Draw(t, "records")
			data = encodeEntry(KindBatch, now, build(t, n, rapid.IntRange(0, 900).Draw(t, "pad"), now, -1, -1, -1))
			next += int64(n)
		default:
			id, n := rapid.Int64Range(1, 3).Draw(t, "producer"), rapid.IntRange(1, 3).Draw(t, "records")
			seq := max(seqs[id]+rapid.SampledFrom([]int32{0, 0, 0, 0, -int32(n), 1}).Draw(t, "off"), 0)
			if rapid.IntRange(0, 5).Draw(t, "restart") == 0 {
				seq = 0
			}
			data = encodeEntry(KindBatch, now, build(t, n, 30, now, id, rapid.Int16Range(0, 1).Draw(t, "epoch"), seq))
			seqs[id] = seq + int32(n)
		}
		entries = append(entries, raftgroup.Entry{Index: ident.Index(k + 2), Term: term, Data: data})
	}
	return entries
}

// peer is a replica's state machine with its disk, its checkpoint and how far it has come.
type peer struct {
	mem     *vfs.MemFS
	full    int // writes that succeed before the disk is full; negative: never full
	sm      *StateMachine
	gen     int
	applied int

	blob    []byte
	files   []raftgroup.CaptureFile
	durable int // entries in the checkpoint
}

func (p *peer) dir() string { return fmt.Sprintf("g%d", p.gen) }

func (p *peer) fs() vfs.FS {
	return errorfs.Wrap(p.mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind != errorfs.OpFileWriteAt || p.full < 0 {
			return nil
		}
		if p.full == 0 {
			return syscall.ENOSPC
		}
		p.full--
		return nil
	}))
}

func newPeer(t fataler) *peer {
	p := &peer{mem: vfs.NewCrashableMem(), full: -1}
	p.sm = open(t, p.fs(), p.dir(), nil, nil)
	return p
}

// settle gives a state its one form: whether an expired producer was removed yet is nobody's business.
func settle(sm *StateMachine) { sm.producers.purge(sm.maxTime); sm.producers.commit(math.MinInt64) }

// TestReplicasAgree: replicas that get the same entries in different groupings,
// with crashes, full disks and snapshots on the way, have the same files, blobs
// and results (correctness rules 1 to 3).
func TestReplicasAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entries := history(t)
		reference := newPeer(t)
		var want []string
		for k := range entries {
			r, err := reference.sm.Apply(entries[k : k+1])
			if err != nil {
				t.Fatalf("entry %d: %v", k, err)
			}
			want = append(want, told(r[0]))
		}
		p := newPeer(t)
		p.blob, p.files = checkpoint(t, p.sm)
		for p.applied < len(entries) {
			switch rapid.IntRange(0, 9).Draw(t, "next") {
			case 0:
				p.blob, p.files = checkpoint(t, p.sm)
				p.durable = p.applied
			case 1:
				p.crash(t, rapid.SampledFrom([]int{0, 50, 100}).Draw(t, "unsynced"))
			case 2:
				p.install(t, entries, rapid.IntRange(p.applied, len(entries)).Draw(t, "snapshot at"))
			case 3:
				p.full = rapid.IntRange(0, 2).Draw(t, "writes left")
			default:
				p.apply(t, entries, want, rapid.IntRange(1, 20).Draw(t, "group"))
			}
		}
		settle(p.sm)
		settle(reference.sm)
		blob, files := checkpoint(t, p.sm)
		refBlob, refFiles := checkpoint(t, reference.sm)
		if !bytes.Equal(blob, refBlob) {
			t.Fatalf("blobs differ:\n%x\n%x", blob, refBlob)
		}
		if fmt.Sprint(files) != fmt.Sprint(refFiles) {
			t.Fatalf("files %v, want %v", files, refFiles)
		}
		for _, f := range files {
			got, want := content(t, p.mem, p.dir(), f), content(t, reference.mem, reference.dir(), f)
			if !bytes.Equal(got, want) {
				t.Fatalf("%s differs", f.Name)
			}
		}
		if err := p.sm.Verify(t.Context()); err != nil {
			t.Fatalf("verify: %v", err)
		}
	})
}

func told(r raftgroup.Result) string {
	o := r.(*outcome)
	return fmt.Sprintf("offset %d log start %d: %v", o.baseOffset, o.logStart, o.err)
}

func content(t fataler, fs vfs.FS, dir string, f raftgroup.CaptureFile) []byte {
	t.Helper()
	b, err := vfs.ReadFile(fs, fs.PathJoin(dir, f.Name), math.MaxInt32)
	if err != nil || int64(len(b)) < f.Size {
		t.Fatalf("%s: %d bytes: %v", f.Name, len(b), err)
	}
	return b[:f.Size]
}

func (p *peer) apply(t *rapid.T, entries []raftgroup.Entry, want []string, n int) {
	t.Helper()
	group := entries[p.applied:min(p.applied+n, len(entries))]
	settle(p.sm)
	before, view := p.encoded(t), *p.sm.view.Load()
	r, err := p.sm.Apply(group)
	if err != nil {
		if !vfs.IsNoSpace(err) {
			t.Fatalf("apply: %v", err)
		}
		settle(p.sm)
		if after := p.encoded(t); !bytes.Equal(after, before) {
			t.Fatalf("a full disk changed the state:\n%x\n%x", after, before)
		}
		if now := *p.sm.view.Load(); now.next != view.next || now.start != view.start {
			t.Fatalf("a full disk moved the offsets: [%d,%d)", now.start, now.next)
		}
		p.full = -1
		if r, err = p.sm.Apply(group); err != nil {
			t.Fatalf("apply again: %v", err)
		}
	}
	for k := range r {
		if got := told(r[k]); got != want[p.applied+k] {
			t.Fatalf("entry %d: %s, elsewhere %s", p.applied+k, got, want[p.applied+k])
		}
	}
	p.applied += len(group)
}

func (p *peer) encoded(t fataler) []byte {
	t.Helper()
	c, err := p.sm.Capture()
	if err != nil {
		t.Fatalf("capture: %v", err)
	}
	defer c.Release()
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		t.Fatalf("write: %v", err)
	}
	return b.Bytes()
}

func (p *peer) crash(t *rapid.T, unsynced int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	p.mem = p.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced, RNG: rng})
	p.full = -1
	p.sm = open(t, p.fs(), p.dir(), p.blob, p.files)
	p.applied = p.durable
}

// install gives the replica the checkpoint of one that is ahead, as a new generation.
func (p *peer) install(t *rapid.T, entries []raftgroup.Entry, at int) {
	t.Helper()
	donor := newPeer(t)
	if _, err := donor.sm.Apply(entries[:at]); err != nil {
		t.Fatalf("donor: %v", err)
	}
	blob, files := checkpoint(t, donor.sm)
	p.gen++
	if err := vfs.MkdirAllSync(p.mem, p.dir()); err != nil {
		t.Fatalf("%v", err)
	}
	for _, f := range files {
		if err := vfs.WriteFileSync(p.mem, p.mem.PathJoin(p.dir(), f.Name), content(t, donor.mem, donor.dir(), f), vfs.CategorySegment); err != nil {
			t.Fatalf("%v", err)
		}
	}
	if err := p.sm.Install(p.dir(), blob); err != nil {
		t.Fatalf("install: %v", err)
	}
	p.blob, p.files, p.applied, p.durable = blob, files, at, at
}

// TestOpenDamaged: a blob or a list of files that do not fit is ErrCorrupt.
func TestOpenDamaged(t *testing.T) {
	p := newPeer(t)
	for k := range 5 {
		if _, err := p.sm.Apply([]raftgroup.Entry{{Index: ident.Index(k + 2), Term: 3, Data: encodeEntry(KindBatch, 5, build(t, 2, 10, 1, 9, 0, int32(2*k)))}}); err != nil {
			t.Fatal(err)
		}
	}
	blob, files := checkpoint(t, p.sm)
	for n := range len(blob) {
		if _, err := (Opener{}).Open(p.mem, p.dir(), blob[:n:n], files); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("blob cut at byte %d: %v", n, err)
		}
	}
	if _, err := (Opener{}).Open(p.mem, p.dir(), append(bytes.Clone(blob), 0), files); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "behind byte") {
		t.Fatalf("longer blob: %v", err)
	}
	for _, other := range [][]raftgroup.CaptureFile{nil, {{Name: files[0].Name, Size: 1}}, {{Name: "other", Size: files[0].Size}}} {
		if _, err := (Opener{}).Open(p.mem, p.dir(), blob, other); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("files %v: %v", other, err)
		}
	}
}

// TestApplyDamaged: bytes that are no entry stop the replica and change nothing.
func TestApplyDamaged(t *testing.T) {
	good := encodeEntry(KindBatch, 7, plain(t, 1, 1))
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	for name, bad := range map[string][]byte{
		"short":        good[:5],
		"unknown kind": encodeEntry(9, 7, nil),
		"flipped bit":  flipped,
		"cut batch":    good[:len(good)-1],
		"two batches":  append(bytes.Clone(good), good[entryHeader:]...),
		"config":       encodeEntry(KindConfig, 7, []byte("{")),
		"log start":    encodeEntry(KindLogStart, 7, []byte("1234567")),
	} {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t)
			before := p.encoded(t)
			_, err := p.sm.Apply([]raftgroup.Entry{
				{Index: 5, Term: 1, Data: good},
				{Index: 6, Term: 1, Data: configEntry(9, Config{SegmentBytes: 5})},
				{Index: 7, Term: 1, Data: bad},
			})
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "entry 7") {
				t.Fatalf("got %v", err)
			}
			if after := p.encoded(t); !bytes.Equal(after, before) {
				t.Fatal("the state changed")
			}
		})
	}
}

// FuzzBlob decodes anything: no panic, and what is accepted encodes to the same bytes.
func FuzzBlob(f *testing.F) {
	p := newPeer(f)
	for k := range 8 {
		data := encodeEntry(KindBatch, 5, build(f, 2, 10, 1, int64(k%3), 0, int32(k/3*2)))
		if _, err := p.sm.Apply([]raftgroup.Entry{{Index: ident.Index(k + 2), Term: ident.Term(k/2 + 1), Data: data}}); err != nil {
			f.Fatal(err)
		}
	}
	blob, _ := checkpoint(f, p.sm)
	f.Add(blob)
	f.Add([]byte{blobVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		st, err := decodeState(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		var out bytes.Buffer
		if _, err := st.writeTo(&out); err != nil || !bytes.Equal(out.Bytes(), b) {
			t.Fatalf("decodes to something else: %v", err)
		}
	})
}

// FuzzApply applies any entry: a result or ErrCorrupt, never a panic.
func FuzzApply(f *testing.F) {
	f.Add(encodeEntry(KindBatch, 7, plain(f, 2, 1)))
	f.Add(encodeEntry(KindBatch, 7, build(f, 2, 5, 1, 4, 0, 0)))
	f.Add(configEntry(3, Config{SegmentBytes: 100}))
	f.Add(startEntry(3, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		defer alloctest.Bound(t, len(data))()
		p := newPeer(t)
		defer func() { _ = p.sm.Close() }()
		for range 2 {
			if _, err := p.sm.Apply([]raftgroup.Entry{{Index: 2, Term: 1, Data: data}}); err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
		}
	})
}
