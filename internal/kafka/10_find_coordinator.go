package kafka

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/group"
	"chronik/internal/metadata"
	"chronik/internal/wire"
)

// FindCoordinator: versions 0 to 6.
//
//	v1  type of the key: 0 is a group, 1 a transactional id
//	v3  flexible
//	v4  several keys
//	v5  TRANSACTION_ABORTABLE may come back: there are no transactions
//	v6  type 2 is a share group: there are none

const (
	coordinatorOfGroup       = 0
	coordinatorOfTransaction = 1

	// coordinatorWait bounds how long the first one who asks waits for the
	// coordinator shards to be made and led.
	coordinatorWait = 5 * time.Second
)

func findCoordinator(h *Handler, ctx context.Context, r *wire.Request, req *kmsg.FindCoordinatorRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.FindCoordinatorResponse)
	keys := req.CoordinatorKeys
	if req.Version < 4 {
		keys = []string{req.CoordinatorKey}
	}
	img, err := h.coordinators(ctx, req.CoordinatorType)
	for _, key := range keys {
		c := kmsg.NewFindCoordinatorResponseCoordinator()
		c.Key, c.NodeID, c.Port = key, -1, -1
		var b *metadata.Broker
		kerror := err
		if kerror == nil {
			b, kerror = h.coordinatorOf(img, key)
		}
		if kerror != nil {
			c.ErrorCode, c.ErrorMessage = h.code(r.Key, kerror), message(kerror)
		} else {
			c.NodeID, c.Host, c.Port = int32(b.Node), b.KafkaHost, b.KafkaPort
		}
		resp.Coordinators = append(resp.Coordinators, c)
	}
	if req.Version < 4 {
		c := resp.Coordinators[0]
		resp.Coordinators = nil
		resp.ErrorCode, resp.ErrorMessage = c.ErrorCode, c.ErrorMessage
		resp.NodeID, resp.Host, resp.Port = c.NodeID, c.Host, c.Port
	}
	return resp
}

// coordinators returns an Image that has the coordinator shards; the first who
// asks has them made.
func (h *Handler) coordinators(ctx context.Context, typ int8) (*metadata.Image, error) {
	switch typ {
	case coordinatorOfGroup:
	case coordinatorOfTransaction:
		return nil, errNoTransactions
	default:
		return nil, failf(kerr.InvalidRequest, "coordinators of type %d are not served", typ)
	}
	img := h.cluster.Image()
	if len(img.Coordinators) > 0 {
		return img, nil
	}
	ctx, cancel := context.WithTimeout(ctx, coordinatorWait)
	defer cancel()
	cmd := &metadata.CreateCoordinators{ReplicationFactor: h.config.ReplicationFactor, Avoid: h.dead(img)}
	if _, err := submit[metadata.CreateCoordinatorsResult](ctx, h, cmd); err != nil {
		h.log.Warn("coordinators not created", "err", err)
		return nil, kerr.CoordinatorNotAvailable // the client asks again
	}
	h.await(ctx, func(img *metadata.Image) bool { return len(img.Coordinators) > 0 && h.led(img.Coordinators) })
	return h.cluster.Image(), nil
}

// shardOf is the coordinator shard that a group belongs to; nil before shards are made.
func shardOf(img *metadata.Image, id string) *metadata.Partition {
	n := int32(len(img.Coordinators))
	if n == 0 {
		return nil
	}
	return img.Coordinators[group.ShardOf(id, n)]
}

// coordinatorOf is the broker that leads a group's shard.
func (h *Handler) coordinatorOf(img *metadata.Image, key string) (*metadata.Broker, error) {
	shard := shardOf(img, key)
	if shard == nil {
		return nil, kerr.CoordinatorNotAvailable
	}
	node, _, ok := h.cluster.Leader(shard.Group)
	if !ok || !h.isLive(img, node) {
		return nil, kerr.CoordinatorNotAvailable
	}
	return img.Broker(node), nil
}
