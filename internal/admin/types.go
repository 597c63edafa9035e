package admin

import "time"

// Cluster is the answer of /v1/cluster: the metadata as this node has applied it.
type Cluster struct {
	ClusterID string  `json:"cluster_id"`
	Node      int32   `json:"node"` // who answers
	MetaIndex uint64  `json:"meta_index"`
	Nodes     []Node  `json:"nodes"`
	Topics    []Topic `json:"topics"`
	// Internal holds __meta and the __consumer_offsets shards.
	Internal []Partition `json:"internal"`
}

// Node is a registered node. Alive is as seen by who answers.
type Node struct {
	ID    int32  `json:"id"`
	Store string `json:"store"`
	Kafka string `json:"kafka"`
	Raft  string `json:"raft"`
	Admin string `json:"admin"`
	Rack  string `json:"rack,omitempty"`
	Alive bool   `json:"alive"`
}

// Topic is a topic with its partitions.
type Topic struct {
	Topic      string      `json:"topic"`
	ID         string      `json:"id"`
	Partitions []Partition `json:"partitions"`
}

// Partition is a group and the replicas the metadata names.
type Partition struct {
	Group      string             `json:"group"`
	Partition  int32              `json:"partition"`
	Leader     int32              `json:"leader_node"` // 0: none known
	Term       uint64             `json:"term"`
	Generation uint64             `json:"generation"`
	Replicas   []PartitionReplica `json:"replicas"`
}

// PartitionReplica is a replica as the metadata wants it.
type PartitionReplica struct {
	ReplicaID uint64 `json:"replica_id"`
	Node      int32  `json:"node"`
	Joining   bool   `json:"joining,omitempty"`
	Lost      bool   `json:"lost,omitempty"`
	Learner   bool   `json:"learner,omitempty"`
}

// Topic returns the topic called name, or nil.
func (c *Cluster) Topic(name string) *Topic {
	for i := range c.Topics {
		if c.Topics[i].Topic == name {
			return &c.Topics[i]
		}
	}
	return nil
}

// NodeByID returns the node with this id, or nil.
func (c *Cluster) NodeByID(id int32) *Node {
	for i := range c.Nodes {
		if c.Nodes[i].ID == id {
			return &c.Nodes[i]
		}
	}
	return nil
}

// Replicas is the answer of /v1/replicas.
type Replicas struct {
	Node     int32     `json:"node"`
	Replicas []Replica `json:"replicas"`
	Retired  []Replica `json:"retired"`
	// WithoutQuorum are the groups that cannot go on, as this node sees it.
	WithoutQuorum []Shortfall `json:"without_quorum"`
}

// Advice about groups without a majority.
const (
	AwayHint = "start the nodes that are away; if their disks are lost for good: stop this node, then 'chronik cluster recover --dry-run'"
	LostHint = "the disks of a majority are gone: stop this node, then 'chronik cluster recover --dry-run' says what it can save"
)

// Shortfall is a group of whose voters the answering node cannot reach a majority.
type Shortfall struct {
	Group   string         `json:"group"`
	Voters  int            `json:"voters"`
	Present int            `json:"present"`
	Missing []MissingVoter `json:"missing"`
	// Lost: so many disks are gone that the others can never make a majority.
	Lost bool `json:"lost"`
}

// MissingVoter is a voter that takes no part.
type MissingVoter struct {
	ReplicaID uint64 `json:"replica_id"`
	Node      int32  `json:"node"`
	Store     string `json:"store"`
	// State is unreachable, or replaced: the node is there with another disk.
	State string `json:"state"`
	// CurrentStore is what a replaced one's node has now.
	CurrentStore string `json:"current_store,omitempty"`
}

// Replica is a replica on the answering node. Counters are since process start.
type Replica struct {
	Node                  int32     `json:"node,omitempty"`
	Topic                 string    `json:"topic"`
	Partition             int32     `json:"partition"`
	Group                 string    `json:"group"`
	ReplicaID             uint64    `json:"replica_id"`
	Role                  string    `json:"role"`
	LeaderNode            int32     `json:"leader_node"`
	Term                  uint64    `json:"term"`
	FirstIndex            uint64    `json:"first_index"`
	LastIndex             uint64    `json:"last_index"`
	CommitIndex           uint64    `json:"commit_index"`
	AppliedIndex          uint64    `json:"applied_index"`
	SnapshotIndex         uint64    `json:"snapshot_index"`
	LogStartOffset        int64     `json:"log_start_offset"`
	HighWatermark         int64     `json:"high_watermark"`
	State                 string    `json:"state"`
	Reason                string    `json:"reason,omitempty"` // why it is halted or quarantined, or what is damaged
	Resting               bool      `json:"resting"`          // the group is idle and sends no heartbeats
	SnapshotsCreated      uint64    `json:"snapshots_created"`
	SnapshotsInstalled    uint64    `json:"snapshots_installed"`
	SnapshotBytesReceived uint64    `json:"snapshot_bytes_received"`
	SnapshotBytesReused   uint64    `json:"snapshot_bytes_reused"`
	EntriesReplayed       uint64    `json:"entries_replayed"`
	Transfer              *Transfer `json:"transfer"`
	// Progress is the replica's as its leader sees it. A node knows it of the replicas it leads.
	*Progress
	// Followers, on a leader, are the group's other replicas.
	Followers []Follower `json:"followers,omitempty"`
}

