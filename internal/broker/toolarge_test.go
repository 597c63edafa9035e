package broker

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"chronik/internal/transport"
)

// TestLargeAssignmentIsRefused: a member's assignment that no frame between nodes carries is refused, and the groups
// beside it commit as before.
func TestLargeAssignmentIsRefused(t *testing.T) {
	c := newTrio(t)
	c.start(1, 2, 3)
	c.serving(1, 2, 3)
	c.produce(0, 1)
	cl := client(t, c.cfg[1], kgo.BrokerMaxWriteBytes(100<<20), kgo.RetryTimeout(15*time.Second), kgo.MaxVersions(kversion.V3_0_0()))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	join := kmsg.NewPtrJoinGroupRequest()
	join.Group, join.ProtocolType, join.SessionTimeoutMillis, join.RebalanceTimeoutMillis = "big", "consumer", 30000, 30000
	jp := kmsg.NewJoinGroupRequestProtocol()
	jp.Name, jp.Metadata = "range", []byte{0, 0}
	join.Protocols = append(join.Protocols, jp)
	jr, err := join.RequestWith(ctx, cl)
	if err == nil && jr.ErrorCode == kerr.MemberIDRequired.Code {
		join.MemberID = jr.MemberID
		jr, err = join.RequestWith(ctx, cl)
	}
	if err != nil || jr.ErrorCode != 0 {
		t.Fatal(jr, err)
	}
	sync := kmsg.NewPtrSyncGroupRequest()
	sync.Group, sync.Generation, sync.MemberID = join.Group, jr.Generation, jr.MemberID
	a := kmsg.NewSyncGroupRequestGroupAssignment()
	a.MemberID, a.MemberAssignment = jr.MemberID, make([]byte, transport.MaxFrame)
	sync.GroupAssignment = append(sync.GroupAssignment, a)
	sr, err := sync.RequestWith(ctx, cl)
	if err != nil || sr.ErrorCode != kerr.UnknownServerError.Code {
		t.Errorf("sync: %v, %v", sr, err)
	}
	commit := kmsg.NewPtrOffsetCommitRequest()
	commit.Group = "other"
	rt := kmsg.NewOffsetCommitRequestTopic()
	rt.Topic, rt.Partitions = "t", make([]kmsg.OffsetCommitRequestTopicPartition, 1)
	commit.Topics = append(commit.Topics, rt)
	cr, err := commit.RequestWith(ctx, cl)
	if err != nil || cr.Topics[0].Partitions[0].ErrorCode != 0 {
		t.Errorf("another group's commit: %v, %v", cr, err)
	}
}
