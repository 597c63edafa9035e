package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/wire"
)

// JoinGroup: versions 0 to 9.
//
//	v1  rebalance timeout
//	v4  a new member is first given its id (MEMBER_ID_REQUIRED)
//	v5  static members
//	v6  flexible
//	v7  the protocol's type in the response
//	v8  the reason to join
//	v9  the leader may be told to skip the assignment
//
// The answer comes at the end of the rebalance, from the coordinator.

func serveJoinGroup(h *Handler, ctx context.Context, r *wire.Request, reply func(kmsg.Response)) {
	req, ok := bodyOf[*kmsg.JoinGroupRequest](h, r, reply)
	if !ok {
		return
	}
	c, err := h.coordinator(req.Group)
	if err != nil {
		resp := req.ResponseKind().(*kmsg.JoinGroupResponse)
		resp.ErrorCode, resp.Generation, resp.MemberID = h.code(r.Key, err), -1, req.MemberID
		if req.Version < 7 {
			resp.Protocol = new(string) // null came with version 7
		}
		reply(resp)
		return
	}
	c.Join(ctx, req, r.ClientID, clientHost(r), func(resp *kmsg.JoinGroupResponse) {
		h.counted(keyJoinGroup, resp.ErrorCode)
		reply(resp)
	})
	r.GiveBack() // what is kept was copied, and the answer may take a rebalance
}
