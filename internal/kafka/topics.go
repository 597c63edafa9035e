package kafka

import (
	"github.com/twmb/franz-go/pkg/kerr"

	"chronik/internal/ident"
	"chronik/internal/metadata"
)

// findTopic finds a topic by name or, for the versions that carry ids only, by id.
func findTopic(img *metadata.Image, name string, id metadata.TopicID, byID bool) (*metadata.Topic, error) {
	if byID {
		if t := img.TopicByID(id); t != nil {
			return t, nil
		}
		return nil, kerr.UnknownTopicID
	}
	if t := img.Topic(name); t != nil {
		return t, nil
	}
	return nil, kerr.UnknownTopicOrPartition
}

// findPartition finds a partition of a topic; any number may come from a client.
func findPartition(t *metadata.Topic, n int32) (*metadata.Partition, error) {
	if n < 0 || int(n) >= len(t.Partitions) {
		return nil, kerr.UnknownTopicOrPartition
	}
	return t.Partitions[n], nil
}

// leader finds the local replica that leads a partition. The metadata partition
// is returned with the error too, once it is known, so that a response can name
// the leader.
func (h *Handler) leader(t *metadata.Topic, n int32) (*metadata.Partition, Partition, error) {
	mp, err := findPartition(t, n)
	if err != nil {
		return nil, nil, err
	}
	p := h.cluster.Partition(mp.Group)
	if p == nil {
		return mp, nil, kerr.NotLeaderForPartition
	}
	if ok, _ := p.Leader(); !ok {
		return mp, nil, kerr.NotLeaderForPartition
	}
	return mp, p, nil
}

// checkEpoch compares the epoch a client believes in (-1: it does not say) with
// that of the local leader.
func checkEpoch(p Partition, claimed int32) error {
	ok, epoch := p.Leader()
	switch {
	case !ok:
		return kerr.NotLeaderForPartition
	case claimed < 0 || claimed == epoch:
		return nil
	case claimed < epoch:
		return kerr.FencedLeaderEpoch
	default:
		return kerr.UnknownLeaderEpoch
	}
}

// endpoint is where clients reach a node.
func (h *Handler) endpoint(img *metadata.Image, node int32) (*metadata.Broker, bool) {
	b := img.Broker(ident.NodeID(node))
	return b, b != nil
}

// rack is a broker's rack as responses carry it.
func rack(b *metadata.Broker) *string {
	if b.Rack == "" {
		return nil
	}
	return &b.Rack
}

// voters counts the replicas of a partition that vote.
func voters(mp *metadata.Partition) int {
	n := 0
	for i := range mp.Replicas {
		if mp.Replicas[i].Voter() {
			n++
		}
	}
	return n
}

// reserved are the names that clients cannot create topics by.
var reserved = map[string]bool{
	metadata.MetaTopic:    true,
	metadata.OffsetsTopic: true,
	"__transaction_state": true,
}

// checkTopicName holds a new topic's name against Kafka's rules.
func checkTopicName(name string) error {
	if reserved[name] {
		return failf(kerr.InvalidTopicException, "the name %s is reserved", name)
	}
	return metadata.CheckTopicName(name)
}

// namedBrokers are the brokers that clients are told of, in order of id: this one, and those that it
// reaches. If those are not a majority it names all that are registered: then it is rather this node that is cut
// off, and a client that was told of nobody else would ask nobody else.
func (h *Handler) namedBrokers(img *metadata.Image) []*metadata.Broker {
	all := img.Brokers()
	live := make([]*metadata.Broker, 0, len(all))
	for _, b := range all {
		if h.alive(b.Node) {
			live = append(live, b)
		}
	}
	if len(live) <= len(all)/2 {
		return all
	}
	return live
}

// alive tells whether a node is registered and can be reached.
func (h *Handler) alive(node ident.NodeID) bool {
	return node == h.cluster.Self() || h.cluster.Alive(node)
}

// dead are the registered nodes that cannot be reached: new replicas go elsewhere.
func (h *Handler) dead(img *metadata.Image) []ident.NodeID {
	var nodes []ident.NodeID
	for _, b := range img.Brokers() {
		if !h.alive(b.Node) {
			nodes = append(nodes, b.Node)
		}
	}
	return nodes
}
