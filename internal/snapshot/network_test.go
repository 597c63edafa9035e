package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"chronik/internal/ident"
	"chronik/internal/vfs"
)

var errNoSpaceForTest = &vfsError{syscall.ENOSPC}

type vfsError struct{ err error }

func (e *vfsError) Error() string { return "write: " + e.err.Error() }
func (e *vfsError) Unwrap() error { return e.err }

type hook = func(ctx context.Context, node ident.NodeID, method string, req []byte, next func() ([]byte, error)) ([]byte, error)

// hookOnce runs f before the first call of a method.
func hookOnce(method string, f func()) hook {
	var once sync.Once
	return hookEvery(method, func() { once.Do(f) })
}

// hookEvery runs f before every call of a method.
func hookEvery(method string, f func()) hook {
	return func(_ context.Context, _ ident.NodeID, m string, _ []byte, next func() ([]byte, error)) ([]byte, error) {
		if m == method {
			f()
		}
		return next()
	}
}

// A source that stops answering is noticed by lack of progress; the next Fetch
// goes on where this one stopped.
func TestSourceHangs(t *testing.T) {
	for _, method := range []string{MethodFiles, MethodHashes, MethodChunk} {
		synctest.Test(t, func(t *testing.T) {
			g := newRig(t, threeFiles(), threeNames...)
			g.newReceiver(ReceiverOptions{Parallel: 1})
			var n atomic.Int64
			g.wire.hook = func(ctx context.Context, _ ident.NodeID, m string, _ []byte, next func() ([]byte, error)) ([]byte, error) {
				if m == method && (method != MethodChunk || n.Add(1) > 9) {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				return next()
			}
			start := time.Now()
			_, err := g.fetch()
			wantErr(t, err, ErrStalled)
			if d := time.Since(start); d < 10*time.Second || d > 12*time.Second {
				t.Fatalf("noticed after %s", d)
			}
			g.idle()
			g.wire.hook = nil
			got := must(g.fetch())
			g.check(g.fs, got.Dir)
			if method == MethodChunk && got.BytesReused < mib {
				t.Fatalf("only %d bytes were kept", got.BytesReused)
			}
		})
	}
}

// link passes rate bytes a second, one reply after the other.
func link(rate int) hook {
	var mu sync.Mutex
	var free time.Time
	return func(ctx context.Context, _ ident.NodeID, _ string, _ []byte, next func() ([]byte, error)) ([]byte, error) {
		b, err := next()
		mu.Lock()
		if now := time.Now(); free.Before(now) {
			free = now
		}
		free = free.Add(time.Duration(len(b)) * time.Second / time.Duration(rate))
		wait := time.Until(free)
		mu.Unlock()
		select {
		case <-time.After(wait):
			return b, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// A slow link takes long and succeeds; one that carries next to nothing ends,
// here and as a pin.
func TestSlowLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, tree{"0.log": noise(1, 2*mib)}, "0.log")
		g.wire.hook = link(10 << 10)
		start := time.Now()
		got := must(g.fetch())
		g.check(g.fs, got.Dir)
		if d := time.Since(start); d < 200*time.Second || d > 300*time.Second {
			t.Fatalf("2 MiB at 10 KiB/s took %s", d)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, tree{"0.log": noise(1, 2*mib)}, "0.log")
		g.wire.hook = link(8)
		_, err := g.fetch()
		wantErr(t, err, ErrStalled)
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if g.server.Stats().Pins != 0 {
			t.Fatal("pin left")
		}
	})
}

func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, tree{"0.log": noise(1, 2*mib)}, "0.log")
		s := NewServer(ServerOptions{FS: g.srcFS, MaxBytesPerSecond: 64 << 10})
		defer func() { noErr(t, s.Close()) }()
		g.wire.servers[sourceNode] = s
		g.pin = must(s.Pin(testGroup, testReplica, srcDir, sinkNode))
		start := time.Now()
		g.check(g.fs, must(g.fetch()).Dir)
		// The first second's worth is the bucket's.
		if d := time.Since(start); d < 31*time.Second || d > 35*time.Second {
			t.Fatalf("2 MiB at 64 KiB/s took %s", d)
		}
	})
}

