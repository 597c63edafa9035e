package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"sync"
	"syscall"
	"testing"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

// The sink's disk is cloned as a power loss would leave it at every step of a
// Fetch, on each side of each durable step. In every clone the live generation
// is untouched, the next one is absent or complete, and a new Fetch ends well
// and asks for no more than what the clone lacks.
func TestFetchCrash(t *testing.T) {
	files := tree{"0.log": noise(1, mib), "1.log": noise(2, mib+mib/4), "2.log": noise(3, mib/8)}
	local := tree{"0.log": files["0.log"], "1.log": files["1.log"][:mib+mib/8]}
	for _, percent := range []int{0, 60, 100} {
		g := newRig(t, files, "0.log", "1.log", "2.log")
		local.write(t, g.fs, GenDir(sinkDir, 1))
		state(t, g.fs, GenDir(sinkDir, 1), 10, []byte("old"), local.list("0.log", "1.log"))
		clones := crashes(t, g, percent)
		if len(clones) < 20 {
			t.Fatalf("only %d points", len(clones))
		}
		for _, c := range clones {
			t.Logf("%d%% after %s", percent, c.point)
			g.fs = c.fs
			g.checkCrashed(t, c, local)
		}
	}
}

type crashed struct {
	point string
	fs    *vfs.MemFS
}

// crashes runs a Fetch and clones the sink's disk at every point of it.
func crashes(t *testing.T, g *rig, percent int) []crashed {
	t.Helper()
	rng := rand.New(rand.NewPCG(uint64(percent), 7))
	var mu sync.Mutex
	var clones []crashed
	invariant.SetPointHook(func(point string) {
		mu.Lock()
		defer mu.Unlock()
		clones = append(clones, crashed{point, g.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})})
	})
	defer invariant.SetPointHook(nil)
	must(g.fetch())
	return clones
}

func (g *rig) checkCrashed(t *testing.T, c crashed, local tree) {
	t.Helper()
	next := GenDir(sinkDir, 2)
	if _, err := c.fs.Stat(next); err == nil {
		g.check(c.fs, next)
	} else if c.point == "snapshot.generation.durable" {
		t.Fatal("durable, and gone")
	}
	noErr(t, RemoveOthers(c.fs, sinkDir, 1)) // as at start: the raftlog names generation 1
	if _, blob, err := Read(c.fs, GenDir(sinkDir, 1)); err != nil || string(blob) != "old" {
		t.Fatalf("the live generation: %q, %v", blob, err)
	}
	missing := g.missing(c.fs, local)
	g.newReceiver(ReceiverOptions{})
	got := must(g.fetch())
	g.check(c.fs, got.Dir)
	if got.BytesReceived > missing+overhead {
		t.Fatalf("received %d bytes, missing were %d", got.BytesReceived, missing)
	}
	for name, want := range local {
		if b := must(vfs.ReadFile(c.fs, path.Join(GenDir(sinkDir, 1), name), 1<<30)); !bytes.Equal(b, want) {
			t.Fatalf("live %s changed", name)
		}
	}
	noErr(t, RemoveOthers(c.fs, sinkDir, 2))
	g.check(c.fs, got.Dir)
	g.idle()
}

// missing adds up the chunks that neither the live generation nor the staging
// holds, less what the live generation has of the one it ends in.
func (g *rig) missing(fs vfs.FS, local tree) int64 {
	m, _, err := g.server.Manifest(g.t.Context(), g.pin.ID)
	noErr(g.t, err)
	var sum int64
	for i := range m.Files {
		f := &m.Files[i]
		want := g.files[f.Name]
		if f.Name == CheckpointName {
			want = must(vfs.ReadFile(g.srcFS, path.Join(srcDir, f.Name), 1<<30))
		}
		copies := [][]byte{local[f.Name]}
		for _, name := range []string{f.Name, f.Name + partSuffix} {
			b, err := vfs.ReadFile(fs, path.Join(StagingDir(sinkDir, 2), name), 1<<30)
			if err != nil && !os.IsNotExist(err) {
				g.t.Fatal(err)
			}
			copies = append(copies, b)
		}
		for c := range f.Chunks() {
			off, n := f.Range(c)
			end := off + int64(n)
			here := false
			for _, b := range copies {
				here = here || int64(len(b)) >= end && bytes.Equal(b[off:end], want[off:end])
			}
			if !here {
				sum += int64(n)
				if b := copies[0]; off < int64(len(b)) && int64(len(b)) < end && bytes.HasPrefix(want, b) {
					sum -= int64(len(b)) - off
				}
			}
		}
	}
	return sum
}

