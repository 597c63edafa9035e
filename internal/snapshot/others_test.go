package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"chronik/internal/alloctest"
	"chronik/internal/ident"
	"chronik/internal/vfs"
)

// store is a ChunkSource over a tree.
type store struct {
	name   string
	files  tree
	spoil  func(ctx context.Context, b []byte) ([]byte, error)
	reads  atomic.Int64
	closed atomic.Bool
}

func (s *store) Name() string { return s.name }
func (s *store) Close()       { s.closed.Store(true) }

func (s *store) ReadChunk(ctx context.Context, f *ManifestFile, i int, _ []byte) ([]byte, error) {
	s.reads.Add(1)
	off, n := f.Range(i)
	b := s.files[f.Name]
	if int64(len(b)) < off+int64(n) {
		return nil, ErrNoChunk
	}
	b = bytes.Clone(b[off : off+int64(n)])
	if s.spoil != nil {
		return s.spoil(ctx, b)
	}
	return b, nil
}

// follower adds a node with the same files to the rig, checkpointed at index, and
// names it in the offer.
func (g *rig) follower(node ident.NodeID, index ident.Index, files tree, names ...string) *Server {
	g.t.Helper()
	fs := vfs.NewCrashableMem()
	dir := "/peer/g3"
	files.write(g.t, fs, dir)
	state(g.t, fs, dir, index, []byte("its own"), files.list(names...))
	s := NewServer(ServerOptions{FS: fs})
	s.SetFinder(func(_ context.Context, group ident.GroupID, _ ident.Index) (string, ident.ReplicaID, error) {
		if group != testGroup {
			return "", 0, errors.New("no such group")
		}
		return dir, 72, nil
	})
	g.t.Cleanup(func() { noErr(g.t, s.Close()) })
	g.wire.servers[node] = s
	g.peers = append(g.peers, node)
	return s
}

func given(from []SourceBytes, source string) int64 {
	for _, s := range from {
		if s.Source == source {
			return s.Bytes
		}
	}
	return 0
}

// Whatever a ChunkSource does, the snapshot arrives, from the next source if need
// be; one that misbehaves is left alone and one line says so.
func TestChunkSourceFails(t *testing.T) {
	files := tree{"0.log": noise(1, 20*mib)}
	for name, c := range map[string]struct {
		spoil func(ctx context.Context, b []byte) ([]byte, error)
		reads int64 // at most: the checkpoint's chunk, then four at a time
		least int64 // bytes taken from it
		text  string
	}{
		"gives all":     {nil, 21, 20 * mib, ""},
		"has nothing":   {func(context.Context, []byte) ([]byte, error) { return nil, ErrNoChunk }, 21, 0, ""},
		"wrong bytes":   {func(_ context.Context, b []byte) ([]byte, error) { return flip(b, 5), nil }, 5, 1, "hash differs"},
		"cut":           {func(_ context.Context, b []byte) ([]byte, error) { return b[:len(b)-1], nil }, 5, 1, "hash differs"},
		"nothing, well": {func(context.Context, []byte) ([]byte, error) { return nil, nil }, 5, 0, "0 bytes"},
		"fails": {func(context.Context, []byte) ([]byte, error) {
			return nil, errors.New("bucket is not there")
		}, 6, 0, "bucket is not there"},
		"hangs": {func(ctx context.Context, _ []byte) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() }, 6, 0, "deadline"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newRig(t, files, "0.log")
				var log bytes.Buffer
				g.newReceiver(ReceiverOptions{Logger: slog.New(slog.NewTextHandler(&syncWriter{w: &log}, nil))})
				s := &store{name: "object store", files: files, spoil: c.spoil}
				g.opt.More = []ChunkSource{s}
				start := time.Now()
				got := must(g.fetch())
				g.check(g.fs, got.Dir)
				if d := time.Since(start); d > 10*time.Second {
					t.Errorf("took %s", d)
				}
				if n := s.reads.Load(); n > c.reads {
					t.Errorf("asked %d times", n)
				}
				if n := given(got.From, "object store"); n < c.least {
					t.Errorf("gave %d bytes: %v", n, got.From)
				}
				if n := given(got.From, "node 1"); c.text == "" && c.least > 0 && n > overhead {
					t.Errorf("the leader gave %d bytes", n)
				}
				want := min(1, len(c.text))
				if n := strings.Count(log.String(), "Left a snapshot source alone"); n != want || !strings.Contains(log.String(), c.text) {
					t.Errorf("logged %d times: %s", n, log.String())
				}
				g.idle()
			})
		})
	}
}

type syncWriter struct {
	mu sync.Mutex
	w  *bytes.Buffer
}

