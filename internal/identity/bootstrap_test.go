package identity

import (
	"fmt"
	"strings"
	"testing"

	"chronik/internal/ident"
)

// say writes an action as one line.
func say(a Action) string {
	kinds := []string{"wait", "propose", "resume", "commit", "unprepare", "join"}
	out := kinds[a.Kind]
	if a.Kind == ActJoin {
		out += fmt.Sprint(" via ", a.Via)
	}
	if a.Missing != nil {
		out += fmt.Sprint(" for ", a.Missing)
	}
	return out
}

func TestDecide(t *testing.T) {
	s1, s2, s3, s9 := ident.StoreID{1}, ident.StoreID{2}, ident.StoreID{3}, ident.StoreID{9}
	g := genesisOf(1, s1, s2, s3)
	all := []ident.NodeID{1, 2, 3}
	hello := func(n ident.NodeID, st ident.StoreID, state State) Hello {
		h := Hello{Node: n, Store: st, State: state, PeersHash: "all"}
		if state == Prepared {
			h.Genesis = g
		}
		if state == Member {
			h.Cluster = g.ClusterID
		}
		return h
	}
	blank := func(n ident.NodeID, st ident.StoreID) Hello { return hello(n, st, Blank) }
	with := func(h Hello, f func(*Hello)) Hello { f(&h); return h }
	elsewhere := func(h *Hello) { h.State, h.Cluster, h.Genesis = Member, "elsewhere", nil }
	for _, c := range []struct {
		name  string
		peers []ident.NodeID
		me    Hello
		live  []Hello
		want  string
		why   string
	}{
		{"standalone", nil, blank(1, s1), nil, "propose", ""},
		{"standalone, a list of one", []ident.NodeID{1}, blank(1, s1), nil, "propose", ""},
		{"standalone, somebody else knocks", nil, blank(1, s1), []Hello{with(blank(2, s2), func(h *Hello) { h.PeersHash = "other" })}, "propose", ""},
		{"standalone again after a crash", nil, with(blank(1, s1), func(h *Hello) { h.State, h.Genesis = Prepared, genesisOf(1, s1) }), nil, "resume", ""},

		{"nobody there", all, blank(1, s1), nil, "wait for [2 3]", "waiting for nodes [2 3]"},
		{"no majority shortcut", all, blank(1, s1), []Hello{blank(2, s2)}, "wait for [3]", ""},
		{"all there, lowest", all, blank(1, s1), []Hello{blank(2, s2), blank(3, s3)}, "propose", ""},
		{"all there, not lowest", all, blank(2, s2), []Hello{blank(1, s1), blank(3, s3)}, "wait for [1]", "node 1 to propose"},
		{"lists differ", all, blank(1, s1), []Hello{with(blank(2, s2), func(h *Hello) { h.PeersHash = "x" }), blank(3, s3)}, "wait for [2]", "another list"},
		{"a copied directory", all, blank(1, s1), []Hello{blank(2, s2), blank(3, s2)}, "wait for [3]", "nodes 2 and 3"},
		{"a copy of mine", all, blank(1, s1), []Hello{blank(2, s1), blank(3, s3)}, "wait for [2]", "nodes 1 and 2"},
		{"a renewed peer", all, blank(1, s1), []Hello{blank(2, s2), with(blank(3, s3), func(h *Hello) { h.JoinOnly = true })}, "wait for [3]", "was in a cluster"},
		{"a joiner outside the list does not matter", all, blank(1, s1), []Hello{blank(2, s2), blank(3, s3), with(blank(4, s9), func(h *Hello) { h.JoinOnly = true })}, "propose", ""},

		{"not in its own list", []ident.NodeID{2, 3}, blank(1, s1), []Hello{blank(2, s2), blank(3, s3)}, "wait for [2 3]", "may only join"},
		{"renewed", all, with(blank(1, s1), func(h *Hello) { h.JoinOnly = true }), []Hello{blank(2, s2), blank(3, s3)}, "wait for [2 3]", "may only join"},
		{"blank sees a member", all, blank(1, s1), []Hello{hello(3, s3, Member)}, "join via 3", ""},
		{"a listed member first", all, blank(1, s1), []Hello{with(blank(4, s9), elsewhere), hello(2, s2, Member), with(blank(5, s9), elsewhere)}, "join via 2", ""},
		{"renewed sees its cluster", all, with(blank(1, s1), func(h *Hello) { h.JoinOnly, h.Cluster = true, g.ClusterID }), []Hello{with(blank(2, s2), elsewhere), hello(3, s3, Member)}, "join via 3", ""},
		{"renewed sees another cluster", all, with(blank(1, s1), func(h *Hello) { h.JoinOnly, h.Cluster = true, g.ClusterID }), []Hello{with(blank(2, s2), elsewhere)}, "wait for [2 3]", ""},

		{"proposer resumes", all, hello(1, s1, Prepared), []Hello{hello(2, s2, Prepared), blank(3, s3)}, "resume", ""},
		{"proposer misses one", all, hello(1, s1, Prepared), []Hello{hello(2, s2, Prepared)}, "wait for [3]", ""},
		{"a founder was wiped", all, hello(1, s1, Prepared), []Hello{hello(2, s2, Prepared), blank(3, s9)}, "propose", "proposing anew"},
		{"the list grew", []ident.NodeID{1, 2, 3, 4}, hello(1, s1, Prepared), []Hello{hello(2, s2, Prepared), blank(3, s3), blank(4, s9)}, "propose", "proposing anew"},
		{"the list shrank", []ident.NodeID{1, 2}, hello(1, s1, Prepared), []Hello{hello(2, s2, Prepared)}, "propose", "proposing anew"},
		{"proposer no longer in the list", []ident.NodeID{2, 3}, hello(1, s1, Prepared), []Hello{blank(2, s2), blank(3, s3)}, "unprepare", "list of peers"},
		{"proposer is no longer the lowest", []ident.NodeID{0, 1, 2}, hello(1, s1, Prepared), nil, "unprepare", "list of peers"},
		{"an older round came late", all, hello(1, s1, Prepared), []Hello{hello(2, s2, Prepared), with(hello(3, s3, Prepared), func(h *Hello) { h.Genesis = genesisOf(1, s1, s2, s3) })}, "propose", "came late"},
		{"an older round is still held", all, hello(1, s1, Prepared), []Hello{hello(2, s2, Prepared), with(hello(3, s3, Prepared), func(h *Hello) { h.Genesis = genesisOf(0, s1, s2, s3) })}, "resume", ""},
		{"new proposer, old agreement around", all, blank(1, s9), []Hello{hello(2, s2, Prepared), blank(3, s3)}, "wait for [2]", "give up"},

		{"prepared sees a member", all, hello(2, s2, Prepared), []Hello{hello(3, s3, Member)}, "commit", ""},
		{"prepared sees a member that joined later", all, hello(2, s2, Prepared), []Hello{hello(7, s9, Member)}, "commit", ""},
		{"prepared waits for the proposer", all, hello(2, s2, Prepared), []Hello{hello(1, s1, Prepared), blank(3, s3)}, "wait for [1]", "to commit"},
		{"the proposer was wiped, one is missing", all, hello(2, s2, Prepared), []Hello{blank(1, s9)}, "wait for [3]", ""},
		{"the proposer was wiped", all, hello(2, s2, Prepared), []Hello{blank(1, s9), hello(3, s3, Prepared)}, "unprepare", "lost its store"},
		{"the proposer restarted and holds on", all, hello(2, s2, Prepared), []Hello{with(hello(1, s1, Prepared), func(h *Hello) { h.Boot = 9 })}, "wait for [3]", ""},
		{"the proposer restarted and let go", all, hello(2, s2, Prepared), []Hello{with(blank(1, s1), func(h *Hello) { h.Boot = 9 })}, "unprepare", "no longer proposes"},
		{"an old word of the proposer", all, hello(2, s2, Prepared), []Hello{blank(1, s1), blank(3, s3)}, "wait for [1]", "to commit"},
		{"prepared sees a stranger's cluster", all, hello(2, s2, Prepared), []Hello{with(blank(8, s9), elsewhere)}, "wait for [1 3]", ""},
		{"a founder went elsewhere", all, hello(2, s2, Prepared), []Hello{with(blank(3, s3), elsewhere)}, "unprepare", "elsewhere"},
		{"the list was lost: founders are asked all the same", nil, hello(2, s2, Prepared), nil, "wait for [1 3]", ""},
		{"the list shrank without the proposer", []ident.NodeID{2, 3}, hello(2, s2, Prepared), []Hello{hello(3, s3, Prepared)}, "wait for [1]", ""},
	} {
		live := map[ident.NodeID]Hello{}
		for _, h := range c.live {
			live[h.Node] = h
		}
		got := Decide(Situation{Node: c.me.Node, Peers: c.peers, Me: c.me, Live: live})
		if say(got) != c.want || !strings.Contains(got.Why, c.why) {
			t.Errorf("%s: %s (%s), want %s (%s)", c.name, say(got), got.Why, c.want, c.why)
		}
	}
}

