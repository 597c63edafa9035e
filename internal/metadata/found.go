package metadata

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"chronik/internal/ident"
)

// Found is a group that an Image does not name and of which a snapshot exists all the same.
type Found struct {
	Group     ident.GroupID
	Topic     string // topic name
	TopicID   TopicID
	Partition int32
	// Coordinator: it is a shard of OffsetsTopic; Topic and TopicID do not count.
	Coordinator bool
}

// WithFound returns the Image with those of found that are younger than it: topics and
// partitions created after the Image was captured, with what their snapshots say of
// them; their configs are the defaults. left says of each other why it stays out.
func (i *Image) WithFound(found []Found) (img *Image, left map[ident.GroupID]string) {
	a := &adding{work: newWork(i), left: map[ident.GroupID]string{}, first: i.NextGroup, known: map[ident.GroupID]bool{}}
	topics := map[TopicID][]Found{}
	var order []TopicID
	for _, f := range found {
		a.known[f.Group] = true
		switch {
		case i.Partition(f.Group) != nil:
			continue
		case f.Group < i.NextGroup:
			a.left[f.Group] = "its topic was deleted before the metadata's snapshot"
			continue
		case f.Coordinator:
			f.TopicID = TopicID{}
		case f.TopicID.IsZero() || f.Topic == "":
			a.left[f.Group] = "its snapshot does not say of which topic it is"
			continue
		}
		if topics[f.TopicID] == nil {
			order = append(order, f.TopicID)
		}
		topics[f.TopicID] = append(topics[f.TopicID], f)
	}
	slices.SortFunc(order, func(x, y TopicID) int { return slices.Compare(x[:], y[:]) })
	for _, id := range order {
		if why := a.add(id, topics[id]); why != "" {
			for _, f := range topics[id] {
				a.left[f.Group] = why
			}
		}
	}
	return a.work.done(), a.left
}

// adding collects what WithFound adds.
type adding struct {
	work  *work
	left  map[ident.GroupID]string
	first ident.GroupID // the lowest id the Image has not given
	known map[ident.GroupID]bool
}

// maxFound bounds the partitions that one snapshot's word adds.
const maxFound = 100_000

// add puts one topic's groups into the Image, or says why it cannot.
func (a *adding) add(id TopicID, fs []Found) string {
	img := a.work.img
	slices.SortFunc(fs, func(x, y Found) int { return cmp.Compare(x.Partition, y.Partition) })
	last := fs[len(fs)-1]
	have := len(img.Coordinators)
	count := int(last.Partition) + 1
	if !last.Coordinator {
		have = 0
		if t := img.TopicByID(id); t != nil {
			have = len(t.Partitions)
		} else if taken, ok := img.tree.normalized.m.Get(normalize(last.Topic)); ok {
			return fmt.Sprintf("the metadata has another topic %s", taken)
		}
	} else if count = max(count, int(img.CoordinatorCount)); count > int(img.CoordinatorCount) {
		return fmt.Sprintf("shard %d of %d", last.Partition, img.CoordinatorCount)
	}
	if count-have > maxFound || count <= have {
		return fmt.Sprintf("partition %d of a topic that has %d", last.Partition, have)
	}
	groups, why := a.groups(fs, have, count)
	if why != "" {
		return why
	}
	if !last.Coordinator && img.TopicByID(id) == nil {
		a.work.putTopic(&Topic{ID: id, Name: last.Topic, CreatedAt: img.Index})
		img.tree.normalized.m.Set(normalize(last.Topic), strings.Clone(last.Topic))
	}
	name := last.Topic
	if last.Coordinator {
		name = OffsetsTopic
	}
	for k, g := range groups {
		p := &Partition{Group: g, Topic: name, TopicID: id, Partition: int32(have + k), Generation: 1, CreatedAt: img.Index}
		p.Replicas = a.seats(k)
		img.NextGroup = max(img.NextGroup, g+1)
		a.work.setPartition(p)
	}
	return ""
}

// groups returns the group ids of partitions have to count-1: those found, and for the
// others what they must have been, since ids are given in order of partition.
func (a *adding) groups(fs []Found, have, count int) ([]ident.GroupID, string) {
	out := make([]ident.GroupID, count-have)
	said := make([]bool, len(out))
	for _, f := range fs {
		if int(f.Partition) < have || out[int(f.Partition)-have] != 0 {
			return nil, fmt.Sprintf("partition %d has two groups", f.Partition)
		}
		out[int(f.Partition)-have], said[int(f.Partition)-have] = f.Group, true
	}
	for k := len(out) - 2; k >= 0; k-- {
		if out[k] == 0 && out[k+1] != 0 {
			out[k] = out[k+1] - 1
		}
	}
	for k := range out {
		if out[k] == 0 && k > 0 { // behind the last one found
			out[k] = out[k-1] + 1
		}
		if out[k] < a.first || k > 0 && out[k] <= out[k-1] || a.work.img.Partition(out[k]) != nil || !said[k] && a.known[out[k]] {
			return nil, fmt.Sprintf("partition %d has no snapshot, and which group it was is unknown", have+k)
		}
	}
	return out, ""
}

// seats gives a group as many seats as others have, on the known nodes, going round.
func (a *adding) seats(turn int) []Replica {
	brokers := a.work.img.Brokers()
	n := min(3, len(brokers))
	for p := range a.work.img.Groups() {
		if p.Group != ident.MetaGroup {
			n = max(n, min(len(p.ReplicaNodes()), len(brokers)))
		}
	}
	var seats []Replica
	for k := range n {
		b := brokers[(turn+k)%len(brokers)]
		seats = append(seats, Replica{ID: a.work.nextReplica(), Node: b.Node, Store: b.Store})
	}
	return seats
}
