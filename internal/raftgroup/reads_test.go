package raftgroup

import (
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
	"chronik/internal/transport"
)

// Rule 26: what a leader answers to a follower's former process, which asked before a write was acknowledged, is no
// answer to the process after it, which asks after that.
func TestRule26AnswerToAFormerProcess(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		c.converge(5)
		l, f := c.leader(), c.follower()
		for id := range c.nodes {
			if id != l.id && id != f.id {
				c.net.Kill(id) // so that f alone confirms
			}
		}
		time.Sleep(200 * time.Millisecond)
		heartbeats := func(_ transport.PeerInfo, it item) bool {
			return it.kind == itemMessage && it.msg.GetType() == pb.MsgHeartbeat
		}
		knowsLeader := func() bool { return f.replica().Status().LeaderNode == l.id }
		// f asks and ends before it hears the heartbeat that would confirm: the request stays with the leader.
		f.setFilter(heartbeats)
		c.eventually("f knows the leader", knowsLeader)
		f.replica().ReadIndex(time.Time{}, func(ident.Index, error) {})
		time.Sleep(20 * time.Millisecond)
		f = c.boot(f.id, f.store, f.kill(100))
		f.setFilter(heartbeats)
		c.eventually("connected", func() bool { return l.host.reachable(f.id) && f.host.reachable(l.id) })
		time.Sleep(5 * time.Millisecond)
		written := l.propose("acked=1", ProposeOptions{Deadline: time.Now().Add(2 * time.Second)})
		must(t, written.err)
		c.eventually("f knows the leader", knowsLeader)
		done := make(chan ident.Index, 1)
		f.replica().ReadIndex(time.Now().Add(5*time.Second), func(i ident.Index, err error) {
			if err != nil {
				t.Error(err)
			}
			done <- i
		})
		time.Sleep(20 * time.Millisecond)
		f.setFilter(nil)
		if i := <-done; i < written.index {
			t.Errorf("ReadIndex answered %d after index %d was acknowledged", i, written.index)
		}
	})
}
