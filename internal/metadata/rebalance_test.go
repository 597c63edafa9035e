package metadata

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"chronik/internal/ident"
)

func everyone(ident.NodeID) bool { return true }

// begin applies moves as the commands they stand for.
func (m *meta) begin(moves []Move) {
	m.t.Helper()
	for _, v := range moves {
		m.must(&ReplaceReplica{Group: v.Partition.Group, Replica: v.Replica, Node: v.To, Move: true})
	}
}

// finish has the groups' leaders report the moves under way done.
func (m *meta) finish(moves []Move) {
	m.t.Helper()
	for _, v := range moves {
		p := m.img().Partition(v.Partition.Group)
		var voters []ident.ReplicaID
		for _, r := range p.Replicas {
			if r.Joining || p.successor(r.ID) == nil {
				voters = append(voters, r.ID)
			}
		}
		m.must(&ReportMembership{Group: p.Group, Generation: p.Generation, Voters: voters})
	}
}

// held counts the replicas a node that the metadata names, without the metadata's own.
func held(img *Image) map[ident.NodeID]int {
	out := map[ident.NodeID]int{}
	for _, b := range img.Brokers() {
		out[b.Node] = 0
	}
	for p := range img.Groups() {
		if p.Group != ident.MetaGroup {
			for _, r := range p.Replicas {
				out[r.Node]++
			}
		}
	}
	return out
}

// fewest is how many replicas have to move so that counts are even: what lies above the
// rounded-up mean, or below the rounded-down one, whichever is more.
func fewest(counts map[ident.NodeID]int) int {
	sum := 0
	for _, n := range counts {
		sum += n
	}
	low := sum / len(counts)
	high := (sum + len(counts) - 1) / len(counts)
	above, below := 0, 0
	for _, n := range counts {
		above += max(0, n-high)
		below += max(0, low-n)
	}
	return max(above, below)
}

// racksOf counts a group's replicas a rack.
func racksOf(img *Image, p *Partition) map[string]int {
	out := map[string]int{}
	for _, r := range p.Replicas {
		out[img.Broker(r.Node).Rack]++
	}
	return out
}

func squares(counts map[string]int) int {
	sum := 0
	for _, n := range counts {
		sum += n * n
	}
	return sum
}

// Whatever was placed where, a rebalance begun in rounds of a few moves ends, with no more
// moves than needed, even within one; and there is nothing left to do.
func TestRebalanceConverges(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		nodes := rapid.IntRange(1, 7).Draw(rt, "nodes")
		m := cluster(t, nodes)
		scatter(rt, m, nodes)
		more := rapid.IntRange(0, 3).Draw(rt, "more")
		for n := nodes + 1; n <= nodes+more; n++ {
			m.must(registration(n, n, 0))
		}
		if rapid.Bool().Draw(rt, "coordinators") {
			m.must(&CreateCoordinators{ReplicationFactor: 3})
		}
		want, moved := fewest(held(m.img())), 0
		atOnce := rapid.IntRange(1, 5).Draw(rt, "at once")
		for round := 0; ; round++ {
			plan := PlanMoves(m.img(), everyone)
			if len(plan) != want-moved {
				rt.Fatalf("round %d: %d moves planned, %d begun, %d needed", round, len(plan), moved, want)
			}
			begun := MayBegin(m.img(), plan, everyone, atOnce)
			m.begin(begun)
			moved += len(begun)
			under := MovesUnderWay(m.img())
			if len(under) > atOnce || len(under) == 0 && len(plan) > 0 {
				rt.Fatalf("round %d: %d under way of %d", round, len(under), len(plan))
			}
			if len(under) == 0 {
				break
			}
			m.finish(under[:rapid.IntRange(1, len(under)).Draw(rt, "done")])
		}
		if counts := held(m.img()); width(counts) > 1 {
			rt.Fatalf("not even: %v", counts)
		}
		noneTwice(rt, m.img())
	})
}

