package metadata

import (
	"cmp"
	"slices"
	"time"

	"chronik/internal/ident"
)

// MetaVoters is how many of n members vote in the metadata group: the largest
// odd number up to 5 and n (correctness rule 23).
func MetaVoters(n int) int {
	n = min(5, n)
	if n > 0 && n%2 == 0 {
		n--
	}
	return n
}

// GenesisMembers returns the first members of the metadata group for the given
// nodes: replica ids from 1 in order of node id, the lowest nodes vote.
func GenesisMembers(stores map[ident.NodeID]ident.StoreID) []GenesisMember {
	ms := make([]GenesisMember, 0, len(stores))
	for node, store := range stores {
		ms = append(ms, GenesisMember{Node: node, Store: store})
	}
	slices.SortFunc(ms, func(a, b GenesisMember) int { return cmp.Compare(a.Node, b.Node) })
	for i := range ms {
		ms[i].Replica = ident.ReplicaID(i + 1)
		ms[i].Learner = i >= MetaVoters(len(ms))
	}
	return ms
}

// ensureMetaReplica returns b's replica of the metadata group on its store,
// adding a learner if there is none.
func (w *work) ensureMetaReplica(index ident.Index, b *Broker) Replica {
	for _, r := range w.img.Meta.Replicas {
		if r.Node == b.Node && r.Store == b.Store && !r.Lost {
			return r
		}
	}
	p := w.img.Meta.clone()
	r := Replica{ID: w.nextReplica(), Node: b.Node, Store: b.Store, Learner: true, CreatedAt: index}
	p.Replicas = append(p.Replicas, r)
	p.Generation++
	w.setPartition(p)
	return r
}

// balanceMeta brings the number of seats in the metadata group to what its
// members call for: learners of the lowest nodes are called up, voters of the
// highest nodes become learners. A seat is a voter, lost or not, or a replica that joins
// without replacing one.
func (w *work) balanceMeta() {
	p := w.img.Meta.clone()
	nodes := map[ident.NodeID]bool{}
	seats := 0
	for _, r := range p.Replicas {
		if !r.Lost {
			nodes[r.Node] = true
		}
		if r.Voter() || r.Joining && r.Replaces == 0 {
			seats++
		}
	}
	target := MetaVoters(len(nodes))
	order := make([]*Replica, 0, len(p.Replicas))
	for i := range p.Replicas {
		order = append(order, &p.Replicas[i])
	}
	slices.SortFunc(order, func(a, b *Replica) int { return cmp.Compare(a.Node, b.Node) })
	changed := false
	for _, r := range order {
		if seats < target && r.Learner {
			r.Learner, r.Joining = false, true
			seats, changed = seats+1, true
		}
	}
	for _, r := range slices.Backward(order) {
		seated := r.Joining && r.Replaces == 0 || r.Voter() && !r.Lost && p.successor(r.ID) == nil
		if seats > target && seated {
			r.Joining, r.Learner = false, true
			seats, changed = seats-1, true
		}
	}
	if changed {
		p.Generation++
		w.setPartition(p)
	}
}

// retireMeta takes node's replicas out of the metadata group. A voter's seat goes to the
// replica that already joins in its place, else to a learner of another node, else it goes.
func (w *work) retireMeta(node ident.NodeID) *Error {
	p := w.img.Meta.clone()
	others := 0
	for _, r := range p.Replicas {
		if r.Node != node && r.Voter() && !r.Lost {
			others++
		}
	}
	if others == 0 {
		return ErrBrokerInUse.with("node %d has the last voter of %s", node, MetaTopic)
	}
	for _, r := range append([]Replica(nil), p.Replicas...) {
		if r.Node != node || p.Replica(r.ID) == nil {
			continue
		}
		switch {
		case r.Learner:
			p.drop(r.ID)
		case r.Joining:
			if heir := p.idleLearner(node); r.Replaces != 0 && heir != nil {
				heir.Learner, heir.Joining, heir.Replaces = false, true, r.Replaces
			}
			p.drop(r.ID)
		default:
			w.retireMetaVoter(p, r.ID, node)
		}
	}
	p.Generation++
	w.setPartition(p)
	return nil
}

func (w *work) retireMetaVoter(p *Partition, id ident.ReplicaID, node ident.NodeID) {
	if next := p.successor(id); next != nil && next.Node != node {
		p.Replica(id).Lost = true
		return
	} else if next != nil {
		p.drop(next.ID)
	}
	if heir := p.idleLearner(node); heir != nil {
		heir.Learner, heir.Joining, heir.Replaces = false, true, id
		p.Replica(id).Lost = true // so that it leaves with the swap instead of staying a learner
		return
	}
	p.drop(id)
}

// idleLearner returns the learner of the lowest node other than except, or nil.
func (p *Partition) idleLearner(except ident.NodeID) *Replica {
	var best *Replica
	for i := range p.Replicas {
		r := &p.Replicas[i]
		if r.Learner && !r.Lost && r.Node != except && (best == nil || r.Node < best.Node) {
			best = r
		}
	}
	return best
}

func (w *work) swapMetaVoter(c *SwapMetaVoter) *Error {
	p := w.img.Meta.clone()
	if p.Generation != c.Generation {
		return ErrStaleGeneration.with("%s is at generation %d", MetaTopic, p.Generation)
	}
	dead, with := p.Replica(c.Dead), p.Replica(c.With)
	switch {
	case dead == nil || with == nil:
		return ErrUnknownReplica.with("%s: replica %d or %d", MetaTopic, c.Dead, c.With)
	case !with.Learner || dead.Learner || dead.Voter() && p.successor(c.Dead) != nil:
		return ErrInvalidRequest.with("%s: replica %d cannot take the seat of %d", MetaTopic, c.With, c.Dead)
	}
	with.Learner, with.Joining, with.Replaces = false, true, c.Dead
	if dead.Joining { // its own seat was only promised
		with.Replaces = dead.Replaces
		dead.Joining, dead.Replaces, dead.Learner = false, 0, true
	}
	p.Generation++
	w.setPartition(p)
	return nil
}

// MetaVoterDeadAfter is how long a metadata voter's node may be away before a
// learner takes its seat (correctness rule 23).
const MetaVoterDeadAfter = 5 * time.Minute

// PlanMetaSwap returns the swap that the metadata group's leader should submit
// now, or nil. away tells for how long a node has been out of reach, 0 if it is connected.
func PlanMetaSwap(img *Image, away func(ident.NodeID) time.Duration) *SwapMetaVoter {
	if img.Meta == nil {
		return nil
	}
	p := img.Meta
	for _, r := range p.Replicas {
		if r.Learner || r.Voter() && p.successor(r.ID) != nil {
			continue
		}
		if !r.Lost && away(r.Node) < MetaVoterDeadAfter {
			continue
		}
		for _, l := range p.Replicas {
			if l.Learner && !l.Lost && away(l.Node) == 0 {
				return &SwapMetaVoter{Generation: p.Generation, Dead: r.ID, With: l.ID}
			}
		}
	}
	return nil
}
