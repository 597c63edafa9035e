package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"chronik/internal/ident"
	"chronik/internal/vfs"
)

// ask sends one request and returns status and body.
func ask(t testing.TB, s *Server, method string, r request) (status, []byte) {
	t.Helper()
	b, err := s.Handle(t.Context(), method, r.encode())
	noErr(t, err)
	return status(b[0]), b[1:]
}

func source(t testing.TB, opt ServerOptions) (*Server, *vfs.MemFS, tree) {
	t.Helper()
	fs := vfs.NewCrashableMem()
	files := tree{"a.log": noise(1, 3*ChunkBytes/2), "b.log": noise(2, 100)}
	files.write(t, fs, srcDir)
	state(t, fs, srcDir, 100, noise(3, 500), files.list("a.log", "b.log"))
	if opt.FS == nil {
		opt.FS = fs
	}
	s := NewServer(opt)
	t.Cleanup(func() { noErr(t, s.Close()) })
	return s, fs, files
}

func TestServerServesManifestAndChunks(t *testing.T) {
	s, fs, files := source(t, ServerOptions{})
	pin := must(s.Pin(testGroup, testReplica, srcDir, sinkNode))
	if pin.Files != 3 || pin.Point.Index != 100 || pin.ID == 0 {
		t.Fatalf("%+v", pin)
	}
	st, b := ask(t, s, MethodManifest, request{pin: pin.ID, length: ChunkBytes})
	if st != statusOK {
		t.Fatalf("status %d %s", st, b)
	}
	page := must(decodeManifestPage(b))
	m := must(DecodeManifest(page.data))
	if page.id != sha256.Sum256(page.data) || m.Bytes() != pin.Bytes {
		t.Fatal("manifest does not fit")
	}
	for i := range m.Files {
		f := &m.Files[i]
		want := files[f.Name]
		if f.Name == CheckpointName {
			want = must(vfs.ReadFile(fs, srcDir+"/checkpoint", 1<<20))
		}
		for c := range f.Chunks() {
			off, n := f.Range(c)
			_, got := ask(t, s, MethodChunk, request{pin: pin.ID, offset: off, length: ChunkBytes, name: f.Name})
			if sum := sha256.Sum256(got); !bytes.Equal(got, want[off:off+int64(n)]) || !bytes.Equal(sum[:], f.Hash(c)) {
				t.Fatalf("%s chunk %d differs", f.Name, c)
			}
		}
	}
	st, _ = ask(t, s, MethodDone, request{pin: pin.ID})
	if st != statusOK || s.Stats().Pins != 0 || s.Stats().PinnedFiles != 0 || s.Stats().PinnedBytes != 0 {
		t.Fatalf("after done: %+v", s.Stats())
	}
	if st, _ := ask(t, s, MethodChunk, request{pin: pin.ID, length: 1, name: "a.log"}); st != statusGone {
		t.Fatalf("status %d after the pin ended", st)
	}
}

func TestServerRefusals(t *testing.T) {
	s, _, _ := source(t, ServerOptions{})
	pin := must(s.Pin(testGroup, testReplica, srcDir, sinkNode))
	for name, c := range map[string]struct {
		method string
		r      request
		want   status
	}{
		"no such pin":   {MethodManifest, request{pin: pin.ID + 1, length: 1}, statusGone},
		"renew nothing": {MethodRenew, request{pin: pin.ID + 1}, statusGone},
		"no such file":  {MethodChunk, request{pin: pin.ID, length: 1, name: "c.log"}, statusError},
		"behind file":   {MethodChunk, request{pin: pin.ID, length: 1, offset: 100, name: "b.log"}, statusError},
		"no length":     {MethodChunk, request{pin: pin.ID, name: "b.log"}, statusError},
		"behind list":   {MethodManifest, request{pin: pin.ID, offset: 1 << 20, length: 1}, statusError},
		"end unknown":   {MethodDone, request{pin: pin.ID + 1}, statusOK},
	} {
		if st, b := ask(t, s, c.method, c.r); st != c.want {
			t.Errorf("%s: status %d %s", name, st, b)
		}
	}
	if _, err := s.Handle(t.Context(), "snapshot.other", request{}.encode()); err == nil {
		t.Error("unknown method answered")
	}
	if _, err := s.Handle(t.Context(), MethodChunk, []byte("junk")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("junk: %v", err)
	}
}

