package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"chronik/internal/alloctest"
	"chronik/internal/ident"
)

// askPrefix sends one request for hashes and returns status and body.
func askPrefix(t testing.TB, s *Server, r prefixRequest) (status, []byte) {
	t.Helper()
	b, err := s.Handle(t.Context(), MethodPrefixHash, r.encode())
	noErr(t, err)
	return status(b[0]), b[1:]
}

// A segment of small records: what is here is not fetched again.
func TestFetchSmallSegment(t *testing.T) {
	const record = 100
	g := newRig(t, tree{"0.log": noise(1, 201*record)}, "0.log")
	local := tree{"0.log": g.files["0.log"][:150*record]}
	local.write(t, g.fs, GenDir(sinkDir, 1))
	state(t, g.fs, GenDir(sinkDir, 1), 10, nil, local.list("0.log"))
	got := must(g.fetch())
	g.check(g.fs, got.Dir)
	ckBytes := must(g.fs.Stat(got.Dir + "/checkpoint")).Size()
	const change = 800 // the manifest, and the hashes of prefixes
	if got.BytesReused != 150*record || got.BytesReceived > ckBytes+51*record+change {
		t.Fatalf("received %d, reused %d", got.BytesReceived, got.BytesReused)
	}
	if st := g.recv.Stats(); st.BytesReused != 150*record || st.BytesReceived != got.BytesReceived {
		t.Fatalf("%+v", st)
	}
	if sent := g.server.Stats().BytesSent; sent > got.BytesReceived {
		t.Fatalf("sent %d, received %d", sent, got.BytesReceived)
	}
	g.idle()
}

func TestServerHashesPrefixes(t *testing.T) {
	s, fs, files := source(t, ServerOptions{})
	// A crash left bytes behind the length that the checkpoint names.
	tree{"b.log": append(bytes.Clone(files["b.log"]), noise(9, 50)...)}.write(t, fs, srcDir)
	pin := must(s.Pin(testGroup, testReplica, srcDir, sinkNode))
	for _, c := range []struct {
		name    string
		chunk   uint32
		lengths []int
	}{
		{"a.log", 0, []int{1, prefixBlock, prefixBlock + 1, ChunkBytes - 1, ChunkBytes}},
		{"a.log", 1, []int{ChunkBytes / 2}},
		{"b.log", 0, []int{1, 2, 3, 4, 5, 6, 7, 100}},
	} {
		st, b := askPrefix(t, s, prefixRequest{pin: pin.ID, name: c.name, chunk: c.chunk, lengths: c.lengths})
		if st != statusOK || len(b) != len(c.lengths)*sha256.Size {
			t.Fatalf("%s: status %d, %d bytes", c.name, st, len(b))
		}
		for i, n := range c.lengths {
			if sum := sha256.Sum256(files[c.name][c.chunk*ChunkBytes:][:n]); !bytes.Equal(b[i*sha256.Size:][:sha256.Size], sum[:]) {
				t.Errorf("%s chunk %d: hash of %d bytes differs", c.name, c.chunk, n)
			}
		}
	}
	for name, c := range map[string]struct {
		r    prefixRequest
		want status
	}{
		"behind the checkpoint's length": {prefixRequest{pin: pin.ID, name: "b.log", lengths: []int{50, 101}}, statusError},
		"chunk behind the file":          {prefixRequest{pin: pin.ID, name: "b.log", chunk: 1, lengths: []int{1}}, statusError},
		"chunk far behind the file":      {prefixRequest{pin: pin.ID, name: "b.log", chunk: 1<<32 - 1, lengths: []int{1}}, statusError},
		"no such file":                   {prefixRequest{pin: pin.ID, name: "c.log", lengths: []int{1}}, statusError},
		"no such pin":                    {prefixRequest{pin: pin.ID + 1, name: "b.log", lengths: []int{1}}, statusGone},
	} {
		if st, b := askPrefix(t, s, c.r); st != c.want {
			t.Errorf("%s: status %d %s", name, st, b)
		}
	}
	if _, err := s.Handle(t.Context(), MethodPrefixHash, []byte("junk")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("junk: %v", err)
	}
	s.Unpin(pin.ID)
	if st := s.Stats(); st.PinnedFiles != 0 || st.BytesSent != 14*sha256.Size {
		t.Errorf("%+v", st)
	}
}

