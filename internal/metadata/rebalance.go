package metadata

import (
	"cmp"
	"slices"

	"chronik/internal/ident"
)

// Move takes a replica of a group from one node to another.
type Move struct {
	Partition *Partition
	Replica   ident.ReplicaID // the one that goes
	From, To  ident.NodeID
}

// MovesUnderWay lists the moves that the Image shows begun and not ended, in order of group.
func MovesUnderWay(img *Image) []Move {
	var out []Move
	for p := range img.Groups() {
		for _, r := range p.Replicas {
			if !r.Joining || r.Replaces == 0 {
				continue
			}
			if old := p.Replica(r.Replaces); old != nil && old.Node != r.Node {
				out = append(out, Move{Partition: p, Replica: old.ID, From: old.Node, To: r.Node})
			}
		}
	}
	return out
}

// PlanMoves lists the moves that make the number of replicas even over the nodes
// that are alive, once those under way have ended: afterwards no two of them
// differ by more than one. Without racks no fewer moves do that. Draining nodes
// get none; nodes that are not alive neither give nor get. No move brings two replicas of
// a partition to one node, or makes its racks less even: what only such a move could
// even out stays as it is. Of the moves that would do, those are taken that spread
// topics and preferred leaders best. The metadata group is left alone.
//
// A pure function: whoever asks, and however often, the moves are the same; and once some
// of them have been begun, as many are planned as are left.
func PlanMoves(img *Image, alive func(ident.NodeID) bool) []Move {
	b := newBalancer(img, alive)
	var out []Move
	for {
		m, ok := b.next()
		if !ok {
			return out
		}
		out = append(out, m)
	}
}

// MayBegin picks the moves that may be begun now: one a group, of groups
// in which nothing else changes, and so many that atOnce are under way in all. Those to nodes that
// are not alive do not count: they cost nothing, and those of a node that is gone for good would never end.
func MayBegin(img *Image, moves []Move, alive func(ident.NodeID) bool, atOnce int) []Move {
	room := atOnce
	for _, m := range MovesUnderWay(img) {
		if alive(m.To) {
			room--
		}
	}
	begun := map[ident.GroupID]bool{}
	var out []Move
	for _, m := range moves {
		if len(out) >= room {
			break
		}
		p := img.Partition(m.Partition.Group)
		if p == nil || begun[p.Group] || !p.settled() || p.Replica(m.Replica) == nil {
			continue
		}
		begun[p.Group] = true
		out = append(out, m)
	}
	return out
}

// settled tells whether the group's membership is what it is to be.
func (p *Partition) settled() bool {
	return len(p.Removing) == 0 && !slices.ContainsFunc(p.Replicas, func(r Replica) bool { return r.Joining || r.Lost })
}

// balancer holds the seats of all groups, and moves them one by one.
type balancer struct {
	nodes []balanceNode
	parts []balancePart
	racks bool // some rack is set
}

type balanceNode struct {
	id     ident.NodeID
	rack   string
	alive  bool
	gets   bool  // may be given replicas
	seats  int   // of all groups, movable or not
	firsts int   // seats that are a group's first, its preferred leader's
	topics []int // seats by topic
	held   []int // the groups of its seats that may move, by place in parts
}

type balancePart struct {
	p     *Partition
	topic int // by number
	seats []seat
}

// seat is a place in a group: the replica that has it, or that is joining to take it.
type seat struct {
	node    int // by place in nodes; -1: a node that is not registered
	replica ident.ReplicaID
}

func newBalancer(img *Image, alive func(ident.NodeID) bool) *balancer {
	b := &balancer{}
	at := map[ident.NodeID]int{}
	for _, br := range img.Brokers() {
		at[br.Node] = len(b.nodes)
		up := alive(br.Node)
		b.nodes = append(b.nodes, balanceNode{id: br.Node, rack: br.Rack, alive: up, gets: up && !br.Draining})
		b.racks = b.racks || br.Rack != ""
	}
	topics := map[string]int{}
	for p := range img.Groups() {
		if p.Group == ident.MetaGroup {
			continue
		}
		t, ok := topics[p.Topic]
		if !ok {
			t = len(topics)
			topics[p.Topic] = t
		}
		b.parts = append(b.parts, balancePart{p: p, topic: t, seats: p.seats(at)})
	}
	for i := range b.nodes {
		b.nodes[i].topics = make([]int, len(topics))
	}
	for i := range b.parts {
		movable := b.movable(i)
		for k, s := range b.parts[i].seats {
			if s.node < 0 {
				continue
			}
			b.count(i, k, 1)
			if movable {
				b.nodes[s.node].held = append(b.nodes[s.node].held, i)
			}
		}
	}
	return b
}

