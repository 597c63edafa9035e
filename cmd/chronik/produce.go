package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"
)

type produceFlags struct {
	b            bootstrap
	file         string
	acks         string
	linger       time.Duration
	batchRecords int
	keySeparator string
	compression  string
	idempotent   bool
	quiet        bool
}

func newProduce() *cobra.Command {
	var f produceFlags
	c := &cobra.Command{
		Use: "produce TOPIC", Short: "produce one record a line from stdin or a file", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return f.run(c, args[0]) },
	}
	f.b.register(c)
	c.Flags().StringVar(&f.file, "file", "", "read lines from this file instead of stdin")
	c.Flags().StringVar(&f.acks, "acks", "all", "all, 1 or 0")
	c.Flags().DurationVar(&f.linger, "linger", 5*time.Millisecond, "how long a batch waits for more records")
	c.Flags().IntVar(&f.batchRecords, "batch-records", 0, "send after this many records and wait for them (1: one record a request; 0: by size and linger)")
	c.Flags().StringVar(&f.keySeparator, "key-separator", "", "what lies before the first occurrence is the key")
	c.Flags().StringVar(&f.compression, "compression", "none", "none, gzip, snappy, lz4 or zstd")
	c.Flags().BoolVar(&f.idempotent, "idempotent", true, "let the broker drop retried duplicates (needs acks all)")
	c.Flags().BoolVar(&f.quiet, "quiet", false, "no progress and no summary")
	return c
}

func codecOf(name string) (kgo.CompressionCodec, error) {
	switch name {
	case "none", "":
		return kgo.NoCompression(), nil
	case "gzip":
		return kgo.GzipCompression(), nil
	case "snappy":
		return kgo.SnappyCompression(), nil
	case "lz4":
		return kgo.Lz4Compression(), nil
	case "zstd":
		return kgo.ZstdCompression(), nil
	}
	return kgo.NoCompression(), usagef("unknown compression %q, want none, gzip, snappy, lz4 or zstd", name)
}

func (f *produceFlags) options() ([]kgo.Opt, error) {
	codec, err := codecOf(f.compression)
	if err != nil {
		return nil, err
	}
	opts := []kgo.Opt{
		kgo.ProducerLinger(f.linger), kgo.ProducerBatchCompression(codec), kgo.ProducerBatchMaxBytes(2 << 20),
		kgo.MaxBufferedRecords(100_000), kgo.RecordDeliveryTimeout(2 * time.Minute),
	}
	switch f.acks {
	case "all", "-1":
		opts = append(opts, kgo.RequiredAcks(kgo.AllISRAcks()))
		if !f.idempotent {
			opts = append(opts, kgo.DisableIdempotentWrite())
		}
	case "1":
		opts = append(opts, kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite())
	case "0":
		opts = append(opts, kgo.RequiredAcks(kgo.NoAck()), kgo.DisableIdempotentWrite())
	default:
		return nil, usagef("unknown acks %q, want all, 1 or 0", f.acks)
	}
	return opts, nil
}

func (f *produceFlags) run(c *cobra.Command, topic string) error {
	in := c.InOrStdin()
	if f.file != "" {
		file, err := os.Open(f.file)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }() // read only
		in = file
	}
	opts, err := f.options()
	if err != nil {
		return err
	}
	cl, err := f.b.client(c.Context(), append(opts, kgo.DefaultProduceTopic(topic))...)
	if err != nil {
		return err
	}
	defer cl.Close()
	p := &producing{cl: cl, every: f.batchRecords, start: time.Now()}
	if !f.quiet {
		stop := p.progress(c.ErrOrStderr())
		defer stop()
	}
	err = p.lines(c.Context(), in, f.keySeparator)
	if flushErr := cl.Flush(c.Context()); err == nil {
		err = flushErr
	}
	if failed := p.failure.Load(); failed != nil {
		err = fmt.Errorf("produce to %s: %w", topic, *failed)
	}
	if !f.quiet {
		p.summary(c.ErrOrStderr())
	}
	return err
}

// producing counts what one produce command sends and what was acknowledged.
type producing struct {
	cl      *kgo.Client
	every   int
	start   time.Time
	sent    int64
	acked   atomic.Int64
	bytes   atomic.Int64
	failure atomic.Pointer[error]

	mu        sync.Mutex
	latencies []time.Duration // of at most the first million records
}

func (p *producing) lines(ctx context.Context, in io.Reader, sep string) error {
	r := bufio.NewReaderSize(in, 1<<20)
	for {
		line, err := r.ReadBytes('\n')
		if len(line) > 0 {
			if line[len(line)-1] == '\n' {
				line = line[:len(line)-1]
			}
			if perr := p.one(ctx, line, sep); perr != nil {
				return perr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if p.failure.Load() != nil {
			return nil // reported by the caller
		}
	}
}

func (p *producing) one(ctx context.Context, line []byte, sep string) error {
	rec := &kgo.Record{Value: line}
	if sep != "" {
		if k, v, ok := strings.Cut(string(line), sep); ok {
			rec.Key, rec.Value = []byte(k), []byte(v)
		}
	}
	began := time.Now()
	p.cl.Produce(ctx, rec, func(rec *kgo.Record, err error) {
		if err != nil {
			p.failure.CompareAndSwap(nil, &err)
			return
		}
		p.acked.Add(1)
		p.bytes.Add(int64(len(rec.Key) + len(rec.Value)))
		p.mu.Lock()
		if len(p.latencies) < 1_000_000 {
			p.latencies = append(p.latencies, time.Since(began))
		}
		p.mu.Unlock()
	})
	p.sent++
	if p.every > 0 && p.sent%int64(p.every) == 0 {
		return p.cl.Flush(ctx)
	}
	return nil
}

// progress prints a line every two seconds until the returned function is called.
func (p *producing) progress(w io.Writer) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(2 * time.Second)
		defer t.Stop()
		for {
			select {
			case <-done:
				return
			case <-t.C:
				fmt.Fprintf(w, "%d records, %.1f MB acknowledged\n", p.acked.Load(), float64(p.bytes.Load())/1e6)
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

func (p *producing) summary(w io.Writer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	slices.Sort(p.latencies)
	at := func(q float64) float64 {
		if len(p.latencies) == 0 {
			return 0
		}
		return float64(p.latencies[int(q*float64(len(p.latencies)-1))].Microseconds()) / 1000
	}
	fmt.Fprintf(w, "records=%d bytes=%d seconds=%.3f p50=%.2fms p99=%.2fms\n",
		p.acked.Load(), p.bytes.Load(), time.Since(p.start).Seconds(), at(0.5), at(0.99))
}
