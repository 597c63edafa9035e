package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"chronik/internal/admin"
)

// yieldResult says what snapshots that are taken and sent do to those who produce.
type yieldResult struct {
	Limit string `json:"max_bytes_per_second"`
	// Without: three nodes and nothing else. With: a node receives a snapshot,
	// and each group takes one every second.
	Without latency `json:"without"`
	With    latency `json:"with"`
	Ratio   float64 `json:"p99_ratio"`
	// SentPerSecond is what the snapshots had while they were sent.
	SentPerSecond float64 `json:"snapshot_bytes_per_second"`
	Taken         float64 `json:"snapshots_taken"`
	Rounds        int     `json:"rounds"`
	// FsyncWithout and FsyncWith are the raftlog's, on all nodes that ran through.
	FsyncWithout quantiles `json:"raftlog_fsync_without"`
	FsyncWith    quantiles `json:"raftlog_fsync_with"`
}

const fsyncSeries = "chronik_raftlog_fsync_seconds"

const (
	coldTopic  = "cold"
	coldBytes  = 320e6
	yieldRound = 8 * time.Second
)

func (f *snapshotBench) yield(ctx context.Context) (res *yieldResult, err error) {
	b, err := startBench(ctx, f.dir, handOnly("snapshot.max_bytes_per_second="+f.limit)...)
	if err != nil {
		return nil, err
	}
	defer func() { err = firstErr(err, b.stop()) }()
	for topic, partitions := range map[string]int{benchTopic: 6, coldTopic: 1} {
		if err := b.topic(ctx, topic, partitions); err != nil {
			return nil, err
		}
	}
	if err := fill(ctx, b, coldTopic, coldBytes); err != nil {
		return nil, err
	}
	leader, err := b.leader(ctx, coldTopic)
	if err != nil {
		return nil, err
	}
	l, err := startLoad(ctx, b, loadOptions{topic: benchTopic, bytes: 1 << 10, perSecond: f.rate})
	if err != nil {
		return nil, err
	}
	res = &yieldResult{Limit: f.limit, Rounds: f.rounds}
	var quiet, busy []window
	var sent float64
	stay := []int{leader, 1 + (leader+1)%3} // the one after the leader is wiped
	var fsyncs [2]metrics
	for i := range f.rounds {
		var at [4]metrics
		at[0], err = b.summed(ctx, stay...)
		w, err1 := f.quietRound(ctx, l, yieldRound)
		m, err2 := b.summed(ctx, stay...)
		if err := firstErr(err, err1, err2); err != nil {
			return nil, firstErr(err, l.end(ctx))
		}
		at[1] = m
		quiet = append(quiet, w)
		w, n, err := f.busyRound(ctx, b, l, leader, func() (err error) { at[2], err = b.summed(ctx, stay...); return err })
		m, err1 = b.summed(ctx, stay...)
		if err := firstErr(err, err1); err != nil {
			return nil, firstErr(err, l.end(ctx))
		}
		at[3] = m
		fsyncs[0], fsyncs[1] = fsyncs[0].add(at[1].less(at[0])), fsyncs[1].add(at[3].less(at[2]))
		busy = append(busy, w)
		sent += n
		f.say("yield, round %d: p99 %.2f ms without, %.2f ms with %.1f s of snapshots at %.1f MB/s", i+1,
			l.between(quiet[i]).P99, l.between(w).P99, (w.to - w.from).Seconds(), n/(w.to-w.from).Seconds()/1e6)
	}
	if err := l.end(ctx); err != nil {
		return nil, err
	}
	res.Without, res.With = l.between(quiet...), l.between(busy...)
	res.Ratio = res.With.P99 / res.Without.P99
	res.FsyncWithout, res.FsyncWith = histogram(nil, fsyncs[0], fsyncSeries), histogram(nil, fsyncs[1], fsyncSeries)
	length := 0.0
	for _, w := range busy {
		length += (w.to - w.from).Seconds()
	}
	res.SentPerSecond = sent / length
	if res.Taken, err = b.total(ctx, "chronik_snapshot_create_seconds_count"); err != nil {
		return nil, err
	}
	return res, nil
}

