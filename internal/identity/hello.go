package identity

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"chronik/internal/format"
	"chronik/internal/ident"
)

// Hello is what a node says of itself when a connection opens.
type Hello struct {
	Version int           `json:"v"` // of this encoding: 1
	Cluster string        `json:"cluster,omitempty"`
	Node    ident.NodeID  `json:"node"`
	Store   ident.StoreID `json:"store"`
	State   State         `json:"state"`
	// JoinOnly: a store that was renewed; it founds nothing.
	JoinOnly bool `json:"join_only,omitempty"`
	// Genesis is what a prepared store has agreed to.
	Genesis *Genesis `json:"genesis,omitempty"`
	// PeersHash is of the configured peers: all founders must have the same list.
	PeersHash string `json:"peers"`
	Boot      uint64 `json:"boot"`
	Run       uint64 `json:"run"`
	// LSN is the highest durable one that the node's log had when it was opened.
	LSN      uint64 `json:"lsn"`
	RaftAddr string `json:"raft_addr"`
	// Seen is what the node remembers of all stores, the receiver's among them.
	Seen []Sighting `json:"seen,omitempty"`
}

// helloVersion is the encoding's version.
const helloVersion = 1

// Encode returns h as it travels.
func (h Hello) Encode() ([]byte, error) {
	h.Version = helloVersion
	return json.Marshal(h)
}

// DecodeHello reads what Encode wrote.
func DecodeHello(b []byte) (Hello, error) {
	var h Hello
	if err := unmarshal(b, &h); err != nil {
		return h, fmt.Errorf("hello: %w", err)
	}
	if err := format.Check(h.Version, helloVersion); err != nil {
		return h, fmt.Errorf("hello of %w", err)
	}
	if h.Node <= 0 || h.Store.IsZero() {
		return h, fmt.Errorf("hello of node %d, store %s: out of range", h.Node, h.Store)
	}
	if len(h.Seen) > maxSightings {
		return h, fmt.Errorf("hello of node %d: %d sightings, limit %d", h.Node, len(h.Seen), maxSightings)
	}
	var err error
	if h.Genesis != nil {
		err = h.Genesis.check(h.Node, h.Store)
	}
	switch {
	case err != nil:
		return h, fmt.Errorf("hello of node %d: %w", h.Node, err)
	case h.State == Blank && h.Genesis == nil:
	case h.State == Prepared && h.Genesis != nil:
	case h.State == Member && h.Cluster != "":
	default:
		return h, fmt.Errorf("hello of node %d: state %q of cluster %q does not go with what else it says", h.Node, h.State, h.Cluster)
	}
	return h, nil
}

// PeersHash returns a digest of the configured peers' ids, whatever their order.
// Addresses are left out: consent is of nodes and their stores, and one node may
// be reached by different names from different places.
func PeersHash(peers map[ident.NodeID]string) string {
	list := make([]string, 0, len(peers))
	for _, n := range slices.Sorted(maps.Keys(peers)) {
		list = append(list, n.String())
	}
	sum := sha256.Sum256([]byte(strings.Join(list, ",")))
	return hex.EncodeToString(sum[:8])
}
