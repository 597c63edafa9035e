package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// readers are consumers that each read all partitions, without a group.
type readers struct {
	bytes   atomic.Int64
	records atomic.Int64
	late    histogram
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	failure atomic.Pointer[error]
}

func consumer(l load, from kgo.Offset) (*kgo.Client, error) {
	parts := map[string]map[int32]kgo.Offset{}
	for _, topic := range l.Topics {
		parts[topic] = map[int32]kgo.Offset{}
		for i := range l.Partitions {
			parts[topic][int32(i)] = from
		}
	}
	return client(l.Seeds, kgo.ConsumePartitions(parts))
}

// follow starts n consumers at the end. They count the time from a record's stamp,
// once the load's warm-up is over.
func follow(ctx context.Context, l load, n int) (*readers, error) {
	ctx, cancel := context.WithCancel(ctx)
	r := &readers{cancel: cancel}
	counts := time.Now().Add(l.Warm)
	for range n {
		cl, err := consumer(l, kgo.NewOffset().AtEnd())
		if err != nil {
			return nil, errors.Join(err, r.stop())
		}
		r.wg.Go(func() {
			defer cl.Close()
			r.read(ctx, cl, func(rec *kgo.Record) {
				if now := time.Now(); l.Rate > 0 && now.After(counts) && len(rec.Value) >= 8 {
					r.late.add(now.Sub(time.Unix(0, int64(binary.BigEndian.Uint64(rec.Value)))))
				}
			})
		})
	}
	return r, nil
}

// reread reads from the beginning and, when it is at the end, from the beginning again.
func reread(ctx context.Context, l load) (*readers, error) {
	ctx, cancel := context.WithCancel(ctx)
	r := &readers{cancel: cancel}
	r.wg.Go(func() {
		for ctx.Err() == nil {
			cl, err := consumer(l, kgo.NewOffset().AtStart())
			if err != nil {
				r.failure.CompareAndSwap(nil, &err)
				return
			}
			turn, done := context.WithCancel(ctx)
			r.read(turn, cl, func(rec *kgo.Record) {
				if time.Since(rec.Timestamp) < time.Second { // caught up with the producer
					done()
				}
			})
			done()
			cl.Close()
		}
	})
	return r, nil
}

func (r *readers) read(ctx context.Context, cl *kgo.Client, each func(*kgo.Record)) {
	for ctx.Err() == nil {
		fs := cl.PollFetches(ctx)
		for _, e := range fs.Errors() {
			if ctx.Err() == nil {
				err := fmt.Errorf("consume %s-%d: %w", e.Topic, e.Partition, e.Err)
				r.failure.CompareAndSwap(nil, &err)
				return
			}
		}
		fs.EachRecord(func(rec *kgo.Record) {
			r.bytes.Add(int64(len(rec.Value)))
			r.records.Add(1)
			each(rec)
		})
	}
}

func (r *readers) stop() error {
	r.cancel()
	r.wg.Wait()
	if err := r.failure.Load(); err != nil {
		return *err
	}
	return nil
}

func (r *readers) quantile(q float64) float64 {
	return float64(r.late.quantile(q).Microseconds()) / 1e3
}

// fillTopic produces so many bytes of 1 KiB records, all of which are acknowledged.
func fillTopic(ctx context.Context, l load, bytes int64) (records int64, err error) {
	l.Producers, l.Linger = 1, lingerTime
	opts, err := l.options()
	if err != nil {
		return 0, err
	}
	cl, err := client(l.Seeds, opts...)
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	v := newValues(1<<10, false)
	var failure atomic.Pointer[error]
	for ; records*int64(v.size) < bytes && failure.Load() == nil; records++ {
		cl.Produce(ctx, &kgo.Record{Topic: l.Topics[0], Value: v.at(int(records))}, func(_ *kgo.Record, err error) {
			if err != nil {
				failure.CompareAndSwap(nil, &err)
			}
		})
	}
	err = cl.Flush(ctx)
	if failed := failure.Load(); failed != nil {
		err = errors.Join(err, *failed)
	}
	return records, err
}

func coldWorkload(fanOut int) string { return fmt.Sprintf("cold, fan-out %d", fanOut) }

// cold reads what is no longer in the page cache: 1, 5 and 20 consumers at once,
// each everything from the beginning.
func cold(ctx context.Context, b *bench, p peer) error {
	if p.name() == "nats" {
		b.skip(p, "cold", "its consumers are of another protocol")
		return nil
	}
	return b.with(ctx, p, 3, func(c *cluster) error {
		if err := p.create(ctx, c, "bench", 12); err != nil {
			return err
		}
		l := b.full(c, 1<<10, "bench")
		records, err := fillTopic(ctx, l, b.fill)
		if err != nil {
			return err
		}
		for _, n := range []int{1, 5, 20} {
			workload := coldWorkload(n)
			if !b.wants(workload) {
				continue
			}
			stayed, err := b.dropCache(ctx, c)
			if err != nil {
				return err
			}
			took, err := catchUp(ctx, l, n, records)
			if err != nil {
				return fmt.Errorf("%s: %w", workload, err)
			}
			b.note(p, workload, "all consumers together", "MB/s", float64(records)*float64(l.Size)*float64(n)/took.Seconds()/1e6)
			b.note(p, workload, "in the page cache at the start", "MB", float64(stayed)/1e6)
		}
		return nil
	})
}

// catchUp returns how long n consumers took to read every record.
func catchUp(ctx context.Context, l load, n int, records int64) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	began := time.Now()
	all := make([]*readers, n)
	for i := range all {
		one, done := context.WithCancel(ctx)
		r := &readers{cancel: done}
		all[i] = r
		cl, err := consumer(l, kgo.NewOffset().AtStart())
		if err != nil {
			return 0, err
		}
		r.wg.Go(func() {
			defer cl.Close()
			r.read(one, cl, func(*kgo.Record) {
				if r.records.Load() == records+int64(l.Partitions) { // and the first of each partition
					done()
				}
			})
		})
	}
	for _, r := range all {
		r.wg.Wait()
		if err := r.failure.Load(); err != nil {
			return 0, *err
		}
		if n := r.records.Load(); n != records+int64(l.Partitions) {
			return 0, fmt.Errorf("%d records read, not %d: %w", n, records, context.Cause(ctx))
		}
	}
	return time.Since(began), nil
}
