package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// parts in the order of a whole run and of the document.
var parts = []*part{
	{name: "throughput", title: "producing at full load, by record size and compression; 12 partitions, acks=all", round: throughput},
	{name: "partitions", title: "producing 100 B records at full load, by partitions; acks=all", round: partitions},
	{name: "acks", title: "producing 1 KiB records at full load with acks=1 and acks=all; 12 partitions", round: acks},
	{name: "producers", title: "producing 1 KiB records at full load from 1, 10 and 100 producers; 12 partitions, acks=all", round: producers},
	{name: "topics", title: "producing 1 KiB records at full load to many small topics; acks=all", round: topics},
	{name: "standalone", title: "producing 256 B records at full load to one node; 12 partitions, acks=1", round: standalone},
	{name: "latency", title: "1 KiB records at fixed rates, 12 partitions, acks=all, linger 0, counted from when each should have been sent", once: calibrate, round: latency},
	{name: "tail", title: "consumers that follow, 1 KiB records at a fixed rate, 12 partitions, acks=all, linger 0", once: calibrate, round: tail},
	{name: "cold", title: "reading 1 KiB records, 12 partitions, from the disk: the page cache of every file is dropped before", round: cold},
	{name: "mixed", title: "producing and reading 1 KiB records at the same time; 12 partitions, acks=all", round: mixed},
	{name: "failover", title: "the leader of a partition that is written is killed; three nodes, 12 partitions, 1 KiB records, acks=all", round: failover},
	{name: "restart", title: "a node is killed, away for 12 s and started again; 12 partitions, 500 records a second go on", round: restart},
	{name: "start", title: "from exec of one node to its first acknowledged record, the topic's creation included", round: firstRecord},
	{name: "idle", title: "a cluster of three nodes that nobody uses", round: idle},
}

// Workloads that the table of targets refers to.
const (
	headlineThroughput = "1 KiB, none"
	headlinePartitions = "1000 partitions"
	headlineStandalone = "256 B, one node, acks=1"
)

type sized struct {
	bytes int
	name  string
}

var sizes = []sized{{100, "100 B"}, {1 << 10, "1 KiB"}, {10 << 10, "10 KiB"}, {100 << 10, "100 KiB"}}

// full is the load that a part varies.
func (b *bench) full(c *cluster, size int, topics ...string) load {
	return load{
		Seeds: c.seeds(), Topics: topics, Partitions: 12, Size: size, Producers: 1, Acks: "all", Compression: "none",
		Linger: lingerTime, Warm: b.warm, For: b.length,
	}
}

// load runs one load and notes what came of it.
func (b *bench) load(ctx context.Context, c *cluster, workload string, l load) (*loaded, error) {
	var cost meter
	before, after := l.measuring, l.measured
	l.measuring = func() {
		if before != nil {
			before()
		}
		cost.start(c)
		if b.profile != "" && c.nodes[0].admin != "" && b.round == b.rounds-1 {
			go b.profiles(ctx, c, workload)
		}
	}
	l.measured = func() {
		cost.stop(c)
		if after != nil {
			after()
		}
	}
	got, err := c.peer.produce(ctx, c, l)
	if err = errors.Join(err, cost.failure); err != nil {
		return nil, fmt.Errorf("%s: %w", workload, err)
	}
	b.note(c.peer, workload, "throughput", "MB/s", got.Bytes/1e6)
	b.note(c.peer, workload, "records", "1/s", got.Records)
	b.note(c.peer, workload, "p99 at full load", "ms", got.P99)
	if n := got.Records * l.For.Seconds(); cost.used > 0 && n > 0 {
		b.note(c.peer, workload, "processor time of the nodes, a record", "µs", float64(cost.used.Microseconds())/n)
	}
	return got, nil
}

// meter is the processor time of all nodes of a cluster while it is measured: other
// work on the machine changes it far less than it changes a throughput.
type meter struct {
	used    time.Duration
	failure error
}

func (m *meter) start(c *cluster) { m.used = -m.now(c) }
func (m *meter) stop(c *cluster)  { m.used += m.now(c) }

func (m *meter) now(c *cluster) time.Duration {
	var all time.Duration
	for _, n := range c.nodes {
		used, err := n.cpu()
		m.failure = errors.Join(m.failure, err)
		all += used
	}
	return all
}

// memory notes what a node has resident at most: the median of the nodes.
func (b *bench) memory(c *cluster, workload string) error {
	var peak, anonymous []float64
	for _, n := range c.nodes {
		m, err := n.memory()
		if err != nil {
			return err
		}
		peak, anonymous = append(peak, m.peak/(1<<20)), append(anonymous, m.anonymous/(1<<20))
	}
	b.note(c.peer, workload, "RSS of a node, peak", "MiB", median(peak))
	b.note(c.peer, workload, "of it anonymous, at the end", "MiB", median(anonymous))
	return nil
}

// throughput has a fresh cluster for each workload, so that none inherits another's data.
func throughput(ctx context.Context, b *bench, p peer) error {
	for _, size := range sizes {
		for _, codec := range []string{"none", "lz4", "zstd"} {
			workload := size.name + ", " + codec
			if !b.wants(workload) {
				continue
			}
			if p.name() == "nats" && codec != "none" {
				b.skip(p, workload, "its client does not compress")
				continue
			}
			err := b.with(ctx, p, 3, func(c *cluster) error {
				if err := p.create(ctx, c, "bench", 12); err != nil {
					return err
				}
				l := b.full(c, size.bytes, "bench")
				l.Compression = codec
				if _, err := b.load(ctx, c, workload, l); err != nil {
					return err
				}
				return b.memory(c, workload)
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

const natsMost = 100 // partitions; each is a stream of three replicas

func partitions(ctx context.Context, b *bench, p peer) error {
	for _, n := range []int{1, 12, 100, 1000, 3000} {
		workload := fmt.Sprintf("%d partitions", n)
		if !b.wants(workload) {
			continue
		}
		if p.name() == "nats" && n > natsMost {
			b.skip(p, workload, "a stream a partition; more than 100 are not what it is made for")
			continue
		}
		err := b.with(ctx, p, 3, func(c *cluster) error {
			from := time.Now()
			if err := p.create(ctx, c, "bench", n); err != nil {
				return err
			}
			b.note(p, workload, "creating the topic", "s", time.Since(from).Seconds())
			l := b.full(c, 100, "bench")
			l.Partitions = n
			if _, err := b.load(ctx, c, workload, l); err != nil {
				return err
			}
			return b.memory(c, workload)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// profiles takes a CPU profile of each node while it is measured.
func (b *bench) profiles(ctx context.Context, c *cluster, workload string) {
	if err := os.MkdirAll(b.profile, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, "profile:", err)
		return
	}
	done := make(chan error)
	for _, n := range c.nodes {
		go func() {
			url := fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%.0f", n.admin, max(1, b.length.Seconds()-1))
			done <- fetch(ctx, url, filepath.Join(b.profile, fmt.Sprintf("%s-%s-node-%d.pprof", b.part.name, fileName(workload), n.id)))
		}()
	}
	for range c.nodes {
		if err := <-done; err != nil {
			fmt.Fprintln(os.Stderr, "profile:", err)
		}
	}
}
