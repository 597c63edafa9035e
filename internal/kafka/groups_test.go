package kafka

import (
	"context"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/metadata"
	"chronik/internal/wire"
)

// withShards makes the coordinator shards.
func withShards(t testing.TB, f *fakeCluster) {
	t.Helper()
	f.apply(&metadata.CreateCoordinators{ReplicationFactor: 3})
}

// joinOf is a member's first JoinGroup.
func joinOf(version int16) *kmsg.JoinGroupRequest {
	req := kmsg.NewPtrJoinGroupRequest()
	req.Version = version
	req.Group, req.ProtocolType = "readers", "consumer"
	req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = 10_000, 10_000
	p := kmsg.NewJoinGroupRequestProtocol()
	p.Name, p.Metadata = "range", []byte{1, 2, 3}
	req.Protocols = append(req.Protocols, p)
	return req
}

// joined makes one member, alone in its group, and returns its id and generation.
func joined(t testing.TB, h *Handler) (member string, generation int32) {
	t.Helper()
	req := joinOf(9)
	resp := roundTrip[*kmsg.JoinGroupResponse](t, h, req)
	wantCode(t, "first join", resp.ErrorCode, kerr.MemberIDRequired)
	req.MemberID = resp.MemberID
	resp = roundTrip[*kmsg.JoinGroupResponse](t, h, req)
	wantCode(t, "join", resp.ErrorCode, nil)
	sync := kmsg.NewPtrSyncGroupRequest()
	sync.Version = 5
	sync.Group, sync.Generation, sync.MemberID = "readers", resp.Generation, resp.MemberID
	sync.ProtocolType, sync.Protocol = ptr("consumer"), ptr("range")
	a := kmsg.NewSyncGroupRequestGroupAssignment()
	a.MemberID, a.MemberAssignment = resp.MemberID, []byte("mine")
	sync.GroupAssignment = append(sync.GroupAssignment, a)
	wantCode(t, "sync", roundTrip[*kmsg.SyncGroupResponse](t, h, sync).ErrorCode, nil)
	return resp.MemberID, resp.Generation
}

func callsGroups() {
	on(keyFindCoordinator, func(v int16) kmsg.Request {
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.CoordinatorKey, req.CoordinatorKeys = "readers", []string{"readers", "writers"}
		return req
	}, func(t *testing.T, v int16, resp *kmsg.FindCoordinatorResponse) {
		if v < 4 {
			wantCode(t, "find", resp.ErrorCode, nil)
			if resp.NodeID != 1 || resp.Host != "node-1" || resp.Port != 9092 {
				t.Errorf("%+v", resp)
			}
			return
		}
		for i, key := range []string{"readers", "writers"} {
			c := resp.Coordinators[i]
			wantCode(t, "find", c.ErrorCode, nil)
			if c.Key != key || c.NodeID != 1 || c.Host != "node-1" || c.Port != 9092 {
				t.Errorf("%+v", c)
			}
		}
	})
	on(keyJoinGroup, func(v int16) kmsg.Request { return joinOf(v) }, func(t *testing.T, v int16, resp *kmsg.JoinGroupResponse) {
		if v >= 4 {
			wantCode(t, "join without an id", resp.ErrorCode, kerr.MemberIDRequired)
		} else {
			wantCode(t, "join", resp.ErrorCode, nil)
			if resp.Generation < 1 || resp.LeaderID != resp.MemberID || len(resp.Members) != 1 || *resp.Protocol != "range" {
				t.Errorf("%+v", resp)
			}
		}
		if resp.MemberID == "" {
			t.Error("no member id")
		}
	})
	callsMembers()
	callsOffsets()
	callsGroupAdmin()
}

