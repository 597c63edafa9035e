package kafka

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/ident"
	"chronik/internal/metadata"
	"chronik/internal/wire"
)

// Metadata: versions 0 to 13.
//
//	v0   an empty list asks for all topics
//	v1   null asks for all topics, an empty list for none; controller, racks
//	v2   cluster id
//	v4   AllowAutoTopicCreation; before, asking is always allowed to create
//	v5   OfflineReplicas
//	v7   LeaderEpoch
//	v8   authorized operations (those of the cluster until v10)
//	v9   flexible
//	v10  topic ids
//	v12  a topic may be asked for by id alone
//	v13  an error of the whole response: none arises here
//
// Only brokers that answer this one are named (namedBrokers), not those that are
// connected and silent. The controller is this node: every broker passes admin requests on.

// autoCreateWait bounds how long a Metadata request waits for leaders of the
// topics it created; after that LEADER_NOT_AVAILABLE makes the client ask again.
const autoCreateWait = 3 * time.Second

// maxAutoCreate bounds the topics that one Metadata request creates.
const maxAutoCreate = 100

func clusterMetadata(h *Handler, ctx context.Context, r *wire.Request, req *kmsg.MetadataRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.MetadataResponse)
	img := h.cluster.Image()
	all := req.Topics == nil || (req.Version == 0 && len(req.Topics) == 0)
	var refused map[string]error
	if !all && (req.Version < 4 || req.AllowAutoTopicCreation) {
		refused = h.autoCreate(ctx, img, req.Topics)
		img = h.cluster.Image()
	}
	m := &metadataAnswer{h: h, req: req, img: img, refused: refused}
	for _, b := range h.namedBrokers(img) {
		wb := kmsg.NewMetadataResponseBroker()
		wb.NodeID, wb.Host, wb.Port, wb.Rack = int32(b.Node), b.KafkaHost, b.KafkaPort, rack(b)
		resp.Brokers = append(resp.Brokers, wb)
	}
	resp.ClusterID = &img.ClusterID
	resp.ControllerID = int32(h.cluster.Self())
	if req.IncludeClusterAuthorizedOperations {
		resp.AuthorizedOperations = clusterOperations
	}
	if all {
		resp.Topics = make([]kmsg.MetadataResponseTopic, 0, img.TopicCount())
		for t := range img.Topics() {
			resp.Topics = append(resp.Topics, m.topic(t))
		}
		return resp
	}
	resp.Topics = make([]kmsg.MetadataResponseTopic, 0, len(req.Topics))
	for i := range req.Topics {
		resp.Topics = append(resp.Topics, m.asked(&req.Topics[i]))
	}
	return resp
}

// Bits of Kafka's operations (KIP-430). Without access control everybody may do
// everything that applies to the resource.
const (
	opRead, opWrite, opCreate, opDelete, opAlter = 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 7
	opDescribe, opClusterAction                  = 1 << 8, 1 << 9
	opDescribeConfigs, opAlterConfigs            = 1 << 10, 1 << 11
	opIdempotentWrite                            = 1 << 12

	clusterOperations = opCreate | opAlter | opDescribe | opClusterAction | opDescribeConfigs | opAlterConfigs | opIdempotentWrite
	topicOperations   = opRead | opWrite | opCreate | opDelete | opAlter | opDescribe | opDescribeConfigs | opAlterConfigs
	groupOperations   = opRead | opDelete | opDescribe
)

// metadataAnswer builds one response.
type metadataAnswer struct {
	h   *Handler
	req *kmsg.MetadataRequest
	img *metadata.Image
	// refused says why topics that were asked for could not be created.
	refused map[string]error
}

// asked answers one topic of the request.
func (m *metadataAnswer) asked(req *kmsg.MetadataRequestTopic) kmsg.MetadataResponseTopic {
	var t *metadata.Topic
	var err error
	switch {
	case !metadata.TopicID(req.TopicID).IsZero():
		if m.req.Version < 12 {
			// Before v12 a name goes with every id, and an id alone means nothing.
			err = failf(kerr.InvalidRequest, "topic ids are asked for from version 12 on")
			break
		}
		t, err = findTopic(m.img, "", req.TopicID, true)
	case req.Topic == nil:
		err = kerr.InvalidTopicException
	default:
		if t, err = findTopic(m.img, *req.Topic, metadata.TopicID{}, false); err == nil {
			break
		}
		if cause := m.refused[*req.Topic]; cause != nil {
			err = cause
		} else if bad := checkTopicName(*req.Topic); bad != nil && !reserved[*req.Topic] {
			err = bad
		}
	}
	if err == nil {
		return m.topic(t)
	}
	wt := kmsg.NewMetadataResponseTopic()
	wt.ErrorCode = m.h.code(keyMetadata, err)
	wt.Topic, wt.TopicID = req.Topic, req.TopicID
	if wt.Topic == nil && m.req.Version < 12 {
		none := "" // not nullable yet
		wt.Topic = &none
	}
	wt.Partitions = []kmsg.MetadataResponseTopicPartition{}
	return wt
}

