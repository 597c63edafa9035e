package group

import (
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"

	"chronik/internal/raftgroup"
)

// Kafka's codes for what the coordinator answers.
var (
	errUnknown              = kerr.UnknownServerError.Code
	errMetadataTooLarge     = kerr.OffsetMetadataTooLarge.Code
	errLoadInProgress       = kerr.CoordinatorLoadInProgress.Code
	errNotAvailable         = kerr.CoordinatorNotAvailable.Code
	errNotCoordinator       = kerr.NotCoordinator.Code
	errIllegalGeneration    = kerr.IllegalGeneration.Code
	errInconsistentProtocol = kerr.InconsistentGroupProtocol.Code
	errInvalidGroup         = kerr.InvalidGroupID.Code
	errUnknownMember        = kerr.UnknownMemberID.Code
	errInvalidSession       = kerr.InvalidSessionTimeout.Code
	errRebalance            = kerr.RebalanceInProgress.Code
	errCommitTooLarge       = kerr.InvalidCommitOffsetSize.Code
	errNonEmpty             = kerr.NonEmptyGroup.Code
	errGroupNotFound        = kerr.GroupIDNotFound.Code
	errMemberIDRequired     = kerr.MemberIDRequired.Code
	errMaxSize              = kerr.GroupMaxSizeReached.Code
	errFenced               = kerr.FencedInstanceID.Code
	errSubscribed           = kerr.GroupSubscribedToTopic.Code
	errUnknownPartition     = kerr.UnknownTopicOrPartition.Code
)

// errKept is the Result of a group's deletion that found members, or, if only a
// bare group was to go, offsets.
var errKept = errors.New("group: not deleted, it is not empty")

// codeOf maps what became of a proposal to Kafka's code. Clients repeat all of
// these but the last; with ErrTimeout and ErrLeadershipLost the entry may still be applied. A group that is
// too large for an entry gets the last, as from Kafka where it is too large for a batch.
func codeOf(err error) int16 {
	switch {
	case errors.Is(err, raftgroup.ErrNotLeader), errors.Is(err, raftgroup.ErrLeadershipLost),
		errors.Is(err, raftgroup.ErrStopped), errors.Is(err, raftgroup.ErrQuarantined):
		return errNotCoordinator
	case errors.Is(err, raftgroup.ErrBusy), errors.Is(err, raftgroup.ErrTimeout):
		return errNotAvailable
	default:
		return errUnknown
	}
}
