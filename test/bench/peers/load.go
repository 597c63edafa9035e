package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// load is what producers do to a topic. The NATS program takes the same as JSON.
type load struct {
	Seeds       []string      `json:"seeds"`
	Topics      []string      `json:"topics"` // records go to them in turn
	Partitions  int           `json:"partitions"`
	Size        int           `json:"size"`
	Producers   int           `json:"producers"`
	Acks        string        `json:"acks"` // all or 1
	Compression string        `json:"compression"`
	Rate        float64       `json:"rate"` // records a second of all producers; 0: as fast as it goes
	Warm        time.Duration `json:"warm"`
	For         time.Duration `json:"for"`
	Linger      time.Duration `json:"linger"`
	// measuring is called when the warm-up ends, measured when the measured time does.
	measuring, measured func()
}

// loaded is what came of it in the measured time.
type loaded struct {
	Records float64 `json:"records_per_second"`
	Bytes   float64 `json:"bytes_per_second"`
	P50     float64 `json:"p50_ms"`
	P90     float64 `json:"p90_ms"`
	P99     float64 `json:"p99_ms"`
	P999    float64 `json:"p999_ms"`
}

const (
	batchBytes    = 256 << 10 // largest batch of a partition
	bufferBytes   = 32 << 20  // outstanding, of all producers: the default of Kafka's own client
	bufferRecords = 256 << 10
	lingerTime    = 5 * time.Millisecond
	inFlight      = 5  // requests to a broker: franz-go's value with idempotence
	sampled       = 16 // of so many records at full load, one is timed
	catchUpLimit  = 10 * time.Second
	poolBytes     = 8 << 20
)

// values are windows into random bytes: incompressible and distinct. With a codec,
// half of each record is random and half is text, so that there is work for it.
type values struct {
	pool []byte
	size int
}

func newValues(size int, compressible bool) *values {
	v := &values{pool: make([]byte, poolBytes+size), size: size}
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(v.pool)
	if compressible {
		const piece = 32
		for at := 0; at+2*piece <= len(v.pool); at += 2 * piece {
			copy(v.pool[at:at+piece], "the quick brown fox jumps over a")
		}
	}
	return v
}

func (v *values) at(n int) []byte {
	from := (n * 7919) % poolBytes
	return v.pool[from : from+v.size]
}

// stamped is a copy that begins with the time at which it should have been sent.
func (v *values) stamped(n int, intended time.Time) []byte {
	b := append([]byte(nil), v.at(n)...)
	if len(b) >= 8 {
		binary.BigEndian.PutUint64(b, uint64(intended.UnixNano()))
	}
	return b
}

func (l *load) options() ([]kgo.Opt, error) {
	opts := []kgo.Opt{
		kgo.ProducerLinger(l.Linger), kgo.ProducerBatchMaxBytes(batchBytes), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()),
		kgo.MaxBufferedBytes(bufferBytes / l.Producers), kgo.MaxBufferedRecords(max(64, bufferRecords/l.Producers)),
	}
	switch l.Compression {
	case "", "none":
		opts = append(opts, kgo.ProducerBatchCompression(kgo.NoCompression()))
	case "lz4":
		opts = append(opts, kgo.ProducerBatchCompression(kgo.Lz4Compression()))
	case "zstd":
		opts = append(opts, kgo.ProducerBatchCompression(kgo.ZstdCompression()))
	default:
		return nil, fmt.Errorf("compression %q", l.Compression)
	}
	if l.Acks == "1" {
		opts = append(opts, kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite(), kgo.MaxProduceRequestsInflightPerBroker(inFlight))
	}
	return opts, nil
}

// run is one load on its way.
type run struct {
	load
	began   time.Time
	acks    atomic.Int64 // records acknowledged while it was measured
	open    atomic.Bool
	over    atomic.Bool // errors are those of giving up
	late    histogram
	failure atomic.Pointer[error]
	values  *values
}

func (kafkaPeer) produce(ctx context.Context, _ *cluster, l load) (*loaded, error) {
	if l.Producers == 0 {
		l.Producers = 1
	}
	r := &run{load: l, values: newValues(l.Size, l.Compression != "" && l.Compression != "none")}
	opts, err := l.options()
	if err != nil {
		return nil, err
	}
	var clients []*kgo.Client
	defer func() {
		for _, cl := range clients {
			cl.Close()
		}
	}()
	for i := range l.Producers {
		cl, err := client(l.Seeds, opts...)
		if err != nil {
			return nil, err
		}
		clients = append(clients, cl)
		// Connections, producer ids and partitions are there before the clock starts.
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: l.Topics[i%len(l.Topics)], Value: r.values.at(i)}).FirstErr(); err != nil {
			return nil, fmt.Errorf("first record: %w", err)
		}
	}
	return r.all(ctx, clients)
}

