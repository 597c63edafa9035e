package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// peer is a server that is measured.
type peer interface {
	name() string
	// about says the version and every setting that is not the default.
	about() string
	// prepare builds or fetches the server. errMissing: it cannot be had here.
	prepare(ctx context.Context) error
	// layout makes fresh data for so many nodes and says how to start them.
	layout(ctx context.Context, dir string, nodes, port int) ([]*node, error)
	// ready waits until every node serves.
	ready(ctx context.Context, c *cluster) error
	// create makes a topic of so many partitions with a replica on each node.
	create(ctx context.Context, c *cluster, topic string, partitions int) error
	// produce loads a topic.
	produce(ctx context.Context, c *cluster, l load) (*loaded, error)
}

// errMissing means that a peer is left out, and why.
var errMissing = errors.New("it cannot be had here")

// startTimeout is how long a cluster or a topic may take to serve.
const startTimeout = 3 * time.Minute

// with starts a fresh cluster, lets f measure it, stops it and removes its data.
func (b *bench) with(ctx context.Context, p peer, nodes int, f func(c *cluster) error) error {
	return b.fresh(ctx, p, nodes, func(c *cluster) error {
		for _, n := range c.nodes {
			if err := n.start(); err != nil {
				return err
			}
		}
		up, cancel := context.WithTimeout(ctx, startTimeout)
		defer cancel()
		if err := p.ready(up, c); err != nil {
			return fmt.Errorf("not ready: %w", err)
		}
		return f(c)
	})
}

// fresh is with, for what starts the nodes itself.
func (b *bench) fresh(ctx context.Context, p peer, nodes int, f func(c *cluster) error) (err error) {
	dir, err := os.MkdirTemp(b.dir, p.name()+"-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c := &cluster{peer: p, dir: dir}
	if c.nodes, err = p.layout(ctx, dir, nodes, b.port); err != nil {
		return fmt.Errorf("%s: %w", p.name(), err)
	}
	defer c.stop()
	if err := b.reserve.Refill(ctx); err != nil {
		return err
	}
	if err := f(c); err != nil {
		return c.explain(fmt.Errorf("%s: %w", p.name(), err))
	}
	return nil
}

// kafkaPeer is what all servers that speak Kafka's protocol share.
type kafkaPeer struct{}

// client has what all load on all such peers has in common.
func client(seeds []string, opts ...kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(seeds...), kgo.MetadataMinAge(50 * time.Millisecond),
		kgo.RetryBackoffFn(func(int) time.Duration { return 20 * time.Millisecond }), kgo.UnknownTopicRetries(-1),
		kgo.DialTimeout(time.Second), kgo.AlwaysRetryEOF(),
	}, opts...)...)
}

func (kafkaPeer) ready(ctx context.Context, c *cluster) error {
	for _, n := range c.nodes {
		if err := n.listening(ctx); err != nil {
			return err
		}
	}
	cl, err := client(c.seeds())
	if err != nil {
		return err
	}
	defer cl.Close()
	for {
		known, err := knownBrokers(ctx, cl)
		if known == len(c.nodes) {
			return nil
		}
		if wait := pause(ctx, 50*time.Millisecond); wait != nil {
			return errors.Join(err, fmt.Errorf("a node knows %d brokers: %w", known, wait))
		}
	}
}

// knownBrokers asks every node, past what the client remembers, how many brokers it
// knows, and returns the least; none while there is no controller.
func knownBrokers(ctx context.Context, cl *kgo.Client) (int, error) {
	known := math.MaxInt
	for _, seed := range cl.SeedBrokers() {
		req := kmsg.NewPtrMetadataRequest()
		req.Topics = []kmsg.MetadataRequestTopic{} // none; nil means all
		r, err := seed.RetriableRequest(ctx, req)
		if err != nil {
			return 0, err
		}
		resp := r.(*kmsg.MetadataResponse)
		if resp.ControllerID < 1 {
			return 0, nil
		}
		known = min(known, len(resp.Brokers))
	}
	return known, nil
}

func (kafkaPeer) create(ctx context.Context, c *cluster, topic string, partitions int) error {
	return createTopics(ctx, c, partitions, topic)
}

