package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/admin"
)

// benchCluster is a throw-away cluster of three processes.
type benchCluster struct {
	dc    *devCluster
	guard io.Closer
	bs    bootstrap
}

// startBench starts a cluster below parent with settings key=value.
func startBench(ctx context.Context, parent string, set ...string) (b *benchCluster, err error) {
	dir, err := os.MkdirTemp(parent, "bench-snapshot-")
	if err != nil {
		return nil, err
	}
	b = &benchCluster{}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.stop(), os.RemoveAll(dir))
		}
	}()
	if b.dc, err = freeCluster(dir, 0, set); err != nil {
		return nil, err
	}
	for i := range b.dc.Nodes {
		if err := b.dc.start(i); err != nil {
			return nil, err
		}
	}
	if b.guard, err = b.dc.guard(true); err != nil {
		return nil, err
	}
	b.bs.addrs = b.dc.bootstrap()
	return b, b.dc.waitReady(ctx, io.Discard, time.Minute)
}

// stop ends the nodes and removes their data.
func (b *benchCluster) stop() error {
	if b.dc == nil {
		return nil
	}
	b.dc.endAll() // the data goes too: nothing is worth an orderly end
	if b.guard != nil {
		_ = b.guard.Close()
	}
	return os.RemoveAll(b.dc.dir)
}

// node returns node id, from 1.
func (b *benchCluster) node(id int) *devNode { return &b.dc.Nodes[id-1] }

// wipe removes the data of a node that was killed.
func (b *benchCluster) wipe(id int) error { return os.RemoveAll(b.node(id).Dir) }

func (b *benchCluster) restart(id int) error { return b.dc.start(id - 1) }

// alive lists the nodes that run.
func (b *benchCluster) alive() []int {
	var ids []int
	for i := range b.dc.Nodes {
		if b.dc.Nodes[i].alive() {
			ids = append(ids, i+1)
		}
	}
	return ids
}

// ask does a request at a node's admin address.
func (b *benchCluster) ask(ctx context.Context, id int, method, path string, use func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+b.node(id).Admin+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000)) // what there is of an explanation
		return fmt.Errorf("node %d: %s %s: %s: %s", id, method, path, resp.Status, bytes.TrimSpace(text))
	}
	return use(resp.Body)
}

func (b *benchCluster) json(ctx context.Context, id int, path string, into any) error {
	return b.ask(ctx, id, http.MethodGet, path, func(r io.Reader) error { return json.NewDecoder(r).Decode(into) })
}

func (b *benchCluster) replicas(ctx context.Context, id int) (rs []admin.Replica, err error) {
	var all admin.Replicas
	err = b.json(ctx, id, "/v1/replicas", &all)
	return all.Replicas, err
}

// snapshot asks every node that runs for snapshots of a topic; "" is all groups.
func (b *benchCluster) snapshot(ctx context.Context, topic string) error {
	for _, id := range b.alive() {
		path := "/v1/snapshots"
		if topic != "" {
			path += "?topic=" + url.QueryEscape(topic)
		}
		if err := b.ask(ctx, id, http.MethodPost, path, func(io.Reader) error { return nil }); err != nil {
			return err
		}
	}
	return nil
}

// metrics are a node's, by series as they stand in the exposition.
type metrics map[string]float64

func (b *benchCluster) metrics(ctx context.Context, id int) (metrics, error) {
	m := metrics{}
	err := b.ask(ctx, id, http.MethodGet, "/metrics", func(r io.Reader) error {
		sc := bufio.NewScanner(r)
		for sc.Scan() {
			i := strings.LastIndexByte(sc.Text(), ' ') // a label's value may have some, too
			if i < 0 || !strings.HasPrefix(sc.Text(), "chronik_") {
				continue
			}
			series := sc.Text()[:i]
			v, err := strconv.ParseFloat(sc.Text()[i+1:], 64)
			if err != nil {
				return fmt.Errorf("metric %s: %w", series, err)
			}
			m[series] = v
		}
		return sc.Err()
	})
	return m, err
}

// total is a series over the nodes that run.
func (b *benchCluster) total(ctx context.Context, series string) (sum float64, err error) {
	for _, id := range b.alive() {
		m, err := b.metrics(ctx, id)
		if err != nil {
			return 0, err
		}
		sum += m[series]
	}
	return sum, nil
}

