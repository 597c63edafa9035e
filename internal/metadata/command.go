package metadata

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"chronik/internal/format"
	"chronik/internal/ident"
	"chronik/internal/jsonbound"
)

// MaxCommandBytes bounds an encoded command.
const MaxCommandBytes = 8 << 20

// Command is one change of the metadata: a proposal's content. Apply answers
// each kind with its own result type, named at the command.
type Command interface {
	// Kind is the tag the command is encoded under.
	Kind() string
}

// Genesis makes the cluster. It is the first command of a metadata group and
// refused afterwards. Result: *GenesisResult.
type Genesis struct {
	ClusterID string `json:"cluster_id"`
	// Members are the first nodes with the replica ids their metadata replicas
	// were seeded with; see GenesisMembers.
	Members []GenesisMember `json:"members"`
	// Coordinators is the number of __consumer_offsets groups, for ever.
	Coordinators int32 `json:"coordinators"`
	Level        int   `json:"level"`
}

// GenesisMember is a node's metadata replica at the cluster's birth.
type GenesisMember struct {
	Node    ident.NodeID    `json:"node"`
	Store   ident.StoreID   `json:"store"`
	Replica ident.ReplicaID `json:"replica"`
	Learner bool            `json:"learner,omitempty"`
}

// RegisterBroker makes a node known, renews its addresses, or, with another
// store than before, declares every replica on the old store lost and names
// fresh ones on the new store (correctness rule 21). Result: *RegisterResult.
type RegisterBroker struct {
	ClusterID string        `json:"cluster_id,omitempty"` // "" = not checked
	Node      ident.NodeID  `json:"node"`
	Store     ident.StoreID `json:"store"`
	// Previous is the store the proposer saw for the node (Image.StoreOf), zero for
	// none. A command that waited while the node got yet another store is refused.
	Previous  ident.StoreID `json:"previous,omitzero"`
	KafkaHost string        `json:"kafka_host"`
	KafkaPort int32         `json:"kafka_port"`
	RaftAddr  string        `json:"raft_addr"`
	AdminAddr string        `json:"admin_addr"`
	Rack      string        `json:"rack,omitempty"`
}

// RetireBroker takes a node out of the cluster. It must hold no replica but the
// metadata group's. Result: nil.
type RetireBroker struct {
	Node ident.NodeID `json:"node"`
}

// DrainBroker says whether a node gets new replicas. Result: nil.
type DrainBroker struct {
	Node     ident.NodeID `json:"node"`
	Draining bool         `json:"draining"`
}

// CreateTopics creates topics, each by itself: one may fail and the next succeed.
// Result: *CreateTopicsResult.
type CreateTopics struct {
	Topics []NewTopic `json:"topics"`
	// Avoid are nodes the proposer knows to be down: placed on only if there are not enough others.
	Avoid []ident.NodeID `json:"avoid,omitempty"`
}

// NewTopic is a topic to be created.
type NewTopic struct {
	Name string `json:"name"`
	// ID is random, made by the proposer.
	ID                TopicID `json:"id"`
	Partitions        int32   `json:"partitions"`
	ReplicationFactor int16   `json:"replication_factor"`
	// ClampReplication: ReplicationFactor is a default; use fewer when there are fewer brokers.
	ClampReplication bool `json:"clamp_replication,omitempty"`
	// Assignments, if given, are the nodes of each partition in order, preferred
	// leader first; Partitions and ReplicationFactor are then ignored.
	Assignments [][]ident.NodeID  `json:"assignments,omitempty"`
	Configs     map[string]string `json:"configs,omitempty"`
	Internal    bool              `json:"internal,omitempty"`
}

// CreatePartitions adds partitions to topics. Result: *CreatePartitionsResult.
type CreatePartitions struct {
	Topics []MorePartitions `json:"topics"`
	Avoid  []ident.NodeID   `json:"avoid,omitempty"`
}