// scatter makes topics whose replicas are wherever rapid likes.
func scatter(rt *rapid.T, m *meta, nodes int) {
	ids := make([]ident.NodeID, nodes)
	for i := range ids {
		ids[i] = ident.NodeID(i + 1)
	}
	for i := range rapid.IntRange(0, 4).Draw(rt, "topics") {
		rf := rapid.IntRange(1, nodes).Draw(rt, "rf")
		assign := make([][]ident.NodeID, rapid.IntRange(1, 12).Draw(rt, "partitions"))
		for j := range assign {
			assign[j] = rapid.Permutation(ids).Draw(rt, "nodes")[:rf]
		}
		res := m.must(&CreateTopics{Topics: []NewTopic{{Name: fmt.Sprint("t", i), ID: topicID(i + 1), Assignments: assign}}})
		if err := res.(*CreateTopicsResult).Topics[0].Err; err != nil {
			rt.Fatal(err)
		}
	}
}

func noneTwice(rt *rapid.T, img *Image) {
	for p := range img.Groups() {
		if p.Group == ident.MetaGroup {
			continue
		}
		on := p.ReplicaNodes()
		slices.Sort(on)
		if len(slices.Compact(on)) != len(p.Replicas) {
			rt.Fatalf("%s: a node twice, or a change left: %+v", p.Name(), p.Replicas)
		}
	}
}

// With racks, dead and draining nodes: no group's racks get less even, and dead and draining nodes
// get nothing. It ends, and a second rebalance finds nothing.
func TestRebalanceKeepsRacks(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		nodes := rapid.IntRange(2, 7).Draw(rt, "nodes")
		m := cluster(t, nodes)
		for n := 1; n <= nodes; n++ {
			c := registration(n, n, n)
			c.Rack = rapid.SampledFrom([]string{"", "x", "y", "z"}).Draw(rt, "rack")
			m.must(c)
		}
		scatter(rt, m, nodes)
		dead := ident.NodeID(rapid.IntRange(0, nodes).Draw(rt, "dead"))
		drained := ident.NodeID(rapid.IntRange(0, nodes).Draw(rt, "drained"))
		if drained != 0 {
			m.must(&DrainBroker{Node: drained, Draining: true})
		}
		alive := func(n ident.NodeID) bool { return n != dead }
		before := m.img()
		plan := PlanMoves(before, alive)
		for _, v := range plan {
			if v.To == dead || v.To == drained || v.From == dead {
				rt.Fatalf("%+v with %d dead and %d draining", v, dead, drained)
			}
		}
		for round := 0; len(plan) > 0; round++ {
			begun := MayBegin(m.img(), plan, alive, 100)
			m.begin(begun)
			m.finish(begun)
			if len(begun) == 0 || round > 50 {
				rt.Fatalf("round %d: %d begun of %d planned", round, len(begun), len(plan))
			}
			plan = PlanMoves(m.img(), alive)
		}
		noneTwice(rt, m.img())
		for p := range m.img().Groups() {
			if squares(racksOf(m.img(), p)) > squares(racksOf(before, before.Partition(p.Group))) {
				rt.Fatalf("%s: racks %v, before %v", p.Name(), racksOf(m.img(), p), racksOf(before, before.Partition(p.Group)))
			}
		}
	})
}

// Topics and preferred leaders are spread by the moves, too.
func TestRebalanceSpreadsTopicsAndLeaders(t *testing.T) {
	m := cluster(t, 3)
	for _, name := range []string{"a", "b", "c", "d"} {
		m.topic(name, 4, 3)
	}
	m.must(registration(4, 4, 0))
	plan := PlanMoves(m.img(), everyone)
	m.begin(plan) // one group may be in it twice
	m.finish(plan)
	if len(plan) != 12 {
		t.Fatalf("%d moves", len(plan))
	}
	_, leaders := spread(m.img())
	if width(leaders) > 1 {
		t.Errorf("preferred leaders %v", leaders)
	}
	for tp := range m.img().Topics() {
		on := 0
		for _, p := range tp.Partitions {
			if p.OnNode(4) != nil {
				on++
			}
		}
		if on != 3 {
			t.Errorf("%s: %d of 12 replicas on node 4", tp.Name, on)
		}
	}
}

