// Package clients runs the Go clients against three nodes: each produces and
// consumes numbered records with acks=all, alone and in a group of two.
package clients

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/test/harness"
)

const (
	records    = 10_000
	partitions = 4
)

// ledger compares what was acknowledged with what was read.
type ledger struct {
	mu   sync.Mutex
	want map[string]string // partition@offset → value
	got  map[string]string
	full chan struct{}
	once sync.Once
}

func newLedger() *ledger {
	return &ledger{want: map[string]string{}, got: map[string]string{}, full: make(chan struct{})}
}

func at(partition int32, offset int64) string { return fmt.Sprintf("%d@%d", partition, offset) }

func (l *ledger) acked(partition int32, offset int64, value string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.want[at(partition, offset)] = value
}

func (l *ledger) read(partition int32, offset int64, value string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.got[at(partition, offset)] = value
	if len(l.got) >= len(l.want) {
		l.once.Do(func() { close(l.full) })
	}
}

// reader forgets what was read, for the next way of reading.
func (l *ledger) reader() *ledger {
	return &ledger{want: l.want, got: map[string]string{}, full: make(chan struct{})}
}

func (l *ledger) check(t *testing.T, how string) {
	t.Helper()
	select {
	case <-l.full:
	case <-time.After(60 * time.Second):
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.want) != records {
		t.Fatalf("%d records acknowledged at distinct places, want %d", len(l.want), records)
	}
	wrong := 0
	for k, v := range l.want {
		if l.got[k] != v {
			wrong++
		}
	}
	if wrong > 0 || len(l.got) != len(l.want) {
		t.Fatalf("%s: read %d of %d records, %d missing or different", how, len(l.got), len(l.want), wrong)
	}
}

func TestClients(t *testing.T) {
	c := harness.Start(t, harness.Options{})
	t.Run("franz-go", func(t *testing.T) { franz(t, c) })
	t.Run("sarama", func(t *testing.T) { saramaClient(t, c) })
	t.Run("kafka-go", func(t *testing.T) { segmentio(t, c) })
}

