package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// place is where a record was acknowledged.
type place struct {
	partition int32
	offset    int64
}

// acked is an acknowledged record.
type acked struct {
	place
	value string
}

// load produces numbered records with acks=all to every partition, from an idempotent
// client and from one that is not, and knows what was acknowledged.
type load struct {
	t       testing.TB
	clients [2]*kgo.Client
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	// onAck is called after the nth acknowledgement, which is in the ledger, in the client's goroutine.
	onAck func(n int)

	mu    sync.Mutex
	acks  []acked
	at    map[place]string
	moved *sync.Cond
	// later: another load went before, with idempotent producers of its own.
	later bool
}

const window = 4 // records a client has outstanding in a partition

// producers name the clients: the first part of each value.
var producers = [2]string{"idempotent", "plain"}

func newLoad(c *cluster, onAck func(n int)) *load {
	l := &load{t: c.t, at: map[place]string{}, onAck: onAck}
	l.moved = sync.NewCond(&l.mu)
	opts := []kgo.Opt{
		kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0), kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProduceRequestTimeout(3 * time.Second), kgo.RequestTimeoutOverhead(2 * time.Second),
	}
	l.clients[0] = c.client(opts...)
	l.clients[1] = c.client(append(opts, kgo.DisableIdempotentWrite(), kgo.MaxProduceRequestsInflightPerBroker(2))...)
	return l
}

// run starts to produce.
func (l *load) run() {
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	for k := range l.clients {
		for p := range int32(partitions) {
			l.wg.Go(func() { l.produce(ctx, k, p) })
		}
	}
}

// value is record n of a producer in a partition: 100 B to 2 KiB, most of them short.
func value(k int, p int32, n int) string {
	v := fmt.Sprintf("%s/%d/%d/", producers[k], p, n)
	size := 100 + rand.IntN(200)
	if rand.IntN(16) == 0 {
		size = 2 << 10
	}
	return v + strings.Repeat("chronik ", size/8)
}

func (l *load) produce(ctx context.Context, k int, p int32) {
	free := make(chan struct{}, window)
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case free <- struct{}{}:
		}
		v := value(k, p, n)
		if l.later {
			v = "later " + v
		}
		l.clients[k].Produce(context.Background(), &kgo.Record{Partition: p, Value: []byte(v)}, func(r *kgo.Record, err error) {
			defer func() { <-free }()
			if err != nil {
				// A node that dies right after it accepted a connection looks to the client like one
				// that wants SASL, and it gives up: not acknowledged, the outcome is unknown.
				var cut *kgo.ErrFirstReadEOF
				if ctx.Err() == nil && !errors.As(err, &cut) {
					l.t.Errorf("%.40s: %v", v, err)
				}
				return
			}
			l.ack(acked{place{r.Partition, r.Offset}, v})
		})
	}
}

func (l *load) ack(a acked) {
	l.mu.Lock()
	if was, ok := l.at[a.place]; ok {
		l.t.Errorf("offset %d of partition %d was given to %.40s and to %.40s", a.offset, a.partition, was, a.value)
	}
	l.at[a.place] = a.value
	l.acks = append(l.acks, a)
	n := len(l.acks)
	l.moved.Broadcast()
	l.mu.Unlock()
	if l.onAck != nil {
		l.onAck(n)
	}
}

// sofar returns what was acknowledged until now. It must not be changed.
func (l *load) sofar() []acked {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acks[:len(l.acks):len(l.acks)]
}

// await waits until n records are acknowledged or, if that comes first, done is closed.
func (l *load) await(n int, done <-chan struct{}) {
	l.t.Helper()
	wake := func() { l.mu.Lock(); l.moved.Broadcast(); l.mu.Unlock() }
	end := time.Now().Add(settle)
	timer := time.AfterFunc(settle, wake)
	defer timer.Stop()
	returned := make(chan struct{})
	var watching sync.WaitGroup
	defer watching.Wait()
	defer close(returned)
	watching.Go(func() {
		select {
		case <-done:
			wake()
		case <-returned:
		}
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.acks) < n {
		select {
		case <-done:
			return
		default:
		}
		if time.Now().After(end) {
			l.t.Errorf("%d of %d records acknowledged in %v", len(l.acks), n, settle)
			return
		}
		l.moved.Wait()
	}
}

// stop ends the load. What is outstanding may or may not be acknowledged.
func (l *load) stop() {
	if l.cancel != nil {
		l.cancel()
	}
	l.cancel = nil
	l.wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, cl := range l.clients {
		_ = cl.Flush(ctx) // of no matter
		cl.Close()
	}
}

// serial takes a value apart.
func serial(v string) (producer string, n int, err error) {
	f := strings.SplitN(v, "/", 4)
	if len(f) < 4 {
		return "", 0, fmt.Errorf("no value of ours: %.40q", v)
	}
	_, err = fmt.Sscan(f[2], &n)
	return f[0], n, err
}

// checkOrder proves that an idempotent producer's records lie in their order, each once, in what
// was read of a partition from offset 0 on.
func checkOrder(p int32, got []string) error {
	next := 0
	for o, v := range got {
		who, n, err := serial(v)
		if err != nil {
			return fmt.Errorf("partition %d, offset %d: %w", p, o, err)
		}
		if who != producers[0] {
			continue
		}
		if n != next {
			return fmt.Errorf("partition %d, offset %d: record %d of the idempotent producer, want %d", p, o, n, next)
		}
		next++
	}
	return nil
}

// missing lists which of the acknowledged records are not in got at their offset.
func missing(acks []acked, got map[place]string) []acked {
	return slices.DeleteFunc(slices.Clone(acks), func(a acked) bool { return got[a.place] == a.value })
}
