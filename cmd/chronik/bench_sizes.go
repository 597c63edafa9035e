package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sizeRow is a partition with a state of that size.
type sizeRow struct {
	Size string `json:"size"`
	// Bytes is the size of the partition's segments.
	Bytes int64 `json:"bytes"`
	// Create is the first snapshot, which syncs what was written since the start;
	// Again those under load after it.
	Create  float64 `json:"create_seconds"`
	Again   float64 `json:"create_again_seconds"`
	Sent    int64   `json:"bytes_received"`
	Receive float64 `json:"receive_seconds"`
	Install float64 `json:"install_seconds"`
	// Stall is told by the leader's own histogram.
	Stall quantiles `json:"apply_stall"`
}

const (
	benchTopic = "bench"
	// noThreshold keeps a snapshot from being taken but by hand.
	noThreshold = "1000000000"
)

func handOnly(set ...string) []string {
	return append(set, "snapshot.threshold_entries="+noThreshold, "snapshot.threshold_bytes=1TiB", "snapshot.keep_entries=0", "raftlog.max_bytes=4GiB")
}

func (f *snapshotBench) measureSizes(ctx context.Context) ([]sizeRow, error) {
	var rows []sizeRow
	for _, s := range f.sizes {
		n, err := parseSize(s)
		if err != nil {
			return nil, err
		}
		row, err := f.measureSize(ctx, s, n)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s, err)
		}
		f.say("sizes, %s: created in %.3f s, again in %.3f s, received in %.3f s, installed in %.3f s; stall p50 %.3f ms, p99 %.3f, p99.9 %.3f, max %.3f of %d",
			s, row.Create, row.Again, row.Receive, row.Install, row.Stall.P50, row.Stall.P99, row.Stall.P999, row.Stall.Max, row.Stall.Count)
		rows = append(rows, row)
	}
	return rows, nil
}

func (f *snapshotBench) measureSize(ctx context.Context, size string, n int64) (row sizeRow, err error) {
	row.Size = size
	b, err := startBench(ctx, f.dir, handOnly()...)
	if err != nil {
		return row, err
	}
	defer func() { err = firstErr(err, b.stop()) }()
	if err := b.topic(ctx, benchTopic, 1); err != nil {
		return row, err
	}
	if err := fill(ctx, b, benchTopic, n); err != nil {
		return row, err
	}
	leader, err := b.leader(ctx, benchTopic)
	if err != nil {
		return row, err
	}
	if err := b.snapshotDone(ctx, leader, benchTopic); err != nil {
		return row, err
	}
	const created = "Created snapshot for " + benchTopic + "-0"
	first, err := b.logged(leader, created)
	if err != nil {
		return row, err
	}
	if row.Stall, err = f.stallUnderLoad(ctx, b, leader); err != nil {
		return row, err
	}
	all, err := b.logged(leader, created)
	if err != nil {
		return row, err
	}
	row.Create, row.Again = first[0].Seconds(), meanSeconds(all[len(first):])
	return row, f.receiveWiped(ctx, b, leader, &row)
}

// stallUnderLoad takes snapshots one after the other for a few seconds while
// records come, and returns what the leader says of the stalls.
func (f *snapshotBench) stallUnderLoad(ctx context.Context, b *benchCluster, leader int) (quantiles, error) {
	l, err := startLoad(ctx, b, loadOptions{topic: benchTopic, bytes: 1 << 10, perSecond: f.rate})
	if err != nil {
		return quantiles{}, err
	}
	const series = "chronik_raftgroup_apply_stall_seconds"
	before, err := b.metrics(ctx, leader)
	for l.now() < 5*time.Second && err == nil {
		err = b.snapshotDone(ctx, leader, benchTopic)
	}
	after, merr := b.metrics(ctx, leader)
	if err := firstErr(err, merr, l.end(ctx)); err != nil {
		return quantiles{}, err
	}
	return histogram(before, after, series), nil
}

