package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/metadata"
	"chronik/internal/wire"
)

// DeleteTopics: versions 0 to 6.
//
//	v0-5  names
//	v4    flexible
//	v5    error messages
//	v6    each topic by name or by id

func deleteTopics(h *Handler, ctx context.Context, r *wire.Request, req *kmsg.DeleteTopicsRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.DeleteTopicsResponse)
	ctx, cancel := bounded(ctx, req.TimeoutMillis)
	defer cancel()
	asked := req.Topics
	if req.Version < 6 {
		asked = make([]kmsg.DeleteTopicsRequestTopic, len(req.TopicNames))
		for i := range req.TopicNames {
			asked[i].Topic = &req.TopicNames[i]
		}
	}
	img := h.cluster.Image()
	cmd := &metadata.DeleteTopics{}
	var slots []*kmsg.DeleteTopicsResponseTopic // of cmd.Topics
	resp.Topics = make([]kmsg.DeleteTopicsResponseTopic, len(asked))
	seen := map[metadata.TopicID]bool{}
	for i := range asked {
		wt := &resp.Topics[i]
		wt.Default()
		wt.Topic, wt.TopicID = asked[i].Topic, asked[i].TopicID
		t, err := toDelete(img, &asked[i])
		if err == nil && seen[t.ID] {
			err = failf(kerr.InvalidRequest, "the topic is named more than once")
		}
		if err != nil {
			h.deleteFailed(r.Key, wt, err)
			continue
		}
		seen[t.ID] = true
		wt.Topic, wt.TopicID = &t.Name, t.ID
		// By id: a topic that took the name meanwhile is another one.
		cmd.Topics = append(cmd.Topics, metadata.TopicRef{ID: t.ID})
		slots = append(slots, wt)
	}
	if len(cmd.Topics) > 0 {
		h.submitDeletes(ctx, r.Key, cmd, slots)
	}
	return resp
}

func toDelete(img *metadata.Image, req *kmsg.DeleteTopicsRequestTopic) (*metadata.Topic, error) {
	id := metadata.TopicID(req.TopicID)
	switch {
	case req.Topic != nil && !id.IsZero():
		return nil, failf(kerr.InvalidRequest, "a topic is named by its name or by its id, not by both")
	case req.Topic != nil:
		return findTopic(img, *req.Topic, id, false)
	case id.IsZero():
		return nil, failf(kerr.InvalidRequest, "neither a name nor an id")
	default:
		return findTopic(img, "", id, true)
	}
}

func (h *Handler) deleteFailed(key int16, wt *kmsg.DeleteTopicsResponseTopic, err error) {
	wt.ErrorCode = h.code(key, err)
	wt.ErrorMessage = message(err)
}

func (h *Handler) submitDeletes(ctx context.Context, key int16, cmd *metadata.DeleteTopics, slots []*kmsg.DeleteTopicsResponseTopic) {
	deleted, err := submit[metadata.DeleteTopicsResult](ctx, h, cmd)
	if err == nil && len(deleted.Topics) != len(cmd.Topics) {
		err = errWrongResult(cmd, deleted)
	}
	for i, wt := range slots {
		switch {
		case err != nil:
			h.deleteFailed(key, wt, err)
		case deleted.Topics[i].Err != nil:
			h.deleteFailed(key, wt, deleted.Topics[i].Err)
		}
	}
}