func callsMembers() {
	on(keySyncGroup, func(int16) kmsg.Request {
		req := kmsg.NewPtrSyncGroupRequest()
		req.Group, req.Generation, req.MemberID = "readers", 1, "nobody"
		return req
	}, func(t *testing.T, _ int16, resp *kmsg.SyncGroupResponse) {
		wantCode(t, "unknown member", resp.ErrorCode, kerr.UnknownMemberID)
		if resp.MemberAssignment == nil {
			t.Error("the assignment is null")
		}
	})
	on(keyHeartbeat, func(int16) kmsg.Request {
		req := kmsg.NewPtrHeartbeatRequest()
		req.Group, req.Generation, req.MemberID = "readers", 1, "nobody"
		return req
	}, func(t *testing.T, _ int16, resp *kmsg.HeartbeatResponse) {
		wantCode(t, "unknown member", resp.ErrorCode, kerr.UnknownMemberID)
	})
	on(keyLeaveGroup, func(int16) kmsg.Request {
		req := kmsg.NewPtrLeaveGroupRequest()
		req.Group, req.MemberID = "readers", "nobody"
		m := kmsg.NewLeaveGroupRequestMember()
		m.MemberID = "nobody"
		req.Members = append(req.Members, m)
		return req
	}, func(t *testing.T, v int16, resp *kmsg.LeaveGroupResponse) {
		if v >= 3 {
			wantCode(t, "unknown member", resp.Members[0].ErrorCode, kerr.UnknownMemberID)
		} else {
			wantCode(t, "unknown member", resp.ErrorCode, kerr.UnknownMemberID)
		}
	})
}

func callsGroupAdmin() {
	on(keyDescribeGroups, func(int16) kmsg.Request {
		req := kmsg.NewPtrDescribeGroupsRequest()
		req.Groups = []string{"sums", "none"}
		req.IncludeAuthorizedOperations = true
		return req
	}, func(t *testing.T, v int16, resp *kmsg.DescribeGroupsResponse) {
		sums, none := resp.Groups[0], resp.Groups[1]
		wantCode(t, "sums", sums.ErrorCode, nil)
		if sums.State != "Empty" || v >= 3 && sums.AuthorizedOperations != groupOperations {
			t.Errorf("%+v", sums)
		}
		if v < 6 {
			wantCode(t, "none", none.ErrorCode, nil)
		} else {
			wantCode(t, "none", none.ErrorCode, kerr.GroupIDNotFound)
		}
		if none.State != "Dead" {
			t.Errorf("%+v", none)
		}
	})
	on(keyListGroups, func(int16) kmsg.Request {
		req := kmsg.NewPtrListGroupsRequest()
		req.StatesFilter, req.TypesFilter = []string{"Empty"}, []string{"classic"}
		return req
	}, func(t *testing.T, v int16, resp *kmsg.ListGroupsResponse) {
		wantCode(t, "list", resp.ErrorCode, nil)
		if len(resp.Groups) != 1 || resp.Groups[0].Group != "sums" || v >= 4 && resp.Groups[0].GroupState != "Empty" || v >= 5 && resp.Groups[0].GroupType != "classic" {
			t.Errorf("%+v", resp.Groups)
		}
	})
	on(keyDeleteGroups, func(int16) kmsg.Request {
		req := kmsg.NewPtrDeleteGroupsRequest()
		req.Groups = []string{"sums", "none"}
		return req
	}, func(t *testing.T, _ int16, resp *kmsg.DeleteGroupsResponse) {
		wantCode(t, "sums", resp.Groups[0].ErrorCode, nil)
		wantCode(t, "none", resp.Groups[1].ErrorCode, kerr.GroupIDNotFound)
	})
	on(keyOffsetDelete, func(int16) kmsg.Request {
		req := kmsg.NewPtrOffsetDeleteRequest()
		req.Group = "sums"
		rt := kmsg.NewOffsetDeleteRequestTopic()
		rt.Topic = "orders"
		rt.Partitions = append(rt.Partitions, kmsg.NewOffsetDeleteRequestTopicPartition())
		req.Topics = append(req.Topics, rt)
		return req
	}, func(t *testing.T, _ int16, resp *kmsg.OffsetDeleteResponse) {
		wantCode(t, "delete", resp.ErrorCode, nil)
		wantCode(t, "partition", resp.Topics[0].Partitions[0].ErrorCode, nil)
	})
}

