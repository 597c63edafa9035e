package kafka

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/metadata"
	"chronik/internal/partition"
	"chronik/internal/raftgroup"
)

func newTopicRequest(name string, partitions int32, replicas int16) kmsg.CreateTopicsRequestTopic {
	rt := kmsg.NewCreateTopicsRequestTopic()
	rt.Topic, rt.NumPartitions, rt.ReplicationFactor = name, partitions, replicas
	return rt
}

func createOf(topics ...kmsg.CreateTopicsRequestTopic) *kmsg.CreateTopicsRequest {
	req := kmsg.NewPtrCreateTopicsRequest()
	req.Version, req.TimeoutMillis, req.Topics = 7, 2000, topics
	return req
}

func TestCreateTopicsChecks(t *testing.T) {
	assign := func(name string, replicas ...[]int32) kmsg.CreateTopicsRequestTopic {
		rt := newTopicRequest(name, -1, -1)
		for i, r := range replicas {
			a := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
			a.Partition, a.Replicas = int32(i), r
			rt.ReplicaAssignment = append(rt.ReplicaAssignment, a)
		}
		return rt
	}
	with := func(rt kmsg.CreateTopicsRequestTopic, change func(*kmsg.CreateTopicsRequestTopic)) kmsg.CreateTopicsRequestTopic {
		change(&rt)
		return rt
	}
	config := func(name string, value *string) kmsg.CreateTopicsRequestTopic {
		return with(newTopicRequest("t", 1, 1), func(rt *kmsg.CreateTopicsRequestTopic) {
			rt.Configs = append(rt.Configs, kmsg.CreateTopicsRequestTopicConfig{Name: name, Value: value})
		})
	}
	for _, tc := range []struct {
		name  string
		topic kmsg.CreateTopicsRequestTopic
		want  *kerr.Error
	}{
		{"defaults", newTopicRequest("t", -1, -1), nil},
		{"no partitions", newTopicRequest("t", 0, 1), kerr.InvalidPartitions},
		{"too many partitions", newTopicRequest("t", 1<<30, 1), kerr.InvalidPartitions},
		{"negative partitions", newTopicRequest("t", -2, 1), kerr.InvalidPartitions},
		{"no replicas", newTopicRequest("t", 1, 0), kerr.InvalidReplicationFactor},
		{"more replicas than brokers", newTopicRequest("t", 1, 4), kerr.InvalidReplicationFactor},
		{"reserved", newTopicRequest("__meta", 1, 1), kerr.InvalidTopicException},
		{"no name", newTopicRequest("", 1, 1), kerr.InvalidTopicException},
		{"assigned", assign("t", []int32{1, 2}, []int32{3, 1}), nil},
		{"unknown broker", assign("t", []int32{1, 9}), kerr.InvalidReplicaAssignment},
		{"a broker twice", assign("t", []int32{1, 1}), kerr.InvalidReplicaAssignment},
		{"uneven", assign("t", []int32{1, 2}, []int32{3}), kerr.InvalidReplicaAssignment},
		{"assigned nothing", assign("t", []int32{}), kerr.InvalidReplicaAssignment},
		{"assigned and counted", with(assign("t", []int32{1}), func(rt *kmsg.CreateTopicsRequestTopic) { rt.NumPartitions = 1 }), kerr.InvalidRequest},
		{"assigned a far partition", with(assign("t", []int32{1}), func(rt *kmsg.CreateTopicsRequestTopic) { rt.ReplicaAssignment[0].Partition = 1 << 30 }), kerr.InvalidReplicaAssignment},
		{"assigned a negative one", with(assign("t", []int32{1}), func(rt *kmsg.CreateTopicsRequestTopic) { rt.ReplicaAssignment[0].Partition = -1 }), kerr.InvalidReplicaAssignment},
		{"config", config("retention.ms", ptr("1000")), nil},
		{"unknown config", config("no.such", ptr("1")), kerr.InvalidConfig},
		{"bad config", config("retention.ms", ptr("soon")), kerr.InvalidConfig},
		{"null config", config("retention.ms", nil), kerr.InvalidConfig},
		{"tiered", config("remote.storage.enable", ptr("true")), kerr.InvalidConfig},
	} {
		for _, dry := range []bool{true, false} {
			h, f := newHandler(t)
			req := createOf(tc.topic)
			req.ValidateOnly = dry
			got := roundTrip[*kmsg.CreateTopicsResponse](t, h, req).Topics[0]
			wantCode(t, tc.name, got.ErrorCode, tc.want)
			if made := f.Image().TopicCount() == 1; made != (tc.want == nil && !dry) {
				t.Errorf("%s: created %v, validate only %v", tc.name, made, dry)
			}
			if (tc.want != nil) != (got.ErrorMessage != nil) {
				t.Errorf("%s: message %v", tc.name, got.ErrorMessage)
			}
		}
	}
}