// MorePartitions raises a topic's partition count.
type MorePartitions struct {
	Name string `json:"name"`
	// Count is the new total.
	Count int32 `json:"count"`
	// Assignments, if given, are the nodes of the added partitions.
	Assignments [][]ident.NodeID `json:"assignments,omitempty"`
}

// DeleteTopics deletes topics by name or, where the name is empty, by id.
// Result: *DeleteTopicsResult.
type DeleteTopics struct {
	Topics []TopicRef `json:"topics"`
}

// TopicRef names a topic.
type TopicRef struct {
	Name string  `json:"name,omitempty"`
	ID   TopicID `json:"id,omitzero"`
}

// ResourceType is what a config belongs to, in Kafka's numbers.
type ResourceType int8

// Resource types.
const (
	ResourceTopic  ResourceType = 2
	ResourceBroker ResourceType = 4
)

// ConfigOp is Kafka's incremental operation.
type ConfigOp int8

// Operations of an incremental alteration.
const (
	OpSet ConfigOp = iota
	OpDelete
	OpAppend
	OpSubtract
)

// AlterConfigs changes configs, each resource all or nothing. Result: *AlterConfigsResult.
type AlterConfigs struct {
	Resources []AlterResource `json:"resources"`
}

// AlterResource is the change of one resource's configs.
type AlterResource struct {
	Type ResourceType `json:"type"`
	// Name is a topic, a node id in decimal, or "" for all brokers.
	Name string `json:"name"`
	// Replace: the resource gets exactly Ops' values (AlterConfigs); else Ops are
	// applied to what is there (IncrementalAlterConfigs).
	Replace bool            `json:"replace,omitempty"`
	Ops     []ConfigAlterOp `json:"ops"`
}

// ConfigAlterOp is one operation on one config.
type ConfigAlterOp struct {
	Name  string   `json:"name"`
	Op    ConfigOp `json:"op"`
	Value *string  `json:"value,omitempty"`
}

// AllocateProducerIDs hands a block of producer ids to a node. Result: *ProducerIDBlock.
type AllocateProducerIDs struct {
	Node ident.NodeID `json:"node"`
}

// CreateCoordinators creates the __consumer_offsets groups unless they exist.
// Result: *CreateCoordinatorsResult.
type CreateCoordinators struct {
	ReplicationFactor int16          `json:"replication_factor"` // clamped to the number of brokers
	Avoid             []ident.NodeID `json:"avoid,omitempty"`
}