// The order of the durable steps of a Fetch, as a list: a lost sync or one out of
// place is a difference here.
func TestFetchStepOrder(t *testing.T) {
	g := newRig(t, tree{"0.log": noise(1, 100), "1.log": noise(2, 100)}, "0.log", "1.log")
	tree{"0.log": noise(1, 100)}.write(t, g.fs, GenDir(sinkDir, 1))
	g.newReceiver(ReceiverOptions{Parallel: 1})
	var got []string
	var mu sync.Mutex
	invariant.SetPointHook(func(p string) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, p)
	})
	must(g.fetch())
	invariant.SetPointHook(nil)
	file := []string{
		"snapshot.stage.create", "snapshot.stage.created", "snapshot.stage.sync", "snapshot.stage.synced",
		"snapshot.stage.rename", "snapshot.stage.renamed",
	}
	var want []string
	want = append(want, file...) // checkpoint
	want = append(want, "snapshot.stage.link", "snapshot.stage.linked")
	want = append(want, file...) // 1.log
	want = append(want, "snapshot.stage.dir-sync", "snapshot.generation.rename", "snapshot.generation.renamed", "snapshot.generation.durable")
	if len(got) != len(want) {
		t.Fatalf("got %v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("step %d is %s, want %s", i, got[i], want[i])
		}
	}
}

// A crash of the source while its checkpoint is replaced never costs the pinned
// snapshot's successor: what is pinned after the crash can be fetched.
func TestSourceCrash(t *testing.T) {
	g := newRig(t, tree{"0.log": noise(1, 1000)}, "0.log")
	rng := rand.New(rand.NewPCG(5, 5))
	var clones []*vfs.MemFS
	invariant.SetPointHook(func(string) {
		clones = append(clones, g.srcFS.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng}))
	})
	state(t, g.srcFS, srcDir, 200, []byte("new"), g.files.list("0.log"))
	invariant.SetPointHook(nil)
	for _, fs := range clones {
		s := NewServer(ServerOptions{FS: fs})
		pin := must(s.Pin(testGroup, testReplica, srcDir, sinkNode))
		if i := pin.Point.Index; i != 100 && i != 200 {
			t.Fatalf("index %d", i)
		}
		g.wire.servers[sourceNode] = s
		sink := vfs.NewCrashableMem()
		got := must(NewReceiver(ReceiverOptions{FS: sink}).Fetch(t.Context(), pin.Offer(sourceNode), g.opt, g.wire))
		ck, blob, err := Read(sink, got.Dir)
		noErr(t, err)
		want := map[ident.Index][]byte{100: g.blob, 200: []byte("new")}
		if !bytes.Equal(blob, want[ck.Point.Index]) {
			t.Fatalf("index %d with another blob", ck.Point.Index)
		}
		noErr(t, s.Close())
	}
}

// A power loss in the middle of a large file costs what was not synced yet.
func TestFetchCrashInLargeFile(t *testing.T) {
	const size = 2*partSyncEvery + 4*mib
	g := newRig(t, tree{"0.log": noise(1, size)}, "0.log")
	var clones []*vfs.MemFS
	var mu sync.Mutex
	invariant.SetPointHook(func(p string) {
		mu.Lock()
		defer mu.Unlock()
		if p == "snapshot.stage.part-sync" {
			clones = append(clones, g.fs.CrashClone(vfs.CrashCloneCfg{}))
		}
	})
	must(g.fetch())
	invariant.SetPointHook(nil)
	if len(clones) != 2 {
		t.Fatalf("%d syncs", len(clones))
	}
	g.fs = clones[1]
	g.newReceiver(ReceiverOptions{})
	got := must(g.fetch())
	g.check(g.fs, got.Dir)
	// Chunks that the other workers wrote while one synced may be synced or not.
	if got.BytesReceived > size-partSyncEvery+overhead {
		t.Fatalf("received %d bytes again", got.BytesReceived)
	}
}

// A live file that is linked need not have been synced by its owner.
func TestFetchSyncsWhatItLinks(t *testing.T) {
	g := newRig(t, tree{"0.log": noise(1, 1000)}, "0.log")
	mkdirs(t, g.fs, GenDir(sinkDir, 1))
	f := must(g.fs.Create(GenDir(sinkDir, 1)+"/0.log", vfs.CategorySegment))
	must(f.Write(noise(1, 1000)))
	noErr(t, f.Close())
	if got := must(g.fetch()); got.BytesReused != 1000 {
		t.Fatalf("%+v", got)
	}
	g.check(g.fs.CrashClone(vfs.CrashCloneCfg{}), GenDir(sinkDir, 2))
}

