package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/wire"
)

// ListGroups: versions 0 to 5. Each broker lists the groups it coordinates; a
// client asks all.
//
//	v3  flexible
//	v4  states, to choose by and in the response
//	v5  types, likewise: all groups are classic

func listGroups(h *Handler, _ context.Context, r *wire.Request, req *kmsg.ListGroupsRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.ListGroupsResponse)
	resp.Groups = []kmsg.ListGroupsResponseGroup{}
	for _, shard := range h.cluster.Image().Coordinators {
		c := h.cluster.Coordinator(shard.Group)
		if c == nil {
			continue
		}
		groups, code := c.List(req.StatesFilter, req.TypesFilter)
		switch code {
		case kerr.NotCoordinator.Code: // another broker lists them
		case 0:
			resp.Groups = append(resp.Groups, groups...)
		default:
			resp.ErrorCode = h.counted(r.Key, code)
		}
	}
	return resp
}
