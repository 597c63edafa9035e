package metadata

import (
	"slices"

	"chronik/internal/ident"
)

func (w *work) replaceReplica(index ident.Index, c *ReplaceReplica) (*ReplaceReplicaResult, *Error) {
	p := w.img.Partition(c.Group)
	if p == nil {
		return nil, ErrUnknownGroup.with("group %d", c.Group)
	}
	r := p.Replica(c.Replica)
	if r == nil {
		return nil, ErrUnknownReplica.with("%s has no replica %d", p.Name(), c.Replica)
	}
	node := c.Node
	if node == 0 {
		node = r.Node
	}
	b := w.img.Broker(node)
	if b == nil {
		return nil, ErrUnknownBroker.with("node %d", node)
	}
	if err := p.mayReplace(r, node, c.Move); err != nil {
		return nil, err
	}
	if next := p.successor(r.ID); next != nil && next.Node == node && next.Store == b.Store && (c.Move || r.Lost) {
		return &ReplaceReplicaResult{Replica: next.ID, Node: next.Node, Store: next.Store}, nil // asked again
	}
	p = p.clone()
	fresh := p.replace(r.ID, c.Move, Replica{ID: w.nextReplica(), Node: node, Store: b.Store, CreatedAt: index})
	p.Generation++
	w.setPartition(p)
	return &ReplaceReplicaResult{Replica: fresh.ID, Node: fresh.Node, Store: fresh.Store}, nil
}

// mayReplace tells why r's place may not go to node, or nil.
func (p *Partition) mayReplace(r *Replica, node ident.NodeID, move bool) *Error {
	if p.Group == ident.MetaGroup && (move || node != r.Node) {
		return ErrInvalidRequest.with("a replica of %s stays on its node", MetaTopic)
	}
	if move && (!r.Voter() || r.Lost || node == r.Node) {
		return ErrInvalidRequest.with("replica %d of %s on node %d cannot move to node %d", r.ID, p.Name(), r.Node, node)
	}
	for _, o := range p.Replicas {
		sameSeat := o.ID == r.ID || o.Joining && o.Replaces == r.ID || r.Joining && o.ID == r.Replaces
		if o.Node == node && !sameSeat {
			return ErrInvalidAssignment.with("node %d already has replica %d of %s", node, o.ID, p.Name())
		}
	}
	return nil
}

// replace gives the place of replica id of p, a clone, to fresh.
func (p *Partition) replace(id ident.ReplicaID, move bool, fresh Replica) Replica {
	r := p.Replica(id)
	switch {
	case r.Voter():
		r.Lost = r.Lost || !move
		fresh.Joining, fresh.Replaces = true, id
		if next := p.successor(id); next != nil {
			p.drop(next.ID)
		}
	case r.Joining:
		fresh.Joining, fresh.Replaces = true, r.Replaces
		p.drop(id)
	default:
		fresh.Learner = true
		p.drop(id)
	}
	p.Replicas = append(p.Replicas, fresh)
	return fresh
}

// reportMembership takes in what the group's leader has applied. Within one
// generation a group's configuration only moves towards what is wanted, so a late
// report of the same generation is still true.
func (w *work) reportMembership(c *ReportMembership) (*ReportResult, *Error) {
	old := w.img.Partition(c.Group)
	switch {
	case old == nil:
		return nil, ErrUnknownGroup.with("group %d", c.Group)
	case old.Generation != c.Generation:
		return nil, ErrStaleGeneration.with("%s is at generation %d, not %d", old.Name(), old.Generation, c.Generation)
	case len(c.Voters) == 0:
		return nil, ErrBadCommand.with("%s: a configuration without voters", old.Name())
	}
	p := old.clone()
	changed := p.settle(c.Voters, c.Learners)
	kept := slices.DeleteFunc(p.Removing, func(id ident.ReplicaID) bool {
		return !slices.Contains(c.Voters, id) && !slices.Contains(c.Learners, id)
	})
	changed = changed || len(kept) != len(old.Removing)
	p.Removing = kept
	if !changed {
		return &ReportResult{Generation: old.Generation}, nil
	}
	p.Generation++
	w.setPartition(p)
	if p.Group == ident.MetaGroup {
		w.balanceMeta()
	}
	return &ReportResult{Generation: w.img.Partition(c.Group).Generation}, nil
}

// joined tells whether r, a joining replica, has taken its place in a configuration.
func (r Replica) joined(voters []ident.ReplicaID) bool {
	return r.Joining && slices.Contains(voters, r.ID) &&
		(r.Replaces == 0 || !slices.Contains(voters, r.Replaces))
}

// settle makes plain replicas of those that have joined and lets go of those they
// replaced; the newcomer takes over the place in the order, so that the
// preferred leader's seat stays first. It tells whether it changed anything.
func (p *Partition) settle(voters, learners []ident.ReplicaID) bool {
	changed := false
	for _, r := range append([]Replica(nil), p.Replicas...) {
		if !r.joined(voters) {
			continue
		}
		changed = true
		replaced := r.Replaces
		r.Joining, r.Replaces = false, 0
		*p.Replica(r.ID) = r
		old := p.Replica(replaced)
		switch {
		case replaced == 0 || old == nil:
		case p.Group == ident.MetaGroup && !old.Lost:
			old.Learner = true // only its seat is gone, not its store
		default:
			p.Replicas = slices.DeleteFunc(p.Replicas, func(o Replica) bool { return o.ID == r.ID })
			*p.Replica(replaced) = r
			if slices.Contains(learners, replaced) {
				p.Removing = append(p.Removing, replaced)
			}
		}
	}
	return changed
}
