package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	demoProducers = 4
	demoPause     = 20 * time.Millisecond // between two records of a producer
)

// demoLoad writes, and remembers what was acknowledged where.
type demoLoad struct {
	cl *kgo.Client // of the producers in the background
	// bulk writes what node 3 is to miss: the producers' records do not queue behind it.
	bulk *kgo.Client
	quit chan struct{}
	once sync.Once
	wg   sync.WaitGroup

	mu sync.Mutex
	// sums has of each acknowledged record, by offset, the start of its value's SHA-256.
	sums    map[int64]uint64
	bytes   int64
	highest int64 // acknowledged offset
	timings []timing
	failure error
}

// timing is how long a producer in the background waited for an acknowledgement.
type timing struct {
	at   time.Time
	took time.Duration
}

func newDemoLoad(seeds string) (*demoLoad, error) {
	l := &demoLoad{quit: make(chan struct{}), sums: make(map[int64]uint64), highest: -1}
	for _, cl := range []**kgo.Client{&l.cl, &l.bulk} {
		var err error
		if *cl, err = demoClient(seeds, kgo.DefaultProduceTopic(demoTopic), kgo.ProducerLinger(0), kgo.ProducerBatchCompression(kgo.NoCompression()),
			kgo.ProduceRequestTimeout(2*time.Second), kgo.RequestTimeoutOverhead(time.Second)); err != nil {
			l.close()
			return nil, err
		}
	}
	return l, nil
}

func (l *demoLoad) close() {
	_ = l.stop() // told before, if anybody still wants to know
	for _, cl := range []*kgo.Client{l.cl, l.bulk} {
		if cl != nil {
			cl.Close()
		}
	}
}

// one produces a record of incompressible bytes and waits for its acknowledgement.
func (l *demoLoad) one(ctx context.Context, cl *kgo.Client, rng *rand.ChaCha8, n int) (time.Duration, error) {
	value := make([]byte, n)
	_, _ = rng.Read(value) // never fails
	began := time.Now()
	rec, err := cl.ProduceSync(ctx, &kgo.Record{Value: value}).First()
	took := time.Since(began)
	if err != nil {
		return took, fmt.Errorf("produce to %s: %w", demoTopic, err)
	}
	sum := shortSum(value)
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.sums[rec.Offset]; ok {
		return took, fmt.Errorf("%w: offset %d of %s was given to two records", errNotVerified, rec.Offset, demoGroup)
	}
	l.sums[rec.Offset] = sum
	l.bytes += int64(n)
	l.highest = max(l.highest, rec.Offset)
	return took, nil
}

func shortSum(b []byte) uint64 {
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint64(sum[:])
}

func newChaCha() *rand.ChaCha8 {
	var seed [32]byte
	for i := 0; i < len(seed); i += 8 {
		binary.LittleEndian.PutUint64(seed[i:], rand.Uint64())
	}
	return rand.NewChaCha8(seed)
}

// write has n records of size bytes acknowledged, one a request, some requests at a time. What is left after
// patience, on a machine that is too slow for so much, is short.
func (l *demoLoad) write(ctx context.Context, parallel, n, size int, patience time.Duration) error {
	errs := make([]error, parallel)
	began := time.Now()
	var wg sync.WaitGroup
	for i := range parallel {
		wg.Go(func() {
			rng := newChaCha()
			for k := i; k < n && errs[i] == nil; k += parallel {
				long := size
				if time.Since(began) > patience {
					long = min(size, 100)
				}
				_, errs[i] = l.one(ctx, l.bulk, rng, long)
			}
		})
	}
	wg.Wait()
	return firstErr(append(errs, l.failed())...)
}

// start lets the producers run until stop.
func (l *demoLoad) start(ctx context.Context) {
	for range demoProducers {
		l.wg.Go(func() {
			rng := newChaCha()
			tick := time.NewTicker(demoPause)
			defer tick.Stop()
			for {
				select {
				case <-l.quit:
					return
				case <-tick.C:
				}
				took, err := l.one(ctx, l.cl, rng, 100)
				l.mu.Lock()
				if err != nil && l.failure == nil {
					l.failure = err
				}
				l.timings = append(l.timings, timing{at: time.Now(), took: took})
				l.mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
}

// stop waits until what is under way is acknowledged.
func (l *demoLoad) stop() error {
	l.once.Do(func() { close(l.quit) })
	l.wg.Wait()
	return l.failed()
}

func (l *demoLoad) failed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failure
}

// wait lets d pass, unless the demo is over or a producer failed.
func (l *demoLoad) wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return l.failed()
	}
}

// p99 is that of the acknowledgements within the spans of time, from and to in turn, in milliseconds.
func (l *demoLoad) p99(spans ...time.Time) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var in []time.Duration
	for _, t := range l.timings {
		for i := 0; i+1 < len(spans); i += 2 {
			if !t.at.Before(spans[i]) && t.at.Before(spans[i+1]) {
				in = append(in, t.took)
			}
		}
	}
	if len(in) == 0 {
		return 0
	}
	slices.Sort(in)
	return float64(in[(len(in)-1)*99/100].Microseconds()) / 1000
}

// acked is the bytes of the acknowledged values.
func (l *demoLoad) acked() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes
}

// end is the offset after the highest acknowledged.
func (l *demoLoad) end() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.highest + 1
}

func (l *demoLoad) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.sums)
}

// readBack reads the partition from its start and returns how many acknowledged records lie where they
// were acknowledged, with the bytes that were sent. Any other is an error that says which.
func (l *demoLoad) readBack(ctx context.Context, seeds string) (int, error) {
	cl, err := demoClient(seeds, kgo.FetchMaxWait(200*time.Millisecond), kgo.FetchMaxBytes(8<<20),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{demoTopic: {0: kgo.NewOffset().AtStart()}}))
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	rd := demoReading{want: l.sums}
	for end := l.end(); rd.next < end; {
		fs := cl.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return rd.found, fmt.Errorf("%s: read up to offset %d of %d: %w", demoGroup, rd.next, end, err)
		}
		fs.EachError(func(_ string, _ int32, err error) { rd.fail("offset %d: %w", rd.next, err) })
		fs.EachRecord(func(r *kgo.Record) { rd.see(r.Offset, r.Value) })
		if rd.err != nil {
			return rd.found, rd.err
		}
	}
	return rd.found, rd.end()
}

// demoReading judges a partition that is read from its start.
type demoReading struct {
	want  map[int64]uint64 // as demoLoad.sums
	next  int64
	found int
	err   error // the first thing that is wrong
}

func (rd *demoReading) fail(format string, args ...any) {
	if rd.err == nil {
		rd.err = fmt.Errorf(demoGroup+": "+format, args...)
	}
}

// see takes the next record. One that was not acknowledged, and yet was written, is nobody's loss.
func (rd *demoReading) see(offset int64, value []byte) {
	sum, ok := rd.want[offset]
	switch {
	case offset != rd.next:
		rd.fail("offset %d where %d is next", offset, rd.next)
	case ok && sum != shortSum(value):
		rd.fail("offset %d holds other bytes than were acknowledged", offset)
	case ok:
		rd.found++
	}
	rd.next = offset + 1
}

func (rd *demoReading) end() error {
	if rd.found != len(rd.want) {
		rd.fail("%d of %d acknowledged records are there", rd.found, len(rd.want))
	}
	return rd.err
}
