package group

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Heartbeat answers a Heartbeat request.
func (c *Coordinator) Heartbeat(_ context.Context, req *kmsg.HeartbeatRequest, reply func(*kmsg.HeartbeatResponse)) {
	resp := req.ResponseKind().(*kmsg.HeartbeatResponse)
	c.locked(func() {
		g, m, code := c.find(req.Group, req.MemberID, req.InstanceID, req.Generation)
		if code == 0 {
			c.touch(g, m, time.Now())
			if g.state == PreparingRebalance {
				code = errRebalance
			}
		}
		resp.ErrorCode = code
	})
	reply(resp)
}

// Leave answers a LeaveGroup request: one member, or from version 3 any number.
func (c *Coordinator) Leave(_ context.Context, req *kmsg.LeaveGroupRequest, reply func(*kmsg.LeaveGroupResponse)) {
	resp := req.ResponseKind().(*kmsg.LeaveGroupResponse)
	c.locked(func() {
		switch code := c.refuse(); {
		case req.Group == "":
			resp.ErrorCode = errInvalidGroup
		case code != 0:
			resp.ErrorCode = code
		case req.Version < 3:
			resp.ErrorCode = c.leave(req.Group, req.MemberID, nil)
		default:
			for _, l := range req.Members {
				m := kmsg.NewLeaveGroupResponseMember()
				m.MemberID, m.InstanceID = l.MemberID, l.InstanceID
				m.ErrorCode = c.leave(req.Group, l.MemberID, l.InstanceID)
				resp.Members = append(resp.Members, m)
			}
		}
	})
	reply(resp)
}

func (c *Coordinator) leave(group, id string, instance *string) int16 {
	g := c.groups[group]
	if g == nil {
		return errUnknownMember
	}
	if instance != nil && id == "" { // an administrator names the instance alone
		id = g.statics[*instance]
	}
	if _, ok := g.pending[id]; ok {
		delete(g.pending, id)
		c.maybeCompleteJoin(g)
		return 0
	}
	m, code := g.member(id, instance)
	if code == 0 {
		c.log.Info("member left", "group", group, "member", m.id)
		c.removeMember(g, m)
	}
	return code
}

// removeMember takes a member out and rebalances the rest.
func (c *Coordinator) removeMember(g *liveGroup, m *member) {
	c.answerJoin(m, joinError(m.id, errUnknownMember))
	c.answerSync(m, syncResult{code: errUnknownMember})
	g.remove(m)
	c.prepare(g, "member "+m.id+" is gone")
}
