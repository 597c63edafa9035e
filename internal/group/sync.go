package group

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// syncResult is an answer to SyncGroup before it is put in a version's form.
type syncResult struct {
	code         int16
	protocolType string
	protocol     string
	assignment   []byte
}

// Sync answers a SyncGroup request once the leader's assignment is replicated.
// Nothing of req is kept once Sync returns.
func (c *Coordinator) Sync(_ context.Context, req *kmsg.SyncGroupRequest, reply func(*kmsg.SyncGroupResponse)) {
	version := req.Version
	answer := func(res syncResult) {
		resp := kmsg.NewPtrSyncGroupResponse()
		resp.Version = version
		resp.ErrorCode, resp.MemberAssignment = res.code, res.assignment
		if resp.MemberAssignment == nil {
			resp.MemberAssignment = []byte{}
		}
		if res.code == 0 {
			resp.ProtocolType, resp.Protocol = &res.protocolType, &res.protocol
		}
		reply(resp)
	}
	c.locked(func() {
		if code := c.sync(req, answer); code != 0 {
			c.later(func() { answer(syncResult{code: code}) })
		}
	})
}

func (c *Coordinator) sync(req *kmsg.SyncGroupRequest, answer func(syncResult)) int16 {
	g, m, code := c.find(req.Group, req.MemberID, req.InstanceID, req.Generation)
	switch {
	case code != 0:
		return code
	case req.ProtocolType != nil && *req.ProtocolType != g.protocolType, req.Protocol != nil && *req.Protocol != g.protocol:
		return errInconsistentProtocol
	}
	c.touch(g, m, time.Now())
	switch g.state {
	case Stable:
		m.synced = true
		res := g.synced(m)
		c.later(func() { answer(res) })
	case CompletingRebalance:
		c.answerSync(m, syncResult{code: errRebalance}) // the same member asked twice: the first is gone
		m.sync, m.synced = answer, true
		if m.id == g.leader && !g.storing {
			c.store(g, req.GroupAssignment)
		}
	default:
		return errRebalance
	}
	return 0
}

// find returns a member of the current generation.
func (c *Coordinator) find(group, id string, instance *string, generation int32) (*liveGroup, *member, int16) {
	if code := c.refuse(); code != 0 {
		return nil, nil, code
	}
	if group == "" {
		return nil, nil, errInvalidGroup
	}
	g := c.groups[group]
	if g == nil {
		return nil, nil, errUnknownMember
	}
	m, code := g.member(id, instance)
	switch {
	case code != 0:
		return nil, nil, code
	case generation != g.generation:
		return nil, nil, errIllegalGeneration
	}
	return g, m, 0
}

func (g *liveGroup) synced(m *member) syncResult {
	return syncResult{protocolType: g.protocolType, protocol: g.protocol, assignment: m.assignment}
}

// store replicates the generation with its assignments. Nobody is answered
// before it is applied, so that a next coordinator knows what members were told.
func (c *Coordinator) store(g *liveGroup, given []kmsg.SyncGroupRequestGroupAssignment) {
	assignments := make(map[string][]byte, len(given))
	for _, a := range given {
		assignments[a.MemberID] = append([]byte(nil), a.MemberAssignment...)
	}
	g.storing = true
	generation := g.generation
	c.propose(encodePutGroup(c.nowMs(), c.snapshot(g, assignments)), func(code int16) {
		c.locked(func() {
			if g.state != CompletingRebalance || g.generation != generation || !g.storing {
				return // another rebalance has begun and has told everyone
			}
			g.storing = false
			if code != 0 {
				for _, m := range g.members {
					c.answerSync(m, syncResult{code: code})
				}
				c.prepare(g, "the assignment could not be stored")
				return
			}
			c.stabilize(g, assignments)
		})
	})
}

func (c *Coordinator) stabilize(g *liveGroup, assignments map[string][]byte) {
	g.state = Stable
	now := time.Now()
	for _, m := range g.members {
		m.assignment = assignments[m.id]
		if m.sync != nil {
			c.touch(g, m, now)
			c.answerSync(m, g.synced(m))
		}
	}
	c.log.Info("group is stable", "group", g.id, "generation", g.generation, "members", len(g.members))
}

// syncDue removes the members that have not asked for their assignment in time.
func (c *Coordinator) syncDue(g *liveGroup) {
	late := false
	for _, m := range g.inOrder() {
		if !m.synced {
			c.log.Info("member did not sync in time", "group", g.id, "member", m.id)
			g.remove(m)
			late = true
		}
	}
	if late {
		c.prepare(g, "members did not sync in time")
	}
}

// answerSync answers a member that waits in SyncGroup, if it does.
func (c *Coordinator) answerSync(m *member, res syncResult) {
	if sync := m.sync; sync != nil {
		m.sync = nil
		c.later(func() { sync(res) })
	}
}
