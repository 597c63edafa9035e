package raftgroup

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
	"chronik/internal/snapshot"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// resting waits until every replica of the test group rests.
func (c *cluster) resting() {
	c.t.Helper()
	c.eventually("everybody rests", c.allRest)
}

func (c *cluster) allRest() bool {
	for _, nd := range c.nodes {
		if r := nd.replica(); r != nil && !r.Status().Resting {
			return false
		}
	}
	return true
}

// within fails unless ok comes true in d of the bubble's clock: less than lookUpLeader, so that no
// replica is helped by looking up.
func (c *cluster) within(d time.Duration, what string, ok func() bool) time.Duration {
	c.t.Helper()
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		if ok() {
			return time.Since(start)
		}
		if time.Since(start) > d {
			for _, nd := range c.nodes {
				c.t.Logf("node %d: resting %v, %+v", nd.id, nd.replica().Status().Resting, nd.replica().Status())
			}
			c.t.Fatalf("not in %v: %s", d, what)
		}
	}
}

// counts counts what replicas send nd until stop is called.
func (nd *node) counts() (stop func() int) {
	var n atomic.Int64
	nd.setTap(func(_ transport.PeerInfo, frame []byte) {
		_, _ = decodeFrame(frame, func(it item) {
			if it.to != 0 {
				n.Add(1)
			}
		})
	})
	return func() int { nd.setTap(nil); return int(n.Load()) }
}

// Rule 30: an idle group says nothing, and goes on as before when there is something to do.
func TestRule30IdleGroupRests(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		c.resting()
		term := c.leader().replica().Status().Term
		var stops []func() int
		for _, nd := range c.nodes {
			stops = append(stops, nd.counts())
		}
		time.Sleep(15 * time.Second)
		for _, stop := range stops {
			if n := stop(); n != 0 {
				t.Errorf("an idle group sent %d messages in 15 s", n)
			}
		}
		start := time.Now()
		c.fill("k", 5, 10)
		if d := time.Since(start); d > 20*time.Millisecond {
			t.Errorf("writes after a rest took %v", d)
		}
		c.converge(10)
		c.resting()
		if got := c.leader().replica().Status().Term; got != term {
			t.Errorf("term %d, before the rest %d", got, term)
		}
	})
}

// A replica of one alone rests as well; the metadata group never does.
func TestRule30WhoRests(t *testing.T) {
	inCluster(t, 1, nil, func(c *cluster) {
		c.create(1)
		s := specFor(members(1)[0], members(1))
		s.Group, s.Replica, s.Key, s.Priority = 8, 80, "bb-0", true
		s.Members = []Member{{Replica: 80, Node: 1, Store: storeOf(1, 0)}}
		must(t, c.nodes[1].host.Create([]Spec{s}))
		c.nodes[1].host.Start(8)
		c.resting()
		time.Sleep(10 * time.Second)
		if c.nodes[1].host.Replica(8).Status().Resting {
			t.Error("a replica with priority rests")
		}
	})
	inCluster(t, 3, func(c *cluster) { c.tune = func(o *Options) { o.NeverQuiesce = o.Node == 2 } }, func(c *cluster) {
		c.create(3)
		c.leader()
		c.fill("k", 0, 5)
		time.Sleep(10 * time.Second)
		for _, nd := range c.nodes {
			if nd.replica().Status().Resting {
				t.Errorf("node %d rests though node 2 never does", nd.id)
			}
		}
	})
}

// A node that sends no beats, as those of an older release do, is never rested on.
func TestRule30NotWithoutBeats(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		for _, nd := range c.nodes {
			if nd.id != 3 {
				nd.setFilter(func(from transport.PeerInfo, it item) bool { return from.Node == 3 && it.to == 0 })
			}
		}
		c.fill("k", 0, 5)
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			for _, nd := range c.nodes {
				if nd.replica().Status().Resting {
					t.Fatalf("node %d rests", nd.id)
				}
			}
		}
	})
}