// quietRound lets the load run for d.
func (f *snapshotBench) quietRound(ctx context.Context, l *load, d time.Duration) (window, error) {
	w := window{from: l.now(), to: l.now() + d}
	select {
	case <-ctx.Done():
		return w, ctx.Err()
	case <-time.After(d):
	}
	return w, nil
}

// busyRound wipes a node that leads nothing of the load and measures while its
// cold replica is received and snapshots are taken. It returns once all is whole again.
func (f *snapshotBench) busyRound(ctx context.Context, b *benchCluster, l *load, leader int, begins func() error) (w window, received float64, err error) {
	id := 1 + leader%3
	if err := b.node(id).kill(); err != nil {
		return w, 0, err
	}
	if err := b.snapshotDone(ctx, leader, coldTopic); err != nil {
		return w, 0, err
	}
	if err := firstErr(b.wipe(id), b.restart(id)); err != nil {
		return w, 0, err
	}
	// bytes is what the transfer of the cold partition has by now.
	bytes := func() (done float64, total bool, err error) {
		var ts struct {
			Transfers []admin.Transfer `json:"transfers"`
		}
		if err := b.json(ctx, id, "/v1/transfers", &ts); err != nil {
			return 0, false, err
		}
		for _, t := range ts.Transfers {
			if t.Group == coldTopic+"-0" && t.Direction == "in" {
				return float64(t.BytesDone), true, nil
			}
		}
		return 0, false, nil
	}
	began := 0.0
	err = wait(ctx, time.Minute, "no transfer of "+coldTopic, func() (bool, error) {
		done, running, err := bytes()
		began = done
		return running && done > 0, err
	})
	if err != nil {
		return w, 0, err
	}
	if err := begins(); err != nil {
		return w, 0, err
	}
	w.from = l.now()
	last, taken := began, 0
	err = wait(ctx, 5*time.Minute, "transfer of "+coldTopic, func() (bool, error) {
		done, running, err := bytes()
		if err != nil {
			return false, err
		}
		if running {
			last = max(last, done)
			w.to = l.now()
			if second := int((w.to - w.from) / time.Second); second > taken {
				taken = second
				return false, b.snapshot(ctx, "")
			}
		}
		return !running, nil
	})
	if err != nil {
		return w, 0, err
	}
	return w, last - began, b.whole(ctx, id, time.Minute)
}

// rejoinResult is many partitions that come back at once under load.
type rejoinResult struct {
	Partitions int     `json:"partitions"`
	Seconds    float64 `json:"seconds"` // from the start of the empty node to a voter of every group
	Before     latency `json:"before"`
	During     latency `json:"during"`
	Ratio      float64 `json:"p99_ratio"`
	// LeadersLost counts the groups whose leader or term was another at the end.
	LeadersLost int     `json:"leaders_lost"`
	MostAtOnce  int     `json:"most_transfers_at_once"`
	Received    float64 `json:"bytes_received"`
	// FsyncBefore and FsyncDuring are the raftlog's on the two other nodes.
	FsyncBefore quantiles `json:"raftlog_fsync_before"`
	FsyncDuring quantiles `json:"raftlog_fsync_during"`
}

