package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func measure(ctx context.Context, exe, dir string, partitions, seconds, port int, quiesce bool) (p point, err error) {
	p.Partitions = partitions
	c, err := start(ctx, exe, dir, port, quiesce)
	if c != nil && c.cmd.Process != nil {
		defer c.stop()
	}
	if err != nil {
		return p, err
	}
	if p.CreateSeconds, err = c.create(ctx, partitions); err != nil {
		return p, err
	}
	if p.MetadataBytes, err = c.metadataAnswer(ctx); err != nil {
		return p, err
	}
	if err := c.idle(ctx, &p, seconds, quiesce); err != nil {
		return p, err
	}
	if p.FailoverSeconds, err = c.failover(ctx, partitions); err != nil {
		return p, err
	}
	if p.RejoinSeconds, err = c.rejoin(ctx, partitions); err != nil {
		return p, err
	}
	p.Load = load()
	c.stop() // a node that stops takes its last checkpoints
	p.MetaState, err = c.metaState()
	return p, err
}

// create makes one topic and waits until all of it is led.
func (c *cluster) create(ctx context.Context, partitions int) (float64, error) {
	began := time.Now()
	err := c.chronik(ctx, "topic", "create", "idle", "--partitions", fmt.Sprint(partitions), "--replication-factor", "3")
	if err != nil {
		return 0, err
	}
	err = until(ctx, 5*time.Minute, "every partition has a leader", func() (bool, error) { return c.led(ctx, partitions, 1, 2, 3) })
	return time.Since(began).Seconds(), err
}

// led tells whether the nodes lead all partitions, and the metadata, between them.
func (c *cluster) led(ctx context.Context, partitions int, ids ...int) (bool, error) {
	nodes, err := c.nodes()
	if err != nil {
		return false, err
	}
	leaders := 0.0
	for _, id := range ids {
		m, err := nodes[id-1].metrics(ctx)
		if err != nil {
			return false, err
		}
		leaders += m["chronik_raftgroup_replicas leader"]
	}
	return int(leaders) >= partitions+1, nil
}

// idle waits until all groups rest, and watches.
func (c *cluster) idle(ctx context.Context, p *point, seconds int, quiesce bool) error {
	nodes, err := c.nodes()
	if err != nil {
		return err
	}
	if quiesce {
		err = until(ctx, 5*time.Minute, "every group rests", func() (bool, error) {
			for _, n := range nodes {
				m, err := n.metrics(ctx)
				if err != nil || int(m["chronik_raftgroup_resting_replicas"]) < p.Partitions {
					return false, err
				}
			}
			return true, nil
		})
		if err != nil {
			return err
		}
	}
	wait(ctx, 5*time.Second)
	var before, after [3]map[string]float64
	var cpu [3]float64
	for i, n := range nodes {
		if before[i], err = n.metrics(ctx); err != nil {
			return err
		}
		if cpu[i], err = n.cpu(); err != nil {
			return err
		}
	}
	wait(ctx, time.Duration(seconds)*time.Second)
	var used, rss, sent, messages []float64
	for i, n := range nodes {
		now, err := n.cpu()
		if err != nil {
			return err
		}
		used = append(used, 100*(now-cpu[i])/float64(seconds))
		if after[i], err = n.metrics(ctx); err != nil {
			return err
		}
		r, err := n.rss()
		if err != nil {
			return err
		}
		rss = append(rss, r)
		rate := func(name string) float64 { return (after[i][name] - before[i][name]) / float64(seconds) }
		sent = append(sent, rate("chronik_transport_sent_bytes_total"))
		messages = append(messages, rate("chronik_transport_sent_messages_total"))
	}
	p.CPUPercent, p.RSS, p.SentBytes, p.SentMessages = median(used), median(rss), median(sent), median(messages)
	p.LogBytes = after[0]["chronik_raftlog_live_bytes"]
	p.Resting = int(after[0]["chronik_raftgroup_resting_replicas"])
	return nil
}

// failover kills a node and waits until the others lead everything.
func (c *cluster) failover(ctx context.Context, partitions int) (float64, error) {
	began := time.Now()
	if err := c.chronik(ctx, "dev", "kill", fmt.Sprint(victim), "--data-dir", c.dir); err != nil {
		return 0, err
	}
	err := until(ctx, 2*time.Minute, "the others lead everything", func() (bool, error) { return c.led(ctx, partitions, 1, 2) })
	return time.Since(began).Seconds(), err
}

// rejoin starts it again and waits until each of its replicas knows a leader.
func (c *cluster) rejoin(ctx context.Context, partitions int) (float64, error) {
	began := time.Now()
	if err := c.chronik(ctx, "dev", "restart", fmt.Sprint(victim), "--data-dir", c.dir); err != nil {
		return 0, err
	}
	err := until(ctx, 5*time.Minute, "every replica knows a leader", func() (bool, error) {
		nodes, err := c.nodes()
		if err != nil {
			return false, err
		}
		know := 0
		err = nodes[victim-1].replicas(ctx, func(leader int32, _ string) {
			if leader != 0 {
				know++
			}
		})
		return know >= partitions+1, err
	})
	return time.Since(began).Seconds(), err
}

// metaState is the size of the metadata group's checkpoint.
func (c *cluster) metaState() (float64, error) {
	files, err := filepath.Glob(filepath.Join(c.dir, "node-1", "replicas", "meta.*", "*", "*"))
	if err != nil {
		return 0, err
	}
	var size float64
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil {
			return 0, err
		}
		size += float64(st.Size())
	}
	return size, nil
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// load is the machine's load average of the last minute, 0 where there is no /proc.
func load() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	v, err := strconv.ParseFloat(strings.Fields(string(b))[0], 64)
	if err != nil {
		return 0
	}
	return v
}