// TestJoinsThroughAnother: a member through which joining failed is not asked again before the others of its cluster,
// and a stranger's cluster is not joined in its place.
func TestJoinsThroughAnother(t *testing.T) {
	live := map[ident.NodeID]Hello{}
	for n, cluster := range map[ident.NodeID]string{2: "ours", 3: "ours", 4: "another", 5: "ours"} {
		live[n] = Hello{Node: n, Store: ident.StoreID{byte(n)}, State: Member, Cluster: cluster}
	}
	for _, c := range []struct {
		failed []ident.NodeID
		want   ident.NodeID
	}{
		{nil, 2},
		{[]ident.NodeID{2}, 3},
		{[]ident.NodeID{2, 3}, 5}, // not a configured peer, and a member of the same cluster
		{[]ident.NodeID{2, 3, 5}, 2},
		{[]ident.NodeID{3, 5, 2}, 3},
		{[]ident.NodeID{9}, 2},
	} {
		s := Situation{Node: 1, Peers: []ident.NodeID{1, 2, 3, 4}, Me: Hello{Node: 1, Store: ident.StoreID{1}, State: Blank}, Live: live, Failed: c.failed}
		if got := Decide(s); got.Kind != ActJoin || got.Via != c.want {
			t.Errorf("failed through %v: %s (%s), want node %d", c.failed, say(got), got.Why, c.want)
		}
	}
}

