package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/metadata"
	"chronik/internal/wire"
)

// IncrementalAlterConfigs: versions 0 and 1. Only the settings that are named change.
//
//	v1  flexible

func incrementalAlterConfigs(h *Handler, ctx context.Context, r *wire.Request, req *kmsg.IncrementalAlterConfigsRequest) kmsg.Response {
	all := make([]alteration, len(req.Resources))
	for i := range req.Resources {
		rr := &req.Resources[i]
		all[i] = alteration{typ: rr.ResourceType, name: rr.ResourceName}
		for j := range rr.Configs {
			all[i].ops = append(all[i].ops, metadata.ConfigAlterOp{
				Name: rr.Configs[j].Name, Op: metadata.ConfigOp(rr.Configs[j].Op), Value: rr.Configs[j].Value,
			})
		}
	}
	h.alter(ctx, all, req.ValidateOnly)
	resp := req.ResponseKind().(*kmsg.IncrementalAlterConfigsResponse)
	for i := range all {
		wr := kmsg.NewIncrementalAlterConfigsResponseResource()
		wr.ResourceType, wr.ResourceName = all[i].typ, all[i].name
		wr.ErrorCode, wr.ErrorMessage = h.code(r.Key, all[i].err), message(all[i].err)
		resp.Resources = append(resp.Resources, wr)
	}
	return resp
}
