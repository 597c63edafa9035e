package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/metadata"
	"chronik/internal/wire"
)

// DeleteRecords: versions 0 to 2. Each partition's leader moves its log start
// offset through the partition's own Raft group, so all replicas agree on it.
//
//	v2  flexible

// upToHighWatermark as an offset deletes everything that can be read.
const upToHighWatermark = -1

func deleteRecords(h *Handler, ctx context.Context, r *wire.Request, req *kmsg.DeleteRecordsRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.DeleteRecordsResponse)
	ctx, cancel := bounded(ctx, req.TimeoutMillis)
	defer cancel()
	img := h.cluster.Image()
	var work []func()
	resp.Topics = make([]kmsg.DeleteRecordsResponseTopic, len(req.Topics))
	for i := range req.Topics {
		rt, wt := &req.Topics[i], &resp.Topics[i]
		wt.Default()
		wt.Topic = rt.Topic
		wt.Partitions = make([]kmsg.DeleteRecordsResponseTopicPartition, len(rt.Partitions))
		t, err := findTopic(img, rt.Topic, metadata.TopicID{}, false)
		if err == nil && !h.topicSettings(t).deleted {
			err = kerr.PolicyViolation // a compacted topic keeps the last record of each key
		}
		for j := range rt.Partitions {
			rp, wp := &rt.Partitions[j], &wt.Partitions[j]
			wp.Default()
			wp.Partition = rp.Partition
			if err != nil {
				wp.ErrorCode, wp.LowWatermark = h.code(r.Key, err), -1
				continue
			}
			work = append(work, func() {
				low, err := h.deleteBefore(ctx, t, rp)
				wp.ErrorCode, wp.LowWatermark = h.code(r.Key, err), low
			})
		}
	}
	parallel(work, deleteParallel)
	return resp
}

// deleteParallel bounds how many partitions of a request wait for their group at once.
const deleteParallel = 16

// deleteBefore moves a partition's log start and returns where it is then.
func (h *Handler) deleteBefore(ctx context.Context, t *metadata.Topic, req *kmsg.DeleteRecordsRequestTopicPartition) (int64, error) {
	_, p, err := h.leader(t, req.Partition)
	if err != nil {
		return -1, err
	}
	offset, high := req.Offset, p.HighWatermark()
	if offset == upToHighWatermark {
		offset = high
	}
	if offset < 0 || offset > high {
		return -1, kerr.OffsetOutOfRange
	}
	if offset > p.LogStartOffset() {
		if err := p.SetLogStart(ctx, offset); err != nil {
			return -1, err
		}
	}
	return p.LogStartOffset(), nil
}
