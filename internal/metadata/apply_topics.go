package metadata

import (
	"maps"
	"strings"

	"chronik/internal/ident"
)

const (
	// maxTopicName is Kafka's limit.
	maxTopicName = 249
	// MaxPartitions bounds the partitions of a topic.
	MaxPartitions = 100_000
)

// CheckTopicName tells why name cannot be a topic's, or nil. Errors match ErrInvalidTopic.
func CheckTopicName(name string) error { return asError(checkTopicName(name)) }

func checkTopicName(name string) *Error {
	switch {
	case name == "":
		return ErrInvalidTopic.with("the name is empty")
	case name == "." || name == "..":
		return ErrInvalidTopic.with("the name cannot be %q", name)
	case len(name) > maxTopicName:
		return ErrInvalidTopic.with("the name has %d characters, at most %d are allowed", len(name), maxTopicName)
	}
	for _, r := range name {
		ok := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-'
		if !ok {
			return ErrInvalidTopic.with("the name %q has the character %q; letters, digits, '.', '_' and '-' are allowed", name, r)
		}
	}
	return nil
}

// normalize maps names that Kafka's metrics cannot tell apart to one string.
func normalize(name string) string { return strings.ReplaceAll(name, ".", "_") }

func (w *work) createTopics(index ident.Index, c *CreateTopics) *CreateTopicsResult {
	res := &CreateTopicsResult{}
	pl := &lazyPlacer{img: w.img, avoid: c.Avoid}
	for i := range c.Topics {
		n := &c.Topics[i]
		out := CreatedTopic{Name: n.Name}
		if t, err := w.createTopic(index, n, pl); err != nil {
			out.Err = err
		} else {
			out.ID = t.ID
			out.Partitions = int32(len(t.Partitions)) // at most MaxPartitions
			out.ReplicationFactor = int16(len(t.Partitions[0].Replicas))
		}
		res.Topics = append(res.Topics, out)
	}
	return res
}

// lazyPlacer counts the replicas of the cluster once a command, and only if needed.
type lazyPlacer struct {
	img   *Image
	avoid []ident.NodeID
	p     *placer
}

func (l *lazyPlacer) get() *placer {
	if l.p == nil {
		l.p = newPlacer(l.img, l.avoid)
	}
	return l.p
}

func (w *work) createTopic(index ident.Index, n *NewTopic, pl *lazyPlacer) (*Topic, *Error) {
	if err := w.checkNewTopic(n); err != nil {
		return nil, err
	}
	var all [][]*placeNode
	var err *Error
	if len(n.Assignments) > 0 {
		all, err = explicit(w.img, n.Assignments, 0)
	} else {
		all, err = pl.get().placeAll(int(n.Partitions), int(n.ReplicationFactor), n.ClampReplication)
	}
	if err != nil {
		return nil, err
	}
	t := &Topic{ID: n.ID, Name: n.Name, Internal: n.Internal, Configs: maps.Clone(n.Configs), CreatedAt: index}
	t.Partitions = make([]*Partition, 0, len(all))
	w.putTopic(t)
	w.img.tree.normalized.m.Set(normalize(n.Name), n.Name)
	for i, nodes := range all {
		w.newGroup(index, t, t.Name, int32(i), nodes) // at most MaxPartitions
	}
	return t, nil
}

func (w *work) checkNewTopic(n *NewTopic) *Error {
	if err := checkTopicName(n.Name); err != nil {
		return err
	}
	if w.img.Topic(n.Name) != nil || n.Name == OffsetsTopic || n.Name == MetaTopic {
		return ErrTopicExists.with("topic %s already exists", n.Name)
	}
	if other := w.img.tree.normalized.get(normalize(n.Name)); other != "" {
		return ErrInvalidTopic.with("the name %s collides with topic %s: '.' and '_' count as equal", n.Name, other)
	}
	if n.ID.IsZero() || w.img.TopicByID(n.ID) != nil {
		return ErrBadCommand.with("topic %s: the id %s is not fresh", n.Name, n.ID)
	}
	count := int(n.Partitions)
	if len(n.Assignments) > 0 {
		count = len(n.Assignments)
	}
	if count < 1 || count > MaxPartitions {
		return ErrInvalidPartitions.with("topic %s: %d partitions; 1 to %d are possible", n.Name, count, MaxPartitions)
	}
	return checkTopicConfigs(n.Configs)
}

func (w *work) createPartitions(index ident.Index, c *CreatePartitions) *CreatePartitionsResult {
	res := &CreatePartitionsResult{}
	pl := &lazyPlacer{img: w.img, avoid: c.Avoid}
	for i := range c.Topics {
		m := &c.Topics[i]
		out := TopicOutcome{Name: m.Name}
		if out.Err = w.morePartitions(index, m, pl); out.Err == nil {
			out.ID = w.img.Topic(m.Name).ID
		}
		res.Topics = append(res.Topics, out)
	}
	return res
}

func (w *work) morePartitions(index ident.Index, m *MorePartitions, pl *lazyPlacer) *Error {
	t := w.img.Topic(m.Name)
	if t == nil {
		return ErrUnknownTopic.with("topic %s does not exist", m.Name)
	}
	have := int32(len(t.Partitions)) // at most MaxPartitions
	switch {
	case m.Count <= have:
		return ErrInvalidPartitions.with("topic %s has %d partitions already; they can only become more", m.Name, have)
	case m.Count > MaxPartitions:
		return ErrInvalidPartitions.with("topic %s: %d partitions, at most %d are possible", m.Name, m.Count, MaxPartitions)
	}
	replication := len(t.Partitions[0].ReplicaNodes())
	var all [][]*placeNode
	var err *Error
	if len(m.Assignments) > 0 {
		if int32(len(m.Assignments)) != m.Count-have {
			return ErrInvalidAssignment.with("topic %s: %d assignments for %d new partitions", m.Name, len(m.Assignments), m.Count-have)
		}
		all, err = explicit(w.img, m.Assignments, replication)
	} else {
		all, err = pl.get().placeAll(int(m.Count-have), replication, true)
	}
	if err != nil {
		return err
	}
	for i, nodes := range all {
		w.newGroup(index, t, t.Name, have+int32(i), nodes)
	}
	return nil
}

func (w *work) deleteTopics(c *DeleteTopics) *DeleteTopicsResult {
	res := &DeleteTopicsResult{}
	for _, ref := range c.Topics {
		out := TopicOutcome{Name: ref.Name, ID: ref.ID}
		t := w.img.Topic(ref.Name)
		if ref.Name == "" {
			t = w.img.TopicByID(ref.ID)
		}
		switch {
		case t != nil:
			out.Name, out.ID = t.Name, t.ID
			w.deleteTopic(t)
		case ref.Name == "":
			out.Err = ErrUnknownTopicID.with("no topic has the id %s", ref.ID)
		default:
			out.Err = ErrUnknownTopic.with("topic %s does not exist", ref.Name)
		}
		res.Topics = append(res.Topics, out)
	}
	return res
}

func (w *work) deleteTopic(t *Topic) {
	for _, p := range t.Partitions {
		w.dropPartition(p)
	}
	w.img.tree.topics.m.Delete(t.Name)
	w.img.tree.topicIDs.m.Delete(string(t.ID[:]))
	w.img.tree.normalized.m.Delete(normalize(t.Name))
}
