package group

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"chronik/internal/ident"
	"chronik/internal/raftgroup"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shard is a group of replicas with one log, all in this process. Proposals are
// applied in order by goroutines, as raftgroup's apply workers do.
type shard struct {
	t     *testing.T
	mu    sync.Mutex
	nodes []*node
	lead  int // -1: nobody
	term  ident.Term
	log   []raftgroup.Entry
	hold  bool // proposals wait
	queue []proposal
	fail  error // the next proposals fail with it
}

type proposal struct {
	data []byte
	w    raftgroup.Waiter
}

// node is one replica, its state machine and coordinator.
type node struct {
	s        *shard
	sm       *StateMachine
	c        *Coordinator
	readErr  error
	readHeld bool // ReadIndex is not answered
}

func newShard(t *testing.T, replicas int, opt Options) *shard {
	t.Helper()
	s := &shard{t: t, lead: -1}
	for range replicas {
		sm, err := Open(nil, "g1", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		n := &node{s: s, sm: sm.(*StateMachine)}
		n.c = New(n, n.sm, opt)
		s.nodes = append(s.nodes, n)
	}
	return s
}

func (s *shard) close() {
	for _, n := range s.nodes {
		n.c.Close()
	}
	synctest.Wait()
}

// elect makes a replica the leader, and waits until it serves, or is known not to.
func (s *shard) elect(i int) *Coordinator {
	s.mu.Lock()
	old := s.lead
	s.lead = i
	s.term++
	term := s.term
	s.mu.Unlock()
	if old >= 0 {
		s.nodes[old].sm.RoleChanged(0, term, false)
	}
	if i < 0 {
		synctest.Wait()
		return nil
	}
	s.nodes[i].sm.RoleChanged(ident.NodeID(i+1), term, true)
	synctest.Wait()
	return s.nodes[i].c
}

// Propose implements Replica.
func (n *node) Propose(data []byte, _ raftgroup.ProposeOptions, w raftgroup.Waiter) {
	if len(data) > raftgroup.MaxEntry {
		w.Applied(0, 0, nil, raftgroup.ErrTooLarge)
		return
	}
	s := n.s
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.lead < 0 || s.nodes[s.lead] != n:
		go w.Applied(0, 0, nil, raftgroup.ErrNotLeader)
	case s.fail != nil:
		go w.Applied(0, 0, nil, s.fail)
	default:
		s.queue = append(s.queue, proposal{data, w})
		go s.drain()
	}
}

// ReadIndex implements Replica.
func (n *node) ReadIndex(_ time.Time, done func(ident.Index, error)) {
	n.s.mu.Lock()
	err, held := n.readErr, n.readHeld
	n.s.mu.Unlock()
	if !held {
		go done(0, err)
	}
}

func (s *shard) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.hold && len(s.queue) > 0 {
		p := s.queue[0]
		s.queue = s.queue[1:]
		e := raftgroup.Entry{Index: ident.Index(len(s.log) + 1), Term: s.term, Data: p.data}
		s.log = append(s.log, e)
		var res raftgroup.Result
		for _, n := range s.nodes {
			rs, err := n.sm.Apply([]raftgroup.Entry{e})
			if err != nil {
				panic(err)
			}
			res = rs[0]
		}
		s.mu.Unlock()
		p.w.Applied(e.Index, e.Term, res, nil)
		s.mu.Lock()
	}
}

func (s *shard) release() {
	s.mu.Lock()
	s.hold = false
	s.mu.Unlock()
	s.drain()
	synctest.Wait()
}

func (s *shard) set(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
}

// answer is a reply that may not have come yet, and must not come twice.
type answer[T any] struct {
	t  *testing.T
	ch chan T
}

func newAnswer[T any](t *testing.T) answer[T] { return answer[T]{t, make(chan T, 2)} }

func (a answer[T]) reply(v T) {
	select {
	case a.ch <- v:
	default:
		a.t.Error("answered more than twice")
	}
}

// get waits for the answer, as long as it takes.
func (a answer[T]) get() T {
	a.t.Helper()
	v := <-a.ch
	synctest.Wait()
	if len(a.ch) > 0 {
		a.t.Fatal("answered twice")
	}
	return v
}

// now returns the answer if it is there.
func (a answer[T]) now() (v T, ok bool) {
	synctest.Wait()
	select {
	case v = <-a.ch:
		return v, true
	default:
		return v, false
	}
}

func str(s string) *string { return &s }

func joinReq(version int16, id string, instance *string, protocols ...string) *kmsg.JoinGroupRequest {
	r := kmsg.NewPtrJoinGroupRequest()
	r.Version, r.Group, r.MemberID, r.InstanceID = version, "g", id, instance
	r.SessionTimeoutMillis, r.RebalanceTimeoutMillis, r.ProtocolType = 10_000, 60_000, "consumer"
	if len(protocols) == 0 {
		protocols = []string{"range"}
	}
	for _, p := range protocols {
		jp := kmsg.NewJoinGroupRequestProtocol()
		jp.Name, jp.Metadata = p, []byte("meta of "+p)
		r.Protocols = append(r.Protocols, jp)
	}
	return r
}

func join(t *testing.T, c *Coordinator, req *kmsg.JoinGroupRequest) answer[*kmsg.JoinGroupResponse] {
	a := newAnswer[*kmsg.JoinGroupResponse](t)
	c.Join(context.Background(), req, "client", "/1.2.3.4", a.reply)
	return a
}