func (m *metadataAnswer) topic(t *metadata.Topic) kmsg.MetadataResponseTopic {
	wt := kmsg.NewMetadataResponseTopic()
	wt.Topic = &t.Name
	wt.TopicID = t.ID
	wt.IsInternal = t.Internal
	if m.req.IncludeTopicAuthorizedOperations {
		wt.AuthorizedOperations = topicOperations
	}
	wt.Partitions = make([]kmsg.MetadataResponseTopicPartition, len(t.Partitions))
	for i, mp := range t.Partitions {
		m.partition(mp, &wt.Partitions[i])
	}
	return wt
}

func (m *metadataAnswer) partition(mp *metadata.Partition, wp *kmsg.MetadataResponseTopicPartition) {
	wp.Default()
	wp.Partition = mp.Partition
	wp.Leader, wp.LeaderEpoch = -1, -1
	if node, epoch, ok := m.h.cluster.Leader(mp.Group); ok && m.h.isLive(m.img, node) {
		wp.Leader, wp.LeaderEpoch = int32(node), epoch
	} else {
		wp.ErrorCode = kerr.LeaderNotAvailable.Code
	}
	wp.Replicas = make([]int32, 0, len(mp.Replicas))
	wp.ISR = make([]int32, 0, len(mp.Replicas))
	for i := range mp.Replicas {
		r := &mp.Replicas[i]
		if !r.Voter() {
			continue
		}
		live := !r.Lost && m.h.alive(r.Node)
		if live || m.req.Version > 0 { // v0 clients expect to know every replica's broker
			wp.Replicas = append(wp.Replicas, int32(r.Node))
		}
		if live {
			wp.ISR = append(wp.ISR, int32(r.Node))
		} else {
			wp.OfflineReplicas = append(wp.OfflineReplicas, int32(r.Node))
		}
	}
}

// autoCreate creates the topics that are asked for by name and do not exist, if
// the node is set to, and waits a little for their leaders. It returns why
// topics could not be created.
func (h *Handler) autoCreate(ctx context.Context, img *metadata.Image, asked []kmsg.MetadataRequestTopic) map[string]error {
	c := &h.config
	if !c.AutoCreateTopics {
		return nil
	}
	cmd := &metadata.CreateTopics{Avoid: h.dead(img)}
	named := map[string]bool{}
	for i := range asked {
		name := asked[i].Topic
		if name == nil || !metadata.TopicID(asked[i].TopicID).IsZero() || named[*name] || img.Topic(*name) != nil ||
			len(cmd.Topics) == maxAutoCreate || checkTopicName(*name) != nil {
			continue
		}
		named[*name] = true
		cmd.Topics = append(cmd.Topics, metadata.NewTopic{
			Name: *name, ID: newTopicID(),
			Partitions: c.DefaultPartitions, ReplicationFactor: c.ReplicationFactor, ClampReplication: true,
		})
	}
	if len(cmd.Topics) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, autoCreateWait)
	defer cancel()
	refused := map[string]error{}
	created, err := submit[metadata.CreateTopicsResult](ctx, h, cmd)
	if err != nil {
		h.log.Warn("topics not created on demand", "topics", len(cmd.Topics), "err", err)
		for name := range named {
			refused[name] = kerr.LeaderNotAvailable // the client asks again
		}
		return refused
	}
	names := make([]string, 0, len(created.Topics))
	for i := range created.Topics {
		t := &created.Topics[i]
		if t.Err != nil && t.Err.Code != kerr.TopicAlreadyExists.Code {
			refused[t.Name] = t.Err
			continue
		}
		names = append(names, t.Name)
	}
	h.awaitLeaders(ctx, names)
	return refused
}

// awaitLeaders waits until every partition of the topics has a leader that can
// be reached, or ctx ends.
func (h *Handler) awaitLeaders(ctx context.Context, names []string) {
	h.await(ctx, func(img *metadata.Image) bool {
		for _, name := range names {
			if t := img.Topic(name); t != nil && !h.led(t.Partitions) {
				return false
			}
		}
		return true
	})
}

// led tells whether every group has a leader that can be reached.
func (h *Handler) led(groups []*metadata.Partition) bool {
	for _, mp := range groups {
		if node, _, ok := h.cluster.Leader(mp.Group); !ok || !h.alive(node) {
			return false
		}
	}
	return true
}

// await waits until cond holds, and tells whether it does before ctx ends.
func (h *Handler) await(ctx context.Context, cond func(*metadata.Image) bool) bool {
	for {
		image, leaders := h.cluster.Changed()
		if cond(h.cluster.Image()) {
			return true
		}
		select {
		case <-image:
		case <-leaders:
		case <-ctx.Done():
			return false
		}
	}
}

// isLive tells whether clients can be sent to a node.
func (h *Handler) isLive(img *metadata.Image, node ident.NodeID) bool {
	return h.alive(node) && img.Broker(node) != nil
}
