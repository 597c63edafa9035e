package kafka

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/partition"
	"chronik/internal/record"
)

// produceOf writes records to partition 0 of a topic.
func produceOf(topic string, acks int16, records ...[]byte) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.Version = 12
	req.Acks, req.TimeoutMillis = acks, 1500
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic = topic
	for i, raw := range records {
		rp := kmsg.NewProduceRequestTopicPartition()
		rp.Partition, rp.Records = int32(i), raw
		rt.Partitions = append(rt.Partitions, rp)
	}
	req.Topics = append(req.Topics, rt)
	return req
}

func now() int64 { return time.Now().UnixMilli() }

func TestProduceRepliesWhenTheLastPartitionAnswers(t *testing.T) {
	h, f := newHandler(t)
	parts := f.topic("orders", 2, nil)
	parts[0].hold, parts[1].hold = true, true
	req := produceOf("orders", -1, batchOf(t, record.None, now()), batchOf(t, record.None, now(), now()))
	var got kmsg.Response
	h.Serve(t.Context(), request(t, req), func(r kmsg.Response) { got = r })
	parts[1].release()
	if got != nil {
		t.Fatal("replied before partition 0 answered")
	}
	parts[0].release()
	if got == nil {
		t.Fatal("no reply")
	}
	resp := decoded(t, req, got).(*kmsg.ProduceResponse)
	for i, p := range resp.Topics[0].Partitions {
		wantCode(t, "partition", p.ErrorCode, nil)
		if int(p.Partition) != i || p.BaseOffset != 0 {
			t.Errorf("%+v", p)
		}
	}
	if parts[0].HighWatermark() != 1 || parts[1].HighWatermark() != 2 {
		t.Error("records went to the wrong partitions")
	}
}

func TestProducePassesOptionsOn(t *testing.T) {
	h, f := newHandler(t)
	parts := f.topic("orders", 1, map[string]string{"min.insync.replicas": "7"})
	for _, acks := range []int16{0, 1, -1} {
		replies := 0
		h.Serve(t.Context(), request(t, produceOf("orders", acks, batchOf(t, record.None, now()))), func(r kmsg.Response) {
			replies++
			if (r == nil) != (acks == 0) {
				t.Errorf("acks %d answered by %v", acks, r)
			}
		})
		opt := parts[0].opts[len(parts[0].opts)-1]
		// Seven of three replicas can never have a batch.
		if want := (partition.AppendOptions{Acks: acks, Timeout: 1500 * time.Millisecond, MinISR: 3}); opt != want {
			t.Errorf("acks %d: %+v, want %+v", acks, opt, want)
		}
		if replies != 1 {
			t.Errorf("acks %d: %d replies", acks, replies)
		}
	}
	if parts[0].HighWatermark() != 3 {
		t.Errorf("high watermark %d", parts[0].HighWatermark())
	}
}

