package recover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/admin"
	"chronik/internal/recovery"
	"chronik/test/harness"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func noErr(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// produce writes records from..to-1 and returns when all are acknowledged.
func produce(t *testing.T, cl *kgo.Client, topic string, partition int32, from, to int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := from; i < to; i++ {
		r := kgo.StringRecord(fmt.Sprintf("record %d", i))
		r.Topic, r.Partition = topic, partition
		noErr(t, cl.ProduceSync(ctx, r).FirstErr())
		if r.Offset != int64(i) {
			t.Fatalf("record %d has offset %d", i, r.Offset)
		}
	}
}

// expect reads records 0..n-1.
func expect(t *testing.T, c *harness.Cluster, topic string, partition int32, n int) {
	t.Helper()
	cl := c.Client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().AtStart()}}))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for got := 0; got < n; {
		fs := cl.PollFetches(ctx)
		noErr(t, fs.Err())
		fs.EachRecord(func(r *kgo.Record) {
			if r.Offset != int64(got) || string(r.Value) != fmt.Sprintf("record %d", got) {
				t.Fatalf("%s-%d: %q at offset %d, want record %d", topic, partition, r.Value, r.Offset, got)
			}
			got++
		})
	}
}

func report(t *testing.T, c *harness.Cluster, args ...string) *recovery.Report {
	t.Helper()
	out := must(c.CLI(append([]string{"cluster", "recover", "--json", "--data-dir", c.Node(1).Dir}, args...)...))
	rep := &recovery.Report{}
	noErr(t, json.Unmarshal([]byte(out), rep))
	return rep
}

func row(t *testing.T, rep *recovery.Report, group string) recovery.Group {
	t.Helper()
	for _, g := range rep.Groups {
		if g.Group == group {
			return g
		}
	}
	t.Fatalf("no %s in %+v", group, rep.Groups)
	return recovery.Group{}
}

// full returns nil once every node is ready and every group has all its replicas.
func full(c *harness.Cluster) error {
	for _, n := range c.Nodes() {
		if err := c.Ready(n.ID); err != nil {
			return err
		}
	}
	var cl admin.Cluster
	if err := c.Get(1, "/v1/cluster", &cl); err != nil {
		return err
	}
	parts := cl.Internal
	for _, topic := range cl.Topics {
		parts = append(parts, topic.Partitions...)
	}
	for _, p := range parts {
		for _, r := range p.Replicas {
			if r.Joining || r.Lost {
				return fmt.Errorf("%s: replica %d is not there yet", p.Group, r.ReplicaID)
			}
		}
	}
	return nil
}

func metrics(t *testing.T, c *harness.Cluster, id int) string {
	t.Helper()
	resp := must(http.Get("http://" + c.Node(id).Admin + "/metrics"))
	defer func() { _ = resp.Body.Close() }()
	return string(must(io.ReadAll(resp.Body)))
}

func move(t *testing.T, from, to string) {
	t.Helper()
	noErr(t, os.Rename(from, to))
}

