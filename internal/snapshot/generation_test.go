package snapshot

import (
	"errors"
	"math/rand/v2"
	"path"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

func names(t *testing.T, fs vfs.FS, dir string) []string {
	t.Helper()
	return must(vfs.List(fs, dir))
}

func mkdirs(t *testing.T, fs vfs.FS, dirs ...string) {
	t.Helper()
	for _, d := range dirs {
		noErr(t, vfs.MkdirAllSync(fs, d))
	}
}

func TestGenerations(t *testing.T) {
	fs := vfs.NewCrashableMem()
	mkdirs(t, fs, "/b/g10", "/b/g2", "/b/g2.staging", "/b/g02", "/b/gx", "/b/other", "/b/g3.staging", "/b/g-1")
	var got []string
	for _, g := range must(Generations(fs, "/b")) {
		got = append(got, path.Base(g.Dir))
		if g.Staging != (g.Dir == StagingDir("/b", g.N)) {
			t.Errorf("%+v", g)
		}
	}
	if !slices.Equal(got, []string{"g2", "g2.staging", "g3.staging", "g10"}) {
		t.Fatal(got)
	}
	if gs := must(Generations(fs, "/none")); len(gs) != 0 {
		t.Fatal(gs)
	}
}

func TestRemoveOthers(t *testing.T) {
	for _, c := range []struct {
		name string
		dirs []string
		ck   []string // directories with a checkpoint
		keep uint64
		want []string
		err  error
	}{
		{name: "new replica", keep: 1},
		{name: "first, no checkpoint", dirs: []string{"g1"}, keep: 1, want: []string{"g1"}},
		{
			name: "installed", dirs: []string{"g1", "g2", "g1.staging", "keep-me"}, ck: []string{"g1", "g2"}, keep: 2,
			want: []string{"g2", "keep-me"},
		},
		{
			name: "fetched, not installed", dirs: []string{"g1", "g2", "g2.staging"}, ck: []string{"g1", "g2"}, keep: 1,
			want: []string{"g1", "g2.staging"},
		},
		{name: "staging stays", dirs: []string{"g1", "g2.staging"}, ck: []string{"g1"}, keep: 1, want: []string{"g1", "g2.staging"}},
		{name: "kept is absent", dirs: []string{"g1", "g2.staging"}, ck: []string{"g1"}, keep: 2, want: []string{"g1", "g2.staging"}, err: ErrNoGeneration},
		{name: "kept has no checkpoint", dirs: []string{"g1", "g2"}, ck: []string{"g1"}, keep: 2, want: []string{"g1", "g2"}, err: ErrNoGeneration},
		{name: "nothing there", keep: 2, err: ErrNoGeneration},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := vfs.NewCrashableMem()
			mkdirs(t, fs, "/b")
			for _, d := range c.dirs {
				mkdirs(t, fs, "/b/"+d)
			}
			for _, d := range c.ck {
				must(Write(fs, "/b/"+d, sample(), None, blobOf(nil)))
			}
			for range 2 { // idempotent
				if err := RemoveOthers(fs, "/b", c.keep); !errors.Is(err, c.err) {
					t.Fatal(err)
				}
				if got := names(t, fs, "/b"); !slices.Equal(got, c.want) {
					t.Fatalf("left %v, want %v", got, c.want)
				}
			}
		})
	}
}

// TestRemoveOlder: what lies above is not touched, be it staged, complete or live.
func TestRemoveOlder(t *testing.T) {
	for _, c := range []struct {
		dirs, want []string
		err        error
	}{
		{[]string{"g1", "g1.staging", "g2", "g2.staging", "g3.staging"}, []string{"g2", "g3.staging"}, nil},
		{[]string{"g1", "g2", "g3"}, []string{"g2", "g3"}, nil},
		{[]string{"g3", "g4"}, []string{"g3", "g4"}, nil}, // removed since
		{[]string{"g1", "g3"}, []string{"g1", "g3"}, ErrNoGeneration},
		{nil, nil, nil},
	} {
		fs := vfs.NewCrashableMem()
		mkdirs(t, fs, "/b")
		for _, d := range c.dirs {
			mkdirs(t, fs, "/b/"+d)
			must(Write(fs, "/b/"+d, sample(), None, blobOf(nil)))
		}
		err := RemoveOlder(fs, "/b", 2)
		if got := names(t, fs, "/b"); !slices.Equal(got, c.want) || !errors.Is(err, c.err) {
			t.Errorf("%v: left %v, %v", c.dirs, got, err)
		}
	}
}

