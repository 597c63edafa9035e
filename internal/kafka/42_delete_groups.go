package kafka

import (
	"context"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/wire"
)

// DeleteGroups: versions 0 to 2.
//
//	v2  flexible

func serveDeleteGroups(h *Handler, ctx context.Context, r *wire.Request, reply func(kmsg.Response)) {
	req, ok := bodyOf[*kmsg.DeleteGroupsRequest](h, r, reply)
	if !ok {
		return
	}
	resp := req.ResponseKind().(*kmsg.DeleteGroupsResponse)
	resp.Groups = make([]kmsg.DeleteGroupsResponseGroup, len(req.Groups))
	var pending atomic.Int64 // the request itself and each group on its way
	pending.Store(1)
	done := func() {
		if pending.Add(-1) == 0 {
			reply(resp)
		}
	}
	for i, id := range req.Groups {
		wg := &resp.Groups[i]
		wg.Default()
		wg.Group = id
		c, err := h.coordinator(id)
		if err != nil {
			wg.ErrorCode = h.code(r.Key, err)
			continue
		}
		pending.Add(1)
		c.Delete(ctx, id, func(code int16) {
			wg.ErrorCode = h.counted(r.Key, code)
			done()
		})
	}
	done()
}
