package metadata

import (
	"bytes"
	"errors"
	"testing"

	"chronik/internal/ident"
	"chronik/internal/raftgroup"
)

func storeID(n int) ident.StoreID {
	var s ident.StoreID
	s[0], s[1], s[15] = byte(n>>8), byte(n), 1
	return s
}

func topicID(n int) TopicID {
	var t TopicID
	t[0], t[1], t[2] = byte(n>>8), byte(n), 7
	return t
}

// meta is a state machine with a log of its own.
type meta struct {
	t     testing.TB
	sm    *StateMachine
	store *Store
	index ident.Index
}

func newMeta(t testing.TB) *meta {
	t.Helper()
	store := NewStore()
	sm, err := Open(store)(nil, "g1", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &meta{t: t, sm: sm.(*StateMachine), store: store}
}

// cluster returns a metadata group with nodes 1 to n registered on stores 1 to n.
func cluster(t testing.TB, n int) *meta {
	t.Helper()
	m := newMeta(t)
	stores := map[ident.NodeID]ident.StoreID{}
	for i := 1; i <= n; i++ {
		stores[ident.NodeID(i)] = storeID(i)
	}
	m.must(&Genesis{ClusterID: "c", Members: GenesisMembers(stores), Coordinators: 2, Level: 1})
	for i := 1; i <= n; i++ {
		m.must(registration(i, i, 0))
	}
	return m
}

// registration is of node on the store of that number, where prev is known.
func registration(node, store, prev int) *RegisterBroker {
	c := &RegisterBroker{
		Node: ident.NodeID(node), Store: storeID(store), KafkaHost: "h", KafkaPort: int32(9091 + node), RaftAddr: "r",
	}
	if prev != 0 {
		c.Previous = storeID(prev)
	}
	return c
}

// do applies one command as an entry.
func (m *meta) do(c Command) *Reply {
	m.t.Helper()
	b, err := Encode(c)
	if err != nil {
		m.t.Fatal(err)
	}
	m.index++
	res, err := m.sm.Apply([]raftgroup.Entry{{Index: m.index, Term: 1, Data: b}})
	if err != nil || len(res) != 1 {
		m.t.Fatalf("apply: %v %v", res, err)
	}
	return res[0].(*Reply)
}

func (m *meta) must(c Command) any {
	m.t.Helper()
	r := m.do(c)
	if r.Err != nil {
		m.t.Fatalf("%s: %v", c.Kind(), r.Err)
	}
	return r.Result
}

// topic creates a topic and returns it.
func (m *meta) topic(name string, partitions int32, replication int16) *Topic {
	m.t.Helper()
	res := m.must(&CreateTopics{Topics: []NewTopic{{
		Name: name, ID: topicID(int(m.index) + 1), Partitions: partitions, ReplicationFactor: replication,
	}}}).(*CreateTopicsResult)
	if res.Topics[0].Err != nil {
		m.t.Fatal(res.Topics[0].Err)
	}
	return m.img().Topic(name)
}

// codeOf is the Kafka code of a refused command, -1 if err is no such refusal.
func codeOf(err error) int16 {
	var e *Error
	if !errors.As(err, &e) {
		return -1
	}
	return e.Code
}

func (m *meta) img() *Image { return m.store.Image() }

func encoded(t testing.TB, i *Image) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := i.WriteTo(&b)
	if err != nil || n != int64(b.Len()) {
		t.Fatalf("write: %d of %d bytes, %v", n, b.Len(), err)
	}
	return b.Bytes()
}

func ids(rs []Replica) []ident.ReplicaID {
	var out []ident.ReplicaID
	for _, r := range rs {
		out = append(out, r.ID)
	}
	return out
}