// Each wrong answer is asked once more; two in a row fail the transfer and say
// where.
func TestSourceSendsWrongBytes(t *testing.T) {
	for name, spoil := range map[string]func([]byte) []byte{
		"flipped":    func(b []byte) []byte { return flip(b, len(b)-1) },
		"too long":   func(b []byte) []byte { return append(bytes.Clone(b), 0) },
		"empty":      func([]byte) []byte { return nil },
		"only ok":    func(b []byte) []byte { return b[:1] },
		"bad status": func(b []byte) []byte { return append([]byte{9}, b[1:]...) },
		"short wait": func([]byte) []byte { return []byte{byte(statusWait), 1} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newRig(t, threeFiles(), threeNames...)
				g.check(g.fs, must(g.fetchSpoiled(spoil, 1)).Dir)
			})
			synctest.Test(t, func(t *testing.T) {
				g := newRig(t, threeFiles(), threeNames...)
				_, err := g.fetchSpoiled(spoil, 2)
				if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "node 1") {
					t.Fatal(err)
				}
				if _, err := g.fs.Stat(GenDir(sinkDir, 2)); err == nil {
					t.Fatal("generation was made")
				}
				g.idle()
			})
		})
	}
}

// fetchSpoiled fetches while the first answers for one chunk are spoiled.
func (g *rig) fetchSpoiled(spoil func([]byte) []byte, times int64) (*Staged, error) {
	g.newReceiver(ReceiverOptions{Parallel: 1})
	var n atomic.Int64
	g.wire.hook = func(_ context.Context, _ ident.NodeID, m string, req []byte, next func() ([]byte, error)) ([]byte, error) {
		b, err := next()
		if r := must(decodeRequest(req)); m == MethodChunk && r.name == "1.log" && r.offset == mib && n.Add(1) <= times {
			b = spoil(b)
		}
		return b, err
	}
	return g.fetch()
}

func TestSourceSendsWrongManifest(t *testing.T) {
	hostile := func(f func(m *Manifest)) func(p *manifestPage) {
		return func(p *manifestPage) {
			m := must(DecodeManifest(bytes.Clone(p.data)))
			f(m)
			p.data = m.Append(nil)
			p.total = int64(len(p.data))
			p.id = sha256.Sum256(p.data)
		}
	}
	for name, c := range map[string]struct {
		change func(p *manifestPage)
		want   error
	}{
		"other id":        {func(p *manifestPage) { p.id[0]++ }, ErrCorrupt},
		"too long":        {func(p *manifestPage) { p.total = MaxManifestBytes + 1 }, ErrTooLarge},
		"endless":         {func(p *manifestPage) { p.data = nil }, ErrCorrupt},
		"more than total": {func(p *manifestPage) { p.total-- }, ErrCorrupt},
		"escaping name":   {hostile(func(m *Manifest) { m.Files[1].Name = "../0.log" }), ErrCorrupt},
		"huge size":       {hostile(func(m *Manifest) { m.Files[1].Size = 1 << 62 }), ErrCorrupt},
		"file left out":   {hostile(func(m *Manifest) { m.Files = m.Files[:2] }), ErrMismatch},
		"other size":      {hostile(func(m *Manifest) { m.Files[1].Size-- }), ErrMismatch},
		"other name":      {hostile(func(m *Manifest) { m.Files[1].Name = "other" }), ErrMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newRig(t, threeFiles(), threeNames...)
				g.wire.hook = func(_ context.Context, _ ident.NodeID, m string, _ []byte, next func() ([]byte, error)) ([]byte, error) {
					if m == MethodFiles {
						return nil, errors.New("unknown method") // of the version before
					}
					b, err := next()
					if m == MethodManifest {
						p := must(decodeManifestPage(b[1:]))
						c.change(&p)
						b = p.encode()
					}
					return b, err
				}
				_, err := g.fetch()
				if !errors.Is(err, c.want) {
					t.Error(err)
				}
				g.idle()
			})
		})
	}
}