// The leader's node dies while all rest: as fast as if they did not.
func TestRule30LeaderDies(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		for range 3 {
			c.resting()
			l := c.leader()
			disk := l.kill(0)
			c.within(600*time.Millisecond, "a new leader", func() bool { return c.leads() != nil })
			c.resting() // without the dead one
			c.boot(l.id, l.store, disk)
			c.within(time.Second, "the returned node knows the leader", func() bool {
				return c.nodes[l.id].replica().Status().LeaderNode == c.leads().id
			})
		}
		c.put("end", "1")
		c.converge(6)
	})
}

// Everything to and from the resting leader is lost in silence. It must stop to take itself for
// the leader, and the others must elect one (tried: one that is not ticked stays leader).
func TestRule30CutOffLeaderStepsDown(t *testing.T) {
	for _, way := range []string{"both ways", "from it", "to it", "by the ends of its connections"} {
		t.Run(way, func(t *testing.T) {
			inCluster(t, 3, nil, func(c *cluster) {
				c.create(3)
				c.fill("k", 0, 5)
				c.resting()
				old := c.leader()
				for id := range c.nodes {
					switch {
					case id == old.id:
					case way == "by the ends of its connections":
						c.net.Partition(id, old.id)
					default:
						c.net.Drop(old.id, id, way != "to it")
						c.net.Drop(id, old.id, way != "from it")
					}
				}
				// Silence is nearly an election timeout; then raft's own one to two of them.
				c.within(3*time.Second+200*time.Millisecond, "the old leader steps down", func() bool { return !old.replica().IsLeader() })
				c.within(8*time.Second, "another one leads", func() bool { l := c.leads(); return l != nil && l != old }) // votes may split
				c.net.HealAll()
				c.put("after", "1")
				c.converge(6)
				c.resting()
			})
		})
	}
}

// One follower alone loses sight of the resting leader: leadership stays, nothing is disturbed for long.
func TestRule30CutOffFollower(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		c.resting()
		l, f := c.leader(), c.follower()
		c.net.Drop(l.id, f.id, true)
		c.within(2*time.Second, "the leader wakes", func() bool { return !l.replica().Status().Resting })
		time.Sleep(5 * time.Second)
		if c.leads() != l || l.replica().Status().Resting {
			t.Errorf("leader %v, resting %v", c.leads(), l.replica().Status().Resting)
		}
		c.net.HealAll()
		c.fill("k", 5, 6)
		c.converge(6)
		c.resting()
	})
}

// Only the leader's replica ends, its node lives on: the raised epoch tells its followers.
func TestRule30LeaderIsQuarantined(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		c.resting()
		l := c.leader()
		l.replica().failLog(errors.New("a file of it cannot be read"))
		// A beat tells them; then raft's election timeout runs, again if both voted for themselves. Else they would look up
		// after more than a minute.
		c.within(10*time.Second, "another one leads", func() bool { n := c.leads(); return n != nil && n != l })
	})
}

// Only a follower's replica ends, its node lives on. The leader finds out when it looks up, and rests no more.
func TestRule30FollowerIsQuarantined(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		c.resting()
		l, f := c.leader(), c.follower()
		f.replica().failLog(errors.New("a file of it cannot be read"))
		time.Sleep(lookUpLeader + 10*time.Second)
		if c.leads() != l || l.replica().Status().Resting {
			t.Errorf("leader %v, which rests: %v", c.leads(), l.replica().Status().Resting)
		}
	})
}