func (f *snapshotBench) rejoin(ctx context.Context) (res *rejoinResult, err error) {
	b, err := startBench(ctx, f.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = firstErr(err, b.stop()) }()
	if err := b.topic(ctx, benchTopic, f.partitions); err != nil {
		return nil, err
	}
	if err := fill(ctx, b, benchTopic, int64(f.partitions)*256<<10); err != nil {
		return nil, err
	}
	l, err := startLoad(ctx, b, loadOptions{topic: benchTopic, bytes: 1 << 10, perSecond: f.rate})
	if err != nil {
		return nil, err
	}
	res = &rejoinResult{Partitions: f.partitions}
	before, during, err := f.rejoinUnderLoad(ctx, b, l, res)
	if err := firstErr(err, l.end(ctx)); err != nil {
		return nil, err
	}
	res.Before, res.During = l.between(before), l.between(during)
	res.Ratio = res.During.P99 / res.Before.P99
	res.Seconds = (during.to - during.from).Seconds()
	f.say("rejoin, %d partitions: whole after %.2f s, %d transfers at once at most; p99 %.2f ms before, %.2f ms during; raftlog fsync p99 %.2f ms, then %.2f ms; %d leaders lost",
		res.Partitions, res.Seconds, res.MostAtOnce, res.Before.P99, res.During.P99, res.FsyncBefore.P99, res.FsyncDuring.P99, res.LeadersLost)
	return res, nil
}

func (f *snapshotBench) rejoinUnderLoad(ctx context.Context, b *benchCluster, l *load, res *rejoinResult) (before, during window, err error) {
	const id = 3
	m0, err := b.summed(ctx, 1, 2)
	if err != nil {
		return before, during, err
	}
	if before, err = f.quietRound(ctx, l, yieldRound); err != nil {
		return before, during, err
	}
	m1, err := b.summed(ctx, 1, 2)
	if err != nil {
		return before, during, err
	}
	res.FsyncBefore = histogram(m0, m1, fsyncSeries)
	if err := b.node(id).kill(); err != nil {
		return before, during, err
	}
	// Its leaderships go to the others first, and the clients follow.
	var leads map[string]string
	if err := wait(ctx, time.Minute, "leaders without node 3", func() (ok bool, err error) {
		leads, err = b.leaders(ctx)
		return len(leads) >= f.partitions, err
	}); err != nil {
		return before, during, err
	}
	if _, err := f.quietRound(ctx, l, 3*time.Second); err != nil {
		return before, during, err
	}
	if leads, err = b.leaders(ctx); err != nil {
		return before, during, err
	}
	if m0, err = b.summed(ctx, 1, 2); err != nil {
		return before, during, err
	}
	during.from = l.now()
	if err := firstErr(b.wipe(id), b.restart(id)); err != nil {
		return before, during, err
	}
	watched, stop := context.WithCancel(ctx)
	most := make(chan int, 1)
	go func() { most <- b.mostTransfers(watched, id) }()
	err = b.whole(ctx, id, 2*time.Minute)
	during.to = l.now()
	stop()
	res.MostAtOnce = <-most
	if err != nil {
		return before, during, err
	}
	if m1, err = b.summed(ctx, 1, 2); err != nil {
		return before, during, err
	}
	res.FsyncDuring = histogram(m0, m1, fsyncSeries)
	after, err := b.leaders(ctx)
	for g, l := range leads {
		if after[g] != l {
			res.LeadersLost++
		}
	}
	m, merr := b.metrics(ctx, id)
	res.Received = m["chronik_snapshot_received_bytes_total"]
	return before, during, firstErr(err, merr)
}

// leaders tells who leads each group of the load in which term.
func (b *benchCluster) leaders(ctx context.Context) (map[string]string, error) {
	leads := map[string]string{}
	for _, id := range b.alive() {
		rs, err := b.replicas(ctx, id)
		if err != nil {
			return nil, err
		}
		for _, r := range rs {
			if r.Role == "leader" && strings.HasPrefix(r.Group, benchTopic+"-") {
				leads[r.Group] = fmt.Sprintf("node %d, term %d", id, r.Term)
			}
		}
	}
	return leads, nil
}

// mostTransfers watches how many snapshots a node receives at the same time.
func (b *benchCluster) mostTransfers(ctx context.Context, id int) (most int) {
	for ctx.Err() == nil {
		var ts struct {
			Transfers []admin.Transfer `json:"transfers"`
		}
		if b.json(ctx, id, "/v1/transfers", &ts) == nil {
			n := 0
			for _, t := range ts.Transfers {
				if t.State != "queued" && t.Direction == "in" {
					n++
				}
			}
			most = max(most, n)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	return most
}
