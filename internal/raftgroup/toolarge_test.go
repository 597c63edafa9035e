package raftgroup

import (
	"bytes"
	"testing"
	"time"

	"chronik/internal/alloctest"
	"chronik/internal/transport"
)

// TestEntryTooLargeIsRefused: what no frame carries is never appended, so that the group goes on; the largest
// entry that is taken reaches everybody.
func TestEntryTooLargeIsRefused(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 2)
		big := append([]byte("big="), bytes.Repeat([]byte("x"), transport.MaxFrame)...)
		propose := func(data []byte) told {
			w := make(waiter, 1)
			c.leader().replica().Propose(data, ProposeOptions{Deadline: time.Now().Add(10 * time.Second)}, w)
			return <-w
		}
		for _, size := range []int{len(big), MaxEntry + 1} {
			if got := propose(big[:size]); got.index != 0 {
				t.Errorf("%d bytes were appended at index %d", size, got.index)
			} else {
				isErr(t, got.err, ErrTooLarge)
			}
			if got := propose([]byte("small=1")); got.err != nil {
				t.Fatalf("after %d bytes the group is stuck: %v", size, got.err)
			}
		}
		if !alloctest.Racing { // copied here and there: most of a minute under the race detector
			must(t, propose(big[:MaxEntry]).err)
			c.converge(4)
		}
	})
}
