package group

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/raftgroup"
)

// List returns this shard's groups in any of the given states and types (nil:
// all), by id, or why it cannot.
func (c *Coordinator) List(states, types []string) ([]kmsg.ListGroupsResponseGroup, int16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if code := c.refuse(); code != 0 {
		return nil, code
	}
	if len(types) > 0 && !slices.ContainsFunc(types, func(t string) bool { return strings.EqualFold(t, "classic") }) {
		return nil, 0
	}
	found := map[string]kmsg.ListGroupsResponseGroup{}
	put := func(id, protocolType string, state State) {
		g := kmsg.NewListGroupsResponseGroup()
		g.Group, g.ProtocolType, g.GroupState, g.GroupType = id, protocolType, string(state), "classic"
		found[id] = g
	}
	c.sm.mu.RLock()
	c.sm.st.groups.Scan(func(id string, g *groupState) bool {
		protocolType := ""
		if g.meta != nil {
			protocolType = g.meta.ProtocolType
		}
		put(id, protocolType, Empty) // those with members are live
		return true
	})
	c.sm.mu.RUnlock()
	for id, g := range c.groups {
		if _, known := found[id]; known || len(g.members) > 0 {
			put(id, g.protocolType, g.state)
		}
	}
	out := make([]kmsg.ListGroupsResponseGroup, 0, len(found))
	for _, g := range found {
		if len(states) == 0 || slices.ContainsFunc(states, func(s string) bool { return strings.EqualFold(s, g.GroupState) }) {
			out = append(out, g)
		}
	}
	slices.SortFunc(out, func(a, b kmsg.ListGroupsResponseGroup) int { return cmp.Compare(a.Group, b.Group) })
	return out, 0
}

// Describe answers for one group of a DescribeGroups request. A group that does
// not exist is Dead, without an error.
func (c *Coordinator) Describe(group string) kmsg.DescribeGroupsResponseGroup {
	d := kmsg.NewDescribeGroupsResponseGroup()
	d.Group = group
	c.mu.Lock()
	defer c.mu.Unlock()
	if d.ErrorCode = c.refuse(); d.ErrorCode != 0 {
		return d
	}
	if g := c.groups[group]; g != nil && (len(g.members) > 0 || c.exists(group)) {
		c.describeLive(g, &d)
		return d
	}
	c.sm.mu.RLock()
	defer c.sm.mu.RUnlock()
	d.State = string(Dead)
	if g := c.sm.st.group(group); g != nil {
		d.State = string(Empty)
		if g.meta != nil {
			d.ProtocolType = g.meta.ProtocolType
		}
	}
	return d
}

func (c *Coordinator) describeLive(g *liveGroup, d *kmsg.DescribeGroupsResponseGroup) {
	d.State, d.ProtocolType = string(g.state), g.protocolType
	if g.state == Stable {
		d.Protocol = g.protocol
	}
	for _, m := range g.inOrder() {
		r := kmsg.NewDescribeGroupsResponseGroupMember()
		r.MemberID, r.InstanceID, r.ClientID, r.ClientHost = m.id, m.instance, m.clientID, m.clientHost
		r.ProtocolMetadata, r.MemberAssignment = []byte{}, []byte{}
		if g.state == Stable {
			r.ProtocolMetadata, r.MemberAssignment = m.metadata(g.protocol), m.assignment
		}
		d.Members = append(d.Members, r)
	}
}

// exists tells whether a group is replicated. mu is held.
func (c *Coordinator) exists(group string) bool {
	c.sm.mu.RLock()
	defer c.sm.mu.RUnlock()
	return c.sm.st.group(group) != nil
}

// Delete deletes a group that has no members, with its offsets. reply gets 0 or Kafka's code.
func (c *Coordinator) Delete(_ context.Context, group string, reply func(code int16)) {
	c.locked(func() {
		g := c.groups[group]
		code := c.refuse()
		switch {
		case code != 0:
		case g != nil && len(g.members) > 0:
			code = errNonEmpty
		case !c.exists(group):
			code = errGroupNotFound
		default:
			c.propose(encodeDeleteGroup(c.nowMs(), group, false), func(code int16) {
				if code == 0 {
					c.forget(group)
				}
				reply(code)
			})
			return
		}
		c.later(func() { reply(code) })
	})
}

