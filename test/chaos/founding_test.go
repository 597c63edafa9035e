package chaos

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"chronik/internal/admin"
	"chronik/test/harness"
)

// TestFoundingUnderKills kills nodes at random moments of their very first start, again
// and again. In the end there is one cluster, and it works.
func TestFoundingUnderKills(t *testing.T) {
	e := &env{t: t, rng: seed(t)}
	e.c = harness.Start(t, harness.Options{})
	for i := range rounds(t, 1) {
		for id := 1; id <= 3; id++ {
			e.kill(id)
			e.c.Wipe(id)
		}
		kills := 4 + e.rng.IntN(6)
		for range kills {
			for id := 1; id <= 3; id++ {
				if !e.c.Node(id).Alive() {
					e.c.Restart(id)
				}
			}
			e.between(0, 120*time.Millisecond)
			for id := 1; id <= 3; id++ {
				if e.rng.IntN(2) == 0 {
					e.signal(id, syscall.SIGKILL)
					e.gone(id)
				}
			}
		}
		for id := 1; id <= 3; id++ {
			if !e.c.Node(id).Alive() {
				e.c.Restart(id)
			}
		}
		ids := map[string]bool{}
		took := e.c.Eventually(30*time.Second, "one whole cluster", func() error {
			clear(ids)
			for _, n := range e.c.Nodes() {
				var v admin.Cluster
				if err := e.c.Get(n.ID, "/v1/cluster", &v); err != nil {
					return err
				}
				ids[v.ClusterID] = true
			}
			if len(ids) != 1 || ids[""] {
				return fmt.Errorf("clusters %v", ids)
			}
			return whole(e.c)
		})
		t.Logf("round %d: killed %d times, whole after %v: %v", i, kills, took, ids)
		topic := fmt.Sprintf("after-%d", i)
		l := startLoad(t, e.c, loadOptions{topic: topic, partitions: 2, size: 20, rate: time.Millisecond})
		l.finish()
	}
	e.quiet()
}
