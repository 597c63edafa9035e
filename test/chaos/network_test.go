package chaos

import (
	"fmt"
	"time"

	"chronik/test/harness"
)

// pick returns a random node, one that leads something, and says which.
func (e *env) pick() (id int, role string) {
	switch e.rng.IntN(3) {
	case 0:
		if n, _, err := e.c.Leader("__meta"); err == nil {
			return n, "the metadata leader"
		}
	case 1:
		if n, _, err := e.c.Leader(e.l.o.topic + "-0"); err == nil {
			return n, "the leader of partition 0"
		}
	}
	return e.anyNode(), "a node"
}

// others are the two nodes that id is not, in random order.
func (e *env) others(id int) (a, b int) {
	a, b = 1+id%3, 1+(id+1)%3
	if e.rng.IntN(2) == 0 {
		a, b = b, a
	}
	return a, b
}

// cutNemeses lose packets between namespaces.
var cutNemeses = []nemesis{
	{"cut one off", func(e *env) string {
		id, role := e.pick()
		a, b := e.others(id)
		e.c.Net.Cut(id, a)
		e.c.Net.Cut(id, b)
		return e.holdCut(fmt.Sprintf("%s, node %d, from both others", role, id))
	}},
	{"cut a pair", func(e *env) string {
		id, role := e.pick()
		a, _ := e.others(id)
		e.c.Net.Cut(id, a)
		return e.holdCut(fmt.Sprintf("%s, node %d, from node %d", role, id, a))
	}},
	{"asymmetric cut", func(e *env) string {
		id, role := e.pick()
		a, b := e.others(id)
		switch e.rng.IntN(3) {
		case 0:
			e.c.Net.CutOneWay(id, a)
			return e.holdCut(fmt.Sprintf("%s, node %d, to node %d", role, id, a))
		case 1:
			e.c.Net.CutOneWay(id, a)
			e.c.Net.CutOneWay(id, b)
			return e.holdCut(fmt.Sprintf("%s, node %d, to both others", role, id))
		default:
			e.c.Net.CutOneWay(a, id)
			e.c.Net.CutOneWay(b, id)
			return e.holdCut(fmt.Sprintf("both others to %s, node %d", role, id))
		}
	}},
	{"unplug", func(e *env) string {
		id, role := e.pick()
		e.c.Net.Unplug(id)
		return e.holdCut(fmt.Sprintf("%s, node %d", role, id))
	}},
	{"cut everybody off", func(e *env) string {
		e.c.Net.Cut(1, 2)
		e.c.Net.Cut(2, 3)
		e.c.Net.Cut(1, 3)
		return e.holdCut("all from all")
	}},
	{"flapping cut", func(e *env) string {
		id, role := e.pick()
		a, b := e.others(id)
		n := 3 + e.rng.IntN(5)
		for range n {
			e.c.Net.CutOneWay(id, a)
			e.c.Net.CutOneWay(b, id)
			e.between(100*time.Millisecond, 1500*time.Millisecond)
			e.c.Net.Heal()
			e.between(0, 500*time.Millisecond)
		}
		return fmt.Sprintf("around %s, node %d, %d times", role, id, n)
	}},
}

// holdCut lets a cut last and heals it.
func (e *env) holdCut(what string) string {
	d := e.between(300*time.Millisecond, 7*time.Second)
	e.c.Net.Heal()
	return fmt.Sprintf("%s for %v", what, d)
}

// slow is the link of a modem of 1960.
const slow = 8

