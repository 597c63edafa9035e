package metadata

import (
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
)

// Error is a refused command. It survives forwarding between nodes: errors.Is
// compares by Name, so a decoded Error still matches its sentinel.
type Error struct {
	// Name is stable across releases.
	Name string `json:"name"`
	// Code is Kafka's error code.
	Code int16 `json:"code"`
	// Message is for people and goes to the client.
	Message string `json:"message,omitempty"`
}

// Error implements error.
func (e *Error) Error() string {
	if e.Message == "" {
		return "metadata: " + e.Name
	}
	return "metadata: " + e.Name + ": " + e.Message
}

// Is matches errors of the same name.
func (e *Error) Is(target error) bool {
	var t *Error
	return errors.As(target, &t) && t.Name == e.Name
}

// with returns a copy of the sentinel that says more.
func (e *Error) with(format string, args ...any) *Error {
	c := *e
	c.Message = fmt.Sprintf(format, args...)
	return &c
}

func sentinel(name string, k *kerr.Error) *Error { return &Error{Name: name, Code: k.Code} }

// What Apply refuses commands with.
var (
	ErrBadCommand         = sentinel("bad_command", kerr.InvalidRequest)
	ErrNoCluster          = sentinel("no_cluster", kerr.CoordinatorNotAvailable) // before genesis
	ErrClusterExists      = sentinel("cluster_exists", kerr.InvalidRequest)      // a second genesis
	ErrClusterMismatch    = sentinel("cluster_mismatch", kerr.InconsistentClusterID)
	ErrUnknownBroker      = sentinel("unknown_broker", kerr.BrokerIDNotRegistered)
	ErrStaleRegistration  = sentinel("stale_registration", kerr.DuplicateBrokerRegistration)
	ErrBrokerInUse        = sentinel("broker_in_use", kerr.InvalidRequest) // retire with replicas left
	ErrInvalidTopic       = sentinel("invalid_topic", kerr.InvalidTopicException)
	ErrTopicExists        = sentinel("topic_exists", kerr.TopicAlreadyExists)
	ErrUnknownTopic       = sentinel("unknown_topic", kerr.UnknownTopicOrPartition)
	ErrUnknownTopicID     = sentinel("unknown_topic_id", kerr.UnknownTopicID)
	ErrInvalidPartitions  = sentinel("invalid_partitions", kerr.InvalidPartitions)
	ErrInvalidReplication = sentinel("invalid_replication", kerr.InvalidReplicationFactor)
	ErrInvalidAssignment  = sentinel("invalid_assignment", kerr.InvalidReplicaAssignment)
	ErrInvalidConfig      = sentinel("invalid_config", kerr.InvalidConfig)
	ErrInvalidRequest     = sentinel("invalid_request", kerr.InvalidRequest)
	ErrUnknownGroup       = sentinel("unknown_group", kerr.UnknownTopicOrPartition)
	ErrUnknownReplica     = sentinel("unknown_replica", kerr.ReplicaNotAvailable) // retired or never given
	ErrStaleGeneration    = sentinel("stale_generation", kerr.InvalidUpdateVersion)
	ErrProducerIDs        = sentinel("producer_ids_exhausted", kerr.UnknownServerError)
)
