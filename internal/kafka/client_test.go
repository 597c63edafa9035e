package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"chronik/internal/bytepool"
	"chronik/internal/metadata"
	"chronik/internal/record"
	"chronik/internal/wire"
)

// listen serves the fake cluster on a socket, the address of all three nodes: whichever a client asks,
// node 1 answers.
func listen(t *testing.T, h wire.Handler, f *fakeCluster) string {
	t.Helper()
	return listenWith(t, wire.Options{Handler: h}, f)
}

func listenWith(t *testing.T, opt wire.Options, f *fakeCluster) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr)
	for n := fakeSelf; n <= 3; n++ {
		f.apply(&metadata.RegisterBroker{
			Node: n, Store: fakeStore(n), Previous: f.Image().StoreOf(n),
			KafkaHost: "127.0.0.1", KafkaPort: int32(addr.Port), RaftAddr: "r", AdminAddr: "a",
		})
	}
	s := wire.NewServer(opt)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := <-served; !errors.Is(err, wire.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return addr.String()
}

func newClient(t *testing.T, addr string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(addr), kgo.RetryTimeout(10*time.Second))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// TestClientProducesAndConsumes runs a real client over a socket: negotiation,
// creation on demand, idempotent produce, fetch with waiting.
func TestClientProducesAndConsumes(t *testing.T) {
	defer bytepool.Poison()()
	h, f := newHandler(t)
	addr := listen(t, h, f)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	const count = 200
	consumer := newClient(t, addr, kgo.ConsumeTopics("events"), kgo.AllowAutoTopicCreation(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
	producer := newClient(t, addr, kgo.AllowAutoTopicCreation(), kgo.DefaultProduceTopic("events"), kgo.ProducerBatchCompression(kgo.SnappyCompression()))
	var want []string
	for i := range count {
		value := fmt.Sprintf("value %d", i)
		want = append(want, value)
		producer.Produce(ctx, kgo.StringRecord(value), func(_ *kgo.Record, err error) {
			if err != nil {
				t.Errorf("produce: %v", err)
			}
		})
	}
	if err := producer.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	var got []string
	for len(got) < count {
		fetches := consumer.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) { got = append(got, string(r.Value)) })
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("consumed %d records that are not the %d produced", len(got), count)
	}
}

// watching counts the fetches that continue a session, and the partitions they name.
type watching struct {
	*Handler
	continued, named atomic.Int64
}

func (w *watching) Serve(ctx context.Context, req *wire.Request, reply func(kmsg.Response)) {
	if r, ok := req.Body.(*kmsg.FetchRequest); ok && r.SessionEpoch > 0 {
		w.continued.Add(1)
		for i := range r.Topics {
			w.named.Add(int64(len(r.Topics[i].Partitions)))
		}
	}
	w.Handler.Serve(ctx, req, reply)
}

// TestClientFetchesWithASession: a real client of many partitions names those it moves
// on in, gets every record once and in order, and comes over the loss of its session.
func TestClientFetchesWithASession(t *testing.T) {
	h, f := newHandler(t)
	parts := f.topic("events", 50, nil)
	w := &watching{Handler: h}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	consumer := newClient(t, listen(t, w, f), kgo.ConsumeTopics("events"),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(5*time.Second))
	const rounds = 60
	for i := range rounds {
		appendRecords(t, parts[i*7%50], 1)
		fetches := consumer.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		rs := fetches.Records()
		if len(rs) != 1 || rs[0].Partition != int32(i*7%50) || rs[0].Offset != int64(i/50) {
			t.Fatalf("round %d: %d records, the first %+v", i, len(rs), rs)
		}
		if i == rounds/2 {
			h.sessions.mu.Lock()
			for _, s := range h.sessions.byID {
				h.sessions.remove(s)
			}
			h.sessions.mu.Unlock()
		}
	}
	if n, named := w.continued.Load(), w.named.Load(); n < rounds/2 || named > 2*n {
		t.Errorf("%d fetches continued a session and named %d partitions", n, named)
	}
}

