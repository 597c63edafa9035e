package metadata

import (
	"strings"
	"testing"
)

// TestMetaVoters holds correctness rule 23: the largest odd number up to five and up to the members.
func TestMetaVoters(t *testing.T) {
	for n, want := range []int{0, 1, 1, 3, 3, 5, 5, 5, 5, 5} {
		if got := MetaVoters(n); got != want {
			t.Errorf("%d members: %d voters, want %d", n, got, want)
		}
	}
}

// TestGroupsAreNamedByID holds correctness rule 24: a topic that is deleted and made
// again under its name shares no group, no directory and no replica with the old one.
func TestGroupsAreNamedByID(t *testing.T) {
	m := cluster(t, 3)
	old := m.topic("orders", 2, 3)
	m.must(&DeleteTopics{Topics: []TopicRef{{Name: "orders"}}})
	again := m.topic("orders", 2, 3)
	for i, p := range again.Partitions {
		o := old.Partitions[i]
		if p.Group == o.Group || p.Key() == o.Key() || p.Replicas[0].ID == o.Replicas[0].ID {
			t.Errorf("partition %d: group %d, key %s, replica %d; the deleted topic's were %d, %s, %d",
				i, p.Group, p.Key(), p.Replicas[0].ID, o.Group, o.Key(), o.Replicas[0].ID)
		}
		if strings.Contains(p.Key(), "orders") {
			t.Errorf("key %s holds the topic's name", p.Key())
		}
	}
}
