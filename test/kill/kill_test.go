package kill

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"chronik/test/harness"
)

// seed makes the moments and victims of a run repeatable as far as real processes are.
func seed(t *testing.T) *rand.Rand {
	t.Helper()
	s := uint64(time.Now().UnixNano())
	if v := os.Getenv("CHRONIK_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		s = n
	}
	t.Logf("CHRONIK_SEED=%d", s)
	return rand.New(rand.NewPCG(s, 0))
}

// TestKillRounds kills random nodes at random moments under load, one at a time.
// In full: CHRONIK_ROUNDS=50.
func TestKillRounds(t *testing.T) {
	rng := seed(t)
	c := harness.Start(t, harness.Options{Threshold: 500})
	c.CreateTopic(topic, partitions)
	w := start(t, c)
	c.Eventually(20*time.Second, "load runs", func() error { return w.acceptedSince(time.Time{}) })
	for i := range rounds(t, 5) {
		victim := 1 + rng.IntN(3)
		pause(rng, 400*time.Millisecond)
		c.Kill(victim)
		pause(rng, 600*time.Millisecond)
		c.Restart(victim)
		began := time.Now()
		c.Eventually(20*time.Second, fmt.Sprintf("round %d: node %d is back and every partition accepts", i, victim), func() error {
			if err := c.Ready(victim); err != nil {
				return err
			}
			return w.acceptedSince(began)
		})
	}
	w.finish()
	noTrouble(t, c.Logs())
}

// pause lets up to limit pass: the random moment of a kill.
func pause(rng *rand.Rand, limit time.Duration) {
	<-time.After(time.Duration(rng.Int64N(int64(limit))))
}

// TestKillAll kills all nodes at once under load and measures until every partition
// accepts a record again. In full: CHRONIK_ROUNDS=20.
func TestKillAll(t *testing.T) {
	rng := seed(t)
	c := harness.Start(t, harness.Options{Threshold: 1000})
	c.CreateTopic(topic, partitions)
	w := start(t, c)
	c.Eventually(20*time.Second, "load runs", func() error { return w.acceptedSince(time.Time{}) })
	var took []time.Duration
	for range rounds(t, 3) {
		pause(rng, 500*time.Millisecond)
		killAll(c)
		for id := 1; id <= 3; id++ {
			c.Restart(id)
		}
		began := time.Now()
		took = append(took, c.Eventually(20*time.Second, "every partition accepts again", func() error { return w.acceptedSince(began) }))
	}
	slices.Sort(took)
	t.Logf("every partition accepts again after: median %v, at worst %v (%v)", took[len(took)/2], took[len(took)-1], took)
	if m := took[len(took)/2]; m > 3*time.Second {
		t.Errorf("median %v, want at most 3s", m)
	}
	if m := took[len(took)-1]; m > 6*time.Second {
		t.Errorf("worst %v, want at most 6s", m)
	}
	w.finish()
	noTrouble(t, c.Logs())
}

func killAll(c *harness.Cluster) {
	nodes := c.Nodes()
	for _, n := range nodes {
		if err := syscall.Kill(n.PID, syscall.SIGKILL); err != nil {
			c.TB.Errorf("kill node %d: %v", n.ID, err)
		}
	}
	for _, n := range nodes {
		c.Eventually(5*time.Second, "node is gone", func() error {
			if n.Alive() {
				return fmt.Errorf("node %d lives", n.ID)
			}
			return nil
		})
	}
}

// TestStopAll stops all nodes at the same time, in order: none hands its leaderships
// to another that is stopping too, to and fro.
func TestStopAll(t *testing.T) {
	c := harness.Start(t, harness.Options{})
	c.CreateTopic(topic, 24)
	highest := func() uint64 {
		var term uint64
		for p := range 24 {
			c.Eventually(10*time.Second, "a leader", func() error {
				_, r, err := c.Leader(fmt.Sprintf("%s-%d", topic, p))
				term = max(term, r.Term)
				return err
			})
		}
		return term
	}
	before := highest()
	nodes := c.Nodes()
	for _, n := range nodes {
		if err := syscall.Kill(n.PID, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range nodes {
		c.Eventually(15*time.Second, "node stops", func() error {
			if n.Alive() {
				return fmt.Errorf("node %d runs", n.ID)
			}
			return nil
		})
	}
	for _, n := range nodes { // not before: who returns early is handed what the others give away
		c.Restart(n.ID)
	}
	if after := highest(); after > before+5 {
		t.Errorf("terms went from %d to %d", before, after)
	}
}
