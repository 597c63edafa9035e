package metadata

import (
	"encoding/base64"
	"fmt"

	"chronik/internal/ident"
)

// TopicID is Kafka's topic uuid.
type TopicID [16]byte

// String returns the id as Kafka prints it: 22 characters of URL-safe base64.
func (t TopicID) String() string { return base64.RawURLEncoding.EncodeToString(t[:]) }

// IsZero tells whether t names no topic.
func (t TopicID) IsZero() bool { return t == TopicID{} }

// MarshalText implements encoding.TextMarshaler.
func (t TopicID) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *TopicID) UnmarshalText(b []byte) error {
	raw, err := base64.RawURLEncoding.DecodeString(string(b))
	if err != nil || len(raw) != len(t) {
		return fmt.Errorf("topic id %q: want 22 characters of URL-safe base64", b)
	}
	copy(t[:], raw)
	return nil
}

// Names of the groups that are not topics.
const (
	// OffsetsTopic is the Partition.Topic of a coordinator shard.
	OffsetsTopic = "__consumer_offsets"
	// MetaTopic is the Partition.Topic of the metadata group.
	MetaTopic = "__meta"
)

// Image is the cluster's metadata at one applied index. It is immutable: a
// change makes a new Image that shares what did not change. Read it without
// a lock through Store.Image.
//
// Lookups return nil for what does not exist. Callers never modify what they get.
type Image struct {
	tree imageTree // brokers, topics by name and id, partitions by group, configs: copy-on-write

	// Index is the metadata index this Image is the state after.
	Index ident.Index
	// Level says which rules Apply follows. A release that changes what Apply
	// does with an entry hangs the change on a higher Level, so that nodes of two
	// releases never disagree. Genesis sets it.
	Level int
	// ClusterID is Kafka's cluster id (22 characters of base64). Empty before genesis.
	ClusterID string
	// CoordinatorCount is how many __consumer_offsets groups there are once they
	// are created. Fixed at genesis (correctness rule 24).
	CoordinatorCount int32
	// Meta is the metadata group itself. Nil before genesis.
	Meta *Partition
	// Coordinators are the __consumer_offsets-N groups; empty until first asked for.
	Coordinators []*Partition

	// NextGroup is the lowest group id never given. Only rises.
	NextGroup ident.GroupID
	// NextReplica is the lowest replica id never given. Only rises.
	NextReplica ident.ReplicaID
	// NextProducerID is the first producer id not handed out. Only rises.
	NextProducerID int64
}

// Broker is a registered node.
type Broker struct {
	Node      ident.NodeID  `json:"node"`
	Store     ident.StoreID `json:"store"`
	KafkaHost string        `json:"kafka_host"`
	KafkaPort int32         `json:"kafka_port"`
	RaftAddr  string        `json:"raft_addr"`
	AdminAddr string        `json:"admin_addr"`
	Rack      string        `json:"rack,omitempty"` // "" = none
	// Draining brokers get no new replicas.
	Draining bool `json:"draining,omitempty"`
	// RegisteredAt is the metadata index of the latest registration.
	RegisteredAt ident.Index `json:"registered_at"`
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
	Group     ident.GroupID
	Topic     string // topic name, "__consumer_offsets" or "__meta"
	TopicID   TopicID
	Partition int32
	// Generation counts the changes of Replicas; membership changes carry it (rule 22).
	Generation uint64
	Replicas   []Replica
	// Removing are ids that Replicas no longer names but that may still be in the
	// group's Raft configuration. The group's leader takes them out and reports;
	// until then their data is not deleted.
	Removing []ident.ReplicaID
	// Founders are the replicas that Raft's first configuration, at index 1,
	// names as voters. A founder's log is seeded at (1,1) with exactly these,
	// whenever its node gets to it; all other replicas are created empty. They
	// stay listed after they are gone.
	Founders []Founder
	// CreatedAt is the metadata index that created the group (0 for genesis).
	CreatedAt ident.Index
}

// Founder is one of a group's first voters and where it was.
type Founder struct {
	Replica ident.ReplicaID `json:"id"`
	Node    ident.NodeID    `json:"node"`
	Store   ident.StoreID   `json:"store"`
}

