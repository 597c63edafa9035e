package chaos

import (
	"regexp"
	"slices"
	"syscall"
	"testing"
	"time"

	"chronik/test/harness"
)

var servingTook = regexp.MustCompile(`msg="serving Kafka clients".* took=(\S+)`)

// TestRestartedNodesServePromptly: once the metadata has a leader again, restarted
// nodes serve; they do not wait for their next look at the clock.
func TestRestartedNodesServePromptly(t *testing.T) {
	e := &env{t: t, rng: seed(t)}
	e.c = harness.Start(t, harness.Options{})
	var took []time.Duration
	for range rounds(t, 2) {
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
