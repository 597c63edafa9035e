package group

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// maxRebalance bounds the rebalance timeout that a member gets: clients send the longest that they
// work between two polls, which may be hours, and old ones 24 days.
const maxRebalance = 24 * time.Hour

// joinResult is an answer to JoinGroup before it is put in a version's form.
type joinResult struct {
	code         int16
	generation   int32
	protocolType string
	protocol     string
	leader       string
	member       string
	skip         bool
	members      []kmsg.JoinGroupResponseMember
}

func joinError(member string, code int16) joinResult {
	return joinResult{code: code, generation: -1, member: member}
}

// Join answers a JoinGroup request of the classic protocol, at the end of the
// rebalance it takes part in. Group and member ids, protocols and their order
// are the client's; the metadata bytes are passed on untouched. Nothing of req is
// kept once Join returns.
func (c *Coordinator) Join(_ context.Context, req *kmsg.JoinGroupRequest, clientID, clientHost string, reply func(*kmsg.JoinGroupResponse)) {
	version := req.Version
	answer := func(res joinResult) {
		resp := kmsg.NewPtrJoinGroupResponse()
		resp.Version = version
		resp.ErrorCode, resp.Generation, resp.LeaderID, resp.MemberID = res.code, res.generation, res.leader, res.member
		resp.SkipAssignment, resp.Members = res.skip, res.members
		if res.code == 0 || version < 7 {
			resp.Protocol = &res.protocol
		}
		if res.code == 0 {
			resp.ProtocolType = &res.protocolType
		}
		reply(resp)
	}
	c.locked(func() {
		if code := c.join(req, clientID, clientHost, answer); code != 0 {
			c.later(func() { answer(joinError(req.MemberID, code)) })
		}
	})
}

// join handles a request; it returns a code to refuse it with, or has taken care of the answer.
func (c *Coordinator) join(req *kmsg.JoinGroupRequest, clientID, clientHost string, answer func(joinResult)) int16 {
	session := time.Duration(req.SessionTimeoutMillis) * time.Millisecond
	switch code := c.refuse(); {
	case req.Group == "" || len(req.Group) > maxString:
		return errInvalidGroup
	case code != 0:
		return code
	case session < c.opt.MinSession || session > c.opt.MaxSession:
		return errInvalidSession
	}
	n := &member{
		id: req.MemberID, instance: req.InstanceID, clientID: clientID, clientHost: clientHost, session: session,
		rebalance: session, protocolType: req.ProtocolType, protocols: copyProtocols(req.Protocols), join: answer,
	}
	if req.Version >= 1 && req.RebalanceTimeoutMillis >= 0 {
		// Old clients ask for 24 days and are not refused as for their session.
		n.rebalance = min(time.Duration(req.RebalanceTimeoutMillis)*time.Millisecond, maxRebalance)
	}
	g := c.groups[req.Group]
	if g == nil {
		if req.MemberID != "" {
			return errUnknownMember
		}
		g = c.wake(req.Group)
	}
	self := n.id
	if self == "" && n.instance != nil {
		self = g.statics[*n.instance] // it comes in the place of its former self
	}
	if !n.encodable() || !g.supports(n.protocolType, n.protocols, self) {
		c.forgetIfIdle(g)
		return errInconsistentProtocol
	}
	if req.MemberID == "" {
		return c.joinNew(g, n, req)
	}
	return c.rejoin(g, n, req)
}

// copyProtocols copies what a request says: its bytes belong to the connection.
func copyProtocols(ps []kmsg.JoinGroupRequestProtocol) []protocol {
	out := make([]protocol, len(ps))
	for i, p := range ps {
		out[i] = protocol{p.Name, append([]byte(nil), p.Metadata...)}
	}
	return out
}

// wake makes a group live that has no members: with its generation, if it had any before.
func (c *Coordinator) wake(id string) *liveGroup {
	c.sm.mu.RLock()
	meta := c.sm.st.meta(id)
	c.sm.mu.RUnlock()
	g := newLiveGroup(id)
	if meta != nil {
		g.generation, g.protocolType = meta.Generation, meta.ProtocolType
	}
	c.groups[id] = g
	return g
}

// forgetIfIdle drops a live group that nobody has ever joined. One with a
// generation stays: it may be newer than what is applied.
func (c *Coordinator) forgetIfIdle(g *liveGroup) {
	if g.state == Empty && len(g.pending) == 0 && g.generation == 0 {
		delete(c.groups, g.id)
	}
}

// joinNew handles a client that has no member id yet.
func (c *Coordinator) joinNew(g *liveGroup, n *member, req *kmsg.JoinGroupRequest) int16 {
	if n.instance != nil {
		n.id = newMemberID(*n.instance)
		if old := g.members[g.statics[*n.instance]]; old != nil {
			c.replaceStatic(g, old, n, req.Version)
			return 0
		}
	} else {
		n.id = newMemberID(n.clientID)
	}
	if c.opt.MaxMembers > 0 && len(g.members) >= c.opt.MaxMembers {
		return errMaxSize
	}
	if req.Version >= 4 && n.instance == nil {
		until := time.Now().Add(n.session)
		g.pending[n.id] = until
		c.schedule(&timer{at: until, kind: timerPending, group: g, id: n.id})
		c.later(func() { n.join(joinError(n.id, errMemberIDRequired)) })
		return 0
	}
	c.admit(g, n)
	return 0
}

