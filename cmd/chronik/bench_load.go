package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// sample is one acknowledged record.
type sample struct {
	at   time.Duration // since the load began: when it was due, not when it could be sent
	took time.Duration
}

// load produces to a topic in the background and keeps each record's latency.
type load struct {
	cls   []*kgo.Client
	began time.Time
	bytes int
	stop  context.CancelFunc
	done  chan struct{}

	mu      sync.Mutex
	samples []sample
	failed  atomic.Pointer[error]
}

// loadOptions say what a load does.
type loadOptions struct {
	topic string
	bytes int // a record
	// perSecond records come at fixed times, whatever became of those before;
	// outstanding records a client as fast as they are answered, if perSecond is 0.
	perSecond, outstanding int
	clients                int // 1 when 0; each has its own connections
	batchBytes             int32
}

const poolBytes = 8 << 20

// startLoad begins to produce incompressible records.
func startLoad(ctx context.Context, b *benchCluster, o loadOptions) (*load, error) {
	if o.batchBytes == 0 {
		o.batchBytes = 1 << 20
	}
	l := &load{bytes: o.bytes, done: make(chan struct{})}
	pool := make([]byte, o.bytes+poolBytes)
	_, _ = rand.Read(pool)
	value := func(n int) []byte { at := n * 7919 % poolBytes; return pool[at : at+o.bytes] }
	for range max(1, o.clients) {
		cl, err := b.client(ctx,
			kgo.DefaultProduceTopic(o.topic), kgo.ProducerLinger(0), kgo.ProducerBatchMaxBytes(o.batchBytes),
			kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.MaxBufferedRecords(1<<16), kgo.MaxBufferedBytes(256<<20),
			kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
		if err == nil {
			l.cls = append(l.cls, cl)
			err = warmUp(ctx, cl, o.topic, value)
		}
		if err != nil {
			l.close()
			return nil, err
		}
	}
	ctx, l.stop = context.WithCancel(ctx)
	l.began = time.Now()
	go func() {
		defer close(l.done)
		if o.perSecond > 0 {
			l.paced(ctx, o.perSecond, value)
			return
		}
		var wg sync.WaitGroup
		for _, cl := range l.cls {
			wg.Go(func() { l.closed(ctx, cl, o.outstanding, value) })
		}
		wg.Wait()
	}()
	return l, nil
}

// warmUp has connections, the producer id and every partition's leader ready
// before the clock starts.
func warmUp(ctx context.Context, cl *kgo.Client, topic string, value func(int) []byte) error {
	parts, err := awaitTopic(ctx, cl, topic, false)
	if err != nil {
		return err
	}
	for i := range 2 * parts { // one after the other: the partitioner goes round
		if err := cl.ProduceSync(ctx, &kgo.Record{Value: value(i)[:1]}).FirstErr(); err != nil {
			return fmt.Errorf("produce to %s: %w", topic, err)
		}
	}
	return nil
}

func (l *load) close() {
	for _, cl := range l.cls {
		cl.Close()
	}
}

// produce sends one record that was due at a time and calls after when it is answered.
func (l *load) produce(cl *kgo.Client, value []byte, due time.Time, after func()) {
	cl.Produce(context.Background(), &kgo.Record{Value: value}, func(_ *kgo.Record, err error) {
		if err != nil {
			l.failed.CompareAndSwap(nil, &err)
		}
		l.mu.Lock()
		l.samples = append(l.samples, sample{at: due.Sub(l.began), took: time.Since(due)})
		l.mu.Unlock()
		if after != nil {
			after()
		}
	})
}

func (l *load) paced(ctx context.Context, perSecond int, value func(int) []byte) {
	every := time.Second / time.Duration(perSecond)
	for n := 0; ctx.Err() == nil && l.failed.Load() == nil; n++ {
		due := l.began.Add(time.Duration(n) * every)
		if d := time.Until(due); d > 0 {
			time.Sleep(d)
		}
		l.produce(l.cls[n%len(l.cls)], value(n), due, nil)
	}
}

func (l *load) closed(ctx context.Context, cl *kgo.Client, outstanding int, value func(int) []byte) {
	free := make(chan struct{}, outstanding)
	for n := 0; l.failed.Load() == nil; n++ {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return
		}
		l.produce(cl, value(n), time.Now(), func() { <-free })
	}
}

// now is the load's clock.
func (l *load) now() time.Duration { return time.Since(l.began) }

// end stops producing and waits for the answers under way.
func (l *load) end(ctx context.Context) error {
	l.stop()
	<-l.done
	var errs []error
	for _, cl := range l.cls {
		errs = append(errs, cl.Flush(ctx))
	}
	l.close()
	err := firstErr(errs...)
	if p := l.failed.Load(); p != nil {
		return fmt.Errorf("produce: %w", *p)
	}
	return err
}

// latency is what records took.
type latency struct {
	Records       int     `json:"records"`
	BytesPerSec   float64 `json:"bytes_per_second"`
	RecordsPerSec float64 `json:"records_per_second"`
	P50           float64 `json:"p50_ms"`
	P99           float64 `json:"p99_ms"`
	P999          float64 `json:"p999_ms"`
	Max           float64 `json:"max_ms"`
}

// window is a piece of a load's time.
type window struct{ from, to time.Duration }

// between is what became of the records due in any of the windows.
func (l *load) between(windows ...window) latency {
	l.mu.Lock()
	defer l.mu.Unlock()
	var took []time.Duration
	var length time.Duration
	for _, w := range windows {
		length += w.to - w.from
		for _, s := range l.samples {
			if s.at >= w.from && s.at < w.to {
				took = append(took, s.took)
			}
		}
	}
	v := latency{Records: len(took)}
	if len(took) == 0 || length <= 0 {
		return v
	}
	v.RecordsPerSec = float64(len(took)) / length.Seconds()
	v.BytesPerSec = v.RecordsPerSec * float64(l.bytes)
	slices.Sort(took)
	v.P50, v.P99, v.P999, v.Max = millisAt(took, 0.5), millisAt(took, 0.99), millisAt(took, 0.999), millisAt(took, 1)
	return v
}

// millisAt is the quantile of sorted durations, in milliseconds.
func millisAt(sorted []time.Duration, q float64) float64 {
	return float64(sorted[int(q*float64(len(sorted)-1))].Nanoseconds()) / 1e6
}

// fill produces n bytes as fast as they are taken.
func fill(ctx context.Context, b *benchCluster, topic string, n int64) error {
	const size = 64 << 10
	l, err := startLoad(ctx, b, loadOptions{topic: topic, bytes: size, outstanding: 32})
	if err != nil {
		return err
	}
	err = wait(ctx, 10*time.Minute, "fill "+topic, func() (bool, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if p := l.failed.Load(); p != nil {
			return true, nil
		}
		return int64(len(l.samples))*size >= n, nil
	})
	return firstErr(err, l.end(ctx))
}
