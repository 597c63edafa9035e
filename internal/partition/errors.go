package partition

import (
	"context"
	"errors"
	"fmt"

	"chronik/internal/raftgroup"
	"chronik/internal/record"
	"chronik/internal/segment"
)

// What Append, Read and the others may answer. kafka maps each to a protocol
// error code.
var (
	// ErrNotLeader: this replica does not lead, or does not serve yet.
	ErrNotLeader = errors.New("not the leader of the partition")
	// ErrLeadershipLost is the ErrNotLeader of a proposal whose outcome is unknown.
	ErrLeadershipLost = fmt.Errorf("%w any more, the outcome is unknown", ErrNotLeader)
	// ErrBusy: too much waits to be committed, or leadership is being handed over;
	// nothing was appended.
	ErrBusy = errors.New("too much in flight")
	// ErrTimeout: not applied in time; the outcome is unknown.
	ErrTimeout = errors.New("request timed out, the outcome is unknown")
	// ErrOffsetOutOfRange: before the log start or above the high watermark.
	ErrOffsetOutOfRange = errors.New("offset out of range")
	// ErrDuplicateSequence: the batch is one of the producer's last five. It is no
	// error to the client: the result has the offset it got the first time.
	ErrDuplicateSequence = errors.New("duplicate sequence number")
	// ErrOutOfOrderSequence: a gap in a producer's sequence, or an unknown producer
	// whose first sequence is not 0 (correctness rule 3).
	ErrOutOfOrderSequence = errors.New("out of order sequence number")
	// ErrInvalidProducerEpoch: a newer incarnation of the producer has written.
	ErrInvalidProducerEpoch = errors.New("invalid producer epoch")
	// ErrNotEnoughReplicas: too few voters are alive; nothing was appended (rule 27).
	ErrNotEnoughReplicas = errors.New("fewer in-sync replicas than required")
	// ErrNotEnoughReplicasAfterAppend: appended, but not on enough voters in time.
	ErrNotEnoughReplicasAfterAppend = errors.New("appended, but to fewer in-sync replicas than required")
	// ErrStorage: the replica's files cannot be read or written.
	ErrStorage = errors.New("storage error")
	// ErrCorrupt: an entry, a checkpoint's blob or a file is not what was written.
	// The replica is to be quarantined.
	ErrCorrupt = errors.New("corrupt partition state")
)

// groupErrors maps what the engine says to what a client of the partition gets.
var groupErrors = []struct{ is, as error }{
	{raftgroup.ErrNotLeader, ErrNotLeader},
	{raftgroup.ErrLeadershipLost, ErrLeadershipLost},
	{raftgroup.ErrBusy, ErrBusy},
	{raftgroup.ErrTooLarge, record.ErrTooLarge},
	{raftgroup.ErrTimeout, ErrTimeout},
	{raftgroup.ErrNotEnoughReplicasAfterAppend, ErrNotEnoughReplicasAfterAppend},
	{raftgroup.ErrQuarantined, ErrStorage},
	{raftgroup.ErrStopped, ErrLeadershipLost},
	{raftgroup.ErrUnknownGroup, ErrNotLeader},
	{context.DeadlineExceeded, ErrTimeout},
	{context.Canceled, ErrTimeout},
}

func fromGroup(err error) error {
	if err == nil {
		return nil
	}
	for _, m := range groupErrors {
		if errors.Is(err, m.is) {
			return m.as
		}
	}
	return fmt.Errorf("%w: %w", ErrStorage, err)
}

// fromSegment maps what the log says to what a reader gets.
func fromSegment(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, segment.ErrOutOfRange):
		return fmt.Errorf("%w: %w", ErrOffsetOutOfRange, err)
	case errors.Is(err, segment.ErrCorrupt) || errors.Is(err, ErrCorrupt):
		return fmt.Errorf("%w: %w: %w", ErrStorage, raftgroup.ErrCorrupt, err)
	default:
		return fmt.Errorf("%w: %w", ErrStorage, err)
	}
}