// A source that lists wrong files or gives wrong hashes costs an error, never a
// generation; one that lists them once is asked for the whole manifest.
func TestSourceListsWrongFiles(t *testing.T) {
	listed := func(f func(p *openedPin)) func(b []byte) []byte {
		return func(b []byte) []byte {
			p := must(decodeOpenedPin(b[1:]))
			f(&p)
			return p.encode()
		}
	}
	for name, c := range map[string]struct {
		method string
		change func(b []byte) []byte
		want   error // nil: the manifest helps
	}{
		"no checkpoint":  {MethodFiles, listed(func(p *openedPin) { p.files = p.files[1:] }), nil},
		"no files":       {MethodFiles, listed(func(p *openedPin) { p.files = nil }), nil},
		"twice":          {MethodFiles, listed(func(p *openedPin) { p.files[2].Name = p.files[1].Name }), nil},
		"escaping name":  {MethodFiles, listed(func(p *openedPin) { p.files[1].Name = "../0.log" }), nil},
		"huge":           {MethodFiles, listed(func(p *openedPin) { p.files[1].Size = maxFileBytes }), nil},
		"cut":            {MethodFiles, func(b []byte) []byte { return b[:len(b)-1] }, nil},
		"file left out":  {MethodFiles, listed(func(p *openedPin) { p.files = p.files[:2] }), ErrMismatch},
		"other size":     {MethodFiles, listed(func(p *openedPin) { p.files[1].Size-- }), ErrMismatch},
		"other name":     {MethodFiles, listed(func(p *openedPin) { p.files[1].Name = "other" }), ErrMismatch},
		"other hash":     {MethodHashes, func(b []byte) []byte { return flip(b, 1) }, ErrCorrupt},
		"no hash":        {MethodHashes, func(b []byte) []byte { return b[:1] }, ErrCorrupt},
		"half a hash":    {MethodHashes, func(b []byte) []byte { return b[:17] }, ErrCorrupt},
		"too many":       {MethodHashes, func(b []byte) []byte { return append(bytes.Clone(b), make([]byte, 1<<20)...) }, ErrCorrupt},
		"status":         {MethodHashes, func([]byte) []byte { return []byte{7} }, ErrCorrupt},
		"refuses":        {MethodHashes, func([]byte) []byte { return textReply(statusError, "no") }, ErrSource},
		"lost the pin":   {MethodHashes, func([]byte) []byte { return textReply(statusGone, "no") }, ErrPinGone},
		"waits, garbled": {MethodFiles, func([]byte) []byte { return []byte{byte(statusWait)} }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newRig(t, threeFiles(), threeNames...)
				g.wire.hook = func(_ context.Context, _ ident.NodeID, m string, _ []byte, next func() ([]byte, error)) ([]byte, error) {
					b, err := next()
					if m == c.method {
						b = c.change(b)
					}
					return b, err
				}
				got, err := g.fetch()
				if !errors.Is(err, c.want) {
					t.Fatal(err)
				}
				if c.want == nil {
					g.check(g.fs, got.Dir)
				} else if _, err := g.fs.Stat(GenDir(sinkDir, 2)); err == nil {
					t.Fatal("generation was made")
				}
				g.idle()
			})
		})
	}
}

// The first file is fetched while the source still hashes the others.
func TestFetchBeginsBeforeAllIsHashed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, threeFiles(), threeNames...)
		src := &slowReads{FS: g.srcFS, dir: srcDir + "/2.log", d: time.Minute}
		s := NewServer(ServerOptions{FS: src})
		defer func() { noErr(t, s.Close()) }()
		g.wire.servers[sourceNode] = s
		g.pin = must(s.Pin(testGroup, testReplica, srcDir, sinkNode))
		start := time.Now()
		var last time.Duration
		g.wire.hook = func(_ context.Context, _ ident.NodeID, m string, req []byte, next func() ([]byte, error)) ([]byte, error) {
			if m == MethodChunk && must(decodeRequest(req)).name == "1.log" {
				last = time.Since(start) + 1
			}
			return next()
		}
		g.newReceiver(ReceiverOptions{Parallel: 1, ProgressTimeout: 5 * time.Minute})
		got := must(g.fetch())
		g.check(g.fs, got.Dir)
		m, id, err := s.Manifest(t.Context(), g.pin.ID)
		noErr(t, err)
		if last > 30*time.Second || last == 0 || got.Manifest != id || len(m.Files) != got.Files {
			t.Fatalf("1.log was fetched after %v; manifest %x, want %x", last, got.Manifest, id)
		}
	})
}

