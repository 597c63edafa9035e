package raftgroup

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"chronik/internal/ident"
	"chronik/internal/vfs"
)

// Power cuts, cut wires, loss and delay, with checkpoints, trims and installs
// all the while: every acknowledged write stays, every replica ends with the
// same state, nobody is quarantined, no pin is left.
func TestChaos(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			inCluster(t, 3, smallSteps, func(c *cluster) { (&chaos{c: c, rng: rand.New(rand.NewPCG(seed, 3))}).run() })
		})
	}
}

type chaos struct {
	c     *cluster
	rng   *rand.Rand
	down  map[ident.NodeID]*vfs.MemFS
	acked map[string]string
	seq   int
}

func (x *chaos) run() {
	c := x.c
	x.down = make(map[ident.NodeID]*vfs.MemFS)
	x.acked = make(map[string]string)
	c.create(3)
	for range 120 {
		x.step()
	}
	c.net.HealAll()
	c.net.SetLoss(0)
	c.net.SetDelay(0, 0)
	c.net.SetReorder(false)
	for id := range x.down {
		x.boot(id)
	}
	c.put("end", "1")
	x.acked["end"] = "1"
	c.eventually("same state everywhere", func() bool { return x.same() })
	time.Sleep(3 * time.Minute) // a pin of a deposed leader ends by its expiry
	for id, nd := range c.nodes {
		if n := nd.srv.Stats().Pins; n != 0 {
			c.t.Errorf("node %d: %d pins left", id, n)
		}
		if err := nd.ev.quarantine(nd.replica().ID()); err != nil {
			c.t.Errorf("node %d: %v", id, err)
		}
		if st := nd.replica().Status(); st.State != StateRunning {
			c.t.Errorf("node %d: %+v", id, st)
		}
	}
}

func (x *chaos) boot(id ident.NodeID) {
	disk := x.down[id]
	delete(x.down, id)
	x.c.boot(id, storeOf(id, 0), disk)
}

func (x *chaos) step() {
	c := x.c
	id := ident.NodeID(x.rng.IntN(3) + 1)
	switch x.rng.IntN(12) {
	case 0:
		if nd := c.nodes[id]; nd != nil {
			x.down[id] = nd.kill(x.rng.IntN(2) * 50)
		}
	case 1, 2:
		if x.down[id] != nil {
			x.boot(id)
		}
	case 3:
		c.net.Isolate(id)
	case 4:
		c.net.HealAll()
	case 5:
		c.net.SetLoss(float64(x.rng.IntN(3)) / 20)
	case 6:
		c.net.SetDelay(0, time.Duration(x.rng.IntN(80))*time.Millisecond)
	case 7:
		if nd := c.nodes[id]; nd != nil {
			nd.replica().TransferLeadership(0)
		}
	default:
		x.write()
	}
	time.Sleep(time.Duration(x.rng.IntN(400)) * time.Millisecond)
}

// write proposes a burst on whoever leads and remembers what was acknowledged.
func (x *chaos) write() {
	l := x.c.leads()
	if l == nil {
		return
	}
	n := 1 + x.rng.IntN(30)
	from := x.seq
	ws := make([]waiter, n)
	for i := range n {
		ws[i] = make(waiter, 1)
		l.replica().Propose(fmt.Appendf(nil, "c%d=%d", from+i, from+i), ProposeOptions{Deadline: time.Now().Add(time.Second)}, ws[i])
	}
	x.seq += n
	for i := range n {
		if got := <-ws[i]; got.err == nil {
			x.acked[fmt.Sprintf("c%d", from+i)] = fmt.Sprint(from + i)
		}
	}
}

func (x *chaos) same() bool {
	want := -1
	for _, nd := range x.c.nodes {
		sm := nd.sm()
		if want < 0 {
			want = sm.Len()
		}
		if sm.Len() != want {
			return false
		}
		for k, v := range x.acked {
			if sm.Get(k) != v {
				return false
			}
		}
	}
	return len(x.c.nodes) == 3
}
