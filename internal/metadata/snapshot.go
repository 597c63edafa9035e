package metadata

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"chronik/internal/format"
	"chronik/internal/ident"
)

// The encoded Image is lines of JSON, in a fixed order (docs/formats/metadata.md):
//
//	{"format":"chronik-metadata","version":1,…}   counters, cluster id
//	{"broker":{…}}                                 by node id
//	{"configs":{"node":0,"values":{…}}}            by node id, 0 = all brokers
//	{"topic":{…}}                                  by name
//	{"group":{…}}                                  by group id
//	{"end":N}                                      N = the lines between
const (
	imageFormat  = "chronik-metadata"
	imageVersion = 1
	// maxImageLine bounds one line: a topic's configs or a group's replicas.
	maxImageLine = 64 << 20
)

// ErrCorruptImage is wrapped by ReadImage's errors.
var ErrCorruptImage = errors.New("metadata: corrupt image")

type headerLine struct {
	Format         string          `json:"format"`
	Version        int             `json:"version"`
	Index          ident.Index     `json:"index"`
	Level          int             `json:"level"`
	ClusterID      string          `json:"cluster_id"`
	Coordinators   int32           `json:"coordinators"`
	NextGroup      ident.GroupID   `json:"next_group"`
	NextReplica    ident.ReplicaID `json:"next_replica"`
	NextProducerID int64           `json:"next_producer_id"`
}

type configLine struct {
	Node   ident.NodeID      `json:"node"`
	Values map[string]string `json:"values"`
}

type topicLine struct {
	ID        TopicID           `json:"id"`
	Name      string            `json:"name"`
	Internal  bool              `json:"internal,omitempty"`
	Count     int               `json:"partitions"`
	Configs   map[string]string `json:"configs,omitempty"`
	CreatedAt ident.Index       `json:"created_at"`
}

type groupLine struct {
	Group      ident.GroupID     `json:"group"`
	TopicID    TopicID           `json:"topic_id,omitzero"`
	Partition  int32             `json:"partition,omitempty"`
	Generation uint64            `json:"generation"`
	Replicas   []Replica         `json:"replicas"`
	Removing   []ident.ReplicaID `json:"removing,omitempty"`
	Founders   []Founder         `json:"founders"`
	CreatedAt  ident.Index       `json:"created_at,omitempty"`
}

type imageLine struct {
	Broker  *Broker     `json:"broker,omitempty"`
	Configs *configLine `json:"configs,omitempty"`
	Topic   *topicLine  `json:"topic,omitempty"`
	Group   *groupLine  `json:"group,omitempty"`
	End     *int        `json:"end,omitempty"`
}

// WriteTo writes the Image's encoding. Equal Images have equal bytes.
func (i *Image) WriteTo(w io.Writer) (int64, error) {
	cw := &countingWriter{w: w}
	bw := bufio.NewWriterSize(cw, 64<<10)
	enc := json.NewEncoder(bw)
	enc.SetEscapeHTML(false)
	if err := i.encode(enc); err != nil {
		return cw.n, err
	}
	err := bw.Flush()
	return cw.n, err
}

func (i *Image) encode(enc *json.Encoder) error {
	err := enc.Encode(headerLine{
		Format: imageFormat, Version: imageVersion, Index: i.Index, Level: i.Level, ClusterID: i.ClusterID,
		Coordinators: i.CoordinatorCount, NextGroup: i.NextGroup, NextReplica: i.NextReplica, NextProducerID: i.NextProducerID,
	})
	lines := 0
	line := func(l imageLine) bool {
		lines++
		err = enc.Encode(l)
		return err == nil
	}
	if err == nil {
		i.tree.brokers.m.Scan(func(_ ident.NodeID, b *Broker) bool { return line(imageLine{Broker: b}) })
	}
	if err == nil {
		i.tree.configs.m.Scan(func(n ident.NodeID, c map[string]string) bool {
			return line(imageLine{Configs: &configLine{n, c}})
		})
	}
	if err == nil {
		i.tree.topics.m.Scan(func(_ string, t *Topic) bool {
			return line(imageLine{Topic: &topicLine{t.ID, t.Name, t.Internal, len(t.Partitions), t.Configs, t.CreatedAt}})
		})
	}
	if err == nil {
		i.tree.groups.m.Scan(func(_ ident.GroupID, p *Partition) bool {
			return line(imageLine{Group: &groupLine{
				p.Group, p.TopicID, p.Partition, p.Generation, p.Replicas, p.Removing, p.Founders, p.CreatedAt,
			}})
		})
	}
	if err != nil {
		return err
	}
	return enc.Encode(imageLine{End: &lines})
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// ReadImage reads what WriteTo wrote. It takes in one line at a time and never
// makes room for more than it has read. Errors wrap ErrCorruptImage and name the line.
func ReadImage(r io.Reader) (*Image, error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 64<<10), maxImageLine)
	d := &imageReader{work: newWork(emptyImage()), counts: map[TopicID]int{}, seen: map[ident.ReplicaID]bool{}}
	n := 0
	for sc.Scan() {
		n++
		if err := d.line(n, sc.Bytes()); err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrCorruptImage, n, err)
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("%w: line %d: %w", ErrCorruptImage, n+1, err)
	}
	if err := d.finish(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorruptImage, err)
	}
	return d.work.done(), nil
}