func TestNewGenesis(t *testing.T) {
	live := map[ident.NodeID]Hello{}
	peers := []ident.NodeID{1}
	for n := ident.NodeID(2); n <= 4; n++ {
		live[n] = Hello{Node: n, Store: ident.StoreID{byte(n)}, RaftAddr: fmt.Sprint("h:", n)}
		peers = append(peers, n)
	}
	live[9] = Hello{Node: 9, Store: ident.StoreID{9}} // not a configured peer
	s := Situation{Node: 1, Peers: peers, Me: Hello{Node: 1, Store: ident.StoreID{1}, Boot: 2, RaftAddr: "h:1"}, Live: live}
	g := NewGenesis(s, 3)
	if err := g.check(1, ident.StoreID{1}); err != nil {
		t.Fatal(err)
	}
	if len(g.Members) != 4 || g.Members[2].Learner || !g.Members[3].Learner || g.Members[3].RaftAddr != "h:4" || g.Names(ident.StoreID{9}) {
		t.Errorf("genesis %+v", g)
	}
	s.Me.Genesis = g
	next := NewGenesis(s, 3)
	if next.Round <= g.Round || next.ClusterID == g.ClusterID || next.Equal(g) {
		t.Errorf("the next: round %d after %d", next.Round, g.Round)
	}
	s.Me.Genesis, s.Me.Boot = nil, 3 // crashed between giving up the old and holding the new
	if g := NewGenesis(s, 3); g.Round <= next.Round {
		t.Errorf("after a restart: round %d after %d", g.Round, next.Round)
	}
}