// A group that has no majority, or whose majority is away, is not moved; one that is being repaired waits.
func TestRebalanceLeavesBrokenGroups(t *testing.T) {
	m := cluster(t, 4)
	res := m.must(&CreateTopics{Topics: []NewTopic{{Name: "a", ID: topicID(1), Assignments: [][]ident.NodeID{{1, 2}, {1, 2}, {1, 2}}}}})
	if err := res.(*CreateTopicsResult).Topics[0].Err; err != nil {
		t.Fatal(err)
	}
	if plan := PlanMoves(m.img(), func(n ident.NodeID) bool { return n != 2 }); len(plan) != 0 {
		t.Errorf("%d moves of groups without a majority", len(plan))
	}
	p := m.img().Topic("a").Partitions[0]
	m.must(&ReplaceReplica{Group: p.Group, Replica: p.OnNode(1).ID})
	if plan := PlanMoves(m.img(), everyone); slices.ContainsFunc(plan, func(v Move) bool { return v.Partition.Group == p.Group }) {
		t.Errorf("a group that has lost its majority moves: %+v", plan)
	}
	res = m.must(&CreateTopics{Topics: []NewTopic{{Name: "b", ID: topicID(2), Assignments: [][]ident.NodeID{{1, 2, 3}, {1, 2, 3}, {1, 2, 3}, {1, 2, 3}}}}})
	if err := res.(*CreateTopicsResult).Topics[0].Err; err != nil {
		t.Fatal(err)
	}
	for _, q := range m.img().Topic("b").Partitions {
		m.must(&ReplaceReplica{Group: q.Group, Replica: q.OnNode(3).ID})
	}
	plan := PlanMoves(m.img(), everyone)
	for _, v := range MayBegin(m.img(), plan, everyone, 100) {
		if v.Partition.Topic == "b" {
			t.Errorf("begun in mid-repair: %+v", v)
		}
	}
	if !slices.ContainsFunc(plan, func(v Move) bool { return v.Partition.Topic == "b" }) {
		t.Errorf("nothing planned for later: %+v", plan)
	}
}

// Moves to a node that is gone for good never end. They do not keep others from being begun.
func TestRebalanceBesideADeadTarget(t *testing.T) {
	m := cluster(t, 3)
	m.topic("a", 6, 3)
	m.must(registration(4, 4, 0))
	m.begin(MayBegin(m.img(), PlanMoves(m.img(), everyone), everyone, 1))
	m.must(registration(5, 5, 0)) // node 4 is gone before its replica is there, node 5 is to take its place
	alive := func(n ident.NodeID) bool { return n != 4 }
	plan := PlanMoves(m.img(), alive)
	if begun := MayBegin(m.img(), plan, everyone, 1); len(begun) != 0 {
		t.Errorf("a move to a living node is under way, and begun are %+v", begun)
	}
	if begun := MayBegin(m.img(), plan, alive, 1); len(begun) != 1 || begun[0].To != 5 {
		t.Errorf("%d planned, begun %+v", len(plan), begun)
	}
}

// BenchmarkPlanMoves: a fourth node joins 10,000 partitions on three.
func BenchmarkPlanMoves(b *testing.B) {
	m := cluster(b, 3)
	m.topic("a", 5000, 3)
	for i := range 50 {
		m.topic(fmt.Sprint("t", i), 100, 3)
	}
	m.must(registration(4, 4, 0))
	for b.Loop() {
		if n := len(PlanMoves(m.img(), everyone)); n != 7500 {
			b.Fatal(n)
		}
	}
}