// refusals are requests that fail, each one step away from one that succeeds.
var refusals = []struct {
	name  string
	setup func(t *testing.T, f *fakeCluster, req *kmsg.ProduceRequest)
	want  *kerr.Error
}{
	{"acks 2", func(_ *testing.T, _ *fakeCluster, req *kmsg.ProduceRequest) { req.Acks = 2 }, kerr.InvalidRequiredAcks},
	{"acks -2", func(_ *testing.T, _ *fakeCluster, req *kmsg.ProduceRequest) { req.Acks = -2 }, kerr.InvalidRequiredAcks},
	{"transactional id", func(_ *testing.T, _ *fakeCluster, req *kmsg.ProduceRequest) { req.TransactionID = ptr("t") }, kerr.InvalidRequest},
	{"full disk", func(_ *testing.T, f *fakeCluster, _ *kmsg.ProduceRequest) { f.full = true }, kerr.KafkaStorageError},
	{"unknown topic", func(_ *testing.T, _ *fakeCluster, req *kmsg.ProduceRequest) { req.Topics[0].Topic = "none" }, kerr.UnknownTopicOrPartition},
	{"unknown partition", func(_ *testing.T, _ *fakeCluster, req *kmsg.ProduceRequest) {
		req.Topics[0].Partitions[0].Partition = 1
	}, kerr.UnknownTopicOrPartition},
	{"negative partition", func(_ *testing.T, _ *fakeCluster, req *kmsg.ProduceRequest) {
		req.Topics[0].Partitions[0].Partition = -1
	}, kerr.UnknownTopicOrPartition},
	{"no records", func(_ *testing.T, _ *fakeCluster, req *kmsg.ProduceRequest) {
		req.Topics[0].Partitions[0].Records = nil
	}, kerr.InvalidRecord},
	{"few bytes", func(_ *testing.T, _ *fakeCluster, req *kmsg.ProduceRequest) {
		req.Topics[0].Partitions[0].Records = make([]byte, magicAt)
	}, kerr.CorruptMessage},
	{"wrong checksum", func(_ *testing.T, _ *fakeCluster, req *kmsg.ProduceRequest) {
		r := req.Topics[0].Partitions[0].Records
		r[len(r)-1] ^= 1
	}, kerr.CorruptMessage},
	{"two batches", func(_ *testing.T, _ *fakeCluster, req *kmsg.ProduceRequest) {
		p := &req.Topics[0].Partitions[0]
		p.Records = append(p.Records, p.Records...)
	}, kerr.InvalidRecord},
	{"old messages", func(t *testing.T, _ *fakeCluster, req *kmsg.ProduceRequest) {
		p := &req.Topics[0].Partitions[0]
		var err error
		if p.Records, err = record.DownConvert(nil, p.Records, 1); err != nil {
			t.Fatal(err)
		}
	}, kerr.InvalidRecord},
	{"zstd before version 7", func(t *testing.T, _ *fakeCluster, req *kmsg.ProduceRequest) {
		req.Version = 6
		req.Topics[0].Partitions[0].Records = batchOf(t, record.Zstd, now())
	}, kerr.UnsupportedCompressionType},
	{"transactional batch", func(t *testing.T, _ *fakeCluster, req *kmsg.ProduceRequest) {
		b := record.Builder{Transactional: true}
		b.SetProducer(1, 0, 0)
		b.Append(record.Record{Timestamp: now(), Value: []byte("v")})
		raw, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		req.Topics[0].Partitions[0].Records = raw
	}, kerr.InvalidRequest},
	{"a day ahead", func(t *testing.T, _ *fakeCluster, req *kmsg.ProduceRequest) {
		req.Topics[0].Partitions[0].Records = batchOf(t, record.None, now(), now()+86400_000)
	}, kerr.InvalidTimestamp},
	{"not the leader", func(_ *testing.T, f *fakeCluster, _ *kmsg.ProduceRequest) { f.moveLeader("orders", 0, 2, 9) }, kerr.NotLeaderForPartition},
	{"leader lost after the check", func(_ *testing.T, f *fakeCluster, _ *kmsg.ProduceRequest) {
		f.parts[f.Image().TopicPartition("orders", 0).Group].appendErr = partition.ErrNotLeader
	}, kerr.NotLeaderForPartition},
}

func TestProduceRefuses(t *testing.T) {
	for _, tc := range refusals {
		t.Run(tc.name, func(t *testing.T) {
			h, f := newHandler(t)
			parts := f.topic("orders", 1, nil)
			req := produceOf("orders", -1, batchOf(t, record.None, now()))
			tc.setup(t, f, req)
			resp := roundTrip[*kmsg.ProduceResponse](t, h, req)
			p := resp.Topics[0].Partitions[0]
			wantCode(t, "produce", p.ErrorCode, tc.want)
			if p.BaseOffset != -1 || p.LogAppendTime != -1 || p.LogStartOffset != -1 || parts[0].HighWatermark() != 0 {
				t.Errorf("%+v, high watermark %d", p, parts[0].HighWatermark())
			}
		})
	}
}

func TestProduceHonoursTopicSettings(t *testing.T) {
	h, f := newHandler(t)
	f.topic("small", 1, map[string]string{"max.message.bytes": "100"})
	f.topic("past", 1, map[string]string{"message.timestamp.before.max.ms": "1000"})
	stamped := f.topic("stamped", 1, map[string]string{"message.timestamp.type": "LogAppendTime"})[0]

	p := roundTrip[*kmsg.ProduceResponse](t, h, produceOf("small", -1, batchOf(t, record.None, now(), now(), now(), now(), now()))).Topics[0].Partitions[0]
	wantCode(t, "large batch", p.ErrorCode, kerr.MessageTooLarge)
	p = roundTrip[*kmsg.ProduceResponse](t, h, produceOf("past", -1, batchOf(t, record.None, now()-60_000))).Topics[0].Partitions[0]
	wantCode(t, "old record", p.ErrorCode, kerr.InvalidTimestamp)

	before := now()
	p = roundTrip[*kmsg.ProduceResponse](t, h, produceOf("stamped", -1, batchOf(t, record.None, 1, 2))).Topics[0].Partitions[0]
	wantCode(t, "stamped", p.ErrorCode, nil)
	b, _, err := record.ParseBatch(stamped.batches[0])
	if err != nil {
		t.Fatal(err)
	}
	if b.TimestampType() != record.LogAppendTime || b.MaxTimestamp() != p.LogAppendTime || p.LogAppendTime < before {
		t.Errorf("stored %v at %d, answered %d, clock %d", b.TimestampType(), b.MaxTimestamp(), p.LogAppendTime, before)
	}
}

