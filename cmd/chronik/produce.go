package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
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
		Long: `Produce one record a line from stdin or a file; the last line needs no newline.

An unknown topic comes into being if the cluster's topic.auto_create says so. It ends with a summary on stderr, and with exit
code 1 unless every record was acknowledged. Ctrl-C stops reading and waits up to five seconds for what is under way.`,
		RunE: func(c *cobra.Command, args []string) error {
			opts, err := f.options(c)
			if err != nil {
				return err
			}
			return f.run(c, args[0], opts)
		},
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

// maxBuffered bounds the bytes of records that are not acknowledged yet.
const maxBuffered = 64 << 20

func (f *produceFlags) options(c *cobra.Command) ([]kgo.Opt, error) {
	codec, err := codecOf(f.compression)
	if err != nil {
		return nil, err
	}
	if f.linger < 0 || f.linger > time.Minute {
		return nil, usagef("--linger %v: want 0s to 1m", f.linger)
	}
	if f.batchRecords < 0 {
		return nil, usagef("--batch-records %d: want 0 or higher", f.batchRecords)
	}
	opts := []kgo.Opt{
		kgo.ProducerLinger(f.linger), kgo.ProducerBatchCompression(codec),
		kgo.MaxBufferedRecords(100_000), kgo.RecordDeliveryTimeout(2 * time.Minute),
	}
	acks := kgo.AllISRAcks()
	switch f.acks {
	case "all", "-1":
		if f.idempotent {
			return append(opts, kgo.RequiredAcks(acks)), nil
		}
	case "1":
		acks = kgo.LeaderAck()
	case "0":
		acks = kgo.NoAck()
	default:
		return nil, usagef("unknown acks %q, want all, 1 or 0", f.acks)
	}
	if f.idempotent && c.Flags().Changed("idempotent") {
		return nil, usagef("--idempotent needs --acks all")
	}
	return append(opts, kgo.RequiredAcks(acks), kgo.DisableIdempotentWrite()), nil
}

// grace is how long an interrupted produce waits for what is under way.
const grace = 5 * time.Second

func (f *produceFlags) run(c *cobra.Command, topic string, opts []kgo.Opt) error {
	in := c.InOrStdin()
	if f.file != "" {
		file, err := os.Open(f.file)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }() // read only
		in = file
	}
	limit, err := f.prepare(c.Context(), topic)
	if err != nil {
		return err
	}
	cl, err := f.b.client(c.Context(), append(opts, kgo.DefaultProduceTopic(topic),
		kgo.ProducerBatchMaxBytes(int32(limit)), kgo.MaxBufferedBytes(max(maxBuffered, 2*limit)))...)
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.Context()))
	defer cancel()
	defer context.AfterFunc(c.Context(), func() { time.AfterFunc(grace, cancel) })()
	p := &producing{cl: cl, topic: topic, every: f.batchRecords, sep: []byte(f.keySeparator), limit: limit, start: time.Now(), failed: make(chan struct{})}
	stop := func() {}
	if !f.quiet {
		stop = p.progress(c.ErrOrStderr())
	}
	err = p.all(ctx, c.Context().Done(), in)
	if flushErr := cl.Flush(ctx); err == nil {
		err = flushErr
	}
	stop()
	if failed := p.failure.Load(); failed != nil {
		err = *failed
	}
	if !f.quiet {
		p.summary(c.ErrOrStderr())
	}
	return err
}

// prepare waits until the topic can be written and returns the largest batch it takes.
func (f *produceFlags) prepare(ctx context.Context, topic string) (int, error) {
	cl, err := f.b.client(ctx)
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	if _, err := awaitTopic(ctx, cl, topic, true); err != nil {
		return 0, err
	}
	limit := 1_000_012 // franz-go's default, which every broker's default takes
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	configs, err := kadm.NewClient(cl).DescribeTopicConfigs(ctx, topic)
	if err != nil {
		return 0, fmt.Errorf("topic %s: %w", topic, err)
	}
	for _, rc := range configs {
		for _, cfg := range rc.Configs {
			if n, err := strconv.Atoi(cfg.MaybeValue()); cfg.Key == "max.message.bytes" && err == nil {
				limit = min(max(n, 512), 64<<20)
			}
		}
	}
	return limit, nil
}