// rejoin handles a client with a member id.
func (c *Coordinator) rejoin(g *liveGroup, n *member, req *kmsg.JoinGroupRequest) int16 {
	if _, ok := g.pending[n.id]; ok {
		delete(g.pending, n.id)
		if c.opt.MaxMembers > 0 && len(g.members) >= c.opt.MaxMembers {
			return errMaxSize
		}
		c.admit(g, n)
		return 0
	}
	m, code := g.member(n.id, n.instance)
	if code != 0 {
		return code
	}
	c.touch(g, m, time.Now())
	same := m.same(n.protocols)
	switch g.state {
	case CompletingRebalance:
		if same { // its answer was lost
			c.answerNow(g, m, n.join, m.id == g.leader)
			return 0
		}
	case Stable:
		if same && m.id != g.leader { // the leader asks for a new assignment by joining again
			c.answerNow(g, m, n.join, false)
			return 0
		}
	case PreparingRebalance:
	default:
		return errUnknownMember
	}
	c.answerJoin(m, joinError(m.id, errRebalance)) // the same member asked twice: the first is gone
	if len(g.members) == 1 {
		g.protocolType = n.protocolType
	}
	m.protocols, m.protocolType, m.join = n.protocols, n.protocolType, n.join
	m.session, m.rebalance, m.clientID, m.clientHost = n.session, n.rebalance, n.clientID, n.clientHost
	c.touch(g, m, time.Now())
	c.prepare(g, "member "+m.id+" joined again")
	return 0
}

// member finds a member by id, and by instance for a static one.
func (g *liveGroup) member(id string, instance *string) (*member, int16) {
	if instance != nil {
		switch known, ok := g.statics[*instance]; {
		case !ok:
			return nil, errUnknownMember
		case known != id:
			return nil, errFenced
		}
	}
	m := g.members[id]
	if m == nil {
		return nil, errUnknownMember
	}
	return m, 0
}

// admit lets a new member in and rebalances.
func (c *Coordinator) admit(g *liveGroup, n *member) {
	if len(g.members) == 0 {
		g.protocolType = n.protocolType
	}
	g.add(n)
	g.grew = true
	c.touch(g, n, time.Now())
	c.prepare(g, "member "+n.id+" joined")
}

// replaceStatic lets a static member that restarted take the place of its former
// self. If nothing else changed in a stable group, nobody else notices.
func (c *Coordinator) replaceStatic(g *liveGroup, old, n *member, version int16) {
	c.answerJoin(old, joinError(old.id, errFenced))
	c.answerSync(old, syncResult{code: errFenced})
	g.remove(old)
	wasLeader := g.leader == old.id
	if wasLeader {
		g.leader = n.id
	}
	n.assignment, n.synced = old.assignment, old.synced
	quiet := g.state == Stable && string(old.metadata(g.protocol)) == string(n.metadata(g.protocol))
	order := old.order
	g.add(n)
	n.order = order
	c.touch(g, n, time.Now())
	if !quiet || g.choose() != g.protocol {
		c.prepare(g, "static member "+*n.instance+" came back")
		return
	}
	// It must be replicated before the client hears of its new id.
	join := n.join
	n.join = nil
	generation := g.generation
	c.propose(encodePutGroup(c.nowMs(), c.snapshot(g, nil)), func(code int16) {
		c.locked(func() {
			if code != 0 || g.generation != generation || g.members[n.id] != n || g.state != Stable {
				if code == 0 {
					code = errRebalance
				}
				c.later(func() { join(joinError(n.id, code)) })
				return
			}
			res := g.joined(n, wasLeader && version >= 9)
			if wasLeader && version >= 9 {
				res.skip = true // it leads, but the assignment stands
			} else if wasLeader {
				res.leader = old.id // it must not compute a new assignment that nobody asked for
			}
			c.later(func() { join(res) })
		})
	})
}

