package metadata

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"chronik/internal/ident"
)

const newStore = 90 // the survivor's number after a recovery; others register with 91 and up

// recovered makes a new cluster of m's Image around node.
func recovered(m *meta, node int, r Recovery) *meta {
	m.t.Helper()
	r.ClusterID, r.Index, r.Node, r.Store = "new", m.index+1, ident.NodeID(node), storeID(newStore)
	var b bytes.Buffer
	if _, err := m.img().Recovered(r).WriteTo(&b); err != nil {
		m.t.Fatal(err)
	}
	n := newMeta(m.t)
	if err := n.sm.Install("g2", b.Bytes()); err != nil {
		m.t.Fatal(err)
	}
	n.index = r.Index
	return n
}

// sims are the groups as the survivor's raft holds them: one voter each.
func sims(img *Image) map[ident.GroupID]*sim {
	out := map[ident.GroupID]*sim{}
	for p := range img.Groups() {
		own := p.Replicas[slices.IndexFunc(p.Replicas, func(r Replica) bool { return !r.Lost })]
		out[p.Group] = &sim{group: p.Group, voters: rids{own.ID}, generation: p.Generation - 1, grows: true}
	}
	return out
}

func settleAll(m *meta, groups map[ident.GroupID]*sim) {
	for range 3 { // one group's report may give the metadata group something to do
		for _, s := range groups {
			s.settle(m, all)
		}
	}
}

// TestRecovered: the survivor's fresh replicas are the only ones there are; what is
// elsewhere is lost until its node registers with another store, and then replaced.
func TestRecovered(t *testing.T) {
	m := cluster(t, 4)
	three, elsewhere := m.topic("three", 2, 3), m.topic("elsewhere", 6, 2)
	m.must(&CreateCoordinators{ReplicationFactor: 3})
	ms := "1000"
	m.must(&AlterConfigs{Resources: []AlterResource{{Type: ResourceTopic, Name: "three", Ops: []ConfigAlterOp{{Name: "retention.ms", Op: OpSet, Value: &ms}}}}})
	old := m.img()
	n := recovered(m, 1, Recovery{NextReplica: 500, Generations: map[ident.GroupID]uint64{three.Partitions[0].Group: 77}})
	img := n.img()
	if img.ClusterID != "new" || img.Broker(1).Store != storeID(newStore) || img.Broker(2).Store != storeID(2) || img.NextProducerID < old.NextProducerID+producerIDGap {
		t.Fatalf("%+v", img)
	}
	if len(img.Meta.Replicas) != 1 || !img.Meta.Replicas[0].Voter() || img.Partition(three.Partitions[0].Group).Generation != 78 {
		t.Fatalf("%+v", img.Meta)
	}
	if img.TopicByID(three.ID) == nil || img.TopicConfigs("three")["retention.ms"] != "1000" || img.Topic("elsewhere").ID != elsewhere.ID {
		t.Fatal("topics changed")
	}
	for p := range img.Groups() {
		before := old.Partition(p.Group)
		own := p.OnNode(1)
		if own == nil || own.ID < 500 || own.Lost || own.CreatedAt != n.index || p.Founder(own.ID) {
			t.Fatalf("%s: %+v", p.Name(), p)
		}
		if p.Group != ident.MetaGroup && len(p.Replicas) != len(before.Replicas) {
			t.Fatalf("%s: %d seats, there were %d", p.Name(), len(p.Replicas), len(before.Replicas))
		}
		for _, r := range p.Replicas {
			if r.ID != own.ID && (!r.Lost || r.Node == 1) {
				t.Fatalf("%s: %+v", p.Name(), r)
			}
		}
		if before.OnNode(1) != nil && p.Group != ident.MetaGroup && !slices.Equal(p.ReplicaNodes(), before.ReplicaNodes()) {
			t.Fatalf("%s: nodes %v were %v", p.Name(), p.ReplicaNodes(), before.ReplicaNodes())
		}
	}
	// The survivor finds all of its replicas and is to make or lose none.
	var locals []Local
	for p, r := range img.ReplicasOn(1, storeID(newStore)) {
		locals = append(locals, Local{Replica: r.ID, Group: p.Group, CreatedAt: r.CreatedAt})
	}
	if plan := CreateLocal(img, 1, storeID(newStore), slices.Values(locals), n.index); len(plan.Create)+len(plan.Lost)+len(plan.Retired) > 0 {
		t.Fatalf("%+v", plan)
	}
	if res := n.must(registration(1, newStore, newStore)).(*RegisterResult); res.Lost != 0 || res.Founder {
		t.Fatalf("%+v", res)
	}
	groups := sims(img)
	settleAll(n, groups)
	for node := 2; node <= 4; node++ {
		res := n.must(registration(node, newStore+node, node)).(*RegisterResult)
		if res.ClusterID != "new" || res.MetaReplica < 500 || res.Founder {
			t.Fatalf("%+v", res)
		}
		settleAll(n, groups)
	}
	checkFull(t, n.img(), groups)
	if got := metaRoles(n.img()); len(groups[ident.MetaGroup].voters) != 3 {
		t.Fatalf("metadata group %s, raft %v", got, groups[ident.MetaGroup].voters)
	}
}