// A second source serves what the first cannot.
func TestSecondSource(t *testing.T) {
	for name, fail := range map[string]func(g *rig){
		"unreachable": func(g *rig) {
			g.wire.hook = func(_ context.Context, n ident.NodeID, m string, _ []byte, next func() ([]byte, error)) ([]byte, error) {
				if n == sourceNode && m == MethodChunk {
					return nil, errors.New("connection refused")
				}
				return next()
			}
		},
		"pin gone": func(g *rig) {
			var n atomic.Int64
			g.wire.hook = hookEvery(MethodChunk, func() {
				if n.Add(1) == 10 {
					g.server.Unpin(g.pin.ID)
				}
			})
		},
		"gone at once": func(g *rig) { g.server.Unpin(g.pin.ID) },
		"wrong bytes": func(g *rig) {
			g.wire.hook = func(_ context.Context, n ident.NodeID, m string, _ []byte, next func() ([]byte, error)) ([]byte, error) {
				b, err := next()
				if n == sourceNode && m == MethodChunk {
					b = flip(b, len(b)-1)
				}
				return b, err
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newRig(t, threeFiles(), threeNames...)
				other := NewServer(ServerOptions{FS: g.srcFS})
				defer func() { noErr(t, other.Close()) }()
				g.wire.servers[2] = other
				pin := must(other.Pin(testGroup, testReplica, srcDir, sinkNode))
				o := g.offer()
				o.Sources = append(o.Sources, OfferSource{2, pin.ID})
				fail(g)
				got := must(g.recv.Fetch(t.Context(), o, g.opt, g.wire))
				g.check(g.fs, got.Dir)
			})
		})
	}
}

func TestSourceGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, threeFiles(), threeNames...)
		g.server.Unpin(g.pin.ID)
		start := time.Now()
		_, err := g.fetch()
		wantErr(t, err, ErrPinGone)
		delete(g.wire.servers, sourceNode)
		_, err = g.fetch()
		if err == nil || !strings.Contains(err.Error(), "unreachable") || time.Since(start) > 5*time.Second {
			t.Fatalf("after %s: %v", time.Since(start), err)
		}
		g.idle()
	})
}

// A broken disk at the source travels as a refusal.
func TestSourceCannotRead(t *testing.T) {
	g := newRig(t, threeFiles(), threeNames...)
	fs := errorfs.Wrap(g.srcFS, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileReadAt && strings.HasSuffix(op.Path, "2.log") && op.Offset == 0 {
			return errors.New("read 2.log at byte 0: input/output error")
		}
		return nil
	}))
	s := NewServer(ServerOptions{FS: fs})
	defer func() { noErr(t, s.Close()) }()
	g.wire.servers[sourceNode] = s
	pin := must(s.Pin(testGroup, testReplica, srcDir, sinkNode))
	_, err := g.recv.Fetch(t.Context(), pin.Offer(sourceNode), g.opt, g.wire)
	wantErr(t, err, ErrSource)
	if !strings.Contains(err.Error(), "2.log") || !strings.Contains(err.Error(), "byte") {
		t.Fatal(err)
	}
}

func TestFetchCancelled(t *testing.T) {
	g := newRig(t, threeFiles(), threeNames...)
	g.newReceiver(ReceiverOptions{Parallel: 1})
	ctx, cancel := context.WithCancel(t.Context())
	var n atomic.Int64
	g.wire.hook = hookEvery(MethodChunk, func() {
		if n.Add(1) == 6 {
			cancel()
		}
	})
	_, err := g.recv.Fetch(ctx, g.offer(), g.opt, g.wire)
	wantErr(t, err, context.Canceled)
	g.idle()
	got := must(g.fetch())
	g.check(g.fs, got.Dir)
	if got.BytesReused == 0 {
		t.Fatal("nothing was kept")
	}
}