// createTopics returns when every partition has a leader and all its replicas in sync,
// and has acknowledged a record: Kafka makes its logs after it has named the leaders.
func createTopics(ctx context.Context, c *cluster, partitions int, topics ...string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	cl, err := client(c.seeds(), kgo.RequestTimeoutOverhead(time.Minute))
	if err != nil {
		return err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	adm.SetTimeoutMillis(int32(time.Minute.Milliseconds()))
	resp, err := adm.CreateTopics(ctx, int32(partitions), int16(len(c.nodes)), nil, topics...)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		return fmt.Errorf("create %d topics of %d partitions: %w", len(topics), partitions, err)
	}
	for {
		md, err := adm.Metadata(ctx, topics...)
		if err == nil && inSync(md, topics, partitions, len(c.nodes)) {
			return touch(ctx, c, partitions, topics)
		}
		if wait := pause(ctx, 50*time.Millisecond); wait != nil {
			return errors.Join(err, fmt.Errorf("%d topics of %d partitions have no leaders: %w", len(topics), partitions, wait))
		}
	}
}

// touch has one record acknowledged by every partition.
func touch(ctx context.Context, c *cluster, partitions int, topics []string) error {
	cl, err := client(c.seeds(), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	if err != nil {
		return err
	}
	defer cl.Close()
	var recs []*kgo.Record
	for _, topic := range topics {
		for i := range partitions {
			recs = append(recs, &kgo.Record{Topic: topic, Partition: int32(i), Value: []byte("first")})
		}
	}
	if err := cl.ProduceSync(ctx, recs...).FirstErr(); err != nil {
		return fmt.Errorf("the first record of each of %d partitions: %w", len(recs), err)
	}
	return nil
}

func inSync(md kadm.Metadata, topics []string, partitions, replicas int) bool {
	for _, topic := range topics {
		t := md.Topics[topic]
		if len(t.Partitions) != partitions {
			return false
		}
		for _, p := range t.Partitions {
			if p.Leader < 0 || len(p.ISR) != replicas || p.Err != nil {
				return false
			}
		}
	}
	return true
}

// chronikPeer is this repository's server, built from the tree.
type chronikPeer struct {
	kafkaPeer
	dir string
	exe string
	at  string // what was built
}

func (*chronikPeer) name() string { return "chronik" }

func (p *chronikPeer) about() string {
	return "Chronik of commit " + p.at + ", every setting the default (every write fdatasynced on a majority before it is acknowledged, min.insync.replicas 2)"
}

func (p *chronikPeer) prepare(ctx context.Context) error {
	p.exe = filepath.Join(p.dir, "chronik")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", p.exe, "chronik/cmd/chronik").CombinedOutput(); err != nil {
		return fmt.Errorf("build chronik: %w: %s", err, out)
	}
	p.at = commit(ctx)
	return nil
}

// commit names the sources that are measured: dirty if they differ from it in more than what this command writes.
func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	at := strings.TrimSpace(string(out))
	if exec.CommandContext(ctx, "git", "diff", "--quiet", "HEAD", "--", ":/", ":(top,exclude)docs", ":(top,exclude)test/bench/results").Run() != nil {
		at += "-dirty"
	}
	return at
}

func (p *chronikPeer) layout(_ context.Context, dir string, nodes, port int) ([]*node, error) {
	var peers []string
	for i := range nodes {
		peers = append(peers, fmt.Sprintf("%d@127.0.0.1:%d", i+1, port+100+i))
	}
	var ns []*node
	for i := range nodes {
		n := &node{
			id: i + 1, addr: fmt.Sprintf("127.0.0.1:%d", port+i), admin: fmt.Sprintf("127.0.0.1:%d", port+200+i),
			dir: filepath.Join(dir, fmt.Sprintf("node-%d", i+1)), log: filepath.Join(dir, fmt.Sprintf("node-%d.log", i+1)),
		}
		n.argv = []string{
			p.exe, "start", "--node-id", fmt.Sprint(n.id), "--data-dir", n.dir, "--kafka-addr", n.addr,
			"--raft-addr", fmt.Sprintf("127.0.0.1:%d", port+100+i), "--admin-addr", n.admin,
		}
		if nodes > 1 {
			n.argv = append(n.argv, "--peers", strings.Join(peers, ","))
		}
		ns = append(ns, n)
	}
	return ns, nil
}