// A transfer that was killed may have left a part file with every byte in it, all of
// them in the page cache alone.
func TestFetchSyncsWhatAKilledOneWrote(t *testing.T) {
	g := newRig(t, tree{"0.log": noise(1, 1000)}, "0.log")
	mkdirs(t, g.fs, StagingDir(sinkDir, 2))
	f := must(g.fs.Create(StagingDir(sinkDir, 2)+"/0.log"+partSuffix, vfs.CategorySnapshot))
	must(f.Write(noise(1, 1000)))
	noErr(t, f.Close())
	if got := must(g.fetch()); got.BytesReused != 1000 {
		t.Fatalf("%+v", got)
	}
	g.check(g.fs.CrashClone(vfs.CrashCloneCfg{}), GenDir(sinkDir, 2))
}

// A sync that failed is not tried again: the kernel takes the pages for written then.
// The next Fetch writes the file anew.
func TestFetchAfterAFailedSync(t *testing.T) {
	for _, tt := range []struct {
		name string
		size int
	}{{"at the end", 1000}, {"on the way", partSyncEvery + mib}} {
		t.Run(tt.name, func(t *testing.T) {
			g := newRig(t, tree{"0.log": noise(1, tt.size)}, "0.log")
			fs := &oneBadSync{FS: g.fs, target: StagingDir(sinkDir, 2) + "/0.log" + partSuffix}
			g.recv = NewReceiver(ReceiverOptions{FS: fs, Parallel: 1})
			_, err := g.fetch()
			wantErr(t, err, syscall.EIO)
			got := must(g.fetch())
			g.check(g.fs.CrashClone(vfs.CrashCloneCfg{}), got.Dir)
		})
	}
}

// oneBadSync fails the first sync of one file, and then, as a kernel does, says yes
// without doing anything until the file is made anew.
type oneBadSync struct {
	vfs.FS
	target string
	mu     sync.Mutex
	failed bool
	lost   bool
	onFail func()
}

func (o *oneBadSync) OpenReadWrite(name string, cat vfs.WriteCategory, opts ...pebblevfs.OpenOption) (vfs.File, error) {
	f, err := o.FS.OpenReadWrite(name, cat, opts...)
	if err != nil || name != o.target {
		return f, err
	}
	return &badSyncFile{f, o}, nil
}

func (o *oneBadSync) Open(name string, opts ...pebblevfs.OpenOption) (vfs.File, error) {
	f, err := o.FS.Open(name, opts...)
	if err != nil || name != o.target {
		return f, err
	}
	return &badSyncFile{f, o}, nil
}

func (o *oneBadSync) hasFailed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.failed
}

func (o *oneBadSync) Remove(name string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if name == o.target {
		o.lost = false
	}
	return o.FS.Remove(name)
}

type badSyncFile struct {
	vfs.File
	o *oneBadSync
}

func (f *badSyncFile) Sync() error     { return f.try(f.File.Sync) }
func (f *badSyncFile) SyncData() error { return f.try(f.File.SyncData) }

func (f *badSyncFile) try(sync func() error) error {
	f.o.mu.Lock()
	defer f.o.mu.Unlock()
	switch {
	case !f.o.failed:
		f.o.failed, f.o.lost = true, true
		if f.o.onFail != nil {
			f.o.onFail()
		}
		return syscall.EIO
	case f.o.lost:
		return nil
	}
	return sync()
}

// TestDonorAfterAFailedSync: a file of this node is whole and its sync fails. No later sync makes it fit to be
// linked: its bytes are copied, also by another Receiver, which is what a restart of the process makes.
func TestDonorAfterAFailedSync(t *testing.T) {
	for _, tt := range []struct{ name, dir string }{
		{"the live generation's", GenDir(sinkDir, 1)},
		{"a donor's", "/donor/g1"},
		{"an earlier fetch's", StagingDir(sinkDir, 2)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files := tree{"0.log": noise(1, 1000), "1.log": noise(2, 1000)}
			g := newRig(t, files, "0.log", "1.log")
			g.opt.Donors = []string{"/donor/g1"}
			mkdirs(t, g.fs, tt.dir)
			noErr(t, vfs.SyncDir(g.fs, path.Dir(tt.dir)))
			f := must(g.fs.Create(tt.dir+"/0.log", vfs.CategorySegment))
			must(f.Write(bytes.Clone(files["0.log"])))
			noErr(t, f.Close())
			noErr(t, vfs.SyncDir(g.fs, tt.dir))
			fs := &oneBadSync{FS: g.fs, target: tt.dir + "/0.log"}
			g.recv = NewReceiver(ReceiverOptions{FS: fs, Parallel: 1})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			fs.onFail = cancel // before it has a copy
			_, err := g.recv.Fetch(ctx, g.offer(), g.opt, g.wire)
			if err == nil || !fs.hasFailed() {
				t.Fatalf("failed %v: %v", fs.hasFailed(), err)
			}
			g.recv = NewReceiver(ReceiverOptions{FS: fs, Parallel: 1})
			got := must(g.fetch())
			if got.BytesReused < 1000 {
				t.Errorf("%d bytes reused", got.BytesReused)
			}
			g.check(g.fs, got.Dir)
			g.check(g.fs.CrashClone(vfs.CrashCloneCfg{}), got.Dir)
		})
	}
}

