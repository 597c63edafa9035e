package kafka

import (
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/record"
)

// calls asks each API in the plainest way and checks what every version must say.
var calls = map[int16]call{}

// on adds an API to calls.
func on[R kmsg.Response](key int16, req func(version int16) kmsg.Request, check func(t *testing.T, version int16, resp R)) {
	calls[key] = call{req, func(t *testing.T, version int16, resp kmsg.Response) {
		typed, ok := resp.(R)
		if !ok {
			t.Fatalf("answered by %T", resp)
		}
		check(t, version, typed)
	}}
}

func init() {
	callsRecords()
	callsOffsetsOfTime()
	callsDeleteRecords()
	callsTopics()
	callsTopicChanges()
	callsConfigs()
	callsOthers()
	callsGroups()
}

func callsRecords() {
	on(keyProduce, produceCall, func(t *testing.T, v int16, resp *kmsg.ProduceResponse) {
		p := resp.Topics[0].Partitions[0]
		wantCode(t, "produce", p.ErrorCode, nil)
		if p.BaseOffset != 3 || (v >= 2 && p.LogAppendTime != -1) || (v >= 5 && p.LogStartOffset != 0) {
			t.Errorf("%+v", p)
		}
		wantCode(t, "no such partition", resp.Topics[0].Partitions[1].ErrorCode, kerr.UnknownTopicOrPartition)
	})
	on(keyFetch, func(int16) kmsg.Request {
		req := fetchOf("orders", 0, 0)
		req.Topics[0].TopicID = preparedID
		unknown := req.Topics[0]
		unknown.Topic, unknown.TopicID = "none", [16]byte{1}
		req.Topics = append(req.Topics, unknown)
		return req
	}, func(t *testing.T, v int16, resp *kmsg.FetchResponse) {
		p := resp.Topics[0].Partitions[0]
		wantCode(t, "fetch", p.ErrorCode, nil)
		if p.HighWatermark != 3 || (v >= 4 && p.LastStableOffset != 3) || (v >= 5 && p.LogStartOffset != 0) {
			t.Errorf("%+v", p)
		}
		if v >= 13 {
			wantCode(t, "unknown", resp.Topics[1].Partitions[0].ErrorCode, kerr.UnknownTopicID)
		} else {
			wantCode(t, "unknown", resp.Topics[1].Partitions[0].ErrorCode, kerr.UnknownTopicOrPartition)
		}
		data := p.RecordBatches
		if v < 4 {
			if magic := data[magicAt]; magic != byte(magicFor(v)) {
				t.Fatalf("magic %d", magic)
			}
			up, err := record.UpConvert(data, record.ValidateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			data = up
		}
		if got := values(t, data); !slices.Equal(got, []string{"0=v0", "1=v1", "2=v2"}) {
			t.Errorf("records %v", got)
		}
	})
}

func callsOffsetsOfTime() {
	on(keyListOffsets, func(int16) kmsg.Request {
		req := kmsg.NewPtrListOffsetsRequest()
		req.ReplicaID = -1
		rt := kmsg.NewListOffsetsRequestTopic()
		rt.Topic = "orders"
		for i, ts := range []int64{askLatest, askEarliest, 2000, 5000} {
			rp := kmsg.NewListOffsetsRequestTopicPartition()
			rp.Timestamp, rp.MaxNumOffsets = ts, int32(i+1)
			rt.Partitions = append(rt.Partitions, rp)
		}
		req.Topics = append(req.Topics, rt)
		return req
	}, func(t *testing.T, v int16, resp *kmsg.ListOffsetsResponse) {
		for i, want := range []struct{ offset, time int64 }{{3, -1}, {0, -1}, {1, 2000}, {-1, -1}} {
			p := resp.Topics[0].Partitions[i]
			wantCode(t, "list offsets", p.ErrorCode, nil)
			switch {
			case v == 0 && want.offset < 0:
				if len(p.OldStyleOffsets) != 0 {
					t.Errorf("question %d: %+v", i, p)
				}
			case v == 0:
				if !slices.Equal(p.OldStyleOffsets, []int64{want.offset}) {
					t.Errorf("question %d: %+v", i, p)
				}
			case p.Offset != want.offset || p.Timestamp != want.time:
				t.Errorf("question %d: %+v, want %+v", i, p, want)
			case v >= 4 && want.offset >= 0 && p.LeaderEpoch != 5:
				t.Errorf("question %d: epoch %d", i, p.LeaderEpoch)
			}
		}
	})
	on(keyOffsetForLeaderEpoch, func(int16) kmsg.Request {
		req := kmsg.NewPtrOffsetForLeaderEpochRequest()
		rt := kmsg.NewOffsetForLeaderEpochRequestTopic()
		rt.Topic = "orders"
		for _, n := range []int32{0, 7} {
			rp := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
			rp.Partition, rp.LeaderEpoch = n, 5
			rt.Partitions = append(rt.Partitions, rp)
		}
		req.Topics = append(req.Topics, rt)
		return req
	}, func(t *testing.T, v int16, resp *kmsg.OffsetForLeaderEpochResponse) {
		p := resp.Topics[0].Partitions
		wantCode(t, "epoch", p[0].ErrorCode, nil)
		if p[0].EndOffset != 3 || (v >= 1 && p[0].LeaderEpoch != 5) {
			t.Errorf("%+v", p[0])
		}
		wantCode(t, "no such partition", p[1].ErrorCode, kerr.UnknownTopicOrPartition)
	})
}

func callsDeleteRecords() {
	on(keyDeleteRecords, func(int16) kmsg.Request {
		req := kmsg.NewPtrDeleteRecordsRequest()
		rt := kmsg.NewDeleteRecordsRequestTopic()
		rt.Topic = "orders"
		for _, at := range []struct {
			n      int32
			offset int64
		}{{0, 2}, {1, -1}, {0, 99}, {-1, 0}} {
			rp := kmsg.NewDeleteRecordsRequestTopicPartition()
			rp.Partition, rp.Offset = at.n, at.offset
			rt.Partitions = append(rt.Partitions, rp)
		}
		req.Topics = append(req.Topics, rt)
		return req
	}, func(t *testing.T, _ int16, resp *kmsg.DeleteRecordsResponse) {
		p := resp.Topics[0].Partitions
		wantCode(t, "delete", p[0].ErrorCode, nil)
		wantCode(t, "delete all", p[1].ErrorCode, nil)
		if p[0].LowWatermark != 2 || p[1].LowWatermark != 0 {
			t.Errorf("%+v", p)
		}
		wantCode(t, "above the high watermark", p[2].ErrorCode, kerr.OffsetOutOfRange)
		wantCode(t, "no such partition", p[3].ErrorCode, kerr.UnknownTopicOrPartition)
	})
}

// produceCall writes two records to partition 0 and some to one that is not there.
func produceCall(version int16) kmsg.Request {
	records := func() []byte {
		b := record.Builder{}
		for range 2 {
			b.Append(record.Record{Timestamp: time.Now().UnixMilli(), Key: []byte("k"), Value: []byte("v")})
		}
		raw, err := b.Build()
		if err == nil && version < 3 {
			raw, err = record.DownConvert(nil, raw, int8(min(version, 1)))
		}
		if err != nil {
			panic(err)
		}
		return raw
	}
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 1000
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic, rt.TopicID = "orders", preparedID
	for _, n := range []int32{0, 9} {
		rp := kmsg.NewProduceRequestTopicPartition()
		rp.Partition, rp.Records = n, records()
		rt.Partitions = append(rt.Partitions, rp)
	}
	req.Topics = append(req.Topics, rt)
	return req
}

// fetchOf asks for one partition from an offset on, without waiting.
func fetchOf(topic string, n int32, offset int64) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.Version = 12
	req.MaxBytes, req.MinBytes = 1<<20, 1
	req.SessionEpoch = -1
	rt := kmsg.NewFetchRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewFetchRequestTopicPartition()
	rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes = n, offset, 1<<20
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	return req
}