// commitOf commits offset 2 of orders-0 for a group without members.
func commitOf(version int16, group string) *kmsg.OffsetCommitRequest {
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Version, req.Group, req.Generation = version, group, -1
	rt := kmsg.NewOffsetCommitRequestTopic()
	rt.Topic, rt.TopicID = "orders", preparedID
	rp := kmsg.NewOffsetCommitRequestTopicPartition()
	rp.Offset, rp.Metadata = 2, ptr("note")
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	return req
}

func callsOffsets() {
	on(keyOffsetCommit, func(v int16) kmsg.Request {
		req := commitOf(v, "sums")
		missing := req.Topics[0].Partitions[0]
		missing.Partition = 9
		req.Topics[0].Partitions = append([]kmsg.OffsetCommitRequestTopicPartition{missing}, req.Topics[0].Partitions...)
		unknown := req.Topics[0]
		unknown.Topic, unknown.TopicID = "none", [16]byte{1}
		req.Topics = append([]kmsg.OffsetCommitRequestTopic{unknown}, req.Topics...)
		return req
	}, func(t *testing.T, v int16, resp *kmsg.OffsetCommitResponse) {
		if v < 10 {
			wantCode(t, "unknown topic", resp.Topics[0].Partitions[1].ErrorCode, kerr.UnknownTopicOrPartition)
		} else {
			wantCode(t, "unknown topic", resp.Topics[0].Partitions[1].ErrorCode, kerr.UnknownTopicID)
		}
		p := resp.Topics[1].Partitions
		if p[0].Partition != 9 || p[1].Partition != 0 {
			t.Errorf("%+v", p)
		}
		wantCode(t, "unknown partition", p[0].ErrorCode, kerr.UnknownTopicOrPartition)
		wantCode(t, "commit", p[1].ErrorCode, nil)
	})
	on(keyOffsetFetch, func(v int16) kmsg.Request {
		req := kmsg.NewPtrOffsetFetchRequest()
		req.Group = "sums"
		rt := kmsg.NewOffsetFetchRequestTopic()
		rt.Topic, rt.Partitions = "orders", []int32{0, 1}
		req.Topics = append(req.Topics, rt)
		g := kmsg.NewOffsetFetchRequestGroup()
		g.Group = "sums"
		gt := kmsg.NewOffsetFetchRequestGroupTopic()
		gt.Topic, gt.TopicID, gt.Partitions = "orders", preparedID, []int32{0, 1}
		g.Topics = append(g.Topics, gt)
		all := kmsg.NewOffsetFetchRequestGroup()
		all.Group = "sums"
		req.Groups = append(req.Groups, g, all)
		return req
	}, func(t *testing.T, v int16, resp *kmsg.OffsetFetchResponse) {
		if v >= 8 {
			for _, g := range resp.Groups {
				wantCode(t, "group", g.ErrorCode, nil)
				p := g.Topics[0].Partitions[0]
				if p.Offset != 2 || *p.Metadata != "note" || v >= 10 && g.Topics[0].TopicID != preparedID || v < 10 && g.Topics[0].Topic != "orders" {
					t.Errorf("%+v", g)
				}
			}
			if none := resp.Groups[0].Topics[0].Partitions[1]; none.Offset != -1 || none.ErrorCode != 0 {
				t.Errorf("%+v", none)
			}
			return
		}
		wantCode(t, "group", resp.ErrorCode, nil)
		p := resp.Topics[0].Partitions
		if p[0].Offset != 2 || *p[0].Metadata != "note" || p[1].Offset != -1 || p[1].ErrorCode != 0 {
			t.Errorf("%+v", p)
		}
	})
}

