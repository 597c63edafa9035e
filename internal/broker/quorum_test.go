package broker

import (
	"slices"
	"strings"
	"testing"

	"chronik/internal/admin"
	"chronik/internal/ident"
	"chronik/internal/raftgroup"
)

func TestShortfall(t *testing.T) {
	store := func(n byte) ident.StoreID { return ident.StoreID{n} }
	voter := func(n byte) raftgroup.Member {
		return raftgroup.Member{Replica: ident.ReplicaID(n), Node: ident.NodeID(n), Store: store(n)}
	}
	three := []raftgroup.Member{voter(1), voter(2), voter(3)}
	type stores map[ident.NodeID]ident.StoreID
	for _, tc := range []struct {
		name    string
		voters  []raftgroup.Member
		at      stores
		short   bool
		lost    bool
		present int
		says    string
	}{
		{"all there", three, stores{1: store(1), 2: store(2), 3: store(3)}, false, false, 0, ""},
		{"one away", three, stores{1: store(1), 3: store(3)}, false, false, 0, ""},
		{"one replaced", three, stores{1: store(1), 2: store(9), 3: store(3)}, false, false, 0, ""},
		{"two away", three, stores{1: store(1)}, true, false, 1, "node 2 is out of reach, node 3 is out of reach"},
		{"one away, one replaced", three, stores{1: store(1), 2: store(9)}, true, false, 1, "node 2 is back with another disk (store 09000000, it was 02000000), node 3 is out of reach"},
		{"two replaced", three, stores{1: store(1), 2: store(9), 3: store(8)}, true, true, 1, "node 3 is back with another disk"},
		{"two replaced, the third away", three, stores{2: store(9), 3: store(8)}, true, true, 0, "node 1 is out of reach"},
		{"one of two replaced", three[:2], stores{1: store(1), 2: store(9)}, true, true, 1, "node 2"},
		{"alone", three[:1], stores{1: store(1)}, false, false, 0, ""},
		{"nobody known", nil, stores{1: store(1)}, false, false, 0, ""},
	} {
		f := shortfallOf("orders-0", tc.voters, func(n ident.NodeID) ident.StoreID { return tc.at[n] })
		if f == nil != !tc.short {
			t.Errorf("%s: %+v", tc.name, f)
			continue
		}
		if f == nil {
			continue
		}
		text := shortfallText([]admin.Shortfall{*f}, 10)
		if f.Lost != tc.lost || f.Present != tc.present || f.Present+len(f.Missing) != f.Voters || !strings.Contains(text, tc.says) {
			t.Errorf("%s: %+v, %q", tc.name, f, text)
		}
		if hint := shortfallHint([]admin.Shortfall{*f}); tc.lost != (hint == admin.LostHint) {
			t.Errorf("%s: hint %q", tc.name, hint)
		}
	}
}

func TestShortfallTextIsBounded(t *testing.T) {
	fs := []admin.Shortfall{{Group: "a"}, {Group: "b"}, {Group: "c"}}
	if got := shortfallText(fs, 2); !strings.Contains(got, "a, b and 1 more") || strings.Contains(got, "c:") {
		t.Fatal(got)
	}
}

// TestQuorumIsToldOnce: what holds at two looks is told, once, and that it is over, too.
func TestQuorumIsToldOnce(t *testing.T) {
	var w quorumWatch
	var got []quorumNews
	for _, text := range []string{"", "a", "", "a", "a", "a", "b", "b", "b", "", "", ""} {
		got = append(got, w.look(text))
	}
	want := []quorumNews{0, 0, 0, 0, quorumShort, 0, 0, quorumShort, 0, 0, quorumBack, 0}
	if !slices.Equal(got, want) {
		t.Fatalf("%v, want %v", got, want)
	}
}
