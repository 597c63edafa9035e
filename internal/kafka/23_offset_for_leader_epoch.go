package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/metadata"
	"chronik/internal/wire"
)

// OffsetForLeaderEpoch: versions 0 to 4.
//
//	v1  the epoch that was found, besides its end
//	v2  CurrentLeaderEpoch
//	v3  ReplicaID; followers here are not Kafka's, so all askers are consumers
//	v4  flexible

func offsetForLeaderEpoch(h *Handler, _ context.Context, r *wire.Request, req *kmsg.OffsetForLeaderEpochRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.OffsetForLeaderEpochResponse)
	img := h.cluster.Image()
	for i := range req.Topics {
		rt := &req.Topics[i]
		wt := kmsg.NewOffsetForLeaderEpochResponseTopic()
		wt.Topic = rt.Topic
		t, err := findTopic(img, rt.Topic, metadata.TopicID{}, false)
		for j := range rt.Partitions {
			wp := kmsg.NewOffsetForLeaderEpochResponseTopicPartition()
			wp.Partition = rt.Partitions[j].Partition
			perr := err
			if perr == nil {
				perr = h.epochEnd(t, &rt.Partitions[j], &wp)
			}
			if perr != nil {
				wp.ErrorCode = h.code(r.Key, perr)
				wp.LeaderEpoch, wp.EndOffset = -1, -1
			}
			wt.Partitions = append(wt.Partitions, wp)
		}
		resp.Topics = append(resp.Topics, wt)
	}
	return resp
}

func (h *Handler) epochEnd(t *metadata.Topic, req *kmsg.OffsetForLeaderEpochRequestTopicPartition, resp *kmsg.OffsetForLeaderEpochResponseTopicPartition) error {
	_, p, err := h.leader(t, req.Partition)
	if err != nil {
		return err
	}
	if err := checkEpoch(p, req.CurrentLeaderEpoch); err != nil {
		return err
	}
	resp.LeaderEpoch, resp.EndOffset = p.EpochEndOffset(req.LeaderEpoch)
	return nil
}
