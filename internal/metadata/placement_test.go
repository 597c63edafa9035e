package metadata

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"chronik/internal/ident"
)

// spread counts replicas and preferred leaders of topics a node.
func spread(img *Image) (replicas, leaders map[ident.NodeID]int) {
	replicas, leaders = map[ident.NodeID]int{}, map[ident.NodeID]int{}
	for _, b := range img.Brokers() {
		replicas[b.Node], leaders[b.Node] = 0, 0
	}
	for t := range img.Topics() {
		for _, p := range t.Partitions {
			for i, r := range p.Replicas {
				replicas[r.Node]++
				if i == 0 {
					leaders[r.Node]++
				}
			}
		}
	}
	return replicas, leaders
}

func width(m map[ident.NodeID]int) int {
	low, high := 1<<30, 0
	for _, n := range m {
		low, high = min(low, n), max(high, n)
	}
	return high - low
}

// Without racks, whatever is created, no node is preferred leader of more than one
// partition more than another; nor does it hold more than two replicas more, if all
// topics have one replication factor. (Else it may: one node can lead all partitions with
// one replica, and another all with two.)
func TestPlacementIsBalanced(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		nodes := rapid.IntRange(1, 9).Draw(rt, "nodes")
		m := cluster(t, nodes)
		rf, mixed := rapid.IntRange(1, nodes).Draw(rt, "rf"), rapid.Bool().Draw(rt, "mixed")
		for i := range rapid.IntRange(1, 6).Draw(rt, "topics") {
			if mixed {
				rf = rapid.IntRange(1, nodes).Draw(rt, "rf")
			}
			m.topic(fmt.Sprint("t", i), rapid.Int32Range(1, 30).Draw(rt, "partitions"), int16(rf))
		}
		replicas, leaders := spread(m.img())
		if width(leaders) > 1 || !mixed && width(replicas) > 2 {
			rt.Fatalf("replicas %v leaders %v", replicas, leaders)
		}
		for tp := range m.img().Topics() {
			for _, p := range tp.Partitions {
				nodes := p.ReplicaNodes()
				slices.Sort(nodes)
				if len(slices.Compact(nodes)) != len(p.Replicas) {
					rt.Fatalf("%s: a node twice: %+v", p.Name(), p.Replicas)
				}
			}
		}
	})
}

func TestPlacementMixesNodes(t *testing.T) {
	m := cluster(t, 6)
	m.topic("a", 60, 3)
	with := map[ident.NodeID]bool{}
	for _, p := range m.img().Topic("a").Partitions {
		if nodes := p.ReplicaNodes(); slices.Contains(nodes, 1) {
			for _, n := range nodes {
				with[n] = true
			}
		}
	}
	if len(with) < 5 {
		t.Fatalf("node 1 shares partitions only with %v: its work would fall on few", with)
	}
}

func TestPlacementSpreadsRacks(t *testing.T) {
	m := cluster(t, 6)
	for n := 1; n <= 6; n++ {
		c := registration(n, n, n)
		c.Rack = []string{"x", "y", "z"}[n%3]
		m.must(c)
	}
	m.topic("a", 30, 3)
	m.topic("b", 30, 2)
	m.topic("c", 30, 5)
	for tp := range m.img().Topics() {
		for _, p := range tp.Partitions {
			racks := map[string]int{}
			for _, n := range p.ReplicaNodes() {
				racks[m.img().Broker(n).Rack]++
			}
			low, high := 9, 0
			for _, r := range []string{"x", "y", "z"} {
				low, high = min(low, racks[r]), max(high, racks[r])
			}
			if high-low > 1 {
				t.Fatalf("%s: racks %v", p.Name(), racks)
			}
		}
	}
	if replicas, leaders := spread(m.img()); width(replicas) > 2 || width(leaders) > 1 {
		t.Fatalf("replicas %v leaders %v", replicas, leaders)
	}
}

func TestPlacementAvoidsAndDrains(t *testing.T) {
	m := cluster(t, 4)
	m.must(&DrainBroker{Node: 4, Draining: true})
	c := &CreateTopics{Avoid: []ident.NodeID{1}, Topics: []NewTopic{
		{Name: "a", ID: topicID(1), Partitions: 9, ReplicationFactor: 2},
		{Name: "b", ID: topicID(2), Partitions: 3, ReplicationFactor: 3},
		{Name: "c", ID: topicID(3), Partitions: 1, ReplicationFactor: 4},
		{Name: "d", ID: topicID(4), Partitions: 1, ReplicationFactor: 4, ClampReplication: true},
	}}
	res := m.must(c).(*CreateTopicsResult)
	for _, p := range m.img().Topic("a").Partitions {
		if p.OnNode(1) != nil || p.OnNode(4) != nil {
			t.Fatalf("placed on a dead or draining node: %v", p.ReplicaNodes())
		}
	}
	if m.img().Topic("b").Partitions[0].OnNode(1) == nil {
		t.Fatal("a node to be avoided is used when there are not enough others")
	}
	if !errors.Is(res.Topics[2].Err, ErrInvalidReplication) || res.Topics[3].ReplicationFactor != 3 {
		t.Fatalf("%+v", res.Topics)
	}
	m.must(registration(4, 4, 4))
	if !m.img().Broker(4).Draining {
		t.Fatal("draining ended by a registration")
	}
}

