package group

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/raftgroup"
)

func TestCommitAndFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{})
		defer s.close()
		if r := commit(t, s.nodes[0].c, "", -1, tp{"a", 0, 1}); commitCode(r) != errNotCoordinator {
			t.Fatal("not the leader")
		}
		c := s.elect(0)
		if commitCode(commit(t, c, "", -1, tp{"a", 0, 10}, tp{"a", 1, 11}, tp{"b", 0, 12})) != 0 {
			t.Fatal("without members")
		}
		if got := fetchAll(c, "g"); got != "a-0=10 a-1=11 b-0=12 " {
			t.Fatal(got)
		}
		if groupStateOf(c) != Empty {
			t.Fatal(groupStateOf(c))
		}
		want := kmsg.NewOffsetFetchRequestGroupTopic()
		want.Topic, want.Partitions = "a", []int32{1, 7}
		resp := c.Fetch(context.Background(), "g", []kmsg.OffsetFetchRequestGroupTopic{want})
		ps := resp.Topics[0].Partitions
		if ps[0].Offset != 11 || ps[0].LeaderEpoch != 3 || *ps[0].Metadata != "note" || ps[1].Offset != -1 || ps[1].LeaderEpoch != -1 || *ps[1].Metadata != "" {
			t.Fatalf("%+v", ps)
		}
		if got := fetchAll(c, "other"); got != "" {
			t.Fatal(got)
		}
		if resp := c.Fetch(context.Background(), "g", []kmsg.OffsetFetchRequestGroupTopic{}); len(resp.Topics) != 0 {
			t.Fatal("no topics asked for is not all of them")
		}
	})
}

func TestWhoMayCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{})
		defer s.close()
		c := s.elect(0)
		o := tp{"a", 0, 1}
		if got := commitCode(commit(t, c, "m", 3, o)); got != errIllegalGeneration {
			t.Fatalf("unknown group: %d", got)
		}
		ids, gen := stable(t, c, 2, 9)
		for name, tc := range map[string]struct {
			id   string
			gen  int32
			want int16
		}{
			"a member":           {ids[0], gen, 0},
			"an old generation":  {ids[0], gen - 1, errIllegalGeneration},
			"a stranger":         {"x", gen, errUnknownMember},
			"nobody in a group":  {"", -1, errUnknownMember},
			"a member, no count": {ids[0], -1, errIllegalGeneration},
		} {
			if got := commitCode(commit(t, c, tc.id, tc.gen, o)); got != tc.want {
				t.Errorf("%s: %d, want %d", name, got, tc.want)
			}
		}
		// While members join, those of the old generation may still commit; once they
		// have joined, no more.
		j := join(t, c, joinReq(9, ids[0], nil))
		if got := commitCode(commit(t, c, ids[1], gen, o)); got != 0 {
			t.Fatalf("before it rejoins: %d", got)
		}
		join(t, c, joinReq(9, ids[1], nil)).get()
		j.get()
		if got := commitCode(commit(t, c, ids[1], gen+1, o)); got != errRebalance {
			t.Fatalf("before the assignment: %d", got)
		}
	})
}

func TestCommitErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{MaxMetadata: 10})
		defer s.close()
		c := s.elect(0)
		r := kmsg.NewPtrOffsetCommitRequest()
		r.Version, r.Group, r.Generation = 8, "g", -1
		rt := kmsg.NewOffsetCommitRequestTopic()
		rt.Topic = "a"
		for i, meta := range []string{"short", "much too long"} {
			rp := kmsg.NewOffsetCommitRequestTopicPartition()
			rp.Partition, rp.Offset, rp.Metadata = int32(i), 5, &meta
			rt.Partitions = append(rt.Partitions, rp)
		}
		r.Topics = append(r.Topics, rt)
		a := newAnswer[*kmsg.OffsetCommitResponse](t)
		c.Commit(context.Background(), r, a.reply)
		ps := a.get().Topics[0].Partitions
		if ps[0].ErrorCode != 0 || ps[1].ErrorCode != errMetadataTooLarge || fetchAll(c, "g") != "a-0=5 " {
			t.Fatalf("%+v %s", ps, fetchAll(c, "g"))
		}
		r.Topics = nil
		a = newAnswer[*kmsg.OffsetCommitResponse](t)
		c.Commit(context.Background(), r, a.reply)
		if resp := a.get(); len(resp.Topics) != 0 || len(s.log) != 1 {
			t.Fatal("an empty commit was proposed")
		}
		for err, want := range map[error]int16{
			raftgroup.ErrNotLeader: errNotCoordinator, raftgroup.ErrLeadershipLost: errNotCoordinator,
			raftgroup.ErrStopped: errNotCoordinator, raftgroup.ErrQuarantined: errNotCoordinator,
			raftgroup.ErrBusy: errNotAvailable, raftgroup.ErrTimeout: errNotAvailable, errBoom: errUnknown,
		} {
			s.set(func() { s.fail = err })
			if got := commitCode(commit(t, c, "", -1, tp{"a", 0, 6})); got != want {
				t.Errorf("%v: %d, want %d", err, got, want)
			}
		}
	})
}

func TestListDescribeDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 2, Options{})
		defer s.close()
		if _, code := s.nodes[0].c.List(nil, nil); code != errNotCoordinator {
			t.Fatal(code)
		}
		c := s.elect(0)
		ids, _ := stable(t, c, 1, 9)
		r := kmsg.NewPtrOffsetCommitRequest()
		r.Version, r.Group, r.Generation = 8, "simple", -1
		rt := kmsg.NewOffsetCommitRequestTopic()
		rt.Topic = "t"
		rt.Partitions = append(rt.Partitions, kmsg.NewOffsetCommitRequestTopicPartition())
		r.Topics = append(r.Topics, rt)
		a := newAnswer[*kmsg.OffsetCommitResponse](t)
		c.Commit(context.Background(), r, a.reply)
		a.get()
		list := func(states, types []string) string {
			gs, code := c.List(states, types)
			out := fmt.Sprint(code, " ")
			for _, g := range gs {
				out += g.Group + ":" + g.GroupState + ":" + g.ProtocolType + " "
			}
			return out
		}
		for _, tc := range []struct {
			states, types []string
			want          string
		}{
			{nil, nil, "0 g:Stable:consumer simple:Empty: "},
			{[]string{"stable"}, nil, "0 g:Stable:consumer "},
			{[]string{"Empty", "Dead"}, []string{"Classic"}, "0 simple:Empty: "},
			{nil, []string{"share"}, "0 "},
		} {
			if got := list(tc.states, tc.types); got != tc.want {
				t.Errorf("%v %v: %s", tc.states, tc.types, got)
			}
		}
		del := func(group string) int16 {
			a := newAnswer[int16](t)
			c.Delete(context.Background(), group, a.reply)
			return a.get()
		}
		if del("g") != errNonEmpty || del("nobody") != errGroupNotFound || del("simple") != 0 {
			t.Fatal("delete")
		}
		if fetchAll(c, "simple") != "" || State(c.Describe("simple").State) != Dead {
			t.Fatal("the deleted group is still there")
		}
		leave(c, ids[0], nil)
		synctest.Wait()
		if del("g") != 0 || list(nil, nil) != "0 " {
			t.Fatal(list(nil, nil))
		}
		if string(stateBytes(t, s.nodes[0].sm.view())) != string(stateBytes(t, s.nodes[1].sm.view())) {
			t.Fatal("replicas differ")
		}
		if _, gen := stable(t, c, 1, 9); gen != 1 {
			t.Fatalf("generation %d of a group made anew", gen)
		}
		if st := c.Stats(); st.Groups != 1 || st.Members != 1 || st.Offsets != 0 {
			t.Fatalf("%+v", st)
		}
	})
}

func TestDeleteOffsets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{})
		defer s.close()
		c := s.elect(0)
		del := func(group string, topics ...string) *kmsg.OffsetDeleteResponse {
			r := kmsg.NewPtrOffsetDeleteRequest()
			r.Group = group
			for _, name := range topics {
				rt := kmsg.NewOffsetDeleteRequestTopic()
				rt.Topic = name
				rt.Partitions = append(rt.Partitions, kmsg.NewOffsetDeleteRequestTopicPartition())
				r.Topics = append(r.Topics, rt)
			}
			a := newAnswer[*kmsg.OffsetDeleteResponse](t)
			c.DeleteOffsets(context.Background(), r, a.reply)
			return a.get()
		}
		if del("g", "a").ErrorCode != errGroupNotFound {
			t.Fatal("unknown group")
		}
		commit(t, c, "", -1, tp{"a", 0, 1}, tp{"b", 0, 2}, tp{"c", 0, 3}).get()
		if r := del("g", "c"); r.ErrorCode != 0 || r.Topics[0].Partitions[0].ErrorCode != 0 || fetchAll(c, "g") != "a-0=1 b-0=2 " {
			t.Fatal(fetchAll(c, "g"))
		}
		// A consumer subscribes to a.
		meta := kmsg.NewConsumerMemberMetadata()
		meta.Topics = []string{"a"}
		req := joinReq(3, "", nil)
		req.Protocols[0].Metadata = meta.AppendTo(nil)
		r := join(t, c, req).get()
		syncGroup(t, c, r.MemberID, r.Generation, nil).get()
		d := del("g", "a", "b")
		if d.Topics[0].Partitions[0].ErrorCode != errSubscribed || d.Topics[1].Partitions[0].ErrorCode != 0 || fetchAll(c, "g") != "a-0=1 " {
			t.Fatalf("%+v %s", d, fetchAll(c, "g"))
		}
	})
}