// A source that does not answer, answers wrongly or lies costs the whole chunk
// and no more.
func TestPrefixUnanswered(t *testing.T) {
	files := tree{"0.log": noise(1, 10000), "1.log": noise(2, 20000), "2.log": noise(3, 30000)}
	local := tree{"0.log": flip(files["0.log"][:5000], 0), "1.log": files["1.log"][:5000], "2.log": files["2.log"][:5000]}
	lie := func(r prefixRequest) []byte {
		b := []byte{byte(statusOK)}
		for _, n := range r.lengths {
			sum := sha256.Sum256(local[r.name][:n])
			b = append(b, sum[:]...)
		}
		return b
	}
	for name, c := range map[string]struct {
		reply  func(r prefixRequest) ([]byte, error)
		reused int64
		asked  int64
	}{
		"unknown method": {func(prefixRequest) ([]byte, error) { return nil, errors.New("unknown method") }, 0, prefixTries},
		"refused":        {func(prefixRequest) ([]byte, error) { return textReply(statusError, "no"), nil }, 0, prefixTries},
		"empty":          {func(prefixRequest) ([]byte, error) { return nil, nil }, 0, prefixTries},
		"bad status":     {func(prefixRequest) ([]byte, error) { return []byte{9}, nil }, 0, prefixTries},
		"no hash":        {func(prefixRequest) ([]byte, error) { return []byte{byte(statusOK)}, nil }, 0, prefixTries},
		"half a hash":    {func(r prefixRequest) ([]byte, error) { b := lie(r); return b[:len(b)-1], nil }, 0, prefixTries},
		"a hash too many": {func(r prefixRequest) ([]byte, error) {
			return append(lie(r), make([]byte, sha256.Size)...), nil
		}, 0, prefixTries},
		"other hashes": {func(r prefixRequest) ([]byte, error) { return make([]byte, 1+len(r.lengths)*sha256.Size), nil }, 0, 3},
		"lies":         {func(r prefixRequest) ([]byte, error) { return lie(r), nil }, 10000, 3},
	} {
		t.Run(name, func(t *testing.T) {
			g := newRig(t, files, "0.log", "1.log", "2.log")
			local.write(t, g.fs, GenDir(sinkDir, 1))
			g.newReceiver(ReceiverOptions{Parallel: 1})
			var asked atomic.Int64
			g.wire.hook = func(_ context.Context, _ ident.NodeID, m string, req []byte, next func() ([]byte, error)) ([]byte, error) {
				if m != MethodPrefixHash {
					return next()
				}
				asked.Add(1)
				return c.reply(must(decodePrefixRequest(req)))
			}
			got := must(g.fetch())
			g.check(g.fs, got.Dir)
			if got.BytesReused != c.reused || asked.Load() != c.asked {
				t.Fatalf("reused %d bytes, asked %d times", got.BytesReused, asked.Load())
			}
			g.idle()
		})
	}
}

// A question that hangs does not end the transfer, nor does one that has to wait.
func TestPrefixHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, tree{"0.log": noise(1, 10000), "1.log": noise(2, 10000), "2.log": noise(3, 10000)}, "0.log", "1.log", "2.log")
		for name, b := range g.files {
			tree{name: b[:5000]}.write(t, g.fs, GenDir(sinkDir, 1))
		}
		g.newReceiver(ReceiverOptions{Parallel: 1})
		g.wire.hook = func(ctx context.Context, _ ident.NodeID, m string, _ []byte, next func() ([]byte, error)) ([]byte, error) {
			if m == MethodPrefixHash {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return next()
		}
		start := time.Now()
		g.check(g.fs, must(g.fetch()).Dir)
		if d, limit := time.Since(start), prefixTries*10*time.Second/prefixPatience; d > limit {
			t.Fatalf("took %s", d)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, tree{"0.log": noise(1, 10000)}, "0.log")
		tree{"0.log": g.files["0.log"][:5000]}.write(t, g.fs, GenDir(sinkDir, 1))
		var n atomic.Int64
		g.wire.hook = func(_ context.Context, _ ident.NodeID, m string, _ []byte, next func() ([]byte, error)) ([]byte, error) {
			if k := n.Add(1); m == MethodPrefixHash && k < 500 {
				return waitReply(uint64(k)), nil
			}
			return next()
		}
		got := must(g.fetch())
		g.check(g.fs, got.Dir)
		if got.BytesReused != 5000 {
			t.Fatalf("reused %d", got.BytesReused)
		}
	})
}

