package raftgroup

import (
	"context"
	"io"
	"log/slog"
	"time"

	"chronik/internal/ident"
	"chronik/internal/raftlog"
	"chronik/internal/snapshot"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// Entry is a committed entry handed to a state machine: a normal entry with data.
// Raft's own entries (a leader's empty one, membership changes) are not passed on.
type Entry struct {
	Index ident.Index
	Term  ident.Term
	Data  []byte // shared and immutable
}

// Result is what applying one entry yields for whoever proposed it.
type Result any

// Point is a position in a group's log together with the membership there.
type Point struct {
	Index     ident.Index
	Term      ident.Term
	ConfState []byte   // raft's encoding of the configuration exactly at Index
	Members   []Member // the replicas of ConfState and where they live
	// ConfGeneration is the highest generation any applied membership change carried (rule 22).
	ConfGeneration uint64
}

// Member binds a replica to the node and store it lives on.
type Member struct {
	Replica ident.ReplicaID
	Node    ident.NodeID
	Store   ident.StoreID
	Learner bool
}

// StateMachine is what a Raft group replicates. Apply, Capture and Install are
// called from one goroutine at a time, in index order. Apply is a pure function
// of the entries and the state (correctness rule 1): no clock, no configuration.
type StateMachine interface {
	// Apply applies committed entries in order and returns one Result each.
	// An error wrapping vfs ENOSPC says that the state is as it was: Apply is called
	// again with the first of the entries alone, and so on; if that one finds no space
	// the group waits, and the rest comes again. Any other error halts the replica.
	Apply(entries []Entry) ([]Result, error)
	// Capture pins the state at this moment. O(1): no I/O, no encoding.
	Capture() (Capture, error)
	// Install replaces the state by the one staged in dir (all files of the
	// manifest are there, verified and durable; blob is the captured state).
	// The old directory is removed by the caller afterwards.
	Install(dir string, blob []byte) error
	// Close releases files. No call follows.
	Close() error
}

// Capture is a pinned state. Its methods run on a background goroutine,
// concurrently with Apply.
type Capture interface {
	// Sync makes every byte of Files durable. An error halts the replica, whatever it is.
	Sync() error
	// WriteTo writes the encoded state without the files' contents: the blob
	// that Install and Open get back.
	WriteTo(w io.Writer) (int64, error)
	// Files lists the data files that belong to the state, by name within the
	// replica's directory, with the length that belongs to it. Files only ever
	// grow behind that length; a name is never reused for other bytes.
	Files() []CaptureFile
	// Published is called once the checkpoint that names Files is durable:
	// files that no checkpoint names any more may now be unlinked (rule 12).
	Published()
	// Release ends the pin. Called exactly once, also on failure.
	Release()
}

// CaptureFile is a data file of a captured state.
type CaptureFile struct {
	Name string
	Size int64
}

// OpenFunc opens a group's state machine in dir. blob is the last durable
// checkpoint's (nil: a new, empty state) and files are its files: bytes behind
// their lengths, and other data files in dir, are remains of a crash and are
// overwritten or removed; the log's entries are applied again.
type OpenFunc func(fs vfs.FS, dir string, blob []byte, files []CaptureFile) (StateMachine, error)

// RoleWatcher is what a state machine may implement besides StateMachine to
// hear of leadership. RoleChanged is called on a raft worker, concurrently with
// Apply, and must not block. leading is true only once this replica has applied
// its own term's empty entry, so it may serve (correctness rule 25).
type RoleWatcher interface {
	RoleChanged(leader ident.NodeID, term ident.Term, leading bool)
}

// MaxEntry bounds an entry's data. An entry is never divided, so one that a leader took and no
// frame carries would stand in its group's way for good. A frame holds at most frameBytes and then one message, which
// is maxSizePerMsg or a single entry: frameBytes + maxSizePerMsg + MaxEntry + frameSlack <= transport.MaxFrame.
// What one append brings to the raftlog is less than maxInboxBytes or maxUncommitted, or a single entry: a quarter of
// the largest record there.
const MaxEntry = 48 << 20

// frameSlack is ample for the heads of a frame's items and entries.
const frameSlack = 8 << 20

const _ = uint(transport.MaxFrame - (frameBytes + maxSizePerMsg + MaxEntry + frameSlack)) // not negative

// Waiter is told what became of a proposal, exactly once, on an apply goroutine
// or a raft worker: it must not block. On error nothing is known about the
// entry, except with ErrNotLeader, ErrBusy or ErrTooLarge, which say that it was never
// appended. For data that is too large, and on a replica that is stopped, quarantined or over its bound of
// queued bytes it is called before Propose returns.
type Waiter interface {
	Applied(index ident.Index, term ident.Term, res Result, err error)
}

// ProposeOptions say when a proposal counts as done.
type ProposeOptions struct {
	// MinReplicas is the number of voters, the leader included, that must hold
	// the entry durably before the waiter is released (correctness rule 27). At
	// or below a majority, which a commit implies anyway, it costs nothing.
	MinReplicas int
	// Deadline bounds the wait: ErrTimeout while the entry is not applied,
	// ErrNotEnoughReplicasAfterAppend when only MinReplicas is not reached. Its
	// grain is one heartbeat interval. Zero: no deadline.
	Deadline time.Time
	// Release, if set, is called on the raft worker once the data was taken, of which
	// raft makes a copy of its own: the proposer may use its bytes again. Of data that was
	// refused, or whose replica fails, it is not told.
	Release func(data []byte)
}

// Spec is the durable description of a replica: what its raftlog creation
// record carries, and all that is needed to open it again.
type Spec struct {
	Group   ident.GroupID
	Replica ident.ReplicaID
	// Name is for people, logs and metrics: "orders-0".
	Name string
	// Key is the group's part of the directory name: "meta", "offsets-3" or
	// "<topic id>-<partition>". No path separator, at most 200 bytes.
	Key string
	// Topic and Partition are what Name is made of.
	Topic     string
	Partition int32
	// Members are the initial voters and learners. Empty: the replica joins a
	// group that runs and waits for its leader's snapshot.
	Members []Member
	// CreatedAt is the metadata index that named the replica (0 for genesis).
	CreatedAt ident.Index
	// Kind is the caller's: which state machine this is.
	Kind byte
	// Priority puts the replica on the workers that only such replicas use.
	Priority bool
}

// Role is a replica's part in its group.
type Role uint8

// Roles.
const (
	RoleFollower Role = iota
	RoleCandidate
	RoleLeader
	RoleLearner
)

// State says whether a replica takes part in its group.
type State uint8

// States.
const (
	StateHeld        State = iota // opened, not yet released by Host.Start
	StateRunning                  // takes part
	StateReceiving                // takes part, and a snapshot is on its way
	StateHalted                   // stores and votes, has no state any more; wants replacement
	StateQuarantined              // takes no part for good; wants replacement
	StateStopped                  // closed
)

// Follower is a leader's view of another replica.
type Follower struct {
	Replica ident.ReplicaID
	Node    ident.NodeID
	Learner bool
	// Match is the highest index known to be durable there.
	Match ident.Index
	// State is raft's: probe, replicate or snapshot.
	State string
	// Lag is the leader's last index minus Match.
	Lag uint64
	// LagBytes is what those entries take, by the mean size of the entries in the leader's log.
	LagBytes int64
	// Alive: its node is connected.
	Alive bool
	// Halted: it has said so lately.
	Halted bool
}

// Status is a replica at one moment. Callers may keep it but not change it.
type Status struct {
	Group         ident.GroupID
	Replica       ident.ReplicaID
	Name          string
	Topic         string
	Partition     int32
	Kind          byte
	Role          Role
	State         State
	Reason        string // why it is halted or quarantined, or what is damaged
	Leader        ident.ReplicaID
	LeaderNode    ident.NodeID // 0: unknown
	Term          ident.Term
	FirstIndex    ident.Index
	LastIndex     ident.Index
	CommitIndex   ident.Index
	AppliedIndex  ident.Index
	SnapshotIndex ident.Index
	// Serving: leads, and has applied its own term's empty entry.
	Serving   bool
	Members   []Member
	Followers []Follower // on the leader only
	// ConfGeneration is the highest generation an applied membership change carried.
	ConfGeneration uint64
	// Resting: the group is idle and quiescent as far as this replica knows.
	Resting bool
	// Changing: the configuration is joint, or this leader does not serve yet.
	Changing bool

	// Counters since the process started.
	SnapshotsCreated      uint64
	SnapshotsInstalled    uint64
	SnapshotBytesReceived uint64
	SnapshotBytesReused   uint64
	// EntriesReplayed counts the entries applied while catching up: those that
	// were committed when this replica first heard its group after a start or an install.
	EntriesReplayed uint64
}

// Events is told what happens to groups, on raft workers and background
// goroutines: its methods must not block and must not call back into Host
// methods that wait (Create, Remove, Stop).
type Events interface {
	// LeaderChanged: node 0 means unknown. For this node isMe is true, and the
	// call comes only once the replica may serve (correctness rule 25).
	LeaderChanged(group ident.GroupID, replica ident.ReplicaID, leader ident.NodeID, term ident.Term, isMe bool)
	// Quarantined: the replica's state is closed; nobody is served by it any more. It may go on voting.
	Quarantined(group ident.GroupID, replica ident.ReplicaID, err error)
	// ReplacementNeeded: the replica lost durable state or cannot read it.
	ReplacementNeeded(group ident.GroupID, replica ident.ReplicaID, why string)
	// MembersChanged: a membership change or an install was applied here.
	MembersChanged(group ident.GroupID, members []Member)
	// Saw: a peer's frame carried its durable LSN (correctness rule 18).
	Saw(node ident.NodeID, store ident.StoreID, lsn uint64)
	// Fatal: the raftlog failed for good; the process must end.
	Fatal(err error)
}

// Options configure a Host. All fields without a default are required.
type Options struct {
	Node  ident.NodeID
	Store ident.StoreID
	FS    vfs.FS
	// Dir holds a directory for each replica.
	Dir string
	Log *raftlog.Log
	// Sender carries frames and the snapshot transfer's calls.
	Sender transport.Sender
	// Server hands this node's checkpoints to others, Receiver fetches theirs.
	Server   *snapshot.Server
	Receiver *snapshot.Receiver
	Events   Events
	Logger   *slog.Logger
	// ElectionTimeout is at least twice HeartbeatInterval. Defaults 1 s, 100 ms.
	ElectionTimeout   time.Duration
	HeartbeatInterval time.Duration
	// NeverQuiesce has idle groups ticked and their leaders send heartbeats like others.
	NeverQuiesce bool
	// Workers is the number of raft workers and of apply workers beside the
	// priority ones. Default: GOMAXPROCS.
	Workers int
	// MaxInflightBytes bounds the entries sent to a follower and not acknowledged [64 MiB].
	MaxInflightBytes int64
	// MaxUnstoredBytes bounds, about, the entries of all groups that were taken from leaders and are not on disk yet:
	// beyond it they are dropped as on a crowded disk. A disk that hangs would otherwise cost memory for each group [256 MiB].
	MaxUnstoredBytes int64
	Policy           Policy
	// Compression of checkpoint blobs. The zero value is none.
	Compression snapshot.Codec
	// DiskReserve is how many bytes a snapshot transfer leaves free.
	DiskReserve int64
	// Crowded, if set, tells whether the disk has no room for more of a group's entries. While it does, proposals
	// (own) are refused, and what a leader sends is dropped as if the network had lost it, but for the smallest; votes,
	// commits and heartbeats go on. It is asked on raft workers, often.
	Crowded func(s Spec, own bool) bool
	// Archive, if set, opens what the object store has of a group, for a snapshot
	// of so many bytes that is about to be received; nil: nothing, or not worth it. It is called on the transfer's
	// goroutine and given little time; the source is closed after the transfer.
	Archive func(ctx context.Context, group ident.GroupID, size int64) (snapshot.ChunkSource, error)
	// MinReplicas, if set, says how many replicas a write to a partition waits for:
	// snapshots for partitions that have fewer come before those of others.
	MinReplicas func(Spec) int
	// Verify, if set, is asked before a received snapshot is installed.
	Verify VerifyFunc
}

// Policy says when checkpoints are taken and what of the log is kept behind
// them. Zero fields take the default in brackets.
type Policy struct {
	ThresholdEntries uint64 // [10,000]
	ThresholdBytes   int64  // [64 MiB]
	// Interval between checkpoints of a replica that applied anything; jittered; 0: off.
	Interval time.Duration
	// KeepEntries are kept in the log behind a checkpoint [a tenth of
	// ThresholdEntries, at most 5,000], at most 16 MiB. Negative: none.
	KeepEntries int64
	// HoldBytes bounds the log kept for a connected follower that lags [64 MiB].
	HoldBytes int64
	// MaxConcurrent checkpoints are written at a time [2].
	MaxConcurrent int
}