// summed is the sum of the metrics of some nodes.
func (b *benchCluster) summed(ctx context.Context, ids ...int) (metrics, error) {
	sum := metrics{}
	for _, id := range ids {
		m, err := b.metrics(ctx, id)
		if err != nil {
			return nil, err
		}
		sum = sum.add(m)
	}
	return sum, nil
}

// topic creates a topic of three replicas and waits for its leaders.
func (b *benchCluster) topic(ctx context.Context, name string, partitions int) error {
	cl, err := b.bs.client(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	if _, err := kadm.NewClient(cl).CreateTopic(ctx, int32(partitions), 3, nil, name); err != nil {
		return fmt.Errorf("create topic %s: %w", name, err)
	}
	_, err = awaitTopic(ctx, cl, name, false)
	return err
}

func (b *benchCluster) client(ctx context.Context, opts ...kgo.Opt) (*kgo.Client, error) {
	return b.bs.client(ctx, opts...)
}

// wait polls until done says so.
func wait(ctx context.Context, limit time.Duration, what string, done func() (bool, error)) error {
	deadline := time.Now().Add(limit)
	for {
		ok, err := done()
		if ok {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %v: %w", what, limit, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// whole waits until node id is a voter of every group the metadata gives it, and
// has applied what the leaders had committed when the wait began.
func (b *benchCluster) whole(ctx context.Context, id int, limit time.Duration) error {
	asked := 1 + id%3
	return wait(ctx, limit, fmt.Sprintf("node %d is not whole", id), func() (bool, error) {
		var c admin.Cluster
		if err := b.json(ctx, asked, "/v1/cluster", &c); err != nil {
			return false, err
		}
		leaders := map[string]admin.Replica{}
		mine := map[string]admin.Replica{}
		for _, n := range b.alive() {
			rs, err := b.replicas(ctx, n)
			if err != nil {
				return false, err
			}
			for _, r := range rs {
				if r.Role == "leader" {
					leaders[r.Group] = r
				}
				if n == id {
					mine[r.Group] = r
				}
			}
		}
		all := slices.Clone(c.Internal)
		for _, t := range c.Topics {
			all = append(all, t.Partitions...)
		}
		for _, p := range all {
			if err := wholeGroup(p, int32(id), mine, leaders); err != nil {
				return false, err
			}
		}
		return true, nil
	})
}

func wholeGroup(p admin.Partition, id int32, mine, leaders map[string]admin.Replica) error {
	for _, r := range p.Replicas {
		if r.Node != id {
			continue
		}
		m, ok := mine[p.Group]
		switch {
		case r.Joining || r.Lost:
			return fmt.Errorf("%s: replica %d is not a voter yet", p.Group, r.ReplicaID)
		case !ok || m.State != "running":
			return fmt.Errorf("%s: no replica runs", p.Group)
		case m.LeaderNode == 0 || m.AppliedIndex+256 < leaders[p.Group].CommitIndex:
			return fmt.Errorf("%s: applied %d of %d", p.Group, m.AppliedIndex, leaders[p.Group].CommitIndex)
		}
	}
	return nil
}

// logged finds the durations that a node's log gives as took for lines with a message.
func (b *benchCluster) logged(id int, message string) ([]time.Duration, error) {
	text, err := os.ReadFile(b.dc.logPath(id))
	if err != nil {
		return nil, err
	}
	took := regexp.MustCompile(`\btook"?[=:]"?([0-9a-zµ.]+)`)
	var ds []time.Duration
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, message) {
			continue
		}
		if m := took.FindStringSubmatch(line); m != nil {
			d, err := time.ParseDuration(m[1])
			if err != nil {
				return nil, fmt.Errorf("%s: %q: %w", b.dc.logPath(id), line, err)
			}
			ds = append(ds, d)
		}
	}
	return ds, nil
}

// diskBytes is what the files below a node's directory take.
func (b *benchCluster) diskBytes(id int) (sum int64, err error) {
	err = filepath.WalkDir(b.node(id).Dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return ignoreGone(err)
		}
		info, err := d.Info()
		if err == nil {
			sum += blocks(info)
		}
		return ignoreGone(err)
	})
	return sum, err
}

// blocks is what a file takes on the disk.
func blocks(info os.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}

// ignoreGone: files come and go while a node runs.
func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