func TestGroupLife(t *testing.T) {
	h, f := newHandler(t)
	prepare(t, f)
	member, generation := joined(t, h)

	beat := kmsg.NewPtrHeartbeatRequest()
	beat.Version, beat.Group, beat.MemberID, beat.Generation = 4, "readers", member, generation
	wantCode(t, "heartbeat", roundTrip[*kmsg.HeartbeatResponse](t, h, beat).ErrorCode, nil)
	beat.Generation++
	wantCode(t, "another generation", roundTrip[*kmsg.HeartbeatResponse](t, h, beat).ErrorCode, kerr.IllegalGeneration)

	commit := commitOf(9, "readers")
	commit.MemberID, commit.Generation = member, generation
	wantCode(t, "commit", roundTrip[*kmsg.OffsetCommitResponse](t, h, commit).Topics[0].Partitions[0].ErrorCode, nil)
	commit.MemberID = "nobody"
	wantCode(t, "a stranger's commit", roundTrip[*kmsg.OffsetCommitResponse](t, h, commit).Topics[0].Partitions[0].ErrorCode, kerr.UnknownMemberID)

	describe := kmsg.NewPtrDescribeGroupsRequest()
	describe.Version, describe.Groups = 5, []string{"readers"}
	g := roundTrip[*kmsg.DescribeGroupsResponse](t, h, describe).Groups[0]
	if g.State != "Stable" || len(g.Members) != 1 || g.Members[0].MemberID != member || g.Members[0].ClientID != "test" || string(g.Members[0].MemberAssignment) != "mine" {
		t.Errorf("%+v", g)
	}
	remove := kmsg.NewPtrDeleteGroupsRequest()
	remove.Version, remove.Groups = 2, []string{"readers"}
	wantCode(t, "delete a group in use", roundTrip[*kmsg.DeleteGroupsResponse](t, h, remove).Groups[0].ErrorCode, kerr.NonEmptyGroup)

	leave := kmsg.NewPtrLeaveGroupRequest()
	leave.Version, leave.Group = 5, "readers"
	m := kmsg.NewLeaveGroupRequestMember()
	m.MemberID = member
	leave.Members = append(leave.Members, m)
	wantCode(t, "leave", roundTrip[*kmsg.LeaveGroupResponse](t, h, leave).Members[0].ErrorCode, nil)
	wantCode(t, "delete", roundTrip[*kmsg.DeleteGroupsResponse](t, h, remove).Groups[0].ErrorCode, nil)
}

// TestCoordinatorElsewhere: each group request names why this node does not answer.
func TestCoordinatorElsewhere(t *testing.T) {
	codes := func(resp kmsg.Response) int16 {
		switch r := resp.(type) {
		case *kmsg.OffsetCommitResponse:
			return r.Topics[0].Partitions[0].ErrorCode
		case *kmsg.OffsetFetchResponse:
			switch {
			case r.Version >= 8:
				return r.Groups[0].ErrorCode
			case r.Version < 2:
				return r.Topics[0].Partitions[0].ErrorCode
			}
			return r.ErrorCode
		case *kmsg.JoinGroupResponse:
			return r.ErrorCode
		case *kmsg.HeartbeatResponse:
			return r.ErrorCode
		case *kmsg.LeaveGroupResponse:
			return r.ErrorCode
		case *kmsg.SyncGroupResponse:
			return r.ErrorCode
		case *kmsg.DescribeGroupsResponse:
			return r.Groups[0].ErrorCode
		case *kmsg.DeleteGroupsResponse:
			return r.Groups[0].ErrorCode
		case *kmsg.OffsetDeleteResponse:
			return r.ErrorCode
		}
		t.Errorf("%T", resp)
		return 0
	}
	for _, key := range []int16{
		keyOffsetCommit, keyOffsetFetch, keyJoinGroup, keyHeartbeat, keyLeaveGroup, keySyncGroup,
		keyDescribeGroups, keyDeleteGroups, keyOffsetDelete,
	} {
		for v := int16(0); v <= lookup(key).max; v++ {
			h, f := newHandler(t)
			req := calls[key].req(v)
			req.SetVersion(v)
			want := kerr.CoordinatorNotAvailable
			if key == keyOffsetFetch {
				want = kerr.CoordinatorLoadInProgress // old Java consumers repeat after this and NOT_COORDINATOR alone
			}
			wantCode(t, apiName(key)+" without shards", codes(serve(t, h, req)), want)
			withShards(t, f)
			clear(f.coords)
			wantCode(t, apiName(key)+" elsewhere", codes(serve(t, h, req)), kerr.NotCoordinator)
		}
	}
}