// TestDonorWhoseOwnerCouldNotSync: the sync failed before, in its owner's hands. What lies in the
// owner's directory is copied, by this process and by the next.
func TestDonorWhoseOwnerCouldNotSync(t *testing.T) {
	for _, dir := range []string{GenDir(sinkDir, 1), "/donor/g1"} {
		for _, restarted := range []bool{false, true} {
			t.Run(fmt.Sprint(dir, restarted), func(t *testing.T) {
				files := tree{"0.log": noise(1, 1000)}
				g := newRig(t, files, "0.log")
				g.opt.Donors = []string{"/donor/g1"}
				mkdirs(t, g.fs, dir)
				f := must(g.fs.Create(dir+"/0.log", vfs.CategorySegment))
				must(f.Write(bytes.Clone(files["0.log"])))
				noErr(t, f.Close())
				fs := &oneBadSync{FS: g.fs, target: dir + "/0.log", failed: true, lost: true}
				g.recv = NewReceiver(ReceiverOptions{FS: fs})
				g.recv.MarkUnsynced(dir)
				if restarted {
					g.recv = NewReceiver(ReceiverOptions{FS: fs})
				}
				got := must(g.fetch())
				if got.BytesReused != 1000 {
					t.Errorf("%d bytes reused", got.BytesReused)
				}
				g.check(g.fs.CrashClone(vfs.CrashCloneCfg{}), got.Dir)
				noErr(t, RemoveOthers(g.fs, sinkDir, 2))
				if left := names(t, g.fs, sinkDir); !slices.Equal(left, []string{"g2"}) {
					t.Errorf("left %v", left)
				}
			})
		}
	}
}

// TestStagingAfterAFailedDirectorySync: names whose sync failed are not trusted to a later one.
func TestStagingAfterAFailedDirectorySync(t *testing.T) {
	for _, dir := range []string{StagingDir(sinkDir, 2), sinkDir} {
		t.Run(dir, func(t *testing.T) {
			g := newRig(t, tree{"0.log": noise(1, 1000)}, "0.log")
			mkdirs(t, g.fs, sinkDir)
			noErr(t, vfs.SyncDir(g.fs, "/"))
			fs := &oneBadDirSync{FS: g.fs, target: dir}
			g.recv = NewReceiver(ReceiverOptions{FS: fs})
			_, err := g.fetch()
			wantErr(t, err, syscall.EIO)
			g.recv = NewReceiver(ReceiverOptions{FS: fs})
			got := must(g.fetch())
			g.check(g.fs, got.Dir)
			if fs.made == 0 {
				t.Fatal("the directory whose names were lost was used again")
			}
			if left := must(vfs.List(g.fs, sinkDir)); !slices.Equal(left, []string{"g2"}) {
				t.Errorf("left %v", left)
			}
		})
	}
}

// oneBadDirSync fails the first sync of a directory. Then it counts how often the staging is made anew.
type oneBadDirSync struct {
	vfs.FS
	target string
	failed bool
	made   int
}

func (o *oneBadDirSync) OpenDir(name string) (vfs.File, error) {
	f, err := o.FS.OpenDir(name)
	if err == nil && name == o.target && !o.failed {
		f = &badDir{f, o}
	}
	return f, err
}

func (o *oneBadDirSync) MkdirAll(name string, perm os.FileMode) error {
	if _, err := o.FS.Stat(name); o.failed && errors.Is(err, os.ErrNotExist) && name == StagingDir(sinkDir, 2) {
		o.made++
	}
	return o.FS.MkdirAll(name, perm)
}

type badDir struct {
	vfs.File
	o *oneBadDirSync
}

func (d *badDir) Sync() error {
	d.o.failed = true
	return syscall.EIO
}
