package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// thresholdSweep compares values of snapshot.threshold_entries.
type thresholdSweep struct {
	Seconds float64        `json:"seconds"`
	Away    float64        `json:"away_seconds"`
	Rows    []thresholdRow `json:"rows"`
	Advice  string         `json:"advice"`
}

// thresholdRow is one threshold under the same load.
type thresholdRow struct {
	Threshold int `json:"threshold"`
	// Load is that of all three nodes.
	Load latency `json:"load"`
	// Snapshots were taken by all nodes, and took SnapshotSeconds of each minute
	// of background work, all nodes together.
	Snapshots       float64 `json:"snapshots"`
	SnapshotSeconds float64 `json:"snapshot_seconds_per_minute"`
	// RaftlogLive is what live entries take in the raftlog of the busiest node,
	// RaftlogBytes its files; DiskBytes are all files of that node.
	RaftlogLive  float64 `json:"raftlog_live_bytes"`
	RaftlogBytes float64 `json:"raftlog_bytes"`
	DiskBytes    float64 `json:"disk_bytes"`
	// Rejoin is how long the node that was away took to have all, with its disk.
	Rejoin   float64 `json:"rejoin_seconds"`
	Received float64 `json:"received_bytes"`
	Replayed uint64  `json:"entries_replayed"`
}

// sweepClients are many, because a client has few requests under way a broker.
const sweepClients = 16

func (f *snapshotBench) sweep(ctx context.Context) (*thresholdSweep, error) {
	s := &thresholdSweep{Seconds: f.duration.Seconds(), Away: f.away.Seconds()}
	for _, t := range f.thresholds {
		row, err := f.sweepOne(ctx, t)
		if err != nil {
			return nil, fmt.Errorf("threshold %s: %w", thousands(int64(t)), err)
		}
		f.say("threshold %s: %.0f records/s, p50 %.2f ms, p99 %.2f ms, %.0f snapshots, %.2f s a minute; raftlog %.1f MB live; back after %.2f s (%.1f MB received, %d entries replayed)",
			thousands(int64(t)), row.Load.RecordsPerSec, row.Load.P50, row.Load.P99, row.Snapshots, row.SnapshotSeconds,
			row.RaftlogLive/1e6, row.Rejoin, row.Received/1e6, row.Replayed)
		s.Rows = append(s.Rows, row)
	}
	s.Advice = s.advise()
	return s, nil
}

// sweepOne loads a cluster with many small entries of one group, takes a node
// away for a while, and has it come back.
func (f *snapshotBench) sweepOne(ctx context.Context, threshold int) (row thresholdRow, err error) {
	row.Threshold = threshold
	// By entries alone: bytes, time and the raftlog's size must not decide.
	b, err := startBench(ctx, f.dir, "snapshot.threshold_entries="+strconv.Itoa(threshold),
		"snapshot.threshold_bytes=1TiB", "snapshot.hold_bytes=0", "raftlog.max_bytes=8GiB")
	if err != nil {
		return row, err
	}
	defer func() { err = firstErr(err, b.stop()) }()
	if err := b.topic(ctx, benchTopic, 1); err != nil {
		return row, err
	}
	leader, err := b.leader(ctx, benchTopic)
	if err != nil {
		return row, err
	}
	// Batches of a record each: the threshold counts entries.
	l, err := startLoad(ctx, b, loadOptions{topic: benchTopic, bytes: 256, clients: sweepClients, outstanding: 8, batchBytes: 512})
	if err != nil {
		return row, err
	}
	err = f.sweepLoad(ctx, b, l, leader, &row)
	if err := firstErr(err, l.end(ctx)); err != nil {
		return row, err
	}
	id := 1 + leader%3
	began := time.Now()
	if err := firstErr(b.restart(id), b.whole(ctx, id, 5*time.Minute)); err != nil {
		return row, err
	}
	row.Rejoin = time.Since(began).Seconds()
	rs, err := b.replicas(ctx, id)
	for _, r := range rs {
		if r.Topic == benchTopic {
			row.Received, row.Replayed = float64(r.SnapshotBytesReceived), r.EntriesReplayed
		}
	}
	return row, err
}

