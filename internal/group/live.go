package group

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"slices"
	"time"
)

// State is a group's state, by Kafka's name.
type State string

// States.
const (
	Empty               State = "Empty"
	PreparingRebalance  State = "PreparingRebalance"
	CompletingRebalance State = "CompletingRebalance"
	Stable              State = "Stable"
	Dead                State = "Dead"
)

// liveGroup is a group in its coordinator's memory.
//
//	Empty ──first join──▶ PreparingRebalance ──all joined, or time is up──▶ CompletingRebalance
//	  ▲                     ▲      ▲                                          │ leader's assignment
//	  └──nobody is left─────┘      └──join, leave, lost session── Stable ◀────┘ applied
type liveGroup struct {
	id           string
	state        State
	generation   int32
	protocolType string
	protocol     string
	leader       string
	members      map[string]*member
	statics      map[string]string    // instance id → member id
	pending      map[string]time.Time // member ids given out with MEMBER_ID_REQUIRED → until when

	joinSeq  uint64    // counts the deadlines set for joining: only the last counts
	initial  bool      // PreparingRebalance of a group that was empty: wait for more
	grew     bool      // a member came since the last deadline was set
	joinEnds time.Time // the latest moment the phase may end
	storing  bool      // the assignment of this generation is proposed, not applied
	order    uint64    // counts members, for the order they came in
}

// member is a member in its coordinator's memory.
type member struct {
	id           string
	instance     *string
	clientID     string
	clientHost   string
	session      time.Duration
	rebalance    time.Duration
	protocolType string
	protocols    []protocol // in the member's order of preference
	assignment   []byte
	order        uint64

	deadline time.Time
	timer    *timer
	join     func(joinResult) // waits for the rebalance; nil: does not
	sync     func(syncResult) // waits for its assignment; nil: does not
	synced   bool             // has asked for its assignment in this generation
}

type protocol struct {
	name     string
	metadata []byte
}

func newLiveGroup(id string) *liveGroup {
	return &liveGroup{
		id: id, state: Empty, members: map[string]*member{}, statics: map[string]string{}, pending: map[string]time.Time{},
	}
}

// restore makes a group live again from what was replicated.
func restore(meta *Group) *liveGroup {
	g := newLiveGroup(meta.ID)
	g.generation = meta.Generation
	g.protocolType, g.protocol, g.leader = meta.ProtocolType, meta.Protocol, meta.Leader
	for i := range meta.Members {
		s := &meta.Members[i]
		m := &member{
			id: s.ID, instance: s.InstanceID, clientID: s.ClientID, clientHost: s.ClientHost,
			session: time.Duration(s.SessionMs) * time.Millisecond, rebalance: time.Duration(s.RebalanceMs) * time.Millisecond,
			protocolType: meta.ProtocolType, protocols: []protocol{{meta.Protocol, s.Subscription}}, assignment: s.Assignment,
			synced: true,
		}
		g.add(m)
		g.state = Stable
	}
	return g
}

// snapshot is what of the group is replicated. Assignments, if not nil, stand for the members'.
func (c *Coordinator) snapshot(g *liveGroup, assignments map[string][]byte) *Group {
	c.version++
	meta := &Group{
		ID: g.id, Version: c.version, Generation: g.generation, ProtocolType: g.protocolType, Protocol: g.protocol, Leader: g.leader,
	}
	for _, m := range g.inOrder() {
		a := m.assignment
		if assignments != nil {
			a = assignments[m.id]
		}
		meta.Members = append(meta.Members, Member{
			ID: m.id, InstanceID: m.instance, ClientID: m.clientID, ClientHost: m.clientHost,
			SessionMs: int32(m.session.Milliseconds()), RebalanceMs: int32(m.rebalance.Milliseconds()),
			Subscription: m.metadata(g.protocol), Assignment: a,
		})
	}
	return meta
}

func (g *liveGroup) add(m *member) {
	g.order++
	m.order = g.order
	g.members[m.id] = m
	if m.instance != nil {
		g.statics[*m.instance] = m.id
	}
}

func (g *liveGroup) remove(m *member) {
	delete(g.members, m.id)
	if m.instance != nil && g.statics[*m.instance] == m.id {
		delete(g.statics, *m.instance)
	}
}

// inOrder returns the members in the order they came in.
func (g *liveGroup) inOrder() []*member {
	ms := make([]*member, 0, len(g.members))
	for _, m := range g.members {
		ms = append(ms, m)
	}
	slices.SortFunc(ms, func(a, b *member) int { return cmp.Compare(a.order, b.order) })
	return ms
}

// rebalanceTimeout is the longest any member asks for.
func (g *liveGroup) rebalanceTimeout() time.Duration {
	d := time.Duration(0)
	for _, m := range g.members {
		d = max(d, m.rebalance)
	}
	return d
}

// allJoined tells whether every member has joined and nobody is expected.
func (g *liveGroup) allJoined() bool {
	for _, m := range g.members {
		if m.join == nil {
			return false
		}
	}
	return len(g.pending) == 0
}

// supports tells whether a member with these protocols can be in the group,
// beside everyone but the member named except.
func (g *liveGroup) supports(protocolType string, protocols []protocol, except string) bool {
	if protocolType == "" || len(protocols) == 0 {
		return false
	}
	others := 0
	common := map[string]int{}
	for id, m := range g.members {
		if id == except {
			continue
		}
		others++
		for _, p := range m.protocols {
			common[p.name]++
		}
	}
	if others == 0 {
		return true
	}
	if protocolType != g.protocolType {
		return false
	}
	return slices.ContainsFunc(protocols, func(p protocol) bool { return common[p.name] == others })
}

// choose picks the protocol that most members prefer among those all support.
// Ties go to the lower name.
func (g *liveGroup) choose() string {
	common := map[string]int{}
	for _, m := range g.members {
		for _, p := range m.protocols {
			common[p.name]++
		}
	}
	votes := map[string]int{}
	for _, m := range g.members {
		for _, p := range m.protocols {
			if common[p.name] == len(g.members) {
				votes[p.name]++
				break
			}
		}
	}
	best := ""
	for name, n := range votes {
		if best == "" || n > votes[best] || n == votes[best] && name < best {
			best = name
		}
	}
	return best
}

// encodable tells whether what the client sent can be replicated.
func (m *member) encodable() bool {
	ok := len(m.protocolType) <= maxString && len(m.clientID) <= maxString && (m.instance == nil || len(*m.instance) <= maxString)
	for _, p := range m.protocols {
		ok = ok && len(p.name) <= maxString
	}
	return ok
}

// metadata is what the member says for a protocol.
func (m *member) metadata(name string) []byte {
	for _, p := range m.protocols {
		if p.name == name {
			return p.metadata
		}
	}
	return nil
}

// same tells whether the member joins with what it joined with before.
func (m *member) same(protocols []protocol) bool {
	return slices.EqualFunc(m.protocols, protocols, func(a, b protocol) bool {
		return a.name == b.name && string(a.metadata) == string(b.metadata)
	})
}

// maxIDPrefix bounds what of a client's id becomes part of its member id.
const maxIDPrefix = 255

// newMemberID is prefix-uuid, as Kafka makes them: prefix is the client's or the instance's id.
func newMemberID(prefix string) string {
	prefix = prefix[:min(len(prefix), maxIDPrefix)]
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return prefix + "-" + h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
