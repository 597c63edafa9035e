package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"chronik/internal/ident"
	"chronik/internal/identity"
	"chronik/internal/metadata"
	"chronik/internal/raftgroup"
	"chronik/internal/raftlog"
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
	case id.State != identity.Member && id.Cluster == "":
		return nil, &Error{Msg: fmt.Sprintf("%s is a store that is %s: it has no data of a cluster", o.Dir, id.State), Hint: "choose a node that was a member and kept its disk"}
	}
	if err := d.free(id.Store); err != nil {
		return nil, err
	}
	r := &recoverer{o: o, id: id, maker: maker{d: d, node: id.Node, shop: newWorkshop(d, o.DryRun)}}
	logs, loss, err := r.openLogs()
	if err == nil {
		rep, err = r.run(ctx, logs, loss)
		err = r.finished(err)
	}
	for _, log := range logs {
		err = errors.Join(err, log.Close())
	}
	return rep, err
}

// renewed tells whether a start gave the store a new identity, since its raftlog was not there or it was a copy. What
// it held it holds still.
func (r *recoverer) renewed() bool { return r.id.State != identity.Member }

// openLogs opens the raftlog; of a store that was renewed, those that starts put aside: its own is new. Without any
// that can be read it says why.
func (r *recoverer) openLogs() (logs []*raftlog.Log, loss, err error) {
	names, err := r.logNames()
	if err != nil {
		return nil, nil, err
	}
	loss = errors.New("a start found none and gave the store a new identity")
	for _, name := range slices.Sorted(maps.Keys(names)) {
		log, err := raftlog.Open(raftlog.Options{
			FS: r.o.FS, Dir: r.d.join(name), Store: names[name], MaxBytes: 1 << 50, Logger: r.o.Log, // so large that nothing is tidied up
		})
		switch {
		case err == nil:
			logs = append(logs, log)
		case errors.Is(err, raftlog.ErrMissing) || errors.Is(err, raftlog.ErrForeign) || errors.Is(err, raftlog.ErrCorrupt):
			loss = err
		default:
			return logs, nil, &Error{
				Msg: "the raftlog of " + r.o.Dir + " cannot be opened", Err: err,
				Hint: "try another survivor's data directory, or 'chronik restore --from URL'",
			}
		}
	}
	if len(logs) > 0 {
		loss = nil
	}
	return logs, loss, nil
}

// lostLog is the name of a log that a start put aside; its store's id follows.
const lostLog = "raftlog.lost-"

// logNames returns the directories of raftlogs, and whose they should be.
func (r *recoverer) logNames() (map[string]ident.StoreID, error) {
	if !r.renewed() {
		return map[string]ident.StoreID{"raftlog": r.id.Store}, nil
	}
	all, err := vfs.List(r.o.FS, r.o.Dir)
	if err != nil {
		return nil, err
	}
	names := map[string]ident.StoreID{}
	for _, name := range all {
		store, ok := strings.CutPrefix(name, lostLog)
		if id, err := ident.ParseStoreID(store); ok && err == nil {
			names[name] = id
		}
	}
	return names, nil
}

// finished lets go of what a failed run built.
func (r *recoverer) finished(err error) error {
	if r.o.DryRun {
		return err
	}
	return r.d.abandon(err)
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
	o  Options
	id identity.Identity
	maker

	remains map[ident.GroupID][]*raftgroup.Remains // the best first
}

// run does the work. Without a log, whose loss is why, each group ends at its checkpoint.
func (r *recoverer) run(ctx context.Context, logs []*raftlog.Log, loss error) (*Report, error) {
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
	if loss != nil {
		r.rep.Notes = append(r.rep.Notes, fmt.Sprintf("without the raftlog every group ends at its checkpoint; what came after it is lost: %v", loss))
	}
	if err := r.survey(logs); err != nil {
		return nil, err
	}
	meta, err := r.openMeta()
	if err != nil {
		return nil, err
	}
	defer func() { _ = meta.Close() }() // it holds no files
	r.name()
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
	r.others()
	if r.o.DryRun {
		return r.rep, nil
	}
	return r.rep, r.make(cluster, meta, conf)
}

// survey finds what there is of each group, the most advanced replica first. What no log tells of, where there is
// none of this store, has its files.
func (r *recoverer) survey(logs []*raftlog.Log) error {
	r.remains = map[ident.GroupID][]*raftgroup.Remains{}
	var all []*raftgroup.Remains
	for _, log := range logs {
		all = append(all, raftgroup.Survey(r.o.FS, r.d.join("replicas"), log)...)
	}
	if len(logs) == 0 || r.renewed() {
		files, err := raftgroup.SurveyFiles(r.o.FS, r.d.join("replicas"))
		if err != nil {
			return err
		}
		logged := map[ident.ReplicaID]bool{}
		for _, m := range all {
			logged[m.Spec.Replica] = true
		}
		for _, m := range files {
			if logged[m.Spec.Replica] {
				continue
			}
			if len(logs) > 0 { // else the report says it of all
				m.Damage = errors.New("it is gone, and what came after the checkpoint is lost")
			}
			all = append(all, m)
		}
	}
	for _, m := range all {
		if m.Spec.Group == 0 && m.Spec.Key == "meta" {
			m.Spec.Group = ident.MetaGroup
		}
		r.remains[m.Spec.Group] = append(r.remains[m.Spec.Group], m)
		r.least = max(r.least, m.Spec.Replica+1)
		for _, other := range m.Members {
			r.least = max(r.least, other.Replica+1)
		}
	}
	r.rank()
	return nil
}

// name finds the groups of replicas of which only the directory's name can be read.
func (r *recoverer) name() {
	unnamed := r.remains[0]
	delete(r.remains, 0)
	groups := map[string]ident.GroupID{}
	for p := range r.img.Groups() {
		groups[p.Key()] = p.Group
	}
	for _, m := range unnamed {
		m.Spec.Group = groups[m.Spec.Key] // 0: its topic was deleted
		r.remains[m.Spec.Group] = append(r.remains[m.Spec.Group], m)
	}
	r.rank()
}

// rank puts each group's most advanced replica first.
func (r *recoverer) rank() {
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
			r.plan(img, l)
			return l, nil
		}
		errs = append(errs, errors.Join(fmt.Errorf("replica %d holds no metadata", m.Spec.Replica), l.Close()))
	}
	return nil, &Error{
		Msg: "the metadata in " + r.o.Dir + " cannot be read", Err: errors.Join(errs...),
		Hint: "try another survivor's data directory, or 'chronik restore --from URL'",
	}
}

// keep makes the group's new replica of the best that can be read, or an empty one.
func (r *recoverer) keep(p *metadata.Partition, g *Group) error {
	spec := r.spec(p)
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
	return r.fresh(spec, g, term)
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