// The leader steps down while its followers rest and nothing that it says about it reaches them.
func TestRule30EpochReachesWhomNothingElseDoes(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		c.resting()
		l, f := c.leader(), c.follower()
		for _, nd := range c.nodes {
			nd.setFilter(func(from transport.PeerInfo, it item) bool { return from.Node == l.id && it.to != 0 })
		}
		before := l.host.contacts.own()
		l.replica().postLocal(localEvent{fn: func(*outbox) {
			// What a candidate with a higher term does to it.
			id, from, term := uint64(l.replica().ID()), uint64(f.replica().ID()), uint64(l.replica().rs.hs.Term)+1
			_ = l.replica().rs.rn.Step(&pb.Message{Type: pb.MsgAppResp.Enum(), From: &from, To: &id, Term: &term})
		}})
		c.within(time.Second, "everybody wakes", func() bool {
			for _, nd := range c.nodes {
				if nd.replica().Status().Resting {
					return false
				}
			}
			return true
		})
		if l.host.contacts.own() == before {
			t.Error("the epoch was not raised")
		}
		for _, nd := range c.nodes {
			nd.setFilter(nil)
		}
		c.put("after", "1")
		c.resting()
	})
}

// The word to rest reaches one follower only. The other asks, and no election comes of it.
func TestRule30WordIsLost(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		f := c.follower()
		var lost, asked atomic.Int32
		f.setFilter(func(_ transport.PeerInfo, it item) bool {
			drop := it.kind == itemQuiesce && lost.Load() < 3
			if drop {
				lost.Add(1)
			}
			return drop
		})
		l := c.leader()
		term := l.replica().Status().Term
		l.setFilter(func(_ transport.PeerInfo, it item) bool {
			if it.kind == itemStatus && it.state == wakeAsked {
				asked.Add(1)
			}
			return false
		})
		c.fill("k", 0, 5)
		c.within(5*time.Second, "all rest in the end", func() bool { return lost.Load() == 3 && c.allRest() })
		if asked.Load() < 3 || c.leads() != l || l.replica().Status().Term != term {
			t.Errorf("asked %d times; leader %v of term %d, was %d", asked.Load(), c.leads(), l.replica().Status().Term, term)
		}
	})
}

// Nobody rests while a connected member lacks entries, though it answers heartbeats.
func TestRule30FollowerIsBehind(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		c.resting()
		l, f := c.leader(), c.follower()
		f.setFilter(func(_ transport.PeerInfo, it item) bool {
			return it.kind == itemMessage && len(it.msg.GetEntries()) > 0
		})
		c.put("more", "1")
		for range 50 {
			time.Sleep(100 * time.Millisecond)
			if l.replica().Status().Resting {
				t.Fatal("the leader rests")
			}
		}
		f.setFilter(nil)
		c.converge(6)
		c.resting()
	})
}

// A follower rests on a word that fits in every respect, and on no other.
func TestRule30WordMustFit(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		c.converge(5)
		l, f := c.leader(), c.follower()
		// The leader's own words do not arrive: what is tried here comes from the test.
		f.setFilter(func(_ transport.PeerInfo, it item) bool { return it.kind == itemQuiesce })
		time.Sleep(time.Second)
		st := l.replica().Status()
		word := item{
			kind: itemQuiesce, group: testGroup, from: st.Replica, to: f.replica().ID(), src: &frameSource{node: l.id, store: l.store},
			term: st.Term, index: st.LastIndex, epoch: l.host.contacts.own(),
		}
		rests := func(it item) bool {
			var rests bool
			done := make(chan struct{})
			f.replica().postItem(it)
			time.Sleep(time.Millisecond)
			rests = f.replica().Status().Resting
			f.replica().postLocal(localEvent{fn: func(*outbox) { close(done) }}) // and awake again
			<-done
			return rests
		}
		for what, change := range map[string]func(*item){
			"an older term":         func(it *item) { it.term-- },
			"a later term":          func(it *item) { it.term++ },
			"an earlier last index": func(it *item) { it.index-- },
			"a later last index":    func(it *item) { it.index++ },
			"an epoch not heard":    func(it *item) { it.epoch++ },
			"no epoch":              func(it *item) { it.epoch = 0 },
			"another sender":        func(it *item) { it.from++ },
		} {
			it := word
			change(&it)
			if rests(it) {
				t.Errorf("it rests on %s", what)
			}
		}
		if !rests(word) {
			t.Error("it does not rest on a word that fits")
		}
	})
}

