package main

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// committer is a group of one member after another, and somebody who reads what they commit.
type committer struct {
	w *world

	mu        sync.Mutex
	committed map[int32]int64 // acknowledged
}

func newCommitter(w *world) *committer { return &committer{w: w, committed: map[int32]int64{}} }

func (c *committer) run(ctx context.Context) {
	go c.watch(ctx)
	rng := c.w.rand("group")
	for ctx.Err() == nil {
		life, cancel := context.WithTimeout(ctx, time.Duration(1000+rng.IntN(5000))*time.Millisecond)
		cl := c.w.client(
			kgo.ConsumerGroup(groupName), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(), kgo.SessionTimeout(6*time.Second),
			kgo.HeartbeatInterval(500*time.Millisecond), kgo.FetchMaxWait(time.Second), kgo.Balancers(kgo.RangeBalancer()),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		)
		c.consume(life, cl)
		cancel()
		cl.Close()
	}
}

func (c *committer) consume(ctx context.Context, cl *kgo.Client) {
	for ctx.Err() == nil {
		fs := cl.PollFetches(ctx)
		at := map[int32]int64{}
		fs.EachRecord(func(r *kgo.Record) {
			at[r.Partition] = r.Offset + 1
			c.w.check.read(place{r.Partition, r.Offset}, string(r.Value))
		})
		if len(at) == 0 {
			continue
		}
		if err := cl.CommitRecords(ctx, fs.Records()...); err != nil {
			c.w.count("commits not acknowledged", 1)
			continue
		}
		c.w.count("commits", 1)
		c.mu.Lock()
		for p, off := range at {
			c.committed[p] = max(c.committed[p], off)
		}
		c.mu.Unlock()
		time.Sleep(200 * time.Millisecond)
	}
}

// watch: a committed offset never goes back behind what was acknowledged before it was asked for.
func (c *committer) watch(ctx context.Context) {
	cl := c.w.client()
	defer cl.Close()
	adm := kadm.NewClient(cl)
	for ctx.Err() == nil {
		time.Sleep(time.Second)
		c.mu.Lock()
		before := map[int32]int64{}
		for p, off := range c.committed {
			before[p] = off
		}
		c.mu.Unlock()
		ask, cancel := context.WithTimeout(ctx, 3*time.Second)
		got, err := adm.FetchOffsets(ask, groupName)
		cancel()
		if err != nil || got.Error() != nil {
			continue
		}
		for p, off := range before {
			o, ok := got.Lookup(topic, p)
			if !ok || o.At < off {
				c.w.fail("committed offsets never go back", "partition %d: %d was acknowledged, %d is answered", p, off, o.At)
			}
		}
	}
}