func (s *syncWriter) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(b)
}

// A source that failed is asked again after a rest, so that it need not stand by
// for the whole of a long transfer.
func TestChunkSourceComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		files := tree{"0.log": noise(1, 20*mib)}
		g := newRig(t, files, "0.log")
		g.newReceiver(ReceiverOptions{Parallel: 1})
		g.wire.hook = link(mib) // a chunk takes a second
		start := time.Now()
		s := &store{name: "object store", files: files, spoil: func(_ context.Context, b []byte) ([]byte, error) {
			if time.Since(start) < 4*time.Second {
				return nil, errors.New("away")
			}
			return b, nil
		}}
		g.opt.More = []ChunkSource{s}
		got := must(g.fetch())
		g.check(g.fs, got.Dir)
		if n := given(got.From, "object store"); n < 10*mib || n > 16*mib {
			t.Fatalf("gave %d bytes", n)
		}
		if n := s.reads.Load(); n > 20 {
			t.Fatalf("asked %d times", n)
		}
	})
}

// One that gave wrong bytes does not come back: it would cost bytes each time.
func TestWrongChunkSourceStaysAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		files := tree{"0.log": noise(1, 20*mib)}
		g := newRig(t, files, "0.log")
		g.newReceiver(ReceiverOptions{Parallel: 1})
		g.wire.hook = link(mib) // a chunk takes a second
		s := &store{name: "object store", files: files, spoil: func(_ context.Context, b []byte) ([]byte, error) { return flip(b, 9), nil }}
		g.opt.More = []ChunkSource{s}
		g.check(g.fs, must(g.fetch()).Dir)
		if n := s.reads.Load(); n != 2 { // the checkpoint, which it lacks, and a chunk
			t.Fatalf("asked %d times", n)
		}
	})
}

// The leader of a receiver that has other sources sends the manifest and the
// checkpoint: less than a twentieth of the snapshot. The followers share the load.
func TestLeaderSendsLittle(t *testing.T) {
	files := tree{"0.log": noise(1, 12*mib), "1.log": noise(2, 12*mib+1000), "2.log": noise(3, 3*mib/2)}
	names := []string{"0.log", "1.log", "2.log"}
	for _, c := range []struct {
		name  string
		store tree
	}{{"followers and store", tree{"0.log": files["0.log"]}}, {"followers alone", nil}} {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t, files, names...)
			if c.store != nil {
				g.opt.More = []ChunkSource{&store{name: "object store", files: c.store}}
			}
			longer := tree{"0.log": files["0.log"], "1.log": files["1.log"], "2.log": append(bytes.Clone(files["2.log"]), noise(9, 70000)...)}
			a := g.follower(2, 120, longer, names...)
			b := g.follower(4, 100, files, names...)
			g.opt.Node = sinkNode
			got := must(g.fetch())
			g.check(g.fs, got.Dir)
			total := int64(25*mib + mib/2 + 1000)
			if sent := g.server.Stats().BytesSent; sent*20 >= total || sent == 0 {
				t.Errorf("the leader sent %d of %d bytes", sent, total)
			}
			fa, fb, fs := given(got.From, "node 2"), given(got.From, "node 4"), given(got.From, "object store")
			if fa < total/5 || fb < total/5 || fa+fb+fs != total || c.store != nil && fs != 12*mib {
				t.Errorf("from %v", got.From)
			}
			for node, s := range map[ident.NodeID]*Server{2: a, 4: b} {
				if st := s.Stats(); st.Pins != 0 || st.PinnedFiles != 0 || st.PinsMade != 1 {
					t.Errorf("node %d: %+v", node, st)
				}
			}
			if st := g.recv.Stats(); st.BytesReceived != got.BytesReceived || len(st.From) != len(got.From) {
				t.Errorf("%+v", st)
			}
			g.idle()
		})
	}
}

// A follower whose checkpoint is older lacks the end; the leader gives that alone.
func TestFollowerIsBehind(t *testing.T) {
	files := tree{"0.log": noise(1, 3*mib), "1.log": noise(2, 3*mib)}
	g := newRig(t, files, "0.log", "1.log")
	g.follower(2, 60, tree{"0.log": files["0.log"], "1.log": files["1.log"][:mib+5]}, "0.log", "1.log")
	got := must(g.fetch())
	g.check(g.fs, got.Dir)
	if n := given(got.From, "node 2"); n != 4*mib {
		t.Errorf("from %v", got.From)
	}
}

