package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"

	"chronik/internal/group"
	"chronik/internal/ident"
	"chronik/internal/identity"
	"chronik/internal/metadata"
	"chronik/internal/partition"
	"chronik/internal/raftgroup"
	"chronik/internal/raftlog"
	"chronik/internal/segment"
	"chronik/internal/snapshot"
	"chronik/internal/vfs"
)

// Options of Recover.
type Options struct {
	FS vfs.FS // nil: the operating system's
	// Dir is the data directory of a node that does not run.
	Dir string
	// DryRun reports and writes nothing but what a start would write.
	DryRun bool
	// Cluster is the new cluster's id; "": a random one.
	Cluster string
	Log     *slog.Logger
}

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
	node     ident.NodeID
}

func newWorkshop(d *dir, node ident.NodeID, dry bool) *workshop {
	w := &workshop{
		fs: d.fs, replicas: d.built("replicas"), bring: d.bring, openers: openers{segment.NewHandles(0)},
		store: ident.NewStoreID(), node: node,
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

// Recover makes a new cluster of a survivor's data directory.
func Recover(ctx context.Context, o Options) (rep *Report, err error) {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	hold, err := identity.Hold(o.FS, o.Dir)
	if err != nil {
		return nil, holdError(o.Dir, err)
	}
	defer func() { err = errors.Join(err, hold.Close()) }()
	d := &dir{fs: o.FS, path: o.Dir, hold: hold}
	if rep, err := d.resume(o.DryRun); rep != nil || err != nil {
		return rep, err
	}
	id, err := hold.Identity()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &Error{Msg: o.Dir + " holds no store", Hint: "--data-dir names the data directory of a node that survived; 'chronik restore --from URL' needs none"}
	case err != nil:
		return nil, err
	case id.State != identity.Member:
		return nil, &Error{Msg: fmt.Sprintf("%s is a store that is %s: it has no data of a cluster", o.Dir, id.State), Hint: "choose a node that was a member and kept its disk"}
	}
	if err := d.free(id.Store); err != nil {
		return nil, err
	}
	log, err := raftlog.Open(raftlog.Options{
		FS: o.FS, Dir: d.join("raftlog"), Store: id.Store, MaxBytes: 1 << 50, Logger: o.Log, // so large that nothing is tidied up
	})
	if err != nil {
		return nil, &Error{
			Msg: "the raftlog of " + o.Dir + " cannot be opened", Err: err,
			Hint: "try another survivor's data directory, or 'chronik restore --from URL'",
		}
	}
	r := &recoverer{o: o, d: d, id: id, shop: newWorkshop(d, id.Node, o.DryRun)}
	rep, err = r.run(ctx, log)
	return rep, errors.Join(err, log.Close())
}

func holdError(dir string, err error) error {
	switch {
	case errors.Is(err, identity.ErrInUse):
		return &Error{Msg: "cannot open the data directory", Err: err, Hint: "stop the node first: this works on the files of a node that does not run"}
	case errors.Is(err, fs.ErrNotExist):
		return &Error{Msg: "there is no data directory " + dir, Hint: "--data-dir names it"}
	default:
		return err
	}
}

// resume finishes an interrupted run that had announced its result; nil if there is none.
func (d *dir) resume(dry bool) (*Report, error) {
	id, err := d.hold.Announced()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	}
	rep := &Report{
		DataDir: d.path, Source: d.path, Node: int32(id.Node), DryRun: dry, Resumed: true, NewCluster: id.Cluster, NewStore: id.Store.String(),
		Groups: []Group{}, Nodes: []int32{},
	}
	if old, err := d.hold.Identity(); err == nil {
		rep.OldCluster, rep.OldStore = old.Cluster, old.Store.String()
	}
	if dry {
		return rep, nil
	}
	rep.Aside, err = d.finish()
	return rep, err
}

// recoverer is one run of Recover.
type recoverer struct {
	o    Options
	d    *dir
	id   identity.Identity
	shop *workshop

	remains map[ident.GroupID][]*raftgroup.Remains // the best first
	rep     *Report
	img     *metadata.Image // as the survivor's log ends
	ids     map[ident.GroupID]ident.ReplicaID
	least   ident.ReplicaID // above every id on this disk
	at      ident.Index     // of the new Image
}

