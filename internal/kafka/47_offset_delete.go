package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/wire"
)

// OffsetDelete: version 0. Topics that members of the group subscribe to keep
// their offsets.

func serveOffsetDelete(h *Handler, ctx context.Context, r *wire.Request, reply func(kmsg.Response)) {
	req, ok := bodyOf[*kmsg.OffsetDeleteRequest](h, r, reply)
	if !ok {
		return
	}
	c, err := h.coordinator(req.Group)
	if err != nil {
		resp := req.ResponseKind().(*kmsg.OffsetDeleteResponse)
		resp.ErrorCode = h.code(r.Key, err)
		reply(resp)
		return
	}
	c.DeleteOffsets(ctx, req, func(resp *kmsg.OffsetDeleteResponse) {
		h.counted(r.Key, resp.ErrorCode)
		reply(resp)
	})
}
