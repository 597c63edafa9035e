package metadata

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"

	"chronik/internal/ident"
)

// TestWithFound: groups that are younger than an Image are put back with what their
// snapshots say; the rest stays out, with a reason.
func TestWithFound(t *testing.T) {
	m := cluster(t, 3)
	old := m.topic("old", 2, 2)
	gone := m.topic("gone", 1, 1)
	m.must(&DeleteTopics{Topics: []TopicRef{{Name: "gone"}}})
	img := m.img()
	next := img.NextGroup
	whole := func() []Found {
		return []Found{
			{Group: next + 2, Topic: "young", TopicID: topicID(70), Partition: 2}, // 0 and 1 have no snapshot
			{Group: next + 3, Topic: "young", TopicID: topicID(70), Partition: 3},
			{Group: next + 4, Topic: "old", TopicID: old.ID, Partition: 2}, // added later
			{Group: next + 6, Coordinator: true, Partition: 1},
		}
	}
	for _, tc := range []struct {
		name  string
		found []Found
		added []string
		left  map[ident.GroupID]string
	}{
		{"nothing", nil, nil, nil},
		{"known", []Found{{Group: old.Partitions[0].Group, Topic: "x", TopicID: topicID(71)}}, nil, nil},
		{"deleted", []Found{{Group: gone.Partitions[0].Group, Topic: "gone", TopicID: gone.ID}}, nil, map[ident.GroupID]string{gone.Partitions[0].Group: "deleted"}},
		{"younger", whole(), []string{"young-0", "young-1", "young-2", "young-3", "old-2", "__consumer_offsets-0", "__consumer_offsets-1"}, nil},
		{
			"a name that is taken",
			[]Found{{Group: next, Topic: "old", TopicID: topicID(72)}},
			nil,
			map[ident.GroupID]string{next: "another topic old"},
		},
		{
			"no id for the partition before",
			[]Found{{Group: next, Topic: "young", TopicID: topicID(70), Partition: 1}},
			nil,
			map[ident.GroupID]string{next: "partition 0 has no snapshot"},
		},
		{
			"the id before is another's",
			[]Found{{Group: next + 1, Topic: "young", TopicID: topicID(70), Partition: 1}, {Group: next, Topic: "other", TopicID: topicID(73)}},
			[]string{"other-0"},
			map[ident.GroupID]string{next + 1: "partition 0 has no snapshot"},
		},
		{"falling ids", []Found{{Group: next + 1, Topic: "young", TopicID: topicID(70)}, {Group: next, Topic: "young", TopicID: topicID(70), Partition: 1}}, nil, map[ident.GroupID]string{next: "partition 1", next + 1: "partition 1"}},
		{"twice", []Found{{Group: next, Topic: "young", TopicID: topicID(70)}, {Group: next + 1, Topic: "young", TopicID: topicID(70)}}, nil, map[ident.GroupID]string{next: "two groups", next + 1: "two groups"}},
		{"no topic", []Found{{Group: next}}, nil, map[ident.GroupID]string{next: "of which topic"}},
		{"too many shards", []Found{{Group: next + 9, Coordinator: true, Partition: 2}}, nil, map[ident.GroupID]string{next + 9: "shard 2 of 2"}},
		{"absurd partition", []Found{{Group: 1 << 60, Topic: "young", TopicID: topicID(70), Partition: 1<<31 - 1}}, nil, map[ident.GroupID]string{1 << 60: "partition 2147483647"}},
		{"partition below those known", []Found{{Group: next, Topic: "old", TopicID: old.ID, Partition: 1}}, nil, map[ident.GroupID]string{next: "partition 1 of a topic that has 2"}},
	} {
		got, left := img.WithFound(tc.found)
		for g, why := range tc.left {
			if !strings.Contains(left[g], why) {
				t.Errorf("%s: group %d is left out because %q, want %q", tc.name, g, left[g], why)
			}
		}
		if len(left) != len(tc.left) {
			t.Errorf("%s: left out %v", tc.name, slices.Collect(maps.Keys(left)))
		}
		var added []string
		for p := range got.Groups() {
			if img.Partition(p.Group) == nil {
				added = append(added, p.Name())
				if nodes := p.ReplicaNodes(); len(nodes) != 3 || nodes[0] == nodes[1] {
					t.Errorf("%s: %s on nodes %v", tc.name, p.Name(), nodes)
				}
			}
		}
		slices.Sort(added)
		slices.Sort(tc.added)
		if !slices.Equal(added, tc.added) {
			t.Errorf("%s: added %v, want %v", tc.name, added, tc.added)
		}
		// It is an Image like any other, also after a recovery.
		rec := got.Recovered(Recovery{ClusterID: "new", Index: 99, Node: 7, Store: storeID(9)})
		if _, err := ReadImage(bytes.NewReader(encoded(t, rec))); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if got, _ := img.WithFound(whole()); got.Topic("young").Partitions[2].Group != next+2 || got.Topic("young").Partitions[0].Group != next || got.NextGroup != next+7 {
		t.Errorf("group ids: %+v", got.Topic("young"))
	}
}
