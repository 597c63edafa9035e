package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"
)

func newBench() *cobra.Command {
	c := &cobra.Command{Use: "bench", Short: "measure the cluster and what the machine allows", Args: cobra.NoArgs}
	c.AddCommand(newBenchLimit(), newBenchProduce(), newBenchLoop(), newBenchSnapshot())
	return c
}

type produceResult struct {
	Records          int64   `json:"records"`
	Bytes            int64   `json:"bytes"`
	Seconds          float64 `json:"seconds"`
	BytesPerSecond   float64 `json:"bytes_per_second"`
	RecordsPerSecond float64 `json:"records_per_second"`
	P50Millis        float64 `json:"p50_ms"`
	P99Millis        float64 `json:"p99_ms"`
	P999Millis       float64 `json:"p999_ms"`
}

type benchProduce struct {
	b       bootstrap
	seconds int
	size    int
	single  bool
	acks    string
	linger  time.Duration
	batch   int32
	asJSON  bool
}

// newBenchProduce loads a topic with incompressible records: as many as it takes,
// or one outstanding at a time.
func newBenchProduce() *cobra.Command {
	var f benchProduce
	c := &cobra.Command{
		Use: "produce TOPIC", Short: "throughput, or the latency of one record outstanding", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := f.run(c.Context(), args[0])
			if err != nil {
				return err
			}
			if f.asJSON {
				return json.NewEncoder(c.OutOrStdout()).Encode(r)
			}
			fmt.Fprintf(c.OutOrStdout(), "%d records, %.1f MB/s, %.0f records/s, p50 %.2f ms, p99 %.2f ms, p99.9 %.2f ms\n",
				r.Records, r.BytesPerSecond/1e6, r.RecordsPerSecond, r.P50Millis, r.P99Millis, r.P999Millis)
			return nil
		},
	}
	f.b.register(c)
	c.Flags().IntVar(&f.seconds, "seconds", 10, "how long")
	c.Flags().IntVar(&f.size, "bytes", 1024, "bytes a record")
	c.Flags().BoolVar(&f.single, "single", false, "one record outstanding at a time")
	c.Flags().StringVar(&f.acks, "acks", "all", "all or 1")
	c.Flags().DurationVar(&f.linger, "linger", 5*time.Millisecond, "how long a batch waits for more records")
	c.Flags().Int32Var(&f.batch, "batch-bytes", 256<<10, "largest batch")
	c.Flags().BoolVar(&f.asJSON, "json", false, "print JSON")
	return c
}

func (f *benchProduce) run(ctx context.Context, topic string) (*produceResult, error) {
	linger := f.linger
	if f.single {
		linger = 0
	}
	opts := []kgo.Opt{
		kgo.DefaultProduceTopic(topic), kgo.ProducerLinger(linger), kgo.ProducerBatchMaxBytes(f.batch),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.MaxBufferedRecords(64 << 10), kgo.MaxBufferedBytes(64 << 20),
		kgo.RecordPartitioner(kgo.RoundRobinPartitioner()),
	}
	if f.acks == "1" {
		opts = append(opts, kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite())
	}
	cl, err := f.b.client(ctx, opts...)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	pool := make([]byte, f.size+(8<<20)) // records are windows into random bytes: incompressible, and distinct
	_, _ = rand.Read(pool)
	value := func(n int) []byte { at := (n * 7919) % (8 << 20); return pool[at : at+f.size] }
	for i := range 64 { // connections, producer id and partitions are ready before the clock starts
		if err := cl.ProduceSync(ctx, &kgo.Record{Value: value(i)}).FirstErr(); err != nil {
			return nil, err
		}
	}
	end := time.Now().Add(time.Duration(f.seconds) * time.Second)
	began := time.Now()
	took, err := f.load(ctx, cl, value, end)
	if err != nil {
		return nil, err
	}
	seconds := time.Since(began).Seconds()
	slices.Sort(took)
	at := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))].Microseconds()) / 1e3 }
	n := int64(len(took))
	return &produceResult{
		Records: n, Bytes: n * int64(f.size), Seconds: seconds, BytesPerSecond: float64(n) * float64(f.size) / seconds,
		RecordsPerSecond: float64(n) / seconds, P50Millis: at(0.5), P99Millis: at(0.99), P999Millis: at(0.999),
	}, nil
}

// load produces until end and returns the latency of every record.
func (f *benchProduce) load(ctx context.Context, cl *kgo.Client, value func(int) []byte, end time.Time) ([]time.Duration, error) {
	var mu sync.Mutex
	var took []time.Duration
	var failure atomic.Pointer[error]
	for n := 0; time.Now().Before(end) && failure.Load() == nil; n++ {
		t := time.Now()
		rec := &kgo.Record{Value: value(n)}
		if f.single {
			if err := cl.ProduceSync(ctx, rec).FirstErr(); err != nil {
				return nil, err
			}
			took = append(took, time.Since(t))
			continue
		}
		cl.Produce(ctx, rec, func(_ *kgo.Record, err error) {
			if err != nil {
				failure.CompareAndSwap(nil, &err)
				return
			}
			d := time.Since(t)
			mu.Lock()
			took = append(took, d)
			mu.Unlock()
		})
	}
	if err := cl.Flush(ctx); err != nil {
		return nil, err
	}
	if err := failure.Load(); err != nil {
		return nil, *err
	}
	if len(took) == 0 {
		return nil, fmt.Errorf("nothing was produced")
	}
	return took, nil
}
