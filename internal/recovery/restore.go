package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"

	"chronik/internal/archive"
	"chronik/internal/format"
	"chronik/internal/ident"
	"chronik/internal/identity"
	"chronik/internal/metadata"
	"chronik/internal/raftgroup"
	"chronik/internal/vfs"
)

// RestoreOptions of Restore.
type RestoreOptions struct {
	FS      vfs.FS // nil: the operating system's
	Archive *archive.Archive
	// From is the cluster in the archive; "": the only one there.
	From string
	// Dir becomes the data directory of node Node. It is empty, or not there.
	Dir  string
	Node ident.NodeID
	// DryRun reports what the archive has, and downloads nothing but the metadata.
	DryRun bool
	// Cluster is the new cluster's id; "": a random one.
	Cluster string
}

// Restore makes a new cluster of the newest snapshots in an object store.
func Restore(ctx context.Context, o RestoreOptions) (rep *Report, err error) {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	r := &restorer{o: o, maker: maker{d: &dir{fs: o.FS, path: o.Dir}, node: o.Node}}
	if o.Node <= 0 {
		return nil, &Error{Msg: "whose data directory is it to be?", Hint: "--node-id says it"}
	}
	there, err := r.d.exists(o.Dir)
	if err != nil {
		return nil, err
	}
	if !there && !o.DryRun {
		if err := vfs.MkdirAllSync(o.FS, o.Dir); err != nil {
			return nil, err
		}
	}
	if there || !o.DryRun {
		if r.d.hold, err = identity.Hold(o.FS, o.Dir); err != nil {
			return nil, holdError(o.Dir, err)
		}
		defer func() { err = errors.Join(err, r.d.hold.Close()) }()
		if rep, err := r.d.resume(o.DryRun); rep != nil || err != nil {
			return rep, err
		}
		if err := r.empty(); err != nil {
			return nil, err
		}
	}
	r.shop = newWorkshop(r.d, o.DryRun)
	rep, err = r.run(ctx)
	if !o.DryRun {
		err = r.d.abandon(err)
	}
	return rep, err
}

// empty refuses a directory that holds anything but the remains of an attempt, and
// removes these unless it is a dry run.
func (r *restorer) empty() error {
	names, err := vfs.List(r.o.FS, r.o.Dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name != "LOCK" && name != "lost+found" && !strings.Contains(name, identity.RecoveredSuffix) {
			return &Error{
				Msg:  fmt.Sprintf("%s is not empty: it holds %s", r.o.Dir, name),
				Hint: "a restore makes a new data directory; if this one is a survivor's, 'chronik cluster recover --dry-run' says what it holds",
			}
		}
	}
	if r.o.DryRun {
		return nil
	}
	return r.d.clear()
}

// restorer is one run of Restore.
type restorer struct {
	o RestoreOptions
	maker
	from *archive.Cluster
	// newest is each group's newest snapshot that seems whole.
	newest map[ident.GroupID]*archive.Manifest
	notes  map[ident.GroupID][]string
	// terms are the highest that leaders have had there: new ones go on above them,
	// whatever can be read of the snapshots.
	terms map[ident.GroupID]ident.Term
	// added are groups that the archived metadata does not name.
	added map[ident.GroupID]bool
}