// sweepLoad measures the load with all nodes, then goes on without one.
func (f *snapshotBench) sweepLoad(ctx context.Context, b *benchCluster, l *load, leader int, row *thresholdRow) error {
	const count, seconds = "chronik_snapshot_create_seconds_count", "chronik_snapshot_create_seconds_sum"
	n0, err1 := b.total(ctx, count)
	s0, err2 := b.total(ctx, seconds)
	w, err3 := f.quietRound(ctx, l, f.duration)
	n1, err4 := b.total(ctx, count)
	s1, err5 := b.total(ctx, seconds)
	m, err6 := b.metrics(ctx, leader)
	disk, err7 := b.diskBytes(leader)
	if err := firstErr(err1, err2, err3, err4, err5, err6, err7); err != nil {
		return err
	}
	row.Load = l.between(w)
	row.Snapshots, row.SnapshotSeconds = n1-n0, (s1-s0)*60/f.duration.Seconds()
	row.RaftlogLive, row.RaftlogBytes, row.DiskBytes = m["chronik_raftlog_live_bytes"], m["chronik_raftlog_size_bytes"], float64(disk)
	if err := b.node(1 + leader%3).kill(); err != nil {
		return err
	}
	_, err := f.quietRound(ctx, l, f.away)
	return err
}

// What the advice takes for as good as the best.
const (
	enoughThroughput = 0.90
	enoughLatency    = 1.50
	enoughRejoin     = 1.10
	// mostWork is how many seconds of each minute the three nodes may spend on
	// snapshots: more is I/O that other groups will want, if this run's clients did not.
	mostWork = 30
)

// choose returns the threshold with the shortest rejoin of those that cost
// producers little; of several about as short, the largest: it does the least work.
func (s *thresholdSweep) choose() (chosen thresholdRow, best float64) {
	p99 := s.Rows[0].Load.P99
	for _, r := range s.Rows {
		best, p99 = max(best, r.Load.RecordsPerSec), min(p99, r.Load.P99)
	}
	cheap := slices.DeleteFunc(slices.Clone(s.Rows), func(r thresholdRow) bool {
		return r.Load.RecordsPerSec < enoughThroughput*best || r.Load.P99 > enoughLatency*p99 || r.SnapshotSeconds > mostWork
	})
	if len(cheap) == 0 { // the fastest is not among those with a good latency
		cheap = slices.DeleteFunc(slices.Clone(s.Rows), func(r thresholdRow) bool { return r.Load.RecordsPerSec < best })
	}
	soonest := cheap[0].Rejoin
	for _, r := range cheap {
		soonest = min(soonest, r.Rejoin)
	}
	for _, r := range cheap {
		if r.Rejoin <= enoughRejoin*soonest && r.Threshold > chosen.Threshold {
			chosen = r
		}
	}
	return chosen, best
}

// advise says which threshold to choose, and what the ends of the sweep cost.
func (s *thresholdSweep) advise() string {
	if len(s.Rows) == 0 {
		return ""
	}
	chosen, best := s.choose()
	share := func(r thresholdRow) float64 { return 100 * r.Load.RecordsPerSec / best }
	text := fmt.Sprintf("Choose %s: it has %.0f %% of the best throughput at a p99 of %.1f ms, works %.1f s a minute on snapshots, "+
		"and a node that was away for %.0f s is back after %.2f s.",
		thousands(int64(chosen.Threshold)), share(chosen), chosen.Load.P99, chosen.SnapshotSeconds, s.Away, chosen.Rejoin)
	for _, r := range []thresholdRow{
		slices.MinFunc(s.Rows, byThreshold), slices.MaxFunc(s.Rows, byThreshold),
	} {
		if r.Threshold != chosen.Threshold {
			text += fmt.Sprintf(" With %s it is %.0f %%, %.1f ms, %.1f s and %.2f s.",
				thousands(int64(r.Threshold)), share(r), r.Load.P99, r.SnapshotSeconds, r.Rejoin)
		}
	}
	return text
}

func byThreshold(a, b thresholdRow) int { return a.Threshold - b.Threshold }
