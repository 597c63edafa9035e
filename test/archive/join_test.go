package archive

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/admin"
	"chronik/test/harness"
)

const (
	joinParts  = 6
	joinEach   = 112      // records a partition
	joinRecord = 60 << 10 // bytes: 40 MB in all
)

// stored is filled, with all of it in the object store.
func stored(t *testing.T) (c *harness.Cluster, dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "store")
	c = filled(t, "object_store.url=file://"+dir)
	out, err := c.CLI("snapshot", "create", "orders", "--upload")
	must(t, out, err)
	return c, dir
}

// filled starts three nodes with a topic of 40 MB, and consumer groups.
func filled(t *testing.T, set ...string) *harness.Cluster {
	t.Helper()
	c := harness.Start(t, harness.Options{Set: set})
	c.CreateTopic("orders", joinParts, "segment.bytes=1048576")
	fill(t, c, 0, joinEach)
	os := kadm.Offsets{}
	os.AddOffset("orders", 0, 7, -1)
	resp, err := kadm.NewClient(c.Client()).CommitOffsets(t.Context(), "g", os)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// fill writes records from..to-1, which no codec makes smaller, into each partition.
func fill(t *testing.T, c *harness.Cluster, from, to int) {
	t.Helper()
	random := rand.NewChaCha8([32]byte{byte(from)})
	cl := c.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var rs []*kgo.Record
	for range to - from {
		for p := range int32(joinParts) {
			v := make([]byte, joinRecord)
			_, _ = random.Read(v) // it never fails
			rs = append(rs, &kgo.Record{Topic: "orders", Partition: p, Value: v})
		}
	}
	if err := cl.ProduceSync(ctx, rs...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// received is what node id's snapshots took from the object store, and from nodes.
func received(t *testing.T, c *harness.Cluster, id int) (store, nodes int64) {
	t.Helper()
	resp, err := http.Get("http://" + c.Node(id).Admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		rest, ok := strings.CutPrefix(line, "chronik_snapshot_received_from_bytes_total{source=\"")
		if !ok {
			continue
		}
		who, value, _ := strings.Cut(rest, "\"} ")
		v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil {
			t.Fatal(err)
		}
		if who == "object store" {
			store += int64(v)
		} else {
			nodes += int64(v)
		}
	}
	return store, nodes
}

// rebalanced evens out the replicas and returns the partitions of orders that node 4 has then.
func rebalanced(t *testing.T, c *harness.Cluster) []int {
	t.Helper()
	out, err := c.CLI("cluster", "rebalance", "--dry-run", "--json")
	var plan admin.Rebalance
	if err := json.Unmarshal([]byte(must(t, out, err)), &plan); err != nil {
		t.Fatal(err)
	}
	out, err = c.CLI("cluster", "rebalance", "--timeout", "2m")
	if must(t, out, err); len(plan.Planned) == 0 || !strings.Contains(out, fmt.Sprintf("moved %d replicas", len(plan.Planned))) || !strings.HasPrefix(out, "GROUP") {
		t.Errorf("planned %+v, then:\n%s", plan, out)
	}
	return even(t, c)
}

// even checks that the replicas are, and returns the partitions of orders that node 4 has.
func even(t *testing.T, c *harness.Cluster) []int {
	t.Helper()
	var cl admin.Cluster
	if err := c.Get(4, "/v1/cluster", &cl); err != nil {
		t.Fatal(err)
	}
	counts := map[int32]int{}
	var mine []int
	for _, p := range append(cl.Internal, cl.Topic("orders").Partitions...) {
		for _, r := range p.Replicas {
			if p.Group != "__meta" {
				counts[r.Node]++
			}
			if r.Joining || r.Lost || len(p.Replicas) < 3 {
				t.Errorf("%s: %+v", p.Group, p.Replicas)
			}
			if r.Node == 4 && strings.HasPrefix(p.Group, "orders-") {
				mine = append(mine, int(p.Partition))
			}
		}
	}
	if most := max(counts[1], counts[2], counts[3], counts[4]); most-min(counts[1], counts[2], counts[3], counts[4]) > 1 {
		t.Errorf("replicas a node: %v", counts)
	}
	if len(mine) < 4 {
		t.Fatalf("node 4 has partitions %v", mine)
	}
	if out, err := c.CLI("cluster", "rebalance"); !strings.Contains(must(t, out, err), "nothing to move") {
		t.Errorf("again: %s", out)
	}
	return mine
}

// equalReplicas waits until the partitions' replicas, node 4's among them, are equal up to record n.
func equalReplicas(t *testing.T, c *harness.Cluster, parts []int, n int64) {
	t.Helper()
	c.Eventually(30*time.Second, "equal replicas", func() error {
		for _, p := range parts {
			id, _, err := c.Leader(fmt.Sprintf("orders-%d", p))
			if err != nil {
				return err
			}
			var seen []admin.Digest
			for _, node := range []int{id, 4} {
				var d admin.Digest
				if err := c.Get(node, fmt.Sprintf("/v1/digest?topic=orders&partition=%d", p), &d); err != nil {
					return err
				}
				seen = append(seen, d)
			}
			if seen[0] != seen[1] || seen[0].Records != n {
				return fmt.Errorf("orders-%d: %+v", p, seen)
			}
		}
		return nil
	})
	out, err := c.CLI("verify", "orders")
	must(t, out, err)
}

// TestNewNodeTakesBytesFromTheStore: a fourth node gets its share of replicas. The bytes
// come from the object store: the other nodes send less than 5 % of them.
func TestNewNodeTakesBytesFromTheStore(t *testing.T) {
	harness.Long(t)
	c, _ := stored(t)
	c.Join()
	mine := rebalanced(t, c)
	store, nodes := received(t, c, 4)
	t.Logf("node 4 has %d of %d partitions: %d bytes from the object store, %d from nodes", len(mine), joinParts, store, nodes)
	if want := int64(len(mine) * joinEach * joinRecord); store+nodes < want || nodes*20 > store+nodes {
		t.Errorf("%d bytes from the object store and %d from nodes, of %d", store, nodes, want)
	}
	equalReplicas(t, c, mine, joinEach)
	fill(t, c, joinEach, joinEach+3)
	equalReplicas(t, c, mine, joinEach+3)
}

// TestNewNodeWithoutTheStore: the object store cannot be read, is gone, or has lost every second
// object, which shows in mid-transfer: the node gets what is missing from the other nodes.
func TestNewNodeWithoutTheStore(t *testing.T) {
	harness.Long(t)
	for name, damage := range map[string]func(t *testing.T, dir string){
		"unreadable": func(t *testing.T, dir string) {
			if err := os.Rename(dir, dir+".away"); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(dir, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		},
		"removed": func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		},
		"objects gone": func(t *testing.T, dir string) {
			var names []string
			for n := range objects(t, dir, "objects") {
				names = append(names, n)
			}
			slices.Sort(names)
			for i := 0; i < len(names); i += 2 {
				if err := os.Remove(names[i]); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, dir := stored(t)
			damage(t, dir)
			c.Join()
			mine := rebalanced(t, c)
			store, nodes := received(t, c, 4)
			t.Logf("node 4 has %d of %d partitions: %d bytes from the object store, %d from nodes", len(mine), joinParts, store, nodes)
			if want := int64(len(mine) * joinEach * joinRecord); store+nodes < want || nodes < want/10 {
				t.Errorf("%d bytes from the object store and %d from nodes, of %d", store, nodes, want)
			}
			equalReplicas(t, c, mine, joinEach)
		})
	}
}

// TestRebalanceGoesOn: the command is interrupted and the new node killed while its replicas
// are on their way. Both come again, and all ends as if nothing had been.
func TestRebalanceGoesOn(t *testing.T) {
	harness.Long(t)
	c := filled(t, "snapshot.max_bytes_per_second=2097152")
	out, err := c.CLI("snapshot", "create", "orders")
	must(t, out, err)
	c.Join()
	if _, err := c.CLI("cluster", "rebalance", "--timeout", "1ms"); err == nil || !strings.Contains(err.Error(), "not done within 1ms") || !strings.Contains(err.Error(), "go on") {
		t.Errorf("a limit: %v", err)
	}
	interrupted(t, c)
	c.Kill(4)
	out, err = c.CLI("cluster", "rebalance", "--dry-run", "--json")
	var plan admin.Rebalance
	if err := json.Unmarshal([]byte(must(t, out, err)), &plan); err != nil {
		t.Fatal(err)
	}
	if len(plan.UnderWay) == 0 {
		t.Errorf("nothing is under way: %s", out)
	}
	c.Restart(4)
	c.Eventually(30*time.Second, "node 4 is back", func() error { return c.Ready(4) })
	out, err = c.CLI("cluster", "rebalance", "--timeout", "2m")
	must(t, out, err)
	equalReplicas(t, c, even(t, c), joinEach)
}

// interrupted runs a rebalance and stops it once bytes arrive at node 4.
func interrupted(t *testing.T, c *harness.Cluster) {
	t.Helper()
	said, err := os.Create(filepath.Join(t.TempDir(), "said"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = said.Close() }()
	text := func() string {
		b, err := os.ReadFile(said.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	cmd := exec.Command(c.Exe, "cluster", "rebalance", "--bootstrap", strings.Join(c.Bootstrap(), ","))
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.Eventually(30*time.Second, "bytes arrive", func() error {
		// The metadata's own snapshot is smaller.
		if _, nodes := received(t, c, 4); nodes < 1<<20 || !strings.Contains(text(), "under way") {
			return fmt.Errorf("%d bytes, and it said %q", nodes, text())
		}
		return nil
	})
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 || !strings.Contains(text(), "the moves under way go on") {
		t.Errorf("interrupted: %v, %s", err, text())
	}
}
