package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/admin"
)

const (
	headlineFailover = "kill -9 of a leader"
	headlineStart    = "one node on an empty directory"
)

// failover kills the node that leads the partition that is written, one record at a
// time, and waits for the next acknowledgement.
func failover(ctx context.Context, b *bench, p peer) error {
	if !b.wants(headlineFailover) {
		return nil
	}
	if p.name() == "nats" {
		b.skip(p, headlineFailover, "its client is another")
		return nil
	}
	return b.with(ctx, p, 3, func(c *cluster) error {
		if err := p.create(ctx, c, "bench", 12); err != nil {
			return err
		}
		l := b.full(c, 1<<10, "bench")
		opts, err := l.options()
		if err != nil {
			return err
		}
		cl, err := client(l.Seeds, append(opts, kgo.ProducerLinger(0), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
		if err != nil {
			return err
		}
		defer cl.Close()
		v := newValues(l.Size, false)
		for i := range 500 { // the JVM and the client have seen it all before
			if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "bench", Partition: int32(i % 12), Value: v.at(i)}).FirstErr(); err != nil {
				return err
			}
		}
		partition := int32(b.round % 12)
		leader, err := leaderOf(ctx, cl, "bench", partition)
		if err != nil {
			return err
		}
		// The record is on its way a moment after the kill: one that was sent before might have been answered already.
		c.nodes[leader-1].kill()
		killed := time.Now()
		wait, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err := cl.ProduceSync(wait, &kgo.Record{Topic: "bench", Partition: partition, Value: v.at(0)}).FirstErr(); err != nil {
			return fmt.Errorf("after the kill: %w", err)
		}
		b.note(p, headlineFailover, "to the next acknowledged record", "s", time.Since(killed).Seconds())
		return nil
	})
}

func leaderOf(ctx context.Context, cl *kgo.Client, topic string, partition int32) (int32, error) {
	md, err := kadm.NewClient(cl).Metadata(ctx, topic)
	if err != nil {
		return 0, err
	}
	p, ok := md.Topics[topic].Partitions[partition]
	if !ok || p.Leader < 1 {
		return 0, fmt.Errorf("%s-%d has no leader", topic, partition)
	}
	return p.Leader, nil
}

func restartWorkload(bytes int64) string { return fmt.Sprintf("kill -9, %.3g GB", float64(bytes)/1e9) }

// away is how long a killed node is down: longer than Kafka takes to miss it (9 s).
const away = 12 * time.Second

// restart kills a node that holds b.fill bytes, lets producers go on slowly, and
// starts it again: caught up is when each of its replicas has what its leader has.
func restart(ctx context.Context, b *bench, p peer) error {
	workload := restartWorkload(b.fill)
	if !b.wants(workload) {
		return nil
	}
	if p.name() == "nats" {
		b.skip(p, workload, "it does not say when a replica of it has caught up in comparable terms")
		return nil
	}
	return b.with(ctx, p, 3, func(c *cluster) error {
		if err := p.create(ctx, c, "bench", 12); err != nil {
			return err
		}
		l := b.full(c, 1<<10, "bench")
		if _, err := fillTopic(ctx, l, b.fill); err != nil {
			return err
		}
		going, stop := context.WithCancel(ctx)
		defer stop()
		trickle, err := slowly(going, l)
		if err != nil {
			return err
		}
		defer func() { stop(); _ = trickle.wait() }() // when something else has failed
		n := c.nodes[2]
		n.kill()
		if err := pause(ctx, away); err != nil {
			return err
		}
		if err := missed(ctx, c, n, "bench"); err != nil {
			return err
		}
		if _, err := b.dropCache(ctx, c); err != nil { // as after a long time away
			return err
		}
		from := time.Now()
		if err := n.start(); err != nil {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, 10*time.Minute)
		defer cancel()
		if err := caughtUp(wait, c, n, "bench"); err != nil {
			return err
		}
		b.note(p, workload, "exec to caught up", "s", time.Since(from).Seconds())
		stop()
		return trickle.wait()
	})
}

// trickle is a slow producer in the background.
type trickle struct {
	wg      sync.WaitGroup
	failure atomic.Pointer[error]
}

