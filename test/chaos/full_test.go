package chaos

import (
	"testing"
	"time"

	"chronik/test/harness"
)

// TestFullDiskUnderLoad fills the disk of a follower and then of a leader to the last byte while records keep coming for
// longer than its raftlog has room. The node does not end, the others serve, and it is whole soon after there is space.
func TestFullDiskUnderLoad(t *testing.T) {
	long(t)
	c := harness.Start(t, harness.Options{Threshold: 300, DiskBytes: stormDisk, Set: []string{"raftlog.file_bytes=2MiB", "raftlog.max_bytes=32MiB"}})
	e := &env{t: t, c: c, rng: seed(t), l: startLoad(t, c, loadOptions{partitions: 3, size: 8 << 10, rate: 4 * time.Millisecond})}
	e.healed("whole at the beginning")
	for _, leads := range []bool{false, true} {
		id := e.leaderOf("load-0")
		if !leads {
			id, _ = e.others(id)
		}
		before, _ := e.l.totals()
		c.FillDisk(id, 0)
		began := time.Now()
		for time.Since(began) < 10*time.Second {
			if !c.Node(id).Alive() {
				t.Fatalf("node %d ended after %v", id, time.Since(began))
			}
			<-time.After(100 * time.Millisecond)
		}
		after, _ := e.l.totals()
		c.EmptyDisk(id)
		t.Logf("node %d full, leader of load-0 %v: %d records meanwhile, whole after %v", id, leads, after-before, e.healed("whole with space"))
	}
	e.l.finish()
	e.quiet("disk full: records are refused", "disk tight", "no space left on device")
}