type imageReader struct {
	work   *work
	counts map[TopicID]int // partitions each topic must have in the end
	seen   map[ident.ReplicaID]bool
	lines  int
	ended  bool
}

func (d *imageReader) line(n int, b []byte) error {
	if n == 1 {
		return d.header(b)
	}
	if d.ended {
		return errors.New("behind the end")
	}
	var l imageLine
	if err := strictJSON(b, &l); err != nil {
		return err
	}
	d.lines++
	switch {
	case l.Broker != nil:
		if l.Broker.Node <= 0 || d.work.img.Broker(l.Broker.Node) != nil {
			return fmt.Errorf("broker %d", l.Broker.Node)
		}
		d.work.img.tree.brokers.m.Set(l.Broker.Node, l.Broker)
	case l.Configs != nil:
		d.work.img.tree.configs.m.Set(l.Configs.Node, l.Configs.Values)
	case l.Topic != nil:
		return d.topic(l.Topic)
	case l.Group != nil:
		return d.group(l.Group)
	case l.End != nil:
		d.ended = true
		if *l.End != d.lines-1 {
			return fmt.Errorf("%d lines, not %d", d.lines-1, *l.End)
		}
	default:
		return errors.New("an empty line")
	}
	return nil
}

func (d *imageReader) header(b []byte) error {
	var h headerLine
	if err := strictJSON(b, &h); err != nil {
		return err
	}
	if h.Format != imageFormat {
		return fmt.Errorf("format %q, want %q", h.Format, imageFormat)
	}
	if err := format.Check(h.Version, imageVersion); err != nil {
		return fmt.Errorf("metadata of %w", err)
	}
	i := d.work.img
	i.Index, i.Level, i.ClusterID, i.CoordinatorCount = h.Index, h.Level, h.ClusterID, h.Coordinators
	i.NextGroup, i.NextReplica, i.NextProducerID = h.NextGroup, h.NextReplica, h.NextProducerID
	return nil
}

func (d *imageReader) topic(l *topicLine) error {
	if l.ID.IsZero() || d.work.img.Topic(l.Name) != nil || d.work.img.TopicByID(l.ID) != nil {
		return fmt.Errorf("topic %q named twice or without an id", l.Name)
	}
	d.counts[l.ID] = l.Count
	d.work.putTopic(&Topic{ID: l.ID, Name: l.Name, Internal: l.Internal, Configs: l.Configs, CreatedAt: l.CreatedAt})
	d.work.img.tree.normalized.m.Set(normalize(l.Name), strings.Clone(l.Name))
	return nil
}

// group takes in a group. Those of a topic come in order of partition, as group ids rise.
func (d *imageReader) group(l *groupLine) error {
	p := &Partition{
		Group: l.Group, TopicID: l.TopicID, Partition: l.Partition, Generation: l.Generation,
		Replicas: l.Replicas, Removing: l.Removing, Founders: l.Founders, CreatedAt: l.CreatedAt,
	}
	img := d.work.img
	switch {
	case p.Group == 0 || p.Group >= img.NextGroup || img.Partition(p.Group) != nil:
		return fmt.Errorf("group %d", p.Group)
	case p.Group == ident.MetaGroup:
		p.Topic = MetaTopic
	case p.TopicID.IsZero():
		p.Topic = OffsetsTopic
		if int(p.Partition) != len(img.Coordinators) {
			return fmt.Errorf("group %d is coordinator %d, want %d", p.Group, p.Partition, len(img.Coordinators))
		}
	default:
		t := img.TopicByID(p.TopicID)
		if t == nil || int(p.Partition) != len(t.Partitions) {
			return fmt.Errorf("group %d is partition %d of topic %s", p.Group, p.Partition, p.TopicID)
		}
		p.Topic = t.Name
	}
	for _, r := range p.Replicas {
		if r.ID == 0 || r.ID >= img.NextReplica || r.Node <= 0 || d.seen[r.ID] {
			return fmt.Errorf("group %d: replica %d", p.Group, r.ID)
		}
		d.seen[r.ID] = true
	}
	d.work.setPartition(p)
	return nil
}

func (d *imageReader) finish() error {
	if !d.ended {
		return errors.New("the end line is missing")
	}
	for t := range d.work.img.Topics() {
		if len(t.Partitions) != d.counts[t.ID] {
			return fmt.Errorf("topic %s has %d partitions, want %d", t.Name, len(t.Partitions), d.counts[t.ID])
		}
	}
	if (d.work.img.ClusterID == "") != (d.work.img.Meta == nil) {
		return errors.New("a cluster without its metadata group")
	}
	return nil
}