func callsTopics() {
	on(keyMetadata, func(int16) kmsg.Request {
		req := kmsg.NewPtrMetadataRequest()
		for _, name := range []string{"orders", "not/a/name"} {
			rt := kmsg.NewMetadataRequestTopic()
			rt.Topic = &name
			req.Topics = append(req.Topics, rt)
		}
		req.IncludeTopicAuthorizedOperations = true
		return req
	}, func(t *testing.T, v int16, resp *kmsg.MetadataResponse) {
		if len(resp.Brokers) != 3 || resp.Brokers[1].Host != "node-2" || resp.Brokers[1].Port != 9093 {
			t.Errorf("brokers %+v", resp.Brokers)
		}
		if v >= 1 && (resp.ControllerID != 1 || *resp.Brokers[2].Rack != "rack-3") || v >= 2 && *resp.ClusterID != "abcdefghijklmnopqrstuv" {
			t.Errorf("%+v", resp)
		}
		orders := resp.Topics[0]
		wantCode(t, "orders", orders.ErrorCode, nil)
		if *orders.Topic != "orders" || len(orders.Partitions) != 2 || (v >= 10) != (orders.TopicID != [16]byte{}) {
			t.Errorf("%+v", orders)
		}
		p := orders.Partitions[1]
		wantCode(t, "partition", p.ErrorCode, nil)
		if p.Partition != 1 || p.Leader != 1 || (v >= 7 && p.LeaderEpoch != 5) || len(p.Replicas) != 3 || len(p.ISR) != 3 || len(p.OfflineReplicas) != 0 {
			t.Errorf("%+v", p)
		}
		if v >= 8 && orders.AuthorizedOperations != topicOperations {
			t.Errorf("operations %x", orders.AuthorizedOperations)
		}
		wantCode(t, "no name", resp.Topics[1].ErrorCode, kerr.InvalidTopicException)
	})
	on(keyCreateTopics, func(v int16) kmsg.Request {
		req := kmsg.NewPtrCreateTopicsRequest()
		req.TimeoutMillis = 1000
		for _, name := range []string{"new", "orders", "bad name"} {
			rt := kmsg.NewCreateTopicsRequestTopic()
			rt.Topic, rt.NumPartitions, rt.ReplicationFactor = name, 4, 2
			req.Topics = append(req.Topics, rt)
		}
		return req
	}, func(t *testing.T, v int16, resp *kmsg.CreateTopicsResponse) {
		wantCode(t, "new", resp.Topics[0].ErrorCode, nil)
		if v >= 5 && (resp.Topics[0].NumPartitions != 4 || resp.Topics[0].ReplicationFactor != 2 || len(resp.Topics[0].Configs) != len(topicConfigs)) {
			t.Errorf("%+v", resp.Topics[0])
		}
		if (v >= 7) != (resp.Topics[0].TopicID != [16]byte{}) {
			t.Errorf("topic id %x", resp.Topics[0].TopicID)
		}
		wantCode(t, "existing", resp.Topics[1].ErrorCode, kerr.TopicAlreadyExists)
		wantCode(t, "bad name", resp.Topics[2].ErrorCode, kerr.InvalidTopicException)
		if v >= 1 && resp.Topics[2].ErrorMessage == nil {
			t.Error("no message")
		}
	})
}