// TestClientAdministers runs the usual admin calls through a real client.
func TestClientAdministers(t *testing.T) {
	h, f := newHandler(t)
	adm := kadm.NewClient(newClient(t, listen(t, h, f)))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	created, err := adm.CreateTopic(ctx, 3, -1, map[string]*string{"retention.ms": kadm.StringPtr("5000")}, "orders")
	if err != nil || created.NumPartitions != 3 || created.ReplicationFactor != 3 {
		t.Fatalf("%+v, %v", created, err)
	}
	details, err := adm.ListTopics(ctx)
	if err != nil || len(details["orders"].Partitions) != 3 || details["orders"].ID != created.ID {
		t.Fatalf("%+v, %v", details, err)
	}
	if _, err := adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: kadm.StringPtr("77")}}, "orders"); err != nil {
		t.Fatal(err)
	}
	configs, err := adm.DescribeTopicConfigs(ctx, "orders")
	if err != nil {
		t.Fatal(err)
	}
	set := map[string]string{}
	for _, c := range configs[0].Configs {
		if c.Source.String() == "DYNAMIC_TOPIC_CONFIG" {
			set[c.Key] = c.MaybeValue()
		}
	}
	if len(set) != 2 || set["retention.ms"] != "5000" || set["max.message.bytes"] != "77" {
		t.Errorf("set on the topic: %v", set)
	}
	ends, err := adm.ListEndOffsets(ctx, "orders")
	if err != nil || ends.Error() != nil || len(ends["orders"]) != 3 {
		t.Errorf("%+v, %v", ends, err)
	}
	if more, err := adm.CreatePartitions(ctx, 2, "orders"); err != nil || more["orders"].Err != nil || len(f.Image().Topic("orders").Partitions) != 5 {
		t.Errorf("%+v, %v", more, err)
	}
	if meta, err := adm.BrokerMetadata(ctx); err != nil || meta.Cluster != f.Image().ClusterID || len(meta.Brokers) != 3 {
		t.Errorf("%+v, %v", meta, err)
	}
	if gone, err := adm.DeleteTopics(ctx, "orders"); err != nil || gone["orders"].Err != nil || f.Image().TopicCount() != 0 {
		t.Errorf("%+v, %v", gone, err)
	}
}

// TestAcksZeroErrorClosesTheConnection: there is no response to carry the error,
// and a client that is not told sends to the wrong node until its metadata ages.
func TestAcksZeroErrorClosesTheConnection(t *testing.T) {
	h, f := newHandler(t)
	addr := listen(t, h, f)
	f.topic("orders", 1, nil)
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	send := func(topic string) {
		req := produceOf(topic, 0, batchOf(t, record.None, now()))
		frame := kmsg.NewRequestFormatter(kmsg.FormatterClientID("c")).AppendRequest(nil, req, 1)
		if _, err := nc.Write(frame); err != nil {
			t.Fatal(err)
		}
	}
	send("orders")
	if err := nc.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	versions := kmsg.NewPtrApiVersionsRequest()
	if _, err := nc.Write(kmsg.NewRequestFormatter().AppendRequest(nil, versions, 2)); err != nil {
		t.Fatal(err)
	}
	var head [8]byte
	if _, err := io.ReadFull(nc, head[:]); err != nil || head[7] != 2 {
		t.Fatalf("after a good request: %v, response to %d", err, head[7])
	}
	send("none")
	if _, err := io.Copy(io.Discard, nc); err != nil {
		t.Errorf("the connection did not end well: %v", err)
	}
}

// TestOldClients speaks as clients of old releases did: other message formats,
// other versions of each request.
func TestOldClients(t *testing.T) {
	for _, tc := range []struct {
		name     string
		versions *kversion.Versions
		codec    kgo.CompressionCodec
	}{
		{"0.8", kversion.V0_8_2(), kgo.GzipCompression()},
		{"0.9", kversion.V0_9_0(), kgo.SnappyCompression()},
		{"0.10", kversion.V0_10_0(), kgo.NoCompression()},
		{"0.10 gzip", kversion.V0_10_2(), kgo.GzipCompression()},
		{"0.11", kversion.V0_11_0(), kgo.Lz4Compression()},
		{"1.0", kversion.V1_0_0(), kgo.SnappyCompression()},
		{"2.1", kversion.V2_1_0(), kgo.ZstdCompression()},
		{"2.8", kversion.V2_8_0(), kgo.ZstdCompression()},
		{"3.0", kversion.V3_0_0(), kgo.GzipCompression()},
		{"4.0", kversion.V4_0_0(), kgo.ZstdCompression()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h, f := newHandler(t)
			addr := listen(t, h, f)
			f.topic("events", 1, nil)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			cl := newClient(t, addr, kgo.MaxVersions(tc.versions), kgo.DisableIdempotentWrite(), kgo.ProducerBatchCompression(tc.codec),
				kgo.DefaultProduceTopic("events"), kgo.FetchMaxWait(100*time.Millisecond),
				kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"events": {0: kgo.NewOffset().AtStart()}}))
			const count = 50
			for i := range count {
				cl.Produce(ctx, kgo.KeyStringRecord(fmt.Sprintf("k%d", i), strings.Repeat("v", i)), func(_ *kgo.Record, err error) {
					if err != nil {
						t.Errorf("produce: %v", err)
					}
				})
			}
			if err := cl.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			next := int64(0)
			for next < count {
				fetches := cl.PollFetches(ctx)
				if err := fetches.Err(); err != nil {
					t.Fatal(err)
				}
				fetches.EachRecord(func(r *kgo.Record) {
					if r.Offset != next || string(r.Key) != fmt.Sprintf("k%d", next) || len(r.Value) != int(next) {
						t.Errorf("offset %d, want %d: key %s, %d bytes", r.Offset, next, r.Key, len(r.Value))
					}
					next++
				})
			}
		})
	}
}
