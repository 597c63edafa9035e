package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/admin"
)

// What the demo does, in numbers.
const (
	demoTopic     = "orders"
	demoGroup     = demoTopic + "-0"
	demoThreshold = 100
	demoFirst     = 150       // records before anything dies,
	demoFirstSize = 64 << 10  // of so many bytes
	demoAway      = 24 << 20  // bytes written while node 3 is away,
	demoRecord    = 128 << 10 // in records of so many
	demoRate      = 6 << 20   // bytes a second a node sends of snapshots: slow enough to watch
	demoCalm      = 3 * time.Second
	demoPatience  = 4 * time.Second // for the long records
	// demoLimit bounds the story. What it leaves of the promised 50 seconds is for the end of the processes.
	demoLimit = 47 * time.Second
	demoNode  = 3 // who dies
)

// errNotVerified marks what must never happen: replicas differ, or a record is lost.
var errNotVerified = errors.New("not verified")

type demoFlags struct {
	json bool
	keep bool
}

func newDemo() *cobra.Command {
	var f demoFlags
	c := &cobra.Command{
		Use: "demo", Short: "a node dies and comes back, twice, on a throw-away cluster", Args: cobra.NoArgs,
		Long: `A node dies and comes back, twice, on a throw-away cluster of three processes in a temporary directory, on free ports.

150 records are acknowledged, node 3 is killed with SIGKILL, more is written, the leader trims its Raft log, and node 3 returns: first
with its disk, then with an empty one. Each time it is sent a snapshot with the bytes it lacks, while producers go on. At the end the
digests of all replicas are compared and every acknowledged record is read back. The exit code is 0 only if all of that holds, and it
ends within 50 seconds. The directory is removed, but with --keep, and when replicas differ or a record is lost.`,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	c.Flags().BoolVar(&f.json, "json", false, "print the result as JSON, and nothing before")
	c.Flags().BoolVar(&f.keep, "keep", false, "keep the directory with the nodes' data and logs")
	return c
}

// demoReport is what --json prints.
type demoReport struct {
	Verified     bool         `json:"verified"`
	Error        string       `json:"error,omitempty"`
	Seconds      float64      `json:"seconds"`
	Topic        string       `json:"topic"`
	Acknowledged int          `json:"records_acknowledged"`
	ReadBack     int          `json:"records_read_back"`
	P99Before    float64      `json:"p99_before_ms"`
	P99During    float64      `json:"p99_during_ms"`
	Returns      []demoReturn `json:"returns"`
	Digests      []verifyRow  `json:"digests"`
	Dir          string       `json:"dir,omitempty"` // when it is kept
}

// demoReturn is how node 3 came back once.
type demoReturn struct {
	Disk          string  `json:"disk"` // intact or wiped
	ReplicaBefore uint64  `json:"replica_id_before"`
	ReplicaAfter  uint64  `json:"replica_id_after"`
	BytesMissing  int64   `json:"bytes_written_while_away"`
	BytesSent     uint64  `json:"bytes_sent"`
	BytesReused   uint64  `json:"bytes_reused"`
	Replayed      uint64  `json:"entries_replayed"`
	Installed     uint64  `json:"snapshots_installed"`
	Source        int32   `json:"source_node"`
	Seconds       float64 `json:"seconds"` // from its start until it follows
	P99           float64 `json:"p99_during_ms"`
	// Updates counts the different states of the transfer that were seen on its way.
	Updates int `json:"transfer_updates"`
}

// demo is one run of the story.
type demo struct {
	view    *demoView
	dc      *devCluster
	cluster admin.Cluster // the nodes' admin addresses
	load    *demoLoad
	report  demoReport
	step    string // for an error: what it was at
}

func (f *demoFlags) run(c *cobra.Command) (err error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(c.Context(), demoLimit)
	defer cancel()
	d := &demo{view: newDemoView(c.OutOrStdout(), f.json, began), report: demoReport{Topic: demoTopic, Returns: []demoReturn{}, Digests: []verifyRow{}}}
	dir, err := os.MkdirTemp("", "chronik-demo-")
	if err != nil {
		return err
	}
	err = d.inDirectory(ctx, dir, f.keep)
	kept := f.keep || errors.Is(err, errNotVerified)
	if !kept {
		err = errors.Join(err, os.RemoveAll(dir))
	} else {
		d.report.Dir = dir
	}
	switch {
	case c.Context().Err() != nil:
		err = errInterrupted
	case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("not done within %v: %s: %w", demoLimit, d.step, err)
	case err != nil:
		err = fmt.Errorf("%s: %w", d.step, err)
	}
	switch {
	case err != nil && kept:
		err = withHint(err, "data and logs are in "+dir)
	case err != nil && !errors.Is(err, errInterrupted):
		err = withHint(err, "'chronik demo --keep' keeps the nodes' data and logs")
	}
	d.report.Seconds = time.Since(began).Seconds()
	d.report.Verified = err == nil
	if err != nil {
		d.report.Error = err.Error()
	}
	d.view.end(&d.report)
	return err
}

// inDirectory runs the story and ends every process it started.
func (d *demo) inDirectory(ctx context.Context, dir string, keep bool) (err error) {
	d.step = "start of the cluster"
	dc, err := freeCluster(dir, demoThreshold, []string{fmt.Sprintf("snapshot.max_bytes_per_second=%d", demoRate)})
	if err != nil {
		return err
	}
	d.dc = dc
	for _, n := range dc.Nodes {
		d.cluster.Nodes = append(d.cluster.Nodes, admin.Node{ID: int32(n.ID), Admin: n.Admin, Kafka: n.Kafka})
	}
	d.view.say("three nodes on a throw-away cluster in %s", dir)
	guard, err := dc.guard(!keep)
	if err != nil {
		return err
	}
	defer func() {
		if errors.Is(err, errNotVerified) {
			_, _ = io.WriteString(guard, guardKeeps) // a guard that has died removes nothing
		}
		_ = guard.Close() // it finds nothing to end
	}()
	defer dc.endAll()
	for i := range dc.Nodes {
		if err := dc.start(i); err != nil {
			return err
		}
	}
	if err := dc.waitReady(ctx, io.Discard, demoLimit); err != nil {
		return err
	}
	if d.load, err = newDemoLoad(dc.bootstrap()); err != nil {
		return err
	}
	defer d.load.close()
	return d.story(ctx)
}

func (d *demo) story(ctx context.Context) error {
	d.step = "topic " + demoTopic
	d.view.say("ready: nodes 1, 2 and 3 (pids %d, %d, %d)", d.dc.Nodes[0].PID, d.dc.Nodes[1].PID, d.dc.Nodes[2].PID)
	if err := d.load.createTopic(ctx); err != nil {
		return err
	}
	d.view.say("topic %s: one partition, three replicas, a snapshot every %d entries", demoTopic, demoThreshold)
	d.step = "first records"
	if err := d.load.write(ctx, 1, demoFirst, demoFirstSize, demoPatience); err != nil {
		return err
	}
	d.view.say("%d records acknowledged, one a request, %s", demoFirst, size(d.load.acked()))
	d.step = "undisturbed producers"
	began := time.Now()
	d.load.start(ctx)
	if err := d.load.wait(ctx, demoCalm); err != nil {
		return err
	}
	d.report.P99Before = d.load.p99(began, time.Now())
	d.view.say("%d producers go on in the background: p99 %.1f ms", demoProducers, d.report.P99Before)
	var during []time.Time
	for _, wipe := range []bool{false, true} {
		from, to, err := d.absence(ctx, wipe)
		if err != nil {
			return err
		}
		during = append(during, from, to)
	}
	d.report.P99During = d.load.p99(during...)
	return d.verify(ctx)
}

// absence has node 3 die, miss a lot, and come back. It returns from when to when that took.
func (d *demo) absence(ctx context.Context, wipe bool) (from, to time.Time, err error) {
	ret := demoReturn{Disk: "intact"}
	title := "node 3 dies and returns with its disk"
	if wipe {
		ret.Disk, title = "wiped", "node 3 dies and returns without its disk"
	}
	d.view.title(title)
	d.step = title
	before, err := d.replica(ctx, demoNode)
	if err != nil {
		return from, to, err
	}
	ret.ReplicaBefore = before.ReplicaID
	n := &d.dc.Nodes[demoNode-1]
	if err := n.kill(); err != nil {
		return from, to, err
	}
	d.view.say("kill -9 of node 3, which holds replica %d up to index %d", before.ReplicaID, before.LastIndex)
	was := d.load.acked()
	if err := d.load.write(ctx, 4, demoAway/demoRecord, demoRecord, demoPatience); err != nil {
		return from, to, err
	}
	ret.BytesMissing = d.load.acked() - was
	leader, err := d.trimmed(ctx, before.LastIndex)
	if err != nil {
		return from, to, err
	}
	d.view.say("%s more acknowledged without it; leader node %d trimmed its log to index %d", size(ret.BytesMissing), leader.LeaderNode, leader.FirstIndex)
	if wipe {
		if err := os.RemoveAll(n.Dir); err != nil {
			return from, to, err
		}
	}
	target := d.load.end()
	from = time.Now()
	if err := d.dc.start(demoNode - 1); err != nil {
		return from, to, err
	}
	d.view.say("node 3 starts again, its disk %s", ret.Disk)
	after, err := d.watch(ctx, target, &ret)
	to = time.Now()
	if err != nil {
		return from, to, err
	}
	ret.ReplicaAfter, ret.Installed, ret.Replayed = after.ReplicaID, after.SnapshotsInstalled, after.EntriesReplayed
	ret.BytesSent, ret.BytesReused = after.SnapshotBytesReceived, after.SnapshotBytesReused
	ret.Seconds, ret.P99 = to.Sub(from).Seconds(), d.load.p99(from, to)
	d.report.Returns = append(d.report.Returns, ret)
	d.view.say("replica %d follows after %.1f s: %s sent, %s reused, %d entries replayed, producers' p99 %.1f ms",
		ret.ReplicaAfter, ret.Seconds, size(int64(ret.BytesSent)), size(int64(ret.BytesReused)), ret.Replayed, ret.P99)
	if wipe == (ret.ReplicaAfter == ret.ReplicaBefore) {
		return from, to, fmt.Errorf("%w: node 3 came back with its disk %s as replica %d, it was %d", errNotVerified, ret.Disk, ret.ReplicaAfter, ret.ReplicaBefore)
	}
	_, err = d.compare(ctx, target)
	return from, to, err
}

// trimmed waits until the leader's log begins behind what node 3 needs next, and returns the leader's replica.
func (d *demo) trimmed(ctx context.Context, last uint64) (leader admin.Replica, err error) {
	err = d.until(ctx, func() (bool, error) {
		for id := int32(1); id < demoNode; id++ {
			r, err := d.replica(ctx, id)
			if err != nil {
				return false, err
			}
			if r.Role == "leader" && r.FirstIndex > last+1 {
				leader = r
				return true, nil
			}
		}
		return false, nil
	})
	return leader, err
}

// watch shows the transfer until node 3's replica is a full member that has everything up to offset target.
func (d *demo) watch(ctx context.Context, target int64, ret *demoReturn) (after admin.Replica, err error) {
	n := &d.dc.Nodes[demoNode-1]
	last := uint64(0)
	defer d.view.clear()
	err = d.until(ctx, func() (bool, error) {
		if !n.alive() {
			return false, fmt.Errorf("node 3 ended%s", d.dc.lastError(n))
		}
		var all struct {
			Transfers []admin.Transfer `json:"transfers"`
		}
		if err := getJSON(ctx, n.Admin, "/v1/transfers", &all); err != nil {
			return false, nil //nolint:nilerr // it is starting
		}
		for _, t := range all.Transfers {
			if t.Group != demoGroup || t.Direction != "in" {
				continue
			}
			ret.Source = t.Source
			if t.BytesDone != last {
				last = t.BytesDone
				ret.Updates++
			}
			d.view.progress(t)
		}
		r, err := d.replica(ctx, demoNode)
		if err != nil || r.State != "running" || r.Role == "learner" || r.HighWatermark < target {
			return false, nil //nolint:nilerr // it may not have a replica yet
		}
		after = r
		if r.SnapshotsInstalled == 0 {
			return false, errors.New("node 3 caught up without a snapshot")
		}
		return true, nil
	})
	return after, err
}

// until asks ok ten times a second, and looks after the producers.
func (d *demo) until(ctx context.Context, ok func() (bool, error)) error {
	for {
		done, err := ok()
		if err != nil || done {
			return err
		}
		if err := d.load.wait(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// replica is a node's replica of the partition.
func (d *demo) replica(ctx context.Context, id int32) (admin.Replica, error) {
	var rs admin.Replicas
	if err := getJSON(ctx, d.cluster.NodeByID(id).Admin, "/v1/replicas", &rs); err != nil {
		return admin.Replica{}, fmt.Errorf("node %d: %w", id, err)
	}
	for _, r := range rs.Replicas {
		if r.Group == demoGroup {
			return r, nil
		}
	}
	return admin.Replica{}, fmt.Errorf("node %d has no replica of %s", id, demoGroup)
}

// compare wants the same bytes below offset to on every node. If they differ it finds out from which offset.
func (d *demo) compare(ctx context.Context, to int64) ([]verifyRow, error) {
	d.step = "comparison of the replicas"
	var rows []verifyRow
	for _, n := range d.cluster.Nodes {
		dg, err := digestOf(ctx, &d.cluster, demoTopic, 0, n.ID, 0, to)
		if err != nil {
			return rows, d.unless(ctx, err)
		}
		row := verifyRow{Node: n.ID, From: dg.From, To: dg.To, Records: dg.Records, Batches: dg.Batches, SHA256: dg.SHA256, Equal: true}
		if len(rows) > 0 && (row.SHA256 != rows[0].SHA256 || row.Records != rows[0].Records) {
			at, err := firstDifference(ctx, &d.cluster, demoTopic, 0, rows[0], row)
			if err != nil {
				return rows, d.unless(ctx, err)
			}
			row.Equal = false
			return append(rows, row), fmt.Errorf("%w: %s: nodes %d and %d differ from offset %d", errNotVerified, demoGroup, rows[0].Node, row.Node, at)
		}
		rows = append(rows, row)
	}
	d.view.say("the same %d records on all three nodes: sha256 %.16s…", rows[0].Records, rows[0].SHA256)
	return rows, nil
}

// unless marks an error as a failed verification, if it is none of time.
func (d *demo) unless(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%w: %w", errNotVerified, err)
}

// verify stops the producers and judges: all replicas have everything, the same, and every acknowledged record is read back.
func (d *demo) verify(ctx context.Context) error {
	d.view.title("verification")
	d.step = "end of the producers"
	if err := d.load.stop(); err != nil {
		return err
	}
	end := d.load.end()
	d.report.Acknowledged = d.load.count()
	err := d.until(ctx, func() (bool, error) {
		for _, n := range d.cluster.Nodes {
			r, err := d.replica(ctx, n.ID)
			if err != nil {
				return false, err
			}
			if r.HighWatermark < end {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	if d.report.Digests, err = d.compare(ctx, end); err != nil {
		return err
	}
	d.step = "reading back"
	if d.report.ReadBack, err = d.load.readBack(ctx, d.dc.bootstrap()); err != nil {
		return d.unless(ctx, err)
	}
	d.view.say("every acknowledged record read back: %d of %d", d.report.ReadBack, d.report.Acknowledged)
	return nil
}

// createTopic makes the topic and waits for its leader.
func (l *demoLoad) createTopic(ctx context.Context) error {
	if _, err := kadm.NewClient(l.cl).CreateTopic(ctx, 1, 3, nil, demoTopic); err != nil {
		return err
	}
	_, err := awaitTopic(ctx, l.cl, demoTopic, false)
	return err
}

func demoClient(seeds string, opts ...kgo.Opt) (*kgo.Client, error) {
	b := bootstrap{addrs: seeds}
	addrs, err := b.seeds()
	if err != nil {
		return nil, err
	}
	return kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(addrs...), kgo.ClientID("chronik-demo"), kgo.DialTimeout(time.Second), kgo.MetadataMinAge(50 * time.Millisecond),
		kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }),
		kgo.AlwaysRetryEOF(), // a node that is killed right after it was connected to looks like one that wants TLS
	}, opts...)...)
}