// A follower restarts, and its group rests. It hears of the leader at once, and the leader does
// not rest before it has.
func TestRule30RestartedFollowerIsHeard(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		c.resting()
		l, f := c.leader(), c.follower()
		disk := f.kill(0)
		c.within(5*time.Second, "the others rest", c.allRest)
		c.hold = true // released later than it is connected
		nd := c.boot(f.id, f.store, disk)
		time.Sleep(3 * time.Second)
		if l.replica().Status().Resting {
			t.Error("the leader rests on a member that has said nothing")
		}
		nd.host.Start(testGroup)
		c.within(300*time.Millisecond, "it knows the leader", func() bool { return nd.replica().Status().LeaderNode == l.id })
		c.resting()
	})
}

// Reads at rest: followers and leader answer; a leader that is cut off does not.
func TestRule30ReadsWake(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		c.resting()
		l := c.leader()
		read := func(nd *node, d time.Duration) error {
			done := make(chan error, 1)
			nd.replica().ReadIndex(time.Now().Add(d), func(_ ident.Index, err error) { done <- err })
			return <-done
		}
		for _, nd := range c.nodes {
			c.resting()
			must(t, read(nd, time.Second))
		}
		c.resting()
		for id := range c.nodes {
			c.net.Drop(id, l.id, true)
			c.net.Drop(l.id, id, true)
		}
		start := time.Now()
		if err := read(l, 400*time.Millisecond); err == nil || time.Since(start) > 600*time.Millisecond {
			t.Errorf("a cut-off leader answered a read with %v after %v", err, time.Since(start))
		}
	})
}

// A proposal at rest has its deadline, which ticks look at.
func TestRule30ProposalsWake(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		c.resting()
		l := c.leader()
		c.net.Isolate(l.id)
		start := time.Now()
		got := l.propose("late=1", ProposeOptions{Deadline: start.Add(400 * time.Millisecond)})
		if took := time.Since(start); took > 600*time.Millisecond {
			t.Errorf("a cut-off leader answered with %v after %v", got.err, took)
		}
		isErr(t, got.err, ErrTimeout)
	})
}

// A checkpoint that is pinned for another node keeps the log behind it: the group rests when that has ended, and it is trimmed.
func TestRule30PinsEndFirst(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		l := c.leader()
		done := make(chan error, 1)
		l.replica().TakeCheckpoint(func(_ ident.Index, err error) { done <- err })
		must(t, <-done)
		c.resting()
		p, err := l.srv.Pin(testGroup, l.replica().ID(), snapshot.GenDir(l.replica().base, 1), c.follower().id)
		must(t, err)
		c.put("k5", "v")
		<-time.After(10 * time.Second)
		if l.replica().Status().Resting {
			t.Error("the leader rests while a checkpoint is pinned")
		}
		l.srv.Unpin(p.ID)
		c.resting()
	})
}

// A leader that is asked to hand over wakes, for the time that it gives its successor runs by ticks.
func TestRule30TransferWakes(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		c.resting()
		l, f := c.leader(), c.follower()
		f.setFilter(func(transport.PeerInfo, item) bool { return true })
		l.replica().TransferLeadership(f.replica().ID())
		c.within(50*time.Millisecond, "the leader wakes", func() bool { return !l.replica().Status().Resting })
		f.setFilter(nil)
		c.put("after", "1")
		c.resting()
	})
}

// The membership changes while the group rests; it rests again with the newcomer, and wakes for it.
func TestRule30MembershipChanges(t *testing.T) {
	inCluster(t, 4, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		c.resting()
		l, f := c.leader(), c.follower()
		fresh := Member{Replica: 99, Node: 4, Store: storeOf(4, 0)}
		must(t, c.nodes[4].host.Create([]Spec{specFor(fresh, nil)}))
		c.nodes[4].host.Start(testGroup)
		c.change(func(l *Replica, w Waiter) { l.AddLearner(fresh, 1, ProposeOptions{}, w) })
		c.eventually("the learner has it", func() bool { return c.nodes[4].sm().Len() == 5 })
		c.resting()
		c.change(func(l *Replica, w Waiter) { l.ReplaceVoter(fresh, f.replica().ID(), 2, ProposeOptions{}, w) })
		must(t, f.host.Remove(f.replica().ID()))
		c.put("after", "1")
		c.resting()
		l.kill(0)
		c.within(600*time.Millisecond, "a new leader", func() bool { return c.leads() != nil })
		c.put("end", "1")
	})
}