func (r *recoverer) run(ctx context.Context, log *raftlog.Log) (*Report, error) {
	cluster := cmp.Or(r.o.Cluster, identity.NewClusterID())
	r.rep = &Report{
		DataDir: r.o.Dir, Source: r.o.Dir, Node: int32(r.id.Node), DryRun: r.o.DryRun, OldCluster: r.id.Cluster, OldStore: r.id.Store.String(),
		NewCluster: cluster, NewStore: r.shop.store.String(), Groups: []Group{}, Nodes: []int32{},
	}
	if r.o.DryRun {
		r.rep.NewCluster, r.rep.NewStore = r.o.Cluster, "" // they are made when it is done
	} else if err := r.d.clear(); err != nil {
		return nil, err
	}
	r.survey(log)
	meta, err := r.openMeta()
	if err != nil {
		return nil, err
	}
	defer func() { _ = meta.Close() }() // it holds no files
	conf := map[ident.GroupID]uint64{}
	for _, p := range r.img.Survivors() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		g := r.describe(p)
		if p.Group != ident.MetaGroup {
			if err := r.keep(p, g); err != nil {
				return nil, fmt.Errorf("%s: %w", p.Name(), err)
			}
			conf[p.Group] = g.conf
		}
		r.rep.Groups = append(r.rep.Groups, *g)
	}
	conf[ident.MetaGroup] = meta.Generation
	r.aboutMeta(meta)
	r.strangers()
	for _, b := range r.img.Brokers() {
		if b.Node != r.id.Node {
			r.rep.Nodes = append(r.rep.Nodes, int32(b.Node))
		}
	}
	if r.o.DryRun {
		return r.rep, nil
	}
	img := r.img.Recovered(metadata.Recovery{
		ClusterID: cluster, Index: r.at, Node: r.id.Node, Store: r.shop.store, NextReplica: r.least, Generations: conf,
	})
	if err := r.saveMeta(meta, img); err != nil {
		return nil, err
	}
	return r.rep, r.commit(cluster)
}

func (r *recoverer) commit(cluster string) error {
	var kept []raftgroup.Kept
	for i := range r.rep.Groups {
		kept = append(kept, r.rep.Groups[i].kept)
	}
	if err := vfs.SyncDir(r.d.fs, r.shop.replicas); err != nil {
		return err
	}
	if err := r.d.seed(r.shop.store, kept); err != nil {
		return err
	}
	if err := r.d.announce(r.id.Node, r.shop.store, cluster); err != nil {
		return err
	}
	aside, err := r.d.finish()
	r.rep.Aside = aside
	return err
}

