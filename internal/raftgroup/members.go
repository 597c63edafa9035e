package raftgroup

import (
	"encoding/binary"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/confchange"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"chronik/internal/ident"
)

// ConfChange is a change of a group's membership. With more than one step it
// goes through a joint configuration that the group leaves by itself.
type ConfChange struct {
	// Generation is the group's in the metadata Image. Apply refuses one below
	// the highest applied (correctness rule 22).
	Generation uint64
	// AddLearner makes a newcomer a learner; AddVoter makes a newcomer or a
	// learner a voter; Remove takes a replica out.
	AddLearner []Member
	AddVoter   []Member
	Remove     []ident.ReplicaID
	// Demote makes voters learners. A voter named in AddLearner instead means an
	// outdated order, which apply refuses.
	Demote []ident.ReplicaID
}

// toRaft encodes the change; its Context carries what raft does not: the
// generation and where the newcomers live.
func (c ConfChange) toRaft() *pb.ConfChangeV2 {
	cc := &pb.ConfChangeV2{Context: encodeConfContext(confContext{
		generation: c.Generation, added: slices.Concat(c.AddLearner, c.AddVoter), demoted: c.Demote,
	})}
	step := func(t pb.ConfChangeType, id ident.ReplicaID) {
		n := uint64(id)
		cc.Changes = append(cc.Changes, &pb.ConfChangeSingle{Type: t.Enum(), NodeId: &n})
	}
	for _, m := range c.AddVoter {
		step(pb.ConfChangeAddNode, m.Replica)
	}
	for _, m := range c.AddLearner {
		step(pb.ConfChangeAddLearnerNode, m.Replica)
	}
	for _, id := range c.Demote {
		step(pb.ConfChangeAddLearnerNode, id)
	}
	for _, id := range c.Remove {
		step(pb.ConfChangeRemoveNode, id)
	}
	return cc
}

// confContext is what a change's entry says beside raft's own encoding.
type confContext struct {
	generation uint64
	added      []Member
	demoted    []ident.ReplicaID
}

// encodeConfContext writes 1 (version), then uvarints: generation, number of
// added; for each: replica, node, 16 bytes of store id, 1 if learner; number of
// demoted, each replica.
func encodeConfContext(c confContext) []byte {
	b := binary.AppendUvarint([]byte{1}, c.generation)
	b = appendMembers(b, c.added)
	b = binary.AppendUvarint(b, uint64(len(c.demoted)))
	for _, id := range c.demoted {
		b = binary.AppendUvarint(b, uint64(id))
	}
	return b
}

func appendMembers(b []byte, members []Member) []byte {
	b = binary.AppendUvarint(b, uint64(len(members)))
	for _, m := range members {
		b = binary.AppendUvarint(b, uint64(m.Replica))
		b = binary.AppendUvarint(b, uint64(uint32(m.Node)))
		b = append(b, m.Store[:]...)
		b = append(b, boolByte(m.Learner))
	}
	return b
}

func boolByte(v bool) byte {
	if v {
		return 1
	}
	return 0
}

func (r *reader) members() []Member {
	n := r.uvarint()
	if n > uint64(len(r.b))/19 {
		r.bad = true
		return nil
	}
	out := make([]Member, n)
	for i := range out {
		m := &out[i]
		m.Replica = ident.ReplicaID(r.uvarint())
		m.Node = ident.NodeID(uint32(r.uvarint()))
		copy(m.Store[:], r.bytes(16))
		m.Learner = r.byte() == 1
	}
	return out
}

func decodeConfContext(b []byte) (c confContext, err error) {
	r := &reader{b: b}
	if r.byte() != 1 {
		r.bad = true
	}
	c.generation = r.uvarint()
	c.added = r.members()
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.bad = true
	}
	for i := uint64(0); i < n && !r.bad; i++ {
		c.demoted = append(c.demoted, ident.ReplicaID(r.uvarint()))
	}
	if r.bad || len(r.b) > 0 {
		return confContext{}, fmt.Errorf("%w: membership context of %d bytes", ErrCorrupt, len(b))
	}
	return c, nil
}

// membership is the configuration at one applied index. It is immutable: a
// change makes a new one. The apply side owns its evolution, the raft worker
// gets each new one in order.
type membership struct {
	conf    *pb.ConfState
	members []Member
	// generation is the highest one any applied change carried.
	generation uint64
}

