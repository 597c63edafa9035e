package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/wire"
)

// SyncGroup: versions 0 to 5.
//
//	v3  static members
//	v4  flexible
//	v5  the protocol and its type, which must be the group's

func serveSyncGroup(h *Handler, ctx context.Context, r *wire.Request, reply func(kmsg.Response)) {
	req, ok := bodyOf[*kmsg.SyncGroupRequest](h, r, reply)
	if !ok {
		return
	}
	c, err := h.coordinator(req.Group)
	if err != nil {
		resp := req.ResponseKind().(*kmsg.SyncGroupResponse)
		resp.ErrorCode, resp.MemberAssignment = h.code(r.Key, err), []byte{}
		reply(resp)
		return
	}
	c.Sync(ctx, req, func(resp *kmsg.SyncGroupResponse) {
		h.counted(keySyncGroup, resp.ErrorCode)
		reply(resp)
	})
	r.GiveBack() // what is kept was copied, and the answer may take a rebalance
}
