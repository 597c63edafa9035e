package metadata

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"chronik/internal/raftgroup"
	"chronik/internal/snapshot"
	"chronik/internal/vfs"
)

// manyPartitions returns a metadata group with that many partitions, 100 a topic.
func manyPartitions(t testing.TB, n int) *meta {
	t.Helper()
	m := cluster(t, 3)
	for i := range n / 100 {
		m.must(&CreateTopics{Topics: []NewTopic{{Name: fmt.Sprintf("topic-%d", i), ID: topicID(i), Partitions: 100, ReplicationFactor: 3}}})
	}
	if got := m.sm.Image().GroupCount(); got < n {
		t.Fatalf("%d groups, want %d", got, n)
	}
	return m
}

// alteration changes a setting of one of the topics.
func alteration(t testing.TB, n, topics int) []byte {
	t.Helper()
	v := fmt.Sprint(1<<20 + n)
	data, err := Encode(&AlterConfigs{Resources: []AlterResource{{
		Type: ResourceTopic, Name: fmt.Sprintf("topic-%d", n%topics), Ops: []ConfigAlterOp{{Name: "retention.ms", Value: &v}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A capture does not hold up who applies, however many partitions there are. The
// bound is for machines that do other things too; bench snapshot judges finer.
func TestCaptureStall(t *testing.T) {
	m := manyPartitions(t, 10_000)
	r, err := raftgroup.MeasureStall(context.Background(), raftgroup.StallOptions{
		SM: m.sm, Captures: 1000, Applies: 2, Pause: 200 * time.Microsecond, First: m.index + 1,
		Next: func(n int) []byte { return alteration(t, n, 100) },
		FS:   vfs.Default, Dir: t.TempDir(), Compression: snapshot.Zstd,
	})
	if err != nil {
		t.Fatal(err)
	}
	n := len(r.Stalls)
	t.Logf("stall p50 %v p99 %v p99.9 %v max %v; quiet max %v; %d checkpoints of %d bytes",
		r.Stalls[n/2], r.Stalls[n*99/100], r.Stalls[n*999/1000], r.Stalls[n-1], r.Quiet[len(r.Quiet)-1], r.Written, r.FileBytes)
	if d := r.Stalls[n*99/100]; d > 20*time.Millisecond {
		t.Errorf("one of a hundred captures holds apply up for %v", d)
	}
	if r.Written == 0 {
		t.Error("no checkpoint was written meanwhile")
	}
}

// A capture and the command after it copy a path of the trees, not the trees:
// what they allocate does not grow with the partitions. This counts, it does not time.
func TestCaptureAllocates(t *testing.T) {
	perCapture := func(partitions int) uint64 {
		m := manyPartitions(t, partitions)
		const captures = 200
		entries := make([]raftgroup.Entry, captures)
		for i := range entries {
			m.index++
			entries[i] = raftgroup.Entry{Index: m.index, Data: alteration(t, i, partitions/100)}
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for i := range entries {
			c, err := m.sm.Capture()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := m.sm.Apply(entries[i : i+1]); err != nil {
				t.Fatal(err)
			}
			c.Release()
		}
		runtime.ReadMemStats(&after)
		return (after.TotalAlloc - before.TotalAlloc) / captures
	}
	few, many := perCapture(200), perCapture(10_000)
	t.Logf("%d bytes with 200 partitions, %d with 10,000", few, many)
	if many > 4*few {
		t.Errorf("a capture and a command allocate %d bytes with 10,000 partitions, %d with 200", many, few)
	}
}
