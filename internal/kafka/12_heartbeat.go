package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/wire"
)

// Heartbeat: versions 0 to 4.
//
//	v3  static members
//	v4  flexible

func serveHeartbeat(h *Handler, ctx context.Context, r *wire.Request, reply func(kmsg.Response)) {
	req, ok := bodyOf[*kmsg.HeartbeatRequest](h, r, reply)
	if !ok {
		return
	}
	c, err := h.coordinator(req.Group)
	if err != nil {
		resp := req.ResponseKind().(*kmsg.HeartbeatResponse)
		resp.ErrorCode = h.code(r.Key, err)
		reply(resp)
		return
	}
	c.Heartbeat(ctx, req, func(resp *kmsg.HeartbeatResponse) {
		h.counted(r.Key, resp.ErrorCode)
		reply(resp)
	})
}
