package raftgroup

import (
	"fmt"
	"sync"
	"testing"
)

// Raft copies what is proposed before Step returns, so that the proposer's bytes may
// be used again. Were that to end, released bytes would reach the log, the others
// and the state machine as something else.
func TestProposedDataIsCopied(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.put("first", "v") // somebody leads
		l := c.leader()
		const n = 20
		var mu sync.Mutex
		released := 0
		var ws []waiter
		for i := range n {
			w := make(waiter, 1)
			ws = append(ws, w)
			data := fmt.Appendf(nil, "key%d=value%d", i, i)
			l.replica().Propose(data, ProposeOptions{Release: func(b []byte) {
				mu.Lock()
				defer mu.Unlock()
				released++
				if &b[0] != &data[0] {
					t.Error("released is something else")
				}
				for k := range b {
					b[k] = '!'
				}
			}}, w)
		}
		for _, w := range ws {
			must(t, (<-w).err)
		}
		c.converge(n + 1)
		for id, nd := range c.nodes {
			for i := range n {
				if got := nd.sm().Get(fmt.Sprintf("key%d", i)); got != fmt.Sprintf("value%d", i) {
					t.Errorf("node %d has %q for key%d", id, got, i)
				}
			}
		}
		if released != n {
			t.Errorf("%d of %d released", released, n)
		}
	})
}
