package metadata

import (
	"cmp"
	"slices"

	"chronik/internal/ident"
)

// placer chooses nodes for new replicas. It is a pure function of the Image and
// the choices made so far: replicas are balanced by count, preferred leaders
// (the first replicas) too, racks are spread before any is used twice, and
// ties go round so that the same nodes do not always share partitions.
type placer struct {
	nodes []placeNode // by id
	turn  int         // partitions placed so far; breaks ties
	racks int         // distinct racks; 0 = no rack is set anywhere
}

type placeNode struct {
	id       ident.NodeID
	store    ident.StoreID
	rack     string
	avoid    bool
	replicas int
	leaders  int
}

func newPlacer(img *Image, avoid []ident.NodeID) *placer {
	p := &placer{}
	at := map[ident.NodeID]int{}
	racks := map[string]bool{}
	anyRack := false
	for _, b := range img.tree.brokers.all() {
		if b.Draining {
			continue
		}
		at[b.Node] = len(p.nodes)
		p.nodes = append(p.nodes, placeNode{id: b.Node, store: b.Store, rack: b.Rack, avoid: slices.Contains(avoid, b.Node)})
		racks[b.Rack] = true
		anyRack = anyRack || b.Rack != ""
	}
	if anyRack {
		p.racks = len(racks)
	}
	for g := range img.Groups() {
		if g.Group == ident.MetaGroup {
			continue
		}
		p.turn++
		for i, r := range g.Replicas {
			if n, ok := at[r.Node]; ok && !r.Lost {
				p.nodes[n].replicas++
				if i == 0 {
					p.nodes[n].leaders++
				}
			}
		}
	}
	return p
}

// place chooses n distinct nodes, preferred leader first. n is at most len(p.nodes).
func (p *placer) place(n int) []*placeNode {
	chosen := make([]*placeNode, 0, n)
	used := map[string]bool{}
	for len(chosen) < n {
		var best *placeNode
		var bestRank [5]int
		for i := range p.nodes {
			c := &p.nodes[i]
			if slices.Contains(chosen, c) {
				continue
			}
			if rank := p.rank(c, i, len(chosen) == 0, used); best == nil || slices.Compare(rank[:], bestRank[:]) < 0 {
				best, bestRank = c, rank
			}
		}
		chosen = append(chosen, best)
		best.replicas++
		if len(chosen) == 1 {
			best.leaders++
		}
		used[best.rack] = true
		if len(used) == p.racks {
			clear(used) // every rack has one: begin another round
		}
	}
	p.turn++
	return chosen
}

// rank orders candidates, lowest first.
func (p *placer) rank(c *placeNode, i int, leader bool, used map[string]bool) [5]int {
	var rank [5]int
	if c.avoid {
		rank[0] = 1
	}
	if p.racks > 0 && used[c.rack] {
		rank[1] = 1
	}
	if leader {
		rank[2], rank[3] = c.leaders, c.replicas
	} else {
		rank[2], rank[3] = c.replicas, c.leaders
	}
	rank[4] = (i + len(p.nodes) - p.turn%len(p.nodes)) % len(p.nodes)
	return rank
}

// placeAll returns the nodes of count partitions, or why there are not enough.
func (p *placer) placeAll(count int, replication int, clamp bool) ([][]*placeNode, *Error) {
	if clamp {
		replication = min(replication, len(p.nodes))
	}
	if replication < 1 || replication > len(p.nodes) {
		return nil, ErrInvalidReplication.with("replication factor %d with %d brokers", replication, len(p.nodes))
	}
	all := make([][]*placeNode, count)
	for i := range all {
		all[i] = p.place(replication)
	}
	return all, nil
}

// explicit checks given assignments and returns their nodes.
func explicit(img *Image, assignments [][]ident.NodeID, replication int) ([][]*placeNode, *Error) {
	all := make([][]*placeNode, len(assignments))
	for i, nodes := range assignments {
		if len(nodes) == 0 || replication != 0 && len(nodes) != replication {
			return nil, ErrInvalidAssignment.with("assignment %d has %d replicas, not the others' number", i, len(nodes))
		}
		replication = len(nodes)
		for _, n := range nodes {
			b := img.Broker(n)
			if b == nil || slices.ContainsFunc(all[i], func(o *placeNode) bool { return o.id == n }) {
				return nil, ErrInvalidAssignment.with("assignment %d: node %d is unknown or named twice", i, n)
			}
			all[i] = append(all[i], &placeNode{id: n, store: b.Store})
		}
	}
	return all, nil
}

// newGroup names a fresh group with one founder on each node.
func (w *work) newGroup(index ident.Index, topic *Topic, name string, partition int32, nodes []*placeNode) *Partition {
	p := &Partition{
		Group: w.nextGroup(), Topic: name, Partition: partition, Generation: 1, CreatedAt: index,
		Replicas: make([]Replica, 0, len(nodes)), Founders: make([]Founder, 0, len(nodes)),
	}
	if topic != nil {
		p.TopicID = topic.ID
	}
	for _, n := range nodes {
		id := w.nextReplica()
		p.Replicas = append(p.Replicas, Replica{ID: id, Node: n.id, Store: n.store, CreatedAt: index})
		p.Founders = append(p.Founders, Founder{id, n.id, n.store})
	}
	w.setPartition(p)
	return p
}

func (w *work) createCoordinators(index ident.Index, c *CreateCoordinators) (*CreateCoordinatorsResult, *Error) {
	if len(w.img.Coordinators) == 0 {
		all, err := newPlacer(w.img, c.Avoid).placeAll(int(w.img.CoordinatorCount), int(c.ReplicationFactor), true)
		if err != nil {
			return nil, err
		}
		for i, nodes := range all {
			w.newGroup(index, nil, OffsetsTopic, int32(i), nodes) // at most maxCoordinators
		}
	}
	res := &CreateCoordinatorsResult{}
	for _, p := range w.img.Coordinators {
		res.Groups = append(res.Groups, p.Group)
	}
	slices.SortFunc(res.Groups, func(a, b ident.GroupID) int { return cmp.Compare(a, b) })
	return res, nil
}
