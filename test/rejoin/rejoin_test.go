// Package rejoin holds the story Chronik exists for: a node that was away comes
// back through a snapshot with its disk intact, older or empty.
package rejoin

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/admin"
	"chronik/test/harness"
)

const group = "orders-0"

// produce sends n records of size bytes, one a request, and waits for each.
func produce(t *testing.T, cl *kgo.Client, n, size int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for i := range n {
		v := make([]byte, size)
		_, _ = rand.Read(v)
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "orders", Value: v}).FirstErr(); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
}

type story struct {
	size  int
	disk  string // intact, older or empty
	away  int    // records while node 3 is away
	first int    // records before
}

// run plays the story of docs/architecture.md, "Rejoin", and returns node 3's replica at its end.
func (s story) run(t *testing.T) (*harness.Cluster, admin.Replica) {
	t.Helper()
	c := harness.Start(t, harness.Options{Threshold: 100})
	c.CreateTopic("orders", 1, "max.message.bytes=2097152")
	cl := c.Client(kgo.ProducerLinger(0), kgo.ProducerBatchMaxBytes(2<<20))
	older := c.Dir + "/older"
	produce(t, cl, s.first/3, s.size)
	if s.disk == "older" {
		// The copy is taken of a stopped node: what an operator's backup is.
		c.Stop(3)
		copyDir(t, c.Node(3).Dir, older)
		c.Restart(3)
	}
	produce(t, cl, s.first-s.first/3, s.size)
	c.Eventually(10*time.Second, "node 3 has all", func() error {
		r, err := c.Replica(3, group)
		if err == nil && r.HighWatermark != int64(s.first) {
			err = fmt.Errorf("node 3 is at %d", r.HighWatermark)
		}
		return err
	})
	before, err := c.Replica(3, group)
	if err != nil {
		t.Fatal(err)
	}
	c.Kill(3)
	produce(t, cl, s.away, s.size)
	c.Eventually(10*time.Second, "the leader trims past node 3", func() error {
		_, l, err := c.Leader(group)
		if err == nil && l.FirstIndex <= before.LastIndex+1 {
			err = fmt.Errorf("leader's first index %d, node 3's last %d", l.FirstIndex, before.LastIndex)
		}
		return err
	})
	switch s.disk {
	case "older":
		c.Wipe(3)
		copyDir(t, older, c.Node(3).Dir)
	case "empty":
		c.Wipe(3)
	}
	c.Restart(3)
	limit := 5 * time.Second
	if s.size > 1000 {
		limit = 15 * time.Second // it is about bytes, and they take their time on a shared disk
	}
	took := c.Eventually(limit, "node 3 equals the others", func() error {
		return c.DigestsEqual("orders", 0, int64(s.first+s.away))
	})
	t.Logf("%s disk, %d byte records: equal after %v", s.disk, s.size, took)
	after, err := c.Replica(3, group)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("installed=%d received=%d reused=%d replayed=%d", after.SnapshotsInstalled, after.SnapshotBytesReceived, after.SnapshotBytesReused, after.EntriesReplayed)
	s.check(t, c, before, after)
	return c, after
}

func (s story) check(t *testing.T, c *harness.Cluster, before, after admin.Replica) {
	t.Helper()
	if after.SnapshotsInstalled < 1 {
		t.Errorf("snapshots_installed = %d, want at least 1", after.SnapshotsInstalled)
	}
	if after.EntriesReplayed > 110 {
		t.Errorf("entries_replayed = %d, want at most 110", after.EntriesReplayed)
	}
	if after.State != "running" {
		t.Errorf("state %s", after.State)
	}
	if s.disk == "intact" {
		if after.SnapshotBytesReused == 0 {
			t.Error("snapshot_bytes_reused = 0 with an intact disk")
		}
		if after.ReplicaID != before.ReplicaID {
			t.Errorf("replica id changed from %d to %d", before.ReplicaID, after.ReplicaID)
		}
	} else if after.ReplicaID == before.ReplicaID {
		t.Errorf("replica id %d was used again on another disk", after.ReplicaID)
	}
	log := c.NodeLog(3)
	for _, want := range []string{"Received snapshot for orders-0", "Installing snapshot for orders-0", "Successfully installed snapshot for orders-0"} {
		if !strings.Contains(log, want) {
			t.Errorf("node 3's log lacks %q", want)
		}
	}
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v %s", err, out)
	}
}

func TestRejoinIntactDisk(t *testing.T) {
	story{size: 100, disk: "intact", first: 150, away: 100}.run(t)
}

func TestRejoinOlderDisk(t *testing.T) { story{size: 100, disk: "older", first: 150, away: 100}.run(t) }

func TestRejoinEmptyDisk(t *testing.T) { story{size: 100, disk: "empty", first: 150, away: 100}.run(t) }

// TestRejoinReceivesOnlyMissingBytes holds the bytes received to those missing plus 1 MiB.
func TestRejoinReceivesOnlyMissingBytes(t *testing.T) {
	s := story{size: 1 << 20, disk: "intact", first: 150, away: 100}
	c, after := s.run(t)
	missing := uint64(s.away) * uint64(s.size+200) // a batch's header and a record's framing
	if limit := missing + 1<<20; after.SnapshotBytesReceived > limit {
		t.Errorf("received %d bytes, want at most %d", after.SnapshotBytesReceived, limit)
	}
	// The third node has caught up with the leader and gives nearly all of them.
	leader, _, err := c.Leader(group)
	if err != nil {
		t.Fatal(err)
	}
	fromLeader := receivedFrom(t, c.Node(3).Admin, leader)
	fromOther := receivedFrom(t, c.Node(3).Admin, 3-leader)
	t.Logf("node 3 received %.0f bytes from leader %d, %.0f from the other", fromLeader, leader, fromOther)
	if fromLeader*20 > fromOther {
		t.Errorf("%.0f bytes came from the leader, %.0f from the other: want less than 5 %%", fromLeader, fromOther)
	}
}

// receivedFrom reads how many bytes of snapshots a node gave to the node at an admin address.
func receivedFrom(t *testing.T, addr string, node int) float64 {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	series := fmt.Sprintf(`chronik_snapshot_received_from_bytes_total{source="node %d"} `, node)
	for line := range strings.Lines(string(b)) {
		if text, ok := strings.CutPrefix(line, series); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s", series)
	return 0
}