// A follower that does not serve costs nothing but a line: it has no such group,
// is full, is an older program, is away, gives wrong bytes, loses the pin.
func TestFollowerFails(t *testing.T) {
	files := tree{"0.log": noise(1, 8*mib)}
	for name, fail := range map[string]func(g *rig, s *Server){
		"no group": func(_ *rig, s *Server) {
			s.SetFinder(func(context.Context, ident.GroupID, ident.Index) (string, ident.ReplicaID, error) {
				return "", 0, errors.New("no replica")
			})
		},
		"serves nobody": func(_ *rig, s *Server) { s.SetFinder(nil) },
		"no slot": func(_ *rig, s *Server) {
			for n := range ident.NodeID(2) {
				s.acquire(context.Background(), must(s.pin(testGroup, 72, "/peer/g3", 40+n, false)).ID)
			}
		},
		"away": func(g *rig, _ *Server) { delete(g.wire.servers, 2) },
		"older program": func(g *rig, _ *Server) {
			g.wire.hook = func(_ context.Context, n ident.NodeID, m string, _ []byte, next func() ([]byte, error)) ([]byte, error) {
				if n == 2 && m == MethodOpen {
					return nil, errors.New("unknown method")
				}
				return next()
			}
		},
		"wrong bytes": func(g *rig, _ *Server) {
			g.wire.hook = func(_ context.Context, n ident.NodeID, m string, _ []byte, next func() ([]byte, error)) ([]byte, error) {
				b, err := next()
				if n == 2 && m == MethodChunk {
					b = flip(b, len(b)-1)
				}
				return b, err
			}
		},
		"opens wrongly": func(g *rig, _ *Server) {
			g.wire.hook = func(_ context.Context, n ident.NodeID, m string, _ []byte, next func() ([]byte, error)) ([]byte, error) {
				b, err := next()
				if n == 2 && m == MethodOpen {
					b = b[:len(b)-1]
				}
				return b, err
			}
		},
		"hangs": func(g *rig, _ *Server) {
			g.wire.hook = func(ctx context.Context, n ident.NodeID, _ string, _ []byte, next func() ([]byte, error)) ([]byte, error) {
				if n == 2 {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				return next()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newRig(t, files, "0.log")
				fail(g, g.follower(2, 100, files, "0.log"))
				var log bytes.Buffer
				g.newReceiver(ReceiverOptions{Logger: slog.New(slog.NewTextHandler(&syncWriter{w: &log}, nil))})
				start := time.Now()
				got := must(g.fetch())
				g.check(g.fs, got.Dir)
				if d := time.Since(start); name != "hangs" && d > time.Second {
					t.Errorf("took %s", d) // a follower that says no is not waited for
				}
				if n := given(got.From, "node 1"); n < 8*mib {
					t.Errorf("from %v", got.From)
				}
				if n := strings.Count(log.String(), "Left a snapshot source alone"); n != 1 {
					t.Errorf("logged %d times: %s", n, log.String())
				}
			})
		})
	}
}

// A pin that a follower lost is opened again. Its log is not held by the pin.
func TestFollowerLosesThePin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		files := tree{"0.log": noise(1, 20*mib)}
		g := newRig(t, files, "0.log")
		s := g.follower(2, 100, files, "0.log")
		g.opt.Node = sinkNode
		g.newReceiver(ReceiverOptions{Parallel: 1})
		var n atomic.Int64
		g.wire.hook = hookEvery(MethodChunk, func() {
			if len(s.Live(testGroup)) != 0 {
				t.Error("an opened pin holds the log")
			}
			if n.Add(1) == 10 {
				for _, o := range s.Transfers() {
					if o.Peer != sinkNode || o.Direction != Outgoing {
						t.Errorf("%+v", o)
					}
					s.Unpin(o.Pin)
				}
			}
		})
		got := must(g.fetch())
		g.check(g.fs, got.Dir)
		if st := s.Stats(); st.PinsMade != 2 || st.Pins != 0 || given(got.From, "node 2") < 18*mib {
			t.Fatalf("%+v, from %v", st, got.From)
		}
	})
}

// While every byte comes from elsewhere the leader's pin lives.
func TestPinLivesWhileOthersServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		files := tree{"0.log": noise(1, 300*mib/4)}
		g := newRig(t, files, "0.log")
		g.newReceiver(ReceiverOptions{Parallel: 1})
		g.opt.More = []ChunkSource{&store{name: "object store", files: files, spoil: func(_ context.Context, b []byte) ([]byte, error) {
			time.Sleep(2 * time.Second)
			return b, nil
		}}}
		got := must(g.fetch())
		if g.server.Stats().Pins != 1 || given(got.From, "object store") != 300*mib/4 {
			t.Fatalf("%+v, from %v", g.server.Stats(), got.From)
		}
	})
}