// A pin reads on while a newer checkpoint replaces its own and its files are unlinked.
func TestPinOutlivesFiles(t *testing.T) {
	s, fs, files := source(t, ServerOptions{})
	pin := must(s.Pin(testGroup, testReplica, srcDir, sinkNode))
	old := must(vfs.ReadFile(fs, srcDir+"/checkpoint", 1<<20))
	state(t, fs, srcDir, 200, nil, nil)
	noErr(t, fs.Remove(srcDir+"/a.log"))
	_, got := ask(t, s, MethodChunk, request{pin: pin.ID, offset: 10, length: 50, name: "a.log"})
	if !bytes.Equal(got, files["a.log"][10:60]) {
		t.Fatal("other bytes")
	}
	_, got = ask(t, s, MethodChunk, request{pin: pin.ID, length: ChunkBytes, name: CheckpointName})
	if !bytes.Equal(got, old) {
		t.Fatal("other checkpoint")
	}
	if got := s.Live(testGroup); !slices.Equal(got, []ident.Index{100}) {
		t.Fatalf("live: %v", got)
	}
	second := must(s.Pin(testGroup, testReplica, srcDir, 2))
	if got := s.Live(testGroup); !slices.Equal(got, []ident.Index{100, 200}) || second.Point.Index != 200 {
		t.Fatalf("live: %v", got)
	}
	s.Unpin(pin.ID)
	s.Unpin(pin.ID)
	if got := s.Live(testGroup); !slices.Equal(got, []ident.Index{200}) {
		t.Fatalf("live: %v", got)
	}
	if len(s.Live(testGroup+1)) != 0 {
		t.Fatal("pin of another group")
	}
}

func TestPinFailures(t *testing.T) {
	s, fs, _ := source(t, ServerOptions{})
	_, err := s.Pin(testGroup, testReplica, "/none", sinkNode)
	wantErr(t, err, ErrNoCheckpoint)
	_, err = s.Pin(testGroup+1, testReplica, srcDir, sinkNode)
	wantErr(t, err, ErrCorrupt)
	state(t, fs, srcDir, 300, nil, []DataFile{{"b.log", 101}})
	_, err = s.Pin(testGroup, testReplica, srcDir, sinkNode)
	wantErr(t, err, ErrCorrupt)
	state(t, fs, srcDir, 300, nil, []DataFile{{"c.log", 1}})
	if _, err = s.Pin(testGroup, testReplica, srcDir, sinkNode); err == nil || errors.Is(err, ErrNoCheckpoint) {
		t.Fatalf("missing file: %v", err)
	}
	if st := s.Stats(); st.Pins != 0 || st.PinnedFiles != 0 {
		t.Fatalf("%+v", st)
	}
	noErr(t, s.Close())
	state(t, fs, srcDir, 300, nil, nil)
	_, err = s.Pin(testGroup, testReplica, srcDir, sinkNode)
	wantErr(t, err, ErrClosed)
}

func TestPinCaps(t *testing.T) {
	for name, opt := range map[string]ServerOptions{
		"pins": {MaxPins: 1}, "files": {MaxPinnedFiles: 5},
	} {
		s, _, _ := source(t, opt)
		pin := must(s.Pin(testGroup, testReplica, srcDir, sinkNode))
		_, err := s.Pin(testGroup, testReplica, srcDir, sinkNode)
		if !errors.Is(err, ErrTooManyPins) {
			t.Fatalf("%s: %v", name, err)
		}
		s.Unpin(pin.ID)
		must(s.Pin(testGroup, testReplica, srcDir, sinkNode))
	}
}

func TestPinExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := source(t, ServerOptions{})
		pin := must(s.Pin(testGroup, testReplica, srcDir, sinkNode))
		for range 5 { // silence is broken in time
			time.Sleep(119 * time.Second)
			if st, _ := ask(t, s, MethodRenew, request{pin: pin.ID}); st != statusOK {
				t.Fatal("pin gone")
			}
		}
		time.Sleep(119 * time.Second)
		synctest.Wait()
		if len(s.Live(testGroup)) != 1 {
			t.Fatal("pin gone early")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := len(s.Live(testGroup)); n != 0 {
			t.Fatalf("%d pins", n)
		}
		if st, _ := ask(t, s, MethodRenew, request{pin: pin.ID}); st != statusGone {
			t.Fatal("an expired pin was renewed")
		}
		if st := s.Stats(); st.PinsExpired != 1 || st.PinnedFiles != 0 {
			t.Fatalf("%+v", st)
		}
	})
}

// reads asks for n bytes every d until the pin ends or limit has passed, and
// returns for how long that was.
func reads(t *testing.T, s *Server, pin uint64, n int, d, limit time.Duration) time.Duration {
	start := time.Now()
	for time.Since(start) < limit {
		if st, _ := ask(t, s, MethodChunk, request{pin: pin, length: n, name: "a.log"}); st == statusGone {
			break
		}
		time.Sleep(d)
	}
	return time.Since(start)
}

func TestPinNeedsAMinimumRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := source(t, ServerOptions{})
		slow := must(s.Pin(testGroup, testReplica, srcDir, sinkNode))
		if d := reads(t, s, slow.ID, 8, time.Second, time.Hour); d < 2*time.Minute || d > 3*time.Minute {
			t.Fatalf("8 B/s kept a pin for %s", d)
		}
		steady := must(s.Pin(testGroup, testReplica, srcDir, sinkNode))
		if d := reads(t, s, steady.ID, 16<<10, 10*time.Second, time.Hour); d < time.Hour {
			t.Fatalf("1.6 KB/s kept a pin only for %s", d)
		}
	})
}

func TestPinIsNotRenewedByRereading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := source(t, ServerOptions{})
		pin := must(s.Pin(testGroup, testReplica, srcDir, sinkNode))
		if d := reads(t, s, pin.ID, ChunkBytes, time.Second, time.Hour); d < 2*time.Minute || d > 5*time.Minute {
			t.Fatalf("the same chunk again and again kept a pin for %s", d)
		}
	})
}

func TestSlotsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := source(t, ServerOptions{MaxConcurrent: 1})
		first := must(s.Pin(testGroup, testReplica, srcDir, 2))
		second := must(s.Pin(testGroup, testReplica, srcDir, 3))
		chunk := func(p *Pin) status {
			st, _ := ask(t, s, MethodChunk, request{pin: p.ID, length: 1000, name: "a.log"})
			return st
		}
		if chunk(first) != statusOK {
			t.Fatal("no slot for the first")
		}
		start := time.Now()
		if chunk(second) != statusWait || time.Since(start) != longPoll {
			t.Fatalf("second was not told to wait, after %s", time.Since(start))
		}
		if ts := s.Transfers(); len(ts) != 2 || ts[0].State == ts[1].State {
			t.Fatalf("%+v", ts)
		}
		// The slot goes over as soon as it is free.
		got := make(chan status)
		go func() { got <- chunk(second) }()
		synctest.Wait()
		s.Unpin(first.ID)
		if st := <-got; st != statusOK {
			t.Fatalf("status %d", st)
		}
		// An idle holder loses it to whoever asks.
		third := must(s.Pin(testGroup, testReplica, srcDir, 4))
		time.Sleep(slotIdle)
		if chunk(third) != statusOK {
			t.Fatal("idle slot was not taken")
		}
		if chunk(second) != statusWait {
			t.Fatal("two slots were given")
		}
		s.Unpin(second.ID)
		s.Unpin(third.ID)
		if s.slots != shares || len(s.queue) != 0 || len(s.Transfers()) != 0 {
			t.Fatalf("%d slots, %d queued", s.slots, len(s.queue))
		}
	})
}

