package broker

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"chronik/internal/ident"
	"chronik/internal/raftlog"
	"chronik/internal/vfs"
)

// TestStoreWithoutItsLogIsLost: the store and its raftlog name each other. If the
// log is gone, or is another store's, the store gets a new identity, and what
// was there is put aside (correctness rule 9).
func TestStoreWithoutItsLogIsLost(t *testing.T) {
	fs := vfs.NewCrashableMem()
	cfg := testConfig(t, nil)
	const dir = "/data/raftlog"
	run := func() ident.StoreID {
		t.Helper()
		b, err := Start(context.Background(), Options{Config: cfg, Log: slog.New(slog.DiscardHandler), Version: "test", FS: fs})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "the node runs", func() error { // a lost store may only join, so no cluster is waited for
			if b.session() == nil {
				return errors.New("no session yet")
			}
			return nil
		})
		b.Stop()
		if err := b.Wait(context.Background()); err != nil {
			t.Fatal(err)
		}
		s, err := openStore(fs, cfg)
		if err != nil {
			t.Fatal(err)
		}
		id := s.ID()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		log, err := raftlog.Open(raftlog.Options{FS: fs, Dir: dir, Store: id, FileBytes: 1 << 20, MaxBytes: 8 << 20})
		if err != nil {
			t.Fatalf("the raftlog is not that of store %s: %v", id, err)
		}
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
		return id
	}
	aside := func() (n int) {
		t.Helper()
		names, err := vfs.List(fs, "/data")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasPrefix(name, "raftlog.lost-") {
				n++
			}
		}
		return n
	}
	first := run()
	if again := run(); again != first || aside() != 0 {
		t.Fatalf("an intact store %s became %s", first, again)
	}
	if err := fs.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	second := run()
	if second == first {
		t.Fatal("a store without its log kept its identity")
	}
	if err := fs.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	foreign, err := raftlog.Open(raftlog.Options{FS: fs, Dir: dir, Store: first, Create: true, FileBytes: 1 << 20, MaxBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if err := foreign.Close(); err != nil {
		t.Fatal(err)
	}
	if third := run(); third == second || third == first || aside() != 1 {
		t.Fatalf("store %s with the log of %s became %s, %d logs put aside", second, first, third, aside())
	}
}
