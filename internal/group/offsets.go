package group

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/ident"
	"chronik/internal/raftgroup"
)

// maxCommit bounds the offsets of one request.
const maxCommit = 100_000

// Commit answers an OffsetCommit request once the offsets are replicated. A
// topic's name must be given: ids are resolved before.
func (c *Coordinator) Commit(_ context.Context, req *kmsg.OffsetCommitRequest, reply func(*kmsg.OffsetCommitResponse)) {
	c.locked(func() {
		code := c.mayCommit(req)
		var accepted []committed
		if code == 0 {
			accepted, code = c.toCommit(req)
		}
		answer := func(code int16) { reply(c.commitResponse(req, code)) }
		if code != 0 || len(accepted) == 0 {
			c.later(func() { answer(code) })
			return
		}
		data := encodeCommit(c.nowMs(), req.Group, accepted)
		if len(data) > raftgroup.MaxEntry {
			c.later(func() { answer(errCommitTooLarge) })
			return
		}
		c.propose(data, answer)
	})
}

// mayCommit checks the committing member against the group.
func (c *Coordinator) mayCommit(req *kmsg.OffsetCommitRequest) int16 {
	if len(req.Group) > maxString { // the empty id is legal here, as old clients use it
		return errInvalidGroup
	}
	if code := c.refuse(); code != 0 {
		return code
	}
	g := c.groups[req.Group]
	if req.Generation < 0 && req.MemberID == "" && (g == nil || len(g.members) == 0) {
		return 0 // a consumer that assigns partitions to itself
	}
	if g == nil {
		if req.Generation >= 0 {
			return errIllegalGeneration
		}
		return errUnknownMember
	}
	m, code := g.member(req.MemberID, req.InstanceID)
	switch {
	case code != 0:
		return code
	case req.Generation != g.generation:
		return errIllegalGeneration
	}
	c.touch(g, m, time.Now())
	if g.state == CompletingRebalance {
		return errRebalance // its partitions may be another's already
	}
	return 0
}

func (c *Coordinator) toCommit(req *kmsg.OffsetCommitRequest) ([]committed, int16) {
	var cs []committed
	expire := int64(0)
	if req.RetentionTimeMillis > 0 {
		expire = c.nowMs() + req.RetentionTimeMillis
	}
	for i := range req.Topics {
		t := &req.Topics[i]
		if len(t.Topic) > maxString {
			return nil, errUnknownPartition
		}
		for j := range t.Partitions {
			p := &t.Partitions[j]
			if c.commitError(p) != 0 {
				continue
			}
			o := Offset{Offset: p.Offset, LeaderEpoch: -1, ExpireMs: expire}
			if req.Version >= 6 {
				o.LeaderEpoch = p.LeaderEpoch
			}
			if p.Metadata != nil {
				o.Metadata = *p.Metadata
			}
			cs = append(cs, committed{t.Topic, p.Partition, o})
		}
	}
	if len(cs) > maxCommit {
		return nil, errCommitTooLarge
	}
	return cs, 0
}

// commitError tells why one partition's offset is not taken, or 0.
func (c *Coordinator) commitError(p *kmsg.OffsetCommitRequestTopicPartition) int16 {
	if p.Metadata != nil && len(*p.Metadata) > c.opt.MaxMetadata {
		return errMetadataTooLarge
	}
	return 0
}

func (c *Coordinator) commitResponse(req *kmsg.OffsetCommitRequest, code int16) *kmsg.OffsetCommitResponse {
	resp := req.ResponseKind().(*kmsg.OffsetCommitResponse)
	resp.Topics = make([]kmsg.OffsetCommitResponseTopic, 0, len(req.Topics))
	for i := range req.Topics {
		t := &req.Topics[i]
		rt := kmsg.NewOffsetCommitResponseTopic()
		rt.Topic, rt.TopicID = t.Topic, t.TopicID
		rt.Partitions = make([]kmsg.OffsetCommitResponseTopicPartition, 0, len(t.Partitions))
		for j := range t.Partitions {
			rp := kmsg.NewOffsetCommitResponseTopicPartition()
			rp.Partition = t.Partitions[j].Partition
			if rp.ErrorCode = code; code == 0 {
				rp.ErrorCode = c.commitError(&t.Partitions[j])
			}
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}

// Fetch answers for one group of an OffsetFetch request: the offsets of topics,
// or, with nil, all of them. Groups of one request may belong to different shards.
// It blocks until a majority has confirmed that no newer leader has committed
// anything since the call (correctness rule 26), for ProposeTimeout at most.
func (c *Coordinator) Fetch(ctx context.Context, group string, topics []kmsg.OffsetFetchRequestGroupTopic) kmsg.OffsetFetchResponseGroup {
	resp := kmsg.NewOffsetFetchResponseGroup()
	resp.Group = group
	c.mu.Lock()
	resp.ErrorCode = c.refuse()
	c.mu.Unlock()
	if resp.ErrorCode == 0 {
		resp.ErrorCode = c.readIndex(ctx)
	}
	if resp.ErrorCode != 0 {
		return resp
	}
	c.sm.mu.RLock()
	defer c.sm.mu.RUnlock()
	if topics == nil {
		for k, o := range c.sm.st.offsetsOf(group) {
			if n := len(resp.Topics); n == 0 || resp.Topics[n-1].Topic != k.topic {
				t := kmsg.NewOffsetFetchResponseGroupTopic()
				t.Topic = k.topic
				resp.Topics = append(resp.Topics, t)
			}
			t := &resp.Topics[len(resp.Topics)-1]
			t.Partitions = append(t.Partitions, fetched(k.partition, o))
		}
		return resp
	}
	resp.Topics = make([]kmsg.OffsetFetchResponseGroupTopic, 0, len(topics))
	for i := range topics {
		t := kmsg.NewOffsetFetchResponseGroupTopic()
		t.Topic, t.TopicID = topics[i].Topic, topics[i].TopicID
		t.Partitions = make([]kmsg.OffsetFetchResponseGroupTopicPartition, 0, len(topics[i].Partitions))
		for _, p := range topics[i].Partitions {
			t.Partitions = append(t.Partitions, fetched(p, c.sm.st.offset(offsetKey{group, t.Topic, p})))
		}
		resp.Topics = append(resp.Topics, t)
	}
	return resp
}

// readIndex waits until the state here is as new as what was committed when it
// was called; it returns a code if that cannot be known: one of the two that old
// Java consumers repeat OffsetFetch after. They throw on every other.
func (c *Coordinator) readIndex(ctx context.Context) int16 {
	done := make(chan error, 1)
	c.r.ReadIndex(time.Now().Add(c.opt.ProposeTimeout), func(_ ident.Index, err error) { done <- err })
	select {
	case err := <-done:
		switch {
		case err == nil:
			return 0
		case codeOf(err) == errNotCoordinator:
			return errNotCoordinator
		}
		return errLoadInProgress
	case <-ctx.Done():
		return errLoadInProgress
	}
}

// fetched is a partition's answer; o is nil if nothing is committed.
func fetched(partition int32, o *Offset) kmsg.OffsetFetchResponseGroupTopicPartition {
	p := kmsg.NewOffsetFetchResponseGroupTopicPartition()
	p.Partition, p.Offset, p.LeaderEpoch = partition, -1, -1
	empty := ""
	p.Metadata = &empty
	if o != nil {
		p.Offset, p.LeaderEpoch, p.Metadata = o.Offset, o.LeaderEpoch, &o.Metadata
	}
	return p
}