// When what follows the prefix arrives damaged, the whole chunk is fetched once;
// what was taken for reused is not counted so.
func TestPrefixThenDamage(t *testing.T) {
	g := newRig(t, tree{"0.log": noise(1, 10000)}, "0.log")
	tree{"0.log": g.files["0.log"][:5000]}.write(t, g.fs, GenDir(sinkDir, 1))
	var asked []int64
	g.wire.hook = func(_ context.Context, _ ident.NodeID, m string, req []byte, next func() ([]byte, error)) ([]byte, error) {
		b, err := next()
		if m != MethodChunk {
			return b, err
		}
		if r := must(decodeRequest(req)); r.name == "0.log" {
			if asked = append(asked, r.offset); len(asked) == 1 {
				b = flip(b, len(b)-1)
			}
		}
		return b, err
	}
	got := must(g.fetch())
	g.check(g.fs, got.Dir)
	if got.BytesReused != 0 || !slices.Equal(asked, []int64{5000, 0}) {
		t.Fatalf("reused %d, asked from %d", got.BytesReused, asked)
	}
}

// Local bytes that cannot be read when it comes to it are fetched.
func TestPrefixUnreadable(t *testing.T) {
	g := newRig(t, tree{"0.log": noise(1, 10000)}, "0.log")
	tree{"0.log": g.files["0.log"][:5000]}.write(t, g.fs, GenDir(sinkDir, 1))
	state(t, g.fs, GenDir(sinkDir, 1), 10, nil, []DataFile{{"0.log", 4000}})
	fs := errorfs.Wrap(g.fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileReadAt && strings.HasPrefix(op.Path, GenDir(sinkDir, 1)) {
			return errors.New("input/output error")
		}
		return nil
	}))
	g.recv = NewReceiver(ReceiverOptions{FS: fs})
	got := must(g.fetch())
	g.check(g.fs, got.Dir)
	if got.BytesReused != 0 {
		t.Fatalf("reused %d", got.BytesReused)
	}
}

// A part file that an earlier, shorter snapshot left gives its last chunk as a prefix.
func TestPrefixOfPart(t *testing.T) {
	g := newRig(t, tree{"0.log": noise(1, 2*mib)}, "0.log")
	tree{"0.log.part": append(make([]byte, mib), g.files["0.log"][mib:mib+7000]...)}.write(t, g.fs, StagingDir(sinkDir, 2))
	got := must(g.fetch())
	g.check(g.fs, got.Dir)
	if got.BytesReused != 7000 {
		t.Fatalf("reused %d", got.BytesReused)
	}
}

// The questions go by the rate limit like everything else, and so does the rest.
func TestPrefixUnderRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, tree{"0.log": noise(1, mib)}, "0.log")
		tree{"0.log": g.files["0.log"][:mib/2]}.write(t, g.fs, GenDir(sinkDir, 1))
		s := NewServer(ServerOptions{FS: g.srcFS, MaxBytesPerSecond: 64 << 10})
		defer func() { noErr(t, s.Close()) }()
		g.wire.servers[sourceNode] = s
		g.pin = must(s.Pin(testGroup, testReplica, srcDir, sinkNode))
		start := time.Now()
		got := must(g.fetch())
		g.check(g.fs, got.Dir)
		if d := time.Since(start); got.BytesReused != mib/2 || d < 7*time.Second || d > 9*time.Second {
			t.Fatalf("half a MiB at 64 KiB/s took %s, reused %d", d, got.BytesReused)
		}
	})
}

// A Fetch that is cut off after a prefix was placed goes on from it.
func TestPrefixThenResume(t *testing.T) {
	g := newRig(t, tree{"0.log": noise(1, 2*mib+10000)}, "0.log")
	tree{"0.log": g.files["0.log"][:mib+mib/2]}.write(t, g.fs, GenDir(sinkDir, 1))
	g.newReceiver(ReceiverOptions{Parallel: 1})
	ctx, cancel := context.WithCancel(t.Context())
	g.wire.hook = func(_ context.Context, _ ident.NodeID, m string, req []byte, next func() ([]byte, error)) ([]byte, error) {
		if m == MethodChunk && must(decodeRequest(req)).offset == 2*mib {
			cancel()
		}
		return next()
	}
	_, err := g.recv.Fetch(ctx, g.offer(), g.opt, g.wire)
	wantErr(t, err, context.Canceled)
	g.idle()
	noErr(t, g.fs.Remove(path.Join(GenDir(sinkDir, 1), "0.log"))) // the staging must do
	g.wire.hook = nil
	got := must(g.fetch())
	g.check(g.fs, got.Dir)
	if got.BytesReused < 2*mib || got.BytesReceived > 10000+overhead {
		t.Fatalf("received %d, reused %d", got.BytesReceived, got.BytesReused)
	}
}

