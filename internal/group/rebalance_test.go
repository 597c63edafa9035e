package group

import (
	"context"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/raftgroup"
)

func TestMembersJoinSyncAndLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{})
		defer s.close()
		c := s.elect(0)
		start := time.Now()
		ids, gen := stable(t, c, 3, 9)
		if d := time.Since(start); d < 500*time.Millisecond || d > 2*time.Second {
			t.Fatalf("the first rebalance took %v", d)
		}
		if gen != 1 || groupStateOf(c) != Stable {
			t.Fatalf("generation %d, %s", gen, groupStateOf(c))
		}
		d := c.Describe("g")
		if d.Protocol != "range" || len(d.Members) != 3 || string(d.Members[0].ProtocolMetadata) != "meta of range" || d.Members[0].ClientHost != "/1.2.3.4" {
			t.Fatalf("%+v", d)
		}
		for _, id := range ids {
			if code := heartbeat(c, id, gen); code != 0 {
				t.Fatalf("heartbeat: %d", code)
			}
		}
		if code := leave(c, ids[2], nil); code != 0 {
			t.Fatalf("leave: %d", code)
		}
		if code := heartbeat(c, ids[1], gen); code != errRebalance {
			t.Fatalf("heartbeat in a rebalance: %d", code)
		}
		a, b := join(t, c, joinReq(9, ids[0], nil)), join(t, c, joinReq(9, ids[1], nil))
		start = time.Now()
		ra, rb := a.get(), b.get()
		if ra.Generation != 2 || rb.Generation != 2 || ra.LeaderID != ids[0] || len(ra.Members) != 2 || len(rb.Members) != 0 {
			t.Fatalf("%+v %+v", ra, rb)
		}
		if time.Since(start) != 0 {
			t.Fatal("a rebalance waits although everyone has joined")
		}
		if *ra.ProtocolType != "consumer" || *ra.Protocol != "range" {
			t.Fatalf("%v %v", *ra.ProtocolType, *ra.Protocol)
		}
		for _, id := range ids[:2] {
			if code := leave(c, id, nil); code != 0 {
				t.Fatal(code)
			}
		}
		synctest.Wait()
		if groupStateOf(c) != Empty || leave(c, ids[0], nil) != errUnknownMember {
			t.Fatal(groupStateOf(c))
		}
		if _, gen := stable(t, c, 1, 9); gen != 4 {
			t.Fatalf("generation %d after the group was empty", gen)
		}
	})
}

func TestOldClientsNeedNoMemberID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{InitialDelay: -1})
		defer s.close()
		c := s.elect(0)
		for _, v := range []int16{0, 3} {
			r := joinReq(v, "", nil)
			if v == 0 {
				r.RebalanceTimeoutMillis = -1
			}
			resp := join(t, c, r).get()
			if resp.ErrorCode != 0 || resp.MemberID == "" || resp.LeaderID != resp.MemberID {
				t.Fatalf("v%d: %+v", v, resp)
			}
			lr := kmsg.NewPtrLeaveGroupRequest()
			lr.Group, lr.MemberID = "g", resp.MemberID
			var code int16 = -1
			c.Leave(context.Background(), lr, func(r *kmsg.LeaveGroupResponse) { code = r.ErrorCode })
			if code != 0 {
				t.Fatalf("v%d leave: %d", v, code)
			}
		}
	})
}

func TestInitialDelayGathersMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{InitialDelay: time.Second})
		defer s.close()
		c := s.elect(0)
		start := time.Now()
		a := join(t, c, joinReq(3, "", nil))
		time.Sleep(900 * time.Millisecond) // virtual time
		b := join(t, c, joinReq(3, "", nil))
		if a.get().Generation != 1 || b.get().Generation != 1 {
			t.Fatal("two generations")
		}
		if d := time.Since(start); d != 2*time.Second {
			t.Fatalf("prolonged to %v", d)
		}
	})
}

func TestLostSessionAndLateMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{})
		defer s.close()
		c := s.elect(0)
		ids, gen := stable(t, c, 3, 9)
		// Two keep their sessions, the third is silent for ten seconds.
		for range 3 {
			time.Sleep(4 * time.Second)
			for _, id := range ids[:2] {
				if code := heartbeat(c, id, gen); code != 0 && code != errRebalance {
					t.Fatalf("heartbeat: %d", code)
				}
			}
		}
		if heartbeat(c, ids[2], gen) != errUnknownMember || heartbeat(c, ids[0], gen) != errRebalance {
			t.Fatal("the silent member is still there")
		}
		// One of the two rejoins, the other only sends heartbeats: out after the rebalance timeout.
		a := join(t, c, joinReq(9, ids[1], nil))
		for range 20 {
			time.Sleep(3 * time.Second)
			heartbeat(c, ids[0], gen)
		}
		r := a.get()
		if r.ErrorCode != 0 || r.LeaderID != ids[1] || len(r.Members) != 1 {
			t.Fatalf("%+v", r)
		}
		if code := heartbeat(c, ids[0], r.Generation); code != errUnknownMember {
			t.Fatalf("the late member: %d", code)
		}
	})
}

func TestMembersThatDoNotSyncAreRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{InitialDelay: -1})
		defer s.close()
		c := s.elect(0)
		lead := join(t, c, joinReq(3, "", nil)).get().MemberID
		b := join(t, c, joinReq(3, "", nil))
		ra := join(t, c, joinReq(3, lead, nil)).get()
		other := b.get().MemberID
		gen := ra.Generation
		waits := syncGroup(t, c, other, gen, nil)
		for range 21 { // the leader lives, but never assigns
			time.Sleep(3 * time.Second)
			heartbeat(c, lead, gen)
		}
		if r := waits.get(); r.ErrorCode != errRebalance {
			t.Fatalf("who waits for the assignment: %d", r.ErrorCode)
		}
		if code := heartbeat(c, lead, gen); code != errUnknownMember {
			t.Fatalf("the leader: %d", code)
		}
		if r := join(t, c, joinReq(3, other, nil)).get(); r.LeaderID != other {
			t.Fatalf("%+v", r)
		}
	})
}

func TestNobodyIsToldBeforeItIsApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{InitialDelay: -1})
		defer s.close()
		c := s.elect(0)
		s.set(func() { s.hold = true })
		r := join(t, c, joinReq(3, "", nil)).get()
		sy := syncGroup(t, c, r.MemberID, r.Generation, map[string]string{r.MemberID: "x"})
		co := commit(t, c, r.MemberID, r.Generation, tp{"a", 0, 5})
		if v, ok := sy.now(); ok {
			t.Fatalf("assignment told before it was applied: %+v", v)
		}
		if got := commitCode(co); got != errRebalance {
			t.Fatalf("commit before the assignment stands: %d", got)
		}
		s.release()
		if sy.get().ErrorCode != 0 {
			t.Fatal("sync")
		}
		s.set(func() { s.hold = true })
		co = commit(t, c, r.MemberID, r.Generation, tp{"a", 0, 7})
		if _, ok := co.now(); ok || fetchAll(c, "g") != "" {
			t.Fatal("committed before it was applied")
		}
		s.release()
		if commitCode(co) != 0 || fetchAll(c, "g") != "a-0=7 " {
			t.Fatal(fetchAll(c, "g"))
		}
	})
}

func TestAssignmentThatCannotBeStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{InitialDelay: -1})
		defer s.close()
		c := s.elect(0)
		r := join(t, c, joinReq(3, "", nil)).get()
		s.set(func() { s.fail = raftgroup.ErrTimeout })
		sy := syncGroup(t, c, r.MemberID, r.Generation, map[string]string{r.MemberID: "x"}).get()
		if sy.ErrorCode != errNotAvailable {
			t.Fatalf("sync: %d", sy.ErrorCode)
		}
		if code := heartbeat(c, r.MemberID, r.Generation); code != errRebalance {
			t.Fatalf("heartbeat: %d", code)
		}
		s.set(func() { s.fail = nil })
		r = join(t, c, joinReq(3, r.MemberID, nil)).get()
		if sy := syncGroup(t, c, r.MemberID, r.Generation, map[string]string{r.MemberID: "y"}).get(); string(sy.MemberAssignment) != "y" {
			t.Fatalf("%+v", sy)
		}
	})
}

