package raftgroup

import (
	"testing"
	"time"
)

// Under load a pass moves indexes and makes no new status; who asks sees the
// indexes at once, and what the followers hold a tick later.
func TestStatusIsNotMadeEachPass(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.put("a", "1")
		l := c.leader()
		r := l.replica()
		c.eventually("all keep up", func() bool {
			for _, f := range r.Status().Followers {
				if f.State != stateReplicate || !f.Alive {
					return false
				}
			}
			return len(r.Status().Followers) == 2
		})
		made, before := 0, r.Status()
		was := r.status.Load()
		for range 50 {
			c.put("a", "2")
			if now := r.status.Load(); now != was {
				made, was = made+1, now
			}
		}
		if made > 5 { // of ticks
			t.Errorf("%d new statuses for 50 entries", made)
		}
		st := r.Status()
		if st.LastIndex != before.LastIndex+50 || st.CommitIndex != st.LastIndex || st.AppliedIndex != st.LastIndex {
			t.Errorf("last %d, commit %d, applied %d, before was %d", st.LastIndex, st.CommitIndex, st.AppliedIndex, before.LastIndex)
		}
		asked := time.Now()
		c.eventually("matches", func() bool {
			for _, f := range r.Status().Followers {
				if f.Match != st.LastIndex {
					return false
				}
			}
			return true
		})
		if took := time.Since(asked); took > slowInterval/2 {
			t.Errorf("what followers hold was told after %v", took)
		}
	})
}