// ReplaceReplica gives a replica's place to a fresh one: because it is lost or
// quarantined, or because it is to move to another node. Result: *ReplaceReplicaResult.
type ReplaceReplica struct {
	Group   ident.GroupID   `json:"group"`
	Replica ident.ReplicaID `json:"replica"`
	// Node gets the new replica on its registered store; 0 = the node of the old one.
	Node ident.NodeID `json:"node,omitempty"`
	// Move: the old replica is sound and serves until the new one has taken over.
	// Else it is marked lost.
	Move   bool   `json:"move,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// ReportMembership is the group's leader telling which Raft configuration it
// has applied. Joining replicas that are voters now become plain ones, those
// they replace disappear, removed ids are forgotten. Result: *ReportResult.
type ReportMembership struct {
	Group ident.GroupID `json:"group"`
	// Generation the leader acted on; another one now: ErrStaleGeneration.
	Generation uint64            `json:"generation"`
	Voters     []ident.ReplicaID `json:"voters"`
	Learners   []ident.ReplicaID `json:"learners,omitempty"`
}

// SwapMetaVoter gives the seat of a dead metadata voter to a learner
// (correctness rule 23). Its leader, which has the clock, decides. Result: nil.
type SwapMetaVoter struct {
	Generation uint64          `json:"generation"`
	Dead       ident.ReplicaID `json:"dead"`
	With       ident.ReplicaID `json:"with"`
}

// Kind implements Command.
func (*Genesis) Kind() string { return "genesis" }

// Kind implements Command.
func (*RegisterBroker) Kind() string { return "register_broker" }

// Kind implements Command.
func (*RetireBroker) Kind() string { return "retire_broker" }

// Kind implements Command.
func (*DrainBroker) Kind() string { return "drain_broker" }

// Kind implements Command.
func (*CreateTopics) Kind() string { return "create_topics" }

// Kind implements Command.
func (*CreatePartitions) Kind() string { return "create_partitions" }

// Kind implements Command.
func (*DeleteTopics) Kind() string { return "delete_topics" }

// Kind implements Command.
func (*AlterConfigs) Kind() string { return "alter_configs" }

// Kind implements Command.
func (*AllocateProducerIDs) Kind() string { return "allocate_producer_ids" }

// Kind implements Command.
func (*CreateCoordinators) Kind() string { return "create_coordinators" }

// Kind implements Command.
func (*ReplaceReplica) Kind() string { return "replace_replica" }

// Kind implements Command.
func (*ReportMembership) Kind() string { return "report_membership" }

// Kind implements Command.
func (*SwapMetaVoter) Kind() string { return "swap_meta_voter" }

// newCommand returns an empty command of a kind, or nil.
func newCommand(kind string) Command {
	switch kind {
	case "genesis":
		return new(Genesis)
	case "register_broker":
		return new(RegisterBroker)
	case "retire_broker":
		return new(RetireBroker)
	case "drain_broker":
		return new(DrainBroker)
	case "create_topics":
		return new(CreateTopics)
	case "create_partitions":
		return new(CreatePartitions)
	case "delete_topics":
		return new(DeleteTopics)
	case "alter_configs":
		return new(AlterConfigs)
	case "allocate_producer_ids":
		return new(AllocateProducerIDs)
	case "create_coordinators":
		return new(CreateCoordinators)
	case "replace_replica":
		return new(ReplaceReplica)
	case "report_membership":
		return new(ReportMembership)
	case "swap_meta_voter":
		return new(SwapMetaVoter)
	default:
		return nil
	}
}

type envelope struct {
	Kind string          `json:"t"`
	Body json.RawMessage `json:"c,omitempty"`
}

// Encode returns the command as it is proposed and forwarded:
// {"t":"create_topics","c":{…}}.
func Encode(c Command) ([]byte, error) {
	b, err := encodeTagged(c.Kind(), c)
	if err == nil && len(b) > MaxCommandBytes {
		err = ErrBadCommand.with("%s: %d bytes, limit %d", c.Kind(), len(b), MaxCommandBytes)
	}
	return b, err
}

// Decode reads what Encode wrote. Errors match ErrBadCommand.
func Decode(data []byte) (Command, error) {
	if len(data) > MaxCommandBytes {
		return nil, ErrBadCommand.with("%d bytes, limit %d", len(data), MaxCommandBytes)
	}
	var e envelope
	if err := strictJSON(data, &e); err != nil {
		return nil, ErrBadCommand.with("%v", err)
	}
	c := newCommand(e.Kind)
	if c == nil {
		return nil, fmt.Errorf("metadata command %q: %w", e.Kind, format.ErrNewer)
	}
	if err := strictJSON(e.Body, c); err != nil {
		if json.Unmarshal(e.Body, newCommand(e.Kind)) == nil { // a field too many is all that is wrong
			return nil, fmt.Errorf("metadata command %s: %w: %w", e.Kind, err, format.ErrNewer)
		}
		return nil, ErrBadCommand.with("%s: %v", e.Kind, err)
	}
	return c, nil
}

func encodeTagged(kind string, v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("metadata: encode %s: %w", kind, err)
	}
	return json.Marshal(envelope{Kind: kind, Body: body})
}

// strictJSON decodes exactly one value that is not crowded and has no unknown fields.
func strictJSON(data []byte, v any) error {
	if err := jsonbound.Check(data); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("bytes behind the value")
	}
	return nil
}
