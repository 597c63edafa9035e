package raftgroup

import (
	"io"

	"chronik/internal/ident"
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
	// An error wrapping vfs ENOSPC pauses the group and Apply is called again
	// with the same entries (so a failed Apply must leave the state as it was
	// or be idempotent); any other error quarantines the replica.
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
	// Sync makes every byte of Files durable.
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

// Waiter is told what became of a proposal, exactly once, on an apply goroutine
// or a raft worker: it must not block. On error nothing is known about the
// entry, except with ErrNotLeader or ErrBusy from before it was appended.
type Waiter interface {
	Applied(index ident.Index, term ident.Term, res Result, err error)
}