// next applies a decoded change to the configuration: a pure function, so every
// replica refuses the same changes (correctness rule 22). A refused change has
// no effect and must not be handed to raft.
func (m *membership) next(cc *pb.ConfChangeV2, last ident.Index) (*membership, error) {
	ctx := confContext{generation: m.generation}
	if !cc.LeaveJoint() {
		var err error
		if ctx, err = decodeConfContext(cc.GetContext()); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrConfChangeRefused, err)
		}
		if ctx.generation < m.generation {
			return nil, fmt.Errorf("%w: %d, applied is %d", ErrStaleGeneration, ctx.generation, m.generation)
		}
		if err := m.refuseDemotion(cc, ctx.demoted); err != nil {
			return nil, err
		}
	}
	if !knownTransition(cc.GetTransition()) {
		return nil, fmt.Errorf("%w: transition %d", ErrConfChangeRefused, cc.GetTransition()) // raft would panic
	}
	cfg, err := changed(m.conf, cc, last)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfChangeRefused, err)
	}
	n := &membership{conf: cfg, generation: ctx.generation}
	n.members = keepMembers(slices.Concat(m.members, ctx.added), cfg)
	return n, nil
}

// refuseDemotion refuses to turn a voter back into a learner unless that is
// what was meant: else a repeated order to add a learner, of the generation under
// which it became a voter meanwhile, would take the vote away.
func (m *membership) refuseDemotion(cc *pb.ConfChangeV2, meant []ident.ReplicaID) error {
	for _, c := range cc.GetChanges() {
		id := c.GetNodeId()
		if c.GetType() == pb.ConfChangeAddLearnerNode && slices.Contains(m.conf.GetVoters(), id) && !slices.Contains(meant, ident.ReplicaID(id)) {
			return fmt.Errorf("%w: replica %d votes already", ErrStaleGeneration, id)
		}
	}
	return nil
}

func knownTransition(t pb.ConfChangeTransition) bool {
	return t == pb.ConfChangeTransitionAuto || t == pb.ConfChangeTransitionJointImplicit || t == pb.ConfChangeTransitionJointExplicit
}

// changed computes the configuration after cc with raft's own rules.
func changed(cs *pb.ConfState, cc *pb.ConfChangeV2, last ident.Index) (*pb.ConfState, error) {
	ch := confchange.Changer{Tracker: tracker.MakeProgressTracker(1, 0), LastIndex: uint64(last)}
	cfg, trk, err := confchange.Restore(ch, cs)
	if err != nil {
		return nil, err
	}
	ch.Tracker.Config, ch.Tracker.Progress = cfg, trk
	if cc.LeaveJoint() {
		cfg, trk, err = ch.LeaveJoint()
	} else if auto, joint := cc.EnterJoint(); joint {
		cfg, trk, err = ch.EnterJoint(auto, cc.GetChanges()...)
	} else {
		cfg, trk, err = ch.Simple(cc.GetChanges()...)
	}
	if err != nil {
		return nil, err
	}
	ch.Tracker.Config, ch.Tracker.Progress = cfg, trk
	return ch.Tracker.ConfState(), nil
}

// keepMembers returns the members that the configuration names, each once, the
// later binding of an id winning, with Learner set from the configuration.
func keepMembers(ms []Member, cs *pb.ConfState) []Member {
	var out []Member
	for _, m := range ms {
		id := uint64(m.Replica)
		voter := slices.Contains(cs.GetVoters(), id) || slices.Contains(cs.GetVotersOutgoing(), id)
		learner := slices.Contains(cs.GetLearners(), id) || slices.Contains(cs.GetLearnersNext(), id)
		if !voter && !learner {
			continue
		}
		m.Learner = !voter
		if i := slices.IndexFunc(out, func(o Member) bool { return o.Replica == m.Replica }); i >= 0 {
			out[i] = m
		} else {
			out = append(out, m)
		}
	}
	return out
}

// initialMembership is that of a new group, or of a joining replica (no members).
func initialMembership(ms []Member) *membership {
	cs := &pb.ConfState{}
	for _, m := range ms {
		if m.Learner {
			cs.Learners = append(cs.Learners, uint64(m.Replica))
		} else {
			cs.Voters = append(cs.Voters, uint64(m.Replica))
		}
	}
	return &membership{conf: cs, members: slices.Clone(ms)}
}

// membershipOf decodes that of a checkpoint.
func membershipOf(confState []byte, members []Member, generation uint64) (*membership, error) {
	cs := &pb.ConfState{}
	if err := proto.Unmarshal(confState, cs); err != nil {
		return nil, fmt.Errorf("%w: ConfState: %w", ErrCorrupt, err)
	}
	return &membership{conf: cs, members: keepMembers(members, cs), generation: generation}, nil
}

// confBytes is raft's encoding of the configuration.
func (m *membership) confBytes() []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.conf)
	if err != nil {
		panic(fmt.Sprintf("encode ConfState: %v", err)) // proto.Marshal of this message cannot fail
	}
	return b
}

// voters are the members that vote in the incoming configuration.
func (m *membership) voters() []Member {
	var out []Member
	for _, mb := range m.members {
		if slices.Contains(m.conf.GetVoters(), uint64(mb.Replica)) {
			out = append(out, mb)
		}
	}
	return out
}

func (m *membership) find(id ident.ReplicaID) (Member, bool) {
	for _, mb := range m.members {
		if mb.Replica == id {
			return mb, true
		}
	}
	return Member{}, false
}
