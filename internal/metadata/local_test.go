package metadata

import (
	"fmt"
	"slices"
	"testing"

	"chronik/internal/ident"
)

func planned(p LocalPlan) string {
	s := "create"
	for _, w := range p.Create {
		s += fmt.Sprintf(" %d@%d", w.Replica.ID, w.Replica.CreatedAt)
		if w.Founder {
			s += "f"
		}
	}
	s += " lost"
	for _, w := range p.Lost {
		s += fmt.Sprintf(" %d", w.Replica.ID)
	}
	s += " retired"
	for _, l := range p.Retired {
		s += fmt.Sprintf(" %d", l.Replica)
	}
	return s
}

func TestCreateLocal(t *testing.T) {
	img := emptyImage()
	w := newWork(img)
	w.img.NextReplica, w.img.NextGroup = 100, 20
	s1, s2 := storeID(1), storeID(2)
	w.putTopic(&Topic{ID: topicID(1), Name: "t"})
	put := func(group ident.GroupID, part int32, at ident.Index, rs ...Replica) {
		p := &Partition{Group: group, TopicID: topicID(1), Topic: "t", Partition: part, CreatedAt: at, Replicas: rs}
		p.Founders = []Founder{{Replica: rs[0].ID}}
		w.setPartition(p)
	}
	put(5, 0, 10, Replica{ID: 7, Node: 1, Store: s1, CreatedAt: 10}, Replica{ID: 8, Node: 2, Store: s2, CreatedAt: 10})
	put(6, 1, 10, Replica{ID: 9, Node: 1, Store: s1, CreatedAt: 20})
	put(7, 2, 5, Replica{ID: 11, Node: 2, Store: s2, CreatedAt: 5}, Replica{ID: 12, Node: 1, Store: s1, CreatedAt: 15, Joining: true, Replaces: 13}, Replica{ID: 13, Node: 1, Store: s1, Lost: true, CreatedAt: 5})
	img = w.done()
	group := map[int]ident.GroupID{7: 5, 9: 6, 12: 7, 50: 6, 60: 7}
	local := func(ids ...int) []Local {
		var ls []Local
		for _, id := range ids {
			ls = append(ls, Local{Replica: ident.ReplicaID(id), Group: group[id]})
		}
		return ls
	}
	for _, tc := range []struct {
		name   string
		node   ident.NodeID
		store  ident.StoreID
		have   []Local
		upTo   ident.Index
		wanted string
	}{
		{"blank", 1, s1, nil, 0, "create 7@10f 12@15 9@20f lost retired"},
		{"all there", 1, s1, local(7, 9, 12), 20, "create lost retired"},
		{"the last one is new", 1, s1, local(7, 12), 15, "create 9@20f lost retired"},
		{"earlier ones are gone", 1, s1, []Local{{Replica: 9, Group: 6, CreatedAt: 20}}, 0, "create lost 7 12 retired"},
		{"one of the same index is made", 1, s1, local(7), 10, "create 12@15 9@20f lost retired"},
		{"a removed one was later", 1, s1, nil, 30, "create lost 7 12 9 retired"},
		{"retired ones", 1, s1, local(7, 9, 12, 50, 60), 20, "create lost retired 50 60"},
		{"made and not opened", 1, s1, append(local(7, 9), Local{Replica: 12, Group: 7, CreatedAt: 15, Unopened: true}), 20, "create 12@15 lost retired"},
		{"retired and not opened", 1, s1, append(local(7, 9, 12), Local{Replica: 50, Group: 6, Unopened: true}), 20, "create lost retired 50"},
		{"younger than the image", 1, s1, append(local(7, 9, 12), Local{Replica: 500, Group: 300}), 0, "create lost retired"},
		{"another store of the node", 1, s2, nil, 0, "create lost retired"},
		{"another node", 2, s2, nil, 0, "create 11@5f 8@10 lost retired"},
	} {
		got := planned(CreateLocal(img, tc.node, tc.store, slices.Values(tc.have), tc.upTo))
		if got != tc.wanted {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.wanted)
		}
	}
}

func TestRetired(t *testing.T) {
	m := cluster(t, 3)
	p := m.topic("a", 1, 3).Partitions[0]
	id := p.Replicas[0].ID
	if m.img().Retired(p.Group, id) {
		t.Fatal("named")
	}
	if m.img().Retired(m.img().NextGroup, m.img().NextReplica-1) {
		t.Fatal("the group is younger than the image")
	}
	m.must(&DeleteTopics{Topics: []TopicRef{{Name: "a"}}})
	if !m.img().Retired(p.Group, id) {
		t.Fatal("the topic is deleted")
	}
	again := m.topic("a", 1, 3).Partitions[0]
	if again.Group == p.Group || again.Replicas[0].ID <= id {
		t.Fatal("ids were reused")
	}
}