func TestRemoveOthersUnreadable(t *testing.T) {
	mem := vfs.NewCrashableMem()
	mkdirs(t, mem, "/b/g1", "/b/g2")
	must(Write(mem, "/b/g1", sample(), None, blobOf(nil)))
	must(Write(mem, "/b/g2", sample(), None, blobOf(nil)))
	good := must(vfs.ReadFile(mem, "/b/g2/checkpoint", 1<<20))
	noErr(t, vfs.WriteFileSync(mem, "/b/g2/checkpoint", flip(good, 30), vfs.CategorySnapshot))
	err := RemoveOthers(mem, "/b", 2)
	wantErr(t, err, ErrNoGeneration)
	wantErr(t, err, ErrCorrupt)

	boom := errors.New("boom")
	fail := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpList {
			return boom
		}
		return nil
	}))
	wantErr(t, RemoveOthers(fail, "/b", 1), boom)
	if got := names(t, mem, "/b"); !slices.Equal(got, []string{"g1", "g2"}) {
		t.Fatalf("left %v", got)
	}
}

// A crash at each step of a removal leaves the kept generation whole, and a
// second call ends the work.
func TestRemoveOthersCrash(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	fs := vfs.NewCrashableMem()
	mkdirs(t, fs, "/b/g1", "/b/g2", "/b/g3", "/b/g4", "/b/g4.staging")
	for _, g := range []string{"g1", "g2", "g3", "g4"} {
		must(Write(fs, "/b/"+g, sample(), None, blobOf([]byte(g))))
	}
	var clones []*vfs.MemFS
	invariant.SetPointHook(func(string) {
		clones = append(clones, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng}))
	})
	noErr(t, RemoveOthers(fs, "/b", 3))
	invariant.SetPointHook(nil)
	if len(clones) < 4 {
		t.Fatalf("%d points", len(clones))
	}
	for _, c := range append(clones, fs) {
		noErr(t, RemoveOthers(c, "/b", 3))
		if _, blob, err := Read(c, "/b/g3"); err != nil || string(blob) != "g3" {
			t.Fatalf("%q, %v", blob, err)
		}
		got := names(t, c, "/b")
		if got[0] != "g3" || len(got) > 2 || len(got) == 2 && got[1] != "g4.staging" {
			t.Fatalf("left %v", got)
		}
	}
}

func TestDiscardStaging(t *testing.T) {
	fs := vfs.NewCrashableMem()
	mkdirs(t, fs, "/b/g1", "/b/g2", "/b/g2.staging", "/b/g3.staging", "/b/x")
	noErr(t, DiscardStaging(fs, "/b", 1))
	if got := names(t, fs, "/b"); !slices.Equal(got, []string{"g1", "x"}) {
		t.Fatal(got)
	}
	noErr(t, DiscardStaging(fs, "/b", 1))
	noErr(t, DiscardStaging(fs, "/none", 1))
}

func TestDonors(t *testing.T) {
	fs := vfs.NewCrashableMem()
	mkdirs(t, fs, "/r/meta.5/g1", "/r/meta.9/g2", "/r/meta.9/g3", "/r/meta.9/g4.staging", "/r/meta.12/g1",
		"/r/metabolism.1/g1", "/r/meta.x/g1", "/r/offsets-0.7/g1")
	got := must(Donors(fs, "/r", "meta", 12))
	if !slices.Equal(got, []string{"/r/meta.9/g3", "/r/meta.9/g2", "/r/meta.5/g1"}) {
		t.Fatal(got)
	}
	if got := must(Donors(fs, "/none", "meta", 1)); len(got) != 0 {
		t.Fatal(got)
	}
}

// A crash at each step of a discard leaves the live generation, and a second call ends the work.
func TestDiscardStagingCrash(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, percent := range []int{0, 50, 100} {
		fs := vfs.NewCrashableMem()
		mkdirs(t, fs, "/b/g1", "/b/g2", "/b/g3.staging")
		must(Write(fs, "/b/g1", sample(), None, blobOf([]byte("live"))))
		noErr(t, vfs.SyncDir(fs, "/b"))
		points := map[string]int{}
		var clones []*vfs.MemFS
		invariant.SetPointHook(func(p string) {
			points[p]++
			clones = append(clones, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}))
		})
		noErr(t, DiscardStaging(fs, "/b", 1))
		invariant.SetPointHook(nil)
		if points["snapshot.staging.discard"] != 2 || points["snapshot.staging.discarded"] != 1 {
			t.Fatalf("points %v", points)
		}
		if got := names(t, clones[len(clones)-1], "/b"); !slices.Equal(got, []string{"g1"}) {
			t.Fatalf("%d %%: the removal is not durable: %v", percent, got)
		}
		for _, c := range clones {
			noErr(t, DiscardStaging(c, "/b", 1))
			if _, blob, err := Read(c, "/b/g1"); err != nil || string(blob) != "live" {
				t.Fatalf("%d %%: %q, %v", percent, blob, err)
			}
			if got := names(t, c, "/b"); !slices.Equal(got, []string{"g1"}) {
				t.Fatalf("%d %%: left %v", percent, got)
			}
		}
	}
}
