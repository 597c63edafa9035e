package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	topic      = "load"
	partitions = 2
	groupName  = "readers"
)

// place is where a record is.
type place struct {
	partition int32
	offset    int64
}

// producers name what produces: the first part of each value.
var producers = []struct {
	name       string
	idempotent bool
	acks       kgo.Acks
}{
	{"idempotent", true, kgo.AllISRAcks()},
	{"plain", false, kgo.AllISRAcks()},
	{"one", false, kgo.LeaderAck()},
}

// load is what clients do, and what they were told.
type load struct {
	w      *world
	ctx    context.Context // ends with the producers
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	acked map[place]string
	// deleted is how far each partition's records were deleted.
	deleted [partitions]int64
	// since counts acknowledgements of each producer since the mark.
	since  map[string]int
	groups *committer
}

func newLoad(w *world) *load {
	l := &load{w: w, acked: map[place]string{}, since: map[string]int{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// client connects over the simulated network.
func (w *world) client(opts ...kgo.Opt) *kgo.Client {
	var seeds []string
	for _, n := range w.nodes {
		seeds = append(seeds, kafkaAddr(n.id))
	}
	c, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(seeds...),
		kgo.Dialer(func(ctx context.Context, _, host string) (net.Conn, error) { return w.net.dial(ctx, 0, host) }),
		kgo.MetadataMinAge(100 * time.Millisecond), kgo.MetadataMaxAge(5 * time.Second), kgo.DialTimeout(time.Second),
		kgo.RetryTimeout(5 * time.Second), kgo.RequestTimeoutOverhead(time.Second), kgo.ConnIdleTimeout(time.Minute),
		kgo.RetryBackoffFn(func(int) time.Duration { return 100 * time.Millisecond }),
	}, opts...)...)
	if err != nil {
		panic(err)
	}
	return c
}

// prepare makes the topic.
func (l *load) prepare() bool {
	cl := l.w.client()
	defer cl.Close()
	small := "8192"
	err := l.w.await("the topic is made", convergence, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := kadm.NewClient(cl).CreateTopic(ctx, partitions, 3, map[string]*string{"segment.bytes": &small}, topic)
		if err != nil && strings.Contains(err.Error(), "TOPIC_ALREADY_EXISTS") {
			return nil
		}
		return err
	})
	return err
}

func (l *load) start() {
	for i := range producers {
		cl := l.producer(i)
		for p := range int32(partitions) {
			l.wg.Go(func() { l.produce(cl, i, p) })
		}
		go func() {
			l.wg.Wait()
			cl.Close()
		}()
	}
	go l.read()
	l.groups = newCommitter(l.w)
	go l.groups.run(l.ctx)
}

func (l *load) producer(i int) *kgo.Client {
	opts := []kgo.Opt{
		kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0), kgo.RequiredAcks(producers[i].acks),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProduceRequestTimeout(2 * time.Second),
	}
	if !producers[i].idempotent {
		opts = append(opts, kgo.DisableIdempotentWrite(), kgo.MaxProduceRequestsInflightPerBroker(1))
	}
	return l.w.client(opts...)
}

// window is how many records a producer has outstanding in a partition.
const window = 3

func (l *load) produce(cl *kgo.Client, i int, p int32) {
	rng := l.w.rand(fmt.Sprintf("load %d %d", i, p))
	free := make(chan struct{}, window)
	defer func() {
		for range window { // what is outstanding
			free <- struct{}{}
		}
	}()
	for n := 0; ; n++ {
		select {
		case <-l.ctx.Done():
			return
		case free <- struct{}{}:
		}
		v := fmt.Sprintf("%s/%d/%d/%s", producers[i].name, p, n, strings.Repeat("chronik ", 4+rng.IntN(40)))
		cl.Produce(context.Background(), &kgo.Record{Partition: p, Value: []byte(v)}, func(r *kgo.Record, err error) {
			defer func() { <-free }()
			if err == nil {
				l.ack(i, r, v)
				return
			}
			l.w.count("not acknowledged", 1)
			// A node that dies right after it accepted a connection looks like one that wants SASL.
			var cut *kgo.ErrFirstReadEOF
			if producers[i].idempotent && !errors.As(err, &cut) {
				l.w.fail("idempotent producer goes on", "%.40s: %v", v, err)
			}
		})
		time.Sleep(time.Duration(20+rng.IntN(300)) * time.Millisecond)
	}
}