func TestDeleteOffsetsOfUnreadableSubscription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{})
		defer s.close()
		c := s.elect(0)
		stable(t, c, 1, 9) // its metadata is no consumer's
		r := kmsg.NewPtrOffsetDeleteRequest()
		r.Group = "g"
		a := newAnswer[*kmsg.OffsetDeleteResponse](t)
		c.DeleteOffsets(context.Background(), r, a.reply)
		if got := a.get().ErrorCode; got != errNonEmpty {
			t.Fatal(got)
		}
	})
}

func TestOffsetsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 2, Options{OffsetsRetention: time.Hour, RetentionInterval: 10 * time.Minute})
		defer s.close()
		c := s.elect(0)
		ids, gen := stable(t, c, 1, 9)
		commit(t, c, ids[0], gen, tp{"a", 0, 1}).get()
		stay := func(d time.Duration) {
			for range int(d / (5 * time.Second)) {
				time.Sleep(5 * time.Second)
				if code := heartbeat(c, ids[0], gen); code != 0 {
					t.Fatalf("heartbeat: %d", code)
				}
			}
			synctest.Wait()
		}
		stay(2 * time.Hour)
		if fetchAll(c, "g") != "a-0=1 " {
			t.Fatal("the offsets of a group with members expired")
		}
		leave(c, ids[0], nil)
		time.Sleep(55 * time.Minute)
		synctest.Wait()
		if fetchAll(c, "g") != "a-0=1 " {
			t.Fatal("the hour begins when the group becomes empty")
		}
		commit(t, c, "", -1, tp{"b", 0, 2}).get()
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if fetchAll(c, "g") != "b-0=2 " {
			t.Fatal(fetchAll(c, "g"))
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if fetchAll(c, "g") != "" || groupStateOf(c) != Dead {
			t.Fatalf("%s %s", fetchAll(c, "g"), groupStateOf(c))
		}
		for _, n := range s.nodes {
			if n.sm.view().groups.Len() != 0 {
				t.Fatal("a bare group is left")
			}
		}
	})
}

func TestOffsetsWithTheirOwnExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{RetentionInterval: time.Minute})
		defer s.close()
		c := s.elect(0)
		r := kmsg.NewPtrOffsetCommitRequest()
		r.Version, r.Group, r.Generation, r.RetentionTimeMillis = 3, "g", -1, 90_000
		rt := kmsg.NewOffsetCommitRequestTopic()
		rt.Topic = "a"
		rt.Partitions = append(rt.Partitions, kmsg.NewOffsetCommitRequestTopicPartition())
		r.Topics = append(r.Topics, rt)
		a := newAnswer[*kmsg.OffsetCommitResponse](t)
		c.Commit(context.Background(), r, a.reply)
		a.get()
		time.Sleep(70 * time.Second)
		synctest.Wait()
		if fetchAll(c, "g") == "" {
			t.Fatal("too early")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := fetchAll(c, "g"); got != "" {
			t.Fatal(got)
		}
	})
}

func TestDropTopics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{})
		defer s.close()
		c := s.elect(0)
		commit(t, c, "", -1, tp{"gone", 0, 1}, tp{"kept", 0, 2}, tp{"also", 0, 3}).get()
		c.DropTopics(func(topic string) bool { return topic == "gone" })
		c.DropTopics(func(topic string) bool { return topic == "also" }) // while the first one runs
		synctest.Wait()
		if got := fetchAll(c, "g"); got != "kept-0=2 " {
			t.Fatal(got)
		}
		// What is committed after the scan looked, and before the deletion is applied, stays.
		time.Sleep(time.Millisecond)
		s.set(func() { s.hold = true })
		late := commit(t, c, "", -1, tp{"kept", 0, 9})
		c.DropTopics(func(string) bool { return true })
		synctest.Wait()
		if len(s.queue) != 2 {
			t.Fatalf("%d entries wait", len(s.queue))
		}
		s.release()
		if commitCode(late) != 0 || fetchAll(c, "g") != "kept-0=9 " {
			t.Fatal(fetchAll(c, "g"))
		}
		n := 0
		for i, o := range c.Committed() {
			if i != n || o.Group != "g" || o.Topic != "kept" || o.Offset != 9 {
				t.Fatalf("%+v", o)
			}
			n++
		}
		if n != 1 {
			t.Fatal(n)
		}
	})
}

