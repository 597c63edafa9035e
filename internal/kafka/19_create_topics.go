package kafka

import (
	"context"
	"crypto/rand"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/ident"
	"chronik/internal/metadata"
	"chronik/internal/wire"
)

// CreateTopics: versions 0 to 7.
//
//	v1  ValidateOnly, error messages
//	v4  -1 partitions and -1 replicas: the node's defaults (older versions get them too)
//	v5  flexible; what was created, with its settings
//	v7  topic id
//
// The response waits, as long as the client allows, until every partition has a
// leader: a client that produces next finds one.

// maxNewPartitions bounds what one request creates in all, as Kafka does: a command
// must not be small on the wire and endless when every node applies it.
const maxNewPartitions = 10_000

// claimPartitions takes n of what is left of maxNewPartitions, for a topic that will
// have total: more than a topic can have is refused by the command.
func claimPartitions(left *int, n, total int) error {
	if total > metadata.MaxPartitions {
		return nil
	}
	if n > *left {
		return failf(kerr.PolicyViolation, "one request creates at most %d partitions; ask for the others in further ones", maxNewPartitions)
	}
	*left -= max(0, n)
	return nil
}

func newTopicID() metadata.TopicID {
	var id metadata.TopicID
	for {
		_, _ = rand.Read(id[:]) // never fails
		if !id.IsZero() && id != (metadata.TopicID{15: 1}) {
			return id // Kafka keeps ids 0 and 1 for itself
		}
	}
}

func createTopics(h *Handler, ctx context.Context, r *wire.Request, req *kmsg.CreateTopicsRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.CreateTopicsResponse)
	ctx, cancel := bounded(ctx, req.TimeoutMillis)
	defer cancel()
	cmd := &metadata.CreateTopics{Avoid: h.dead(h.cluster.Image())}
	var slots []*kmsg.CreateTopicsResponseTopic // of cmd.Topics
	resp.Topics = make([]kmsg.CreateTopicsResponseTopic, len(req.Topics))
	times, left := countNames(req.Topics), maxNewPartitions
	for i := range req.Topics {
		rt, wt := &req.Topics[i], &resp.Topics[i]
		wt.Default()
		wt.Topic, wt.NumPartitions, wt.ReplicationFactor = rt.Topic, -1, -1
		var nt metadata.NewTopic
		var err error
		if times[rt.Topic] > 1 {
			err = failf(kerr.InvalidRequest, "the topic is named more than once")
		} else {
			nt, err = h.newTopic(rt)
		}
		if err == nil {
			n := max(int(nt.Partitions), len(nt.Assignments))
			err = claimPartitions(&left, n, n)
		}
		if err != nil {
			h.createFailed(r.Key, wt, err)
			continue
		}
		cmd.Topics = append(cmd.Topics, nt)
		slots = append(slots, wt)
	}
	if len(cmd.Topics) > 0 {
		h.submitTopics(ctx, r.Key, cmd, req.ValidateOnly, slots)
	}
	return resp
}

func countNames(topics []kmsg.CreateTopicsRequestTopic) map[string]int {
	times := make(map[string]int, len(topics))
	for i := range topics {
		times[topics[i].Topic]++
	}
	return times
}

// createFailed fills in an error. The settings are an empty list: null would say
// that the client may not see them.
func (h *Handler) createFailed(key int16, wt *kmsg.CreateTopicsResponseTopic, err error) {
	wt.ErrorCode = h.code(key, err)
	wt.ErrorMessage = message(err)
	wt.Configs = []kmsg.CreateTopicsResponseTopicConfig{}
}

// newTopic checks one topic of the request and fills in the defaults.
func (h *Handler) newTopic(rt *kmsg.CreateTopicsRequestTopic) (metadata.NewTopic, error) {
	nt := metadata.NewTopic{Name: rt.Topic, ID: newTopicID()}
	if err := checkTopicName(rt.Topic); err != nil {
		return nt, err
	}
	var err error
	if nt.Configs, err = newConfigs(rt.Configs); err != nil {
		return nt, err
	}
	if len(rt.ReplicaAssignment) > 0 {
		return nt, assigned(rt, &nt)
	}
	h.withDefaults(rt, &nt)
	return nt, nil
}

