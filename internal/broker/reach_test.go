package broker

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chronik/internal/alloctest"
	"chronik/internal/ident"
	"chronik/internal/raftgroup"
)

// wiring refuses connections between some nodes.
type wiring struct {
	c   *trio
	mu  sync.Mutex
	cut [2]int
}

func (w *wiring) of(node int) Net {
	return Net{Dial: func(ctx context.Context, addr string) (net.Conn, error) {
		w.mu.Lock()
		cut := w.cut
		w.mu.Unlock()
		for i, from := range cut {
			if to := cut[1-i]; from == node && addr == w.c.cfg[to].Raft.Listen {
				return nil, errors.New("the line is cut")
			}
		}
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}}
}

func (w *wiring) set(a, b int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = [2]int{a, b}
}

// TestLeadershipGoesToWhoReachesAll: a node that its leaders do not reach comes back all the same, because a third reaches both.
func TestLeadershipGoesToWhoReachesAll(t *testing.T) {
	c := newTrio(t)
	w := &wiring{c: c}
	for i := 1; i <= 3; i++ {
		c.net[i] = w.of(i)
	}
	c.start(1, 2, 3)
	c.serving(1, 2, 3)
	c.produce(0, 4)
	var leader ident.NodeID
	eventually(t, 10*time.Second, "a metadata leader", func() error {
		if leader = c.b[1].session().leaders.Get(ident.MetaGroup).Node; leader == 0 {
			return errors.New("none")
		}
		return nil
	})
	away := 1 + int(leader)%3
	third := 6 - away - int(leader)
	c.stop(away)
	w.set(int(leader), away)
	c.start(away)
	s := c.b[away].session()
	eventually(t, 10*time.Second, "it says what it waits for", func() error {
		err := c.b[away].Source().Ready()
		if err == nil || !strings.Contains(err.Error(), "no leader of it is heard; in reach: nodes ["+ident.NodeID(third).String()+"], out of reach: nodes ["+leader.String()+"]") {
			return errors.Join(errors.New("not yet"), err)
		}
		return nil
	})
	c.serving(away)
	eventually(t, 10*time.Second, "it is ready", func() error { return c.b[away].Source().Ready() })
	for _, r := range s.host.Replicas() {
		if got := r.Status().LeaderNode; int(got) != third && int(got) != away {
			t.Errorf("%s is led by node %d, which node %d does not reach", r.Status().Name, got, away)
		}
	}
	c.records(away, 4)
	w.set(0, 0)
}

// TestBetterPlaced is a leader on node 1 of voters on nodes 1, 2 and 3 and a learner on node 4.
func TestBetterPlaced(t *testing.T) {
	st := raftgroup.Status{
		Members: []raftgroup.Member{{Replica: 1, Node: 1}, {Replica: 2, Node: 2}, {Replica: 3, Node: 3}, {Replica: 4, Node: 4, Learner: true}},
		Followers: []raftgroup.Follower{
			{Replica: 2, Node: 2, State: "StateReplicate", Alive: true},
			{Replica: 3, Node: 3, State: "StateReplicate", Alive: true},
			{Replica: 4, Node: 4, State: "StateReplicate", Alive: true, Learner: true},
		},
	}
	reach := func(sets ...[]ident.NodeID) map[ident.NodeID]nodeSet {
		m := map[ident.NodeID]nodeSet{}
		for _, s := range sets {
			m[s[0]] = setOf(s)
		}
		return m
	}
	for _, c := range []struct {
		name   string
		mine   []ident.NodeID
		theirs map[ident.NodeID]nodeSet
		spoil  func(f []raftgroup.Follower)
		want   ident.ReplicaID
	}{
		{"a dead node is missed by all", []ident.NodeID{1, 2, 4}, reach([]ident.NodeID{2, 1, 4}, []ident.NodeID{4, 1, 2}), nil, 0},
		{"one reaches more", []ident.NodeID{1, 2, 4}, reach([]ident.NodeID{2, 1, 3, 4}), nil, 2},
		{"another, not more", []ident.NodeID{1, 2, 4}, reach([]ident.NodeID{2, 1, 3}), nil, 0},
		{"it counts this group's nodes only", []ident.NodeID{1, 2, 4}, reach([]ident.NodeID{2, 1, 4, 5, 6}), nil, 0},
		{"a learner's node counts", []ident.NodeID{1, 2, 3}, reach([]ident.NodeID{2, 1, 3}, []ident.NodeID{3, 1, 2, 4}), nil, 3},
		{"the one that reaches most", []ident.NodeID{1, 2}, reach([]ident.NodeID{2, 1, 3}, []ident.NodeID{3, 1, 2, 4}), nil, 3},
		{"a learner cannot lead", []ident.NodeID{1, 4}, reach([]ident.NodeID{4, 1, 2, 3}), nil, 0},
		{"nor one that is not connected", []ident.NodeID{1, 2, 4}, reach([]ident.NodeID{2, 1, 3, 4}), func(f []raftgroup.Follower) { f[0].Alive = false }, 0},
		{"nor one that is behind", []ident.NodeID{1, 2, 4}, reach([]ident.NodeID{2, 1, 3, 4}), func(f []raftgroup.Follower) { f[0].Lag = 1000 }, 0},
		{"nor one that is probed", []ident.NodeID{1, 2, 4}, reach([]ident.NodeID{2, 1, 3, 4}), func(f []raftgroup.Follower) { f[0].State = "StateProbe" }, 0},
		{"nor one that is halted", []ident.NodeID{1, 2, 4}, reach([]ident.NodeID{2, 1, 3, 4}), func(f []raftgroup.Follower) { f[0].Halted = true }, 0},
	} {
		one := st
		one.Followers = slices.Clone(st.Followers)
		if c.spoil != nil {
			c.spoil(one.Followers)
		}
		got := ident.ReplicaID(0)
		if f := betterPlaced(one, setOf(c.mine), c.theirs); f != nil {
			got = f.Replica
		}
		if got != c.want {
			t.Errorf("%s: replica %d, want %d", c.name, got, c.want)
		}
	}
}

// TestHandOversBecomeRare: an attempt that fails is repeated later and later, in a new term at once.
func TestHandOversBecomeRare(t *testing.T) {
	now := time.Now()
	h := handOvers{}
	at := []time.Duration{}
	for d := time.Duration(0); d < 3*time.Minute; d += time.Second {
		if h.due(5, now.Add(d)) {
			h = h.next(5, now.Add(d))
			at = append(at, d/time.Second)
		}
	}
	if !slices.Equal(at, []time.Duration{0, 4, 12, 28, 60, 120}) {
		t.Errorf("attempts at %v", at)
	}
	if !h.due(6, now) {
		t.Error("not in a new term")
	}
}

// FuzzReached takes a peer's answer of whom it reaches.
func FuzzReached(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 3})
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		nodes, err := decodeReached(b)
		if err == nil && (len(nodes) != len(b)/4 || slices.ContainsFunc(nodes, func(n ident.NodeID) bool { return n <= 0 })) {
			t.Fatalf("%x: %v", b, nodes)
		}
	})
}
