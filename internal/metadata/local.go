package metadata

import (
	"cmp"
	"iter"
	"slices"

	"chronik/internal/ident"
)

// Local is a replica that this node's raftlog knows (its creation record).
type Local struct {
	Replica   ident.ReplicaID
	Group     ident.GroupID
	CreatedAt ident.Index
	// Unopened: it has its creation record and nothing else that runs: it could not be opened when it was made.
	Unopened bool
}

// Wanted is a replica that this node holds according to the Image.
type Wanted struct {
	Partition *Partition
	Replica   Replica
	// Founder: its log starts at (1,1) with Partition.Founders as the voters; else
	// the replica is created empty and joins.
	Founder bool
}

// LocalPlan says what a node must do so that its replicas are those the Image names.
type LocalPlan struct {
	// Create are replicas never made yet, and those unopened, in order of CreatedAt then id.
	// Make their creation durable in that order, or all at once: one made later tells that
	// those before it were made too (correctness rule 8).
	Create []Wanted
	// Lost were made here once and are gone: ask for their replacement (ReplaceReplica).
	Lost []Wanted
	// Retired are local replicas whose data may be deleted.
	Retired []Local
}

// CreateLocal compares the replicas that img names on (node, store) with those
// that exist there. createdUpTo is the highest CreatedAt of any creation that
// was ever durable on this store, removed ones included: a replica named before
// it and absent was lost, one named at or after it is still to be made.
//
// Call it with an Image that has caught up with the cluster at least once since
// the start: an old one can name replicas that were retired and removed here.
func CreateLocal(img *Image, node ident.NodeID, store ident.StoreID, locals iter.Seq[Local], createdUpTo ident.Index) LocalPlan {
	var plan LocalPlan
	have := map[ident.ReplicaID]Local{}
	for l := range locals {
		have[l.Replica] = l
		createdUpTo = max(createdUpTo, l.CreatedAt)
		if img.Retired(l.Group, l.Replica) {
			plan.Retired = append(plan.Retired, l)
		}
	}
	for p, r := range img.ReplicasOn(node, store) {
		w := Wanted{Partition: p, Replica: r, Founder: p.Founder(r.ID)}
		l, made := have[r.ID]
		switch {
		case r.Lost || made && !l.Unopened:
		case made:
			plan.Create = append(plan.Create, w)
		case r.CreatedAt < createdUpTo || r.CreatedAt == 0: // genesis makes its own replicas
			plan.Lost = append(plan.Lost, w)
		default:
			plan.Create = append(plan.Create, w)
		}
	}
	order := func(a, b Wanted) int {
		return cmp.Or(cmp.Compare(a.Replica.CreatedAt, b.Replica.CreatedAt), cmp.Compare(a.Replica.ID, b.Replica.ID))
	}
	slices.SortFunc(plan.Create, order)
	slices.SortFunc(plan.Lost, order)
	slices.SortFunc(plan.Retired, func(a, b Local) int { return cmp.Compare(a.Replica, b.Replica) })
	return plan
}
