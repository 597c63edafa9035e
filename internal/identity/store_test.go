package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"chronik/internal/alloctest"
	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func mustOpen(t testing.TB, fs vfs.FS, node ident.NodeID) *Store {
	t.Helper()
	s, err := OpenStore(fs, "/data", node)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// genesisOf returns a valid genesis of stores, nodes 1, 2, …
func genesisOf(round uint64, stores ...ident.StoreID) *Genesis {
	g := &Genesis{ClusterID: NewClusterID(), Proposer: stores[0], Round: round}
	for i, st := range stores {
		g.Members = append(g.Members, GenesisMember{Node: ident.NodeID(i + 1), Store: st, MetaReplica: ident.ReplicaID(i + 1), RaftAddr: "h:1"})
	}
	return g
}

func TestOpenStore(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := mustOpen(t, fs, 3)
	if s.Boot() != 1 || s.State() != Blank || !s.Blank() || s.ClusterID() != "" || s.ID().IsZero() || s.Run() == 0 || s.Genesis() != nil || s.JoinOnly() {
		t.Errorf("new store: %+v", s.get())
	}
	id, run := s.ID(), s.Run()
	if _, err := OpenStore(fs, "/data", 3); !errors.Is(err, ErrInUse) {
		t.Errorf("a second process: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(fs, "/data", 4); !errors.Is(err, ErrWrongNode) || !strings.Contains(err.Error(), "/data") {
		t.Errorf("another node: %v", err)
	}
	s = mustOpen(t, fs, 3)
	if s.Boot() != 2 || s.ID() != id || s.Run() == run {
		t.Errorf("opened again: boot %d, store %s, run %d", s.Boot(), s.ID(), s.Run())
	}
}

// Two processes on one real directory.
func TestOpenStoreLocksRealDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "data")
	s, err := OpenStore(vfs.Default, dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(vfs.Default, dir, 1); !errors.Is(err, ErrInUse) {
		t.Errorf("a second open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = OpenStore(vfs.Default, dir, 1); err != nil || s.Boot() != 2 {
		t.Fatalf("after Close: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, fileName), []byte("garbage\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(vfs.Default, dir, 1); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), fileName) {
		t.Errorf("a corrupt store.id: %v", err)
	}
}

// What was reported done is there after a power loss, and what was not is old or new.
func TestChangesAreDurable(t *testing.T) {
	steps := []struct {
		name string
		do   func(*Store, *Genesis) error
		want State
	}{
		{"prepare", func(s *Store, g *Genesis) error { return s.Prepare(g) }, Prepared},
		{"unprepare", func(s *Store, _ *Genesis) error { return s.Unprepare() }, Blank},
		{"prepare again", func(s *Store, g *Genesis) error { return s.Prepare(g) }, Prepared},
		{"commit", func(s *Store, g *Genesis) error { return s.CommitTo(g.ClusterID) }, Member},
		{"founded", func(s *Store, _ *Genesis) error { return s.SetFounded() }, Member},
		{"renew", func(s *Store, _ *Genesis) error { return s.Renew() }, Blank},
		{"join", func(s *Store, g *Genesis) error { return s.Join(g.ClusterID) }, Member},
	}
	fs := vfs.NewCrashableMem()
	s := mustOpen(t, fs, 1)
	g := genesisOf(1, s.ID(), ident.StoreID{2})
	defer invariant.SetPointHook(nil)
	for _, step := range steps {
		before, during := s.get(), []*vfs.MemFS{}
		invariant.SetPointHook(func(string) { during = append(during, fs.CrashClone(vfs.CrashCloneCfg{})) })
		if err := step.do(s, g); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		invariant.SetPointHook(nil)
		if s.State() != step.want || len(during) != 2 {
			t.Fatalf("%s: state %s after %d points", step.name, s.State(), len(during))
		}
		for i, disk := range append(during, fs.CrashClone(vfs.CrashCloneCfg{})) {
			c, err := read(disk, "/data/"+fileName)
			if err != nil {
				t.Fatalf("%s: crash %d: %v", step.name, i, err)
			}
			want := s.get()
			if i == 0 {
				want = before
			}
			if c.Store != want.Store || c.State != want.State || c.Boot != want.Boot || c.Cluster != want.Cluster ||
				c.Founded != want.Founded || c.JoinOnly != want.JoinOnly || (c.Genesis == nil) != (want.Genesis == nil) {
				t.Errorf("%s: crash %d: %+v on disk, want %+v", step.name, i, c, want)
			}
		}
	}
}

// A boot that was said is never said again, whenever the power goes.
func TestBootIsDurable(t *testing.T) {
	fs := vfs.NewCrashableMem()
	for boot := uint64(1); boot < 5; boot++ {
		s := mustOpen(t, fs, 1)
		if s.Boot() != boot {
			t.Fatalf("boot %d, want %d", s.Boot(), boot)
		}
		fs = fs.CrashClone(vfs.CrashCloneCfg{})
	}
}

func TestPrepare(t *testing.T) {
	s := mustOpen(t, vfs.NewCrashableMem(), 2)
	s1, s2, other := ident.StoreID{1}, s.ID(), ident.StoreID{9}
	first := genesisOf(5, s1, s2)
	if err := s.Prepare(genesisOf(1, s1, other)); !errors.Is(err, ErrRefused) {
		t.Errorf("a genesis without this store: %v", err)
	}
	if err := s.Commit(); !errors.Is(err, ErrRefused) {
		t.Errorf("commit of nothing: %v", err)
	}
	for range 2 {
		if err := s.Prepare(first); err != nil || s.State() != Prepared {
			t.Fatalf("prepare: %v", err)
		}
	}
	if err := s.Prepare(genesisOf(9, other, s2)); !errors.Is(err, ErrRefused) {
		t.Errorf("a second proposer: %v", err)
	}
	if err := s.Prepare(genesisOf(5, s1, s2)); !errors.Is(err, ErrRefused) {
		t.Errorf("another genesis of the same round: %v", err)
	}
	if err := s.Join(NewClusterID()); !errors.Is(err, ErrRefused) {
		t.Errorf("a prepared store joins elsewhere: %v", err)
	}
	later := genesisOf(6, s1, s2, ident.StoreID{3})
	if err := s.Prepare(later); err != nil || !s.Genesis().Equal(later) {
		t.Errorf("a later round: %v", err)
	}
	if err := s.Prepare(first); !errors.Is(err, ErrRefused) {
		t.Errorf("the delayed first round: %v", err)
	}
	if err := s.CommitTo(first.ClusterID); !errors.Is(err, ErrRefused) {
		t.Errorf("commit of what is no longer held: %v", err)
	}
	if err := s.SetFounded(); !errors.Is(err, ErrRefused) {
		t.Errorf("founded before it was a member: %v", err)
	}
	for range 2 {
		if err := s.CommitTo(later.ClusterID); err != nil || s.State() != Member || s.ClusterID() != later.ClusterID {
			t.Fatalf("commit: %v", err)
		}
	}
	for name, err := range map[string]error{
		"prepare": s.Prepare(genesisOf(7, s1, s2)), "commit elsewhere": s.CommitTo(first.ClusterID), "join elsewhere": s.Join(NewClusterID()),
	} {
		if !errors.Is(err, ErrRefused) {
			t.Errorf("a member: %s: %v", name, err)
		}
	}
	if s.Unprepare() != nil || s.State() != Member || s.Join(later.ClusterID) != nil || s.Founded() || s.SetFounded() != nil || !s.Founded() {
		t.Errorf("member afterwards: %+v", s.get())
	}
}

func TestRenew(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := mustOpen(t, fs, 1)
	g := genesisOf(1, s.ID())
	if err := errors.Join(s.Prepare(g), s.Commit(), s.SetFounded()); err != nil {
		t.Fatal(err)
	}
	old, run := s.ID(), s.Run()
	if err := s.Renew(); err != nil {
		t.Fatal(err)
	}
	if s.ID() == old || s.Run() == run || s.Boot() != 1 || s.State() != Blank || !s.JoinOnly() || s.Genesis() != nil || s.ClusterID() != g.ClusterID || s.Founded() {
		t.Errorf("renewed: %+v", s.get())
	}
	if err := s.Prepare(genesisOf(9, s.ID())); !errors.Is(err, ErrRefused) {
		t.Errorf("a renewed store founds: %v", err)
	}
	if err := s.Join(NewClusterID()); !errors.Is(err, ErrRefused) {
		t.Errorf("a renewed store joins another cluster: %v", err)
	}
	if err := s.Join(g.ClusterID); err != nil {
		t.Error(err)
	}
}

// Peers' calls and the node's own steps change a store at the same time.
func TestConcurrentChanges(t *testing.T) {
	s := mustOpen(t, vfs.NewCrashableMem(), 2)
	s1 := ident.StoreID{1}
	var wg sync.WaitGroup
	for round := range uint64(20) {
		wg.Go(func() { _ = s.Prepare(genesisOf(round, s1, s.ID())) })
		wg.Go(func() { _ = s.Unprepare() })
		wg.Go(func() { s.Run(); s.State() })
	}
	last := genesisOf(100, s1, s.ID())
	wg.Go(func() {
		for s.State() != Member {
			if err := s.Prepare(last); err != nil {
				t.Error(err)
				return
			}
			_ = s.CommitTo(last.ClusterID) // another goroutine may have unprepared it
		}
	})
	wg.Wait()
	c, err := read(s.fs, "/data/"+fileName)
	if err != nil || c.State != Member || c.Cluster != last.ClusterID {
		t.Errorf("on disk %+v, %v", c, err)
	}
}

func TestDecodeStoreRefuses(t *testing.T) {
	good, err := encode(content{Node: 1, Store: ident.StoreID{1}, Boot: 3, State: Blank})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decode(good); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := append([]byte(nil), good...)
		bad[i] ^= 1
		if c, err := decode(bad); err == nil && i < len(good)-1 {
			t.Errorf("a flipped bit in byte %d decodes to %+v", i, c)
		}
	}
	for n := range len(good) - 1 {
		if _, err := decode(good[:n]); err == nil {
			t.Errorf("the first %d bytes decode", n)
		}
	}
	for name, c := range map[string]content{
		"no node":                  {Store: ident.StoreID{1}, State: Blank},
		"no store":                 {Node: 1, State: Blank},
		"no state":                 {Node: 1, Store: ident.StoreID{1}},
		"prepared without genesis": {Node: 1, Store: ident.StoreID{1}, State: Prepared},
		"member of nothing":        {Node: 1, Store: ident.StoreID{1}, State: Member},
		"genesis of others":        {Node: 1, Store: ident.StoreID{1}, State: Prepared, Genesis: genesisOf(1, ident.StoreID{2})},
	} {
		b, err := encode(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode(b); err == nil {
			t.Errorf("%s: decodes", name)
		}
	}
	if _, err := decode([]byte(strings.Replace(string(good), "chronik-store 1", "chronik-store 2", 1))); err == nil || !strings.Contains(err.Error(), "format version 2") {
		t.Errorf("a newer format: %v", err)
	}
}

func TestGenesisCheck(t *testing.T) {
	a, b := ident.StoreID{1}, ident.StoreID{2}
	for name, spoil := range map[string]func(*Genesis){
		"cluster id":    func(g *Genesis) { g.ClusterID = "short" },
		"no members":    func(g *Genesis) { g.Members = nil },
		"proposer":      func(g *Genesis) { g.Proposer = b },
		"order":         func(g *Genesis) { g.Members[1].Node = 1 },
		"store twice":   func(g *Genesis) { g.Members[1].Store = a },
		"zero store":    func(g *Genesis) { g.Members[1].Store = ident.StoreID{} },
		"replica":       func(g *Genesis) { g.Members[1].MetaReplica = 7 },
		"no voter":      func(g *Genesis) { g.Members[0].Learner = true },
		"another node":  func(g *Genesis) { g.Members[1].Node = 5 },
		"another store": func(g *Genesis) { g.Members[1].Store = ident.StoreID{5} },
	} {
		g := genesisOf(1, a, b)
		if err := g.check(2, b); err != nil {
			t.Fatal(err)
		}
		spoil(g)
		if err := g.check(2, b); err == nil {
			t.Errorf("%s: passes", name)
		}
	}
}

func FuzzDecodeStore(f *testing.F) {
	for _, c := range []content{
		{Node: 1, Store: ident.StoreID{1}, Boot: 3, State: Blank},
		{Node: 1, Store: ident.StoreID{1}, Boot: 3, State: Prepared, Genesis: genesisOf(1, ident.StoreID{1})},
	} {
		b, err := encode(c)
		if err != nil {
			f.Fatal(err)
		}
		_, body, _ := bytes.Cut(b, []byte("\n"))
		f.Add(b, false)
		f.Add(body, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, honest bool) {
		defer alloctest.Bound(t, len(b))()
		if honest { // the checksum would hide everything behind it
			body := bytes.TrimSuffix(b, []byte("\n"))
			b = fmt.Appendf(nil, "chronik-store 1 %08x\n%s\n", crc32.Checksum(body, castagnoli), body)
		}
		c, err := decode(b)
		if err != nil {
			return
		}
		again, err := encode(*c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode(again); err != nil {
			t.Fatalf("%s does not decode again: %v", again, err)
		}
	})
}

func FuzzDecodeGenesis(f *testing.F) {
	for _, g := range []*Genesis{genesisOf(1, ident.StoreID{1}), genesisOf(1, ident.StoreID{1}, ident.StoreID{2}, ident.StoreID{3}), {}} {
		b, err := json.Marshal(g)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		g, err := DecodeGenesis(b)
		if err != nil || g.check(1, ident.StoreID{1}) != nil {
			return
		}
		again, err := json.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		if same, err := DecodeGenesis(again); err != nil || !same.Equal(g) {
			t.Fatalf("%s becomes %+v, %v", again, same, err)
		}
	})
}
