package broker

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"chronik/internal/ident"
	"chronik/internal/metadata"
	"chronik/internal/raftgroup"
)

// methodReached asks a peer which nodes it is connected with: their ids, 4 bytes each, big-endian.
const methodReached = "peers.reached"

const (
	// reachAfter is how long a node is out of reach before leaderships go to who reaches it.
	reachAfter = 2 * time.Second
	// reachEvery is how often a leader looks, and how long a peer has to answer.
	reachEvery = time.Second
	// maxReached bounds an answer.
	maxReached = 1 << 10
)

// nodeSet is a set of nodes.
type nodeSet map[ident.NodeID]bool

// watchReach hands over the leaderships of groups with a member on a node that this one does not reach, while a
// follower's node reaches more of the members. Raft alone would leave that member without its leader, and so its node
// without the metadata, for as long as the network is broken there: the majority hears its leader and wants no other.
// It does not go to and fro: each time a leadership moves, its leader reaches more of the group.
func (s *session) watchReach(ctx context.Context) {
	tick := time.NewTicker(reachEvery)
	defer tick.Stop()
	tried := map[ident.GroupID]handOvers{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		led := s.ledWithAway()
		if len(led) == 0 {
			clear(tried)
			continue
		}
		mine, theirs := setOf(s.reached()), s.reachedByPeers(ctx)
		for _, r := range led {
			st := r.Status()
			to := betterPlaced(st, mine, theirs)
			if to == nil {
				continue
			}
			h := tried[st.Group]
			if !h.due(st.Term, time.Now()) {
				continue
			}
			tried[st.Group] = h.next(st.Term, time.Now())
			s.log.Info("handing over leadership: a follower reaches nodes that this one does not",
				"group", st.Name, "term", uint64(st.Term), "replica", uint64(to.Replica), "peer", int32(to.Node))
			r.TransferLeadership(to.Replica)
		}
	}
}

// handOvers are the attempts at handing over one group's leadership in one term. Each costs the group up
// to an election timeout in which it takes no records, so those that fail become rare.
type handOvers struct {
	term  ident.Term
	at    time.Time // of the last
	pause time.Duration
}

const (
	handOverPause    = 4 * time.Second
	handOverPauseMax = time.Minute
)

// due tells whether it is time for an attempt.
func (h handOvers) due(term ident.Term, now time.Time) bool {
	return h.term != term || now.Sub(h.at) >= h.pause
}

// next is h after an attempt.
func (h handOvers) next(term ident.Term, now time.Time) handOvers {
	if h.term != term {
		return handOvers{term, now, handOverPause}
	}
	return handOvers{term, now, min(2*h.pause, handOverPauseMax)}
}

// ledWithAway lists the replicas that lead a group with a member whose node has been out of reach for a while.
func (s *session) ledWithAway() []*raftgroup.Replica {
	var led []*raftgroup.Replica
	for _, r := range s.host.Replicas() {
		if !r.IsLeader() {
			continue
		}
		for _, m := range r.Status().Members {
			if m.Node != s.node && s.away.since(m.Node) >= reachAfter {
				led = append(led, r)
				break
			}
		}
	}
	return led
}

// reached lists this node, and those that it is connected with.
func (s *session) reached() []ident.NodeID {
	nodes := []ident.NodeID{s.node}
	for _, p := range s.tr.Peers() {
		if p.Up {
			nodes = append(nodes, p.Node)
		}
	}
	return nodes
}

func setOf(nodes []ident.NodeID) nodeSet {
	set := make(nodeSet, len(nodes))
	for _, n := range nodes {
		set[n] = true
	}
	return set
}

// reachedByPeers asks the connected peers for the same. One that does not answer in time, or does not know the question, is left out.
func (s *session) reachedByPeers(ctx context.Context) map[ident.NodeID]nodeSet {
	ctx, cancel := context.WithTimeout(ctx, reachEvery)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	all := map[ident.NodeID]nodeSet{}
	for _, node := range s.reached()[1:] {
		wg.Go(func() {
			b, err := s.tr.Call(ctx, node, methodReached, nil)
			if err != nil {
				return
			}
			nodes, err := decodeReached(b)
			if err != nil {
				s.log.Warn("peer answered wrongly", "peer", int32(node), "err", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			all[node] = setOf(nodes)
		})
	}
	wg.Wait()
	return all
}

// serveReached answers methodReached.
func (s *session) serveReached() []byte {
	var b []byte
	for _, node := range s.reached() {
		b = binary.BigEndian.AppendUint32(b, uint32(node))
	}
	return b
}

func decodeReached(b []byte) ([]ident.NodeID, error) {
	if len(b)%4 != 0 || len(b) > 4*maxReached {
		return nil, fmt.Errorf("%s: answer of %d bytes", methodReached, len(b))
	}
	nodes := make([]ident.NodeID, 0, len(b)/4)
	for at := 0; at < len(b); at += 4 {
		node := ident.NodeID(binary.BigEndian.Uint32(b[at:]))
		if node <= 0 {
			return nil, fmt.Errorf("%s: node id %d at byte %d", methodReached, node, at)
		}
		nodes = append(nodes, node)
	}
	return nodes, nil
}

// betterPlaced is the voter that should lead instead: it follows closely, and its node reaches more of the group's members
// than the leader's does. nil is nobody. Of several the one that reaches most.
func betterPlaced(st raftgroup.Status, mine nodeSet, theirs map[ident.NodeID]nodeSet) *raftgroup.Follower {
	count := func(set nodeSet) (n int) {
		for _, m := range st.Members {
			if set[m.Node] {
				n++
			}
		}
		return n
	}
	var best *raftgroup.Follower
	most := count(mine)
	for i := range st.Followers {
		f := &st.Followers[i]
		if f.Learner || !f.Alive || f.Halted || f.State != "StateReplicate" || f.Lag > metadata.CatchUpEntries {
			continue
		}
		if n := count(theirs[f.Node]); n > most {
			best, most = f, n
		}
	}
	return best
}