func franz(t *testing.T, c *harness.Cluster) {
	c.CreateTopic("franz", partitions)
	l := newLedger()
	cl := c.Client(kgo.DefaultProduceTopic("franz"))
	for i := range records {
		cl.Produce(t.Context(), kgo.KeySliceRecord(fmt.Appendf(nil, "%d", i%97), fmt.Appendf(nil, "n-%d", i)), func(r *kgo.Record, err error) {
			if err != nil {
				t.Errorf("produce: %v", err)
				return
			}
			l.acked(r.Partition, r.Offset, string(r.Value))
		})
	}
	if err := cl.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	poll := func(ctx context.Context, l *ledger, opts ...kgo.Opt) {
		cl := c.Client(opts...)
		defer cl.Close()
		for ctx.Err() == nil {
			for _, r := range cl.PollFetches(ctx).Records() {
				l.read(r.Partition, r.Offset, string(r.Value))
			}
		}
	}
	alone := l.reader()
	runReaders(t, alone, "alone", func(ctx context.Context, _ int) {
		poll(ctx, alone, kgo.ConsumeTopics("franz"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	}, 1)
	group := l.reader()
	runReaders(t, group, "group", func(ctx context.Context, _ int) {
		poll(ctx, group, kgo.ConsumerGroup("franz-group"), kgo.ConsumeTopics("franz"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	}, 2)
}

// runReaders runs n readers until everything was read, and checks it.
func runReaders(t *testing.T, l *ledger, how string, read func(ctx context.Context, member int), n int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { read(ctx, i) })
	}
	l.check(t, how)
	cancel()
	wg.Wait()
}

func saramaConfig() *sarama.Config {
	cfg := sarama.NewConfig()
	cfg.Version = sarama.V2_8_0_0
	cfg.Producer.RequiredAcks = sarama.WaitForAll
	cfg.Producer.Return.Successes = true
	cfg.Producer.Retry.Max = 20
	cfg.Producer.Compression = sarama.CompressionGZIP
	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	return cfg
}

func saramaClient(t *testing.T, c *harness.Cluster) {
	c.CreateTopic("sarama", partitions)
	l := newLedger()
	p, err := sarama.NewAsyncProducer(c.Bootstrap(), saramaConfig())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for i := range records {
			p.Input() <- &sarama.ProducerMessage{Topic: "sarama", Value: sarama.StringEncoder(fmt.Sprintf("n-%d", i))}
		}
	}()
	for range records {
		select {
		case m := <-p.Successes():
			v, _ := m.Value.Encode()
			l.acked(m.Partition, m.Offset, string(v))
		case err := <-p.Errors():
			t.Fatal(err)
		case <-time.After(60 * time.Second):
			t.Fatal("no acknowledgement")
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	alone := l.reader()
	runReaders(t, alone, "alone", func(ctx context.Context, _ int) { saramaAlone(ctx, t, c, alone) }, 1)
	group := l.reader()
	runReaders(t, group, "group", func(ctx context.Context, _ int) { saramaMember(ctx, t, c, group) }, 2)
}

func saramaAlone(ctx context.Context, t *testing.T, c *harness.Cluster, l *ledger) {
	cons, err := sarama.NewConsumer(c.Bootstrap(), saramaConfig())
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = cons.Close() }()
	var wg sync.WaitGroup
	for p := range int32(partitions) {
		pc, err := cons.ConsumePartition("sarama", p, sarama.OffsetOldest)
		if err != nil {
			t.Error(err)
			return
		}
		wg.Go(func() {
			for m := range pc.Messages() {
				l.read(m.Partition, m.Offset, string(m.Value))
			}
		})
		context.AfterFunc(ctx, pc.AsyncClose)
	}
	wg.Wait()
}

type saramaHandler struct{ l *ledger }

func (saramaHandler) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (saramaHandler) Cleanup(sarama.ConsumerGroupSession) error { return nil }

func (h saramaHandler) ConsumeClaim(s sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for {
		select {
		case <-s.Context().Done():
			return nil
		case m, ok := <-claim.Messages():
			if !ok {
				return nil
			}
			h.l.read(m.Partition, m.Offset, string(m.Value))
			s.MarkMessage(m, "")
		}
	}
}

func saramaMember(ctx context.Context, t *testing.T, c *harness.Cluster, l *ledger) {
	g, err := sarama.NewConsumerGroup(c.Bootstrap(), "sarama-group", saramaConfig())
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = g.Close() }()
	for ctx.Err() == nil {
		if err := g.Consume(ctx, []string{"sarama"}, saramaHandler{l}); err != nil && ctx.Err() == nil && !errors.Is(err, sarama.ErrClosedConsumerGroup) {
			t.Errorf("group: %v", err)
			return
		}
	}
}

func segmentio(t *testing.T, c *harness.Cluster) {
	c.CreateTopic("kafkago", partitions)
	l := newLedger()
	var n atomic.Int64
	transport := &kafkago.Transport{MetadataTTL: 500 * time.Millisecond} // the default one's connections outlive the writer
	defer transport.CloseIdleConnections()
	w := &kafkago.Writer{
		Transport: transport,
		Addr:      kafkago.TCP(c.Bootstrap()...), Topic: "kafkago", RequiredAcks: kafkago.RequireAll, BatchTimeout: 10 * time.Millisecond,
		Balancer: &kafkago.RoundRobin{}, Compression: kafkago.Snappy, MaxAttempts: 20,
		Completion: func(ms []kafkago.Message, err error) {
			if err != nil {
				t.Errorf("produce: %v", err)
				return
			}
			for _, m := range ms {
				l.acked(int32(m.Partition), m.Offset, string(m.Value))
			}
			n.Add(int64(len(ms)))
		},
	}
	var ms []kafkago.Message
	for i := range records {
		ms = append(ms, kafkago.Message{Value: fmt.Appendf(nil, "n-%d", i)})
	}
	if err := w.WriteMessages(t.Context(), ms...); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if n.Load() != records {
		t.Fatalf("%d acknowledged", n.Load())
	}
	read := func(ctx context.Context, l *ledger, cfg kafkago.ReaderConfig) {
		cfg.Brokers, cfg.Topic, cfg.MaxWait, cfg.MinBytes, cfg.MaxBytes = c.Bootstrap(), "kafkago", 200*time.Millisecond, 1, 1<<20
		r := kafkago.NewReader(cfg)
		defer func() { _ = r.Close() }()
		for {
			m, err := r.ReadMessage(ctx)
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("read: %v", err)
				}
				return
			}
			l.read(int32(m.Partition), m.Offset, string(m.Value))
		}
	}
	alone := l.reader()
	runReaders(t, alone, "alone", func(ctx context.Context, i int) { read(ctx, alone, kafkago.ReaderConfig{Partition: i}) }, partitions)
	group := l.reader()
	runReaders(t, group, "group", func(ctx context.Context, _ int) {
		read(ctx, group, kafkago.ReaderConfig{GroupID: "kafkago-group", StartOffset: kafkago.FirstOffset})
	}, 2)
}
