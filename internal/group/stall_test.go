package group

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

// offsets returns a shard with that many committed offsets, 100 a group.
func offsets(t testing.TB, n int) *StateMachine {
	t.Helper()
	m := &StateMachine{st: newState()}
	for g := range n / 100 {
		if _, err := m.Apply([]raftgroup.Entry{{Index: 1, Data: CommitEntry(1, fmt.Sprintf("group-%d", g), "orders", 100, 1)}}); err != nil {
			t.Fatal(err)
		}
	}
	if m.st.offsets.Len() != n {
		t.Fatalf("%d offsets, want %d", m.st.offsets.Len(), n)
	}
	return m
}

// stall measures 1,000 captures with a million offsets while commits to groups
// all over the shard are applied.
func stall(t testing.TB, m *StateMachine, captures int) raftgroup.StallResult {
	t.Helper()
	groups := m.st.groups.Len()
	r, err := raftgroup.MeasureStall(context.Background(), raftgroup.StallOptions{
		SM: m, Captures: captures, Applies: 4, Pause: 200 * time.Microsecond, First: 1,
		Next: func(n int) []byte {
			return CommitEntry(2, fmt.Sprintf("group-%d", n*7919%groups), "orders", 10, int64(n))
		},
		FS: vfs.Default, Dir: t.TempDir(), Compression: snapshot.Zstd,
	})
	if err != nil {
		t.Fatal(err)
	}
	at := func(ds []time.Duration, q float64) time.Duration { return ds[int(q*float64(len(ds)-1))] }
	t.Logf("stall p50 %v p99 %v p99.9 %v max %v; capture p99.9 %v; quiet p50 %v p99.9 %v max %v; %d checkpoints of %d bytes",
		at(r.Stalls, 0.5), at(r.Stalls, 0.99), at(r.Stalls, 0.999), r.Stalls[len(r.Stalls)-1], at(r.Captured, 0.999),
		at(r.Quiet, 0.5), at(r.Quiet, 0.999), r.Quiet[len(r.Quiet)-1], r.Written, r.FileBytes)
	return r
}

// A capture does not hold up who applies, however many offsets there are. The
// bound is for machines that do other things too; bench snapshot judges finer.
func TestCaptureStall(t *testing.T) {
	m := offsets(t, 1_000_000)
	r := stall(t, m, 1000)
	if d := r.Stalls[len(r.Stalls)*99/100]; d > 20*time.Millisecond {
		t.Errorf("one of a hundred captures holds apply up for %v", d)
	}
	if r.Written == 0 {
		t.Error("no checkpoint was written meanwhile")
	}
}

// A capture and the commit after it copy a path of the tree, not the tree: what
// they allocate does not grow with the number of offsets. This counts, it does not time.
func TestCaptureAllocates(t *testing.T) {
	perCapture := func(m *StateMachine) uint64 {
		const captures = 200
		groups := m.st.groups.Len()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for i := range captures {
			c, err := m.Capture()
			if err != nil {
				t.Fatal(err)
			}
			e := CommitEntry(2, fmt.Sprintf("group-%d", i*7919%groups), "orders", 1, int64(i))
			if _, err := m.Apply([]raftgroup.Entry{{Index: 1, Data: e}}); err != nil {
				t.Fatal(err)
			}
			c.Release()
		}
		runtime.ReadMemStats(&after)
		return (after.TotalAlloc - before.TotalAlloc) / captures
	}
	few, many := perCapture(offsets(t, 1000)), perCapture(offsets(t, 1_000_000))
	t.Logf("%d bytes with 1,000 offsets, %d with 1,000,000", few, many)
	if many > 4*few {
		t.Errorf("a capture and a commit allocate %d bytes with 1,000,000 offsets, %d with 1,000", many, few)
	}
}
