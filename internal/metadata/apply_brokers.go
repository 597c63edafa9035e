package metadata

import (
	"slices"

	"chronik/internal/ident"
)

// StoreOf returns the store that node is known by: its registration's, or,
// before its first one, its metadata replica's. Zero for an unknown node.
func (i *Image) StoreOf(node ident.NodeID) ident.StoreID {
	if b := i.Broker(node); b != nil {
		return b.Store
	}
	if i.Meta != nil {
		if r := i.Meta.OnNode(node); r != nil {
			return r.Store
		}
	}
	return ident.StoreID{}
}

func (w *work) genesis(c *Genesis) (*GenesisResult, *Error) {
	switch {
	case w.img.ClusterID != "":
		return nil, ErrClusterExists.with("cluster %s", w.img.ClusterID)
	case c.ClusterID == "" || len(c.Members) == 0 || c.Coordinators < 1 || c.Coordinators > maxCoordinators:
		return nil, ErrBadCommand.with("genesis: cluster id, members and 1 to %d coordinators are needed", maxCoordinators)
	}
	p := &Partition{Group: ident.MetaGroup, Topic: MetaTopic, Generation: 1}
	next := ident.ReplicaID(1)
	for _, m := range c.Members {
		if m.Node <= 0 || m.Replica == 0 || m.Store.IsZero() || p.Replica(m.Replica) != nil || p.OnNode(m.Node) != nil {
			return nil, ErrBadCommand.with("genesis: member on node %d: ids must be given and distinct", m.Node)
		}
		p.Replicas = append(p.Replicas, Replica{ID: m.Replica, Node: m.Node, Store: m.Store, Learner: m.Learner})
		if !m.Learner {
			p.Founders = append(p.Founders, Founder{m.Replica, m.Node, m.Store})
		}
		next = max(next, m.Replica+1)
	}
	if len(p.Founders) == 0 {
		return nil, ErrBadCommand.with("genesis: no voter")
	}
	w.img.ClusterID = c.ClusterID
	w.img.CoordinatorCount = c.Coordinators
	w.img.Level = c.Level
	w.img.NextReplica = next
	w.img.NextGroup = ident.MetaGroup + 1
	w.setPartition(p)
	return &GenesisResult{ClusterID: c.ClusterID}, nil
}

func (w *work) register(index ident.Index, c *RegisterBroker) (*RegisterResult, *Error) {
	switch {
	case c.ClusterID != "" && c.ClusterID != w.img.ClusterID:
		return nil, ErrClusterMismatch.with("node %d is of cluster %s, this is %s", c.Node, c.ClusterID, w.img.ClusterID)
	case c.Node <= 0 || c.Store.IsZero():
		return nil, ErrBadCommand.with("register: node and store are needed")
	case len(c.KafkaHost) > maxAddr || len(c.RaftAddr) > maxAddr || len(c.AdminAddr) > maxAddr || len(c.Rack) > maxAddr:
		return nil, ErrBadCommand.with("register: an address or rack has more than %d bytes", maxAddr)
	}
	known := w.img.StoreOf(c.Node)
	if known != c.Store && known != c.Previous {
		return nil, ErrStaleRegistration.with("node %d is store %s now", c.Node, known)
	}
	for _, b := range w.img.tree.brokers.all() {
		if b.Store == c.Store && b.Node != c.Node {
			return nil, ErrStaleRegistration.with("store %s belongs to node %d", c.Store, b.Node)
		}
	}
	b := &Broker{
		Node: c.Node, Store: c.Store, KafkaHost: c.KafkaHost, KafkaPort: c.KafkaPort,
		RaftAddr: c.RaftAddr, AdminAddr: c.AdminAddr, Rack: c.Rack, RegisteredAt: index,
	}
	if old := w.img.Broker(c.Node); old != nil {
		b.Draining = old.Draining
	}
	w.img.tree.brokers.m.Set(b.Node, b)
	lost := 0
	if known != c.Store {
		lost = w.loseStores(index, c.Node, c.Store)
	}
	r := w.ensureMetaReplica(index, b)
	w.balanceMeta()
	return &RegisterResult{
		ClusterID: w.img.ClusterID, MetaReplica: r.ID, CreatedAt: r.CreatedAt,
		Founder: r.CreatedAt == 0, Lost: lost, Members: w.img.MetaMembers(),
	}, nil
}

const (
	maxAddr         = 1024
	maxCoordinators = 10_000
)

