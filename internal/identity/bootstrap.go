package identity

import (
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
	// Live are the Hellos of the peers that are connected now.
	Live map[ident.NodeID]Hello
}

// ActionKind is what a node does next on its way into a cluster.
type ActionKind uint8

// Kinds of actions.
const (
	// ActWait: nothing can be done before something changes. Missing says who is awaited.
	ActWait ActionKind = iota
	// ActPropose: make a Genesis of the Live stores, Prepare it here, then ask every
	// other founder to Prepare it; once all have, Commit and tell them.
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
}

// Decide says what a store that is no member does next (correctness rule 20).
//
// Only the lowest configured node proposes, and only while it holds the Hello of
// every configured peer, none a member, none prepared by another store, all with the same list
// of peers. It commits only when every founder has prepared; so as long as one founder's
// store is gone, a proposal can not have been committed by anyone but is void, and its
// proposer may make another.
func Decide(s Situation) Action {
	for _, node := range sortedNodes(s.Live) {
		h := s.Live[node]
		if h.State != Member {
			continue
		}
		if s.Me.State == Prepared && s.Me.Genesis.ClusterID == h.Cluster {
			return Action{Kind: ActCommit}
		}
		if s.Me.Cluster != "" && s.Me.Cluster != h.Cluster {
			continue // another cluster's node: refused elsewhere
		}
		// A prepared store whose genesis is of another cluster can never commit it:
		// that needed every listed peer, and this one went elsewhere.
		return Action{Kind: ActJoin, Via: node}
	}
	if s.Me.JoinOnly || len(s.Peers) > 0 && !slices.Contains(s.Peers, s.Node) {
		return Action{Kind: ActWait, Missing: others(s)}
	}
	if missing := absent(s); len(missing) > 0 {
		return Action{Kind: ActWait, Missing: missing}
	}
	return decideFounding(s)
}

// decideFounding: every configured peer is connected and none is a member.
func decideFounding(s Situation) Action {
	lowest := slices.Min(append(slices.Clone(s.Peers), s.Node))
	for _, h := range s.Live {
		if h.PeersHash != s.Me.PeersHash || h.JoinOnly {
			return Action{Kind: ActWait, Missing: []ident.NodeID{h.Node}}
		}
	}
	if s.Node != lowest {
		// The proposer's store that this one agreed with is gone, and nobody is a member.
		if s.Me.State == Prepared && s.Live[lowest].Store != s.Me.Genesis.Proposer {
			return Action{Kind: ActUnprepare}
		}
		return Action{Kind: ActWait, Missing: []ident.NodeID{lowest}}
	}
	for _, h := range s.Live {
		if h.State == Prepared && h.Genesis.Proposer != s.Me.Store {
			return Action{Kind: ActWait, Missing: []ident.NodeID{h.Node}} // it unprepares once it sees this store
		}
	}
	if s.Me.State != Prepared {
		return Action{Kind: ActPropose}
	}
	for _, h := range s.Live {
		if !s.Me.Genesis.Names(h.Store) {
			return Action{Kind: ActPropose} // a founder's store is gone: the old genesis is void
		}
	}
	return Action{Kind: ActResume}
}

// absent returns the configured peers without a live Hello.
func absent(s Situation) []ident.NodeID {
	var out []ident.NodeID
	for _, n := range s.Peers {
		if _, ok := s.Live[n]; !ok && n != s.Node {
			out = append(out, n)
		}
	}
	return out
}

func others(s Situation) []ident.NodeID {
	return slices.DeleteFunc(slices.Clone(s.Peers), func(n ident.NodeID) bool { return n == s.Node })
}

func sortedNodes(m map[ident.NodeID]Hello) []ident.NodeID {
	out := make([]ident.NodeID, 0, len(m))
	for n := range m {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// NewGenesis returns a genesis of the stores in s. voters says how many of the
// founders vote in the metadata group: the lowest nodes.
func NewGenesis(s Situation, voters int) *Genesis {
	g := &Genesis{ClusterID: NewClusterID(), Proposer: s.Me.Store}
	all := map[ident.NodeID]Hello{s.Node: s.Me}
	for n, h := range s.Live {
		if slices.Contains(s.Peers, n) {
			all[n] = h
		}
	}
	for i, n := range sortedNodes(all) {
		g.Members = append(g.Members, GenesisMember{
			Node: n, Store: all[n].Store, MetaReplica: ident.ReplicaID(i + 1), Learner: i >= voters, RaftAddr: all[n].RaftAddr,
		})
	}
	return g
}