func TestPrefixLengths(t *testing.T) {
	mf := &ManifestFile{Size: 2*ChunkBytes + 5000}
	for _, c := range []struct {
		name   string
		chunk  int
		locals []localFile
		want   []int
	}{
		{"nothing here", 0, nil, nil},
		{"ends elsewhere", 0, []localFile{{"a", ChunkBytes + 10, 0}}, nil},
		{"ends with the chunk", 0, []localFile{{"a", ChunkBytes, 0}}, nil},
		{"ends with the file", 2, []localFile{{"a", 2*ChunkBytes + 5000, 0}}, nil},
		{"longer than the file", 2, []localFile{{"a", 3 * ChunkBytes, 0}}, nil},
		{"short", 1, []localFile{{"a", ChunkBytes + 10, 0}}, []int{10}},
		{"halves", 2, []localFile{{"a", 2*ChunkBytes + 4096, 0}}, []int{1024, 2048, 4096}},
		{"checkpointed", 2, []localFile{{"a", 3 * ChunkBytes, 2*ChunkBytes + 1500}}, []int{1500}},
		{"both", 2, []localFile{{"a", 2*ChunkBytes + 3000, 2*ChunkBytes + 2900}}, []int{1500, 2900, 3000}},
		{"checkpoint beyond the file", 1, []localFile{{"a", ChunkBytes + 10, ChunkBytes + 20}}, []int{10}},
		{"two files", 1, []localFile{{"a", ChunkBytes + 10, 0}, {"b", ChunkBytes + 20, ChunkBytes + 10}}, []int{10, 20}},
		{"at most eight", 1, []localFile{{"a", 2*ChunkBytes - 1, ChunkBytes + 7}}, []int{7, 16383, 32767, 65535, 131071, 262143, 524287, 1048575}},
	} {
		if got := prefixLengths(mf, c.chunk, c.locals); !slices.Equal(got, c.want) {
			t.Errorf("%s: %d", c.name, got)
		}
	}
	var many []localFile
	for i := range int64(20) {
		many = append(many, localFile{"a", 100 + 2*i, 99 + 2*i})
	}
	if got := prefixLengths(mf, 0, many); len(got) != maxPrefixes || !slices.IsSorted(got) {
		t.Error(got)
	}
	p := filePlan{mf: mf, have: make([]bool, 3)}
	for _, l := range many {
		p.addLocal(l)
	}
	if len(p.locals) != maxPrefixFiles {
		t.Errorf("%d files", len(p.locals))
	}
}

func TestPrefixRequestRoundTrip(t *testing.T) {
	r := prefixRequest{pin: 1<<64 - 1, chunk: 7, name: "a.log", lengths: []int{1, 500, ChunkBytes}}
	enc := r.encode()
	if got := must(decodePrefixRequest(enc)); !reflect.DeepEqual(got, r) {
		t.Fatalf("got %+v", got)
	}
	for i := range enc {
		if _, err := decodePrefixRequest(enc[:i]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	for name, r := range map[string]prefixRequest{
		"no length":     {name: "a"},
		"zero":          {name: "a", lengths: []int{0}},
		"above a chunk": {name: "a", lengths: []int{ChunkBytes + 1}},
		"same twice":    {name: "a", lengths: []int{5, 5}},
		"descending":    {name: "a", lengths: []int{5, 4}},
		"too many":      {name: "a", lengths: []int{1, 2, 3, 4, 5, 6, 7, 8, 9}},
		"no name":       {lengths: []int{1}},
		"escaping name": {name: "../a", lengths: []int{1}},
	} {
		if _, err := decodePrefixRequest(r.encode()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := decodePrefixRequest(append(enc, 0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("trailing: %v", err)
	}
	if _, err := decodePrefixRequest(flip(enc, 0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("version: %v", err)
	}
}

func FuzzDecodePrefixRequest(f *testing.F) {
	f.Add(prefixRequest{pin: 1, chunk: 2, name: "a.log", lengths: []int{3, 4}}.encode())
	f.Add(prefixRequest{pin: 1, name: "a", lengths: []int{ChunkBytes}}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		r, err := decodePrefixRequest(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if n := len(r.lengths); n == 0 || n > maxPrefixes || r.lengths[0] < 1 || r.lengths[n-1] > ChunkBytes || !slices.IsSorted(r.lengths) {
			t.Fatalf("lengths %d", r.lengths)
		}
		if !bytes.Equal(r.encode(), b) {
			t.Fatalf("%x became %+v", b, r)
		}
	})
}