func TestProduceNamesRecordsWithoutKey(t *testing.T) {
	h, f := newHandler(t)
	f.topic("table", 1, map[string]string{"cleanup.policy": "compact"})
	b := record.Builder{}
	for _, key := range [][]byte{[]byte("k"), nil, {}, nil} {
		b.Append(record.Record{Timestamp: now(), Key: key})
	}
	raw, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	p := roundTrip[*kmsg.ProduceResponse](t, h, produceOf("table", -1, raw)).Topics[0].Partitions[0]
	wantCode(t, "keyless", p.ErrorCode, kerr.InvalidRecord)
	if len(p.ErrorRecords) != 2 || p.ErrorRecords[0].RelativeOffset != 1 || p.ErrorRecords[1].RelativeOffset != 3 || p.ErrorMessage == nil {
		t.Errorf("%+v", p)
	}
	p = roundTrip[*kmsg.ProduceResponse](t, h, produceOf("table", -1, batchOf(t, record.None, now()))).Topics[0].Partitions[0]
	wantCode(t, "with keys", p.ErrorCode, nil)
}

func TestProduceNamesTheNewLeader(t *testing.T) {
	h, f := newHandler(t)
	f.topic("orders", 2, nil)
	f.moveLeader("orders", 0, 2, 9)
	f.moveLeader("orders", 1, 2, 8)
	resp := roundTrip[*kmsg.ProduceResponse](t, h, produceOf("orders", -1, batchOf(t, record.None, now()), batchOf(t, record.None, now())))
	for i, epoch := range []int32{9, 8} {
		p := resp.Topics[0].Partitions[i]
		wantCode(t, "moved", p.ErrorCode, kerr.NotLeaderForPartition)
		if p.CurrentLeader.LeaderID != 2 || p.CurrentLeader.LeaderEpoch != epoch {
			t.Errorf("%+v", p.CurrentLeader)
		}
	}
	if len(resp.Brokers) != 1 || resp.Brokers[0].NodeID != 2 || resp.Brokers[0].Host != "node-2" || resp.Brokers[0].Port != 9093 || *resp.Brokers[0].Rack != "rack-2" {
		t.Errorf("%+v", resp.Brokers)
	}
}

func TestProduceAnswersADuplicateWithItsFirstOffset(t *testing.T) {
	h, f := newHandler(t)
	p := f.topic("orders", 1, nil)[0]
	p.appendResult = &partition.AppendResult{BaseOffset: 17, LogAppendTimeMs: -1, LogStartOffset: 4, Err: partition.ErrDuplicateSequence}
	got := roundTrip[*kmsg.ProduceResponse](t, h, produceOf("orders", -1, batchOf(t, record.None, now()))).Topics[0].Partitions[0]
	wantCode(t, "duplicate", got.ErrorCode, nil)
	if got.BaseOffset != 17 || got.LogStartOffset != 4 {
		t.Errorf("%+v", got)
	}
}

func TestProduceTakesOldMessageSets(t *testing.T) {
	h, f := newHandler(t)
	p := f.topic("orders", 1, nil)[0]
	for version := int16(0); version <= 2; version++ {
		set, err := record.DownConvert(nil, batchOf(t, record.None, now(), now(), now()), int8(min(version, 1)))
		if err != nil {
			t.Fatal(err)
		}
		req := produceOf("orders", 1, set)
		req.Version = version
		got := roundTrip[*kmsg.ProduceResponse](t, h, req).Topics[0].Partitions[0]
		wantCode(t, "old messages", got.ErrorCode, nil)
		if got.BaseOffset != int64(version)*3 {
			t.Errorf("version %d: %+v", version, got)
		}
		req.Topics[0].Partitions[0].Records = []byte{}
		got = roundTrip[*kmsg.ProduceResponse](t, h, req).Topics[0].Partitions[0]
		wantCode(t, "empty set", got.ErrorCode, nil)
	}
	if len(p.batches) != 3 {
		t.Errorf("%d batches stored", len(p.batches))
	}
}