func (r *restorer) run(ctx context.Context) (*Report, error) {
	if err := r.choose(ctx); err != nil {
		return nil, err
	}
	cluster := cmp.Or(r.o.Cluster, identity.NewClusterID())
	r.rep = &Report{
		DataDir: r.o.Dir, Source: r.o.Archive.String(), Node: int32(r.node), DryRun: r.o.DryRun, OldCluster: r.from.ID(),
		NewCluster: cluster, NewStore: r.shop.store.String(), Groups: []Group{}, Nodes: []int32{},
	}
	if r.o.DryRun {
		r.rep.NewCluster, r.rep.NewStore = r.o.Cluster, ""
	}
	if err := r.list(ctx); err != nil {
		return nil, err
	}
	meta, err := r.openMeta(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = meta.Close() }() // it holds no files
	conf := map[ident.GroupID]uint64{ident.MetaGroup: meta.Generation}
	for _, p := range r.img.Survivors() {
		g := r.describe(p)
		g.Notes = append(g.Notes, r.notes[p.Group]...)
		if r.added[p.Group] {
			g.note("put back: the archived metadata is older; its settings are the defaults")
		}
		if p.Group == ident.MetaGroup {
			g.Outcome = Kept
			r.of(g, r.newest[p.Group])
			_, term := meta.Point()
			g.NewTerm = uint64(term)
		} else if err := r.bring(ctx, p, g); err != nil {
			return nil, fmt.Errorf("%s: %w", p.Name(), err)
		}
		conf[p.Group] = max(conf[p.Group], g.conf)
		r.rep.Groups = append(r.rep.Groups, *g)
	}
	r.others()
	if r.o.DryRun {
		return r.rep, nil
	}
	return r.rep, r.make(cluster, meta, conf)
}

// choose finds the cluster in the archive.
func (r *restorer) choose(ctx context.Context) (err error) {
	ids, err := r.o.Archive.Clusters(ctx)
	if err != nil {
		return err
	}
	from := r.o.From
	switch {
	case from == "" && len(ids) == 1:
		from = ids[0]
	case from == "" && len(ids) == 0:
		return &Error{Msg: fmt.Sprintf("%s holds no snapshots", r.o.Archive), Hint: "is it the object_store.url that the cluster had?"}
	case from == "":
		return &Error{Msg: fmt.Sprintf("%s holds %d clusters: %s", r.o.Archive, len(ids), strings.Join(ids, ", ")), Hint: "--cluster says which"}
	case !slices.Contains(ids, from):
		return &Error{Msg: fmt.Sprintf("%s holds no cluster %s", r.o.Archive, from), Hint: "it holds: " + cmp.Or(strings.Join(ids, ", "), "none")}
	}
	r.from, err = r.o.Archive.Cluster(from)
	return err
}

// list finds the newest snapshot of each group whose manifest can be read and whose objects are there.
func (r *restorer) list(ctx context.Context) error {
	r.newest, r.notes = map[ident.GroupID]*archive.Manifest{}, map[ident.GroupID][]string{}
	r.terms = map[ident.GroupID]ident.Term{}
	groups, err := r.from.Groups(ctx)
	if err != nil {
		return err
	}
	for _, g := range groups {
		if r.terms[g], err = r.from.HighestTerm(ctx, g); err != nil {
			return err
		}
		err := r.from.TryNewest(ctx, g, func(ref archive.Ref) error {
			m, err := r.from.Manifest(ctx, ref)
			if errors.Is(err, format.ErrNewer) { // no damage, for which an older one would do
				return fmt.Errorf("the snapshot of group %d at index %d: %w", ref.Group, ref.Index, format.ErrNewer)
			}
			if err == nil {
				err = r.from.Check(ctx, m)
			}
			if err == nil {
				r.newest[g] = m
			}
			return err
		}, r.skipped)
		if err != nil && !errors.Is(err, archive.ErrNoSnapshot) {
			return err
		}
	}
	return nil
}

// skipped notes a snapshot that is passed over for an older one. It is found out twice: when
// listed, and when downloaded.
func (r *restorer) skipped(ref archive.Ref, err error) {
	note := fmt.Sprintf("the snapshot at index %d cannot be used: %v", ref.Index, err)
	if !slices.Contains(r.notes[ref.Group], note) {
		r.notes[ref.Group] = append(r.notes[ref.Group], note)
	}
}

