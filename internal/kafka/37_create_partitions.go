package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/metadata"
	"chronik/internal/wire"
)

// CreatePartitions: versions 0 to 3.
//
//	v2  flexible
//	v3  the same as v2

func createPartitions(h *Handler, ctx context.Context, r *wire.Request, req *kmsg.CreatePartitionsRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.CreatePartitionsResponse)
	ctx, cancel := bounded(ctx, req.TimeoutMillis)
	defer cancel()
	img := h.cluster.Image()
	cmd := &metadata.CreatePartitions{Avoid: h.dead(img)}
	var slots []*kmsg.CreatePartitionsResponseTopic // of cmd.Topics
	resp.Topics = make([]kmsg.CreatePartitionsResponseTopic, len(req.Topics))
	times, left := map[string]int{}, maxNewPartitions
	for i := range req.Topics {
		times[req.Topics[i].Topic]++
	}
	for i := range req.Topics {
		rt, wt := &req.Topics[i], &resp.Topics[i]
		wt.Default()
		wt.Topic = rt.Topic
		more, added, err := morePartitions(img, rt)
		if times[rt.Topic] > 1 {
			err = failf(kerr.InvalidRequest, "the topic is named more than once")
		}
		if err == nil {
			err = claimPartitions(&left, added, int(rt.Count))
		}
		if err != nil {
			wt.ErrorCode, wt.ErrorMessage = h.code(r.Key, err), message(err)
			continue
		}
		cmd.Topics = append(cmd.Topics, more)
		slots = append(slots, wt)
	}
	if len(cmd.Topics) > 0 {
		h.submitPartitions(ctx, r.Key, cmd, req.ValidateOnly, slots)
	}
	return resp
}

func morePartitions(img *metadata.Image, rt *kmsg.CreatePartitionsRequestTopic) (more metadata.MorePartitions, added int, err error) {
	more = metadata.MorePartitions{Name: rt.Topic, Count: rt.Count}
	t, err := findTopic(img, rt.Topic, metadata.TopicID{}, false)
	if err != nil {
		return more, 0, err
	}
	added = int(rt.Count) - len(t.Partitions)
	if len(rt.Assignment) > 0 && len(rt.Assignment) != added {
		return more, 0, failf(kerr.InvalidReplicaAssignment, "replicas of %d partitions are given for %d new ones", len(rt.Assignment), added)
	}
	for i := range rt.Assignment {
		more.Assignments = append(more.Assignments, toNodes(rt.Assignment[i].Replicas))
	}
	return more, added, nil
}

func (h *Handler) submitPartitions(ctx context.Context, key int16, cmd *metadata.CreatePartitions, dry bool, slots []*kmsg.CreatePartitionsResponseTopic) {
	created, err := submitOrTry[metadata.CreatePartitionsResult](ctx, h, cmd, dry)
	if err == nil && len(created.Topics) != len(cmd.Topics) {
		err = errWrongResult(cmd, created)
	}
	var names []string
	for i, wt := range slots {
		terr := err
		if terr == nil && created.Topics[i].Err != nil {
			terr = created.Topics[i].Err
		}
		if terr != nil {
			wt.ErrorCode, wt.ErrorMessage = h.code(key, terr), message(terr)
			continue
		}
		names = append(names, wt.Topic)
	}
	if !dry {
		h.awaitLeaders(ctx, names)
	}
}
