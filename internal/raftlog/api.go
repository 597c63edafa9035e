package raftlog

import "chronik/internal/ident"

// Entry is one Raft entry as the log keeps it. Type is raft's EntryType.
// Data is immutable once given to the log, which may keep it in its tail cache.
type Entry struct {
	Index ident.Index
	Term  ident.Term
	Type  uint8
	Data  []byte
}

// HardState is Raft's durable state besides entries.
type HardState struct {
	Term   ident.Term
	Vote   ident.ReplicaID
	Commit ident.Index
}

// Install says that the replica's state is now the snapshot at Index: every
// earlier frame of the replica is void. Generation names the directory that
// holds the installed state (internal/snapshot).
type Install struct {
	Index      ident.Index
	Term       ident.Term
	Generation uint64
	ConfState  []byte // raft's encoding, opaque here
}

// Append is one MsgStorageAppend: exactly one CRC'd frame, always with the
// replica's whole latest HardState (correctness rule 5).
type Append struct {
	Replica   ident.ReplicaID
	HardState HardState
	// Entries are contiguous. An overlap with what the log holds truncates the
	// conflicting suffix first; a gap is a broken invariant.
	Entries []Entry
	// Own: their Data share no memory with anything, so that the tail cache need not copy what is small.
	Own     bool
	Install *Install
	// Patient: nobody waits for it. It goes with the next batch, or with Nudge.
	Patient bool
	// Done runs once, after the frame is durable (nil) or never will be: with an
	// ErrFailed the log has failed for good and the node must stop; with
	// ErrUnknownReplica, ErrQuarantined or ErrTooLarge only this record was
	// refused. It runs on the log's sync goroutine, in submission order, and
	// must not block.
	Done func(error)
}

// Creation is the durable birth of a replica, and all that is needed to open it
// again. It is a live record until Remove.
type Creation struct {
	Replica ident.ReplicaID
	Group   ident.GroupID
	// CreatedAt is the metadata index that named the replica (0 for genesis).
	CreatedAt ident.Index
	// First, FirstTerm: the log starts after this point: (1,1) for an initial
	// voter, (0,0) for a replica that joins empty and gets a snapshot.
	First     ident.Index
	FirstTerm ident.Term
	// Info is the creator's own encoding (raftgroup's Spec), at most 64 KiB.
	Info []byte
}