// emptyNotStored is a group with an offset whose last member has left, which could not be replicated.
func emptyNotStored(t *testing.T, s *shard) (c *Coordinator, generation int32) {
	t.Helper()
	c = s.elect(0)
	ids, generation := stable(t, c, 1, 3)
	commit(t, c, ids[0], generation, tp{"orders", 0, 7}).get()
	s.set(func() { s.fail = raftgroup.ErrBusy })
	if code := leave(c, ids[0], nil); code != 0 {
		t.Fatal(code)
	}
	time.Sleep(time.Minute) // and more than one try
	s.set(func() { s.fail = nil })
	if meta := s.nodes[0].sm.view().meta("g"); groupStateOf(c) != Empty || len(meta.Members) != 1 {
		t.Fatal(groupStateOf(c), meta)
	}
	return c, generation + 1
}

func storedMembers(s *shard) int { return len(s.nodes[0].sm.view().meta("g").Members) }

func TestEmptyGroupIsStoredAtLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{InitialDelay: -1})
		defer s.close()
		c, generation := emptyNotStored(t, s)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if meta := s.nodes[0].sm.view().meta("g"); len(meta.Members) != 0 || meta.Generation != generation || meta.EmptySinceMs == 0 {
			t.Fatalf("%+v", meta)
		}
		entries := len(s.log)
		time.Sleep(time.Hour)
		if len(s.log) != entries {
			t.Fatalf("%d entries more for a group that is stored", len(s.log)-entries)
		}
		time.Sleep(8 * 24 * time.Hour)
		synctest.Wait()
		if got := fetchAll(c, "g"); got != "" {
			t.Fatalf("not expired: %q", got)
		}
	})
}

// Who joined meanwhile, or leads the shard now, knows better than what was to be stored.
func TestEmptyGroupIsNotStoredOverALaterState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{InitialDelay: -1})
		defer s.close()
		c, generation := emptyNotStored(t, s)
		entries := len(s.log)
		if j := join(t, c, joinReq(3, "", nil)).get(); j.ErrorCode != 0 || j.Generation != generation+1 {
			t.Fatalf("%+v", j)
		}
		time.Sleep(9 * time.Second) // less than its session
		if len(s.log) != entries {
			t.Fatal("stored as empty with a member")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{InitialDelay: -1})
		defer s.close()
		emptyNotStored(t, s)
		entries := len(s.log)
		s.elect(-1)
		s.elect(0)
		time.Sleep(9 * time.Second)
		if len(s.log) != entries || storedMembers(s) != 1 {
			t.Fatal("stored by who does not lead any more")
		}
	})
}

// A deletion that finds members says so, and the live group keeps its generation.
func TestDeletionThatFindsMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{InitialDelay: -1})
		defer s.close()
		c, generation := emptyNotStored(t, s)
		del := func() int16 {
			a := newAnswer[int16](t)
			c.Delete(t.Context(), "g", a.reply)
			return a.get()
		}
		if code := del(); code != errNonEmpty || fetchAll(c, "g") != "orders-0=7 " || c.groups["g"] == nil {
			t.Fatalf("code %d, offsets %q", code, fetchAll(c, "g"))
		}
		time.Sleep(10 * time.Second) // stored by now
		if code := del(); code != 0 || fetchAll(c, "g") != "" || c.groups["g"] != nil {
			t.Fatalf("code %d, offsets %q", code, fetchAll(c, "g"))
		}
		if generation != 2 {
			t.Fatal(generation)
		}
	})
}

