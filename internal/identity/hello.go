package identity

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

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
	// LSN is the highest durable one of the node's log.
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
	if err := json.Unmarshal(b, &h); err != nil {
		return h, fmt.Errorf("hello: %w", err)
	}
	if h.Version != helloVersion {
		return h, fmt.Errorf("hello of version %d, this release knows %d", h.Version, helloVersion)
	}
	if h.Node <= 0 || h.Store.IsZero() || !slices.Contains([]State{Blank, Prepared, Member}, h.State) {
		return h, fmt.Errorf("hello of node %d, store %s, state %q: out of range", h.Node, h.Store, h.State)
	}
	if h.State == Prepared && h.Genesis == nil {
		return h, fmt.Errorf("hello of node %d: prepared without a genesis", h.Node)
	}
	return h, nil
}

// PeersHash returns a digest of the configured peers, whatever their order.
func PeersHash(peers map[ident.NodeID]string) string {
	list := make([]string, 0, len(peers))
	for n, addr := range peers {
		list = append(list, fmt.Sprintf("%d@%s", n, addr))
	}
	slices.Sort(list)
	sum := sha256.Sum256([]byte(strings.Join(list, ",")))
	return hex.EncodeToString(sum[:8])
}