func syncGroup(t *testing.T, c *Coordinator, id string, generation int32, assign map[string]string) answer[*kmsg.SyncGroupResponse] {
	r := kmsg.NewPtrSyncGroupRequest()
	r.Version, r.Group, r.MemberID, r.Generation = 5, "g", id, generation
	for m, v := range assign {
		ga := kmsg.NewSyncGroupRequestGroupAssignment()
		ga.MemberID, ga.MemberAssignment = m, []byte(v)
		r.GroupAssignment = append(r.GroupAssignment, ga)
	}
	a := newAnswer[*kmsg.SyncGroupResponse](t)
	c.Sync(context.Background(), r, a.reply)
	return a
}

func heartbeat(c *Coordinator, id string, generation int32) int16 {
	r := kmsg.NewPtrHeartbeatRequest()
	r.Version, r.Group, r.MemberID, r.Generation = 4, "g", id, generation
	code := int16(-99)
	c.Heartbeat(context.Background(), r, func(resp *kmsg.HeartbeatResponse) { code = resp.ErrorCode })
	return code
}

func leave(c *Coordinator, id string, instance *string) int16 {
	r := kmsg.NewPtrLeaveGroupRequest()
	r.Version, r.Group = 5, "g"
	m := kmsg.NewLeaveGroupRequestMember()
	m.MemberID, m.InstanceID = id, instance
	r.Members = append(r.Members, m)
	code := int16(-99)
	c.Leave(context.Background(), r, func(resp *kmsg.LeaveGroupResponse) {
		if code = resp.ErrorCode; code == 0 {
			code = resp.Members[0].ErrorCode
		}
	})
	return code
}

type tp struct {
	topic     string
	partition int32
	offset    int64
}

func commit(t *testing.T, c *Coordinator, id string, generation int32, offsets ...tp) answer[*kmsg.OffsetCommitResponse] {
	r := kmsg.NewPtrOffsetCommitRequest()
	r.Version, r.Group, r.MemberID, r.Generation = 8, "g", id, generation
	for _, o := range offsets {
		rt := kmsg.NewOffsetCommitRequestTopic()
		rt.Topic = o.topic
		rp := kmsg.NewOffsetCommitRequestTopicPartition()
		rp.Partition, rp.Offset, rp.LeaderEpoch, rp.Metadata = o.partition, o.offset, 3, str("note")
		rt.Partitions = append(rt.Partitions, rp)
		r.Topics = append(r.Topics, rt)
	}
	a := newAnswer[*kmsg.OffsetCommitResponse](t)
	c.Commit(context.Background(), r, a.reply)
	return a
}

// commitCode is the first partition's code.
func commitCode(a answer[*kmsg.OffsetCommitResponse]) int16 {
	a.t.Helper()
	return a.get().Topics[0].Partitions[0].ErrorCode
}

// fetchAll returns a group's offsets as topic-partition=offset.
func fetchAll(c *Coordinator, group string) string {
	s := ""
	resp := c.Fetch(context.Background(), group, nil)
	if resp.ErrorCode != 0 {
		return fmt.Sprint("error ", resp.ErrorCode)
	}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			s += fmt.Sprintf("%s-%d=%d ", t.Topic, p.Partition, p.Offset)
		}
	}
	return s
}

// stable brings n members of version into a stable group and returns their ids,
// the leader's first, and the generation.
func stable(t *testing.T, c *Coordinator, n int, version int16) ([]string, int32) {
	t.Helper()
	var joins []answer[*kmsg.JoinGroupResponse]
	for range n {
		id := ""
		if version >= 4 {
			r := join(t, c, joinReq(version, "", nil)).get()
			if r.ErrorCode != errMemberIDRequired {
				t.Fatalf("first join: %d", r.ErrorCode)
			}
			id = r.MemberID
		}
		joins = append(joins, join(t, c, joinReq(version, id, nil)))
	}
	var ids []string
	var generation int32
	for _, j := range joins {
		r := j.get()
		if r.ErrorCode != 0 {
			t.Fatalf("join: %d", r.ErrorCode)
		}
		generation = r.Generation
		if r.LeaderID == r.MemberID {
			ids = append([]string{r.MemberID}, ids...)
		} else {
			ids = append(ids, r.MemberID)
		}
	}
	assign := map[string]string{}
	for _, id := range ids {
		assign[id] = "for " + id
	}
	var syncs []answer[*kmsg.SyncGroupResponse]
	for i := len(ids) - 1; i > 0; i-- {
		syncs = append(syncs, syncGroup(t, c, ids[i], generation, nil))
	}
	syncs = append(syncs, syncGroup(t, c, ids[0], generation, assign))
	for i, s := range syncs {
		id := ids[len(ids)-1-i]
		if r := s.get(); r.ErrorCode != 0 || string(r.MemberAssignment) != "for "+id {
			t.Fatalf("sync of %s: %d %s", id, r.ErrorCode, r.MemberAssignment)
		}
	}
	return ids, generation
}

// groupStateOf is what DescribeGroups says.
func groupStateOf(c *Coordinator) State { return State(c.Describe("g").State) }

func stateBytes(t testing.TB, st *state) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := st.writeTo(&b)
	if err != nil || n != int64(b.Len()) {
		t.Fatalf("write: %d of %d, %v", n, b.Len(), err)
	}
	return b.Bytes()
}

var errBoom = errors.New("boom")
