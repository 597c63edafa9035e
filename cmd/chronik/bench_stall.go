package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"time"

	"chronik/internal/group"
	"chronik/internal/ident"
	"chronik/internal/metadata"
	"chronik/internal/raftgroup"
	"chronik/internal/snapshot"
	"chronik/internal/vfs"
)

// quantiles of durations, in milliseconds.
type quantiles struct {
	Count int     `json:"count"`
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
	P999  float64 `json:"p999_ms"`
	Max   float64 `json:"max_ms"`
}

func quantilesOf(sorted []time.Duration) quantiles {
	if len(sorted) == 0 {
		return quantiles{}
	}
	return quantiles{
		Count: len(sorted), P50: millisAt(sorted, 0.5), P99: millisAt(sorted, 0.99),
		P999: millisAt(sorted, 0.999), Max: millisAt(sorted, 1),
	}
}

// stallRow is a state machine in this process: what a capture makes its applier wait.
type stallRow struct {
	State    string    `json:"state"`
	Stall    quantiles `json:"stall"`
	Capture  quantiles `json:"capture"`
	Quiet    quantiles `json:"quiet"`
	Written  int       `json:"checkpoints_written"`
	FileSize int64     `json:"checkpoint_bytes"`
}

const (
	stallCaptures = 2000
	stallOffsets  = 1_000_000
	stallPerGroup = 100
	stallTopic    = 10_000 // partitions
)

func (f *snapshotBench) stall(ctx context.Context) ([]stallRow, error) {
	dir, err := os.MkdirTemp(f.dir, "bench-stall-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	var rows []stallRow
	for _, m := range []struct {
		state string
		make  func() (raftgroup.StateMachine, func(int) []byte, error)
	}{
		{"1,000,000 committed group offsets", offsetsMachine},
		{"metadata of 10,000 partitions", partitionsMachine},
	} {
		sm, next, err := m.make()
		if err != nil {
			return nil, err
		}
		r, err := raftgroup.MeasureStall(ctx, raftgroup.StallOptions{
			SM: sm, Next: next, Captures: stallCaptures, Applies: 4, Pause: 200 * time.Microsecond, First: 1 << 32,
			FS: vfs.Default, Dir: dir, Compression: snapshot.Zstd,
		})
		if err != nil {
			return nil, err
		}
		row := stallRow{
			State: m.state, Stall: quantilesOf(r.Stalls), Capture: quantilesOf(r.Captured), Quiet: quantilesOf(r.Quiet),
			Written: r.Written, FileSize: r.FileBytes,
		}
		f.say("stall, %s: p50 %.3f ms, p99 %.3f, p99.9 %.3f, max %.3f; the capture alone p99.9 %.3f; without captures p99.9 %.3f, max %.3f",
			row.State, row.Stall.P50, row.Stall.P99, row.Stall.P999, row.Stall.Max, row.Capture.P999, row.Quiet.P999, row.Quiet.Max)
		rows = append(rows, row)
	}
	return rows, nil
}

// offsetsMachine is a coordinator shard, and commits of ten offsets to groups all over it.
func offsetsMachine() (raftgroup.StateMachine, func(int) []byte, error) {
	sm, err := group.Open(vfs.Default, "", nil, nil)
	if err != nil {
		return nil, nil, err
	}
	const groups = stallOffsets / stallPerGroup
	name := func(n int) string { return fmt.Sprintf("group-%d", n*7919%groups) }
	for n := range groups {
		data := group.CommitEntry(1, name(n), "orders", stallPerGroup, 1)
		if _, err := sm.Apply([]raftgroup.Entry{{Index: ident.Index(n + 1), Term: 1, Data: data}}); err != nil {
			return nil, nil, err
		}
	}
	return sm, func(n int) []byte { return group.CommitEntry(2, name(n), "orders", 10, int64(n)) }, nil
}

// partitionsMachine is the metadata group's with a hundred topics of a hundred
// partitions, and changes of them: settings mostly, now and then one partition more.
func partitionsMachine() (raftgroup.StateMachine, func(int) []byte, error) {
	sm, err := metadata.Open(metadata.NewStore())(vfs.Default, "", nil, nil)
	if err != nil {
		return nil, nil, err
	}
	const each = 100
	name := func(n int) string { return fmt.Sprintf("topic-%d", n%(stallTopic/each)) }
	stores := map[ident.NodeID]ident.StoreID{}
	for n := ident.NodeID(1); n <= 3; n++ {
		stores[n] = random[ident.StoreID]()
	}
	cmds := []metadata.Command{&metadata.Genesis{ClusterID: "bench", Members: metadata.GenesisMembers(stores), Coordinators: 1, Level: 1}}
	for n, s := range stores {
		cmds = append(cmds, &metadata.RegisterBroker{Node: n, Store: s, KafkaHost: "h", KafkaPort: 1, RaftAddr: "h:1"})
	}
	for n := range stallTopic / each {
		t := metadata.NewTopic{Name: name(n), ID: random[metadata.TopicID](), Partitions: each, ReplicationFactor: 3}
		cmds = append(cmds, &metadata.CreateTopics{Topics: []metadata.NewTopic{t}})
	}
	for i, cmd := range cmds {
		rs, err := sm.Apply([]raftgroup.Entry{{Index: ident.Index(i + 1), Term: 1, Data: encoded(cmd)}})
		if err == nil {
			err = rs[0].(*metadata.Reply).Err
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return sm, func(n int) []byte {
		if n%16 == 0 {
			more := metadata.MorePartitions{Name: name(n), Count: each + 1 + int32(n/16*16/(stallTopic/each))}
			return encoded(&metadata.CreatePartitions{Topics: []metadata.MorePartitions{more}})
		}
		v := fmt.Sprint(1<<20 + n)
		return encoded(&metadata.AlterConfigs{Resources: []metadata.AlterResource{{
			Type: metadata.ResourceTopic, Name: name(n), Ops: []metadata.ConfigAlterOp{{Name: "retention.ms", Value: &v}},
		}}})
	}, nil
}

// random is an id.
func random[T ~[16]byte]() T {
	var id T
	_, _ = rand.Read(id[:])
	return id
}

// encoded is a command that this program made, so it can be encoded.
func encoded(cmd metadata.Command) []byte {
	data, err := metadata.Encode(cmd)
	if err != nil {
		panic(err)
	}
	return data
}
