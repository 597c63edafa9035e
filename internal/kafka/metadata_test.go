package kafka

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/ident"
	"chronik/internal/metadata"
)

func metadataOf(version int16, names ...string) *kmsg.MetadataRequest {
	req := kmsg.NewPtrMetadataRequest()
	req.Version = version
	req.Topics = []kmsg.MetadataRequestTopic{}
	for _, name := range names {
		rt := kmsg.NewMetadataRequestTopic()
		rt.Topic = &name
		req.Topics = append(req.Topics, rt)
	}
	return req
}

func TestMetadataAllOrNone(t *testing.T) {
	h, f := newHandler(t)
	f.topic("a", 1, nil)
	f.topic("b", 1, nil)
	for _, tc := range []struct {
		version int16
		null    bool
		want    int
	}{{0, false, 2}, {1, false, 0}, {1, true, 2}, {12, false, 0}, {12, true, 2}} {
		req := metadataOf(tc.version)
		if tc.null {
			req.Topics = nil
		}
		if got := len(roundTrip[*kmsg.MetadataResponse](t, h, req).Topics); got != tc.want {
			t.Errorf("version %d, null %v: %d topics, want %d", tc.version, tc.null, got, tc.want)
		}
	}
}

func TestMetadataNamesLiveBrokersOnly(t *testing.T) {
	h, f := newHandler(t)
	f.topic("orders", 2, nil)
	f.moveLeader("orders", 1, 3, 9)
	f.down[3] = true
	for _, version := range []int16{0, 12} {
		resp := roundTrip[*kmsg.MetadataResponse](t, h, metadataOf(version, "orders"))
		if len(resp.Brokers) != 2 || resp.Brokers[0].NodeID != 1 || resp.Brokers[1].NodeID != 2 {
			t.Errorf("brokers %+v", resp.Brokers)
		}
		led, lost := resp.Topics[0].Partitions[0], resp.Topics[0].Partitions[1]
		wantCode(t, "led", led.ErrorCode, nil)
		wantCode(t, "its leader is down", lost.ErrorCode, kerr.LeaderNotAvailable)
		if lost.Leader != -1 {
			t.Errorf("leader %d", lost.Leader)
		}
		slices.Sort(led.ISR)
		if !slices.Equal(led.ISR, []int32{1, 2}) {
			t.Errorf("in sync: %v", led.ISR)
		}
		if version == 0 && len(led.Replicas) != 2 || version > 0 && (len(led.Replicas) != 3 || !slices.Equal(led.OfflineReplicas, []int32{3})) {
			t.Errorf("version %d: %+v", version, led)
		}
	}
}

func TestMetadataByID(t *testing.T) {
	h, f := newHandler(t)
	f.topic("orders", 1, nil)
	req := metadataOf(12)
	for _, id := range []metadata.TopicID{ordersID(f), {1}} {
		rt := kmsg.NewMetadataRequestTopic()
		rt.TopicID = id
		req.Topics = append(req.Topics, rt)
	}
	req.Topics = append(req.Topics, kmsg.NewMetadataRequestTopic()) // neither
	resp := roundTrip[*kmsg.MetadataResponse](t, h, req)
	wantCode(t, "known", resp.Topics[0].ErrorCode, nil)
	if *resp.Topics[0].Topic != "orders" {
		t.Errorf("%+v", resp.Topics[0])
	}
	wantCode(t, "unknown id", resp.Topics[1].ErrorCode, kerr.UnknownTopicID)
	wantCode(t, "neither name nor id", resp.Topics[2].ErrorCode, kerr.InvalidTopicException)

	req.Version = 11
	req.Topics = req.Topics[:1]
	req.Topics[0].Topic = nil
	wantCode(t, "id before version 12", roundTrip[*kmsg.MetadataResponse](t, h, req).Topics[0].ErrorCode, kerr.InvalidRequest)
}

func TestMetadataCreatesTopics(t *testing.T) {
	for _, tc := range []struct {
		name    string
		topic   string
		version int16
		allow   bool
		enabled bool
		want    *kerr.Error
	}{
		{"as asked", "new", 4, true, true, nil},
		{"before the flag", "new", 3, false, true, nil},
		{"not asked", "new", 4, false, true, kerr.UnknownTopicOrPartition},
		{"switched off", "new", 4, true, false, kerr.UnknownTopicOrPartition},
		{"bad name", "a b", 4, true, true, kerr.InvalidTopicException},
		{"reserved", "__consumer_offsets", 4, true, true, kerr.UnknownTopicOrPartition},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h, f := newHandler(t)
			h.config.AutoCreateTopics = tc.enabled
			req := metadataOf(tc.version, tc.topic)
			req.AllowAutoTopicCreation = tc.allow
			resp := roundTrip[*kmsg.MetadataResponse](t, h, req)
			wantCode(t, "create", resp.Topics[0].ErrorCode, tc.want)
			made := f.Image().Topic(tc.topic)
			if (made != nil) != (tc.want == nil) {
				t.Fatalf("topic %v", made)
			}
			if made != nil && (len(made.Partitions) != 2 || len(resp.Topics[0].Partitions) != 2 || resp.Topics[0].Partitions[0].Leader != 1) {
				t.Errorf("%+v", resp.Topics[0])
			}
		})
	}
}

func TestMetadataCreationWaitsForLeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, f := newHandler(t)
		f.leaderless = true
		req := metadataOf(12, "late", "never")
		req.AllowAutoTopicCreation = true
		done := make(chan kmsg.Response, 1)
		began := time.Now()
		go h.Serve(t.Context(), request(t, req), func(r kmsg.Response) { done <- r })
		synctest.Wait()
		for _, mp := range f.Image().Topic("late").Partitions {
			f.leaders.Set(mp.Group, 3, true)
		}
		resp := decoded(t, req, <-done).(*kmsg.MetadataResponse)
		if took := time.Since(began); took != autoCreateWait {
			t.Errorf("took %v", took)
		}
		wantCode(t, "late", resp.Topics[0].Partitions[0].ErrorCode, nil)
		wantCode(t, "never", resp.Topics[1].Partitions[0].ErrorCode, kerr.LeaderNotAvailable)
	})
}

func TestMetadataWhileTheControllerIsAway(t *testing.T) {
	h, f := newHandler(t)
	f.submitErr = kerr.RequestTimedOut
	req := metadataOf(12, "new")
	req.AllowAutoTopicCreation = true
	resp := roundTrip[*kmsg.MetadataResponse](t, h, req)
	wantCode(t, "not created", resp.Topics[0].ErrorCode, kerr.LeaderNotAvailable)
}

func TestMetadataBoundsCreation(t *testing.T) {
	h, f := newHandler(t)
	var names []string
	for i := range maxAutoCreate + 10 {
		names = append(names, "t"+string(rune('a'+i/26))+string(rune('a'+i%26)))
	}
	req := metadataOf(12, append(names, names[0])...)
	req.AllowAutoTopicCreation = true
	resp := roundTrip[*kmsg.MetadataResponse](t, h, req)
	if f.Image().TopicCount() != maxAutoCreate || len(f.submitted[len(f.submitted)-1].(*metadata.CreateTopics).Topics) != maxAutoCreate {
		t.Errorf("%d topics created", f.Image().TopicCount())
	}
	wantCode(t, "one too many", resp.Topics[len(names)-1].ErrorCode, kerr.UnknownTopicOrPartition)
}

// A node that reaches no majority is cut off itself. A client that it told of nobody else would not find
// the nodes that go on without it.
func TestCutOffNodeNamesEverybody(t *testing.T) {
	h, f := newHandler(t)
	f.topic("orders", 2, nil)
	f.moveLeader("orders", 1, 3, 9)
	f.down[2], f.down[3] = true, true
	resp := roundTrip[*kmsg.MetadataResponse](t, h, metadataOf(12, "orders"))
	if len(resp.Brokers) != 3 {
		t.Errorf("brokers %+v", resp.Brokers)
	}
	lost := resp.Topics[0].Partitions[1]
	if wantCode(t, "its leader is not reached", lost.ErrorCode, kerr.LeaderNotAvailable); lost.Leader != -1 {
		t.Errorf("leader %d", lost.Leader)
	}
	for _, fenced := range []bool{false, true} {
		req := kmsg.NewPtrDescribeClusterRequest()
		req.Version, req.EndpointType, req.IncludeFencedBrokers = 2, brokerEndpoints, fenced
		described := roundTrip[*kmsg.DescribeClusterResponse](t, h, req)
		if len(described.Brokers) != 3 || described.Brokers[0].IsFenced || described.Brokers[2].IsFenced != fenced {
			t.Errorf("fenced ones asked for: %v; brokers %+v", fenced, described.Brokers)
		}
	}
}

func TestMetadataAvoidsDeadNodes(t *testing.T) {
	h, f := newHandler(t)
	f.down[2] = true
	req := metadataOf(12, "new")
	req.AllowAutoTopicCreation = true
	roundTrip[*kmsg.MetadataResponse](t, h, req)
	cmd := f.submitted[len(f.submitted)-1].(*metadata.CreateTopics)
	if !slices.Equal(cmd.Avoid, []ident.NodeID{2}) || !cmd.Topics[0].ClampReplication {
		t.Errorf("%+v", cmd)
	}
}