func TestExplicitAssignments(t *testing.T) {
	m := cluster(t, 3)
	create := func(name string, a ...[]ident.NodeID) *Error {
		res := m.must(&CreateTopics{Topics: []NewTopic{{Name: name, ID: topicID(int(m.index)), Assignments: a}}})
		return res.(*CreateTopicsResult).Topics[0].Err
	}
	if err := create("a", []ident.NodeID{3, 1}, []ident.NodeID{1, 2}); err != nil {
		t.Fatal(err)
	}
	if got := m.img().Topic("a").Partitions[0].ReplicaNodes(); !slices.Equal(got, []ident.NodeID{3, 1}) {
		t.Fatal(got)
	}
	for name, a := range map[string][][]ident.NodeID{
		"uneven": {{1, 2}, {1}}, "twice": {{1, 1}}, "unknown": {{9}}, "none": {{}},
	} {
		if err := create(name, a...); !errors.Is(err, ErrInvalidAssignment) {
			t.Errorf("%s: %v", name, err)
		}
	}
	more := func(count int32, a ...[]ident.NodeID) error {
		res := m.must(&CreatePartitions{Topics: []MorePartitions{{Name: "a", Count: count, Assignments: a}}})
		if err := res.(*CreatePartitionsResult).Topics[0].Err; err != nil {
			return err
		}
		return nil
	}
	if err := more(4, []ident.NodeID{1, 2}); !errors.Is(err, ErrInvalidAssignment) {
		t.Fatal(err)
	}
	if err := more(3, []ident.NodeID{1}); !errors.Is(err, ErrInvalidAssignment) {
		t.Fatal(err)
	}
	if err := more(3, []ident.NodeID{1, 2}); err != nil || len(m.img().Topic("a").Partitions) != 3 {
		t.Fatal(err)
	}
	if err := more(3); !errors.Is(err, ErrInvalidPartitions) {
		t.Fatal(err)
	}
}

func TestTopicNames(t *testing.T) {
	long := make([]byte, 250)
	for i := range long {
		long[i] = 'a'
	}
	for _, bad := range []string{"", ".", "..", "a/b", "a b", "ä", "a\x00", string(long)} {
		if err := CheckTopicName(bad); !errors.Is(err, ErrInvalidTopic) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, good := range []string{"a", "A.b_c-9", "...", string(long[:249]), "__x"} {
		if err := CheckTopicName(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	m := cluster(t, 1)
	m.topic("a.b", 1, 1)
	for name, want := range map[string]error{
		"a_b": ErrInvalidTopic, "a.b": ErrTopicExists, OffsetsTopic: ErrTopicExists, MetaTopic: ErrTopicExists,
	} {
		res := m.must(&CreateTopics{Topics: []NewTopic{{Name: name, ID: topicID(77), Partitions: 1, ReplicationFactor: 1}}})
		if err := res.(*CreateTopicsResult).Topics[0].Err; !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m.must(&DeleteTopics{Topics: []TopicRef{{ID: m.img().Topic("a.b").ID}}})
	m.topic("a_b", 1, 1)
}

func TestCoordinatorsAreCreatedOnce(t *testing.T) {
	m := cluster(t, 2)
	first := m.must(&CreateCoordinators{ReplicationFactor: 3}).(*CreateCoordinatorsResult)
	again := m.must(&CreateCoordinators{ReplicationFactor: 1}).(*CreateCoordinatorsResult)
	if len(first.Groups) != 2 || !slices.Equal(first.Groups, again.Groups) {
		t.Fatalf("%v then %v", first.Groups, again.Groups)
	}
	p := m.img().Coordinators[1]
	if p.Key() != "offsets-1" || p.Name() != "__consumer_offsets-1" || len(p.Replicas) != 2 {
		t.Fatalf("%s %s %+v", p.Key(), p.Name(), p)
	}
	if m.img().Meta.Key() != "meta" || m.img().Meta.Name() != "__meta" {
		t.Fatal(m.img().Meta.Key())
	}
}

func TestProducerIDsNeverRepeat(t *testing.T) {
	m := cluster(t, 2)
	next := int64(0)
	for i := range 5 {
		b := m.must(&AllocateProducerIDs{Node: ident.NodeID(i%2 + 1)}).(*ProducerIDBlock)
		if b.First != next || b.Count != 1000 {
			t.Fatalf("%+v, want first %d", b, next)
		}
		next += 1000
	}
}
