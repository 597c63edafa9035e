package metadata

import (
	"encoding/json"
	"errors"

	"chronik/internal/ident"
)

// Reply is what applying one command yields: raftgroup's Result for entries of
// the metadata group is always a *Reply.
type Reply struct {
	// Index is the metadata index of the command. Wait for an Image at or above
	// it (Store.WaitFor) to see its effect on another node.
	Index ident.Index
	// Result is the command's own result type, or nil.
	Result any
	// Err is nil or an *Error.
	Err error
}

// GenesisResult answers Genesis.
type GenesisResult struct {
	ClusterID string `json:"cluster_id"`
}

// MetaMember is a replica of the metadata group and where it lives.
type MetaMember struct {
	Replica  ident.ReplicaID `json:"replica"`
	Node     ident.NodeID    `json:"node"`
	Store    ident.StoreID   `json:"store"`
	Learner  bool            `json:"learner,omitempty"`
	RaftAddr string          `json:"raft_addr,omitempty"` // "" = not registered yet
}

// RegisterResult answers RegisterBroker: all that a blank node needs to create
// its metadata replica, which joins empty.
type RegisterResult struct {
	ClusterID string `json:"cluster_id"`
	// MetaReplica is the node's replica of the metadata group on its store.
	MetaReplica ident.ReplicaID `json:"meta_replica"`
	// CreatedAt is the index that named MetaReplica, for its creation record.
	CreatedAt ident.Index `json:"created_at"`
	// Founder: MetaReplica is of genesis and is never created from this answer.
	Founder bool `json:"founder,omitempty"`
	// Lost counts the replicas declared lost by this registration.
	Lost    int          `json:"lost,omitempty"`
	Members []MetaMember `json:"members"`
}

// CreatedTopic is the outcome for one topic of CreateTopics.
type CreatedTopic struct {
	Name              string  `json:"name"`
	ID                TopicID `json:"id,omitzero"`
	Partitions        int32   `json:"partitions"`
	ReplicationFactor int16   `json:"replication_factor"`
	Err               *Error  `json:"err,omitempty"`
}

// CreateTopicsResult answers CreateTopics, in the command's order.
type CreateTopicsResult struct {
	Topics []CreatedTopic `json:"topics"`
}

// TopicOutcome is the outcome for one topic.
type TopicOutcome struct {
	Name string  `json:"name"`
	ID   TopicID `json:"id,omitzero"`
	Err  *Error  `json:"err,omitempty"`
}

// CreatePartitionsResult answers CreatePartitions, in the command's order.
type CreatePartitionsResult struct {
	Topics []TopicOutcome `json:"topics"`
}

// DeleteTopicsResult answers DeleteTopics, in the command's order.
type DeleteTopicsResult struct {
	Topics []TopicOutcome `json:"topics"`
}

// AlteredResource is the outcome for one resource.
type AlteredResource struct {
	Type ResourceType `json:"type"`
	Name string       `json:"name"`
	Err  *Error       `json:"err,omitempty"`
}

// AlterConfigsResult answers AlterConfigs, in the command's order.
type AlterConfigsResult struct {
	Resources []AlteredResource `json:"resources"`
}

// ProducerIDBlock answers AllocateProducerIDs: First to First+Count-1.
type ProducerIDBlock struct {
	First int64 `json:"first"`
	Count int32 `json:"count"`
}

// CreateCoordinatorsResult answers CreateCoordinators.
type CreateCoordinatorsResult struct {
	Groups []ident.GroupID `json:"groups"`
}

// ReplaceReplicaResult answers ReplaceReplica.
type ReplaceReplicaResult struct {
	Replica ident.ReplicaID `json:"replica"`
	Node    ident.NodeID    `json:"node"`
	Store   ident.StoreID   `json:"store"`
}

// ReportResult answers ReportMembership.
type ReportResult struct {
	// Generation is the partition's after the report.
	Generation uint64 `json:"generation"`
}

// newResult returns an empty result of a command's kind, or nil if it has none.
func newResult(kind string) any {
	switch kind {
	case "genesis":
		return new(GenesisResult)
	case "register_broker":
		return new(RegisterResult)
	case "create_topics":
		return new(CreateTopicsResult)
	case "create_partitions":
		return new(CreatePartitionsResult)
	case "delete_topics":
		return new(DeleteTopicsResult)
	case "alter_configs":
		return new(AlterConfigsResult)
	case "allocate_producer_ids":
		return new(ProducerIDBlock)
	case "create_coordinators":
		return new(CreateCoordinatorsResult)
	case "replace_replica":
		return new(ReplaceReplicaResult)
	case "report_membership":
		return new(ReportResult)
	default:
		return nil
	}
}

type replyWire struct {
	Index  ident.Index     `json:"index"`
	Result json.RawMessage `json:"result,omitempty"`
	Err    *Error          `json:"err,omitempty"`
}

// EncodeReply returns r as the answer to a forwarded command. An error that is
// no Error travels as its text under the name "unknown".
func EncodeReply(r *Reply) ([]byte, error) {
	w := replyWire{Index: r.Index}
	if r.Err != nil && !errors.As(r.Err, &w.Err) {
		w.Err = &Error{Name: "unknown", Code: -1, Message: r.Err.Error()}
	}
	if r.Result != nil {
		b, err := json.Marshal(r.Result)
		if err != nil {
			return nil, err
		}
		w.Result = b
	}
	return json.Marshal(w)
}

// DecodeReply reads the answer to a command of the given kind.
func DecodeReply(kind string, data []byte) (*Reply, error) {
	var w replyWire
	if err := strictJSON(data, &w); err != nil {
		return nil, ErrBadCommand.with("reply to %s: %v", kind, err)
	}
	r := &Reply{Index: w.Index}
	if w.Err != nil {
		r.Err = w.Err
	}
	if res := newResult(kind); res != nil && len(w.Result) > 0 {
		if err := strictJSON(w.Result, res); err != nil {
			return nil, ErrBadCommand.with("result of %s: %v", kind, err)
		}
		r.Result = res
	}
	return r, nil
}