// What is committed after DropTopics was called is another topic's of the same name, however late it is looked at.
func TestDropTopicsSparesLaterCommits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{})
		defer s.close()
		c := s.elect(0)
		commit(t, c, "", -1, tp{"anew", 0, 1}, tp{"anew", 1, 1}, tp{"other", 0, 1}).get()
		busy := make(chan struct{})
		c.DropTopics(func(string) bool { <-busy; return false })
		synctest.Wait()
		c.DropTopics(func(topic string) bool { return topic == "anew" }) // waits for the first one
		time.Sleep(time.Millisecond)
		commit(t, c, "", -1, tp{"anew", 1, 9}, tp{"anew", 2, 9}).get()
		close(busy)
		synctest.Wait()
		if got := fetchAll(c, "g"); got != "anew-1=9 anew-2=9 other-0=1 " {
			t.Fatal(got)
		}
	})
}

func TestShardOf(t *testing.T) {
	// Java: "test".hashCode() = 3556498, "".hashCode() = 0, "konsumenten-grüppe".hashCode() is negative.
	if ShardOf("test", 50) != 3556498%50 || ShardOf("", 8) != 0 || ShardOf("a", 0) != 0 {
		t.Fatal(ShardOf("test", 50))
	}
	if got := ShardOf("𝄞", 1000); got != ((0xd834*31+0xdd1e)&0x7fffffff)%1000 {
		t.Fatal(got)
	}
	for i := range 1000 {
		if s := ShardOf(strings.Repeat("g", i), 8); s < 0 || s > 7 {
			t.Fatal(s)
		}
	}
}

// Correctness rule 26: a coordinator that was cut off answers nothing from the past.
func TestFetchIsConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 1, Options{})
		defer s.close()
		c := s.elect(0)
		if code := commitCode(commit(t, c, "", -1, tp{"a", 0, 1})); code != 0 {
			t.Fatalf("commit: %d", code)
		}
		if got := fetchAll(c, "g"); got != "a-0=1 " {
			t.Fatal(got)
		}
		for err, want := range map[error]int16{
			raftgroup.ErrTimeout: errLoadInProgress, raftgroup.ErrBusy: errLoadInProgress, errBoom: errLoadInProgress,
			raftgroup.ErrNotLeader: errNotCoordinator,
		} {
			s.set(func() { s.nodes[0].readErr = err })
			if got := c.Fetch(t.Context(), "g", nil); got.ErrorCode != want || len(got.Topics) > 0 {
				t.Fatalf("%v: %+v", err, got)
			}
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		s.set(func() { s.nodes[0].readErr, s.nodes[0].readHeld = nil, true })
		if got := c.Fetch(gone, "g", nil); got.ErrorCode != errLoadInProgress {
			t.Fatalf("client went away: %+v", got)
		}
	})
}

// TestOffsetsExpireByDates: leaders' dates lie days apart. An offset goes when the leader's date is the retention time
// after the latest date of any leader at its commit.
func TestOffsetsExpireByDates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShard(t, 3, Options{RetentionInterval: 10 * time.Minute})
		defer s.close()
		const day = 24 * time.Hour
		ahead := []time.Duration{-2 * day, 0, 2 * day}
		for i, n := range s.nodes {
			n.c.opt.Wall = func() time.Time { return time.Now().Add(ahead[i]) }
		}
		looks := func(i int, want string) {
			t.Helper()
			c := s.elect(i)
			time.Sleep(15 * time.Minute)
			synctest.Wait()
			if got := fetchAll(c, "g"); got != want {
				t.Fatalf("by %v: %q, want %q", ahead[i], got, want)
			}
		}
		commit(t, s.elect(0), "", -1, tp{"a", 0, 1}).get() // two days ago
		looks(2, "a-0=1 ")
		looks(0, "a-0=1 ")
		looks(1, "a-0=1 ")
		commit(t, s.nodes[1].c, "", -1, tp{"b", 0, 2}).get()
		ahead[2] = 5*day - time.Hour
		looks(2, "a-0=1 b-0=2 ")
		ahead[2] = 5*day + time.Hour
		looks(2, "b-0=2 ")
		commit(t, s.nodes[2].c, "", -1, tp{"c", 0, 3}).get() // in five days
		commit(t, s.elect(0), "", -1, tp{"d", 0, 4}).get()   // after that, so no earlier
		ahead[1] = 11 * day
		looks(1, "c-0=3 d-0=4 ")
		ahead[1] = 13 * day
		looks(1, "")
	})
}