// TestTwoOfThreeDisksLost: two nodes come back empty. The third says what is missing
// and waits; it becomes a new cluster with everything it had, and the others join. A disk
// of the old cluster that turns up later is refused.
func TestTwoOfThreeDisksLost(t *testing.T) {
	c := harness.Start(t, harness.Options{Threshold: 50})
	c.CreateTopic("orders", 2)
	// One producer over it all: its sequence goes on, or the record fails.
	cl := c.Client(kgo.StopProducerOnDataLossDetected(), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	produce(t, cl, "orders", 0, 0, 230)
	produce(t, cl, "orders", 1, 0, 20)
	adm := kadm.NewClient(cl)
	os := kadm.Offsets{}
	os.AddOffset("orders", 0, 77, -1)
	noErr(t, must(adm.CommitOffsets(t.Context(), "g", os)).Error())
	for id := 1; id <= 3; id++ {
		c.Kill(id)
	}
	oldDisk := filepath.Join(c.Dir, "old-2")
	move(t, c.Node(2).Dir, oldDisk)
	c.Wipe(3)
	for id := 1; id <= 3; id++ {
		c.Restart(id)
	}
	c.Eventually(20*time.Second, "the survivor says which disks are gone", func() error { return waits(c) })
	if n := strings.Count(c.NodeLog(1), "groups cannot go on"); n < 1 || n > 3 { // once for each of what it saw on the way
		t.Errorf("logged %d times", n)
	}
	out := must(c.CLI("status", "--admin", c.Node(1).Admin))
	if !strings.Contains(out, "orders-1") || !strings.Contains(out, "cluster recover --dry-run") || !strings.Contains(out, "another disk") {
		t.Errorf("status:\n%s", out)
	}
	if text := metrics(t, c, 1); !strings.Contains(text, `chronik_broker_groups_without_quorum{lost="true"} 11`) {
		t.Errorf("metrics:\n%s", text)
	}
	if _, err := c.CLI("cluster", "recover", "--data-dir", c.Node(1).Dir); err == nil || !strings.Contains(err.Error(), "stop the node first") {
		t.Errorf("a running node's directory: %v", err)
	}
	c.Kill(1)
	dry := report(t, c, "--dry-run")
	if g := row(t, dry, "orders-0"); g.Outcome != recovery.Kept || g.NextOffset != 230 || g.FromIndex == 0 || len(g.Others) != 2 {
		t.Errorf("%+v", g)
	}
	made := report(t, c)
	if made.Count(recovery.Kept) != len(dry.Groups) || made.NewCluster == dry.OldCluster || row(t, made, "orders-1").NextOffset != 20 {
		t.Errorf("%+v", made)
	}
	c.Restart(1)
	c.Eventually(60*time.Second, "the others have joined", func() error { return full(c) })
	produce(t, cl, "orders", 0, 230, 260)
	produce(t, cl, "orders", 1, 20, 30)
	expect(t, c, "orders", 0, 260)
	expect(t, c, "orders", 1, 30)
	c.Eventually(20*time.Second, "equal replicas", func() error { return c.DigestsEqual("orders", 0, 260) })
	_ = must(c.CLI("verify", "orders"))
	if o, ok := must(adm.FetchOffsets(t.Context(), "g")).Lookup("orders", 0); !ok || o.At != 77 {
		t.Errorf("committed offset %+v", o)
	}
	oldDiskIsRefused(t, c, oldDisk)
	c.Kill(1) // the new cluster does without any one of its nodes, the survivor too
	c.Eventually(20*time.Second, "nodes 2 and 3 go on", func() error { return errors.Join(c.Ready(2), c.Ready(3)) })
	produce(t, cl, "orders", 0, 260, 270)
}

// waits returns nil once /readyz and the log of node 1 name the groups and the two nodes whose disks are gone.
func waits(c *harness.Cluster) error {
	var rs admin.Replicas
	if err := c.Get(1, "/v1/replicas", &rs); err != nil {
		return err
	}
	groups := map[string]bool{}
	for _, f := range rs.WithoutQuorum {
		if !f.Lost || f.Present != 1 || len(f.Missing) != 2 || f.Missing[0].State != "replaced" {
			return fmt.Errorf("%+v", f)
		}
		groups[f.Group] = true
	}
	log := c.NodeLog(1)
	at := strings.LastIndex(log, "groups cannot go on")
	if !groups["__meta"] || !groups["orders-0"] || !groups["orders-1"] || at < 0 {
		return fmt.Errorf("named %v, logged at %d", groups, at)
	}
	for _, s := range []string{"__meta", "orders-0", "node 2 is back with another disk", "node 3 is back with another disk", "cluster recover --dry-run"} {
		if line, _, _ := strings.Cut(log[at:], "\n"); !strings.Contains(line, s) {
			return fmt.Errorf("no %q in %q", s, line)
		}
	}
	return nil
}

// oldDiskIsRefused starts node 2 with a disk of the old cluster: it ends with one error. Then it gets its own back.
func oldDiskIsRefused(t *testing.T, c *harness.Cluster, disk string) {
	t.Helper()
	n := c.Node(2)
	c.Kill(2)
	own := filepath.Join(c.Dir, "own-2")
	move(t, n.Dir, own)
	move(t, disk, n.Dir)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, n.Argv[0], n.Argv[1:]...).CombinedOutput()
	exit := (*exec.ExitError)(nil)
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || ctx.Err() != nil {
		t.Errorf("an old disk: %v\n%s", err, out)
	}
	if n := strings.Count(string(out), "chronik: error: "); n != 1 || !strings.Contains(string(out), "another cluster") {
		t.Errorf("%d errors:\n%s", n, out)
	}
	move(t, n.Dir, disk)
	move(t, own, n.Dir)
	c.Restart(2)
	c.Eventually(30*time.Second, "node 2 is back with its own disk", func() error { return full(c) })
}

