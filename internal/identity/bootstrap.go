package identity

import (
	"fmt"
	"maps"
	"slices"

	"chronik/internal/ident"
)

// Situation is what a node that is no member yet knows.
type Situation struct {
	Node ident.NodeID
	// Peers are the configured nodes, this one among them if it may found; empty: a node alone.
	Peers []ident.NodeID
	// Me is what this node says of itself.
	Me Hello
	// Live are the Hellos of the nodes that are connected now, each the newest: a
	// node says Hello anew when its state has changed.
	Live map[ident.NodeID]Hello
	// Failed are members through which joining has failed, the latest last.
	Failed []ident.NodeID
}

// ActionKind is what a node does next on its way into a cluster.
type ActionKind uint8

// Kinds of actions.
const (
	// ActWait: nothing can be done before something changes. Missing says who is awaited.
	ActWait ActionKind = iota
	// ActPropose: make a Genesis of the Live stores, Prepare it here, then ask every
	// other founder to Prepare it; once all have, Commit and tell them. It may replace
	// a Genesis of this store's own that has become void: Unprepare first.
	ActPropose
	// ActResume: the same with the Genesis this store is prepared with.
	ActResume
	// ActCommit: a member of this store's Genesis lives: become one too.
	ActCommit
	// ActUnprepare: the Genesis this store agreed to can never be committed.
	ActUnprepare
	// ActJoin: ask node Via, a member, to be registered.
	ActJoin
)

// Action is what Decide decided.
type Action struct {
	Kind    ActionKind
	Via     ident.NodeID
	Missing []ident.NodeID
	// Why says it to the operator.
	Why string
}

// Decide says what a store that is no member does next (correctness rule 20).
//
// Only the lowest configured node proposes, and only while it holds the Hello of
// every configured peer, none a member, none prepared by another store, all with
// the same list. It commits only the last Genesis it made, and only when every
// founder's store has prepared that one. So while a store holds a Genesis, that
// Genesis may be committed somewhere, unless its proposer's store went on or is gone.
func Decide(s Situation) Action {
	decided := decideJoin
	if s.Me.State == Prepared {
		decided = decidePrepared
	}
	if act, ok := decided(s); ok {
		return act
	}
	if s.Me.JoinOnly || len(s.Peers) > 0 && !slices.Contains(s.Peers, s.Node) {
		return wait(others(s), "this store may only join: waiting for a member of the cluster")
	}
	if missing := absent(s, s.Peers); len(missing) > 0 {
		return wait(missing, "founding needs every configured peer: waiting for nodes %v", missing)
	}
	return decideFounding(s)
}

func wait(missing []ident.NodeID, why string, args ...any) Action {
	return Action{Kind: ActWait, Missing: missing, Why: fmt.Sprintf(why, args...)}
}

// decidePrepared: what the living say of the Genesis this store holds. It returns
// false if this store is its proposer and must go on with the founding.
func decidePrepared(s Situation) (Action, bool) {
	g := s.Me.Genesis
	for _, n := range sortedNodes(s.Live) {
		if h := s.Live[n]; h.State == Member && h.Cluster == g.ClusterID {
			return Action{Kind: ActCommit, Via: n, Why: fmt.Sprintf("node %d is a member of the cluster", n)}, true
		}
	}
	// A founder's store that is in another cluster never held g or left it rightly,
	// and will not hold it again.
	for _, n := range sortedNodes(s.Live) {
		if h := s.Live[n]; h.State == Member && g.Names(h.Store) {
			return Action{Kind: ActUnprepare, Why: fmt.Sprintf("founder node %d is in cluster %s", n, h.Cluster)}, true
		}
	}
	if g.Proposer == s.Me.Store {
		if founders(s)[0] != s.Node || len(s.Peers) > 0 && !slices.Contains(s.Peers, s.Node) {
			return Action{Kind: ActUnprepare, Why: "proposing is no longer this node's: the list of peers has changed"}, true
		}
		return Action{}, false
	}
	// Has the proposer gone on? What it says after a restart is younger than g.
	proposer := g.Members[0].Node
	if h := s.Live[proposer]; h.Store == g.Proposer && h.Boot > g.boot() && !h.Genesis.Equal(g) {
		return Action{Kind: ActUnprepare, Why: fmt.Sprintf("node %d no longer proposes this", proposer)}, true
	}
	// Is the proposer's store gone? Then, if of all who could be members none is, nobody is.
	named := slices.Clone(s.Peers)
	for _, m := range g.Members {
		named = append(named, m.Node)
	}
	if missing := absent(s, named); len(missing) > 0 {
		return wait(missing, "agreed to found cluster %s: waiting for nodes %v", g.ClusterID, missing), true
	}
	if s.Live[proposer].Store != g.Proposer {
		return Action{Kind: ActUnprepare, Why: fmt.Sprintf("node %d, which proposed, has lost its store", proposer)}, true
	}
	return wait([]ident.NodeID{proposer}, "agreed to found cluster %s: waiting for node %d to commit", g.ClusterID, proposer), true
}

