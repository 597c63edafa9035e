package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/test/harness"
)

const damagedRecords = 300

// damagedCluster holds records of one partition, all in checkpoints, with a bit
// flipped in an early batch of its leader's segment while that runs.
func damagedCluster(t *testing.T) (c *harness.Cluster, leader int) {
	t.Helper()
	c = harness.Start(t, harness.Options{Threshold: 100})
	c.CreateTopic("orders", 1)
	cl := c.Client(kgo.ProducerLinger(0), kgo.DefaultProduceTopic("orders"))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for i := range damagedRecords {
		if err := cl.ProduceSync(ctx, &kgo.Record{Value: orderValue(i)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	c.Eventually(10*time.Second, "all nodes have all", func() error { return c.DigestsEqual("orders", 0, damagedRecords) })
	leader, r, err := c.Leader("orders-0")
	if err != nil {
		t.Fatal(err)
	}
	if r.SnapshotIndex < 200 {
		t.Fatalf("snapshot index %d", r.SnapshotIndex)
	}
	flipEarly(t, c.Node(leader).Dir)
	return c, leader
}

func orderValue(i int) []byte { return fmt.Appendf(nil, "%d:%s", i, strings.Repeat("x", 500)) }

// flipEarly flips a bit of a record's value in the only segment of orders-0.
func flipEarly(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "replicas", "*-0.*", "g*", "*.seg"))
	if err != nil || len(files) != 1 {
		t.Fatalf("segments: %v, %v", files, err)
	}
	f, err := os.OpenFile(files[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteAt([]byte("y"), 20_000); err != nil {
		t.Fatal(err)
	}
}

// readsAll consumes orders from its start: every record, with its bytes.
func readsAll(c *harness.Cluster) error {
	cl := c.Client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"orders": {0: kgo.NewOffset().AtStart()}}), kgo.FetchMaxWait(100*time.Millisecond))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for next := 0; next < damagedRecords; {
		fs := cl.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read %d of %d records: %w, %w", next, damagedRecords, err, fs.Err())
		}
		for _, r := range fs.Records() {
			if r.Offset != int64(next) || string(r.Value) != string(orderValue(next)) {
				return fmt.Errorf("offset %d holds %.20q, want record %d", r.Offset, r.Value, next)
			}
			next++
		}
	}
	return nil
}

// repaired waits until the damage is found, replaced and nowhere else.
func repaired(t *testing.T, c *harness.Cluster, leader int) {
	t.Helper()
	c.Eventually(30*time.Second, "all replicas are whole and equal", func() error {
		if !strings.Contains(c.NodeLog(leader), "found damage") {
			return errors.New("nothing found yet")
		}
		return errors.Join(whole(c), c.DigestsEqual("orders", 0, damagedRecords))
	})
	if err := readsAll(c); err != nil {
		t.Error(err)
	}
}

// TestDamageFoundByAReader: a consumer gets every record, and the replica is replaced.
func TestDamageFoundByAReader(t *testing.T) {
	long(t)
	c, leader := damagedCluster(t)
	began := time.Now()
	if err := readsAll(c); err != nil {
		t.Fatal(err)
	}
	t.Logf("read all after %v", time.Since(began))
	repaired(t, c, leader)
}

// TestDamageDoesNotSpread: a node that gets a snapshot from the damaged leader does
// not take the damage over; the leader learns of it and is replaced.
func TestDamageDoesNotSpread(t *testing.T) {
	c, leader := damagedCluster(t)
	id := 1 + leader%3
	c.Kill(id)
	c.Wipe(id)
	c.Restart(id)
	repaired(t, c, leader)
}