// seats lists the group's seats as they will be when what is under way has ended, the first one first.
func (p *Partition) seats(at map[ident.NodeID]int) []seat {
	var out []seat
	for _, r := range p.Replicas {
		if r.Learner || r.Joining && r.Replaces != 0 {
			continue
		}
		if next := p.successor(r.ID); next != nil {
			r = *next
		}
		node, ok := at[r.Node]
		if !ok {
			node = -1
		}
		out = append(out, seat{node: node, replica: r.ID})
	}
	return out
}

// movable tells whether the group can change its membership: a majority of its replicas is there.
func (b *balancer) movable(part int) bool {
	voters, there := 0, 0
	for _, r := range b.parts[part].p.Replicas {
		if !r.Voter() {
			continue
		}
		voters++
		up := slices.ContainsFunc(b.nodes, func(n balanceNode) bool { return n.id == r.Node && n.alive })
		if up && !r.Lost {
			there++
		}
	}
	return there >= voters/2+1
}

// count adds seat k of a group to its node's numbers, or takes it away.
func (b *balancer) count(part, k, by int) {
	n := &b.nodes[b.parts[part].seats[k].node]
	n.seats += by
	n.topics[b.parts[part].topic] += by
	if k == 0 {
		n.firsts += by
	}
}

// next makes the next move: from the node with the most seats to the one with the
// fewest, or the nearest to that for which there is a replica that may move.
func (b *balancer) next() (Move, bool) {
	var from, to []int
	for i, n := range b.nodes {
		if n.alive {
			from = append(from, i)
		}
		if n.gets {
			to = append(to, i)
		}
	}
	slices.SortStableFunc(from, func(x, y int) int { return cmp.Compare(b.nodes[y].seats, b.nodes[x].seats) })
	slices.SortStableFunc(to, func(x, y int) int { return cmp.Compare(b.nodes[x].seats, b.nodes[y].seats) })
	for _, f := range from {
		for _, t := range to {
			if b.nodes[f].seats-b.nodes[t].seats < 2 {
				break // and so it is with the rest of to
			}
			if part, k, ok := b.choose(f, t); ok {
				return b.move(part, k, t), true
			}
		}
	}
	return Move{}, false
}

// choose finds the seat on node f whose move to node t spreads topics and preferred leaders best.
func (b *balancer) choose(f, t int) (part, k int, ok bool) {
	from, to := &b.nodes[f], &b.nodes[t]
	best := 0
	for _, i := range from.held {
		p := &b.parts[i]
		at := b.seatOn(p, f)
		gain := from.topics[p.topic] - to.topics[p.topic]
		if at == 0 {
			gain += from.firsts - to.firsts - 1
		}
		if ok && gain <= best || b.seatOn(p, t) >= 0 || !b.rackAllows(p, f, t) {
			continue
		}
		part, k, best, ok = i, at, gain, true
	}
	return part, k, ok
}

// seatOn returns which of the group's seats is on node n, or -1.
func (b *balancer) seatOn(p *balancePart, n int) int {
	return slices.IndexFunc(p.seats, func(s seat) bool { return s.node == n })
}

// rackAllows tells whether the group's racks are as even after a move from f to t as before.
func (b *balancer) rackAllows(p *balancePart, f, t int) bool {
	from, to := b.nodes[f].rack, b.nodes[t].rack
	if !b.racks || from == to {
		return true
	}
	there, here := 0, 0
	for _, s := range p.seats {
		switch {
		case s.node < 0:
		case b.nodes[s.node].rack == to:
			there++
		case b.nodes[s.node].rack == from:
			here++
		}
	}
	return there < here
}

func (b *balancer) move(part, k, t int) Move {
	p := &b.parts[part]
	s := &p.seats[k]
	from := &b.nodes[s.node]
	m := Move{Partition: p.p, Replica: s.replica, From: from.id, To: b.nodes[t].id}
	b.count(part, k, -1)
	from.held = slices.DeleteFunc(from.held, func(i int) bool { return i == part })
	s.node = t
	b.count(part, k, 1)
	b.nodes[t].held = append(b.nodes[t].held, part)
	return m
}