// A node that opens again ends the pin it had: a receiver that crashes and comes
// back does not pile them up.
func TestOpenAgainEndsTheFirst(t *testing.T) {
	g := newRig(t, tree{})
	s := g.follower(2, 100, tree{"0.log": noise(1, 5)}, "0.log")
	open := func(node ident.NodeID) openedPin {
		b := must(s.Handle(t.Context(), MethodOpen, openRequest{group: testGroup, node: node}.encode()))
		if status(b[0]) != statusOK {
			t.Fatalf("%q", b)
		}
		return must(decodeOpenedPin(b[1:]))
	}
	open(3)
	open(4)
	p := open(3)
	if n := s.Stats().Pins; n != 2 || p.index != 100 || fmt.Sprint(p.files) != "[{0.log 5}]" {
		t.Fatalf("%d pins, %+v", n, p)
	}
}

func TestOpenRoundTrip(t *testing.T) {
	r := openRequest{group: 1 << 63, index: 7, node: 3}
	p := openedPin{pin: 5, index: 6, files: []DataFile{{"a.log", 9}, {"b", 0}}}
	enc, body := r.encode(), p.encode()[1:]
	if got := must(decodeOpenRequest(enc)); got != r {
		t.Fatalf("%+v", got)
	}
	if got := must(decodeOpenedPin(body)); fmt.Sprint(got) != fmt.Sprint(p) {
		t.Fatalf("%+v", got)
	}
	for _, node := range []ident.NodeID{0, -1} { // 0 would be a pin of this node's own, for ever
		if _, err := decodeOpenRequest(openRequest{group: 1, index: 7, node: node}.encode()); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("node %d: %v", node, err)
		}
	}
	for i := range enc {
		if _, err := decodeOpenRequest(enc[:i]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	for i := range body {
		if _, err := decodeOpenedPin(body[:i]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	if _, err := decodeOpenedPin(append(bytes.Clone(body[:16]), 0xFF, 0xFF, 0xFF, 0xFF)); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
}

func FuzzDecodeOpen(f *testing.F) {
	f.Add(openRequest{group: 1, index: 2, node: 3}.encode())
	f.Add(openedPin{pin: 1, index: 2, files: []DataFile{{"a", 1}}}.encode()[1:])
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		if r, err := decodeOpenRequest(b); err == nil && !bytes.Equal(r.encode(), b) {
			t.Fatalf("request %x", b)
		}
		if p, err := decodeOpenedPin(b); err == nil && !bytes.Equal(p.encode()[1:], b) {
			t.Fatalf("pin %x", b)
		}
	})
}

// An offer with peers is an offer to a receiver that does not know of them: they
// are sources that have no such pin.
func TestOfferPeersAreSourcesWithoutPin(t *testing.T) {
	g := newRig(t, tree{"0.log": noise(1, 3*mib)}, "0.log")
	g.follower(2, 100, g.files, "0.log")
	o := must(DecodeOffer(g.offer().Append(nil)))
	if len(o.Sources) != 1 || fmt.Sprint(o.Peers) != "[2]" {
		t.Fatalf("%+v", o)
	}
	o.Sources = append(o.Sources, OfferSource{Node: 2})
	o.Peers = nil
	got := must(g.recv.Fetch(t.Context(), o, g.opt, g.wire))
	g.check(g.fs, got.Dir)
	noErr(t, g.recv.Done(t.Context(), o, g.wire))
	if _, err := DecodeOffer(Offer{Sources: []OfferSource{{1, 0}}}.Append(nil)); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
}

// A chunk that the leader holds corrupted comes whole from another source when only
// the rest of it was asked of the leader.
func TestLeadersCorruptRestComesFromElsewhere(t *testing.T) {
	files := tree{"0.log": noise(1, 2*mib)}
	g := newRig(t, files, "0.log")
	tree{"0.log": files["0.log"][:mib+100]}.write(t, g.fs, GenDir(sinkDir, 1))
	g.opt.More = []ChunkSource{&store{name: "object store", files: files}}
	g.wire.hook = func(_ context.Context, n ident.NodeID, m string, req []byte, next func() ([]byte, error)) ([]byte, error) {
		b, err := next()
		if m == MethodChunk && n == sourceNode && strings.HasSuffix(must(decodeRequest(req)).name, ".log") {
			b = flip(b, len(b)-1)
		}
		return b, err
	}
	got := must(g.fetch())
	g.check(g.fs, got.Dir)
	if given(got.From, "object store") != mib {
		t.Fatalf("from %v", got.From)
	}
	if b := must(vfs.ReadFile(g.fs, path.Join(got.Dir, "0.log"), 1<<30)); !bytes.Equal(b, files["0.log"]) {
		t.Fatal("other bytes")
	}
}
