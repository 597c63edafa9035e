package raftgroup

import (
	"context"
	"testing"
	"time"
)

func TestThreeReplicasReplicate(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.leader()
		c.fill("k", 0, 20)
		if got := c.put("k3", "w"); got.res != "v" {
			t.Fatalf("result %v, want the value before", got.res)
		}
		c.converge(20)
	})
}

func TestSoleVoterLeadsAtOnce(t *testing.T) {
	inCluster(t, 1, nil, func(c *cluster) {
		start := time.Now()
		c.create(1)
		c.put("a", "1")
		if took := time.Since(start); took > 200*time.Millisecond {
			t.Fatalf("first write after %v", took)
		}
		c.nodes[1].stop(context.Background())
	})
}