// The last resort: all rest and nobody is told that the leader is gone. They look up.
func TestRule30LookUp(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		c.resting()
		l := c.leader()
		stop := c.follower().counts()
		time.Sleep(35 * time.Second)
		if n := stop(); n == 0 {
			t.Error("the leader did not look up in 35 s")
		}
		c.resting()
		// As if its end had not raised the epoch.
		done := make(chan struct{})
		l.replica().postLocal(localEvent{fn: func(*outbox) { l.replica().rs.quiet.told = false; close(done) }})
		<-done
		l.replica().failLog(errors.New("gone"))
		c.within(lookUpFollower+5*time.Second, "another one leads", func() bool { n := c.leads(); return n != nil && n != l })
	})
}

// Periodic checkpoints come due at rest.
func TestRule30CheckpointsComeDue(t *testing.T) {
	inCluster(t, 3, func(c *cluster) { c.tune = func(o *Options) { o.Policy.Interval = 5 * time.Second } }, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		c.resting()
		c.within(8*time.Second, "a checkpoint each", func() bool {
			for _, nd := range c.nodes {
				if nd.replica().Status().SnapshotIndex < 6 {
					return false
				}
			}
			return true
		})
		c.resting()
	})
}

// A snapshot that was on its way to a member that was removed is forgotten, and the group rests.
func TestRule30OfferToWhoIsGone(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		r := c.leader().replica()
		r.postLocal(localEvent{fn: func(*outbox) { r.rs.offers[99] = &offering{} }})
		c.within(10*time.Second, "everybody rests", c.allRest)
	})
}

// What judges contact: both must hear, lately, and a process that stood still knows nothing.
func TestContacts(t *testing.T) {
	const silence = 500 * time.Millisecond
	t0 := time.Now()
	at := func(d time.Duration) time.Time { return t0.Add(d) }
	c := newContacts()
	c.connected(2)
	look := func(d time.Duration) []ident.NodeID { _, lost := c.judge(at(d), silence); return lost }
	if c.heard(3, 1, 1) || c.with(3) != 0 {
		t.Error("a stranger counts")
	}
	look(0)
	if c.with(2) != 0 {
		t.Error("in contact without a beat")
	}
	if c.heard(2, 7, 0) {
		t.Error("the first epoch is taken for a change")
	}
	c.peers[2].heard = at(0)
	beats, _ := c.judge(at(100*time.Millisecond), silence)
	if c.with(2) != 0 || len(beats) != 1 || beats[0].echo != 7 {
		t.Errorf("in contact with one that does not hear us, or %+v", beats)
	}
	c.heard(2, 7, c.own())
	c.peers[2].heard = at(100 * time.Millisecond)
	if c.with(2) != 0 {
		t.Error("contact before the look that wakes whoever lost it")
	}
	if lost := look(200 * time.Millisecond); len(lost) != 0 || c.with(2) != 7 {
		t.Errorf("lost %v, contact %d", lost, c.with(2))
	}
	if !c.heard(2, 8, c.own()) {
		t.Error("a change of the epoch is not told")
	}
	c.peers[2].heard = at(200 * time.Millisecond)
	look(300 * time.Millisecond)
	look(500 * time.Millisecond)
	if lost := look(700 * time.Millisecond); len(lost) != 1 || c.with(2) != 0 {
		t.Errorf("silent for 500 ms: lost %v, contact %d", lost, c.with(2))
	}
	if beats, _ := c.judge(at(800*time.Millisecond), silence); beats[0].echo != 0 {
		t.Error("one not heard is told that it is")
	}
	c.heard(2, 8, c.own())
	c.peers[2].heard = at(900 * time.Millisecond)
	look(time.Second)
	if c.with(2) != 8 {
		t.Error("no contact again")
	}
	c.peers[2].heard = at(1500 * time.Millisecond)
	if lost := look(1500 * time.Millisecond); len(lost) != 1 || c.with(2) != 0 {
		t.Errorf("after standing still for 500 ms: lost %v, contact %d", lost, c.with(2))
	}
	c.gone(2)
	if c.with(2) != 0 || c.heard(2, 9, 1) {
		t.Error("one that is gone counts")
	}
}

