package main

import (
	"context"
	"fmt"
	"time"
)

// one measures one load on a fresh cluster.
func (b *bench) one(ctx context.Context, p peer, nodes, partitions int, workload string, change func(l *load)) error {
	if !b.wants(workload) {
		return nil
	}
	return b.with(ctx, p, nodes, func(c *cluster) error {
		if err := p.create(ctx, c, "bench", partitions); err != nil {
			return err
		}
		l := b.full(c, 1<<10, "bench")
		l.Partitions = partitions
		change(&l)
		_, err := b.load(ctx, c, workload, l)
		return err
	})
}

func acks(ctx context.Context, b *bench, p peer) error {
	for _, a := range []string{"1", "all"} {
		workload := "acks=" + a
		if p.name() == "nats" && a == "1" {
			b.skip(p, workload, "its acknowledgements are a majority's")
			continue
		}
		if err := b.one(ctx, p, 3, 12, workload, func(l *load) { l.Acks = a }); err != nil {
			return err
		}
	}
	return nil
}

func producers(ctx context.Context, b *bench, p peer) error {
	for _, n := range []int{1, 10, 100} {
		if err := b.one(ctx, p, 3, 12, fmt.Sprintf("%d producers", n), func(l *load) { l.Producers = n }); err != nil {
			return err
		}
	}
	return nil
}

// standalone is one node: replication has no part in it.
func standalone(ctx context.Context, b *bench, p peer) error {
	if p.name() == "nats" {
		b.skip(p, headlineStandalone, "measured with three nodes only")
		return nil
	}
	return b.one(ctx, p, 1, 12, headlineStandalone, func(l *load) { l.Acks, l.Size = "1", 256 })
}

const smallTopics = 300

// topics: records go to many topics of one partition in turn.
func topics(ctx context.Context, b *bench, p peer) error {
	workload := fmt.Sprintf("%d topics of one partition", smallTopics)
	if !b.wants(workload) {
		return nil
	}
	if p.name() == "nats" {
		b.skip(p, workload, "the same to it as partitions")
		return nil
	}
	return b.with(ctx, p, 3, func(c *cluster) error {
		var names []string
		for i := range smallTopics {
			names = append(names, fmt.Sprintf("small-%03d", i))
		}
		from := time.Now()
		if err := createTopics(ctx, c, 1, names...); err != nil {
			return err
		}
		b.note(p, workload, "creating them", "s", time.Since(from).Seconds())
		_, err := b.load(ctx, c, workload, b.full(c, 1<<10, names...))
		return err
	})
}

// idle is what a cluster costs that nobody uses.
func idle(ctx context.Context, b *bench, p peer) error {
	rss := map[int]float64{}
	for _, n := range []int{few, many} {
		workload := idleWorkload(n)
		if !b.wants(workload) {
			continue
		}
		if p.name() == "nats" {
			b.skip(p, workload, "a stream a partition; more than 100 are not what it is made for")
			continue
		}
		err := b.with(ctx, p, 3, func(c *cluster) error {
			if err := p.create(ctx, c, "bench", n); err != nil {
				return err
			}
			var err error
			rss[n], err = b.atRest(ctx, c, workload)
			return err
		})
		if err != nil {
			return err
		}
	}
	if rss[few] > 0 && rss[many] > 0 {
		b.note(p, idleWorkload(many), perReplica, "KiB", (rss[many]-rss[few])*1024/(many-few))
	}
	return nil
}

const (
	few, many  = 300, 3000
	perReplica = "memory of a replica, beyond the first 300"
)

func idleWorkload(n int) string { return fmt.Sprintf("%d idle partitions", n) }

// atRest measures the processor time of nodes that have had time to come to rest, and returns what one has resident, in MiB.
func (b *bench) atRest(ctx context.Context, c *cluster, workload string) (float64, error) {
	const settle = 15 * time.Second
	if err := pause(ctx, settle); err != nil {
		return 0, err
	}
	from := time.Now()
	before := make([]time.Duration, len(c.nodes))
	for i, n := range c.nodes {
		var err error
		if before[i], err = n.cpu(); err != nil {
			return 0, err
		}
	}
	if err := pause(ctx, max(15*time.Second, b.length)); err != nil {
		return 0, err
	}
	var share, rss []float64
	for i, n := range c.nodes {
		used, err := n.cpu()
		if err != nil {
			return 0, err
		}
		m, err := n.memory()
		if err != nil {
			return 0, err
		}
		share = append(share, 100*(used-before[i]).Seconds()/time.Since(from).Seconds())
		rss = append(rss, m.now/(1<<20))
	}
	b.note(c.peer, workload, "of a core, a node", "%", median(share))
	b.note(c.peer, workload, "RSS of a node", "MiB", median(rss))
	return median(rss), nil
}
