package chaos

import (
	"path/filepath"
	"testing"
	"time"

	"chronik/test/harness"
)

// returns are the ways in which a node comes back, each with less than it had before.
var returns = []struct {
	name string
	how  func(e *env, id int)
}{
	{"with an older copy of its disk", func(e *env, id int) {
		old := filepath.Join(e.t.TempDir(), "older")
		e.c.Stop(id)
		copyDir(e.t, e.c.Node(id).Dir, old)
		e.c.Restart(id)
		e.healed("whole before the restore")
		e.kill(id)
		e.c.Wipe(id)
		copyDir(e.t, old, e.c.Node(id).Dir)
	}},
	{"with its disk", func(e *env, id int) { e.kill(id) }},
	{"with an empty disk", func(e *env, id int) {
		e.kill(id)
		e.c.Wipe(id)
	}},
}

// TestReturnBesideACut: a node comes back while packets between it and the metadata leader are lost in one
// direction. The third node hears both of them, so the cluster must become whole while the cut lasts: leaderships go to
// whoever reaches everybody.
func TestReturnBesideACut(t *testing.T) {
	c := harness.Start(t, harness.Options{Threshold: 300, Namespaces: true})
	e := &env{t: t, c: c, rng: seed(t), l: startLoad(t, c, loadOptions{size: 100, rate: 3 * time.Millisecond})}
	e.healed("whole at the beginning")
	for i, r := range returns[:rounds(t, 1)] {
		leader := e.leaderOf("__meta")
		id, third := e.others(leader)
		r.how(e, id)
		if now := e.leaderOf("__meta"); now != leader {
			t.Logf("the metadata leader is node %d now", now)
			leader, third = now, 6-now-id
		}
		if i%2 == 0 {
			c.Net.CutOneWay(leader, id)
		} else {
			c.Net.CutOneWay(id, leader)
		}
		c.Restart(id)
		took := e.healed("whole beside a cut, " + r.name)
		t.Logf("node %d, cut from node %d, came back %s: whole after %v, by way of node %d", id, leader, r.name, took, third)
		c.Net.Heal()
		e.healed("whole after the cut")
	}
	e.l.finish()
}
