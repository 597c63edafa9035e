package identity

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"

	"chronik/internal/ident"
	"chronik/internal/jsonbound"
)

// maxFounders bounds a decoded Genesis.
const maxFounders = 1024

// roundBits are left for rounds within one boot.
const roundBits = 20

// GenesisMember is a founding node.
type GenesisMember struct {
	Node        ident.NodeID    `json:"node"`
	Store       ident.StoreID   `json:"store"`
	MetaReplica ident.ReplicaID `json:"meta_replica"`
	Learner     bool            `json:"learner,omitempty"`
	RaftAddr    string          `json:"raft_addr"`
}

// Genesis is the birth of a cluster: its id and the founders, by node id. Its
// proposer is the first of them.
type Genesis struct {
	ClusterID string        `json:"cluster_id"`
	Proposer  ident.StoreID `json:"proposer"`
	// Round begins with the proposer's boot and rises above those of
	// the same proposer that are still held somewhere.
	Round   uint64          `json:"round"`
	Members []GenesisMember `json:"members"`
}

// NewGenesis returns a genesis of the stores in s. voters says how many of the
// founders vote in the metadata group: the lowest nodes.
func NewGenesis(s Situation, voters int) *Genesis {
	g := &Genesis{ClusterID: NewClusterID(), Proposer: s.Me.Store, Round: s.Me.Boot << roundBits}
	all := map[ident.NodeID]Hello{s.Node: s.Me}
	for n, h := range s.Live {
		if slices.Contains(s.Peers, n) {
			all[n] = h
		}
	}
	for _, h := range all {
		if h.Genesis != nil && h.Genesis.Proposer == s.Me.Store {
			g.Round = max(g.Round, h.Genesis.Round+1)
		}
	}
	for i, n := range sortedNodes(all) {
		g.Members = append(g.Members, GenesisMember{
			Node: n, Store: all[n].Store, MetaReplica: ident.ReplicaID(i + 1), Learner: i >= voters, RaftAddr: all[n].RaftAddr,
		})
	}
	return g
}

// DecodeGenesis reads a genesis as a proposer sends it (JSON). Whether it is one for
// the store that gets it is said by Store.Prepare.
func DecodeGenesis(b []byte) (*Genesis, error) {
	g := &Genesis{}
	if err := unmarshal(b, g); err != nil {
		return nil, fmt.Errorf("genesis: %w", err)
	}
	return g, nil
}

// unmarshal decodes JSON that is not crowded.
func unmarshal(b []byte, v any) error {
	if err := jsonbound.Check(b); err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// boot returns the boot of the proposer's store in which g was made.
func (g *Genesis) boot() uint64 { return g.Round >> roundBits }

// Names tells whether store is a founder.
func (g *Genesis) Names(store ident.StoreID) bool {
	return slices.ContainsFunc(g.Members, func(m GenesisMember) bool { return m.Store == store })
}

// Equal tells whether two geneses are the same.
func (g *Genesis) Equal(o *Genesis) bool {
	return g != nil && o != nil && g.ClusterID == o.ClusterID && g.Proposer == o.Proposer && g.Round == o.Round &&
		slices.Equal(g.Members, o.Members)
}

// check tells what is wrong with g for a founder, if anything. Node 0 is for anybody.
func (g *Genesis) check(node ident.NodeID, store ident.StoreID) error {
	id, err := base64.RawURLEncoding.DecodeString(g.ClusterID)
	if err != nil || len(id) != 16 {
		return fmt.Errorf("genesis: cluster id %.40q: want 22 characters of base64", g.ClusterID)
	}
	if len(g.Members) == 0 || len(g.Members) > maxFounders {
		return fmt.Errorf("genesis of %s: %d founders", g.ClusterID, len(g.Members))
	}
	named := node == 0
	stores := make(map[ident.StoreID]bool, len(g.Members))
	for i, m := range g.Members {
		if m.Node <= 0 || m.Store.IsZero() || m.MetaReplica != ident.ReplicaID(i+1) {
			return fmt.Errorf("genesis of %s: founder %d: node %d, store %s, replica %d", g.ClusterID, i, m.Node, m.Store, m.MetaReplica)
		}
		if i > 0 && m.Node <= g.Members[i-1].Node || stores[m.Store] {
			return fmt.Errorf("genesis of %s: founder %d: node %d out of order or its store named twice", g.ClusterID, i, m.Node)
		}
		stores[m.Store] = true
		named = named || m.Node == node && m.Store == store
	}
	switch {
	case g.Members[0].Learner:
		return fmt.Errorf("genesis of %s: no voter", g.ClusterID)
	case g.Members[0].Store != g.Proposer:
		return fmt.Errorf("genesis of %s: proposed by store %s, which is not the lowest node's", g.ClusterID, g.Proposer)
	case !named:
		return fmt.Errorf("genesis of %s does not name store %s of node %d", g.ClusterID, store, node)
	}
	return nil
}

// NewClusterID returns a random id as Kafka writes it: 22 characters of URL-safe base64.
func NewClusterID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails since Go 1.24
	return base64.RawURLEncoding.EncodeToString(b[:])
}