// Replica is a replica of a partition as the metadata wants it.
type Replica struct {
	ID    ident.ReplicaID `json:"id"`
	Node  ident.NodeID    `json:"node"`
	Store ident.StoreID   `json:"store"`
	// Joining: a learner to be made a voter in one joint change that removes Replaces.
	Joining bool `json:"joining,omitempty"`
	// Replaces is the replica this one takes the place of; 0 if it only adds.
	Replaces ident.ReplicaID `json:"replaces,omitempty"`
	// Lost: bound to a store that is gone or quarantined; counts in the quorum until replaced.
	Lost bool `json:"lost,omitempty"`
	// Learner: stays a learner (metadata group on nodes beyond its voters).
	Learner bool `json:"learner,omitempty"`
	// CreatedAt is the metadata index that named the replica: its node creates it
	// once (0 for genesis).
	CreatedAt ident.Index `json:"created_at,omitempty"`
}

// Voter tells whether the metadata counts r as a voter now.
func (r Replica) Voter() bool { return !r.Joining && !r.Learner }

// Replica returns the replica with that id, or nil.
func (p *Partition) Replica(id ident.ReplicaID) *Replica {
	for i := range p.Replicas {
		if p.Replicas[i].ID == id {
			return &p.Replicas[i]
		}
	}
	return nil
}

// OnNode returns the replica that node serves: the voter or learner on it that
// is not lost, else the one that joins, else the lost one; nil if there is none.
func (p *Partition) OnNode(node ident.NodeID) *Replica {
	var best *Replica
	rank := func(r *Replica) int {
		switch {
		case r.Lost:
			return 1
		case r.Joining:
			return 2
		default:
			return 3
		}
	}
	for i := range p.Replicas {
		r := &p.Replicas[i]
		if r.Node == node && (best == nil || rank(r) > rank(best)) {
			best = r
		}
	}
	return best
}

// Founder tells whether id is one of the group's first voters.
func (p *Partition) Founder(id ident.ReplicaID) bool {
	for _, f := range p.Founders {
		if f.Replica == id {
			return true
		}
	}
	return false
}

// ReplicaNodes returns the nodes that hold the partition's voters, preferred
// leader first: what Kafka calls the replica assignment. A node whose disk is
// being replaced stays in it.
func (p *Partition) ReplicaNodes() []ident.NodeID {
	nodes := make([]ident.NodeID, 0, len(p.Replicas))
	for _, r := range p.Replicas {
		if r.Voter() {
			nodes = append(nodes, r.Node)
		}
	}
	return nodes
}

// OfflineNodes returns the nodes of ReplicaNodes whose replica is lost and not replaced yet.
func (p *Partition) OfflineNodes() []ident.NodeID {
	var nodes []ident.NodeID
	for _, r := range p.Replicas {
		if r.Voter() && r.Lost {
			nodes = append(nodes, r.Node)
		}
	}
	return nodes
}

// MajorityLost tells whether so many voters are lost that the group cannot
// commit anything: nothing is proposed for it, and an operator must choose a survivor.
func (p *Partition) MajorityLost() bool {
	voters, lost := 0, 0
	for _, r := range p.Replicas {
		if r.Voter() {
			voters++
			if r.Lost {
				lost++
			}
		}
	}
	return voters > 0 && voters-lost < voters/2+1
}

// Key names the group's directory and logs: "meta", "offsets-3" or
// "<topic id in hexadecimal>-<partition>".
func (p *Partition) Key() string {
	switch {
	case p.Group == ident.MetaGroup:
		return "meta"
	case p.TopicID.IsZero():
		return fmt.Sprintf("offsets-%d", p.Partition)
	default:
		return fmt.Sprintf("%x-%d", p.TopicID[:], p.Partition)
	}
}

// Name is what people call the group: "orders-0", "__consumer_offsets-3", "__meta".
func (p *Partition) Name() string {
	if p.Group == ident.MetaGroup {
		return MetaTopic
	}
	return fmt.Sprintf("%s-%d", p.Topic, p.Partition)
}

// clone returns a deep copy that may be modified.
func (p *Partition) clone() *Partition {
	c := *p
	c.Replicas = append([]Replica(nil), p.Replicas...)
	c.Removing = append([]ident.ReplicaID(nil), p.Removing...)
	return &c
}
