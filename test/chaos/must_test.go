package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"chronik/test/harness"
)

// The cases that must be seen to hold on real processes, each by its name (docs/testing.md).

// served waits until every partition has accepted a record that was sent after began.
func (e *env) served(limit time.Duration, what string, began time.Time) time.Duration {
	e.t.Helper()
	e.l.died(began)
	return e.c.Eventually(limit, what, func() error { _, err := e.l.servedAfter(); return err })
}

// term is the highest term of partition 0 that a node tells.
func (e *env) term() uint64 {
	e.t.Helper()
	var term uint64
	for id := 1; id <= 3; id++ {
		if r, err := e.c.Replica(id, e.l.name(0)); err == nil {
			term = max(term, r.Term)
		}
	}
	return term
}

// resident is a process's memory in bytes.
func resident(t *testing.T, pid int) (kib int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// TestSlowLink: 8 bytes a second between the leader and a follower, for everything and then for
// all but heartbeats. The others serve, nobody's term runs away, no node hoards what it cannot
// send, and the follower is whole soon after.
func TestSlowLink(t *testing.T) {
	long(t)
	c := harness.Start(t, harness.Options{Threshold: 300, Proxied: true})
	e := &env{t: t, c: c, rng: seed(t), l: startLoad(t, c, loadOptions{partitions: 3, size: 4 << 10, rate: 3 * time.Millisecond})}
	e.healed("whole at the beginning")
	for _, classes := range [][]harness.Class{nil, {harness.Append, harness.Bulk}} {
		leader := e.leaderOf(e.l.name(0))
		follower, _ := e.others(leader)
		before, memory := e.term(), resident(t, c.Node(leader).PID)
		e.l.worstGap()
		f := harness.Fault{Rate: slow, Classes: classes}
		c.Proxy.Set(leader, follower, f)
		c.Proxy.Set(follower, leader, f)
		began := time.Now()
		for time.Since(began) < 8*time.Second {
			e.served(6*time.Second, "producers are served beside a slow link", time.Now())
			<-time.After(200 * time.Millisecond)
		}
		gap, grown := e.l.worstGap(), resident(t, c.Node(leader).PID)-memory
		c.Proxy.Heal()
		took := e.healed("whole after the slow link")
		after := e.term()
		t.Logf("node %d to node %d, %v: longest without an acknowledgement %v, term %d to %d, memory grew by %d MiB, whole after %v", leader, follower, f, gap, before, after, grown>>20, took)
		if gap > 5*time.Second || after > before+4 || grown > 256<<20 {
			t.Errorf("gap %v, terms %d to %d, memory grew by %d", gap, before, after, grown)
		}
	}
	e.l.finish()
}

// shapes are asymmetric partitions around a leader and its followers a and b.
var shapes = []struct {
	name string
	cut  func(nt *harness.Net, leader, a, b int)
}{
	{"the leader is not heard by one", func(nt *harness.Net, leader, a, _ int) { nt.CutOneWay(leader, a) }},
	{"the leader is heard by nobody", func(nt *harness.Net, leader, a, b int) { nt.CutOneWay(leader, a); nt.CutOneWay(leader, b) }},
	{"the leader hears nobody", func(nt *harness.Net, leader, a, b int) { nt.CutOneWay(a, leader); nt.CutOneWay(b, leader) }},
	{"a ring: each is heard by one", func(nt *harness.Net, leader, a, b int) {
		nt.CutOneWay(leader, a)
		nt.CutOneWay(a, b)
		nt.CutOneWay(b, leader)
	}},
}

// TestAsymmetricPartition: packets of one direction are lost, those of the other arrive. Wherever two
// nodes still hear each other, producers are served during the partition, and no term runs away.
func TestAsymmetricPartition(t *testing.T) {
	long(t)
	c := harness.Start(t, harness.Options{Threshold: 300, Namespaces: true})
	e := &env{t: t, c: c, rng: seed(t), l: startLoad(t, c, loadOptions{size: 100, rate: 3 * time.Millisecond})}
	e.healed("whole at the beginning")
	for _, shape := range shapes {
		leader := e.leaderOf(e.l.name(0))
		a, b := e.others(leader)
		before, began := e.term(), time.Now()
		shape.cut(c.Net, leader, a, b)
		took := "no two hear each other"
		if !strings.HasPrefix(shape.name, "a ring") {
			// The followers hear of it by silence: keepalive, then an election.
			took = e.served(15*time.Second, shape.name+": producers are served", began.Add(time.Second)).String()
		}
		e.between(time.Second, 3*time.Second)
		c.Net.Heal()
		healed := e.healed(shape.name)
		after := e.term()
		t.Logf("%s (node %d): served again after %v, whole %v after the end, term %d to %d", shape.name, leader, took, healed, before, after)
		if after > before+6 {
			t.Errorf("%s: terms went from %d to %d", shape.name, before, after)
		}
	}
	e.l.finish()
}

// TestCutOffLeader: a leader that clients reach and nobody else does must give up, and must not answer
// for what the others decide meanwhile.
func TestCutOffLeader(t *testing.T) {
	c := harness.Start(t, harness.Options{Threshold: 300, Namespaces: true})
	e := &env{t: t, c: c, rng: seed(t), l: startLoad(t, c, loadOptions{size: 100, rate: 3 * time.Millisecond})}
	e.healed("whole at the beginning")
	leader := e.leaderOf(e.l.name(0))
	a, b := e.others(leader)
	began := time.Now()
	c.Net.Cut(leader, a)
	c.Net.Cut(leader, b)
	took := e.served(10*time.Second, "producers are served by the others", began)
	e.c.Eventually(10*time.Second, "the others lead", func() error { return ledBeside(c, leader) })
	c.Net.Heal()
	healed := e.healed("whole after the cut")
	t.Logf("node %d cut off: served again after %v, whole %v after the end", leader, took, healed)
	e.l.finish()
}

// ledBeside tells whether no partition of the load is said to be led by id, by anybody: id itself too.
func ledBeside(c *harness.Cluster, id int) error {
	r, err := c.Replica(id, "load-0")
	if err != nil {
		return err
	}
	if r.Role == "leader" {
		return fmt.Errorf("node %d says it leads %s", id, r.Group)
	}
	return nil
}

// TestAllKilledRepeatedly kills all three nodes at once, again before they are whole, and again.
func TestAllKilledRepeatedly(t *testing.T) {
	long(t)
	c := harness.Start(t, harness.Options{Threshold: 200})
	e := &env{t: t, c: c, rng: seed(t), l: startLoad(t, c, loadOptions{size: 100, rate: 2 * time.Millisecond})}
	e.healed("whole at the beginning")
	for range rounds(t, 2) {
		n := 3 + e.rng.IntN(4)
		for range n {
			killAll(e)
			e.between(0, time.Second)
		}
		took := e.healed("whole after all were killed")
		t.Logf("all killed %d times: whole after %v", n, took)
	}
	e.l.finish()
	e.quiet()
}

// TestHundredGroupsRejoin wipes a node that holds a hundred partitions and the groups' shards: all of
// them come back at the same time, under load.
func TestHundredGroupsRejoin(t *testing.T) {
	long(t)
	c := harness.Start(t, harness.Options{Threshold: 50})
	e := &env{t: t, c: c, rng: seed(t), l: startLoad(t, c, loadOptions{partitions: 100, window: 2, size: 200, rate: 20 * time.Millisecond})}
	e.healed("whole at the beginning")
	e.c.Eventually(60*time.Second, "every log is trimmed", func() error {
		for p := range 100 {
			if r, err := c.Replica(1, e.l.name(p)); err != nil || r.FirstIndex < 10 {
				return fmt.Errorf("%s begins at %d, %w", e.l.name(p), r.FirstIndex, err)
			}
		}
		return nil
	})
	id := e.anyNode()
	e.l.worstGap()
	e.kill(id)
	c.Wipe(id)
	c.Restart(id)
	took := e.healed(fmt.Sprintf("all groups of node %d", id))
	installed := 0
	for p := range 100 {
		if r, err := c.Replica(id, e.l.name(p)); err == nil && r.SnapshotsInstalled > 0 {
			installed++
		}
	}
	t.Logf("node %d wiped: %d of 100 partitions by snapshot, whole after %v, longest without an acknowledgement %v", id, installed, took, e.l.worstGap())
	if installed < 90 {
		t.Errorf("%d partitions came by snapshot", installed)
	}
	e.l.finish()
	e.quiet()
}

// transferCluster is a cluster with 1 MiB records whose node 3, wiped, receives them slowly.
func transferCluster(t *testing.T, disk int64) *env {
	t.Helper()
	o := harness.Options{Threshold: 10, DiskBytes: disk, Set: []string{"snapshot.max_bytes_per_second=16MiB", "snapshot.hold_bytes=1MiB"}}
	if disk > 0 {
		o.Set = append(o.Set, "raftlog.file_bytes=4MiB", "raftlog.max_bytes=32MiB")
	}
	c := harness.Start(t, o)
	e := &env{t: t, c: c, rng: seed(t), l: startLoad(t, c, loadOptions{partitions: 1, size: 1 << 20, window: 2, first: 50, rate: 250 * time.Millisecond})}
	e.healed("whole at the beginning")
	e.kill(3)
	c.Wipe(3)
	c.Restart(3)
	e.transferring(3, "load-0")
	return e
}

// TestLeaderChangesInMidTransfer hands the leadership over while a snapshot is on its way.
func TestLeaderChangesInMidTransfer(t *testing.T) {
	long(t)
	e := transferCluster(t, 0)
	leader, _ := e.leaderBut("load-0", 3)
	e.c.Stop(leader)
	e.c.Restart(leader)
	t.Logf("moved away from node %d: whole after %v", leader, e.healed("whole after the change"))
	e.l.finish()
	e.quiet()
}

// TestDiskFullWhileStaging takes the receiver's space while a snapshot is being staged: the node lives, the
// transfer waits, and goes on when there is space.
func TestDiskFullWhileStaging(t *testing.T) {
	long(t)
	e := transferCluster(t, 512<<20)
	e.c.FillDisk(3, 0)
	e.c.Eventually(15*time.Second, "node 3 notices", func() error {
		// Either the write met the end of the disk, or the look at the free space before it did.
		if !strings.Contains(e.c.NodeLog(3), "not enough disk space") {
			return errors.New("it says nothing of space")
		}
		return nil
	})
	e.served(10*time.Second, "the others serve", time.Now())
	if !e.c.Node(3).Alive() {
		t.Error("node 3 ended")
	}
	e.c.EmptyDisk(3)
	t.Logf("whole %v after the space came back", e.healed("whole with space"))
	e.l.finish()
	e.quiet("disk full: records are refused", "disk tight", "no space left on device")
}

// TestRecordsGoDuringTransfer deletes the oldest records while a snapshot with them is on its way.
func TestRecordsGoDuringTransfer(t *testing.T) {
	long(t)
	e := transferCluster(t, 0)
	const gone = 5
	e.c.Eventually(20*time.Second, "there are records to delete", func() error {
		_, r, err := e.c.Leader("load-0")
		if err == nil && r.HighWatermark <= gone {
			err = fmt.Errorf("high watermark %d", r.HighWatermark)
		}
		return err
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{Topic: "load", Partition: 0, At: gone, LeaderEpoch: -1})
	if r, err := kadm.NewClient(e.c.Client()).DeleteRecords(ctx, offsets); err != nil || r.Error() != nil {
		t.Fatal(err, r.Error())
	}
	took := e.healed("whole after the records went")
	r, err := e.c.Replica(3, "load-0")
	if err != nil || r.LogStartOffset < 1 {
		t.Errorf("node 3 begins at offset %d: %v", r.LogStartOffset, err)
	}
	t.Logf("node 3 whole after %v, begins at offset %d", took, r.LogStartOffset)
	e.l.stop()
	end := int64(e.l.parts[0].sent)
	e.c.Eventually(30*time.Second, "digests are equal", func() error { return e.c.DigestsEqual("load", 0, end) })
	e.quiet()
}
