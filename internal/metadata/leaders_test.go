package metadata

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"chronik/internal/alloctest"
	"chronik/internal/ident"
)

func TestLeadersNewestTermWins(t *testing.T) {
	a, b := NewLeaders(1), NewLeaders(2)
	merge := func(to *Leaders, from ident.NodeID, frame []byte) {
		t.Helper()
		if err := to.Merge(from, frame); err != nil {
			t.Fatal(err)
		}
	}
	want := func(l *Leaders, g ident.GroupID, node ident.NodeID, term ident.Term) {
		t.Helper()
		if got := l.Get(g); got != (Leader{node, term}) {
			t.Fatalf("group %d: %+v, want node %d term %d", g, got, node, term)
		}
	}
	d := a.Set(7, 3, true)
	merge(b, 1, d)
	want(b, 7, 1, 3)
	if a.Set(7, 3, true) != nil {
		t.Fatal("a delta without a change")
	}
	d5 := b.Set(7, 5, true)
	merge(b, 1, d) // late
	want(b, 7, 2, 5)
	merge(a, 2, d5)
	want(a, 7, 2, 5)
	if a.Set(7, 5, false) != nil {
		t.Fatal("node 1 resigns from what it no longer led")
	}
	merge(a, 2, b.Set(7, 6, false)) // stepped down when it heard of term 6
	want(a, 7, 0, 5)
	a.Observe(7, 5, 2) // a follower that has not heard of it
	want(a, 7, 0, 5)
	a.Observe(7, 6, 3)
	want(a, 7, 3, 6)
	a.Forget(7)
	want(a, 7, 0, 0)
}

func TestLeadersSnapshotClears(t *testing.T) {
	a, b := NewLeaders(1), NewLeaders(2)
	for g := ident.GroupID(1); g <= 3; g++ {
		a.Set(g, 1, true)
	}
	if err := b.Merge(1, a.Snapshot()); err != nil {
		t.Fatal(err)
	}
	a.Set(2, 1, false) // the delta is lost
	b.Observe(3, 9, 3)
	if err := b.Merge(1, a.Snapshot()); err != nil {
		t.Fatal(err)
	}
	for g, want := range []Leader{{}, {1, 1}, {0, 1}, {3, 9}} {
		if got := b.Get(ident.GroupID(g)); got != want {
			t.Errorf("group %d: %+v, want %+v", g, got, want)
		}
	}
}

// However deltas are lost, repeated and late, a snapshot of everyone makes all agree.
func TestLeadersConverge(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		nodes := []*Leaders{NewLeaders(1), NewLeaders(2), NewLeaders(3)}
		terms := map[ident.GroupID]ident.Term{}
		leads := map[ident.GroupID]int{}
		for range rapid.IntRange(0, 60).Draw(rt, "steps") {
			g := ident.GroupID(rapid.IntRange(1, 4).Draw(rt, "group"))
			if old, ok := leads[g]; ok {
				nodes[old].Set(g, terms[g]+1, false)
			}
			terms[g]++
			n := rapid.IntRange(0, 2).Draw(rt, "node")
			leads[g] = n
			d := nodes[n].Set(g, terms[g], true)
			to := rapid.IntRange(0, 2).Draw(rt, "to")
			for range rapid.IntRange(0, 2).Draw(rt, "copies") {
				if err := nodes[to].Merge(ident.NodeID(n+1), d); err != nil {
					rt.Fatal(err)
				}
			}
		}
		for i, from := range nodes {
			for _, to := range nodes {
				if err := to.Merge(ident.NodeID(i+1), from.Snapshot()); err != nil {
					rt.Fatal(err)
				}
			}
		}
		for g, n := range leads {
			for i, l := range nodes {
				if got := l.Get(g); got != (Leader{ident.NodeID(n + 1), terms[g]}) {
					rt.Fatalf("node %d, group %d: %+v, want node %d term %d", i+1, g, got, n+1, terms[g])
				}
			}
		}
	})
}

func TestLeadersWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLeaders(1)
		done := make(chan error, 1)
		go func() { done <- l.Wait(t.Context(), 4, 5) }()
		synctest.Wait()
		l.Set(4, 1, true)
		synctest.Wait()
		if len(done) != 0 {
			t.Fatal("one leader is missing")
		}
		if err := l.Merge(2, encodeClaims(claimDelta, []leaderClaim{{5, 1, true}})); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := l.Wait(ctx, 6); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	})
}

func TestLeadersGetDoesNotAllocate(t *testing.T) {
	l := NewLeaders(1)
	l.Set(100_000, 3, true)
	if n := testing.AllocsPerRun(100, func() { l.Get(100_000) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func FuzzLeadersMerge(f *testing.F) {
	l := NewLeaders(1)
	f.Add(l.Set(7, 3, true))
	f.Add(l.Snapshot())
	f.Add([]byte{1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		l := NewLeaders(1)
		l.Set(7, 3, true)
		if err := l.Merge(2, b); err != nil && !errors.Is(err, ErrLeaderFrame) {
			t.Fatal(err)
		}
		kind, claims, err := decodeClaims(b)
		if err != nil {
			return
		}
		k, again, err := decodeClaims(encodeClaims(kind, claims))
		if err != nil || k != kind || len(again) != len(claims) {
			t.Fatalf("%v %v %v", k, again, err)
		}
	})
}
