package broker

import (
	"encoding/binary"
	"testing"

	"chronik/internal/alloctest"
	"chronik/internal/ident"
	"chronik/internal/identity"
	"chronik/internal/metadata"
	"chronik/internal/transport"
)

// FuzzGossip takes a peer's control frames that are not raft's.
func FuzzGossip(f *testing.F) {
	l := metadata.NewLeaders(2)
	f.Add(append([]byte{frameLeaders}, l.Set(7, 3, true)...))
	f.Add(append([]byte{frameLeaders}, l.Snapshot()...))
	f.Add(binary.BigEndian.AppendUint64([]byte{frameLSN}, 77))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		s := &session{leaders: metadata.NewLeaders(1), memory: &memory{witness: identity.NewWitness()}}
		s.leaders.Set(7, 3, true)
		err := s.handleGossip(transport.PeerInfo{Node: 2, Store: ident.StoreID{2}}, b)
		if err == nil && len(b) == 0 {
			t.Fatal("an empty frame passes")
		}
	})
}

// FuzzReplicaDir reads names of directories.
func FuzzReplicaDir(f *testing.F) {
	f.Add("orders-0.17")
	f.Add("a.b.1")
	f.Fuzz(func(t *testing.T, name string) {
		defer alloctest.Bound(t, len(name))()
		if key, id, ok := splitReplicaDir(name); ok && (id == 0 || len(key) >= len(name)) {
			t.Fatalf("%q: %q, %d", name, key, id)
		}
	})
}