func (l *load) ack(i int, r *kgo.Record, v string) {
	w := l.w
	w.trace.acked(int(r.Partition), r.Offset)
	w.count("acked", 1)
	at := place{r.Partition, r.Offset}
	l.mu.Lock()
	was, twice := l.acked[at]
	l.acked[at] = v
	l.since[producers[i].name]++
	n := len(l.acked)
	l.mu.Unlock()
	if twice {
		w.fail("an offset is one record's", "%v was given to %.40s and to %.40s", at, was, v)
	}
	w.check.ack(n, at, v)
}

// mark begins to count anew.
func (l *load) mark() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since = map[string]int{}
}

// served tells whether every producer was answered since the mark.
func (l *load) served() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range producers {
		if l.since[p.name] < 2*window {
			return fmt.Errorf("producer %s has %d acknowledgements since", p.name, l.since[p.name])
		}
	}
	return nil
}

// finish lets the producers end and waits for what is outstanding.
func (l *load) finish() {
	l.cancel()
	done := make(chan struct{})
	go func() {
		l.wg.Wait()
		close(done)
	}()
	l.w.await("the producers have ended", convergence, func() error {
		select {
		case <-done:
			return nil
		default:
			return errors.New("records are outstanding")
		}
	})
}

// deleteRecords deletes the first half of what is there.
func (l *load) deleteRecords(ctx context.Context, p int32) {
	cl := l.w.client()
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	l.mu.Lock()
	half := int64(0)
	for at := range l.acked {
		if at.partition == p {
			half = max(half, at.offset/2)
		}
	}
	// Whatever comes of it, what lies below may be gone.
	l.deleted[p] = max(l.deleted[p], half)
	l.mu.Unlock()
	var offs kadm.Offsets
	offs.Add(kadm.Offset{Topic: topic, Partition: p, At: half})
	_, _ = kadm.NewClient(cl).DeleteRecords(ctx, offs) // while other things break it may fail
}

func (l *load) deletedTo(p int32) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deleted[p]
}

// read follows the log as a consumer does, again and again from its beginning.
func (l *load) read() {
	rng := l.w.rand("read")
	for l.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(l.ctx, time.Duration(500+rng.IntN(5000))*time.Millisecond)
		cl := l.w.client(l.from(kgo.NewOffset().AtStart())...)
		l.poll(ctx, cl)
		cancel()
		cl.Close()
	}
}

func (l *load) from(o kgo.Offset) []kgo.Opt {
	at := map[int32]kgo.Offset{}
	for p := range int32(partitions) {
		at[p] = o
	}
	return []kgo.Opt{kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: at}), kgo.FetchMaxWait(time.Second)}
}

func (l *load) poll(ctx context.Context, cl *kgo.Client) {
	next := map[int32]int64{}
	marks := map[int32]int64{}
	for ctx.Err() == nil {
		fs := cl.PollFetches(ctx)
		fs.EachPartition(func(tp kgo.FetchTopicPartition) {
			if tp.HighWatermark > 0 && tp.HighWatermark < marks[tp.Partition] {
				l.w.fail("high watermark never goes back", "partition %d: %d after %d", tp.Partition, tp.HighWatermark, marks[tp.Partition])
			}
			marks[tp.Partition] = max(marks[tp.Partition], tp.HighWatermark)
			for _, r := range tp.Records {
				l.w.check.read(place{r.Partition, r.Offset}, string(r.Value))
				if n, ok := next[r.Partition]; ok && r.Offset != n && n >= l.deletedTo(r.Partition) {
					l.w.fail("consumers see no gap", "partition %d: offset %d after %d", r.Partition, r.Offset, n-1)
				}
				next[r.Partition] = r.Offset + 1
			}
		})
	}
}
