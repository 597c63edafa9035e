package raftgroup

import (
	"testing"
	"time"
	"unsafe"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"chronik/internal/ident"
)

// Rule 4: in one pass a leader hears of its successor, loses the entry it had at
// an index, and learns that the successor's is committed there. The index alone
// would acknowledge what was never committed.
func TestRule4AnotherTermsEntryIsNoAnswer(t *testing.T) {
	added := Member{Replica: 98, Node: 4, Store: storeOf(4, 0)}
	change := func(m Member, generation uint64) []byte {
		b, err := proto.Marshal(ConfChange{Generation: generation, AddLearner: []Member{m}}.toRaft())
		must(t, err)
		return b
	}
	for _, tt := range []struct {
		name    string
		propose func(r *Replica, w Waiter)
		typ     pb.EntryType
		data    []byte
	}{
		{"entry", func(r *Replica, w Waiter) { r.Propose([]byte("mine=1"), ProposeOptions{}, w) }, pb.EntryNormal, []byte("theirs=1")},
		{
			"membership change", func(r *Replica, w Waiter) { r.AddLearner(added, 1, ProposeOptions{}, w) },
			pb.EntryConfChangeV2, change(Member{Replica: 99, Node: 5, Store: storeOf(5, 0)}, 2),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inCluster(t, 3, nil, func(c *cluster) {
				c.create(3)
				c.fill("k", 0, 3)
				c.converge(3)
				time.Sleep(time.Second)
				l := c.leader()
				r := l.replica()
				c.net.Isolate(l.id)
				w := make(waiter, 1)
				tt.propose(r, w)
				time.Sleep(50 * time.Millisecond) // less than its leadership lasts
				from := uint64(c.other(l).replica().ID())
				r.postLocal(localEvent{fn: func(*outbox) {
					at, next := uint64(r.rs.last), uint64(r.rs.hs.Term)+1
					prev, prevTerm := at-1, uint64(r.rs.hs.Term)
					to, typ := uint64(r.ID()), tt.typ
					_ = r.rs.rn.Step(&pb.Message{
						Type: pb.MsgApp.Enum(), From: &from, To: &to, Term: &next, Index: &prev, LogTerm: &prevTerm, Commit: &at,
						Entries: []*pb.Entry{{Index: &at, Term: &next, Type: &typ, Data: tt.data}},
					})
				}})
				got := <-w
				isErr(t, got.err, ErrLeadershipLost)
				c.eventually("the successor's entry is applied", func() bool { return r.Status().AppliedIndex >= got.index })
				if tt.typ == pb.EntryNormal && (l.sm().Get("theirs") != "1" || l.sm().Get("mine") != "") {
					t.Fatal("the replica applied another entry than the successor's")
				}
			})
		})
	}
}

// other returns a node that is not l.
func (c *cluster) other(l *node) *node {
	return c.nodes[l.id%3+1]
}

// Rule 4: entries that a leader had proposed and that were committed wait in its
// apply when a snapshot passes them. What became of them the snapshot does not
// tell, so their proposers hear that it is uncertain, though nothing else follows.
func TestRule4WaitersFailOnInstall(t *testing.T) {
	stuckCluster(t, 3, func(c *cluster, stick func(*node), release func()) {
		c.create(3)
		c.fill("k", 0, 5)
		l := c.leader()
		r := l.replica()
		stick(l)
		const n = 4
		var ws [n]waiter
		for i := range ws {
			ws[i] = make(waiter, 1)
			r.Propose([]byte("k5=v"), ProposeOptions{}, ws[i])
			time.Sleep(50 * time.Millisecond) // committed each by itself
		}
		c.net.Isolate(l.id)
		c.eventually("another leader", func() bool { o := c.leads(); return o != nil && o != l })
		c.fill("k", 6, 80)
		c.trimmedLeader(60)
		c.net.HealAll()
		l.installing(c)
		release()
		last := ident.Index(0)
		for i, w := range ws {
			var got told
			select {
			case got = <-w:
			case <-time.After(testTimeout):
				t.Fatalf("proposal %d was never answered", i)
			}
			if i > 0 {
				isErr(t, got.err, ErrLeadershipLost)
			}
			if got.index <= last {
				t.Fatalf("proposal %d at index %d after %d", i, got.index, last)
			}
			last = got.index
		}
	})
}

// Rule 27: where fewer voters are than an answer waits for, those do not do, nor does a leader that does not know
// yet what they hold.
func TestRule27FewerVotersThanAskedFor(t *testing.T) {
	for _, voters := range [][]ident.Index{nil, {7, 7}} {
		var w waiters
		got := make(waiter, 1)
		if voters != nil {
			w.progress(voters)
		}
		w.add(pending{index: 7, term: 1, w: got, min: 3, deadline: time.Unix(0, 1)})
		w.applied(7, func(ident.Index, ident.Term, bool) (Result, error) { return nil, nil })
		w.progress([]ident.Index{7, 7})
		w.expire(time.Unix(1, 0))
		isErr(t, (<-got).err, ErrNotEnoughReplicasAfterAppend)
	}
}

// A deadline is a time from now, whatever the clock is set to meanwhile.
func TestDeadlinesOutliveClockSteps(t *testing.T) {
	for _, step := range []time.Duration{-3 * time.Hour, 3 * time.Hour} {
		var w waiters
		got := make(waiter, 1)
		asked := time.Now()
		w.add(pending{index: 7, term: 1, w: got, deadline: asked.Add(time.Second)})
		w.expire(stepped(asked.Add(900*time.Millisecond), step))
		select {
		case early := <-got:
			t.Fatalf("%v: ended before its time: %v", step, early.err)
		default:
		}
		w.expire(stepped(asked.Add(1100*time.Millisecond), step))
		select {
		case late := <-got:
			isErr(t, late.err, ErrTimeout)
		default:
			t.Fatalf("%v: waits beyond its time", step)
		}
	}
}

// stepped is what time.Now returns at t after the clock was set by d: another date, the same monotonic time.
func stepped(t time.Time, d time.Duration) time.Time {
	const secondsAt = 30                  // in the first word, above nanoseconds; its top bit says that there is a monotonic time
	wall := (*uint64)(unsafe.Pointer(&t)) //nolint:gosec // nothing else makes such a time, but setting the machine's clock
	*wall += uint64(int64(d/time.Second)) << secondsAt
	return t
}
