// Package kill holds kill -9 under load: of one node at a time, and of all at
// once. The checker knows every acknowledged record.
package kill

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/test/harness"
)

const (
	topic      = "load"
	partitions = 6
)

// rounds is how many rounds to run: short by default, CHRONIK_ROUNDS for the full count.
func rounds(t *testing.T, short int) int {
	t.Helper()
	if s := os.Getenv("CHRONIK_ROUNDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			t.Fatalf("CHRONIK_ROUNDS=%q", s)
		}
		return n
	}
	return short
}

type place struct {
	partition int32
	offset    int64
}

// workload produces numbered records to every partition from an idempotent
// producer until stopped, and remembers what was acknowledged where.
type workload struct {
	t       *testing.T
	c       *harness.Cluster
	cl      *kgo.Client
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	acks    atomic.Int64
	mu      sync.Mutex
	acked   map[place]string
	lastAck [partitions]time.Time
	sent    [partitions]int
}

func start(t *testing.T, c *harness.Cluster) *workload {
	t.Helper()
	w := &workload{t: t, c: c, acked: map[place]string{}}
	w.cl = c.Client(kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(2*time.Millisecond),
		kgo.MaxBufferedRecords(2000), kgo.ProduceRequestTimeout(3*time.Second), kgo.RequestTimeoutOverhead(2*time.Second))
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	for p := range int32(partitions) {
		w.wg.Go(func() { w.produce(ctx, p) })
	}
	return w
}

// produce keeps a window of records outstanding on partition p.
func (w *workload) produce(ctx context.Context, p int32) {
	window := make(chan struct{}, 50)
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			w.sent[p] = n
			return
		case window <- struct{}{}:
		}
		v := fmt.Sprintf("%d:%d", p, n)
		w.cl.Produce(context.Background(), &kgo.Record{Partition: p, Value: []byte(v)}, func(r *kgo.Record, err error) {
			<-window
			if err != nil {
				w.t.Errorf("produce to partition %d: %v", p, err)
				return
			}
			w.acks.Add(1)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.lastAck[p] = time.Now()
			if was, ok := w.acked[place{r.Partition, r.Offset}]; ok {
				w.t.Errorf("offset %d of partition %d was given to %q and to %q", r.Offset, r.Partition, was, v)
			}
			w.acked[place{r.Partition, r.Offset}] = v
		})
	}
}

// acceptedSince tells whether every partition had a record acknowledged after t that was
// still unacknowledged then; the window keeps records outstanding at all times.
func (w *workload) acceptedSince(t time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for p, at := range w.lastAck {
		if !at.After(t) {
			return fmt.Errorf("partition %d accepted nothing since", p)
		}
	}
	return nil
}

// finish stops the load, lets everything outstanding be acknowledged, and checks:
// nothing lost, nothing twice, order kept, replicas equal.
func (w *workload) finish() {
	w.t.Helper()
	w.cancel()
	w.wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := w.cl.Flush(ctx); err != nil {
		w.t.Fatalf("records remain unacknowledged: %v", err)
	}
	total := 0
	for p := range int32(partitions) {
		n := w.sent[p]
		total += n
		w.checkPartition(p, n)
	}
	w.t.Logf("%d records acknowledged, none lost, none twice, in order", total)
	for p := range partitions {
		w.c.Eventually(20*time.Second, "digests are equal", func() error {
			return w.c.DigestsEqual(topic, p, int64(w.sent[p]))
		})
	}
}

// checkPartition reads partition p back: record i lies at offset i, for all of them.
func (w *workload) checkPartition(p int32, n int) {
	w.t.Helper()
	cl := w.c.Client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {p: kgo.NewOffset().AtStart()}}), kgo.FetchMaxWait(200*time.Millisecond))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	next := 0
	for next < n {
		fs := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			w.t.Fatalf("partition %d: read %d of %d records", p, next, n)
		}
		for _, r := range fs.Records() {
			want := fmt.Sprintf("%d:%d", p, next)
			if string(r.Value) != want || r.Offset != int64(next) {
				w.t.Fatalf("partition %d: offset %d holds %q, want %q at %d", p, r.Offset, r.Value, want, next)
			}
			w.mu.Lock()
			if got := w.acked[place{p, r.Offset}]; got != want {
				w.t.Errorf("partition %d: offset %d was acknowledged for %q, holds %q", p, r.Offset, got, want)
			}
			w.mu.Unlock()
			next++
		}
	}
}

func noTrouble(t *testing.T, logs string) {
	t.Helper()
	for _, bad := range []string{"quarantined", "level=ERROR"} {
		for line := range strings.SplitSeq(logs, "\n") {
			if strings.Contains(line, bad) {
				t.Errorf("log: %s", line)
			}
		}
	}
}