// checkFull: every seat is filled by a replica that raft knows as a voter, and nothing else is left.
func checkFull(t fataler, img *Image, groups map[ident.GroupID]*sim) {
	for p := range img.Groups() {
		if p.Group == ident.MetaGroup {
			continue
		}
		got := sorted(groups[p.Group].voters)
		if want := sorted(ids(p.Replicas)); !slices.Equal(got, want) || len(groups[p.Group].learners) > 0 || len(p.Removing) > 0 {
			t.Fatalf("%s: raft has %v and learners %v, the image %+v", p.Name(), got, groups[p.Group].learners, p)
		}
		for _, r := range p.Replicas {
			if r.Lost || r.Joining {
				t.Fatalf("%s: %+v is left", p.Name(), r)
			}
		}
	}
}

// TestRecoveredModel: whatever was under way in the old cluster, and in whatever order and
// however often the others come back with empty disks, every seat is filled in the end.
func TestRecoveredModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := cluster(t, rapid.IntRange(2, 5).Draw(rt, "nodes"))
		nodes := len(m.img().Brokers())
		stores := map[int]int{}
		for i := 1; i <= nodes; i++ {
			stores[i] = i
		}
		m.topic("a", 3, int16(rapid.IntRange(1, min(3, nodes)).Draw(rt, "replication")))
		m.must(&CreateCoordinators{ReplicationFactor: 3})
		next := 10
		wipe := func(m *meta, label string) {
			node := rapid.IntRange(1, nodes).Draw(rt, label)
			m.must(registration(node, next, stores[node]))
			stores[node] = next
			next++
		}
		for range rapid.IntRange(0, 4).Draw(rt, "wiped before") {
			wipe(m, "wiped")
		}
		for range rapid.IntRange(0, 3).Draw(rt, "moves") {
			p := m.img().Topic("a").Partitions[rapid.IntRange(0, 2).Draw(rt, "moved")]
			m.do(&ReplaceReplica{Group: p.Group, Replica: p.Replicas[0].ID, Node: ident.NodeID(rapid.IntRange(1, nodes).Draw(rt, "to")), Move: true})
		}
		survivor := rapid.IntRange(1, nodes).Draw(rt, "survivor")
		n := recovered(m, survivor, Recovery{})
		stores[survivor] = newStore
		next = newStore + 1
		groups := sims(n.img())
		for range rapid.IntRange(0, 8).Draw(rt, "events") {
			if node := rapid.IntRange(1, nodes).Draw(rt, "back"); node != survivor && dispensable(n.img(), groups, ident.NodeID(node)) {
				n.must(registration(node, next, stores[node]))
				stores[node] = next
				next++
			}
			if rapid.Bool().Draw(rt, "time passes") {
				settleLive(n, groups)
			}
		}
		for node := 1; node <= nodes; node++ {
			if node != survivor && stores[node] < newStore {
				n.must(registration(node, next, stores[node]))
				stores[node] = next
				next++
			}
		}
		settleLive(n, groups)
		checkFull(rt, n.img(), groups)
	})
}

// dispensable tells whether every group keeps a majority without node's store.
func dispensable(img *Image, groups map[ident.GroupID]*sim, node ident.NodeID) bool {
	for _, s := range groups {
		left := 0
		for _, id := range s.voters {
			if r := img.Partition(s.group).Replica(id); r != nil && r.Node != node && r.Store == img.Broker(r.Node).Store {
				left++
			}
		}
		if left < len(s.voters)/2+1 {
			return false
		}
	}
	return true
}

// settleLive is settleAll where only replicas on their node's present store answer.
func settleLive(m *meta, groups map[ident.GroupID]*sim) {
	for range 3 {
		for _, s := range groups {
			s.settle(m, func(id ident.ReplicaID) bool {
				r := m.img().Partition(s.group).Replica(id)
				return r != nil && r.Store == m.img().Broker(r.Node).Store
			})
		}
	}
}