// openMeta loads the archived metadata, into memory, and adds groups that are younger than it.
func (r *restorer) openMeta(ctx context.Context) (*raftgroup.Loaded, error) {
	scratch := vfs.NewScratch(r.o.FS)
	m, err := r.from.DownloadNewest(ctx, ident.MetaGroup, scratch, raftgroup.SalvageDir("/meta"), r.skipped)
	if errors.Is(err, archive.ErrNoSnapshot) {
		return nil, &Error{Msg: "the archive has no metadata", Err: err, Hint: "without it nothing says which topics there were; choose another cluster or archive"}
	}
	if err != nil {
		return nil, err
	}
	r.newest[ident.MetaGroup] = m
	l, err := raftgroup.LoadStaged(r.term(m), raftgroup.LoadOptions{FS: scratch, Dir: "/meta", Open: r.shop.openers.of(metadata.KindMeta)})
	if err != nil {
		return nil, err
	}
	img := l.SM.(*metadata.StateMachine).Image()
	var found []metadata.Found
	for _, g := range slices.Sorted(maps.Keys(r.newest)) {
		if m := r.newest[g]; img.Partition(g) == nil {
			f := metadata.Found{Group: g, Topic: m.Topic, Partition: m.Partition, Coordinator: m.Kind == metadata.KindOffsets}
			if err := f.TopicID.UnmarshalText([]byte(m.TopicID)); err != nil {
				f.TopicID = metadata.TopicID{} // WithFound says that it is missing
			}
			found = append(found, f)
		}
	}
	whole, left := img.WithFound(found)
	r.added = map[ident.GroupID]bool{}
	for p := range whole.Groups() {
		r.added[p.Group] = img.Partition(p.Group) == nil
	}
	for _, g := range slices.Sorted(maps.Keys(left)) {
		m := r.newest[g]
		r.rep.Notes = append(r.rep.Notes, fmt.Sprintf("left out: %s up to offset %d: %s", cmp.Or(m.Name, fmt.Sprintf("group %d", g)), m.NextOffset, left[g]))
	}
	r.plan(whole, l)
	return l, nil
}

// term is the highest known of the snapshot's group.
func (r *restorer) term(m *archive.Manifest) ident.Term {
	return max(m.Term, m.LeaderTerm, r.terms[m.Group])
}

// of fills in what a snapshot's manifest says.
func (r *restorer) of(g *Group, m *archive.Manifest) {
	g.FromIndex, g.ToIndex, g.KnownCommit, g.Term = uint64(m.Index), uint64(m.Index), uint64(m.Index), uint64(r.term(m))
	g.LogStart, g.NextOffset = m.LogStartOffset, m.NextOffset
}

// bring makes the group's replica of its newest snapshot that is whole.
func (r *restorer) bring(ctx context.Context, p *metadata.Partition, g *Group) error {
	spec := r.spec(p)
	m := r.newest[p.Group]
	switch {
	case m == nil && len(r.notes[p.Group]) > 0:
		g.Outcome = Damaged
		g.note("no snapshot of it can be used")
	case m == nil:
		g.note("no snapshot of it: what it held is lost")
	case r.o.DryRun:
		g.Outcome = Kept
		r.of(g, m)
		g.NewTerm = g.Term + raftgroup.SalvageTerms
		return nil
	}
	if m == nil {
		return r.fresh(spec, g, r.terms[p.Group])
	}
	base := raftgroup.ReplicaDir(r.shop.replicas, spec)
	known := len(r.notes[p.Group])
	m, err := r.from.DownloadNewest(ctx, p.Group, r.o.FS, raftgroup.SalvageDir(base), r.skipped)
	g.Notes = append(g.Notes, r.notes[p.Group][known:]...)
	if errors.Is(err, archive.ErrNoSnapshot) {
		g.Outcome = Damaged
		g.note("%v", err)
		return r.fresh(spec, g, r.terms[p.Group])
	}
	if err != nil {
		return err
	}
	l, err := raftgroup.LoadStaged(r.term(m), r.shop.options(spec))
	if _, ok := errors.AsType[syscall.Errno](err); ok {
		return err // of this disk, which says nothing about the snapshot
	}
	if err != nil {
		g.Outcome = Damaged
		g.note("the snapshot at index %d: %v", m.Index, err)
		return errors.Join(r.shop.clean(spec), r.fresh(spec, g, r.term(m)))
	}
	g.Outcome = Kept
	r.of(g, m)
	return r.save(spec, g, l)
}