// A node whose raft worker is stuck sends no beats.
func TestNoBeatsWhileStuck(t *testing.T) {
	inCluster(t, 2, nil, func(c *cluster) {
		c.create(2)
		c.resting()
		l, f := c.leader(), c.follower()
		until := make(chan struct{})
		release := sync.OnceFunc(func() { close(until) })
		defer release()
		l.replica().postLocal(localEvent{fn: func(*outbox) { <-until }})
		c.within(2*time.Second, "the follower wakes", func() bool { return !f.replica().Status().Resting })
		release()
		c.resting()
	})
}

// Groups that mostly rest, in a network that loses, delays, reorders and cuts, one way too, on nodes that lose
// power: once it is sound, each group has one leader that every replica knows, long before anybody would
// look up, without any client's help; what was acknowledged stays.
func TestRule30Chaos(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			inCluster(t, 3, smallSteps, func(c *cluster) {
				x := &chaos{c: c, rng: rand.New(rand.NewPCG(seed, 30)), down: make(map[ident.NodeID]*vfs.MemFS), acked: make(map[string]string)}
				c.create(3)
				for range 6 {
					x.idleRound()
				}
			})
		})
	}
}

// idleRound disturbs a group that rests mostly, heals, and judges.
func (x *chaos) idleRound() {
	c := x.c
	for range 12 {
		a, b := ident.NodeID(x.rng.IntN(3)+1), ident.NodeID(x.rng.IntN(3)+1)
		switch x.rng.IntN(14) {
		case 0:
			if nd := c.nodes[a]; nd != nil && len(x.down) == 0 {
				x.down[a] = nd.kill(0)
			}
		case 1, 2:
			if x.down[a] != nil {
				x.boot(a)
			}
		case 3, 4:
			c.net.Drop(a, b, true)
		case 5:
			c.net.Isolate(a)
		case 6, 7:
			c.net.HealAll()
		case 8:
			c.net.SetLoss(float64(x.rng.IntN(4)) / 10)
		case 9:
			c.net.SetDelay(0, time.Duration(x.rng.IntN(200))*time.Millisecond)
			c.net.SetReorder(x.rng.IntN(2) == 0)
		case 10:
			if nd := c.nodes[a]; nd != nil {
				nd.replica().TransferLeadership(0)
			}
		case 11:
			x.write()
		default:
		}
		time.Sleep(time.Duration(x.rng.IntN(2500)) * time.Millisecond)
	}
	c.net.HealAll()
	c.net.SetLoss(0)
	c.net.SetDelay(0, 0)
	c.net.SetReorder(false)
	for id := range x.down {
		x.boot(id)
	}
	c.within(10*time.Second, "one leader that all know", func() bool {
		l := c.leads()
		if l == nil {
			return false
		}
		for _, nd := range c.nodes {
			if nd.replica().Status().LeaderNode != l.id || nd != l && nd.replica().IsLeader() {
				return false
			}
		}
		return true
	})
	// A snapshot that a receiver gave up, because another leader had what it lacks, is kept for it for two
	// minutes, and a leader with one does not rest.
	c.within(3*time.Minute, "all rest", c.allRest)
	x.seq++
	c.put(fmt.Sprintf("end%d", x.seq), "1")
	x.acked[fmt.Sprintf("end%d", x.seq)] = "1"
	c.eventually("same state everywhere", x.same)
}
