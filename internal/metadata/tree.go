package metadata

import (
	"encoding/binary"
	"iter"

	"github.com/tidwall/btree"

	"chronik/internal/ident"
)

// tree is a copy-on-write B-tree held by value. A published tree is never
// written again, so any number of goroutines may read and clone it.
type tree[K interface{ ~int32 | ~uint64 | ~string }, V any] struct {
	m btree.Map[K, V]
}

// clone returns an independent tree in O(1). It reads t and does not write it:
// btree's own Copy gives the original a new identity, here that is a local copy's.
func (t *tree[K, V]) clone() tree[K, V] {
	local := t.m
	return tree[K, V]{m: *local.Copy()}
}

func (t *tree[K, V]) get(k K) V {
	v, _ := t.m.Get(k)
	return v
}

func (t *tree[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) { t.m.Scan(yield) }
}

// imageTree holds what an Image looks up. Values are immutable: a change puts a
// new value in a cloned tree.
type imageTree struct {
	brokers    tree[ident.NodeID, *Broker]
	topics     tree[string, *Topic]            // by name
	topicIDs   tree[string, *Topic]            // by the id's 16 bytes
	normalized tree[string, string]            // name with '.' as '_' → name, for collisions
	groups     tree[ident.GroupID, *Partition] // every group: topics, coordinators, meta
	byNode     tree[string, ident.GroupID]     // nodeKey(node, replica) → group
	configs    tree[ident.NodeID, map[string]string]
}

// clusterConfig is the node id under which cluster-wide broker configs are kept.
const clusterConfig ident.NodeID = 0

func (t *imageTree) clone() imageTree {
	return imageTree{
		brokers:    t.brokers.clone(),
		topics:     t.topics.clone(),
		topicIDs:   t.topicIDs.clone(),
		normalized: t.normalized.clone(),
		groups:     t.groups.clone(),
		byNode:     t.byNode.clone(),
		configs:    t.configs.clone(),
	}
}

// nodeKey orders replicas by node, then id.
func nodeKey(node ident.NodeID, replica ident.ReplicaID) string {
	var b [12]byte
	binary.BigEndian.PutUint32(b[:4], uint32(node)) // node ids are positive
	binary.BigEndian.PutUint64(b[4:], uint64(replica))
	return string(b[:])
}

func splitNodeKey(k string) (ident.NodeID, ident.ReplicaID) {
	b := []byte(k)
	return ident.NodeID(binary.BigEndian.Uint32(b[:4])), ident.ReplicaID(binary.BigEndian.Uint64(b[4:]))
}

// Broker returns a registered node, or nil.
func (i *Image) Broker(node ident.NodeID) *Broker { return i.tree.brokers.get(node) }

// Brokers returns all registered nodes by id.
func (i *Image) Brokers() []*Broker {
	bs := make([]*Broker, 0, i.tree.brokers.m.Len())
	for _, b := range i.tree.brokers.all() {
		bs = append(bs, b)
	}
	return bs
}

// Topic returns the topic of that name, or nil.
func (i *Image) Topic(name string) *Topic { return i.tree.topics.get(name) }

// TopicByID returns the topic with that id, or nil.
func (i *Image) TopicByID(id TopicID) *Topic { return i.tree.topicIDs.get(string(id[:])) }

// Topics iterates over the topics by name.
func (i *Image) Topics() iter.Seq[*Topic] {
	return func(yield func(*Topic) bool) {
		i.tree.topics.m.Scan(func(_ string, t *Topic) bool { return yield(t) })
	}
}

// TopicCount is how many topics there are.
func (i *Image) TopicCount() int { return i.tree.topics.m.Len() }

// GroupCount is how many groups there are, the metadata group and coordinators included.
func (i *Image) GroupCount() int { return i.tree.groups.m.Len() }

// Partition returns the group, be it of a topic, a coordinator or the metadata; nil if it does not exist.
func (i *Image) Partition(group ident.GroupID) *Partition { return i.tree.groups.get(group) }

// TopicPartition returns a partition of a topic, or nil.
func (i *Image) TopicPartition(topic string, partition int32) *Partition {
	t := i.Topic(topic)
	if t == nil || partition < 0 || int(partition) >= len(t.Partitions) {
		return nil
	}
	return t.Partitions[partition]
}

// Groups iterates over all groups by id.
func (i *Image) Groups() iter.Seq[*Partition] {
	return func(yield func(*Partition) bool) {
		i.tree.groups.m.Scan(func(_ ident.GroupID, p *Partition) bool { return yield(p) })
	}
}

// PartitionsOn iterates over node's replicas by replica id, lost ones and those
// on earlier stores included. It costs the node's replicas, not the cluster's.
func (i *Image) PartitionsOn(node ident.NodeID) iter.Seq2[*Partition, Replica] {
	return func(yield func(*Partition, Replica) bool) {
		i.tree.byNode.m.Ascend(nodeKey(node, 0), func(k string, g ident.GroupID) bool {
			n, id := splitNodeKey(k)
			if n != node {
				return false
			}
			p := i.Partition(g)
			return yield(p, *p.Replica(id))
		})
	}
}

// ReplicasOn is PartitionsOn for one store of the node.
func (i *Image) ReplicasOn(node ident.NodeID, store ident.StoreID) iter.Seq2[*Partition, Replica] {
	return func(yield func(*Partition, Replica) bool) {
		for p, r := range i.PartitionsOn(node) {
			if r.Store == store && !yield(p, r) {
				return
			}
		}
	}
}

// TopicConfigs returns what is set on the topic itself; nil if nothing is.
func (i *Image) TopicConfigs(topic string) map[string]string {
	if t := i.Topic(topic); t != nil {
		return t.Configs
	}
	return nil
}

// BrokerConfigs returns what is set dynamically on one node.
func (i *Image) BrokerConfigs(node ident.NodeID) map[string]string { return i.tree.configs.get(node) }

// ClusterConfigs returns the dynamic broker configs that hold for every node.
func (i *Image) ClusterConfigs() map[string]string { return i.tree.configs.get(clusterConfig) }

// Retired tells whether a replica is gone for good: this Image is new enough to
// know the id and names it nowhere, not even to be removed. Only then may its
// data be deleted (correctness rule 21).
func (i *Image) Retired(group ident.GroupID, replica ident.ReplicaID) bool {
	if replica >= i.NextReplica {
		return false // the id is younger than this Image
	}
	p := i.Partition(group)
	if p == nil {
		return group < i.NextGroup
	}
	if p.Replica(replica) != nil {
		return false
	}
	for _, r := range p.Removing {
		if r == replica {
			return false
		}
	}
	return true
}

// DeletedTopics returns the names of topics that old, an earlier Image, had and
// cur no longer has: that were deleted for certain, also if another has taken the
// name since. That a topic is missing in an Image alone says nothing, for the
// Image may be behind the topic's creation.
func DeletedTopics(old, cur *Image) []string {
	var names []string
	if old.Index > cur.Index || old.NextGroup == cur.NextGroup && old.TopicCount() == cur.TopicCount() { // a new topic takes group ids
		return nil
	}
	for t := range old.Topics() {
		if cur.TopicByID(t.ID) == nil {
			names = append(names, t.Name)
		}
	}
	return names
}
