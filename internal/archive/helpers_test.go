package archive

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"path"
	"testing"
	"time"

	"go.uber.org/goleak"

	"chronik/internal/bucket"
	"chronik/internal/ident"
	"chronik/internal/snapshot"
	"chronik/internal/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testCluster = "AbCdEfGhIjKlMnOpQrStUv"
	testGroup   = ident.GroupID(7)
	mib         = snapshot.ChunkBytes
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
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(b)
	return b
}

// node is a replica with a checkpoint, on a memory disk.
type node struct {
	t      testing.TB
	fs     *vfs.MemFS
	dir    string
	server *snapshot.Server
	files  map[string][]byte
	names  []string
	index  ident.Index
}

func newNode(t testing.TB) *node {
	n := &node{t: t, fs: vfs.NewCrashableMem(), dir: "/replica/g1", files: map[string][]byte{}}
	noErr(t, vfs.MkdirAllSync(n.fs, n.dir))
	n.server = snapshot.NewServer(snapshot.ServerOptions{FS: n.fs})
	t.Cleanup(func() { noErr(t, n.server.Close()) })
	return n
}

// append adds bytes to a data file.
func (n *node) append(name string, b []byte) {
	n.t.Helper()
	if n.files[name] == nil {
		n.names = append(n.names, name)
	}
	n.files[name] = append(n.files[name], b...)
	f := must(n.fs.Create(path.Join(n.dir, name), vfs.CategorySegment))
	must(f.Write(bytes.Clone(n.files[name])))
	noErr(n.t, errors.Join(f.Sync(), f.Close()))
	n.server.Forget(n.dir)
}

// checkpoint takes one at index.
func (n *node) checkpoint(index ident.Index) {
	n.t.Helper()
	n.index = index
	ck := snapshot.Checkpoint{
		Group: testGroup, Point: snapshot.Point{Index: index, Term: 3, ConfState: []byte("conf"), Members: []byte("members")},
		CreatedAt: time.Unix(1700000000, 0).UTC(),
	}
	for _, name := range n.names {
		ck.Files = append(ck.Files, snapshot.DataFile{Name: name, Size: int64(len(n.files[name]))})
	}
	blob := noise(uint64(index), 500)
	must(snapshot.Write(n.fs, n.dir, ck, snapshot.None, func(w io.Writer) (int64, error) {
		k, err := w.Write(blob)
		return int64(k), err
	}))
}

func (n *node) checkpointBytes() int64 {
	return must(n.fs.Stat(path.Join(n.dir, snapshot.CheckpointName))).Size()
}

// pinned is a pin as an upload reads it.
type pinned struct {
	s  *snapshot.Server
	id uint64
}

func (p pinned) ReadPinned(ctx context.Context, file string, b []byte, off int64) error {
	return p.s.ReadPinned(ctx, p.id, file, b, off)
}

// upload uploads the current checkpoint under a claim.
func (n *node) upload(ctx context.Context, cl *Claim) (Uploaded, error) {
	n.t.Helper()
	pin, err := n.server.Pin(testGroup, 70, n.dir, 0)
	noErr(n.t, err)
	defer n.server.Unpin(pin.ID)
	man, _, err := n.server.Manifest(ctx, pin.ID)
	if err != nil {
		return Uploaded{}, err
	}
	info := Info{
		Name: "orders-0", Topic: "orders", TopicID: "tid", Key: "tid-0", Kind: 2, Index: pin.Point.Index, Term: pin.Point.Term,
		Node: 1, CreatedAt: time.Unix(1700000000, 0).UTC(), LogStartOffset: 0, NextOffset: -1,
	}
	return cl.Upload(ctx, info, man, pinned{n.server, pin.ID})
}

// check compares a download with the node's files.
func (n *node) check(fs vfs.FS, dir string) {
	n.t.Helper()
	ck, blob, err := snapshot.Read(fs, dir)
	noErr(n.t, err)
	if ck.Point.Index != n.index || !bytes.Equal(blob, noise(uint64(n.index), 500)) {
		n.t.Fatalf("downloaded index %d, want %d", ck.Point.Index, n.index)
	}
	for _, f := range ck.Files {
		got := must(vfs.ReadFile(fs, path.Join(dir, f.Name), 1<<30))
		if !bytes.Equal(got, n.files[f.Name][:f.Size]) || len(got) != int(f.Size) {
			n.t.Fatalf("%s differs", f.Name)
		}
	}
}

// rig is a node, a memory bucket and a claim.
type rig struct {
	*node
	b  *bucket.Mem
	c  *Cluster
	cl *Claim
}

func newRig(t testing.TB) *rig {
	r := &rig{node: newNode(t), b: bucket.NewMem()}
	r.c = must(New(r.b).Cluster(testCluster))
	r.cl = must(r.c.Claim(t.Context(), testGroup, 5, 1, WriteOptions{}))
	return r
}

// put uploads a checkpoint at index and expects it to succeed.
func (r *rig) put(index ident.Index) Uploaded {
	r.t.Helper()
	r.checkpoint(index)
	up, err := r.upload(r.t.Context(), r.cl)
	noErr(r.t, err)
	return up
}

// fetch downloads the newest snapshot and returns what was skipped.
func (r *rig) fetch() (*Manifest, vfs.FS, []error) {
	r.t.Helper()
	fs := vfs.NewCrashableMem()
	var skipped []error
	m, err := r.c.DownloadNewest(r.t.Context(), testGroup, fs, "/d/g1", func(_ Ref, err error) { skipped = append(skipped, err) })
	noErr(r.t, err)
	return m, fs, skipped
}