func TestCreateTopicsDefaults(t *testing.T) {
	h, f := newHandler(t)
	h.config.ReplicationFactor = 5 // clamped: three brokers
	got := roundTrip[*kmsg.CreateTopicsResponse](t, h, createOf(newTopicRequest("t", -1, -1))).Topics[0]
	wantCode(t, "defaults", got.ErrorCode, nil)
	if got.NumPartitions != 2 || got.ReplicationFactor != 3 || metadata.TopicID(got.TopicID) != f.Image().Topic("t").ID {
		t.Errorf("%+v", got)
	}
}

func TestCreateTopicsTwiceInOneRequest(t *testing.T) {
	h, f := newHandler(t)
	resp := roundTrip[*kmsg.CreateTopicsResponse](t, h, createOf(newTopicRequest("t", 1, 1), newTopicRequest("u", 1, 1), newTopicRequest("t", 2, 1)))
	wantCode(t, "first", resp.Topics[0].ErrorCode, kerr.InvalidRequest)
	wantCode(t, "other", resp.Topics[1].ErrorCode, nil)
	wantCode(t, "second", resp.Topics[2].ErrorCode, kerr.InvalidRequest)
	if f.Image().Topic("t") != nil {
		t.Error("created all the same")
	}
}

func TestCreateTopicsWaitsForLeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, f := newHandler(t)
		f.leaderless = true
		done := make(chan kmsg.Response, 1)
		began := time.Now()
		go h.Serve(t.Context(), request(t, createOf(newTopicRequest("t", 1, 1))), func(r kmsg.Response) { done <- r })
		time.Sleep(300 * time.Millisecond)
		f.leaders.Set(f.Image().TopicPartition("t", 0).Group, 2, true)
		<-done
		if took := time.Since(began); took != 300*time.Millisecond {
			t.Errorf("took %v", took)
		}
	})
}

func TestCreateTopicsWithoutAController(t *testing.T) {
	h, f := newHandler(t)
	f.submitErr = t.Context().Err()
	f.submitErr = kerr.RequestTimedOut
	wantCode(t, "create", roundTrip[*kmsg.CreateTopicsResponse](t, h, createOf(newTopicRequest("t", 1, 1))).Topics[0].ErrorCode, kerr.RequestTimedOut)
	f.submitErr = nil
	f.topic("u", 1, nil)
	f.submitErr = kerr.RequestTimedOut
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.Version, req.TopicNames = 5, []string{"u"}
	wantCode(t, "delete", roundTrip[*kmsg.DeleteTopicsResponse](t, h, req).Topics[0].ErrorCode, kerr.RequestTimedOut)
	wantCode(t, "producer id", roundTrip[*kmsg.InitProducerIDResponse](t, h, kmsg.NewPtrInitProducerIDRequest()).ErrorCode, kerr.CoordinatorLoadInProgress)
}

func TestDeleteTopicsByID(t *testing.T) {
	h, f := newHandler(t)
	f.topic("orders", 1, nil)
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.Version = 6
	add := func(name *string, id metadata.TopicID) {
		rt := kmsg.NewDeleteTopicsRequestTopic()
		rt.Topic, rt.TopicID = name, id
		req.Topics = append(req.Topics, rt)
	}
	add(nil, metadata.TopicID{9})
	add(ptr("orders"), ordersID(f))
	add(nil, metadata.TopicID{})
	add(nil, ordersID(f))
	add(ptr("orders"), metadata.TopicID{})
	resp := roundTrip[*kmsg.DeleteTopicsResponse](t, h, req)
	for i, want := range []*kerr.Error{kerr.UnknownTopicID, kerr.InvalidRequest, kerr.InvalidRequest, nil, kerr.InvalidRequest} {
		wantCode(t, "delete", resp.Topics[i].ErrorCode, want)
	}
	if *resp.Topics[3].Topic != "orders" || f.Image().Topic("orders") != nil {
		t.Errorf("%+v", resp.Topics[3])
	}
}

