package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"

	"chronik/internal/group"
	"chronik/internal/metadata"
	"chronik/internal/partition"
	"chronik/internal/raftgroup"
	"chronik/internal/record"
)

// errorTable maps the sentinels of the packages below to Kafka's codes. The
// first match wins, so a sentinel that wraps another stands before it.
// metadata's errors carry their code themselves.
var errorTable = []struct {
	is   error
	code *kerr.Error
}{
	{record.ErrShort, kerr.CorruptMessage},
	{record.ErrCorrupt, kerr.CorruptMessage},
	{record.ErrTooLarge, kerr.MessageTooLarge},
	{record.ErrUnsupportedCodec, kerr.UnsupportedCompressionType},
	{record.ErrInvalidRecord, kerr.InvalidRecord},
	{record.ErrUnsupportedMagic, kerr.UnsupportedForMessageFormat},
	{record.ErrTimestampType, kerr.InvalidTimestamp},
	{partition.ErrNotLeader, kerr.NotLeaderForPartition},
	{partition.ErrLeadershipLost, kerr.NotLeaderForPartition},
	{partition.ErrBusy, kerr.NotEnoughReplicas}, // nothing was appended, and a client tries again
	{partition.ErrTimeout, kerr.RequestTimedOut},
	{partition.ErrOffsetOutOfRange, kerr.OffsetOutOfRange},
	{partition.ErrDuplicateSequence, kerr.DuplicateSequenceNumber}, // Produce answers it without error
	{partition.ErrOutOfOrderSequence, kerr.OutOfOrderSequenceNumber},
	{partition.ErrInvalidProducerEpoch, kerr.InvalidProducerEpoch},
	{partition.ErrNotEnoughReplicasAfterAppend, kerr.NotEnoughReplicasAfterAppend},
	{partition.ErrNotEnoughReplicas, kerr.NotEnoughReplicas},
	{partition.ErrStorage, kerr.KafkaStorageError},
	{partition.ErrCorrupt, kerr.KafkaStorageError},
	{group.ErrCorrupt, kerr.KafkaStorageError},
	{raftgroup.ErrNotLeader, kerr.NotLeaderForPartition},
	{raftgroup.ErrLeadershipLost, kerr.NotLeaderForPartition},
	{raftgroup.ErrStopped, kerr.NotLeaderForPartition},
	{raftgroup.ErrUnknownGroup, kerr.NotLeaderForPartition},
	{raftgroup.ErrBusy, kerr.NotEnoughReplicas},
	{raftgroup.ErrTooLarge, kerr.MessageTooLarge},
	{raftgroup.ErrTimeout, kerr.RequestTimedOut},
	{raftgroup.ErrNotEnoughReplicasAfterAppend, kerr.NotEnoughReplicasAfterAppend},
	{raftgroup.ErrQuarantined, kerr.KafkaStorageError},
	{raftgroup.ErrCorrupt, kerr.KafkaStorageError},
	{raftgroup.ErrBadFrame, kerr.CorruptMessage},
	{raftgroup.ErrExists, kerr.DuplicateResource},
	{raftgroup.ErrStaleGeneration, kerr.InvalidUpdateVersion},
	{raftgroup.ErrConfChangeRefused, kerr.ReassignmentInProgress},
	{context.DeadlineExceeded, kerr.RequestTimedOut},
	{context.Canceled, kerr.RequestTimedOut},
}

// lookupError finds Kafka's error for err; nil if nothing maps it.
func lookupError(err error) *kerr.Error {
	var k *kerr.Error
	if errors.As(err, &k) {
		return k
	}
	var m *metadata.Error
	if errors.As(err, &m) {
		if known := kerrOf(m.Code); known != nil {
			return known
		}
	}
	for i := range errorTable {
		if errors.Is(err, errorTable[i].is) {
			return errorTable[i].code
		}
	}
	return nil
}

// kerrOf is Kafka's error of a code; nil for 0.
func kerrOf(code int16) *kerr.Error {
	var k *kerr.Error
	if errors.As(kerr.ErrorForCode(code), &k) {
		return k
	}
	return nil
}

// code is the error code that a response carries for err; it counts the error.
// What maps to nothing is a fault of this node: it is logged, the client gets
// UNKNOWN_SERVER_ERROR.
func (h *Handler) code(key int16, err error) int16 {
	if err == nil {
		return 0
	}
	k := lookupError(err)
	if k == nil {
		h.log.Error("request failed", "api", apiName(key), "err", err)
		k = kerr.UnknownServerError
	}
	h.metrics.failed(key, k)
	return k.Code
}

// counted counts a code that was not made by code, and returns it.
func (h *Handler) counted(key, code int16) int16 {
	if k := kerrOf(code); k != nil {
		h.metrics.failed(key, k)
	}
	return code
}

// failure is an error of Kafka's with words about this case.
type failure struct {
	code *kerr.Error
	text string
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.code }

// failf returns an error with a code and a text for the client.
func failf(code *kerr.Error, format string, args ...any) error {
	return &failure{code: code, text: fmt.Sprintf(format, args...)}
}

var (
	// errNoTransactions: a definite error, so that a producer fails at once.
	errNoTransactions = failf(kerr.InvalidRequest, "transactions are not served")
	// errUnknownTimestamp: a ListOffsets timestamp below those that mean something.
	errUnknownTimestamp = failf(kerr.InvalidRequest, "no such special timestamp")
)

// message is the text for a client; nil where the code says it all.
func message(err error) *string {
	if err == nil {
		return nil
	}
	if k := lookupError(err); k != nil && k.Error() == err.Error() {
		return nil
	}
	var m *metadata.Error
	if errors.As(err, &m) && m.Message != "" {
		return &m.Message
	}
	text := err.Error()
	return &text
}

// recordError is INVALID_RECORD naming the records.
type recordError struct {
	offsets []int32 // relative to the batch
	reason  string
}

func (e *recordError) Error() string { return e.reason }
func (e *recordError) Unwrap() error { return kerr.InvalidRecord }

// invalidRecords lists the records an error is about; nil if it names none.
func invalidRecords(err error) []int32 {
	var e *recordError
	if errors.As(err, &e) {
		return e.offsets
	}
	return nil
}

// errWrongResult: a command came back with a result of another kind.
func errWrongResult(cmd metadata.Command, res any) error {
	return fmt.Errorf("metadata answered %s with %T", cmd.Kind(), res)
}
