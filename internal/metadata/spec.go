package metadata

import (
	"chronik/internal/ident"
	"chronik/internal/raftgroup"
)

// Kinds of groups: Spec.Kind says which state machine a replica has. They are part of
// the raftlog's creation records.
const (
	KindMeta byte = iota + 1
	KindTopic
	KindOffsets
)

// Spec describes a replica of p that is no founder.
func (p *Partition) Spec(r Replica) raftgroup.Spec {
	spec := raftgroup.Spec{
		Group: p.Group, Replica: r.ID, Name: p.Name(), Key: p.Key(), Topic: p.Topic, Partition: p.Partition,
		CreatedAt: r.CreatedAt, Kind: KindTopic,
	}
	switch {
	case p.Group == ident.MetaGroup:
		spec.Kind, spec.Priority = KindMeta, true
	case p.TopicID.IsZero():
		spec.Kind = KindOffsets
	}
	return spec
}

// Spec describes the wanted replica.
func (w Wanted) Spec() raftgroup.Spec {
	spec := w.Partition.Spec(w.Replica)
	if w.Founder {
		for _, f := range w.Partition.Founders {
			spec.Members = append(spec.Members, raftgroup.Member{Replica: f.Replica, Node: f.Node, Store: f.Store})
		}
	}
	return spec
}
