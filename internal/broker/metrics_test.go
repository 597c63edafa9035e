package broker

import (
	"maps"
	"testing"

	"chronik/internal/ident"
	"chronik/internal/raftgroup"
)

// While a wiped node's replica is replaced, a group has two there. Told twice,
// the series would make all of /metrics an error.
func TestNewestOnTellsANodeOnce(t *testing.T) {
	got := map[ident.NodeID]uint64{}
	for node, f := range newestOn([]raftgroup.Follower{
		{Node: 2, Replica: 5, Lag: 1}, {Node: 3, Replica: 9, Lag: 20}, {Node: 3, Replica: 6, Lag: 999},
	}) {
		got[node] = f.Lag
	}
	want := map[ident.NodeID]uint64{2: 1, 3: 20}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