// TestWaitingMembersHoldNoRequestMemory: a large JoinGroup that waits for the rebalance, and a large
// SyncGroup that waits for the leader, would else keep every Produce of the node waiting.
func TestWaitingMembersHoldNoRequestMemory(t *testing.T) {
	h, f := newHandler(t)
	withShards(t, f)
	memory := wire.NewQuota(1 << 20)
	addr := listenWith(t, wire.Options{Handler: h, Memory: memory}, f)
	send := func(req kmsg.Request) net.Conn {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
		t.Cleanup(func() { _ = nc.Close() })
		if _, err := nc.Write(kmsg.NewRequestFormatter().AppendRequest(nil, req, 1)); err != nil {
			t.Fatal(err)
		}
		return nc
	}
	join := func(member string, size int) *kmsg.JoinGroupRequest {
		req := kmsg.NewPtrJoinGroupRequest()
		req.Version, req.Group, req.ProtocolType, req.MemberID = 3, "g", "consumer", member
		req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = 30_000, 30_000
		p := kmsg.NewJoinGroupRequestProtocol()
		p.Name, p.Metadata = "range", make([]byte, size)
		req.Protocols = append(req.Protocols, p)
		return req
	}
	receive := func(nc net.Conn, resp kmsg.Response) {
		t.Helper()
		if _, b := readResponse(t, nc); resp.ReadFrom(b) != nil {
			t.Fatalf("%T of %d bytes", resp, len(b))
		}
	}
	holdsNothing := func(what string) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); memory.Used() > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d bytes held", what, memory.Used())
			}
		}
	}
	waiting := func(c Coordinator, joined int) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); len(c.Describe("g").Members) < joined; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d members", len(c.Describe("g").Members))
			}
		}
	}
	c, err := h.coordinator("g")
	if err != nil {
		t.Fatal(err)
	}
	first := roundTrip[*kmsg.JoinGroupResponse](t, h, join("", 10))
	conn := send(join("", 1<<20)) // waits for the first to join again
	waiting(c, 2)
	holdsNothing("a member that waits in JoinGroup")
	first = roundTrip[*kmsg.JoinGroupResponse](t, h, join(first.MemberID, 10))
	resp := kmsg.NewPtrJoinGroupResponse()
	resp.Version = 3
	receive(conn, resp)
	if resp.ErrorCode != 0 || first.ErrorCode != 0 || resp.Generation != first.Generation {
		t.Fatalf("%+v, %+v", resp, first)
	}
	sync := kmsg.NewPtrSyncGroupRequest()
	sync.Version, sync.Group, sync.MemberID, sync.Generation = 2, "g", resp.MemberID, resp.Generation
	sync.GroupAssignment = []kmsg.SyncGroupRequestGroupAssignment{{MemberID: resp.MemberID, MemberAssignment: make([]byte, 1<<20)}}
	conn = send(sync) // waits for the leader's
	time.Sleep(100 * time.Millisecond)
	holdsNothing("a member that waits in SyncGroup")
	sync.MemberID, sync.GroupAssignment = first.MemberID, nil
	wantCode(t, "sync of the leader", roundTrip[*kmsg.SyncGroupResponse](t, h, sync).ErrorCode, nil)
	synced := kmsg.NewPtrSyncGroupResponse()
	synced.Version = 2
	receive(conn, synced)
	wantCode(t, "sync of the other", synced.ErrorCode, nil)
}

