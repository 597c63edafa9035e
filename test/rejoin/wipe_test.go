package rejoin

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/test/harness"
)

// voters waits until the partition's replicas on all nodes are plain running members again.
func voters(c *harness.Cluster, group string, hw int64) error {
	for _, n := range c.Nodes() {
		r, err := c.Replica(n.ID, group)
		switch {
		case err != nil:
			return err
		case r.State != "running" || r.Role == "learner":
			return fmt.Errorf("node %d: %s %s of %s", n.ID, r.State, r.Role, group)
		case hw >= 0 && r.HighWatermark != hw:
			return fmt.Errorf("node %d: %s is at %d, want %d", n.ID, group, r.HighWatermark, hw)
		}
	}
	return nil
}

// TestWipeEachNode wipes one node after the other, whoever leads: the metadata
// leader, the partition's leader, a follower. Each comes back under fresh
// replica ids as a full voter, so that the next one can be wiped.
func TestWipeEachNode(t *testing.T) {
	c := harness.Start(t, harness.Options{Threshold: 50})
	c.CreateTopic("orders", 1)
	cl := c.Client(kgo.ProducerLinger(0))
	total := int64(0)
	for round := range 2 {
		for id := 1; id <= 3; id++ {
			produce(t, cl, 60, 100)
			total += 60
			c.Kill(id)
			c.Wipe(id)
			c.Restart(id)
			c.Eventually(15*time.Second, fmt.Sprintf("round %d: node %d is a full member again", round, id), func() error {
				if err := voters(c, group, total); err != nil {
					return err
				}
				if err := voters(c, "__meta", -1); err != nil {
					return err
				}
				if err := c.Ready(id); err != nil {
					return err
				}
				return replaced(c)
			})
		}
	}
	if err := c.DigestsEqual("orders", 0, total); err != nil {
		t.Error(err)
	}
}

// replaced tells whether the metadata waits for no replacement any more.
func replaced(c *harness.Cluster) error {
	for _, n := range c.Nodes() {
		var cl struct {
			Topics []struct {
				Partitions []partitionView `json:"partitions"`
			} `json:"topics"`
			Internal []partitionView `json:"internal"`
		}
		if err := c.Get(n.ID, "/v1/cluster", &cl); err != nil {
			return err
		}
		all := cl.Internal
		for _, t := range cl.Topics {
			all = append(all, t.Partitions...)
		}
		for _, p := range all {
			if len(p.Replicas) != 3 {
				return fmt.Errorf("node %d: %s has %d replicas", n.ID, p.Group, len(p.Replicas))
			}
			for _, r := range p.Replicas {
				if r.Joining || r.Lost || r.Learner {
					return fmt.Errorf("node %d: %s still replaces: %+v", n.ID, p.Group, p.Replicas)
				}
			}
		}
	}
	return nil
}

type partitionView struct {
	Group    string `json:"group"`
	Replicas []struct {
		Node    int  `json:"node"`
		Joining bool `json:"joining"`
		Lost    bool `json:"lost"`
		Learner bool `json:"learner"`
	} `json:"replicas"`
}

// TestSecondProcessOfANodeIsRefused starts node 3 a second time on another directory
// and other ports while the first one runs.
func TestSecondProcessOfANodeIsRefused(t *testing.T) {
	harness.Long(t) // the newcomer waits for the other to go
	c := harness.Start(t, harness.Options{})
	n := c.Node(3)
	dir := t.TempDir()
	out, err := c.CLI("start", "--node-id", "3", "--data-dir", dir, "--kafka-addr", harness.FreeAddr(t), "--raft-addr", harness.FreeAddr(t),
		"--admin-addr", harness.FreeAddr(t), "--peers", peersOf(n.Argv))
	if err == nil {
		t.Fatalf("the second process ended without an error: %s", out)
	}
	if n := strings.Count(err.Error(), "chronik: error:"); n != 1 {
		t.Errorf("%d error lines in %q", n, err)
	}
	for _, want := range []string{"exit status 1", "chronik: error:", "chronik: hint:", "node id is taken"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the second process said %q, without %q", err, want)
		}
	}
	if err := c.Ready(3); err != nil {
		t.Errorf("the first process suffered: %v", err)
	}
}

func peersOf(argv []string) string {
	for i, a := range argv {
		if a == "--peers" {
			return argv[i+1]
		}
	}
	return ""
}