func callsTopicChanges() {
	on(keyDeleteTopics, func(v int16) kmsg.Request {
		req := kmsg.NewPtrDeleteTopicsRequest()
		req.TimeoutMillis = 1000
		for _, name := range []string{"orders", "none"} {
			req.TopicNames = append(req.TopicNames, name)
			rt := kmsg.NewDeleteTopicsRequestTopic()
			rt.Topic = &name
			req.Topics = append(req.Topics, rt)
		}
		return req
	}, func(t *testing.T, v int16, resp *kmsg.DeleteTopicsResponse) {
		wantCode(t, "orders", resp.Topics[0].ErrorCode, nil)
		if *resp.Topics[0].Topic != "orders" || (v >= 6) != (resp.Topics[0].TopicID != [16]byte{}) {
			t.Errorf("%+v", resp.Topics[0])
		}
		wantCode(t, "none", resp.Topics[1].ErrorCode, kerr.UnknownTopicOrPartition)
	})
	on(keyCreatePartitions, func(int16) kmsg.Request {
		req := kmsg.NewPtrCreatePartitionsRequest()
		for _, name := range []string{"orders", "none"} {
			rt := kmsg.NewCreatePartitionsRequestTopic()
			rt.Topic, rt.Count = name, 5
			req.Topics = append(req.Topics, rt)
		}
		return req
	}, func(t *testing.T, _ int16, resp *kmsg.CreatePartitionsResponse) {
		wantCode(t, "orders", resp.Topics[0].ErrorCode, nil)
		wantCode(t, "none", resp.Topics[1].ErrorCode, kerr.UnknownTopicOrPartition)
	})
}