// The chunk hashes of a file are remembered: the next snapshot hashes what is new.
func TestHashesAreRemembered(t *testing.T) {
	mem := vfs.NewCrashableMem()
	var read atomic.Int64
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileReadAt && strings.HasSuffix(op.Path, ".log") {
			read.Add(1)
		}
		return nil
	}))
	files := tree{"a.log": noise(1, 5*ChunkBytes/2)}
	files.write(t, mem, srcDir)
	s, _, _ := source(t, ServerOptions{FS: fs})
	state(t, mem, srcDir, 100, nil, files.list("a.log"))
	count := func() int64 {
		read.Store(0)
		pin := must(s.Pin(testGroup, testReplica, srcDir, sinkNode))
		defer s.Unpin(pin.ID)
		m, _, err := s.Manifest(t.Context(), pin.ID)
		noErr(t, err)
		sum := sha256.Sum256(files["a.log"][2*ChunkBytes:])
		if m.Files[1].Chunks() != 3 || !bytes.Equal(m.Files[1].Hash(2), sum[:]) {
			t.Fatal("wrong hashes")
		}
		return read.Load()
	}
	if n := count(); n != 3 {
		t.Fatalf("%d reads for 3 chunks", n)
	}
	files["a.log"] = append(files["a.log"], noise(5, 100)...)
	files.write(t, mem, srcDir)
	state(t, mem, srcDir, 200, nil, files.list("a.log"))
	if n := count(); n != 1 {
		t.Fatalf("%d reads for the chunk that grew", n)
	}
	s.Forget(srcDir)
	if n := count(); n != 3 {
		t.Fatalf("%d reads after Forget", n)
	}
}

// Under a rate limit replies get shorter, so that none comes too late.
func TestRateLimitShortensReplies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := source(t, ServerOptions{MaxBytesPerSecond: 64 << 10})
		pin := must(s.Pin(testGroup, testReplica, srcDir, sinkNode))
		start := time.Now()
		for range 32 {
			if _, b := ask(t, s, MethodChunk, request{pin: pin.ID, length: ChunkBytes, name: "a.log"}); len(b) != 4<<10 {
				t.Fatalf("%d bytes", len(b))
			}
		}
		if d := time.Since(start); d < 1900*time.Millisecond || d > 2100*time.Millisecond {
			t.Fatalf("128 KiB took %s", d)
		}
	})
}

func TestHashCacheIsBounded(t *testing.T) {
	var c hashCache
	const each = 1 << 20
	for i := range 20 {
		c.put(string(rune('a'+i)), make([]byte, each))
		c.get("a", 1) // stays
	}
	if c.bytes > hashCacheBytes || len(c.files) != hashCacheBytes/each || c.order.Len() != len(c.files) {
		t.Fatalf("%d bytes in %d files", c.bytes, len(c.files))
	}
	if len(c.get("a", 2)) != 64 || c.get("b", 1) != nil {
		t.Fatal("wrong file was dropped")
	}
}

func TestServerCloseEndsPins(t *testing.T) {
	s, _, _ := source(t, ServerOptions{})
	pin := must(s.Pin(testGroup, testReplica, srcDir, sinkNode))
	noErr(t, s.Close())
	if st, _ := ask(t, s, MethodChunk, request{pin: pin.ID, length: 1, name: "a.log"}); st != statusGone {
		t.Fatalf("status %d", st)
	}
	_, _, err := s.Manifest(context.Background(), pin.ID)
	wantErr(t, err, ErrPinGone)
}
