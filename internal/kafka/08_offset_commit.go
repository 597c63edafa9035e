package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/metadata"
	"chronik/internal/wire"
)

// OffsetCommit: versions 0 to 10.
//
//	v0   no member: for consumers that assign partitions to themselves
//	v2   how long to keep the offsets, until v4
//	v6   leader epochs
//	v7   static members
//	v8   flexible
//	v10  topic ids in place of names
//
// Offsets are stored by topic name; those of partitions that do not exist are refused.

func serveOffsetCommit(h *Handler, ctx context.Context, r *wire.Request, reply func(kmsg.Response)) {
	req, ok := bodyOf[*kmsg.OffsetCommitRequest](h, r, reply)
	if !ok {
		return
	}
	c, err := h.coordinator(req.Group)
	if err != nil {
		code := h.code(r.Key, err)
		reply(commitAnswer(req, func(int, int) int16 { return code }))
		return
	}
	known, refused := h.committable(req)
	if refused == 0 {
		c.Commit(ctx, known, func(resp *kmsg.OffsetCommitResponse) { reply(h.counting(resp)) })
		return
	}
	c.Commit(ctx, known, func(resp *kmsg.OffsetCommitResponse) { reply(h.counting(h.mergeCommit(req, resp))) })
}

// committable returns the request with the names of its topics filled in and
// without the partitions that do not exist, and how many those are.
func (h *Handler) committable(req *kmsg.OffsetCommitRequest) (*kmsg.OffsetCommitRequest, int) {
	img := h.cluster.Image()
	out := *req
	out.Topics = make([]kmsg.OffsetCommitRequestTopic, 0, len(req.Topics))
	refused := 0
	for i := range req.Topics {
		rt := req.Topics[i]
		t, err := findTopic(img, rt.Topic, rt.TopicID, req.Version >= 10)
		if err != nil {
			refused += max(1, len(rt.Partitions))
			continue
		}
		rt.Topic = t.Name
		all := rt.Partitions
		rt.Partitions = make([]kmsg.OffsetCommitRequestTopicPartition, 0, len(all))
		for j := range all {
			if _, err := findPartition(t, all[j].Partition); err != nil {
				refused++
				continue
			}
			rt.Partitions = append(rt.Partitions, all[j])
		}
		out.Topics = append(out.Topics, rt)
	}
	return &out, refused
}

// mergeCommit puts the coordinator's answer and the refusals of committable back
// into the request's order.
func (h *Handler) mergeCommit(req *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse) *kmsg.OffsetCommitResponse {
	type at struct {
		topic     string
		id        metadata.TopicID
		partition int32
	}
	answered := map[at]int16{}
	for i := range resp.Topics {
		t := &resp.Topics[i]
		name := t.Topic
		if req.Version >= 10 {
			name = ""
		}
		for _, p := range t.Partitions {
			answered[at{name, t.TopicID, p.Partition}] = p.ErrorCode
		}
	}
	img := h.cluster.Image()
	return commitAnswer(req, func(i, j int) int16 {
		t := &req.Topics[i]
		n := t.Partitions[j].Partition
		if code, ok := answered[at{t.Topic, t.TopicID, n}]; ok {
			return code
		}
		mt, err := findTopic(img, t.Topic, t.TopicID, req.Version >= 10)
		if err == nil {
			_, err = findPartition(mt, n)
		}
		if k := lookupError(err); k != nil {
			return k.Code
		}
		return kerr.UnknownTopicOrPartition.Code // it came into being meanwhile; the client tries again
	})
}

// commitAnswer answers each partition of a request with its code.
func commitAnswer(req *kmsg.OffsetCommitRequest, code func(topic, partition int) int16) *kmsg.OffsetCommitResponse {
	resp := req.ResponseKind().(*kmsg.OffsetCommitResponse)
	resp.Topics = make([]kmsg.OffsetCommitResponseTopic, len(req.Topics))
	for i := range req.Topics {
		rt, wt := &req.Topics[i], &resp.Topics[i]
		wt.Default()
		wt.Topic, wt.TopicID = rt.Topic, rt.TopicID
		wt.Partitions = make([]kmsg.OffsetCommitResponseTopicPartition, len(rt.Partitions))
		for j := range rt.Partitions {
			wt.Partitions[j].Default()
			wt.Partitions[j].Partition = rt.Partitions[j].Partition
			wt.Partitions[j].ErrorCode = code(i, j)
		}
	}
	return resp
}

// counting counts the errors of a response.
func (h *Handler) counting(resp *kmsg.OffsetCommitResponse) *kmsg.OffsetCommitResponse {
	for i := range resp.Topics {
		for j := range resp.Topics[i].Partitions {
			h.counted(keyOffsetCommit, resp.Topics[i].Partitions[j].ErrorCode)
		}
	}
	return resp
}