func (t *trickle) wait() error {
	t.wg.Wait()
	if err := t.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// slowly sends about 500 records a second.
func slowly(ctx context.Context, l load) (*trickle, error) {
	l.Producers, l.Linger = 1, 0
	opts, err := l.options()
	if err != nil {
		return nil, err
	}
	cl, err := client(l.Seeds, opts...)
	if err != nil {
		return nil, err
	}
	t := &trickle{}
	v := newValues(l.Size, false)
	t.wg.Go(func() {
		defer cl.Close()
		for n := 0; pause(ctx, 2*time.Millisecond) == nil; n++ {
			cl.Produce(ctx, &kgo.Record{Topic: l.Topics[0], Value: v.at(n)}, func(_ *kgo.Record, err error) {
				if err != nil && ctx.Err() == nil { // after that it is given up
					t.failure.CompareAndSwap(nil, &err)
				}
			})
		}
	})
	return t, nil
}

// missed waits until the others count the node as away, in every partition: else it
// would seem to have caught up at once.
func missed(ctx context.Context, c *cluster, n *node, topic string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cl, err := client(c.without(n))
	if err != nil {
		return err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	for {
		sets, _, err := setsWith(ctx, adm, n, topic)
		if err == nil && sets == 0 {
			return nil
		}
		if wait := pause(ctx, 100*time.Millisecond); wait != nil {
			return errors.Join(err, fmt.Errorf("node %d is killed and still in %d in-sync sets: %w", n.id, sets, wait))
		}
	}
}

// caughtUp waits until the node follows again. For Kafka that is what its leaders say:
// the node is in every in-sync set (it left them while it was away). For Chronik, whose
// Metadata lists live replicas, that each of the node's own replicas has applied what
// its leader's high watermark was a moment before.
func caughtUp(ctx context.Context, c *cluster, n *node, topic string) error {
	cl, err := client(c.without(n))
	if err != nil {
		return err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	for {
		ok, err := false, error(nil)
		if n.admin != "" {
			ok, err = hasEverything(ctx, adm, n, topic)
		} else {
			ok, err = inEverySet(ctx, adm, n, topic)
		}
		if ok {
			return nil
		}
		if wait := pause(ctx, 20*time.Millisecond); wait != nil {
			return errors.Join(err, fmt.Errorf("node %d does not catch up: %w", n.id, wait))
		}
	}
}

func inEverySet(ctx context.Context, adm *kadm.Client, n *node, topic string) (bool, error) {
	sets, of, err := setsWith(ctx, adm, n, topic)
	return err == nil && sets == of, err
}

// setsWith counts the partitions whose in-sync set has the node.
func setsWith(ctx context.Context, adm *kadm.Client, n *node, topic string) (sets, of int, err error) {
	md, err := adm.Metadata(ctx, topic)
	if err != nil {
		return 0, 0, err
	}
	t := md.Topics[topic]
	for _, p := range t.Partitions {
		if slices.Contains(p.ISR, int32(n.id)) {
			sets++
		}
	}
	if len(t.Partitions) == 0 {
		return 0, 0, errors.Join(fmt.Errorf("%s has no partitions", topic), t.Err)
	}
	return sets, len(t.Partitions), nil
}

func hasEverything(ctx context.Context, adm *kadm.Client, n *node, topic string) (bool, error) {
	ends, err := adm.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return false, err
	}
	var own admin.Replicas
	if err := getJSON(ctx, "http://"+n.admin+"/v1/replicas", &own); err != nil {
		return false, nil // it is not up yet
	}
	has := map[int32]int64{}
	for i := range own.Replicas {
		if r := &own.Replicas[i]; r.Topic == topic && r.State == "running" {
			has[r.Partition] = r.HighWatermark
		}
	}
	behind := false
	ends.Each(func(o kadm.ListedOffset) {
		at, ok := has[o.Partition]
		behind = behind || !ok || at < o.Offset
	})
	return !behind, nil
}

// firstRecord executes one node on an empty directory, creates a topic and waits for
// its first acknowledged record.
func firstRecord(ctx context.Context, b *bench, p peer) error {
	if !b.wants(headlineStart) {
		return nil
	}
	if p.name() == "nats" {
		b.skip(p, headlineStart, "its client is another")
		return nil
	}
	return b.fresh(ctx, p, 1, func(c *cluster) error {
		n := c.nodes[0]
		from := time.Now()
		if err := n.start(); err != nil {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, startTimeout)
		defer cancel()
		if err := n.listening(wait); err != nil {
			return err
		}
		cl, err := client(c.seeds(), kgo.ProducerLinger(0), kgo.AllowAutoTopicCreation(), kgo.MetadataMinAge(10*time.Millisecond),
			kgo.RetryBackoffFn(func(int) time.Duration { return 5 * time.Millisecond }))
		if err != nil {
			return err
		}
		defer cl.Close()
		if err := cl.ProduceSync(wait, &kgo.Record{Topic: "first", Value: []byte("first")}).FirstErr(); err != nil {
			return err
		}
		b.note(p, headlineStart, "exec to the first acknowledged record", "s", time.Since(from).Seconds())
		return nil
	})
}
