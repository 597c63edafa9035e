package raftgroup

import "errors"

// Errors a Waiter, ReadIndex or a Host method gets. ErrNotLeader, ErrBusy and
// ErrTooLarge mean that the proposal was never appended; after any other error its
// entry may still be applied.
var (
	// ErrNotLeader: this replica does not lead, or has not yet applied its own
	// term's empty entry (correctness rule 25).
	ErrNotLeader = errors.New("not the leader")
	// ErrBusy: too many bytes wait to be committed, or leadership is being handed over.
	ErrBusy = errors.New("too much in flight")
	// ErrTooLarge: the proposal is larger than MaxEntry; no replica will ever take it.
	ErrTooLarge = errors.New("entry too large")
	// ErrLeadershipLost: leadership ended after the proposal was appended.
	ErrLeadershipLost = errors.New("leadership lost, the outcome is unknown")
	// ErrTimeout: the deadline passed before the entry was applied.
	ErrTimeout = errors.New("deadline passed, the outcome is unknown")
	// ErrNotEnoughReplicasAfterAppend: applied, but not on MinReplicas voters in time.
	ErrNotEnoughReplicasAfterAppend = errors.New("applied, but on too few replicas before the deadline")
	// ErrQuarantined: the replica takes no part for good.
	ErrQuarantined = errors.New("replica is quarantined")
	// ErrStopped: the replica or the host has stopped.
	ErrStopped = errors.New("replica has stopped")
	// ErrUnknownGroup: no replica of the group lives here.
	ErrUnknownGroup = errors.New("no such group here")
	// ErrExists: a replica of the group lives here already.
	ErrExists = errors.New("a replica of the group exists")
	// ErrStaleGeneration: a membership change carried an older generation than
	// one applied before, or would undo one (correctness rule 22).
	ErrStaleGeneration = errors.New("stale generation of membership")
	// ErrConfChangeRefused: another membership change is pending, or the change
	// does not apply to the configuration.
	ErrConfChangeRefused = errors.New("membership change refused")
	// ErrBadFrame: a frame does not decode.
	ErrBadFrame = errors.New("bad raft frame")
	// ErrCorrupt: a replica's files do not fit its log, or each other.
	ErrCorrupt = errors.New("replica state is corrupt")
)
