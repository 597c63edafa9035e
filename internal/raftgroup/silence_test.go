package raftgroup

import (
	"context"
	"testing"
	"time"
)

// Rule 18: a restored copy that was released before it was found out takes no part from
// then on, not even while its node stops.
func TestRule18SilencedHostTakesNoPart(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 10)
		quiet := c.follower()
		quiet.host.Silence()
		<-time.After(time.Second) // what was under way is done
		before := quiet.log.DurableLSN()
		c.fill("k", 10, 20)
		for _, nd := range c.nodes {
			if nd != quiet && nd != c.leads() {
				nd.kill(0)
				break
			}
		}
		<-time.After(5 * time.Second)
		if l := c.leads(); l != nil {
			t.Errorf("node %d leads by the vote of the silenced one", l.id)
		}
		if lsn := quiet.log.DurableLSN(); lsn != before {
			t.Errorf("the silenced host wrote: LSN %d, before %d", lsn, before)
		}
		began := time.Now()
		quiet.stop(context.Background())
		if d := time.Since(began); d > time.Second {
			t.Errorf("it stopped after %v", d)
		}
	})
}