// survey finds what there is of each group, the most advanced replica first.
func (r *recoverer) survey(log *raftlog.Log) {
	r.remains = map[ident.GroupID][]*raftgroup.Remains{}
	for _, m := range raftgroup.Survey(r.o.FS, r.d.join("replicas"), log) {
		r.remains[m.Spec.Group] = append(r.remains[m.Spec.Group], m)
		r.least = max(r.least, m.Spec.Replica+1)
		for _, other := range m.Members {
			r.least = max(r.least, other.Replica+1)
		}
	}
	for _, ms := range r.remains {
		slices.SortStableFunc(ms, func(a, b *raftgroup.Remains) int {
			if (a.Err == nil) != (b.Err == nil) {
				return cmp.Compare(boolInt(b.Err == nil), boolInt(a.Err == nil))
			}
			return cmp.Or(cmp.Compare(b.LastTerm, a.LastTerm), cmp.Compare(b.Last, a.Last), cmp.Compare(b.Spec.Replica, a.Spec.Replica))
		})
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// openMeta loads the metadata: without it nobody knows which groups there are.
func (r *recoverer) openMeta() (*raftgroup.Loaded, error) {
	var errs []error
	for _, m := range r.remains[ident.MetaGroup] {
		scratch := vfs.NewScratch(r.o.FS) // it has no files of its own
		l, err := m.Load(raftgroup.LoadOptions{
			FS: scratch, Dir: "/meta", Bring: func(from, to string, size int64, _ bool) error { return scratch.Borrow(from, to, size) },
			Open: r.shop.openers.of(metadata.KindMeta),
		})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if img := l.SM.(*metadata.StateMachine).Image(); img.ClusterID != "" {
			r.img = img
			r.ids, _ = img.RecoveredIDs(r.least)
			r.at, _ = l.Point()
			return l, nil
		}
		errs = append(errs, errors.Join(fmt.Errorf("replica %d holds no metadata", m.Spec.Replica), l.Close()))
	}
	return nil, &Error{
		Msg: "the metadata in " + r.o.Dir + " cannot be read", Err: errors.Join(errs...),
		Hint: "try another survivor's data directory, or 'chronik restore --from URL'",
	}
}

func (r *recoverer) describe(p *metadata.Partition) *Group {
	g := &Group{
		Group: p.Name(), Topic: p.Topic, Partition: p.Partition, Outcome: Lost, NewReplica: uint64(r.ids[p.Group]),
		LogStart: -1, NextOffset: -1, Others: []Other{}, id: p.Group,
	}
	for _, rep := range p.Replicas {
		if rep.Node != r.id.Node {
			g.Others = append(g.Others, Other{Replica: uint64(rep.ID), Node: int32(rep.Node), Store: rep.Store.String(), Learner: !rep.Voter()})
		}
	}
	return g
}

// keep makes the group's new replica of the best that can be read, or an empty one.
func (r *recoverer) keep(p *metadata.Partition, g *Group) error {
	spec := p.Spec(metadata.Replica{ID: r.ids[p.Group], Node: r.id.Node, Store: r.shop.store, CreatedAt: r.at})
	term := ident.Term(0)
	for _, m := range r.remains[p.Group] {
		term = max(term, m.Term)
		if m.Empty() {
			g.note("replica %d here had received nothing yet", m.Spec.Replica)
			continue
		}
		l, err := m.Load(r.shop.options(spec))
		if err == nil {
			g.Outcome, g.Replica = Kept, uint64(m.Spec.Replica)
			g.found(m, l)
			if r.img.Retired(p.Group, m.Spec.Replica) {
				g.note("replica %d had left the group: its state may be old", m.Spec.Replica)
			}
			return r.save(spec, g, l)
		}
		if vfs.IsNoSpace(err) {
			return err
		}
		g.Outcome = Damaged
		g.note("replica %d: %v", m.Spec.Replica, err)
		if err := r.shop.clean(spec); err != nil {
			return err
		}
	}
	if g.Outcome == Lost {
		g.note("no replica here: what it held is lost")
	}
	l, err := raftgroup.Fresh(p.Group, term, r.shop.options(spec))
	if err != nil {
		return err
	}
	return r.save(spec, g, l)
}

// found fills in what was found of a group.
func (g *Group) found(m *raftgroup.Remains, l *raftgroup.Loaded) {
	g.FromIndex, g.ToIndex, g.KnownCommit = uint64(m.From), uint64(l.Index), uint64(m.Commit)
	if l.Index > m.Commit {
		g.Beyond = uint64(l.Index - m.Commit)
	}
	g.Term = uint64(max(m.Term, l.Term))
	if m.Damage != nil {
		g.note("raftlog: %v", m.Damage)
	}
	if l.Cut != nil {
		g.note("entries behind %d are lost: %v", l.Index, l.Cut)
	}
	if l.Index < m.Commit {
		g.note("entries %d to %d were committed and are lost", l.Index+1, m.Commit)
	}
}

// save makes the state durable as the group's new replica, and lets go of it.
func (r *recoverer) save(spec raftgroup.Spec, g *Group, l *raftgroup.Loaded) (err error) {
	defer func() { err = errors.Join(err, l.Close()) }()
	if r.shop.scratch != nil {
		defer r.shop.scratch.Forget()
	}
	g.conf = l.Generation
	_, term := l.Point()
	g.NewTerm = uint64(term)
	if p, ok := l.SM.(*partition.StateMachine); ok {
		g.LogStart, g.NextOffset = p.Offsets()
		if err := p.Verify(); err != nil {
			g.note("kept with damage, which nobody can read or copy: %v", err)
		}
	}
	if r.shop.scratch != nil {
		return nil
	}
	g.kept, err = l.Save(raftgroup.SaveOptions{To: spec, Node: r.id.Node, Store: r.shop.store, Codec: snapshot.Zstd})
	return err
}

// saveMeta writes the metadata group's replica with the new Image in place of its state.
func (r *recoverer) saveMeta(meta *raftgroup.Loaded, img *metadata.Image) error {
	p := img.Partition(ident.MetaGroup)
	spec := p.Spec(p.Replicas[0])
	kept, err := meta.SaveAt(r.d.fs, raftgroup.ReplicaDir(r.shop.replicas, spec), raftgroup.SaveOptions{
		To: spec, Node: r.id.Node, Store: r.shop.store, Codec: snapshot.Zstd, Blob: img.WriteTo,
	})
	if err != nil {
		return err
	}
	r.rep.Groups[0].kept = kept
	return nil
}

// aboutMeta completes the metadata group's row, which is the first.
func (r *recoverer) aboutMeta(l *raftgroup.Loaded) {
	g := &r.rep.Groups[0]
	for _, m := range r.remains[ident.MetaGroup] {
		if m.Spec.Replica == l.Replica {
			g.Outcome, g.Replica = Kept, uint64(l.Replica)
			g.found(m, l)
		}
	}
	_, term := l.Point()
	g.NewTerm = uint64(term)
}

// strangers notes groups on the disk that the metadata does not name.
func (r *recoverer) strangers() {
	for id, ms := range r.remains {
		if r.img.Partition(id) == nil {
			r.rep.Notes = append(r.rep.Notes, fmt.Sprintf("left out: %s (replica %d), whose topic was deleted", ms[0].Spec.Name, ms[0].Spec.Replica))
		}
	}
	slices.Sort(r.rep.Notes)
}