// receiveWiped wipes a follower and has it come back.
func (f *snapshotBench) receiveWiped(ctx context.Context, b *benchCluster, leader int, row *sizeRow) error {
	id := 1 + leader%3
	if err := b.node(id).kill(); err != nil {
		return err
	}
	if err := b.snapshotDone(ctx, leader, benchTopic); err != nil { // so that it is the snapshot that has all
		return err
	}
	if err := firstErr(b.wipe(id), b.restart(id), b.whole(ctx, id, 10*time.Minute)); err != nil {
		return err
	}
	received, err1 := b.logged(id, "Received snapshot for "+benchTopic+"-0")
	installed, err2 := b.logged(id, "Successfully installed snapshot for "+benchTopic+"-0")
	rs, err3 := b.replicas(ctx, id)
	if err := firstErr(err1, err2, err3); err != nil {
		return err
	}
	if len(received) == 0 || len(installed) == 0 {
		return fmt.Errorf("node %d received %d snapshots and installed %d", id, len(received), len(installed))
	}
	row.Receive = received[len(received)-1].Seconds()
	row.Install = max(0, installed[len(installed)-1].Seconds()-row.Receive)
	for _, r := range rs {
		if r.Topic == benchTopic {
			row.Sent = int64(r.SnapshotBytesReceived)
		}
	}
	m, err := b.metrics(ctx, id)
	row.Bytes = int64(m[`chronik_partition_size_bytes{partition="0",topic="`+benchTopic+`"}`])
	return err
}

// leader finds the node that leads partition 0 of a topic.
func (b *benchCluster) leader(ctx context.Context, topic string) (id int, err error) {
	err = wait(ctx, time.Minute, topic+" has no leader", func() (bool, error) {
		for _, n := range b.alive() {
			rs, err := b.replicas(ctx, n)
			if err != nil {
				return false, err
			}
			for _, r := range rs {
				if r.Topic == topic && r.Partition == 0 && r.Role == "leader" {
					id = n
					return true, nil
				}
			}
		}
		return false, nil
	})
	return id, err
}

// snapshotDone takes snapshots of a topic and waits for that of the leader of partition 0.
func (b *benchCluster) snapshotDone(ctx context.Context, leader int, topic string) error {
	look := func() (created, applied, snapshot uint64, err error) {
		rs, err := b.replicas(ctx, leader)
		for _, r := range rs {
			if r.Topic == topic && r.Partition == 0 {
				return r.SnapshotsCreated, r.AppliedIndex, r.SnapshotIndex, err
			}
		}
		return 0, 0, 0, err
	}
	before, applied, snapshot, err := look()
	if err != nil || snapshot >= applied && snapshot > 0 {
		return err
	}
	if err := b.snapshot(ctx, topic); err != nil {
		return err
	}
	return wait(ctx, 5*time.Minute, "no snapshot of "+topic, func() (bool, error) {
		// None is created when all that was applied is in the last one, which look may not have shown yet.
		created, _, now, err := look()
		return created > before || now >= applied, err
	})
}

func meanSeconds(ds []time.Duration) float64 {
	if len(ds) == 0 {
		return 0
	}
	sum := time.Duration(0)
	for _, d := range ds {
		sum += d
	}
	return (sum / time.Duration(len(ds))).Seconds()
}

// add returns the sum of two scrapes.
func (m metrics) add(o metrics) metrics {
	sum := metrics{}
	for _, one := range []metrics{m, o} {
		for s, v := range one {
			sum[s] += v
		}
	}
	return sum
}

// less returns the difference of two scrapes.
func (m metrics) less(o metrics) metrics {
	rest := metrics{}
	for s, v := range m {
		rest[s] = v - o[s]
	}
	return rest
}

// histogram is what a histogram without labels counted between two scrapes. A
// quantile is the upper bound of its bucket: never less than what was. The
// maximum is that of the whole life of the process, if it is told.
func histogram(before, after metrics, series string) quantiles {
	type bucket struct {
		le float64
		n  float64 // at most le
	}
	var bs []bucket
	prefix := series + `_bucket{le="`
	for s, v := range after {
		text, ok := strings.CutPrefix(s, prefix)
		if !ok {
			continue
		}
		le, err := strconv.ParseFloat(strings.TrimSuffix(text, `"}`), 64) // +Inf too
		if err != nil {
			continue
		}
		bs = append(bs, bucket{le: le, n: v - before[s]})
	}
	slices.SortFunc(bs, func(a, b bucket) int {
		switch {
		case a.le < b.le:
			return -1
		case a.le > b.le:
			return 1
		}
		return 0
	})
	total := after[series+"_count"] - before[series+"_count"]
	at := func(q float64) float64 {
		for _, b := range bs {
			if total > 0 && b.n >= math.Ceil(q*total) {
				return 1e3 * b.le
			}
		}
		return 0
	}
	v := quantiles{Count: int(total), P50: at(0.5), P99: at(0.99), P999: at(0.999), Max: at(1)}
	if most, ok := after[strings.TrimSuffix(series, "_seconds")+"_max_seconds"]; ok {
		v.Max = 1e3 * most
	}
	return v
}
