// Command nats is a NATS JetStream server and a load for it, for ../peers. It is a
// module of its own: Chronik does not depend on NATS.
//
//	nats serve FILE | version
//	nats ready|create|produce        the question as JSON on standard input
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// load has the fields of ../peers that mean something here.
type load struct {
	Seeds      []string      `json:"seeds"`
	Topics     []string      `json:"topics"`
	Partitions int           `json:"partitions"`
	Size       int           `json:"size"`
	Producers  int           `json:"producers"`
	Rate       float64       `json:"rate"`
	Warm       time.Duration `json:"warm"`
	For        time.Duration `json:"for"`
}

type loaded struct {
	Records float64 `json:"records_per_second"`
	Bytes   float64 `json:"bytes_per_second"`
	P50     float64 `json:"p50_ms"`
	P90     float64 `json:"p90_ms"`
	P99     float64 `json:"p99_ms"`
	P999    float64 `json:"p999_ms"`
}

const (
	bufferBytes   = 32 << 20 // outstanding, as with the other peers
	bufferRecords = 16 << 10 // more and the server answers late enough to time out
	poolBytes     = 8 << 20
	nap           = 500 * time.Microsecond
	catchUpLimit  = 10 * time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "nats:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		return serve(ctx, args[1])
	case len(args) == 1 && args[0] == "version":
		fmt.Println(server.VERSION)
		return nil
	case len(args) != 1:
		return errors.New("nats serve FILE | version | ready | create | produce")
	}
	var l load
	if err := json.NewDecoder(os.Stdin).Decode(&l); err != nil {
		return err
	}
	nc, js, err := connect(l.Seeds)
	if err != nil {
		return err
	}
	defer nc.Close()
	switch args[0] {
	case "ready":
		return ready(ctx, js)
	case "create":
		return create(ctx, js, &l)
	case "produce":
		got, err := produce(ctx, &l)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(got)
	}
	return fmt.Errorf("no verb %q", args[0])
}

func serve(ctx context.Context, file string) error {
	opts, err := server.ProcessConfigFile(file)
	if err != nil {
		return err
	}
	opts.JetStream, opts.NoSigs = true, true
	s, err := server.NewServer(opts)
	if err != nil {
		return err
	}
	s.ConfigureLogger()
	s.Start()
	<-ctx.Done()
	s.Shutdown()
	return nil
}

func connect(seeds []string) (*nats.Conn, jetstream.JetStream, error) {
	nc, err := nats.Connect("nats://"+strings.Join(seeds, ",nats://"), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(bufferRecords))
	return nc, js, err
}

// ready waits until the cluster has a leader that makes streams of three replicas.
func ready(ctx context.Context, js jetstream.JetStream) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		// A request that comes before the leader does is never answered.
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := js.CreateStream(try, jetstream.StreamConfig{Name: "ready", Subjects: []string{"ready"}, Replicas: 3})
		if err == nil {
			err = js.DeleteStream(try, "ready")
		}
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func subject(topic string, partition int) string { return fmt.Sprintf("%s.%d", topic, partition) }

func create(ctx context.Context, js jetstream.JetStream, l *load) error {
	for _, topic := range l.Topics {
		for i := range l.Partitions {
			_, err := js.CreateStream(ctx, jetstream.StreamConfig{
				Name: fmt.Sprintf("%s-%d", topic, i), Subjects: []string{subject(topic, i)}, Storage: jetstream.FileStorage, Replicas: 3,
			})
			if err != nil {
				return fmt.Errorf("stream %s-%d: %w", topic, i, err)
			}
		}
	}
	return nil
}

// producing is one load on its way.
type producing struct {
	*load
	pool     []byte
	began    time.Time
	open     atomic.Bool
	measured atomic.Int64
	mu       sync.Mutex
	late     []time.Duration
}

func produce(ctx context.Context, l *load) (*loaded, error) {
	l.Producers = max(1, l.Producers)
	p := &producing{load: l, pool: make([]byte, poolBytes+l.Size), began: time.Now()}
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(p.pool)
	errs := make([]error, l.Producers)
	var wg sync.WaitGroup
	for i := range l.Producers {
		wg.Go(func() { errs[i] = p.producer(ctx, i) })
	}
	time.Sleep(l.Warm)
	p.open.Store(true)
	from := time.Now()
	time.Sleep(l.For)
	p.open.Store(false)
	took, n := time.Since(from).Seconds(), float64(p.measured.Load())
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	slices.Sort(p.late)
	at := func(q float64) float64 {
		if len(p.late) == 0 {
			return 0
		}
		return float64(p.late[int(q*float64(len(p.late)-1))].Microseconds()) / 1e3
	}
	return &loaded{Records: n / took, Bytes: n * float64(l.Size) / took, P50: at(0.5), P90: at(0.9), P99: at(0.99), P999: at(0.999)}, nil
}

// sent is a published record that is not yet answered.
type sent struct {
	future jetstream.PubAckFuture
	due    time.Time
	counts bool
}

// producer publishes, with a bound on what is outstanding; a second goroutine
// takes the answers in order.
func (p *producing) producer(ctx context.Context, i int) error {
	nc, js, err := connect(p.Seeds)
	if err != nil {
		return err
	}
	defer nc.Close()
	answers := make(chan sent, max(16, min(bufferRecords, bufferBytes/p.Size)/p.Producers))
	var failure atomic.Pointer[error]
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := range answers {
			select {
			case <-s.future.Ok():
				p.acked(s)
			case err := <-s.future.Err():
				failure.CompareAndSwap(nil, &err)
			}
		}
	}()
	err = p.publish(ctx, js, i, answers, &failure)
	close(answers)
	<-done
	if failed := failure.Load(); failed != nil {
		err = errors.Join(err, *failed)
	}
	return err
}

func (p *producing) publish(ctx context.Context, js jetstream.JetStream, producer int, answers chan<- sent, failure *atomic.Pointer[error]) error {
	every := time.Duration(0)
	if p.Rate > 0 {
		every = time.Duration(float64(time.Second) * float64(p.Producers) / p.Rate)
	}
	from, end := p.began.Add(p.Warm), p.began.Add(p.Warm+p.For)
	for n := 0; ctx.Err() == nil && failure.Load() == nil; n++ {
		due := time.Now()
		if every > 0 {
			due = p.began.Add(time.Duration(n) * every)
			if d := time.Until(due); d > 0 {
				time.Sleep(max(d, nap))
			}
		}
		if !due.Before(end) || time.Since(end) > catchUpLimit {
			return p.unsent(n, every, end)
		}
		at := ((n + producer*104729) * 7919) % poolBytes
		future, err := js.PublishAsync(subject(p.Topics[n%len(p.Topics)], n%p.Partitions), p.pool[at:at+p.Size])
		if err != nil {
			return err
		}
		answers <- sent{future, due, !due.Before(from)}
	}
	return nil
}

// unsent counts what should have been sent and was not: it is at least this late.
func (p *producing) unsent(n int, every time.Duration, end time.Time) error {
	if every == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for due := p.began.Add(time.Duration(n) * every); due.Before(end); due = due.Add(every) {
		p.late = append(p.late, time.Since(due))
	}
	return nil
}

func (p *producing) acked(s sent) {
	if p.open.Load() {
		p.measured.Add(1)
	}
	if s.counts {
		p.mu.Lock()
		p.late = append(p.late, time.Since(s.due))
		p.mu.Unlock()
	}
}