// prepare begins a rebalance, or lets a new member into the one that has begun.
func (c *Coordinator) prepare(g *liveGroup, why string) {
	now := time.Now()
	switch g.state {
	case PreparingRebalance:
		c.maybeCompleteJoin(g)
		return
	case CompletingRebalance:
		for _, m := range g.members {
			m.assignment = nil
			c.answerSync(m, syncResult{code: errRebalance})
		}
	default:
	}
	c.log.Info("preparing rebalance", "group", g.id, "generation", g.generation, "reason", why)
	g.initial = g.state == Empty && c.opt.InitialDelay > 0
	g.state, g.storing = PreparingRebalance, false
	g.joinEnds = now.Add(g.rebalanceTimeout())
	at := g.joinEnds
	if g.initial {
		at = earlier(now.Add(c.opt.InitialDelay), g.joinEnds)
		g.grew = false
	}
	c.setJoinTimer(g, at)
	c.maybeCompleteJoin(g)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func (c *Coordinator) setJoinTimer(g *liveGroup, at time.Time) {
	g.joinSeq++
	c.schedule(&timer{at: at, kind: timerJoin, group: g, seq: g.joinSeq})
}

// maybeCompleteJoin ends the joining phase early if nobody is missing. A group
// that was empty waits for its whole delay: who else comes cannot be known.
func (c *Coordinator) maybeCompleteJoin(g *liveGroup) {
	if g.state == PreparingRebalance && g.allJoined() && (!g.initial || len(g.members) == 0) {
		c.completeJoin(g)
	}
}

// joinDue ends the joining phase, or prolongs the initial delay while members keep coming.
func (c *Coordinator) joinDue(g *liveGroup, now time.Time) {
	if g.initial && g.grew && now.Before(g.joinEnds) {
		g.grew = false
		c.setJoinTimer(g, earlier(now.Add(c.opt.InitialDelay), g.joinEnds))
		return
	}
	c.completeJoin(g)
}

// minRejoin keeps members that wait for nobody, and are away, from costing a core.
const minRejoin = time.Second

// completeJoin begins the next generation with those who joined. Dynamic members
// that did not are out; static ones stay until their session ends.
func (c *Coordinator) completeJoin(g *liveGroup) {
	g.initial = false
	joined := 0
	for _, m := range g.inOrder() {
		switch {
		case m.join != nil:
			joined++
		case m.instance == nil:
			c.log.Info("member did not rejoin in time", "group", g.id, "member", m.id)
			g.remove(m)
		}
	}
	if joined == 0 && len(g.members) > 0 {
		again := max(g.rebalanceTimeout(), minRejoin)
		c.setJoinTimer(g, time.Now().Add(again)) // only static members, all away
		return
	}
	g.generation++
	if len(g.members) == 0 {
		c.becomeEmpty(g)
		return
	}
	if l := g.members[g.leader]; l == nil || l.join == nil {
		for _, m := range g.inOrder() {
			if m.join != nil {
				g.leader = m.id
				break
			}
		}
	}
	g.protocol = g.choose()
	g.state = CompletingRebalance
	now := time.Now()
	for _, m := range g.members {
		m.synced, m.assignment = false, nil
		if m.join != nil {
			c.touch(g, m, now)
			c.answerJoin(m, g.joined(m, m.id == g.leader))
		}
	}
	c.schedule(&timer{at: now.Add(g.rebalanceTimeout()), kind: timerSync, group: g, seq: uint64(uint32(g.generation))})
	c.log.Info("members joined", "group", g.id, "generation", g.generation, "members", len(g.members), "protocol", g.protocol)
}

func (c *Coordinator) becomeEmpty(g *liveGroup) {
	g.state, g.protocol, g.leader = Empty, "", ""
	c.storeEmpty(g)
	c.log.Info("group is empty", "group", g.id, "generation", g.generation)
}

// emptyRetry is when the group's emptiness is proposed again after that failed.
const emptyRetry = 5 * time.Second

// storeEmpty replicates that nobody is left, so that the generation never goes
// back, and tries again until it is stored or somebody joins: while the state
// holds members, the group is not deleted and its offsets do not expire.
func (c *Coordinator) storeEmpty(g *liveGroup) {
	meta := c.snapshot(g, nil)
	meta.EmptySinceMs = c.nowMs()
	c.propose(encodePutGroup(c.nowMs(), meta), func(code int16) {
		if code == 0 {
			return
		}
		c.locked(func() {
			if g.emptyAt(meta.Generation) {
				c.schedule(&timer{at: time.Now().Add(emptyRetry), kind: timerEmpty, group: g, seq: uint64(uint32(meta.Generation))})
			}
		})
	})
}

// emptyAt tells whether nobody has joined since the group became empty at a generation. A group of
// a coordinator that serves no more is Dead.
func (g *liveGroup) emptyAt(generation int32) bool {
	return g.state == Empty && g.generation == generation
}

// joined is the answer to a member of the current generation.
func (g *liveGroup) joined(m *member, leads bool) joinResult {
	res := joinResult{
		generation: g.generation, protocolType: g.protocolType, protocol: g.protocol, leader: g.leader, member: m.id,
	}
	if leads {
		for _, o := range g.inOrder() {
			r := kmsg.NewJoinGroupResponseMember()
			r.MemberID, r.InstanceID, r.ProtocolMetadata = o.id, o.instance, o.metadata(g.protocol)
			res.members = append(res.members, r)
		}
	}
	return res
}

// answerNow answers a join without a rebalance.
func (c *Coordinator) answerNow(g *liveGroup, m *member, join func(joinResult), leads bool) {
	res := g.joined(m, leads)
	c.later(func() { join(res) })
}

// answerJoin answers a member that waits in JoinGroup, if it does.
func (c *Coordinator) answerJoin(m *member, res joinResult) {
	if join := m.join; join != nil {
		m.join = nil
		c.later(func() { join(res) })
	}
}