// linkNemeses disturb what passes the proxies.
var linkNemeses = []nemesis{
	{"slow link", func(e *env) string {
		id, role := e.pick()
		a, _ := e.others(id)
		e.c.Proxy.Set(id, a, harness.Fault{Rate: slow})
		if both := e.rng.IntN(2) == 0; both {
			e.c.Proxy.Set(a, id, harness.Fault{Rate: slow})
			role = "both ways: " + role
		}
		return e.holdLink(fmt.Sprintf("%s, node %d, to node %d at %d B/s", role, id, a, slow))
	}},
	{"slow entries", func(e *env) string {
		id, role := e.pick()
		a, b := e.others(id)
		f := harness.Fault{Rate: slow, Classes: []harness.Class{harness.Append, harness.Bulk}}
		e.c.Proxy.Set(id, a, f)
		if e.rng.IntN(2) == 0 {
			e.c.Proxy.Set(id, b, f)
		}
		return e.holdLink(fmt.Sprintf("%s, node %d, sends at %d B/s, heartbeats pass", role, id, slow))
	}},
	{"delay", func(e *env) string {
		f := harness.Fault{Delay: time.Duration(5+e.rng.IntN(150)) * time.Millisecond, Jitter: time.Duration(e.rng.IntN(100)) * time.Millisecond}
		e.everyLink(f)
		return e.holdLink(fmt.Sprintf("everywhere, %v", f))
	}},
	{"loss", func(e *env) string {
		f := harness.Fault{Loss: 0.02 + 0.1*e.rng.Float64(), Stall: time.Duration(200+e.rng.IntN(800)) * time.Millisecond, Reset: 0.002 * e.rng.Float64()}
		e.everyLink(f)
		return e.holdLink(fmt.Sprintf("everywhere, %v", f))
	}},
	{"one-way hole", func(e *env) string {
		id, role := e.pick()
		a, b := e.others(id)
		f := harness.Fault{Hole: true}
		what := "all"
		switch e.rng.IntN(4) {
		case 0:
			f.Classes, what = []harness.Class{harness.Append}, "entries"
		case 1:
			f.Classes, what = []harness.Class{harness.Control}, "heartbeats"
		}
		if e.rng.IntN(2) == 0 {
			e.c.Proxy.Set(id, a, f)
			e.c.Proxy.Set(id, b, f)
		} else {
			e.c.Proxy.Set(a, id, f)
		}
		return e.holdLink(fmt.Sprintf("%s of %s, node %d", what, role, id))
	}},
	{"hole on both sides", func(e *env) string {
		id, role := e.pick()
		for _, other := range []int{1 + id%3, 1 + (id+1)%3} {
			e.c.Proxy.Set(id, other, harness.Fault{Hole: true})
			e.c.Proxy.Set(other, id, harness.Fault{Hole: true})
		}
		return e.holdLink(fmt.Sprintf("%s, node %d", role, id))
	}},
}

func (e *env) everyLink(f harness.Fault) {
	for a := 1; a <= 3; a++ {
		for b := 1; b <= 3; b++ {
			if a != b {
				e.c.Proxy.Set(a, b, f)
			}
		}
	}
}

// holdLink lets a fault last and heals it.
func (e *env) holdLink(what string) string {
	d := e.between(500*time.Millisecond, 8*time.Second)
	e.c.Proxy.Heal()
	return fmt.Sprintf("%s for %v", what, d)
}

// disturb leaves a mild fault of the network that others come on top of, and returns what it is.
func (e *env) disturb() string {
	if e.c.Net != nil {
		a := e.anyNode()
		b, _ := e.others(a)
		e.c.Net.CutOneWay(a, b)
		e.apart = [2]int{a, b}
		return fmt.Sprintf("while node %d does not reach node %d", a, b)
	}
	f := harness.Fault{Delay: time.Duration(e.rng.IntN(80)) * time.Millisecond, Loss: 0.03, Stall: 300 * time.Millisecond, Reset: 0.0005}
	e.everyLink(f)
	return fmt.Sprintf("with %v", f)
}

func (e *env) heal() {
	e.apart = [2]int{}
	if e.c.Net != nil {
		e.c.Net.Heal()
	}
	if e.c.Proxy != nil {
		e.c.Proxy.Heal()
	}
}
