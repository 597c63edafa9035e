package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/wire"
)

// DescribeGroups: versions 0 to 6.
//
//	v3  authorized operations
//	v4  static members
//	v5  flexible
//	v6  a group that does not exist is an error instead of a dead group

// dead is the state of a group that does not exist.
const dead = "Dead"

func describeGroups(h *Handler, _ context.Context, r *wire.Request, req *kmsg.DescribeGroupsRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.DescribeGroupsResponse)
	for _, id := range req.Groups {
		g := kmsg.NewDescribeGroupsResponseGroup()
		g.Group = id
		c, err := h.coordinator(id)
		if err == nil {
			g = c.Describe(id)
			h.counted(r.Key, g.ErrorCode)
		}
		if err == nil && g.ErrorCode == 0 && g.State == dead && req.Version >= 6 {
			err = failf(kerr.GroupIDNotFound, "group %s does not exist", id)
		}
		switch {
		case err != nil:
			g.ErrorCode, g.ErrorMessage = h.code(r.Key, err), message(err)
		case req.IncludeAuthorizedOperations && g.ErrorCode == 0:
			g.AuthorizedOperations = groupOperations
		}
		resp.Groups = append(resp.Groups, g)
	}
	return resp
}
