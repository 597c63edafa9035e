package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/wire"
)

// DescribeCluster: versions 0 to 2.
//
//	v1  brokers or controllers: clients can reach brokers only
//	v2  brokers that cannot be reached too, if the client wants them: "fenced"

const brokerEndpoints = 1

func describeCluster(h *Handler, _ context.Context, r *wire.Request, req *kmsg.DescribeClusterRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.DescribeClusterResponse)
	img := h.cluster.Image()
	resp.ClusterID = img.ClusterID
	resp.ControllerID = int32(h.cluster.Self())
	resp.EndpointType = brokerEndpoints
	if req.Version >= 1 && req.EndpointType != brokerEndpoints {
		err := failf(kerr.UnsupportedEndpointType, "endpoint type %d is not served; brokers are %d", req.EndpointType, brokerEndpoints)
		resp.ErrorCode, resp.ErrorMessage = h.code(r.Key, err), message(err)
		return resp
	}
	if req.IncludeClusterAuthorizedOperations {
		resp.ClusterAuthorizedOperations = clusterOperations
	}
	named := h.namedBrokers(img)
	if req.IncludeFencedBrokers {
		named = img.Brokers()
	}
	for _, b := range named {
		wb := kmsg.NewDescribeClusterResponseBroker()
		wb.IsFenced = req.IncludeFencedBrokers && !h.alive(b.Node)
		wb.NodeID, wb.Host, wb.Port, wb.Rack = int32(b.Node), b.KafkaHost, b.KafkaPort, rack(b)
		resp.Brokers = append(resp.Brokers, wb)
	}
	return resp
}
