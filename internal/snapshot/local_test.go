package snapshot

import (
	"bytes"
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"chronik/internal/ident"
)

// TestOwnPin: a pin of the node's own holds files, no log, takes no slot and does not expire.
func TestOwnPin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		files := tree{"0.log": noise(1, ChunkBytes+100)}
		g := newRig(t, files, "0.log")
		g.server.Unpin(g.pin.ID)
		own := must(g.server.Pin(testGroup, testReplica, srcDir, 0))
		if at := g.server.Live(testGroup); len(at) != 0 {
			t.Fatal("it holds the log")
		}
		other := must(g.server.Pin(testGroup, testReplica, srcDir, sinkNode))
		if at := g.server.Live(testGroup); !slices.Equal(at, []ident.Index{100}) {
			t.Fatalf("pins at %d", at)
		}
		// Both slots are somebody else's.
		for range 2 {
			p := must(g.server.Pin(testGroup, testReplica, srcDir, sinkNode))
			if turn := g.server.acquire(t.Context(), p.ID); turn == nil || turn.waiting {
				t.Fatal("no slot")
			}
			defer g.server.Unpin(p.ID)
		}
		began := time.Now()
		man, _, err := g.server.Manifest(t.Context(), own.ID)
		noErr(t, err)
		buf := make([]byte, 200)
		noErr(t, g.server.ReadPinned(t.Context(), own.ID, "0.log", buf, ChunkBytes-100))
		if !bytes.Equal(buf, files["0.log"][ChunkBytes-100:]) || len(man.Files) != 2 || time.Since(began) > 0 {
			t.Fatalf("%d files after %v", len(man.Files), time.Since(began))
		}
		for _, bad := range []struct {
			name string
			off  int64
		}{{"1.log", 0}, {"0.log", ChunkBytes - 99}, {"0.log", -1}} {
			if err := g.server.ReadPinned(t.Context(), own.ID, bad.name, buf, bad.off); err == nil {
				t.Errorf("%+v is read", bad)
			}
		}
		time.Sleep(24 * time.Hour)
		if st := g.server.Stats(); st.PinsExpired == 0 {
			t.Fatal("the other did not expire")
		}
		wantErr(t, g.server.ReadPinned(t.Context(), other.ID, "0.log", buf, 0), ErrPinGone)
		noErr(t, g.server.ReadPinned(t.Context(), own.ID, "0.log", buf, 0))
		// A later pin of a receiver expires although no timer ran.
		late := must(g.server.Pin(testGroup, testReplica, srcDir, sinkNode))
		time.Sleep(time.Hour)
		wantErr(t, g.server.ReadPinned(t.Context(), late.ID, "0.log", buf, 0), ErrPinGone)
		g.server.Unpin(own.ID)
		wantErr(t, g.server.ReadPinned(t.Context(), own.ID, "0.log", buf, 0), ErrPinGone)
	})
}

// TestOwnPinIsUnderTheRateLimit: uploads share it with transfers.
func TestOwnPinIsUnderTheRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		files := tree{"0.log": noise(1, ChunkBytes)}
		g := newRig(t, files, "0.log")
		s := NewServer(ServerOptions{FS: g.srcFS, MaxBytesPerSecond: 100 << 10})
		defer func() { noErr(t, s.Close()) }()
		own := must(s.Pin(testGroup, testReplica, srcDir, 0))
		began := time.Now()
		buf := make([]byte, ChunkBytes)
		noErr(t, s.ReadPinned(t.Context(), own.ID, "0.log", buf, 0))
		if took := time.Since(began); took < 8*time.Second || !bytes.Equal(buf, files["0.log"]) {
			t.Fatalf("1 MiB at 100 KiB/s took %v", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wantErr(t, s.ReadPinned(ctx, own.ID, "0.log", buf, 0), context.DeadlineExceeded)
	})
}
