package chaos

import (
	"fmt"
	"regexp"
	"slices"
	"syscall"
	"testing"
	"time"

	"chronik/internal/admin"
	"chronik/test/harness"
)

var servingTook = regexp.MustCompile(`msg="serving Kafka clients".* took=(\S+)`)

// TestRestartedNodesServePromptly: once the metadata has a leader again, restarted
// nodes serve; they do not wait for their next look at the clock.
func TestRestartedNodesServePromptly(t *testing.T) {
	e := &env{t: t, rng: seed(t)}
	e.c = harness.Start(t, harness.Options{})
	var took []time.Duration
	for range rounds(t, 1) {
		e.c.Eventually(20*time.Second, "whole", func() error { return whole(e.c) })
		for id := 2; id <= 3; id++ {
			e.signal(id, syscall.SIGKILL)
		}
		e.gone(2)
		e.gone(3)
		e.c.Restart(2)
		e.c.Restart(3)
		e.c.Eventually(20*time.Second, "whole", func() error { return whole(e.c) })
		for id := 2; id <= 3; id++ {
			all := servingTook.FindAllStringSubmatch(e.c.NodeLog(id), -1)
			d, err := time.ParseDuration(all[len(all)-1][1])
			if err != nil {
				t.Fatal(err)
			}
			took = append(took, d)
		}
	}
	slices.Sort(took)
	t.Logf("from start to serving: %v", took)
	if m := took[len(took)/2]; m > 400*time.Millisecond {
		t.Errorf("median %v from start to serving", m)
	}
}

// TestFrozenNodeIsReplaced: a process that stands still keeps its connections. The others
// elect leaders within two election timeouts and a little, for every group.
func TestFrozenNodeIsReplaced(t *testing.T) {
	long(t)
	e := &env{t: t, rng: seed(t)}
	e.c = harness.Start(t, harness.Options{})
	e.l = startLoad(t, e.c, loadOptions{partitions: 12, size: 20, rate: 5 * time.Millisecond})
	var took []time.Duration
	for range rounds(t, 1) {
		e.healed("whole")
		id := e.anyNode()
		e.l.worstGap()
		e.signal(id, syscall.SIGSTOP)
		began := time.Now()
		elected := e.c.Eventually(10*time.Second, "others lead every group", func() error { return ledByOthers(e.c, id) })
		accepted := e.c.Eventually(10*time.Second, "every partition accepts", func() error { return e.l.acceptedSince(began.Add(elected)) })
		took = append(took, elected)
		t.Logf("node %d frozen: all groups led by others after %v, accepting %v later", id, elected, accepted)
		e.signal(id, syscall.SIGCONT)
	}
	e.l.finish()
	e.quiet()
	slices.Sort(took)
	if m := took[len(took)-1]; m > 3500*time.Millisecond {
		t.Errorf("%v until every group had a leader", m)
	}
}

// ledByOthers tells whether each node but id knows a leader of each group, which is not id.
func ledByOthers(c *harness.Cluster, id int) error {
	for _, n := range c.Nodes() {
		if n.ID == id {
			continue
		}
		var rs admin.Replicas
		if err := c.Get(n.ID, "/v1/replicas", &rs); err != nil {
			return err
		}
		for _, r := range rs.Replicas {
			if r.LeaderNode == 0 || int(r.LeaderNode) == id {
				return fmt.Errorf("node %d: %s is led by %d", n.ID, r.Group, r.LeaderNode)
			}
		}
	}
	return nil
}