func callsConfigs() {
	on(keyDescribeConfigs, func(int16) kmsg.Request {
		req := kmsg.NewPtrDescribeConfigsRequest()
		req.IncludeSynonyms, req.IncludeDocumentation = true, true
		req.Resources = []kmsg.DescribeConfigsRequestResource{
			{ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: "orders", ConfigNames: []string{"retention.ms", "min.insync.replicas"}},
			{ResourceType: kmsg.ConfigResourceTypeBroker, ResourceName: "1"},
			{ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: "none"},
		}
		return req
	}, func(t *testing.T, v int16, resp *kmsg.DescribeConfigsResponse) {
		orders := resp.Resources[0]
		wantCode(t, "orders", orders.ErrorCode, nil)
		if len(orders.Configs) != 2 {
			t.Fatalf("%+v", orders)
		}
		isr, retention := orders.Configs[0], orders.Configs[1]
		if isr.Name != "min.insync.replicas" || *isr.Value != "2" || isr.IsDefault || retention.Name != "retention.ms" || *retention.Value != "604800000" {
			t.Errorf("%+v %+v", isr, retention)
		}
		if v == 0 && !retention.IsDefault || v >= 1 && (retention.Source != kmsg.ConfigSourceDefaultConfig || isr.Source != kmsg.ConfigSourceStaticBrokerConfig || len(isr.ConfigSynonyms) != 2) {
			t.Errorf("%+v %+v", isr, retention)
		}
		if v >= 3 && (retention.ConfigType != kmsg.ConfigTypeLong || retention.Documentation == nil) {
			t.Errorf("%+v", retention)
		}
		i := slices.IndexFunc(resp.Resources[1].Configs, func(c kmsg.DescribeConfigsResponseResourceConfig) bool { return c.Name == "default.replication.factor" })
		if i < 0 || *resp.Resources[1].Configs[i].Value != "3" || !resp.Resources[1].Configs[i].ReadOnly {
			t.Errorf("broker: %+v", resp.Resources[1])
		}
		wantCode(t, "none", resp.Resources[2].ErrorCode, kerr.UnknownTopicOrPartition)
	})
	on(keyAlterConfigs, func(int16) kmsg.Request {
		req := kmsg.NewPtrAlterConfigsRequest()
		req.Resources = []kmsg.AlterConfigsRequestResource{
			{ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: "orders", Configs: []kmsg.AlterConfigsRequestResourceConfig{{Name: "retention.ms", Value: ptr("1")}}},
			{ResourceType: kmsg.ConfigResourceTypeBroker, ResourceName: "1"},
		}
		return req
	}, func(t *testing.T, _ int16, resp *kmsg.AlterConfigsResponse) {
		wantCode(t, "orders", resp.Resources[0].ErrorCode, nil)
		wantCode(t, "broker", resp.Resources[1].ErrorCode, kerr.InvalidRequest)
	})
	on(keyIncrementalAlterConfigs, func(int16) kmsg.Request {
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		req.Resources = []kmsg.IncrementalAlterConfigsRequestResource{
			{ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: "orders", Configs: []kmsg.IncrementalAlterConfigsRequestResourceConfig{{Name: "cleanup.policy", Op: kmsg.IncrementalAlterConfigOpAppend, Value: ptr("compact")}}},
			{ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: "none"},
		}
		return req
	}, func(t *testing.T, _ int16, resp *kmsg.IncrementalAlterConfigsResponse) {
		wantCode(t, "orders", resp.Resources[0].ErrorCode, nil)
		wantCode(t, "none", resp.Resources[1].ErrorCode, kerr.UnknownTopicOrPartition)
	})
}

func callsOthers() {
	on(keyAPIVersions, func(int16) kmsg.Request {
		req := kmsg.NewPtrApiVersionsRequest()
		req.ClientSoftwareName, req.ClientSoftwareVersion = "librdkafka", "2.11.0"
		return req
	}, func(t *testing.T, _ int16, resp *kmsg.ApiVersionsResponse) {
		wantCode(t, "versions", resp.ErrorCode, nil)
		if len(resp.ApiKeys) != len(apis) {
			t.Errorf("%+v", resp.ApiKeys)
		}
	})
	on(keyInitProducerID, func(int16) kmsg.Request { return kmsg.NewPtrInitProducerIDRequest() },
		func(t *testing.T, _ int16, resp *kmsg.InitProducerIDResponse) {
			wantCode(t, "producer id", resp.ErrorCode, nil)
			if resp.ProducerID < 0 || resp.ProducerEpoch != 0 {
				t.Errorf("%+v", resp)
			}
		})
	on(keyDescribeCluster, func(int16) kmsg.Request {
		req := kmsg.NewPtrDescribeClusterRequest()
		req.EndpointType = brokerEndpoints
		return req
	}, func(t *testing.T, _ int16, resp *kmsg.DescribeClusterResponse) {
		wantCode(t, "cluster", resp.ErrorCode, nil)
		if len(resp.Brokers) != 3 || resp.ControllerID != 1 || resp.ClusterID == "" {
			t.Errorf("%+v", resp)
		}
	})
	on(keyDescribeLogDirs, func(int16) kmsg.Request {
		req := kmsg.NewPtrDescribeLogDirsRequest()
		rt := kmsg.NewDescribeLogDirsRequestTopic()
		rt.Topic, rt.Partitions = "orders", []int32{0, 5}
		req.Topics = append(req.Topics, rt)
		return req
	}, func(t *testing.T, v int16, resp *kmsg.DescribeLogDirsResponse) {
		if len(resp.Dirs) != 1 || resp.Dirs[0].Dir != "/var/lib/chronik" || len(resp.Dirs[0].Topics) != 1 {
			t.Fatalf("%+v", resp)
		}
		p := resp.Dirs[0].Topics[0].Partitions
		if len(p) != 1 || p[0].Partition != 0 || p[0].Size != 3 {
			t.Errorf("%+v", p)
		}
	})
}
