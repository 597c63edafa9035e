package transfer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/test/harness"
)

// TestSnapshotAgainstReplay: a node that lacks 2 GB comes back sooner through a snapshot than by the
// entries, which a log that is never trimmed still has. Real processes, no other load.
func TestSnapshotAgainstReplay(t *testing.T) {
	n, full := size(t)
	if !full && os.Getenv("CHRONIK_TEST_LONG") == "" {
		t.Skip("takes long: make transfer")
	}
	took := map[string]time.Duration{}
	for _, way := range []struct {
		name      string
		threshold int
		set       []string
	}{
		{"entries", 1 << 40, []string{"snapshot.threshold_bytes=1TiB", "snapshot.interval=24h", "raftlog.max_bytes=16GiB"}},
		{"snapshot", 500, nil},
	} {
		t.Run(way.name, func(t *testing.T) {
			c := harness.Start(t, harness.Options{Threshold: way.threshold, Set: way.set})
			took[way.name] = comesBack(t, c, n, way.name == "snapshot")
		})
	}
	if t.Failed() {
		return
	}
	t.Logf("%d MiB behind: back after %v through a snapshot, after %v by entries", n/mib, took["snapshot"], took["entries"])
	if full && took["snapshot"] >= took["entries"] {
		t.Errorf("a snapshot is not faster than the entries")
	}
}

// comesBack writes n bytes while node 3 is away and returns how long that takes, once it is
// started, to have them.
func comesBack(t *testing.T, c *harness.Cluster, n int64, bySnapshot bool) time.Duration {
	t.Helper()
	const group = "orders-0"
	c.CreateTopic("orders", 1)
	fill(t, c, 8*mib)
	c.Kill(3)
	fill(t, c, n)
	_, l, err := c.Leader(group)
	must(t, err)
	c.Restart(3)
	took := c.Eventually(10*time.Minute, "node 3 has everything", func() error {
		r, err := c.Replica(3, group)
		if err == nil && (r.HighWatermark < l.HighWatermark || r.Role != "follower") {
			err = fmt.Errorf("%+v", r)
		}
		return err
	})
	r, err := c.Replica(3, group)
	must(t, err)
	if bySnapshot != (r.SnapshotsInstalled > 0) {
		t.Fatalf("%d snapshots installed: %+v", r.SnapshotsInstalled, r)
	}
	must(t, c.DigestsEqual("orders", 0, l.HighWatermark))
	return took
}

// fill writes n incompressible bytes in records of 64 KiB.
func fill(t *testing.T, c *harness.Cluster, n int64) {
	t.Helper()
	cl := c.Client(kgo.DefaultProduceTopic("orders"), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.MaxBufferedBytes(32*mib))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	rng := rand.NewChaCha8([32]byte{byte(n)})
	var failed error
	for range n / (64 << 10) {
		v := make([]byte, 64<<10)
		_, _ = rng.Read(v) // never fails
		cl.Produce(ctx, &kgo.Record{Value: v}, func(_ *kgo.Record, err error) {
			if err != nil {
				failed = err // flushed before it is read
			}
		})
	}
	must(t, cl.Flush(ctx))
	must(t, failed)
}