// MetaMembers lists the metadata group's replicas with their nodes' addresses.
func (i *Image) MetaMembers() []MetaMember {
	if i.Meta == nil {
		return nil
	}
	ms := make([]MetaMember, 0, len(i.Meta.Replicas))
	for _, r := range i.Meta.Replicas {
		m := MetaMember{Replica: r.ID, Node: r.Node, Store: r.Store, Learner: !r.Voter()}
		if b := i.Broker(r.Node); b != nil {
			m.RaftAddr = b.RaftAddr
		}
		ms = append(ms, m)
	}
	return ms
}

// loseStores declares lost what node held on any store but keep, and names a
// fresh replica on keep for each. It returns how many were lost.
func (w *work) loseStores(index ident.Index, node ident.NodeID, keep ident.StoreID) int {
	var hit []ident.GroupID
	for p, r := range w.img.PartitionsOn(node) {
		if r.Store != keep && (len(hit) == 0 || hit[len(hit)-1] != p.Group) {
			hit = append(hit, p.Group)
		}
	}
	slices.Sort(hit)
	lost := 0
	for _, g := range slices.Compact(hit) {
		p := w.img.Partition(g).clone()
		changed := 0
		for _, r := range append([]Replica(nil), p.Replicas...) {
			if r.Node == node && r.Store != keep && w.lose(p, index, r.ID, node, keep) {
				changed++
			}
		}
		if changed > 0 {
			lost += changed
			p.Generation++
			w.setPartition(p)
		}
	}
	return lost
}

// lose gives up replica id of p, which the caller has cloned, and names a fresh
// one at (node, store) unless its place is already being taken. It tells whether it changed anything.
//
//	voter           → marked Lost, still counted; a fresh replica joins in its place
//	lost voter      → the same, if no replica joins in its place: Image.Recovered leaves
//	                  such, commands never do (the metadata group has none to be filled)
//	joining replica → dropped and to be removed; a fresh one joins in the same place
//	learner         → dropped and to be removed; a fresh learner
func (w *work) lose(p *Partition, index ident.Index, id ident.ReplicaID, node ident.NodeID, store ident.StoreID) bool {
	r := p.Replica(id)
	fresh := Replica{Node: node, Store: store, CreatedAt: index}
	switch {
	case r.Voter():
		known := r.Lost
		r.Lost = true
		if known && p.Group == ident.MetaGroup || p.successor(id) != nil {
			// A move or swap is under way: that replica takes the place. If it is lost too, it is met by itself.
			return !known
		}
		fresh.Joining, fresh.Replaces = true, id
	case r.Joining:
		fresh.Joining, fresh.Replaces = true, r.Replaces
		p.drop(id)
	default:
		fresh.Learner = true
		p.drop(id)
	}
	fresh.ID = w.nextReplica()
	p.Replicas = append(p.Replicas, fresh)
	return true
}

// successor returns the replica that joins in the place of id, or nil.
func (p *Partition) successor(id ident.ReplicaID) *Replica {
	for i := range p.Replicas {
		if p.Replicas[i].Joining && p.Replicas[i].Replaces == id {
			return &p.Replicas[i]
		}
	}
	return nil
}

// drop stops wanting replica id and leaves it to the group's leader to remove.
func (p *Partition) drop(id ident.ReplicaID) {
	p.Replicas = slices.DeleteFunc(p.Replicas, func(r Replica) bool { return r.ID == id })
	p.Removing = append(p.Removing, id)
}

func (w *work) retire(c *RetireBroker) *Error {
	if w.img.Broker(c.Node) == nil {
		return ErrUnknownBroker.with("node %d", c.Node)
	}
	for p := range w.img.PartitionsOn(c.Node) {
		if p.Group != ident.MetaGroup {
			return ErrBrokerInUse.with("node %d still holds %s", c.Node, p.Name())
		}
	}
	if err := w.retireMeta(c.Node); err != nil {
		return err
	}
	w.img.tree.brokers.m.Delete(c.Node)
	w.img.tree.configs.m.Delete(c.Node)
	w.balanceMeta()
	return nil
}

func (w *work) drain(c *DrainBroker) *Error {
	old := w.img.Broker(c.Node)
	if old == nil {
		return ErrUnknownBroker.with("node %d", c.Node)
	}
	b := *old
	b.Draining = c.Draining
	w.img.tree.brokers.m.Set(b.Node, &b)
	return nil
}

// producerIDBlock is how many producer ids a node gets at a time.
const producerIDBlock = 1000

func (w *work) allocateProducerIDs(c *AllocateProducerIDs) (*ProducerIDBlock, *Error) {
	if w.img.Broker(c.Node) == nil {
		return nil, ErrUnknownBroker.with("node %d", c.Node)
	}
	first := w.img.NextProducerID
	if first > 1<<63-1-producerIDBlock {
		return nil, ErrProducerIDs
	}
	w.img.NextProducerID += producerIDBlock
	return &ProducerIDBlock{First: first, Count: producerIDBlock}, nil
}
