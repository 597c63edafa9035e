package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/ident"
	"chronik/internal/metadata"
	"chronik/internal/partition"
)

// Cluster is the node a Handler serves, and what it knows of the others. All
// methods are called from many goroutines.
type Cluster interface {
	// Image is this node's newest metadata. Never nil.
	Image() *metadata.Image
	// Self is this node.
	Self() ident.NodeID
	// Leader is the node that leads a group and the epoch it does so with, as
	// far as this node was told.
	Leader(g ident.GroupID) (node ident.NodeID, epoch int32, ok bool)
	// Alive tells whether a node can be reached; a client is only sent to such nodes.
	Alive(node ident.NodeID) bool
	// Changed returns channels that are closed when Image and Leader next answer
	// differently. Whoever waits takes them before it looks.
	Changed() (image, leaders <-chan struct{})
	// Submit has the metadata leader apply a command and waits until this node's
	// Image is the state after it. The result is the Reply's: the type that the
	// command's docstring names; the Reply's Err is returned as the error.
	Submit(ctx context.Context, cmd metadata.Command) (result any, err error)
	// Partition is the local replica of a topic partition; nil if there is none.
	Partition(g ident.GroupID) Partition
	// Coordinator is the local replica of a coordinator shard; nil if there is none.
	Coordinator(g ident.GroupID) Coordinator
	// Config is the node's settings. They do not change; NewHandler asks once.
	Config() Config
	// DiskBytes is how large the file system of the data directory is and how much
	// of it is free; -1 if not known.
	DiskBytes() (total, free int64)
	// Full tells that the disk reserve is reached: records are refused.
	Full() bool
}

// Config is the part of a node's settings that requests depend on.
type Config struct {
	// AutoCreateTopics: a Metadata request creates the topics it asks for.
	AutoCreateTopics bool
	// DefaultPartitions is how many partitions a topic gets if nobody says.
	DefaultPartitions int32
	// ReplicationFactor is how many replicas a partition gets if nobody says. It
	// is lowered to the number of live brokers for topics created by themselves.
	ReplicationFactor int16
	// MinInsyncReplicas is how many replicas acks=all waits for, unless the topic says.
	MinInsyncReplicas int32
	// MaxMessageBytes is the largest batch, unless the topic says; 0 is Kafka's default.
	MaxMessageBytes int32
	// MaxFetchSessions is how many incremental fetch sessions the node keeps; 0: none.
	MaxFetchSessions int
	// DataDir is where the node keeps its data, as DescribeLogDirs and
	// DescribeConfigs name it.
	DataDir string
	// Node holds further settings to show in DescribeConfigs, read only.
	Node map[string]string
}

// Partition is a local replica of a topic partition: what the handlers use of
// *partition.Partition.
type Partition interface {
	Append(batch []byte, opt partition.AppendOptions, done func(partition.AppendResult))
	Read(offset int64, maxBytes int) (partition.ReadResult, error)
	Watch(w *partition.Watcher)
	Unwatch(w *partition.Watcher)
	Leader() (ok bool, epoch int32)
	HighWatermark() int64
	LogStartOffset() int64
	OffsetForTimestamp(ts int64) (offset, timestamp int64, epoch int32, err error)
	MaxTimestamp() (offset, timestamp int64, epoch int32, err error)
	EpochEndOffset(epoch int32) (foundEpoch int32, endOffset int64)
	ReadIndex(ctx context.Context) error
	// Size is the bytes of the partition's segments here.
	Size() int64
	SetLogStart(ctx context.Context, offset int64) error
}

// Coordinator is the local replica of a coordinator shard: what the handlers use
// of *group.Coordinator. It answers NOT_COORDINATOR unless it leads.
type Coordinator interface {
	Join(ctx context.Context, req *kmsg.JoinGroupRequest, clientID, clientHost string, reply func(*kmsg.JoinGroupResponse))
	Sync(ctx context.Context, req *kmsg.SyncGroupRequest, reply func(*kmsg.SyncGroupResponse))
	Heartbeat(ctx context.Context, req *kmsg.HeartbeatRequest, reply func(*kmsg.HeartbeatResponse))
	Leave(ctx context.Context, req *kmsg.LeaveGroupRequest, reply func(*kmsg.LeaveGroupResponse))
	Commit(ctx context.Context, req *kmsg.OffsetCommitRequest, reply func(*kmsg.OffsetCommitResponse))
	Fetch(ctx context.Context, group string, topics []kmsg.OffsetFetchRequestGroupTopic) kmsg.OffsetFetchResponseGroup
	List(states, types []string) ([]kmsg.ListGroupsResponseGroup, int16)
	Describe(group string) kmsg.DescribeGroupsResponseGroup
	Delete(ctx context.Context, group string, reply func(code int16))
	DeleteOffsets(ctx context.Context, req *kmsg.OffsetDeleteRequest, reply func(*kmsg.OffsetDeleteResponse))
}