func TestCreatePartitions(t *testing.T) {
	for _, tc := range []struct {
		name   string
		topic  string
		count  int32
		assign [][]int32
		want   *kerr.Error
	}{
		{"more", "orders", 5, nil, nil},
		{"as many", "orders", 2, nil, kerr.InvalidPartitions},
		{"fewer", "orders", 1, nil, kerr.InvalidPartitions},
		{"negative", "orders", -1, nil, kerr.InvalidPartitions},
		{"absurd", "orders", 1 << 30, nil, kerr.InvalidPartitions},
		{"unknown", "none", 5, nil, kerr.UnknownTopicOrPartition},
		{"assigned", "orders", 3, [][]int32{{1, 2, 3}}, nil},
		{"too few assigned", "orders", 4, [][]int32{{1, 2, 3}}, kerr.InvalidReplicaAssignment},
		{"unknown broker", "orders", 3, [][]int32{{1, 2, 9}}, kerr.InvalidReplicaAssignment},
	} {
		for _, dry := range []bool{true, false} {
			h, f := newHandler(t)
			f.topic("orders", 2, nil)
			req := kmsg.NewPtrCreatePartitionsRequest()
			req.Version, req.ValidateOnly = 3, dry
			rt := kmsg.NewCreatePartitionsRequestTopic()
			rt.Topic, rt.Count = tc.topic, tc.count
			for _, r := range tc.assign {
				a := kmsg.NewCreatePartitionsRequestTopicAssignment()
				a.Replicas = r
				rt.Assignment = append(rt.Assignment, a)
			}
			req.Topics = append(req.Topics, rt)
			got := roundTrip[*kmsg.CreatePartitionsResponse](t, h, req).Topics[0]
			wantCode(t, tc.name, got.ErrorCode, tc.want)
			want := 2
			if tc.want == nil && !dry {
				want = int(tc.count)
			}
			if have := len(f.Image().Topic("orders").Partitions); have != want {
				t.Errorf("%s: %d partitions, want %d", tc.name, have, want)
			}
		}
	}
}

func TestDeleteRecords(t *testing.T) {
	h, f := newHandler(t)
	p := f.topic("orders", 1, nil)[0]
	f.topic("table", 1, map[string]string{"cleanup.policy": "compact"})
	appendRecords(t, p, 1, 2, 3, 4)
	ask := func(topic string, offset int64) kmsg.DeleteRecordsResponseTopicPartition {
		req := kmsg.NewPtrDeleteRecordsRequest()
		req.Version = 2
		rt := kmsg.NewDeleteRecordsRequestTopic()
		rt.Topic = topic
		rp := kmsg.NewDeleteRecordsRequestTopicPartition()
		rp.Offset = offset
		rt.Partitions = append(rt.Partitions, rp)
		req.Topics = append(req.Topics, rt)
		return roundTrip[*kmsg.DeleteRecordsResponse](t, h, req).Topics[0].Partitions[0]
	}
	for _, tc := range []struct {
		offset, low int64
		want        *kerr.Error
	}{{2, 2, nil}, {1, 2, nil}, {-2, -1, kerr.OffsetOutOfRange}, {5, -1, kerr.OffsetOutOfRange}, {-1, 4, nil}} {
		got := ask("orders", tc.offset)
		wantCode(t, "delete", got.ErrorCode, tc.want)
		if got.LowWatermark != tc.low {
			t.Errorf("to %d: log start %d, want %d", tc.offset, got.LowWatermark, tc.low)
		}
	}
	wantCode(t, "compacted", ask("table", 0).ErrorCode, kerr.PolicyViolation)
	wantCode(t, "unknown", ask("none", 0).ErrorCode, kerr.UnknownTopicOrPartition)
}

func TestListOffsetsConfirmsTheLatest(t *testing.T) {
	h, f := newHandler(t)
	p := f.topic("orders", 1, nil)[0]
	appendRecords(t, p, 10, 30, 20)
	ask := func(ts int64, epoch int32) kmsg.ListOffsetsResponseTopicPartition {
		req := kmsg.NewPtrListOffsetsRequest()
		req.Version = 9
		rt := kmsg.NewListOffsetsRequestTopic()
		rt.Topic = "orders"
		rp := kmsg.NewListOffsetsRequestTopicPartition()
		rp.Timestamp, rp.CurrentLeaderEpoch = ts, epoch
		rt.Partitions = append(rt.Partitions, rp)
		req.Topics = append(req.Topics, rt)
		return roundTrip[*kmsg.ListOffsetsResponse](t, h, req).Topics[0].Partitions[0]
	}
	p.onReadIndex = func() { appendRecords(t, p, 1) }
	if got := ask(askLatest, -1); got.Offset != 4 || got.ErrorCode != 0 {
		t.Errorf("latest: %+v", got)
	}
	p.onReadIndex = nil
	if got := ask(askMaxTimestamp, 5); got.Offset != 1 || got.Timestamp != 30 {
		t.Errorf("max timestamp: %+v", got)
	}
	if got := ask(askEarliestLocal, 5); got.Offset != 0 {
		t.Errorf("earliest local: %+v", got)
	}
	if got := ask(askLatestTiered, 5); got.Offset != -1 || got.ErrorCode != 0 {
		t.Errorf("latest tiered: %+v", got)
	}
	wantCode(t, "meaningless", ask(-6, -1).ErrorCode, kerr.InvalidRequest)
	wantCode(t, "old epoch", ask(askLatest, 4).ErrorCode, kerr.FencedLeaderEpoch)
	wantCode(t, "new epoch", ask(askLatest, 6).ErrorCode, kerr.UnknownLeaderEpoch)
	p.readIndexErr = partition.ErrNotLeader
	wantCode(t, "no majority", ask(askLatest, -1).ErrorCode, kerr.NotLeaderForPartition)
	if got := ask(askEarliest, -1); got.ErrorCode != 0 {
		t.Errorf("earliest needs no majority: %+v", got)
	}
}