// decideJoin: a store that holds no Genesis sees a member. Configured peers come first; of the members of that cluster
// those through which joining failed come last, the one that failed first before the others.
func decideJoin(s Situation) (Action, bool) {
	nodes := slices.DeleteFunc(sortedNodes(s.Live), func(n ident.NodeID) bool {
		h := s.Live[n]
		return h.State != Member || s.Me.Cluster != "" && s.Me.Cluster != h.Cluster
	})
	if len(nodes) == 0 {
		return Action{}, false
	}
	slices.SortStableFunc(nodes, func(a, b ident.NodeID) int { return listed(s, b) - listed(s, a) })
	cluster := s.Live[nodes[0]].Cluster
	nodes = slices.DeleteFunc(nodes, func(n ident.NodeID) bool { return s.Live[n].Cluster != cluster })
	via := slices.MinFunc(nodes, func(a, b ident.NodeID) int { return slices.Index(s.Failed, a) - slices.Index(s.Failed, b) })
	return Action{Kind: ActJoin, Via: via, Why: fmt.Sprintf("joining cluster %s through node %d", cluster, via)}, true
}

func listed(s Situation, n ident.NodeID) int {
	if slices.Contains(s.Peers, n) {
		return 1
	}
	return 0
}

// decideFounding: every configured peer is connected and none is a member.
func decideFounding(s Situation) Action {
	nodes := founders(s)
	lowest := nodes[0]
	stores := map[ident.StoreID]ident.NodeID{s.Me.Store: s.Node}
	for _, n := range others(s) {
		h := s.Live[n]
		twin, taken := stores[h.Store]
		stores[h.Store] = n
		switch {
		case h.PeersHash != s.Me.PeersHash:
			return wait([]ident.NodeID{n}, "node %d has another list of peers: correct the one or the other", n)
		case h.JoinOnly:
			return wait([]ident.NodeID{n}, "node %d was in a cluster before: waiting for a member of it", n)
		case taken:
			return wait([]ident.NodeID{n}, "nodes %d and %d have copies of one data directory: remove one", twin, n)
		}
	}
	if s.Node != lowest {
		return wait([]ident.NodeID{lowest}, "waiting for node %d to propose the cluster", lowest)
	}
	late := false
	for _, n := range others(s) {
		h := s.Live[n]
		if h.State != Prepared {
			continue
		}
		if h.Genesis.Proposer != s.Me.Store {
			return wait([]ident.NodeID{n}, "waiting for node %d to give up an older proposal", n)
		}
		late = late || s.Me.State == Prepared && !h.Genesis.Equal(s.Me.Genesis) && h.Genesis.Round >= s.Me.Genesis.Round
	}
	if s.Me.State != Prepared {
		return Action{Kind: ActPropose, Why: "proposing a cluster"}
	}
	if late {
		return Action{Kind: ActPropose, Why: "a founder holds an older proposal that came late: proposing anew"}
	}
	held := make([]ident.NodeID, 0, len(s.Me.Genesis.Members))
	for _, m := range s.Me.Genesis.Members {
		if stores[m.Store] == m.Node {
			held = append(held, m.Node)
		}
	}
	if !slices.Equal(held, nodes) || len(s.Me.Genesis.Members) != len(nodes) {
		return Action{Kind: ActPropose, Why: "a founder's store is gone: proposing anew"}
	}
	return Action{Kind: ActResume, Why: "proposing the cluster again"}
}

// absent returns those of nodes, this one apart, without a live Hello.
func absent(s Situation, nodes []ident.NodeID) []ident.NodeID {
	var out []ident.NodeID
	for _, n := range nodes {
		if _, ok := s.Live[n]; !ok && n != s.Node && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// others returns the configured peers without this node, in order.
func others(s Situation) []ident.NodeID {
	out := slices.DeleteFunc(slices.Clone(s.Peers), func(n ident.NodeID) bool { return n == s.Node })
	slices.Sort(out)
	return slices.Compact(out)
}

// founders returns the configured peers and this node, in order.
func founders(s Situation) []ident.NodeID {
	out := append(others(s), s.Node)
	slices.Sort(out)
	return out
}

func sortedNodes(m map[ident.NodeID]Hello) []ident.NodeID { return slices.Sorted(maps.Keys(m)) }
