package group

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/raftgroup"
)

// TestAssignmentTooLargeFailsTheGeneration: assignments that no entry holds are refused as Kafka refuses them, every
// member hears it, and the group rebalances; with smaller ones it is stable.
func TestAssignmentTooLargeFailsTheGeneration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 2, Options{})
		defer s.close()
		c := s.elect(0)
		ids, generation := stable(t, c, 2, 3)
		a, b := join(t, c, joinReq(3, ids[0], nil)), join(t, c, joinReq(3, ids[1], nil))
		if a.get().Generation != generation+1 || b.get().Generation != generation+1 {
			t.Fatal("no rebalance")
		}
		half := strings.Repeat("x", raftgroup.MaxEntry/2)
		follower := syncGroup(t, c, ids[1], generation+1, nil)
		leader := syncGroup(t, c, ids[0], generation+1, map[string]string{ids[0]: half, ids[1]: half})
		if x, y := leader.get().ErrorCode, follower.get().ErrorCode; x != errUnknown || y != errUnknown {
			t.Errorf("sync: codes %d and %d, want %d", x, y, errUnknown)
		}
		if st := groupStateOf(c); st != PreparingRebalance {
			t.Errorf("the group is %s", st)
		}
		if code := heartbeat(c, ids[1], generation+1); code != errRebalance {
			t.Errorf("heartbeat: %d", code)
		}
		a, b = join(t, c, joinReq(3, ids[0], nil)), join(t, c, joinReq(3, ids[1], nil))
		if a.get().Generation != generation+2 || b.get().Generation != generation+2 {
			t.Fatal("no rebalance after the refusal")
		}
		leader = syncGroup(t, c, ids[0], generation+2, map[string]string{ids[0]: "a"})
		if r := leader.get(); r.ErrorCode != 0 || string(r.MemberAssignment) != "a" || groupStateOf(c) != Stable {
			t.Errorf("sync: %d, the group is %s", r.ErrorCode, groupStateOf(c))
		}
	})
}

// TestCommitTooLargeIsRefused: offsets that no entry holds are refused, definitely; so are deletions, before
// their entry is made: it repeats the group's and the topic's name for each offset.
func TestCommitTooLargeIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{InitialDelay: -1})
		defer s.close()
		c := s.elect(0)
		r := kmsg.NewPtrOffsetCommitRequest()
		r.Version, r.Group, r.Generation = 8, strings.Repeat("g", maxString), -1
		rt := kmsg.NewOffsetCommitRequestTopic()
		rt.Topic = "t"
		for i := range int32(raftgroup.MaxEntry/4096 + 1) {
			rp := kmsg.NewOffsetCommitRequestTopicPartition()
			rp.Partition, rp.Metadata = i, str(strings.Repeat("m", 4096))
			rt.Partitions = append(rt.Partitions, rp)
		}
		r.Topics = append(r.Topics, rt)
		a := newAnswer[*kmsg.OffsetCommitResponse](t)
		c.Commit(context.Background(), r, a.reply)
		if code := commitCode(a); code != errCommitTooLarge {
			t.Errorf("commit: %d, want %d", code, errCommitTooLarge)
		}
		r.Topics[0].Partitions = r.Topics[0].Partitions[:1]
		c.Commit(context.Background(), r, a.reply)
		if code := commitCode(a); code != 0 {
			t.Fatalf("commit: %d", code)
		}
		d := kmsg.NewPtrOffsetDeleteRequest()
		d.Group = r.Group
		dt := kmsg.NewOffsetDeleteRequestTopic()
		dt.Topic, dt.Partitions = "t", make([]kmsg.OffsetDeleteRequestTopicPartition, raftgroup.MaxEntry/maxString+1)
		d.Topics = append(d.Topics, dt)
		b := newAnswer[*kmsg.OffsetDeleteResponse](t)
		c.DeleteOffsets(context.Background(), d, b.reply)
		if code := b.get().ErrorCode; code != errCommitTooLarge {
			t.Errorf("delete: %d, want %d", code, errCommitTooLarge)
		}
	})
}