// TestPartitionsElsewhere: of four nodes one is left. What it has no replica of is
// named, begins anew, and gets its replicas like the others.
func TestPartitionsElsewhere(t *testing.T) {
	c := harness.Start(t, harness.Options{Nodes: 4, Threshold: 50})
	req := kmsg.NewPtrCreateTopicsRequest()
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = "mixed", -1, -1
	for i, nodes := range [][]int32{{2, 3, 4}, {1, 2, 3}} {
		a := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
		a.Partition, a.Replicas = int32(i), nodes
		topic.ReplicaAssignment = append(topic.ReplicaAssignment, a)
	}
	req.Topics, req.TimeoutMillis = append(req.Topics, topic), 10_000
	cl := c.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	resp := must(req.RequestWith(t.Context(), cl))
	if resp.Topics[0].ErrorCode != 0 {
		t.Fatalf("%+v", resp.Topics[0])
	}
	produce(t, cl, "mixed", 0, 0, 60)
	produce(t, cl, "mixed", 1, 0, 70)
	for id := 1; id <= 4; id++ {
		c.Kill(id)
	}
	for id := 2; id <= 4; id++ {
		c.Wipe(id)
	}
	dry := report(t, c, "--dry-run")
	lost := row(t, dry, "mixed-0")
	if lost.Outcome != recovery.Lost || lost.NextOffset != 0 || len(lost.Notes) == 0 || len(lost.Others) != 3 {
		t.Errorf("%+v", lost)
	}
	if g := row(t, dry, "mixed-1"); g.Outcome != recovery.Kept || g.NextOffset != 70 {
		t.Errorf("%+v", g)
	}
	text := must(c.CLI("cluster", "recover", "--data-dir", c.Node(1).Dir))
	if !strings.Contains(text, "mixed-0: no replica here") || !strings.Contains(text, "nodes 2, 3, 4") {
		t.Errorf("recover said:\n%s", text)
	}
	for id := 1; id <= 4; id++ {
		c.Restart(id)
	}
	c.Eventually(60*time.Second, "the others have joined", func() error { return full(c) })
	cl = c.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	produce(t, cl, "mixed", 0, 0, 10)
	produce(t, cl, "mixed", 1, 70, 80)
	expect(t, c, "mixed", 0, 10)
	expect(t, c, "mixed", 1, 80)
	_ = must(c.CLI("verify", "mixed"))
	var now admin.Cluster
	noErr(t, c.Get(1, "/v1/cluster", &now))
	for i, want := range [][]int32{{1, 3, 4}, {1, 2, 3}} {
		var got []int32
		for _, r := range now.Topic("mixed").Partitions[i].Replicas {
			got = append(got, r.Node)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("mixed-%d is on nodes %v, want %v", i, got, want)
		}
	}
}
