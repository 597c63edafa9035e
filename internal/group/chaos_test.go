package group

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// client is a consumer as clients write them: it joins, syncs, commits and sends
// heartbeats, and does what the codes it gets ask for.
type client struct {
	t     *testing.T
	s     *shard
	n     int
	rng   *rand.Rand
	world *world

	id  string
	gen int32
}

// world is what all clients of a run agree on.
type world struct {
	mu sync.Mutex
	// owners says who was assigned the one partition there is, by generation.
	owners map[int32]string
	// leaders says who led a generation.
	leaders map[int32]string
	// acked is the highest offset whose commit was acknowledged.
	acked  int64
	next   int64
	stable map[int]int32 // by client: its generation while all is well
}

// coordinator is where the client believes its group to be.
func (c *client) coordinator() *Coordinator {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.lead < 0 || c.rng.IntN(10) == 0 { // or where it was
		return c.s.nodes[c.rng.IntN(len(c.s.nodes))].c
	}
	return c.s.nodes[c.s.lead].c
}

func (c *client) run(ctx context.Context) {
	for ctx.Err() == nil {
		if c.rebalance(ctx) {
			c.serve(ctx)
		}
		c.world.mu.Lock()
		delete(c.world.stable, c.n)
		c.world.mu.Unlock()
		c.pause(ctx, time.Duration(c.rng.IntN(100))*time.Millisecond)
	}
}

func (c *client) pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// wait returns the answer, or false when the client loses patience.
func wait[T any](ctx context.Context, a answer[T]) (v T, ok bool) {
	select {
	case v = <-a.ch:
		return v, true
	case <-ctx.Done():
		return v, false
	case <-time.After(90 * time.Second):
		return v, false
	}
}

func (c *client) rebalance(ctx context.Context) bool {
	a := newAnswer[*kmsg.JoinGroupResponse](c.t)
	c.coordinator().Join(ctx, joinReq(9, c.id, nil), fmt.Sprint("client", c.n), "/h", a.reply)
	r, ok := wait(ctx, a)
	if !ok {
		return false
	}
	switch r.ErrorCode {
	case 0:
	case errMemberIDRequired:
		c.id = r.MemberID
		return false
	case errUnknownMember:
		c.id = ""
		return false
	default:
		return false
	}
	c.id, c.gen = r.MemberID, r.Generation
	var assign map[string]string
	if r.LeaderID == c.id && len(r.Members) > 0 {
		c.world.mu.Lock()
		if l := c.world.leaders[c.gen]; l != "" && l != c.id {
			c.t.Errorf("generation %d is led by %s and %s", c.gen, l, c.id)
		}
		c.world.leaders[c.gen] = c.id
		c.world.mu.Unlock()
		assign = map[string]string{r.Members[c.rng.IntN(len(r.Members))].MemberID: "all"}
	}
	sa := syncGroup(c.t, c.coordinator(), c.id, c.gen, assign)
	sr, ok := wait(ctx, sa)
	if !ok || sr.ErrorCode != 0 {
		if ok && sr.ErrorCode == errUnknownMember {
			c.id = ""
		}
		return false
	}
	if len(sr.MemberAssignment) > 0 {
		c.world.mu.Lock()
		if o := c.world.owners[c.gen]; o != "" && o != c.id {
			c.t.Errorf("in generation %d the partition belongs to %s and %s", c.gen, o, c.id)
		}
		c.world.owners[c.gen] = c.id
		c.world.mu.Unlock()
	}
	return true
}

// serve sends heartbeats and commits until something is to be done.
func (c *client) serve(ctx context.Context) {
	for ctx.Err() == nil {
		c.pause(ctx, time.Duration(500+c.rng.IntN(2500))*time.Millisecond)
		co := c.coordinator()
		code := heartbeat(co, c.id, c.gen)
		c.world.mu.Lock()
		if code == 0 {
			c.world.stable[c.n] = c.gen
		}
		mine := c.world.owners[c.gen] == c.id
		c.world.mu.Unlock()
		switch code {
		case 0:
			if mine {
				c.commit(ctx, co)
			}
			if c.rng.IntN(60) == 0 {
				leave(co, c.id, nil)
				c.id = ""
				return
			}
			if c.rng.IntN(40) == 0 {
				c.pause(ctx, 15*time.Second) // a long pause: its session ends
			}
		case errNotCoordinator, errLoadInProgress: // ask again elsewhere
		case errUnknownMember:
			c.id = ""
			return
		default:
			return
		}
	}
}

func (c *client) commit(ctx context.Context, co *Coordinator) {
	c.world.mu.Lock()
	c.world.next++
	n := c.world.next
	c.world.mu.Unlock()
	r, ok := wait(ctx, commit(c.t, co, c.id, c.gen, tp{"t", 0, n}))
	if ok && r.Topics[0].Partitions[0].ErrorCode == 0 {
		c.world.mu.Lock()
		c.world.acked = max(c.world.acked, n)
		c.world.mu.Unlock()
	}
}

// Clients come, pause and go, leaders change at any moment: each generation has
// one leader and one owner of each partition, no acknowledged commit is lost, and
// once left alone all members settle in one generation.
func TestChaos(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { chaos(t, seed) }) })
	}
}

func chaos(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	s := newShard(t, 3, Options{})
	defer s.close()
	s.elect(0)
	w := &world{owners: map[int32]string{}, leaders: map[int32]string{}, stable: map[int]int32{}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var clients []*client
	for i := range 4 {
		c := &client{t: t, s: s, n: i, rng: rand.New(rand.NewPCG(seed, uint64(i)+9)), world: w}
		clients = append(clients, c)
		wg.Go(func() { c.run(ctx) })
	}
	for range 15 {
		time.Sleep(time.Duration(rng.IntN(20_000)) * time.Millisecond)
		switch rng.IntN(4) {
		case 0:
			s.elect(-1)
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
			s.elect(rng.IntN(3))
		case 1:
			s.set(func() { s.hold = true })
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
			s.release()
		default:
			s.elect(rng.IntN(3))
		}
	}
	settled := func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, g := range w.stable {
			if g != w.stable[0] {
				return false
			}
		}
		return len(w.stable) == len(clients)
	}
	deadline := time.Now().Add(20 * time.Minute)
	for !settled() {
		if time.Now().After(deadline) {
			t.Fatalf("members do not settle: %v, %s", w.stable, groupStateOf(s.nodes[s.lead].c))
		}
		time.Sleep(time.Second)
	}
	cancel()
	wg.Wait()
	synctest.Wait()
	if o := s.nodes[s.lead].sm.view().offset(offsetKey{"g", "t", 0}); w.acked > 0 && (o == nil || o.Offset < w.acked) {
		t.Fatalf("offset %d was acknowledged, %+v is there", w.acked, o)
	}
	for _, n := range s.nodes[1:] {
		if string(stateBytes(t, n.sm.view())) != string(stateBytes(t, s.nodes[0].sm.view())) {
			t.Fatal("replicas differ")
		}
	}
}
