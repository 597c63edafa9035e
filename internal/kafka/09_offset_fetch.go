package kafka

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/metadata"
	"chronik/internal/wire"
)

// OffsetFetch: versions 0 to 10.
//
//	v2   null asks for all topics; an error of the whole response
//	v5   leader epochs
//	v6   flexible
//	v7   RequireStable: no transactions, so every offset is stable
//	v8   several groups
//	v9   a member's id and epoch, for the new group protocol: not looked at
//	v10  topic ids in place of names

func offsetFetch(h *Handler, ctx context.Context, r *wire.Request, req *kmsg.OffsetFetchRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.OffsetFetchResponse)
	if req.Version >= 8 {
		for i := range req.Groups {
			resp.Groups = append(resp.Groups, h.fetchOffsets(ctx, req.Version, &req.Groups[i]))
		}
		return resp
	}
	one := kmsg.NewOffsetFetchRequestGroup()
	one.Group = req.Group
	if req.Topics != nil {
		one.Topics = make([]kmsg.OffsetFetchRequestGroupTopic, len(req.Topics))
		for i := range req.Topics {
			one.Topics[i].Topic, one.Topics[i].Partitions = req.Topics[i].Topic, req.Topics[i].Partitions
		}
	}
	got := h.fetchOffsets(ctx, req.Version, &one)
	resp.ErrorCode = got.ErrorCode
	if got.ErrorCode != 0 && req.Version < 2 {
		got.Topics = failedOffsets(&one, got.ErrorCode) // no other place for it yet
	}
	resp.Topics = make([]kmsg.OffsetFetchResponseTopic, 0, len(got.Topics))
	for i := range got.Topics {
		t := kmsg.NewOffsetFetchResponseTopic()
		t.Topic = got.Topics[i].Topic
		t.Partitions = make([]kmsg.OffsetFetchResponseTopicPartition, 0, len(got.Topics[i].Partitions))
		for _, p := range got.Topics[i].Partitions {
			wp := kmsg.NewOffsetFetchResponseTopicPartition()
			wp.Partition, wp.Offset, wp.LeaderEpoch, wp.Metadata, wp.ErrorCode = p.Partition, p.Offset, p.LeaderEpoch, p.Metadata, p.ErrorCode
			t.Partitions = append(t.Partitions, wp)
		}
		resp.Topics = append(resp.Topics, t)
	}
	return resp
}

// failedOffsets answers every partition that was asked for with one error.
func failedOffsets(req *kmsg.OffsetFetchRequestGroup, code int16) []kmsg.OffsetFetchResponseGroupTopic {
	topics := make([]kmsg.OffsetFetchResponseGroupTopic, 0, len(req.Topics))
	for i := range req.Topics {
		topics = append(topics, failedTopic(&req.Topics[i], code))
	}
	return topics
}

func failedTopic(req *kmsg.OffsetFetchRequestGroupTopic, code int16) kmsg.OffsetFetchResponseGroupTopic {
	t := kmsg.NewOffsetFetchResponseGroupTopic()
	t.Topic, t.TopicID = req.Topic, req.TopicID
	t.Partitions = make([]kmsg.OffsetFetchResponseGroupTopicPartition, 0, len(req.Partitions))
	for _, n := range req.Partitions {
		p := kmsg.NewOffsetFetchResponseGroupTopicPartition()
		p.Partition, p.Offset, p.LeaderEpoch, p.Metadata, p.ErrorCode = n, -1, -1, new(string), code
		t.Partitions = append(t.Partitions, p)
	}
	return t
}

// fetchOffsets answers for one group, whichever shard it belongs to.
func (h *Handler) fetchOffsets(ctx context.Context, version int16, req *kmsg.OffsetFetchRequestGroup) kmsg.OffsetFetchResponseGroup {
	c, err := h.coordinator(req.Group)
	if err != nil {
		if errors.Is(err, kerr.CoordinatorNotAvailable) {
			err = kerr.CoordinatorLoadInProgress // old Java consumers throw on the former here
		}
		resp := kmsg.NewOffsetFetchResponseGroup()
		resp.Group, resp.ErrorCode = req.Group, h.code(keyOffsetFetch, err)
		return resp
	}
	if version < 10 {
		resp := c.Fetch(ctx, req.Group, req.Topics)
		h.counted(keyOffsetFetch, resp.ErrorCode)
		return resp
	}
	return h.fetchByID(ctx, c, req)
}

// fetchByID resolves ids to the names that offsets are stored by, and back.
func (h *Handler) fetchByID(ctx context.Context, c Coordinator, req *kmsg.OffsetFetchRequestGroup) kmsg.OffsetFetchResponseGroup {
	img := h.cluster.Image()
	var unknown []kmsg.OffsetFetchResponseGroupTopic
	topics := req.Topics
	if topics != nil {
		topics = make([]kmsg.OffsetFetchRequestGroupTopic, 0, len(req.Topics))
		for i := range req.Topics {
			rt := req.Topics[i]
			t, err := findTopic(img, "", rt.TopicID, true)
			if err != nil {
				unknown = append(unknown, failedTopic(&rt, h.code(keyOffsetFetch, err)))
				continue
			}
			rt.Topic = t.Name
			topics = append(topics, rt)
		}
	}
	resp := c.Fetch(ctx, req.Group, topics)
	h.counted(keyOffsetFetch, resp.ErrorCode)
	if resp.ErrorCode != 0 {
		return resp
	}
	named := resp.Topics
	resp.Topics = unknown
	for i := range named {
		if metadata.TopicID(named[i].TopicID).IsZero() { // all were asked for
			t := img.Topic(named[i].Topic)
			if t == nil {
				continue // deleted: there is no id to answer with
			}
			named[i].TopicID = t.ID
		}
		resp.Topics = append(resp.Topics, named[i])
	}
	return resp
}
