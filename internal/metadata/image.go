package metadata

import (
	"chronik/internal/ident"
)

// TopicID is Kafka's topic uuid.
type TopicID [16]byte

// Image is the cluster's metadata at one applied index. It is immutable: a
// change makes a new Image that shares what did not change. Read it without
// a lock through Store.Image.
//
// Lookups return nil for what does not exist. Callers never modify what they get.
type Image struct {
	tree imageTree // brokers, topics by name and id, partitions by group, configs: copy-on-write

	// Index is the metadata index this Image is the state after.
	Index ident.Index
	// ClusterID is Kafka's cluster id (22 characters of base64).
	ClusterID string
	// Meta is the metadata group itself.
	Meta *Partition
	// Coordinators are the __consumer_offsets-N groups; empty until first asked for.
	Coordinators []*Partition
}

// Broker is a registered node.
type Broker struct {
	Node      ident.NodeID
	Store     ident.StoreID
	KafkaHost string
	KafkaPort int32
	RaftAddr  string
	AdminAddr string
	Rack      string // "" = none
	// RegisteredAt is the metadata index of the latest registration.
	RegisteredAt ident.Index
}

// Topic is a topic and its partitions, in order of partition id.
type Topic struct {
	ID         TopicID
	Name       string
	Internal   bool
	Partitions []*Partition
	// Configs holds what was set on the topic, by Kafka's name. Defaults are not here.
	Configs map[string]string
	// CreatedAt is the metadata index that created the topic.
	CreatedAt ident.Index
}

// Partition is a Raft group: a topic partition, a coordinator shard or the
// metadata group.
type Partition struct {
	Group ident.GroupID
	Topic string // topic name, "__consumer_offsets" or "__meta"
	TopicID
	Partition int32
	// Generation counts the changes of Replicas; membership changes carry it (rule 22).
	Generation uint64
	Replicas   []Replica
}

// Replica is a replica of a partition as the metadata wants it.
type Replica struct {
	ID    ident.ReplicaID
	Node  ident.NodeID
	Store ident.StoreID
	// Joining: a learner to be made a voter in one joint change that removes Replaces.
	Joining bool
	// Replaces is the replica this one takes the place of; 0 if it only adds.
	Replaces ident.ReplicaID
	// Lost: bound to a store that is gone or quarantined; counts in the quorum until replaced.
	Lost bool
	// Learner: stays a learner (metadata group on nodes beyond its voters).
	Learner bool
	// CreatedAt is the metadata index that named the replica: its node creates it
	// once (0 for genesis).
	CreatedAt ident.Index
}
