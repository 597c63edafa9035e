package raftgroup

import (
	"bytes"
	"slices"
	"sync"
	"testing"
	"time"

	"chronik/internal/ident"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// late keeps a copy of each frame that arrives between two lives of a node, to deliver it again far too late.
type late struct {
	mu     sync.Mutex
	frames []lateFrame
}

type lateFrame struct {
	to    ident.NodeID
	from  transport.PeerInfo
	bytes []byte
}

func (l *late) keep(to ident.NodeID) func(transport.PeerInfo, []byte) {
	return func(from transport.PeerInfo, frame []byte) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.frames = append(l.frames, lateFrame{to, from, bytes.Clone(frame)})
	}
}

// arrive delivers what was sent from or to a node, as from whoever is connected as its sender now, and as from
// the sender it had.
func (l *late) arrive(c *cluster, id ident.NodeID) (n int) {
	l.mu.Lock()
	frames := slices.Clone(l.frames)
	l.mu.Unlock()
	for _, f := range frames {
		nd, sender := c.nodes[f.to], c.nodes[f.from.Node]
		if nd == nil || sender == nil || f.to != id && f.from.Node != id {
			continue
		}
		n++
		must(c.t, nd.host.HandleFrame(f.from, f.bytes))
		must(c.t, nd.host.HandleFrame(transport.PeerInfo{Node: sender.id, Store: sender.store}, f.bytes))
	}
	return n
}

// TestDelayedFramesOfAnOldIncarnation: a node loses its disk and is replaced. All that its old replica said and was
// told, votes, acknowledgements, its own leadership's entries and heartbeats, arrives once more: while the new one
// is blank, while it learns, while both count, and after. No network does so much; nothing of it may count for the
// new replica, none may harm the group.
func TestDelayedFramesOfAnOldIncarnation(t *testing.T) {
	var l late
	inCluster(t, 3, func(c *cluster) {
		smallSteps(c)
		c.net.SetDelay(0, 30*time.Millisecond)
	}, func(c *cluster) {
		for _, nd := range c.nodes {
			nd.setTap(l.keep(nd.id))
		}
		c.create(3)
		c.fill("k", 0, 30)
		f := c.follower()
		id, old := f.id, f.replica().ID()
		c.eventually("it leads for a while", func() bool {
			if l := c.leads(); l != nil && l != f {
				l.replica().TransferLeadership(old)
			}
			<-time.After(500 * time.Millisecond)
			return c.leads() == f
		})
		c.fill("k", 30, 60)
		f.kill(0)
		lead := c.leader()
		term := lead.replica().Status().Term
		keys := 60
		calm := func(stage string) {
			c.t.Helper()
			if n := l.arrive(c, id); n < 50 && c.nodes[id] != nil {
				c.t.Fatalf("%s: only %d frames", stage, n)
			}
			<-time.After(2 * time.Second)
			for _, nd := range c.nodes {
				nd.ev.mu.Lock()
				quarantined, replace, fatal := len(nd.ev.quarantined), len(nd.ev.replace), nd.ev.fatal
				nd.ev.mu.Unlock()
				if quarantined+replace > 0 || fatal != nil {
					c.t.Fatalf("%s: node %d: %d quarantined, %d to be replaced, fatal %v", stage, nd.id, quarantined, replace, fatal)
				}
			}
			if st := lead.replica().Status(); c.leads() != lead || st.Term != term {
				c.t.Fatalf("%s: node %d led in term %d; now %+v", stage, lead.id, term, st)
			}
			c.fill("k", keys, keys+5)
			keys += 5
		}
		store := storeOf(id, 1)
		nd := c.boot(id, store, vfs.NewCrashableMem())
		fresh := Member{Replica: 99, Node: id, Store: store}
		must(c.t, nd.host.Create([]Spec{specFor(fresh, nil)}))
		nd.host.Start(testGroup)
		calm("blank")
		if st := nd.replica().Status(); st.LastIndex != 0 || st.CommitIndex != 0 || st.Term != 0 {
			c.t.Fatalf("the blank replica heard what its predecessor was told: %+v", st)
		}
		c.change(func(l *Replica, w Waiter) { l.AddLearner(fresh, 5, ProposeOptions{}, w) })
		calm("learner")
		c.converge(keys)
		c.change(func(l *Replica, w Waiter) { l.ReplaceVoter(fresh, old, 5, ProposeOptions{}, w) })
		c.eventually("the joint configuration is left", func() bool { return len(lead.replica().Status().Members) == 3 })
		calm("replaced")
		c.converge(keys)
	})
}