// New and RoleChanged may come to the coordinator's lock in any order: what counts is the role there is then.
func TestRoleToldLateChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{})
		defer s.close()
		n := s.nodes[0]
		late := n.c.roleChanged // of a time when it did not lead
		s.elect(0)
		late()
		synctest.Wait()
		if !n.c.Ready() {
			t.Fatal("leads and does not serve")
		}
		s.lead = -1
		n.sm.mu.Lock()
		n.sm.role = role{false, 2} // not told yet
		n.sm.mu.Unlock()
		late() // of a time when it did
		synctest.Wait()
		if n.c.Ready() {
			t.Fatal("serves and does not lead")
		}
	})
}

// A rebalance timeout of 0 ends the wait for static members that are away at once, time and again.
func TestAbsentStaticMembersSpinNothing(t *testing.T) {
	s := newShard(t, 1, Options{InitialDelay: -1})
	n := s.nodes[0]
	defer n.c.Close()
	meta := &Group{ID: "g", Version: 1, Generation: 4, ProtocolType: "consumer", Protocol: "range", Leader: "a"}
	for _, id := range []string{"a", "b"} {
		meta.Members = append(meta.Members, Member{ID: id, InstanceID: str("i" + id), SessionMs: 600_000})
	}
	n.sm.st.put(meta)
	s.lead, s.term = 0, 1
	n.sm.RoleChanged(1, 1, true)
	for !n.c.Ready() {
		time.Sleep(time.Millisecond)
	}
	if code := leave(n.c, "a", nil); code != errFenced && code != 0 {
		t.Fatal(code)
	}
	time.Sleep(300 * time.Millisecond) // of real time: synctest's would stand still
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if g := n.c.groups["g"]; g.state != PreparingRebalance || g.joinSeq > 2 {
		t.Errorf("%s: %d deadlines in 300 ms", g.state, g.joinSeq)
	}
}

// A member that asks for more waits no longer than a day.
func TestRebalanceTimeoutIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{InitialDelay: -1})
		defer s.close()
		c := s.elect(0)
		req := joinReq(3, "", nil)
		req.RebalanceTimeoutMillis = math.MaxInt32 // what Kafka Streams asks for until 2.2
		first := join(t, c, req).get()
		began := time.Now()
		second := join(t, c, joinReq(3, "", nil))
		for heartbeat(c, first.MemberID, first.Generation) == errRebalance { // and does not join again
			time.Sleep(5 * time.Second)
		}
		if r, ok := second.now(); !ok || r.ErrorCode != 0 || time.Since(began) > maxRebalance+time.Minute {
			t.Errorf("after %v: answered %v", time.Since(began), ok)
		}
	})
}

func TestGroupOutlivesItsCoordinator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 3, Options{})
		defer s.close()
		c := s.elect(0)
		ids, gen := stable(t, c, 2, 9)
		if commitCode(commit(t, c, ids[0], gen, tp{"a", 1, 42})) != 0 {
			t.Fatal("commit")
		}
		time.Sleep(9 * time.Second) // almost a session
		next := s.elect(1)
		if code := heartbeat(c, ids[0], gen); code != errNotCoordinator {
			t.Fatalf("the deposed one: %d", code)
		}
		if fetchAll(c, "g") != "error 16" {
			t.Fatal("the deposed one answers")
		}
		time.Sleep(9 * time.Second) // a full session again
		for _, id := range ids {
			if code := heartbeat(next, id, gen); code != 0 {
				t.Fatalf("heartbeat at the next coordinator: %d", code)
			}
		}
		if r := syncGroup(t, next, ids[1], gen, nil).get(); string(r.MemberAssignment) != "for "+ids[1] {
			t.Fatalf("assignment: %+v", r)
		}
		if r := join(t, next, joinReq(9, ids[1], nil)).get(); r.Generation != gen {
			t.Fatal("a follower that joins again with the same protocols makes no rebalance")
		}
		if commitCode(commit(t, next, ids[0], gen, tp{"a", 1, 43})) != 0 || fetchAll(next, "g") != "a-1=43 " {
			t.Fatal(fetchAll(next, "g"))
		}
		time.Sleep(11 * time.Second)
		if code := heartbeat(next, ids[0], gen); code != errUnknownMember {
			t.Fatalf("sessions end at the next coordinator, too: %d", code)
		}
		// An empty group does not forget its generation.
		last := s.elect(2)
		if _, g := stable(t, last, 1, 9); g <= gen+1 {
			t.Fatalf("generation %d after %d", g, gen)
		}
	})
}

func TestWhoeverWaitsHearsOfTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 2, Options{})
		defer s.close()
		c := s.elect(0)
		ids, gen := stable(t, c, 2, 9)
		j := join(t, c, joinReq(9, ids[0], nil))
		s.elect(1)
		if r := j.get(); r.ErrorCode != errNotCoordinator {
			t.Fatalf("join: %d", r.ErrorCode)
		}
		n := s.nodes[1].c
		j1, j2 := join(t, n, joinReq(9, ids[0], nil)), join(t, n, joinReq(9, ids[1], nil))
		g := j1.get().Generation
		j2.get()
		if g != gen+1 {
			t.Fatalf("generation %d after %d", g, gen)
		}
		sy := syncGroup(t, n, ids[1], g, nil)
		n.Close()
		if r := sy.get(); r.ErrorCode != errNotCoordinator {
			t.Fatalf("sync: %d", r.ErrorCode)
		}
		if heartbeat(n, ids[0], g) != errNotCoordinator {
			t.Fatal("closed")
		}
	})
}

func TestLoadingWaitsForReadIndex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{})
		defer s.close()
		s.nodes[0].readErr = errBoom
		c := s.elect(0)
		if r := join(t, c, joinReq(9, "", nil)).get(); r.ErrorCode != errLoadInProgress {
			t.Fatalf("%d", r.ErrorCode)
		}
		if fetchAll(c, "g") != "error 14" || c.Ready() {
			t.Fatal(fetchAll(c, "g"))
		}
		s.set(func() { s.nodes[0].readErr = nil })
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !c.Ready() || fetchAll(c, "g") != "" {
			t.Fatal("still loading")
		}
	})
}

func TestStaticMemberComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{})
		defer s.close()
		c := s.elect(0)
		a, b := join(t, c, joinReq(9, "", str("i1"))), join(t, c, joinReq(9, "", str("i2")))
		ra, rb := a.get(), b.get()
		gen := ra.Generation
		if ra.LeaderID != ra.MemberID {
			ra, rb = rb, ra
		}
		assign := map[string]string{ra.MemberID: "A", rb.MemberID: "B"}
		sb := syncGroup(t, c, rb.MemberID, gen, nil)
		sa := syncGroup(t, c, ra.MemberID, gen, assign)
		sa.get()
		sb.get()
		instance := func(id string) *string {
			for _, m := range c.Describe("g").Members {
				if m.MemberID == id {
					return m.InstanceID
				}
			}
			return nil
		}
		follower := instance(rb.MemberID)
		// The follower restarts: same instance, no member id. Nobody else notices.
		back := join(t, c, joinReq(9, "", follower)).get()
		if back.ErrorCode != 0 || back.Generation != gen || back.MemberID == rb.MemberID || len(back.Members) != 0 {
			t.Fatalf("%+v", back)
		}
		if r := syncGroup(t, c, back.MemberID, gen, nil).get(); string(r.MemberAssignment) != "B" {
			t.Fatalf("%+v", r)
		}
		hb := kmsg.NewPtrHeartbeatRequest()
		hb.Version, hb.Group, hb.MemberID, hb.InstanceID, hb.Generation = 4, "g", rb.MemberID, follower, gen
		c.Heartbeat(context.Background(), hb, func(r *kmsg.HeartbeatResponse) {
			if r.ErrorCode != errFenced {
				t.Errorf("its former self: %d", r.ErrorCode)
			}
		})
		// The leader restarts: it is told to keep the assignment (v9), or not that it leads (before).
		leader := instance(ra.MemberID)
		back9 := join(t, c, joinReq(9, "", leader)).get()
		if back9.Generation != gen || !back9.SkipAssignment || back9.LeaderID != back9.MemberID || len(back9.Members) != 2 {
			t.Fatalf("%+v", back9)
		}
		back8 := join(t, c, joinReq(8, "", leader)).get()
		if back8.Generation != gen || back8.LeaderID == back8.MemberID || len(back8.Members) != 0 {
			t.Fatalf("%+v", back8)
		}
		// With another subscription there is a rebalance.
		changed := joinReq(9, "", leader)
		changed.Protocols[0].Metadata = []byte("other topics")
		j := join(t, c, changed)
		if _, ok := j.now(); ok || groupStateOf(c) != PreparingRebalance {
			t.Fatal("no rebalance")
		}
		other := join(t, c, joinReq(9, back.MemberID, follower)).get()
		if j.get().Generation != gen+1 || other.Generation != gen+1 {
			t.Fatalf("%+v", other)
		}
		if code := leave(c, "", follower); code != 0 {
			t.Fatalf("leave by instance: %d", code)
		}
	})
}

func TestStaticMemberThatWaitsIsFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{InitialDelay: time.Minute})
		defer s.close()
		c := s.elect(0)
		first := join(t, c, joinReq(9, "", str("i")))
		time.Sleep(20 * time.Second) // longer than a session: who waits keeps it
		second := join(t, c, joinReq(9, "", str("i")))
		if r := first.get(); r.ErrorCode != errFenced {
			t.Fatalf("its former self: %d", r.ErrorCode)
		}
		if r := second.get(); r.ErrorCode != 0 || len(r.Members) != 1 {
			t.Fatalf("%+v", r)
		}
	})
}

func TestStaticMemberChangeIsReplicatedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 2, Options{InitialDelay: -1})
		defer s.close()
		c := s.elect(0)
		r := join(t, c, joinReq(9, "", str("i"))).get()
		syncGroup(t, c, r.MemberID, r.Generation, map[string]string{r.MemberID: "x"}).get()
		s.set(func() { s.hold = true })
		back := join(t, c, joinReq(9, "", str("i")))
		if _, ok := back.now(); ok {
			t.Fatal("told before it was replicated")
		}
		s.release()
		id := back.get().MemberID
		n := s.elect(1)
		if code := heartbeat(n, id, r.Generation); code != 0 {
			t.Fatalf("at the next coordinator: %d", code)
		}
	})
}

func TestProtocolChoice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{InitialDelay: time.Second})
		defer s.close()
		c := s.elect(0)
		a := join(t, c, joinReq(3, "", nil, "sticky", "range"))
		b := join(t, c, joinReq(3, "", nil, "range", "sticky"))
		d := join(t, c, joinReq(3, "", nil, "range", "roundrobin", "sticky"))
		if r := join(t, c, joinReq(3, "", nil, "other")).get(); r.ErrorCode != errInconsistentProtocol {
			t.Fatalf("no common protocol: %d", r.ErrorCode)
		}
		bad := joinReq(3, "", nil, "range")
		bad.ProtocolType = "connect"
		if r := join(t, c, bad).get(); r.ErrorCode != errInconsistentProtocol {
			t.Fatalf("another protocol type: %d", r.ErrorCode)
		}
		for _, j := range []answer[*kmsg.JoinGroupResponse]{a, b, d} {
			if r := j.get(); *r.Protocol != "range" {
				t.Fatalf("chose %s", *r.Protocol)
			}
		}
	})
}

func TestRefusedJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{MaxMembers: 1})
		defer s.close()
		if r := join(t, s.nodes[0].c, joinReq(9, "", nil)).get(); r.ErrorCode != errNotCoordinator {
			t.Fatalf("not the leader: %d", r.ErrorCode)
		}
		c := s.elect(0)
		change := func(f func(*kmsg.JoinGroupRequest)) int16 {
			r := joinReq(9, "", nil)
			f(r)
			return join(t, c, r).get().ErrorCode
		}
		for name, tc := range map[string]struct {
			f    func(*kmsg.JoinGroupRequest)
			want int16
		}{
			"no group":       {func(r *kmsg.JoinGroupRequest) { r.Group = "" }, errInvalidGroup},
			"short session":  {func(r *kmsg.JoinGroupRequest) { r.SessionTimeoutMillis = 5999 }, errInvalidSession},
			"long session":   {func(r *kmsg.JoinGroupRequest) { r.SessionTimeoutMillis = 1_800_001 }, errInvalidSession},
			"unknown member": {func(r *kmsg.JoinGroupRequest) { r.MemberID = "x" }, errUnknownMember},
			"no protocols":   {func(r *kmsg.JoinGroupRequest) { r.Protocols = nil }, errInconsistentProtocol},
			"no type":        {func(r *kmsg.JoinGroupRequest) { r.ProtocolType = "" }, errInconsistentProtocol},
		} {
			if got := change(tc.f); got != tc.want {
				t.Errorf("%s: %d, want %d", name, got, tc.want)
			}
		}
		if len(c.groups) != 0 {
			t.Fatalf("refused joins left %d groups", len(c.groups))
		}
		stable(t, c, 1, 9)
		if got := change(func(*kmsg.JoinGroupRequest) {}); got != errMaxSize {
			t.Fatalf("full: %d", got)
		}
	})
}

func TestMemberIDNotUsedDelaysNobodyForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{InitialDelay: -1})
		defer s.close()
		c := s.elect(0)
		ids, gen := stable(t, c, 1, 9)
		join(t, c, joinReq(9, "", nil)).get() // takes an id and never comes
		again := joinReq(9, ids[0], nil)
		again.Protocols[0].Metadata = []byte("changed")
		j := join(t, c, again)
		if _, ok := j.now(); ok {
			t.Fatal("did not wait for the announced member")
		}
		if r := j.get(); r.Generation != gen+1 || len(r.Members) != 1 {
			t.Fatalf("%+v", r)
		}
	})
}

func TestAnnouncedMembersOfNoGroupAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{})
		defer s.close()
		c := s.elect(0)
		join(t, c, joinReq(9, "", nil)).get()
		if gs, _ := c.List(nil, nil); len(gs) != 0 {
			t.Fatalf("%+v", gs)
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.groups) != 0 {
			t.Fatal("the group is still in memory")
		}
	})
}

func TestGenerationAndProtocolAreChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{})
		defer s.close()
		c := s.elect(0)
		ids, gen := stable(t, c, 1, 9)
		if heartbeat(c, ids[0], gen+1) != errIllegalGeneration || heartbeat(c, "x", gen) != errUnknownMember {
			t.Fatal("heartbeat")
		}
		if syncGroup(t, c, ids[0], gen-1, nil).get().ErrorCode != errIllegalGeneration {
			t.Fatal("sync")
		}
		r := kmsg.NewPtrSyncGroupRequest()
		r.Version, r.Group, r.MemberID, r.Generation, r.Protocol = 5, "g", ids[0], gen, str("sticky")
		a := newAnswer[*kmsg.SyncGroupResponse](t)
		c.Sync(context.Background(), r, a.reply)
		if a.get().ErrorCode != errInconsistentProtocol {
			t.Fatal("protocol")
		}
	})
}

func TestMemberIDs(t *testing.T) {
	a, b := newMemberID("c"), newMemberID("c")
	if a == b || len(a) != len("c-")+36 || a[:2] != "c-" {
		t.Fatal(a, b)
	}
	long := newMemberID(string(slices.Repeat([]byte("x"), 40_000)))
	if len(long) > maxString {
		t.Fatal(len(long))
	}
}
