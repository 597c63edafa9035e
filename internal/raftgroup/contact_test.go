package raftgroup

import (
	"testing"
	"time"

	"chronik/internal/transport"
)

// Of a process that stood still itself nobody is silent: it does not know yet.
func TestNobodyIsSilentAfterAStandstill(t *testing.T) {
	const silence = time.Second
	for _, step := range []time.Duration{silence / 2, 3 * silence} {
		c := newContacts()
		c.connected(2)
		c.heard(2, 7, c.own())
		now := time.Now()
		c.judge(now, silence)
		for range 3 {
			now = now.Add(step)
			c.judge(now, silence)
		}
		if stood := step >= silence; c.silent(2) == stood {
			t.Errorf("looks every %v: silent %v", step, c.silent(2))
		}
	}
}

// A node whose words are lost is silent, to itself and to the other, until they arrive again; its
// connection stays all along. Of a node that says no beats nothing is known.
func TestSilentPeer(t *testing.T) {
	inCluster(t, 3, func(c *cluster) { c.tune = func(o *Options) { o.NeverQuiesce = o.Node == 3 } }, func(c *cluster) {
		a, b := c.nodes[1].host, c.nodes[2].host
		<-time.After(2 * time.Second)
		if a.Silent(2) || b.Silent(1) {
			t.Error("nodes that hear each other are silent")
		}
		c.nodes[1].setFilter(func(from transport.PeerInfo, _ item) bool { return from.Node == 2 })
		c.within(a.opt.silence()+2*a.opt.HeartbeatInterval, "each is silent to the other", func() bool { return a.Silent(2) && b.Silent(1) })
		c.nodes[1].setFilter(nil)
		c.within(3*a.opt.HeartbeatInterval, "each is heard", func() bool { return !a.Silent(2) && !b.Silent(1) })
		if a.Silent(3) {
			t.Error("a node that says no beats is silent")
		}
	})
}
