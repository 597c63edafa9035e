package metadata

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"chronik/internal/format"
	"chronik/internal/ident"
	"chronik/internal/raftgroup"
	"chronik/internal/vfs"
)

// StateMachine is the metadata group's. Its state is one Image.
type StateMachine struct {
	img   *Image // after the last applied entry
	store *Store
}

var _ raftgroup.StateMachine = (*StateMachine)(nil)

// Open returns the function that opens the metadata group's state machine; it
// publishes its Images to store.
func Open(store *Store) raftgroup.OpenFunc {
	return func(_ vfs.FS, dir string, blob []byte, _ []raftgroup.CaptureFile) (raftgroup.StateMachine, error) {
		m := &StateMachine{img: emptyImage(), store: store}
		if blob != nil {
			if err := m.Install(dir, blob); err != nil {
				return nil, err
			}
		}
		return m, nil
	}
}

// Apply implements raftgroup.StateMachine: each Result is a *Reply. A command
// that cannot be decoded is refused like any other; it changes nothing on any node.
func (m *StateMachine) Apply(entries []raftgroup.Entry) ([]raftgroup.Result, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	results := make([]raftgroup.Result, len(entries))
	w := newWork(m.img)
	for i, e := range entries {
		cmd, err := Decode(e.Data)
		if errors.Is(err, format.ErrNewer) {
			// Releases that know the command apply it: refusing it here would make
			// this Image another one, for ever. The replica stops instead.
			return nil, fmt.Errorf("entry %d: %w", e.Index, err)
		}
		r := &Reply{Index: e.Index, Err: err}
		if err == nil {
			r.Result, r.Err = w.apply(e.Index, cmd)
		}
		w.img.Index = e.Index
		results[i] = r
	}
	m.img = w.done()
	m.store.publish(m.img)
	return results, nil
}

// DryRun tells what cmd would be answered now, and changes nothing: validate_only.
func (i *Image) DryRun(cmd Command) *Reply {
	w := newWork(i)
	r := &Reply{Index: i.Index}
	r.Result, r.Err = w.apply(i.Index+1, cmd)
	return r
}

// Image returns the state after the last applied entry. Not for concurrent use with Apply.
func (m *StateMachine) Image() *Image { return m.img }

// Capture implements raftgroup.StateMachine: the Image is the capture.
func (m *StateMachine) Capture() (raftgroup.Capture, error) { return capture{m.img}, nil }

// Install implements raftgroup.StateMachine.
func (m *StateMachine) Install(dir string, blob []byte) error {
	img, err := ReadImage(bytes.NewReader(blob))
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	m.img = img
	m.store.publish(img)
	return nil
}

// Close implements raftgroup.StateMachine.
func (m *StateMachine) Close() error { return nil }

type capture struct{ img *Image }

func (c capture) Sync() error                        { return nil }
func (c capture) Files() []raftgroup.CaptureFile     { return nil }
func (c capture) Published()                         {}
func (c capture) Release()                           {}
func (c capture) WriteTo(w io.Writer) (int64, error) { return c.img.WriteTo(w) }

// work is an Image being changed: a private clone of the trees. Values in them
// are shared until work has copied them; owned remembers which those are, so that a
// topic of many partitions is copied once an Apply.
type work struct {
	img   *Image
	owned map[*Topic]bool
}

func newWork(base *Image) *work {
	img := *base
	img.tree = base.tree.clone()
	return &work{img: &img, owned: map[*Topic]bool{}}
}

// done ends the changes; the Image is immutable from here on.
func (w *work) done() *Image { return w.img }

// apply carries out one command. It is a pure function of the Image, the index
// and the command (correctness rule 1), and it changes nothing when it refuses.
func (w *work) apply(index ident.Index, cmd Command) (any, error) {
	if g, ok := cmd.(*Genesis); ok {
		return result(w.genesis(g))
	}
	if w.img.ClusterID == "" {
		return nil, ErrNoCluster
	}
	switch c := cmd.(type) {
	case *RegisterBroker:
		return result(w.register(index, c))
	case *RetireBroker:
		return nil, asError(w.retire(c))
	case *DrainBroker:
		return nil, asError(w.drain(c))
	case *CreateTopics:
		return w.createTopics(index, c), nil
	case *CreatePartitions:
		return w.createPartitions(index, c), nil
	case *DeleteTopics:
		return w.deleteTopics(c), nil
	case *AlterConfigs:
		return w.alterConfigs(c), nil
	case *AllocateProducerIDs:
		return result(w.allocateProducerIDs(c))
	case *CreateCoordinators:
		return result(w.createCoordinators(index, c))
	case *ReplaceReplica:
		return result(w.replaceReplica(index, c))
	case *ReportMembership:
		return result(w.reportMembership(c))
	case *SwapMetaVoter:
		return nil, asError(w.swapMetaVoter(c))
	default:
		return nil, ErrBadCommand.with("no rule for %q", cmd.Kind())
	}
}

// result and asError keep a nil *Error from becoming a non-nil error, and a nil
// result from becoming a non-nil any.
func result[T any](r *T, err *Error) (any, error) {
	if err != nil {
		return nil, err
	}
	return r, nil
}

func asError(err *Error) error {
	if err != nil {
		return err
	}
	return nil
}

// setPartition puts a new version of a group everywhere the Image names it.
func (w *work) setPartition(p *Partition) {
	if old := w.img.Partition(p.Group); old != nil {
		for _, r := range old.Replicas {
			w.img.tree.byNode.m.Delete(nodeKey(r.Node, r.ID))
		}
	}
	for _, r := range p.Replicas {
		w.img.tree.byNode.m.Set(nodeKey(r.Node, r.ID), p.Group)
	}
	w.img.tree.groups.m.Set(p.Group, p)
	switch {
	case p.Group == ident.MetaGroup:
		w.img.Meta = p
	case p.TopicID.IsZero():
		cs := append([]*Partition(nil), w.img.Coordinators...)
		for int(p.Partition) >= len(cs) {
			cs = append(cs, nil)
		}
		cs[p.Partition] = p
		w.img.Coordinators = cs
	default:
		t := w.ownTopic(w.img.TopicByID(p.TopicID))
		if int(p.Partition) == len(t.Partitions) {
			t.Partitions = append(t.Partitions, p)
		} else {
			t.Partitions[p.Partition] = p
		}
	}
}

// dropPartition removes a group; its replicas are retired with that.
func (w *work) dropPartition(p *Partition) {
	for _, r := range p.Replicas {
		w.img.tree.byNode.m.Delete(nodeKey(r.Node, r.ID))
	}
	w.img.tree.groups.m.Delete(p.Group)
}

// ownTopic returns a version of t that this work may modify.
func (w *work) ownTopic(t *Topic) *Topic {
	if w.owned[t] {
		return t
	}
	c := *t
	c.Partitions = append(make([]*Partition, 0, len(t.Partitions)+1), t.Partitions...)
	w.putTopic(&c)
	return &c
}

// putTopic stores a topic that this work made.
func (w *work) putTopic(t *Topic) {
	w.owned[t] = true
	w.img.tree.topics.m.Set(t.Name, t)
	w.img.tree.topicIDs.m.Set(string(t.ID[:]), t)
}

func (w *work) nextReplica() ident.ReplicaID {
	id := w.img.NextReplica
	w.img.NextReplica++
	return id
}

func (w *work) nextGroup() ident.GroupID {
	id := w.img.NextGroup
	w.img.NextGroup++
	return id
}