func newConfigs(configs []kmsg.CreateTopicsRequestTopicConfig) (map[string]string, error) {
	if len(configs) == 0 {
		return nil, nil
	}
	set := make(map[string]string, len(configs))
	for i := range configs {
		c := &configs[i]
		if _, twice := set[c.Name]; twice {
			return nil, failf(kerr.InvalidConfig, "%s is set more than once", c.Name)
		}
		if c.Value == nil {
			return nil, failf(kerr.InvalidConfig, "%s has no value", c.Name)
		}
		if err := checkConfig(c.Name, *c.Value); err != nil {
			return nil, err
		}
		set[c.Name] = *c.Value
	}
	return set, nil
}

// withDefaults takes the numbers of partitions and replicas; -1 is the node's default.
func (h *Handler) withDefaults(rt *kmsg.CreateTopicsRequestTopic, nt *metadata.NewTopic) {
	c := &h.config
	nt.Partitions, nt.ReplicationFactor = rt.NumPartitions, rt.ReplicationFactor
	if nt.Partitions == -1 {
		nt.Partitions = c.DefaultPartitions
	}
	if nt.ReplicationFactor == -1 {
		nt.ReplicationFactor = c.ReplicationFactor
		nt.ClampReplication = true
	}
}

// assigned takes the replicas that the client chose for each partition.
func assigned(rt *kmsg.CreateTopicsRequestTopic, nt *metadata.NewTopic) error {
	if rt.NumPartitions != -1 || rt.ReplicationFactor != -1 {
		return failf(kerr.InvalidRequest, "with replicas assigned, partitions and replication factor must both be -1")
	}
	n := len(rt.ReplicaAssignment)
	nt.Assignments = make([][]ident.NodeID, n)
	for i := range rt.ReplicaAssignment {
		a := &rt.ReplicaAssignment[i]
		if a.Partition < 0 || int(a.Partition) >= n || nt.Assignments[a.Partition] != nil {
			return failf(kerr.InvalidReplicaAssignment, "partitions must be numbered from 0 to %d, each once", n-1)
		}
		if len(a.Replicas) == 0 {
			return failf(kerr.InvalidReplicaAssignment, "partition %d has no replicas", a.Partition)
		}
		nt.Assignments[a.Partition] = toNodes(a.Replicas)
	}
	for _, nodes := range nt.Assignments {
		if len(nodes) != len(nt.Assignments[0]) {
			return failf(kerr.InvalidReplicaAssignment, "partitions have different numbers of replicas")
		}
	}
	return nil
}

func toNodes(ids []int32) []ident.NodeID {
	nodes := make([]ident.NodeID, len(ids))
	for i, id := range ids {
		nodes[i] = ident.NodeID(id)
	}
	return nodes
}

// submitTopics creates the topics and waits for their leaders.
func (h *Handler) submitTopics(ctx context.Context, key int16, cmd *metadata.CreateTopics, dry bool, slots []*kmsg.CreateTopicsResponseTopic) {
	created, err := submitOrTry[metadata.CreateTopicsResult](ctx, h, cmd, dry)
	if err == nil && len(created.Topics) != len(cmd.Topics) {
		err = errWrongResult(cmd, created)
	}
	if err != nil {
		for _, wt := range slots {
			h.createFailed(key, wt, err)
		}
		return
	}
	var names []string
	for i := range created.Topics {
		c, wt := &created.Topics[i], slots[i]
		if c.Err != nil {
			h.createFailed(key, wt, c.Err)
			continue
		}
		if !dry {
			wt.TopicID = c.ID
		}
		h.described(wt, &cmd.Topics[i], c.Partitions, c.ReplicationFactor)
		names = append(names, c.Name)
	}
	if !dry {
		h.awaitLeaders(ctx, names)
	}
}

// described fills in what a topic is created with.
func (h *Handler) described(wt *kmsg.CreateTopicsResponseTopic, nt *metadata.NewTopic, partitions int32, replicas int16) {
	wt.NumPartitions, wt.ReplicationFactor = partitions, replicas
	wt.Configs = make([]kmsg.CreateTopicsResponseTopicConfig, 0, len(topicConfigs))
	for i := range topicConfigs {
		v := h.effective(nt.Configs, &topicConfigs[i])[0]
		c := kmsg.NewCreateTopicsResponseTopicConfig()
		c.Name, c.Value, c.Source = topicConfigs[i].name, &v.value, int8(v.source)
		wt.Configs = append(wt.Configs, c)
	}
}