// producing counts what one produce command sends and what was acknowledged.
type producing struct {
	cl    *kgo.Client
	topic string
	every int
	sep   []byte
	limit int // bytes of a batch, and so of a line
	start time.Time

	sent    atomic.Int64
	acked   atomic.Int64
	bytes   atomic.Int64
	failure atomic.Pointer[error]
	failed  chan struct{} // closed with the first failure

	mu        sync.Mutex
	latencies []time.Duration // of at most the first million records
}

func (p *producing) fail(err error) {
	if p.failure.CompareAndSwap(nil, &err) {
		close(p.failed)
	}
}

// chunk is lines that were read together. The last one of an input has its end.
type chunk struct {
	lines [][]byte
	err   error
}

// all produces the lines of in until its end, an interrupt or a failure. Reading
// has a goroutine of its own, because a read from a terminal cannot be stopped.
func (p *producing) all(ctx context.Context, interrupt <-chan struct{}, in io.Reader) error {
	chunks := make(chan chunk, 4)
	done := make(chan struct{})
	defer close(done)
	go p.read(in, chunks, done)
	for {
		var ch chunk
		select {
		case <-interrupt:
			return errInterrupted
		case <-p.failed:
			return nil // reported by the caller
		case ch = <-chunks:
		}
		for _, line := range ch.lines {
			if err := p.one(ctx, line); err != nil {
				return err
			}
		}
		if errors.Is(ch.err, io.EOF) {
			return nil
		}
		if ch.err != nil {
			return ch.err
		}
	}
}

func (p *producing) read(in io.Reader, chunks chan<- chunk, done <-chan struct{}) {
	r := bufio.NewReaderSize(in, 1<<20)
	for n := int64(1); ; {
		var ch chunk
		for len(ch.lines) < 1024 && ch.err == nil {
			line, err := p.line(r, n)
			if line != nil {
				n++
				ch.lines = append(ch.lines, line)
			}
			if ch.err = err; r.Buffered() == 0 {
				break // the next read may wait
			}
		}
		select {
		case chunks <- ch:
		case <-done:
			return
		}
		if ch.err != nil {
			return
		}
	}
}

// line reads the n-th line without its newline; nil at the end of the input. No
// more is held than a record may have.
func (p *producing) line(r *bufio.Reader, n int64) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > p.limit {
			return nil, withHint(fmt.Errorf("line %d is longer than the %d bytes that topic %s takes", n, p.limit, p.topic),
				fmt.Sprintf("'chronik topic alter %s --config max.message.bytes=N' allows more", p.topic))
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err == nil:
			return line[:len(line)-1], nil
		}
		return line, err // nil, or a last line without a newline
	}
}

func (p *producing) one(ctx context.Context, line []byte) error {
	rec := &kgo.Record{Value: line}
	if len(p.sep) > 0 {
		if k, v, ok := bytes.Cut(line, p.sep); ok {
			rec.Key, rec.Value = k, v
		}
	}
	n := p.sent.Add(1)
	began := time.Now()
	p.cl.Produce(ctx, rec, func(rec *kgo.Record, err error) {
		if err != nil {
			p.fail(fmt.Errorf("produce to %s: line %d: %w", p.topic, n, err))
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
	if p.every > 0 && n%int64(p.every) == 0 {
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
		for before := int64(0); ; {
			select {
			case <-done:
				return
			case <-t.C:
			}
			acked, sent := p.acked.Load(), p.sent.Load()
			stalled := ""
			if acked == before && sent > acked {
				stalled = fmt.Sprintf(", %d wait and nothing is acknowledged", sent-acked)
			}
			before = acked
			fmt.Fprintf(w, "%d records, %.1f MB acknowledged%s\n", acked, float64(p.bytes.Load())/1e6, stalled)
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
