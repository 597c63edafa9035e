package chaos

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"chronik/internal/admin"
	"chronik/internal/metadata"
	"chronik/test/harness"
)

// TestIdleGroups: every group rests (ADR 26) when a node dies, or stands still. The others lead
// each of its groups as soon as they would without rest, every partition takes records, and all go to rest again.
func TestIdleGroups(t *testing.T) {
	long(t)
	const topic, partitions = "idle", 48
	e := &env{t: t, rng: seed(t)}
	e.c = harness.Start(t, harness.Options{})
	e.c.CreateTopic(topic, partitions)
	records := int64(0)
	produce := func(without int) time.Duration {
		records++
		return e.freshClient(without, topic, partitions)
	}
	produce(0)
	for range rounds(t, 1) {
		for _, nemesis := range []struct {
			name         string
			begin, end   syscall.Signal
			leadersAfter time.Duration // an election timeout and what is drawn on top, and before that what it takes to know
		}{
			{name: "killed", begin: syscall.SIGKILL, leadersAfter: 1500 * time.Millisecond},
			{name: "frozen", begin: syscall.SIGSTOP, end: syscall.SIGCONT, leadersAfter: 3500 * time.Millisecond},
		} {
			rested := e.c.Eventually(30*time.Second, "all rest", func() error { return resting(e.c) })
			id := e.anyNode()
			e.signal(id, nemesis.begin)
			elected := e.c.Eventually(10*time.Second, "others lead every group", func() error { return ledByOthers(e.c, id) })
			fresh := produce(id)
			t.Logf("at rest after %v; node %d %s: all groups led by others after %v, each served %v later", rested, id, nemesis.name, elected, fresh)
			if elected > nemesis.leadersAfter || fresh > 2*time.Second {
				t.Errorf("want leaders within %v, records within 2s", nemesis.leadersAfter)
			}
			if nemesis.end != 0 {
				e.signal(id, nemesis.end)
			} else {
				e.gone(id)
				e.c.Restart(id)
			}
			e.c.Eventually(30*time.Second, "whole", func() error { return whole(e.c) })
		}
	}
	e.c.Eventually(30*time.Second, "all rest at the end", func() error { return resting(e.c) })
	for p := range partitions {
		if err := e.c.DigestsEqual(topic, p, records); err != nil {
			t.Error(err)
		}
	}
}

// resting tells whether every replica is at rest but the metadata's, which never is.
func resting(c *harness.Cluster) error {
	for _, n := range c.Nodes() {
		var rs admin.Replicas
		if err := c.Get(n.ID, "/v1/replicas", &rs); err != nil {
			return err
		}
		for _, r := range rs.Replicas {
			if r.Group != metadata.MetaTopic && !r.Resting {
				return fmt.Errorf("node %d: %s is awake", n.ID, r.Group)
			}
		}
	}
	return nil
}
