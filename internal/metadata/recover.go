package metadata

import (
	"cmp"
	"slices"

	"chronik/internal/ident"
)

// producerIDGap is how many producer ids a recovery passes over: this disk may not
// have heard of the last ones handed out, and their owners may still write.
const producerIDGap = 1 << 20

// Recovery makes a new cluster of an old one's metadata: one node is there, and
// nobody else's replica is.
type Recovery struct {
	ClusterID string
	// Index is the one that the new Image is the state after.
	Index ident.Index
	// Node and Store are the member that is there.
	Node  ident.NodeID
	Store ident.StoreID
	// NextReplica is at least the lowest replica id that the node's disk has never seen.
	NextReplica ident.ReplicaID
	// Generations are the highest that membership changes applied on this disk
	// carried, by group: the Image may be behind them.
	Generations map[ident.GroupID]uint64
}

// RecoveredIDs gives a fresh replica id on the recovering node to every group, the
// metadata group among them, in order of group. It returns the lowest id after them.
func (i *Image) RecoveredIDs(least ident.ReplicaID) (map[ident.GroupID]ident.ReplicaID, ident.ReplicaID) {
	next := max(i.NextReplica, least)
	ids := make(map[ident.GroupID]ident.ReplicaID, i.GroupCount())
	for p := range i.Groups() {
		ids[p.Group] = next
		next++
	}
	return ids, next
}

// Recovered returns the Image of the new cluster. Topics, configs and group ids stay. In
// each group the node's fresh replica (RecoveredIDs) is the only one that exists;
// the seats of other nodes stay listed as lost, so that each is filled when its node
// registers with another store. The metadata group has no such seats: a
// node that registers gets a learner there by itself.
func (i *Image) Recovered(r Recovery) *Image {
	w := newWork(i)
	ids, next := i.RecoveredIDs(r.NextReplica)
	w.img.ClusterID, w.img.Index, w.img.NextReplica = r.ClusterID, r.Index, next
	w.img.NextProducerID += producerIDGap
	if b := i.Broker(r.Node); b != nil {
		own := *b
		own.Store, own.RegisteredAt = r.Store, r.Index
		w.img.tree.brokers.m.Set(r.Node, &own)
	}
	for p := range i.Groups() {
		n := p.clone()
		own := Replica{ID: ids[p.Group], Node: r.Node, Store: r.Store, CreatedAt: r.Index}
		n.Replicas, n.Removing = p.recoveredSeats(own), nil
		n.Generation = max(p.Generation, r.Generations[p.Group]) + 1
		w.setPartition(n)
	}
	return w.done()
}

// recoveredSeats gives own the seat of its node, or, if it has none, the first one;
// the others are lost. Replicas that were joining are forgotten: whom they were to
// replace is lost as well, and is replaced where its node is.
func (p *Partition) recoveredSeats(own Replica) []Replica {
	if p.Group == ident.MetaGroup {
		return []Replica{own}
	}
	var seats []Replica
	for _, r := range p.Replicas {
		if r.Voter() {
			r.Lost = true
			seats = append(seats, r)
		}
	}
	mine := slices.IndexFunc(seats, func(r Replica) bool { return r.Node == own.Node })
	if joining := p.OnNode(own.Node); mine < 0 && joining != nil {
		mine = slices.IndexFunc(seats, func(r Replica) bool { return r.ID == joining.Replaces })
	}
	switch {
	case len(seats) == 0:
		return []Replica{own}
	case mine < 0:
		mine = 0
	}
	seats[mine] = own
	return seats
}

// Survivors lists the groups by how much people care: the metadata group, the
// coordinators, then topics by name and partition.
func (i *Image) Survivors() []*Partition {
	ps := make([]*Partition, 0, i.GroupCount())
	for p := range i.Groups() {
		ps = append(ps, p)
	}
	rank := func(p *Partition) int {
		switch {
		case p.Group == ident.MetaGroup:
			return 0
		case p.TopicID.IsZero():
			return 1
		default:
			return 2
		}
	}
	slices.SortFunc(ps, func(a, b *Partition) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	return ps
}
