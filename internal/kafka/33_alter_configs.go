package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/metadata"
	"chronik/internal/wire"
)

// AlterConfigs: versions 0 to 2. A topic gets exactly the settings of the
// request; what is not named goes back to its default.
//
//	v2  flexible

func alterConfigs(h *Handler, ctx context.Context, r *wire.Request, req *kmsg.AlterConfigsRequest) kmsg.Response {
	all := make([]alteration, len(req.Resources))
	for i := range req.Resources {
		rr := &req.Resources[i]
		all[i] = alteration{typ: rr.ResourceType, name: rr.ResourceName, replace: true}
		for j := range rr.Configs {
			all[i].ops = append(all[i].ops, metadata.ConfigAlterOp{
				Name: rr.Configs[j].Name, Op: metadata.OpSet, Value: rr.Configs[j].Value,
			})
		}
	}
	h.alter(ctx, all, req.ValidateOnly)
	resp := req.ResponseKind().(*kmsg.AlterConfigsResponse)
	for i := range all {
		wr := kmsg.NewAlterConfigsResponseResource()
		wr.ResourceType, wr.ResourceName = all[i].typ, all[i].name
		wr.ErrorCode, wr.ErrorMessage = h.code(r.Key, all[i].err), message(all[i].err)
		resp.Resources = append(resp.Resources, wr)
	}
	return resp
}
