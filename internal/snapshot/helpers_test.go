package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"chronik/internal/ident"
	"chronik/internal/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testGroup   = ident.GroupID(7)
	testReplica = ident.ReplicaID(70)
	sourceNode  = ident.NodeID(1)
	sinkNode    = ident.NodeID(3)
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func noErr(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("got error %v, want %v", err, target)
	}
}

// noise is n bytes that depend on seed only.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// tree is a set of data files by name.
type tree map[string][]byte

func (tr tree) write(t testing.TB, fs vfs.FS, dir string) {
	t.Helper()
	noErr(t, vfs.MkdirAllSync(fs, dir))
	for name, b := range tr {
		f := must(fs.Create(path.Join(dir, name), vfs.CategorySegment))
		must(f.Write(bytes.Clone(b)))
		noErr(t, errors.Join(f.Sync(), f.Close()))
	}
	noErr(t, vfs.SyncDir(fs, dir))
}

func (tr tree) list(names ...string) []DataFile {
	var files []DataFile
	for _, n := range names {
		files = append(files, DataFile{n, int64(len(tr[n]))})
	}
	return files
}

func blobOf(b []byte) func(io.Writer) (int64, error) {
	return func(w io.Writer) (int64, error) {
		n, err := w.Write(b)
		return int64(n), err
	}
}

// state writes a checkpoint at index over files, in dir.
func state(t testing.TB, fs vfs.FS, dir string, index ident.Index, blob []byte, files []DataFile) Checkpoint {
	t.Helper()
	noErr(t, vfs.MkdirAllSync(fs, dir))
	ck := Checkpoint{
		Group: testGroup,
		Point: Point{Index: index, Term: 4, ConfState: []byte("conf"), Members: []byte("members"), ConfGeneration: 2},
		Files: files, CreatedAt: time.Unix(1700000000, 0).UTC(),
	}
	must(Write(fs, dir, ck, Zstd, blobOf(blob)))
	return ck
}

// wire connects receivers to servers; hook may replace a call.
type wire struct {
	servers map[ident.NodeID]*Server
	hook    func(ctx context.Context, node ident.NodeID, method string, req []byte, next func() ([]byte, error)) ([]byte, error)
	calls   atomic.Int64
}

func (w *wire) Call(ctx context.Context, node ident.NodeID, method string, req []byte) ([]byte, error) {
	w.calls.Add(1)
	next := func() ([]byte, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s := w.servers[node]
		if s == nil {
			return nil, fmt.Errorf("node %d is unreachable", node)
		}
		return s.Handle(ctx, method, req)
	}
	if w.hook != nil {
		return w.hook(ctx, node, method, req, next)
	}
	return next()
}

// rig is a source with a pinned checkpoint and a sink's receiver.
type rig struct {
	t      testing.TB
	srcFS  *vfs.MemFS
	fs     *vfs.MemFS // the sink's
	server *Server
	pin    *Pin
	wire   *wire
	recv   *Receiver
	files  tree
	ck     Checkpoint
	blob   []byte
	opt    FetchOptions
	peers  []ident.NodeID // named in the offer
}

const (
	srcDir  = "/src/g1"
	sinkDir = "/sink"
)

func newRig(t testing.TB, files tree, names ...string) *rig {
	t.Helper()
	g := &rig{t: t, srcFS: vfs.NewCrashableMem(), fs: vfs.NewCrashableMem(), files: files, blob: noise(99, 2000)}
	files.write(t, g.srcFS, srcDir)
	g.ck = state(t, g.srcFS, srcDir, 100, g.blob, files.list(names...))
	g.server = NewServer(ServerOptions{FS: g.srcFS})
	t.Cleanup(func() { noErr(t, g.server.Close()) })
	g.pin = must(g.server.Pin(testGroup, testReplica, srcDir, sinkNode))
	g.wire = &wire{servers: map[ident.NodeID]*Server{sourceNode: g.server}}
	g.opt = FetchOptions{Base: sinkDir, Live: 1, Next: 2, Node: sinkNode, Priority: PriorityVoter}
	g.newReceiver(ReceiverOptions{})
	return g
}

func (g *rig) newReceiver(opt ReceiverOptions) {
	opt.FS = g.fs
	g.recv = NewReceiver(opt)
}

func (g *rig) offer() Offer {
	o := g.pin.Offer(sourceNode)
	o.Peers = g.peers
	return o
}

func (g *rig) fetch() (*Staged, error) {
	return g.recv.Fetch(g.t.Context(), g.offer(), g.opt, g.wire)
}

// check compares the generation in fs with the source's state.
func (g *rig) check(fs vfs.FS, dir string) {
	g.t.Helper()
	ck, blob, err := Read(fs, dir)
	noErr(g.t, err)
	if ck.Point.Index != g.ck.Point.Index || !bytes.Equal(blob, g.blob) {
		g.t.Fatalf("%s: checkpoint at %d with %d bytes of blob", dir, ck.Point.Index, len(blob))
	}
	for _, f := range ck.Files {
		got, err := vfs.ReadFile(fs, path.Join(dir, f.Name), 1<<30)
		noErr(g.t, err)
		if int64(len(got)) < f.Size || !bytes.Equal(got[:f.Size], g.files[f.Name]) {
			g.t.Fatalf("%s/%s differs", dir, f.Name)
		}
	}
	if names := must(vfs.List(fs, dir)); len(names) != len(ck.Files)+1 {
		g.t.Fatalf("%s holds %v", dir, names)
	}
}

// idle asserts that nothing is left of transfers.
func (g *rig) idle() {
	g.t.Helper()
	if ts := g.recv.Transfers(); len(ts) != 0 {
		g.t.Fatalf("transfers left: %+v", ts)
	}
	if g.recv.reserved != 0 {
		g.t.Fatalf("%d bytes left reserved", g.recv.reserved)
	}
	g.recv.slots.mu.Lock()
	defer g.recv.slots.mu.Unlock()
	if g.recv.slots.free != shares*g.recv.opt.MaxConcurrent || len(g.recv.slots.waiting) != 0 {
		g.t.Fatalf("slots: %d free, %d waiting", g.recv.slots.free, len(g.recv.slots.waiting))
	}
}

func flip(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}