func TestFindCoordinator(t *testing.T) {
	h, f := newHandler(t)
	ask := func(typ int8) kmsg.FindCoordinatorResponseCoordinator {
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.Version, req.CoordinatorType, req.CoordinatorKeys = 4, typ, []string{"k"}
		return roundTrip[*kmsg.FindCoordinatorResponse](t, h, req).Coordinators[0]
	}
	txn := ask(coordinatorOfTransaction)
	wantCode(t, "transactions", txn.ErrorCode, kerr.InvalidRequest)
	if txn.ErrorMessage == nil {
		t.Error("no message")
	}
	wantCode(t, "share groups", ask(2).ErrorCode, kerr.InvalidRequest)
	f.submitErr = kerr.RequestTimedOut
	wantCode(t, "no controller", ask(coordinatorOfGroup).ErrorCode, kerr.CoordinatorNotAvailable)
	f.submitErr = nil
	wantCode(t, "first asked", ask(coordinatorOfGroup).ErrorCode, nil)
	if len(f.Image().Coordinators) != 4 {
		t.Errorf("%d shards", len(f.Image().Coordinators))
	}
	f.down[1] = true // this node reaches itself all the same
	wantCode(t, "asked again", ask(coordinatorOfGroup).ErrorCode, nil)
	made := 0
	for _, cmd := range f.submitted {
		if _, ok := cmd.(*metadata.CreateCoordinators); ok {
			made++
		}
	}
	if made != 2 {
		t.Errorf("shards asked for %d times", made)
	}
}

// TestClientsShareAGroup runs two real consumers in one group: they divide the
// partitions, commit, and a third goes on where they stopped.
func TestClientsShareAGroup(t *testing.T) {
	h, f := newHandler(t)
	addr := listen(t, h, f)
	f.topic("jobs", 4, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	consumer := func() *kgo.Client {
		return newClient(t, addr, kgo.ConsumerGroup("workers"), kgo.ConsumeTopics("jobs"), kgo.FetchMaxWait(50*time.Millisecond),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(), kgo.HeartbeatInterval(100*time.Millisecond))
	}
	producer := newClient(t, addr, kgo.DefaultProduceTopic("jobs"), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	produce := func(from, to int) {
		for i := from; i < to; i++ {
			if err := producer.ProduceSync(ctx, kgo.StringRecord(fmt.Sprint(i))).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	produce(0, 40)
	got := map[string]int{}
	poll := func(cl *kgo.Client, until int) {
		for len(got) < until {
			fetches := cl.PollFetches(ctx)
			if err := fetches.Err(); err != nil {
				t.Fatal(err)
			}
			fetches.EachRecord(func(r *kgo.Record) { got[string(r.Value)]++ })
		}
		if err := cl.CommitUncommittedOffsets(ctx); err != nil {
			t.Fatal(err)
		}
	}
	first := consumer()
	poll(first, 40)
	adm := kadm.NewClient(producer)
	groups, err := adm.DescribeGroups(ctx, "workers")
	if err != nil || groups["workers"].State != "Stable" || len(groups["workers"].Members) != 1 {
		t.Fatalf("%+v, %v", groups, err)
	}
	lag, err := adm.Lag(ctx, "workers")
	if err != nil || lag["workers"].Lag.Total() != 0 {
		t.Errorf("%+v, %v", lag, err)
	}
	first.Close()
	produce(40, 60)
	poll(consumer(), 60)
	for value, n := range got {
		if n != 1 {
			t.Errorf("job %s was consumed %d times", value, n)
		}
	}
	listed, err := adm.ListGroups(ctx)
	if err != nil || !slices.Equal(listed.Groups(), []string{"workers"}) {
		t.Errorf("%+v, %v", listed, err)
	}
}