// While it waits for a slot, a Fetch is listed, keeps its pin, and goes by priority.
func TestQueueKeepsPins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, tree{"0.log": noise(1, 10)}, "0.log")
		g.newReceiver(ReceiverOptions{MaxConcurrent: 1})
		// Who is done has said so before the next one's chunk arrives.
		g.wire.hook = hookEvery(MethodChunk, func() { time.Sleep(time.Second) })
		noErr(t, g.recv.slots.acquire(t.Context(), PriorityMeta, shares, time.Hour, nil)) // somebody else runs
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		for name, p := range map[string]Priority{"/learner": PriorityLearner, "/meta": PriorityMeta, "/voter": PriorityVoter} {
			pin := must(g.server.Pin(testGroup, testReplica, srcDir, sinkNode))
			opt := g.opt
			opt.Base, opt.Priority = name, p
			wg.Go(func() {
				must(g.recv.Fetch(t.Context(), pin.Offer(sourceNode), opt, g.wire))
				mu.Lock()
				defer mu.Unlock()
				order = append(order, name)
			})
		}
		time.Sleep(time.Hour)
		if ts := g.recv.Transfers(); len(ts) != 3 || ts[0].State != StateQueued {
			t.Fatalf("%+v", ts)
		}
		if n := g.server.Stats().Pins; n != 3 { // and the rig's own has expired
			t.Fatalf("%d pins", n)
		}
		g.recv.slots.release(1) // for one small one after the other
		wg.Wait()
		if strings.Join(order, " ") != "/meta /voter /learner" {
			t.Fatal(order)
		}
		g.recv.slots.release(shares - 1)
		g.idle()
	})
}

func TestQueueEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, tree{"0.log": noise(1, 10)}, "0.log")
		g.newReceiver(ReceiverOptions{MaxConcurrent: 1})
		noErr(t, g.recv.slots.acquire(t.Context(), PriorityMeta, shares, time.Hour, nil))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := g.recv.Fetch(ctx, g.offer(), g.opt, g.wire)
		wantErr(t, err, context.DeadlineExceeded)
		g.server.Unpin(g.pin.ID)
		_, err = g.fetch() // learns it at the next renewal
		wantErr(t, err, ErrPinGone)
		g.recv.slots.release(shares)
		g.idle()
	})
}

// Hashing at the source and at the sink may take long: both sides say they live.
func TestLongHashing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, threeFiles(), threeNames...)
		g.files.write(t, g.fs, GenDir(sinkDir, 1))
		slow := &slowReads{FS: g.fs, dir: GenDir(sinkDir, 1), d: 9 * time.Second}
		g.recv = NewReceiver(ReceiverOptions{FS: slow})
		src := &slowReads{FS: g.srcFS, dir: srcDir, d: 5 * time.Second}
		s := NewServer(ServerOptions{FS: src, PinExpiry: 40 * time.Second})
		defer func() { noErr(t, s.Close()) }()
		g.wire.servers[sourceNode] = s
		g.pin = must(s.Pin(testGroup, testReplica, srcDir, sinkNode))
		start := time.Now()
		got := must(g.fetch())
		g.check(g.fs, got.Dir)
		if d := time.Since(start); d < 60*time.Second {
			t.Fatalf("took only %s", d)
		}
		if s.Stats().Pins != 1 {
			t.Fatal("the pin expired while its receiver was busy")
		}
	})
}

// slowReads delays every read below dir.
type slowReads struct {
	vfs.FS
	dir string
	d   time.Duration
}

func (s *slowReads) Open(name string, opts ...pebblevfs.OpenOption) (vfs.File, error) {
	f, err := s.FS.Open(name, opts...)
	if err != nil || !strings.HasPrefix(name, s.dir) {
		return f, err
	}
	return &slowFile{f, s.d}, nil
}

type slowFile struct {
	vfs.File
	d time.Duration
}

func (f *slowFile) ReadAt(p []byte, off int64) (int, error) {
	time.Sleep(f.d)
	return f.File.ReadAt(p, off)
}