func TestProducerIDsAreUnique(t *testing.T) {
	h, f := newHandler(t)
	seen := map[int64]bool{}
	for range 2500 {
		resp := roundTrip[*kmsg.InitProducerIDResponse](t, h, kmsg.NewPtrInitProducerIDRequest())
		if resp.ErrorCode != 0 || seen[resp.ProducerID] {
			t.Fatalf("%+v", resp)
		}
		seen[resp.ProducerID] = true
	}
	blocks := 0
	for _, cmd := range f.submitted {
		if _, ok := cmd.(*metadata.AllocateProducerIDs); ok {
			blocks++
		}
	}
	if blocks > 3 {
		t.Errorf("%d blocks", blocks)
	}
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionalID = ptr("t")
	wantCode(t, "transactional", roundTrip[*kmsg.InitProducerIDResponse](t, h, req).ErrorCode, kerr.InvalidRequest)
}

// TestProducerIDsThatMayComeLater: old Java producers repeat after COORDINATOR_LOAD_IN_PROGRESS and
// take REQUEST_TIMED_OUT and NOT_LEADER_OR_FOLLOWER as fatal.
func TestProducerIDsThatMayComeLater(t *testing.T) {
	h, f := newHandler(t)
	for _, tc := range []struct {
		err  error
		want *kerr.Error
	}{
		{context.DeadlineExceeded, kerr.CoordinatorLoadInProgress},
		{fmt.Errorf("x: %w", raftgroup.ErrTimeout), kerr.CoordinatorLoadInProgress},
		{raftgroup.ErrLeadershipLost, kerr.CoordinatorLoadInProgress},
		{raftgroup.ErrBusy, kerr.CoordinatorLoadInProgress},
		{errors.New("a surprise"), kerr.UnknownServerError},
	} {
		f.submitErr = tc.err
		resp := roundTrip[*kmsg.InitProducerIDResponse](t, h, kmsg.NewPtrInitProducerIDRequest())
		wantCode(t, tc.err.Error(), resp.ErrorCode, tc.want)
	}
}

func TestDescribeLogDirsChooses(t *testing.T) {
	h, f := newHandler(t)
	f.topic("a", 2, nil)
	f.topic("b", 1, nil)
	topic := func(name string, partitions ...int32) kmsg.DescribeLogDirsRequestTopic {
		return kmsg.DescribeLogDirsRequestTopic{Topic: name, Partitions: partitions}
	}
	for _, tc := range []struct {
		name   string
		topics []kmsg.DescribeLogDirsRequestTopic // nil: all
		want   int                                // partitions
	}{
		{"all", nil, 3},
		{"none", []kmsg.DescribeLogDirsRequestTopic{}, 0},
		{"no partitions of a topic", []kmsg.DescribeLogDirsRequestTopic{topic("a")}, 0},
		{"some", []kmsg.DescribeLogDirsRequestTopic{topic("a", 1, 7, -1), topic("b", 0), topic("none", 0)}, 2},
	} {
		req := kmsg.NewPtrDescribeLogDirsRequest()
		req.Version, req.Topics = 4, tc.topics
		resp := roundTrip[*kmsg.DescribeLogDirsResponse](t, h, req)
		got := 0
		for _, wt := range resp.Dirs[0].Topics {
			got += len(wt.Partitions)
		}
		if got != tc.want || resp.Dirs[0].TotalBytes != 1<<40 || resp.Dirs[0].UsableBytes != 1<<39 {
			t.Errorf("%s: %+v", tc.name, resp.Dirs)
		}
	}
}
