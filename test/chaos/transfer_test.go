package chaos

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"chronik/test/harness"
)

// transferring waits until node id receives a snapshot of group and has some of it.
func (e *env) transferring(id int, group string) {
	e.t.Helper()
	e.c.Eventually(30*time.Second, "a transfer is under way", func() error {
		r, err := e.c.Replica(id, group)
		if err == nil && (r.Transfer == nil || r.Transfer.BytesDone < 1<<20) {
			err = fmt.Errorf("node %d receives nothing: %s, first %d, last %d, %+v", id, r.State, r.FirstIndex, r.LastIndex, r.Transfer)
		}
		return err
	})
}

// leaderBut returns the leader of group and a follower that is not node id.
func (e *env) leaderBut(group string, id int) (leader, other int) {
	e.t.Helper()
	e.c.Eventually(10*time.Second, "a leader", func() error {
		n, _, err := e.c.Leader(group)
		if err == nil && n == id {
			err = fmt.Errorf("node %d still leads", n)
		}
		leader = n
		return err
	})
	return leader, 6 - id - leader
}

// cuts are ways to disturb a transfer to node id while it is under way.
var cuts = []nemesis{
	{"receiver killed", func(e *env) string {
		e.kill(3)
		e.c.Restart(3)
		return ""
	}},
	{"leader killed", func(e *env) string {
		leader, _ := e.leaderBut("load-0", 3)
		e.kill(leader)
		e.between(0, 500*time.Millisecond)
		e.c.Restart(leader)
		return fmt.Sprintf("node %d", leader)
	}},
	{"leader frozen", func(e *env) string {
		leader, _ := e.leaderBut("load-0", 3)
		e.signal(leader, syscall.SIGSTOP)
		d := e.between(time.Second, 3*time.Second)
		e.signal(leader, syscall.SIGCONT)
		return fmt.Sprintf("node %d for %v", leader, d)
	}},
	{"leader moved", func(e *env) string {
		leader, _ := e.leaderBut("load-0", 3)
		e.c.Stop(leader)
		e.c.Restart(leader)
		return fmt.Sprintf("away from node %d", leader)
	}},
	{"receiver wiped", func(e *env) string {
		e.kill(3)
		e.c.Wipe(3)
		e.c.Restart(3)
		return ""
	}},
	{"all killed", killAll},
}

// TestTransferIsCut disturbs the transfer of a snapshot of 1 MiB records at either end.
func TestTransferIsCut(t *testing.T) {
	long(t)
	rng := seed(t)
	c := harness.Start(t, harness.Options{Threshold: 10, Set: []string{"snapshot.max_bytes_per_second=16MiB", "snapshot.hold_bytes=1MiB"}})
	e := &env{t: t, c: c, rng: rng, l: startLoad(t, c, loadOptions{partitions: 1, size: 1 << 20, window: 2, first: 50, rate: 250 * time.Millisecond})}
	e.healed("whole at the beginning")
	deck := rng.Perm(len(cuts))
	for i := range rounds(t, 1) {
		cut := cuts[deck[i%len(deck)]]
		e.kill(3)
		e.c.Wipe(3)
		e.c.Restart(3)
		e.transferring(3, "load-0")
		e.between(0, 500*time.Millisecond)
		what := cut.run(e)
		took := e.healed(cut.name + " " + what)
		t.Logf("round %d: %s %s: whole after %v", i, cut.name, what, took)
	}
	e.l.finish()
	e.quiet(errorsOfRestored...)
}