// forget drops a live group that was deleted, unless somebody joined it meanwhile.
func (c *Coordinator) forget(group string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g := c.groups[group]; g != nil && g.state == Empty && len(g.pending) == 0 {
		delete(c.groups, group)
	}
}

// DeleteOffsets answers an OffsetDelete request. Topics that members of the
// group subscribe to keep their offsets.
func (c *Coordinator) DeleteOffsets(_ context.Context, req *kmsg.OffsetDeleteRequest, reply func(*kmsg.OffsetDeleteResponse)) {
	resp := req.ResponseKind().(*kmsg.OffsetDeleteResponse)
	c.locked(func() {
		code, subscribed := c.mayDeleteOffsets(req.Group)
		if code != 0 {
			resp.ErrorCode = code
			c.later(func() { reply(resp) })
			return
		}
		n, size := 0, 0
		for i := range req.Topics {
			n += len(req.Topics[i].Partitions)
			size += len(req.Topics[i].Partitions) * (len(req.Group) + len(req.Topics[i].Topic) + maxDeleted)
		}
		if size > raftgroup.MaxEntry { // each offset names its group and topic again
			resp.ErrorCode = errCommitTooLarge
			c.later(func() { reply(resp) })
			return
		}
		ds := make([]deleted, 0, n)
		resp.Topics = make([]kmsg.OffsetDeleteResponseTopic, 0, len(req.Topics))
		for _, t := range req.Topics {
			rt := kmsg.NewOffsetDeleteResponseTopic()
			rt.Topic = t.Topic
			rt.Partitions = make([]kmsg.OffsetDeleteResponseTopicPartition, 0, len(t.Partitions))
			for _, p := range t.Partitions {
				rp := kmsg.NewOffsetDeleteResponseTopicPartition()
				rp.Partition = p.Partition
				if subscribed[t.Topic] {
					rp.ErrorCode = errSubscribed
				} else if len(t.Topic) <= maxString {
					ds = append(ds, deleted{offsetKey{req.Group, t.Topic, p.Partition}, -1})
				}
				rt.Partitions = append(rt.Partitions, rp)
			}
			resp.Topics = append(resp.Topics, rt)
		}
		if len(ds) == 0 {
			c.later(func() { reply(resp) })
			return
		}
		c.propose(encodeDeleteOffsets(c.nowMs(), ds), func(code int16) {
			resp.ErrorCode = code
			reply(resp)
		})
	})
}

// mayDeleteOffsets tells which topics a group's members subscribe to, or why no
// offset can be deleted.
func (c *Coordinator) mayDeleteOffsets(group string) (code int16, subscribed map[string]bool) {
	if code := c.refuse(); code != 0 {
		return code, nil
	}
	g := c.groups[group]
	switch {
	case g == nil && !c.exists(group):
		return errGroupNotFound, nil
	case g == nil || len(g.members) == 0:
		return 0, nil
	case g.protocolType != "consumer":
		return errNonEmpty, nil // what its members use cannot be known
	}
	subscribed = map[string]bool{}
	for _, m := range g.members {
		for _, p := range m.protocols {
			topics, err := subscribedTopics(p.metadata)
			if err != nil {
				return errNonEmpty, nil // not in the form that consumers use
			}
			for _, t := range topics {
				subscribed[t] = true
			}
		}
	}
	return 0, subscribed
}

// subscribedTopics reads the topics of a consumer's subscription (Kafka's
// ConsumerProtocolSubscription): its version and the topics stand first in every
// version; what follows differs. kmsg would make room for as many of what follows
// as the bytes claim.
func subscribedTopics(metadata []byte) ([]string, error) {
	r := &reader{b: metadata}
	version, n := r.int16be(), r.int32be()
	if r.bad || version < 0 || int(n) > len(r.b)/2 {
		return nil, fmt.Errorf("%w: subscription of %d bytes, version %d, %d topics", ErrCorrupt, len(metadata), version, n)
	}
	topics := make([]string, 0, max(0, n)) // negative: null
	for range n {
		size := r.int16be()
		if size < 0 || int(size) > len(r.b) {
			return nil, fmt.Errorf("%w: subscription of %d bytes: topic at byte %d", ErrCorrupt, len(metadata), len(metadata)-len(r.b))
		}
		topics = append(topics, string(r.b[:size]))
		r.b = r.b[size:]
	}
	return topics, nil
}
