package rejoin

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/admin"
	"chronik/test/harness"
)

// spoiled is a way to spoil a checkpoint file, and what is said about the result by the dump tool and in the log.
type spoiled struct {
	name  string
	spoil func(good, other []byte) []byte
	dump  string
	log   string // "": the same
}

// The layout is in docs/formats/checkpoint.md.
var spoils = []spoiled{
	{"empty", func(_, _ []byte) []byte { return nil }, "corrupt: 0 bytes are too short for a checkpoint", ""},
	{"truncated", func(good, _ []byte) []byte { return good[:len(good)-1] }, "footer at byte ", ""},
	{"truncated header", func(good, _ []byte) []byte { return good[:120] }, "at byte 12, the file has 120", ""},
	{"longer", func(good, _ []byte) []byte { return append(good, 0) }, "footer at byte ", ""},
	{"flipped header bit", func(good, _ []byte) []byte { good[20] ^= 4; return good }, "header CRC ", ""},
	{"flipped blob bit", func(good, _ []byte) []byte { good[len(good)-40] ^= 4; return good }, "blob in bytes ", ""},
	{"foreign file", func(_, _ []byte) []byte { return []byte(strings.Repeat("not a checkpoint\n", 50)) }, "at byte 0", ""},
	{"unknown version", func(good, _ []byte) []byte { good[8] = 99; return good }, "version 99, this release knows 1", ""},
	{"another group's", func(_, other []byte) []byte { return other }, "", " is of group "},
}

// TestSpoiledCheckpoints: a checkpoint that is not what it should be is named, with the byte where that shows,
// and its replica is replaced by a fresh one. The others on the node stay.
func TestSpoiledCheckpoints(t *testing.T) {
	harness.Long(t)
	c := harness.Start(t, harness.Options{Threshold: 20})
	parts := len(spoils) + 1 // the last one stays as it is
	c.CreateTopic("orders", parts)
	cl := c.Client(kgo.ProducerLinger(0), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	const each = 30
	fill := func(from, to int) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		for i := from; i < to; i++ {
			for p := range parts {
				cl.Produce(ctx, &kgo.Record{Topic: "orders", Partition: int32(p), Value: []byte(entry(i))}, func(_ *kgo.Record, err error) {
					if err != nil {
						t.Errorf("record %d of partition %d: %v", i, p, err)
					}
				})
			}
			if err := cl.Flush(ctx); err != nil { // one record a request
				t.Fatal(err)
			}
		}
	}
	fill(0, each)
	before := make([]admin.Replica, parts)
	c.Eventually(10*time.Second, "node 3 has checkpoints", func() (err error) {
		for p := range parts {
			if before[p], err = c.Replica(3, fmt.Sprintf("orders-%d", p)); err == nil && before[p].SnapshotIndex == 0 {
				err = fmt.Errorf("orders-%d has none", p)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	c.Kill(3)
	files := make([]string, parts)
	for p := range parts {
		files[p] = checkpointOf(t, c, before[p])
	}
	other := read(t, files[parts-1])
	for p, s := range spoils {
		if err := os.WriteFile(files[p], s.spoil(read(t, files[p]), other), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := c.CLI("debug", "snapshot", files[p]); s.dump != "" && (err == nil || !strings.Contains(err.Error(), "exit status 1") ||
			!strings.Contains(err.Error(), "chronik: error: "+files[p]+": ") || !strings.Contains(err.Error(), s.dump)) {
			t.Errorf("%s: debug snapshot says %v, want the file and %q", s.name, err, s.dump)
		}
	}
	b := &book{t: t, c: c}
	stop := b.scraped()
	c.Restart(3)
	for p := range parts {
		group := fmt.Sprintf("orders-%d", p)
		c.Eventually(20*time.Second, group+" is whole", func() error {
			if err := voters(c, group, each); err != nil {
				return err
			}
			return c.DigestsEqual("orders", p, each)
		})
		r, err := c.Replica(3, group)
		if err != nil {
			t.Fatal(err)
		}
		if spoiled := p < len(spoils); spoiled != (r.ReplicaID != before[p].ReplicaID) {
			t.Errorf("%s was replica %d and is %d", group, before[p].ReplicaID, r.ReplicaID)
		}
	}
	c.Eventually(20*time.Second, "nothing is replaced any more", func() error { return replaced(c) })
	stop()
	for p, s := range spoils {
		want := s.dump
		if s.log != "" {
			want = s.log
		}
		if !logged(c.NodeLog(3), fmt.Sprintf("group=orders-%d", p), "quarantined", filepath.Dir(files[p]), want) {
			t.Errorf("%s: the log does not name %s and %q", s.name, files[p], want)
		}
	}
	fill(each, each+5)
}

// logged tells whether a line has all of parts.
func logged(log string, parts ...string) bool {
	for line := range strings.Lines(log) {
		n := 0
		for _, p := range parts {
			if strings.Contains(line, p) {
				n++
			}
		}
		if n == len(parts) {
			return true
		}
	}
	return false
}

// checkpointOf finds the checkpoint file of a replica of node 3.
func checkpointOf(t *testing.T, c *harness.Cluster, r admin.Replica) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(c.Node(3).Dir, "replicas", fmt.Sprintf("*-%d.%d", r.Partition, r.ReplicaID), "g*", "checkpoint"))
	if err != nil || len(found) != 1 {
		t.Fatalf("checkpoints of %s: %v, %v", r.Group, found, err)
	}
	return found[0]
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