// Progress is what a leader knows of a replica.
type Progress struct {
	// MatchIndex is the highest index known to be durable there, LagEntries how far the leader's log
	// reaches beyond it, and LagBytes what that takes by the mean size of the leader's entries.
	MatchIndex uint64 `json:"match_index"`
	LagEntries uint64 `json:"lag_entries"`
	LagBytes   int64  `json:"lag_bytes"`
}

// Follower is a replica as its leader sees it.
type Follower struct {
	ReplicaID uint64 `json:"replica_id"`
	Node      int32  `json:"node"` // 0: unknown
	Learner   bool   `json:"learner,omitempty"`
	Alive     bool   `json:"alive"` // its node is connected
	// State is raft's: StateProbe, StateReplicate or StateSnapshot.
	State string `json:"state"`
	Progress
}

// Transfer is a snapshot on its way.
type Transfer struct {
	Group          string  `json:"group"`
	Topic          string  `json:"topic"`
	Partition      int32   `json:"partition"`
	Direction      string  `json:"direction"` // in or out
	State          string  `json:"state"`     // queued, manifest, transferring or finishing
	Source         int32   `json:"source_node"`
	Target         int32   `json:"target_node"`
	Index          uint64  `json:"index"` // of the snapshot
	Term           uint64  `json:"term"`
	BytesDone      uint64  `json:"bytes_done"`
	BytesTotal     uint64  `json:"bytes_total"`
	BytesReused    uint64  `json:"bytes_reused"`
	BytesPerSecond float64 `json:"bytes_per_second"`
	SecondsLeft    float64 `json:"seconds_left"` // 0: unknown
	Seconds        float64 `json:"seconds"`      // since its start
	Attempts       int     `json:"attempts"`
	// BytesReceived came over the network, From says from whom. Of transfers to this node only.
	BytesReceived uint64           `json:"bytes_received"`
	From          []TransferSource `json:"from,omitempty"`
}

// TransferSource is who gave bytes of a snapshot: "node 2", "object store".
type TransferSource struct {
	Source string `json:"source"`
	Bytes  uint64 `json:"bytes"`
}

// Digest is the answer of /v1/digest: over the stored batches as a consumer reads them.
type Digest struct {
	From    int64  `json:"from"`
	To      int64  `json:"to"`
	Records int64  `json:"records"`
	Batches int64  `json:"batches"`
	SHA256  string `json:"sha256"`
}

// Snapshots is the answer of GET /v1/snapshots.
type Snapshots struct {
	Snapshots []Checkpoint `json:"snapshots"` // of this node
	Archived  *Archived    `json:"archived,omitempty"`
}

// Checkpoint is a checkpoint on the answering node.
type Checkpoint struct {
	Group     string `json:"group"`
	GroupID   uint64 `json:"group_id"`
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Index     uint64 `json:"index"`
	Leader    bool   `json:"leader"`
	// Uploaded is the index in the object store after a POST with upload; 0: not asked, or not led here.
	Uploaded uint64 `json:"uploaded,omitempty"`
	Error    string `json:"error,omitempty"`
}

// Archived is what the object store has of the cluster.
type Archived struct {
	URL       string             `json:"url"`             // empty: none is set
	Error     string             `json:"error,omitempty"` // why the list is not whole
	Snapshots []ArchivedSnapshot `json:"snapshots"`
}

// ArchivedSnapshot is a snapshot in the object store.
type ArchivedSnapshot struct {
	Group      string    `json:"group"` // empty: the metadata does not name it
	GroupID    uint64    `json:"group_id"`
	Index      uint64    `json:"index"`
	LeaderTerm uint64    `json:"leader_term"`
	Modified   time.Time `json:"modified"`
	Object     string    `json:"object"` // its manifest
}

// Rebalance is the answer of POST /v1/cluster/rebalance: all is done when nothing is under way or planned.
type Rebalance struct {
	// Begun are the moves that this request has begun.
	Begun []Move `json:"begun"`
	// UnderWay are all that have been begun and not ended.
	UnderWay []Move `json:"under_way"`
	// Planned are those that have not been begun yet. They are begun by the next
	// requests, as the ones under way end.
	Planned []Move `json:"planned"`
	// Unreachable are nodes that neither give nor get replicas, since they do not answer.
	Unreachable []int32 `json:"unreachable_nodes"`
}

// Move takes a replica from one node to another.
type Move struct {
	Group     string `json:"group"`
	GroupID   uint64 `json:"group_id"`
	ReplicaID uint64 `json:"replica_id"` // the one that goes
	From      int32  `json:"from_node"`
	To        int32  `json:"to_node"`
}
