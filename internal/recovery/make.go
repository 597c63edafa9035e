package recovery

import (
	"context"
	"errors"

	"chronik/internal/group"
	"chronik/internal/ident"
	"chronik/internal/metadata"
	"chronik/internal/partition"
	"chronik/internal/raftgroup"
	"chronik/internal/segment"
	"chronik/internal/snapshot"
	"chronik/internal/vfs"
)

// openers know each kind of group's state machine.
type openers struct{ handles *segment.Handles }

func (o openers) of(kind byte) raftgroup.OpenFunc {
	switch kind {
	case metadata.KindMeta:
		return metadata.Open(metadata.NewStore())
	case metadata.KindTopic:
		return partition.Opener{Handles: o.handles}.Open
	case metadata.KindOffsets:
		return group.Open
	default:
		return nil
	}
}

// workshop is where a new store is put together: a directory, or, for a dry run, memory.
type workshop struct {
	fs       vfs.FS
	replicas string
	bring    func(from, to string, size int64, open bool) error
	scratch  *vfs.Scratch // nil: it is real
	openers  openers
	store    ident.StoreID
}

func newWorkshop(d *dir, dry bool) *workshop {
	w := &workshop{
		fs: d.fs, replicas: d.built("replicas"), bring: d.bring, openers: openers{segment.NewHandles(0)},
		store: ident.NewStoreID(),
	}
	if dry {
		w.scratch = vfs.NewScratch(d.fs)
		w.fs, w.replicas = w.scratch, "/replicas"
		w.bring = func(from, to string, size int64, _ bool) error { return w.scratch.Borrow(from, to, size) }
	}
	return w
}

func (w *workshop) options(spec raftgroup.Spec) raftgroup.LoadOptions {
	return raftgroup.LoadOptions{FS: w.fs, Dir: raftgroup.ReplicaDir(w.replicas, spec), Bring: w.bring, Open: w.openers.of(spec.Kind)}
}

// clean removes what a load left that failed.
func (w *workshop) clean(spec raftgroup.Spec) error {
	if w.scratch != nil {
		w.scratch.Forget()
		return nil
	}
	return w.fs.RemoveAll(raftgroup.ReplicaDir(w.replicas, spec))
}

// maker makes a new cluster of states, wherever they come from.
type maker struct {
	d    *dir // nil: a dry run without a directory
	node ident.NodeID
	shop *workshop
	rep  *Report
	// img is the old cluster's metadata.
	img *metadata.Image
	// ids are the new replicas' by group. least lies above every id that may have been given.
	ids   map[ident.GroupID]ident.ReplicaID
	least ident.ReplicaID
	at    ident.Index // of the new Image
}

// plan takes the metadata from which everything is made.
func (k *maker) plan(img *metadata.Image, meta *raftgroup.Loaded) {
	k.img = img
	k.ids, _ = img.RecoveredIDs(k.least)
	k.at, _ = meta.Point()
}

func (k *maker) spec(p *metadata.Partition) raftgroup.Spec {
	return p.Spec(metadata.Replica{ID: k.ids[p.Group], Node: k.node, Store: k.shop.store, CreatedAt: k.at})
}

// others names the nodes that are to join.
func (k *maker) others() {
	for _, b := range k.img.Brokers() {
		if b.Node != k.node {
			k.rep.Nodes = append(k.rep.Nodes, int32(b.Node))
		}
	}
}

func (k *maker) describe(p *metadata.Partition) *Group {
	g := &Group{
		Group: p.Name(), Topic: p.Topic, Partition: p.Partition, Outcome: Lost, NewReplica: uint64(k.ids[p.Group]),
		LogStart: -1, NextOffset: -1, Others: []Other{}, id: p.Group,
	}
	for _, rep := range p.Replicas {
		if rep.Node != k.node {
			g.Others = append(g.Others, Other{Replica: uint64(rep.ID), Node: int32(rep.Node), Store: rep.Store.String(), Learner: !rep.Voter()})
		}
	}
	return g
}

// fresh makes an empty replica of a group of which nothing is left.
func (k *maker) fresh(spec raftgroup.Spec, g *Group, term ident.Term) error {
	l, err := raftgroup.Fresh(spec.Group, term, k.shop.options(spec))
	if err != nil {
		return err
	}
	return k.save(spec, g, l)
}

// save makes the state durable as the group's new replica, and lets go of it.
func (k *maker) save(spec raftgroup.Spec, g *Group, l *raftgroup.Loaded) (err error) {
	defer func() { err = errors.Join(err, l.Close()) }()
	if k.shop.scratch != nil {
		defer k.shop.scratch.Forget()
	}
	g.conf = l.Generation
	_, term := l.Point()
	g.NewTerm = uint64(term)
	if p, ok := l.SM.(*partition.StateMachine); ok {
		g.LogStart, g.NextOffset = p.Offsets()
		if err := p.Verify(context.Background()); err != nil {
			g.note("kept with damage, which nobody can read or copy: %v", err)
		}
	}
	if k.shop.scratch != nil {
		return nil
	}
	g.kept, err = l.Save(raftgroup.SaveOptions{To: spec, Node: k.node, Store: k.shop.store, Codec: snapshot.Zstd})
	return err
}

// saveMeta writes the metadata group's replica with the new Image in place of its state.
func (k *maker) saveMeta(meta *raftgroup.Loaded, img *metadata.Image) error {
	p := img.Partition(ident.MetaGroup)
	spec := p.Spec(p.Replicas[0])
	kept, err := meta.SaveAt(k.d.fs, raftgroup.ReplicaDir(k.shop.replicas, spec), raftgroup.SaveOptions{
		To: spec, Node: k.node, Store: k.shop.store, Codec: snapshot.Zstd, Blob: img.WriteTo,
	})
	if err != nil {
		return err
	}
	k.rep.Groups[0].kept = kept
	return nil
}

// make puts together what was saved, with the new cluster's metadata, and puts it in place.
func (k *maker) make(cluster string, meta *raftgroup.Loaded, conf map[ident.GroupID]uint64) error {
	img := k.img.Recovered(metadata.Recovery{
		ClusterID: cluster, Index: k.at, Node: k.node, Store: k.shop.store, NextReplica: k.least, Generations: conf,
	})
	if err := k.saveMeta(meta, img); err != nil {
		return err
	}
	kept := make([]raftgroup.Kept, len(k.rep.Groups))
	for i := range k.rep.Groups {
		kept[i] = k.rep.Groups[i].kept
	}
	if err := k.d.seed(k.shop.store, kept); err != nil {
		return err
	}
	if err := k.d.announce(k.node, k.shop.store, cluster); err != nil {
		return err
	}
	aside, err := k.d.finish()
	k.rep.Aside = aside
	return err
}
