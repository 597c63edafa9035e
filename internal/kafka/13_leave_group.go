package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/wire"
)

// LeaveGroup: versions 0 to 5.
//
//	v3  several members; static ones by their instance
//	v4  flexible
//	v5  the reason to leave

func serveLeaveGroup(h *Handler, ctx context.Context, r *wire.Request, reply func(kmsg.Response)) {
	req, ok := bodyOf[*kmsg.LeaveGroupRequest](h, r, reply)
	if !ok {
		return
	}
	c, err := h.coordinator(req.Group)
	if err != nil {
		resp := req.ResponseKind().(*kmsg.LeaveGroupResponse)
		resp.ErrorCode = h.code(r.Key, err)
		reply(resp)
		return
	}
	c.Leave(ctx, req, func(resp *kmsg.LeaveGroupResponse) {
		h.counted(r.Key, resp.ErrorCode)
		reply(resp)
	})
}