func (r *run) all(ctx context.Context, clients []*kgo.Client) (*loaded, error) {
	r.began = time.Now()
	sending, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	for i, cl := range clients {
		if r.Rate > 0 {
			wg.Go(func() { r.paced(sending, cl, i) })
		} else {
			wg.Go(func() { r.full(sending, cl, i) })
		}
	}
	err := pause(ctx, time.Until(r.began.Add(r.Warm)))
	if r.measuring != nil {
		r.measuring()
	}
	r.open.Store(true)
	from := time.Now()
	if err == nil {
		err = pause(ctx, time.Until(r.began.Add(r.Warm+r.For)))
	}
	r.open.Store(false)
	took := time.Since(from).Seconds()
	n := float64(r.acks.Load())
	if r.measured != nil {
		r.measured()
	}
	if r.Rate == 0 { // what is outstanding does not count any more
		r.over.Store(true)
		stop()
	}
	wg.Wait()
	for _, cl := range clients {
		if r.Rate > 0 {
			settle, cancel := context.WithTimeout(ctx, time.Minute)
			err = errors.Join(err, cl.Flush(settle))
			cancel()
		}
	}
	if failed := r.failure.Load(); failed != nil {
		err = errors.Join(err, *failed)
	}
	if err != nil {
		return nil, err
	}
	ms := func(q float64) float64 { return float64(r.late.quantile(q).Microseconds()) / 1e3 }
	return &loaded{Records: n / took, Bytes: n * float64(r.Size) / took, P50: ms(0.5), P90: ms(0.9), P99: ms(0.99), P999: ms(0.999)}, nil
}

func (r *run) acked(err error) bool {
	if err != nil {
		if !r.over.Load() && !errors.Is(err, context.Canceled) {
			r.failure.CompareAndSwap(nil, &err)
		}
		return false
	}
	if r.open.Load() {
		r.acks.Add(1)
		return true
	}
	return false
}

// sender is what a client is to a load.
type sender interface {
	Produce(ctx context.Context, r *kgo.Record, promise func(*kgo.Record, error))
}

// full sends as fast as the client takes records. One in sampled is timed: what a
// full queue adds is in it.
func (r *run) full(ctx context.Context, to sender, producer int) {
	count := func(_ *kgo.Record, err error) { r.acked(err) }
	for n := 0; ctx.Err() == nil && r.failure.Load() == nil; n++ {
		rec := &kgo.Record{Topic: r.Topics[n%len(r.Topics)], Value: r.values.at(n + producer*104729)}
		if n%sampled != 0 {
			to.Produce(ctx, rec, count)
			continue
		}
		sent := time.Now()
		to.Produce(ctx, rec, func(_ *kgo.Record, err error) {
			if r.acked(err) {
				r.late.add(time.Since(sent))
			}
		})
	}
}

// paced sends at a fixed rate. A record's latency counts from the moment at which it
// should have been sent, however late the sender was: else a server that stalls
// would be asked less while it stalls (coordinated omission).
func (r *run) paced(ctx context.Context, to sender, producer int) {
	every := time.Duration(float64(time.Second) * float64(r.Producers) / r.Rate)
	from, end := r.began.Add(r.Warm), r.began.Add(r.Warm+r.For)
	const nap = 500 * time.Microsecond
	for n := 0; r.failure.Load() == nil && ctx.Err() == nil; n++ {
		due := r.began.Add(time.Duration(n) * every)
		if !due.Before(end) {
			return
		}
		if d := time.Until(due); d > 0 {
			time.Sleep(max(d, nap))
		} else if time.Since(end) > catchUpLimit {
			r.late.add(time.Since(due)) // never sent: it is at least this late
			continue
		}
		counts := !due.Before(from)
		to.Produce(ctx, &kgo.Record{Topic: r.Topics[n%len(r.Topics)], Value: r.values.stamped(n+producer*104729, due)}, func(_ *kgo.Record, err error) {
			if r.acked(err); err == nil && counts {
				r.late.add(time.Since(due))
			}
		})
	}
}
