package raftgroup

import (
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
	"chronik/internal/raftlog"
	"chronik/internal/snapshot"
	"chronik/internal/vfs"
)

// A group whose majority is gone is made anew from one replica that is left:
//
//	Survey   what a stopped node's disk has of each replica; nothing is written
//	Load     the checkpoint's state in a new directory, and all entries of the log applied to it
//	Save     a checkpoint there, of a replica with another id that alone makes up its group
//	Seed     its creation and install in a new raftlog
//
// All entries: one that the disk does not know as committed may have been
// acknowledged, since a follower hears of a commit after the leader does. So a
// record whose outcome was unknown may appear; none that was acknowledged and is
// here is left out.
//
// The new beginning is a point of its own, one index behind the last entry and in a
// term far above the last one known here. What the lost replicas did beyond this
// one's knowledge used terms that clients may have seen as leader epochs.

// SalvageTerms is how far the term of a group made anew lies above the highest this disk has.
const SalvageTerms = 1 << 10

// salvageGeneration is the generation directory of a replica made anew. Not the
// first: that one may lack its checkpoint.
const salvageGeneration = firstGeneration + 1

// Remains is what a stopped node's disk has of one replica.
type Remains struct {
	Spec Spec
	// Err says why nothing can be made of it, nil if something can.
	Err error
	// Damage is what the raftlog's recovery found wrong; what lies before it can be read.
	Damage error
	// From is the index of the checkpoint, or where the log began if there is none.
	From ident.Index
	// First and Last are the entries in the log. Last is From at least.
	First, Last ident.Index
	// LastTerm is the term of Last, 0 if it cannot be read.
	LastTerm ident.Term
	// Commit is the highest index known here as committed, Term the highest term.
	Commit ident.Index
	Term   ident.Term
	// Members are those as of From.
	Members []Member

	fs       vfs.FS
	dir      string // the live generation's
	fromTerm ident.Term
	mem      *membership
	has      bool // there is a checkpoint
	view     *raftlog.View
}

// Empty tells whether the replica never received anything.
func (m *Remains) Empty() bool { return m.Err == nil && m.Last == 0 }

// Survey reads what log and the replicas' directories below dir have, by replica id.
func Survey(fs vfs.FS, dir string, log *raftlog.Log) []*Remains {
	cs := log.Creations()
	out := make([]*Remains, 0, len(cs))
	for _, c := range cs {
		m := &Remains{fs: fs, view: log.Replica(c.Replica)}
		for _, d := range log.Recovery().Quarantined {
			if d.Replica == c.Replica {
				m.Damage = d.Err
			}
		}
		m.Err = m.look(dir, c)
		if m.Err != nil && m.Spec.Group == 0 {
			m.Spec = Spec{Group: c.Group, Replica: c.Replica, Name: fmt.Sprintf(fallbackKeyPattern, c.Replica)}
		}
		out = append(out, m)
	}
	return out
}

// SurveyFiles is Survey of a disk whose raftlog is gone: each replica has its newest
// checkpoint and nothing behind it. Specs have only what a directory's name tells.
func SurveyFiles(fs vfs.FS, dir string) ([]*Remains, error) {
	names, err := vfs.List(fs, dir)
	if err != nil {
		return nil, err
	}
	var out []*Remains
	for _, name := range names {
		key, digits, ok := cutLast(name, ".")
		id, err := strconv.ParseUint(digits, 10, 64)
		if !ok || err != nil || id == 0 {
			continue
		}
		m := &Remains{fs: fs, Spec: Spec{Replica: ident.ReplicaID(id), Key: key, Name: key}}
		m.Err = m.lookAtFiles(path.Join(dir, name))
		out = append(out, m)
	}
	return out, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// lookAtFiles takes the highest generation that is complete.
func (m *Remains) lookAtFiles(base string) error {
	gens, err := snapshot.Generations(m.fs, base)
	if err != nil {
		return err
	}
	err = fmt.Errorf("%s: %w, and its log is gone", base, snapshot.ErrNoCheckpoint)
	for _, g := range slices.Backward(gens) {
		if g.Staging {
			continue
		}
		ck, rerr := snapshot.ReadHeader(m.fs, g.Dir)
		if rerr != nil {
			err = rerr
			continue
		}
		if m.mem, err = checkpointMembership(ck); err != nil {
			continue
		}
		m.Spec.Group, m.dir, m.has = ck.Group, g.Dir, true
		m.From, m.fromTerm, m.Members = ck.Point.Index, ck.Point.Term, m.mem.members
		m.First, m.Last, m.LastTerm = m.From+1, m.From, m.fromTerm
		m.Commit, m.Term = m.From, m.fromTerm
		return nil
	}
	return err
}

func (m *Remains) look(dir string, c raftlog.Creation) (err error) {
	if m.Spec, err = specOf(c); err != nil {
		return err
	}
	if m.view == nil {
		return fmt.Errorf("%w: the raftlog does not know replica %d", ErrCorrupt, c.Replica)
	}
	gen := uint64(firstGeneration)
	if in := m.view.Install(); in != nil {
		gen = in.Generation
	}
	m.dir = snapshot.GenDir(path.Join(dir, dirName(m.Spec)), gen)
	ck, err := snapshot.ReadHeader(m.fs, m.dir)
	switch {
	case errors.Is(err, snapshot.ErrNoCheckpoint) && gen == firstGeneration:
		m.From, m.fromTerm, m.mem = c.First, c.FirstTerm, initialMembership(m.Spec.Members)
	case err != nil:
		return err
	case ck.Group != m.Spec.Group:
		return fmt.Errorf("%w: %s is of group %d", ErrCorrupt, m.dir, ck.Group)
	default:
		if m.mem, err = checkpointMembership(ck); err != nil {
			return err
		}
		m.has, m.From, m.fromTerm = true, ck.Point.Index, ck.Point.Term
	}
	hs := m.view.HardState()
	m.Members = m.mem.members
	m.First, m.Last = m.view.FirstIndex(), max(m.view.LastIndex(), m.From)
	m.Commit, m.Term = max(hs.Commit, m.From), max(hs.Term, m.fromTerm, c.FirstTerm)
	m.LastTerm = m.fromTerm
	if m.Last > m.From {
		if m.LastTerm, err = m.view.Term(m.Last); err != nil {
			m.LastTerm = 0 // a gap: Load says where
		}
	}
	if m.First > m.From+1 { // what Load cannot reach does not count: another replica may have more
		m.Last, m.LastTerm = m.From, m.fromTerm
	}
	return nil
}

// LoadOptions say where a state is put together.
type LoadOptions struct {
	FS vfs.FS
	// Dir is the new replica's directory (ReplicaDir): absent, or empty.
	Dir string
	// Bring puts the first size bytes of the file from, durably, at to. open: the file
	// will be written to behind them, so it must not be one with from.
	Bring func(from, to string, size int64, open bool) error
	Open  OpenFunc
}

// ReplicaDir is the directory below dir of the replica that spec describes.
func ReplicaDir(dir string, spec Spec) string { return path.Join(dir, dirName(spec)) }

// SalvageDir is where below a replica's directory its salvaged state lies.
func SalvageDir(base string) string { return snapshot.GenDir(base, salvageGeneration) }

// Loaded is a replica's state with its log applied.
type Loaded struct {
	SM StateMachine
	// Index and Term are of the last entry applied.
	Index ident.Index
	Term  ident.Term
	// Replica is the one it was loaded from, 0 if none.
	Replica ident.ReplicaID
	// Generation is the highest that an applied membership change carried.
	Generation uint64
	// Cut says why entries behind Index were left out, nil if there are none.
	Cut error

	group  ident.GroupID
	term   ident.Term // the highest known
	dir    string
	fs     vfs.FS
	mem    *membership
	closed bool
}

// Fresh is the state of a group of which nothing is left but perhaps the knowledge of a term.
func Fresh(group ident.GroupID, term ident.Term, o LoadOptions) (*Loaded, error) {
	l := &Loaded{group: group, term: term, fs: o.FS, dir: SalvageDir(o.Dir), mem: initialMembership(nil)}
	return l, l.open(o.Open, nil, snapshot.Checkpoint{})
}

// LoadStaged opens a state that lies complete, with its checkpoint, in the replica's
// SalvageDir. term is the highest known of the group.
func LoadStaged(term ident.Term, o LoadOptions) (*Loaded, error) {
	dir := SalvageDir(o.Dir)
	ck, blob, err := snapshot.Read(o.FS, dir)
	if err != nil {
		return nil, err
	}
	mem, err := checkpointMembership(ck)
	if err != nil {
		return nil, err
	}
	l := &Loaded{
		Index: ck.Point.Index, Term: ck.Point.Term, Generation: mem.generation,
		group: ck.Group, term: max(term, ck.Point.Term), fs: o.FS, dir: dir, mem: mem,
	}
	return l, l.open(o.Open, blob, ck)
}

// Load brings the checkpoint's files into o.Dir and applies what the log holds
// behind them. Entries that cannot be read or applied end it: see Cut.
func (m *Remains) Load(o LoadOptions) (*Loaded, error) {
	if m.Err != nil {
		return nil, m.Err
	}
	l := &Loaded{
		Index: m.From, Term: m.fromTerm, Generation: m.mem.generation, Replica: m.Spec.Replica,
		group: m.Spec.Group, term: m.Term, fs: o.FS, dir: SalvageDir(o.Dir), mem: m.mem,
	}
	var ck snapshot.Checkpoint
	var blob []byte
	var err error
	if m.has {
		if ck, blob, err = snapshot.Read(m.fs, m.dir); err != nil {
			return nil, err
		}
	}
	if err := vfs.MkdirAllSync(o.FS, l.dir); err != nil {
		return nil, err
	}
	for i, f := range ck.Files {
		if err := o.Bring(path.Join(m.dir, f.Name), path.Join(l.dir, f.Name), f.Size, i == len(ck.Files)-1); err != nil {
			return nil, err
		}
	}
	if err := l.open(o.Open, blob, ck); err != nil {
		return nil, err
	}
	if err := m.replay(l); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Loaded) open(open OpenFunc, blob []byte, ck snapshot.Checkpoint) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("open state in %s: %v", l.dir, p)
		}
	}()
	if err := vfs.MkdirAllSync(l.fs, l.dir); err != nil {
		return err
	}
	l.SM, err = open(l.fs, l.dir, blob, captureFiles(ck))
	return err
}

// salvageBytes is how much of the log is read and applied at once.
const salvageBytes = 4 << 20

// replay applies the log's entries. An error is of the place where the state is put together.
func (m *Remains) replay(l *Loaded) error {
	if m.view == nil {
		return nil // SurveyFiles
	}
	last := m.view.LastIndex()
	for l.Index < last && l.Cut == nil {
		if first := m.view.FirstIndex(); first > l.Index+1 {
			l.Cut = fmt.Errorf("%w: entries %d to %d are missing", ErrCorrupt, l.Index+1, first-1)
			return nil
		}
		es, err := m.view.Entries(l.Index+1, last+1, salvageBytes)
		if err != nil {
			l.Cut = err
			return nil
		}
		if err := l.apply(es); err != nil {
			return err
		}
	}
	return nil
}

func (l *Loaded) apply(es []raftlog.Entry) error {
	for len(es) > 0 && l.Cut == nil {
		n := 1
		if pb.EntryType(es[0].Type) == pb.EntryNormal {
			for n < len(es) && pb.EntryType(es[n].Type) == pb.EntryNormal {
				n++
			}
			if err := l.applyRun(es[:n]); err != nil {
				return err
			}
		} else {
			l.applyConf(&es[0])
		}
		es = es[n:]
	}
	return nil
}

// applyRun applies normal entries, one by one if they do not go together: what is
// good before a bad one stays. Only an error that says nothing about the entries, a
// full disk, is returned.
func (l *Loaded) applyRun(es []raftlog.Entry) error {
	run := make([]Entry, 0, len(es))
	for i := range es {
		if e := &es[i]; len(e.Data) > 0 {
			run = append(run, Entry{Index: e.Index, Term: e.Term, Data: e.Data})
		}
	}
	err := l.give(run)
	if err != nil && !vfs.IsNoSpace(err) && len(es) > 1 {
		for i := range es {
			if err := l.applyRun(es[i : i+1]); err != nil || l.Cut != nil {
				return err
			}
		}
		return nil
	}
	switch {
	case vfs.IsNoSpace(err):
		return err
	case err != nil:
		l.Cut = fmt.Errorf("apply entry %d: %w", es[0].Index, err)
		return nil
	}
	l.Index, l.Term = es[len(es)-1].Index, es[len(es)-1].Term
	return nil
}

// give has the state machine apply run; a panic is an error of the entries.
func (l *Loaded) give(run []Entry) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	if len(run) == 0 {
		return nil
	}
	_, err = l.SM.Apply(run)
	return err
}

// applyConf follows a membership change: only its generation matters to what comes after.
func (l *Loaded) applyConf(e *raftlog.Entry) {
	bufs := toRaft([]raftlog.Entry{*e})
	cc, err := decodeConfChange(bufs[0])
	if err != nil {
		l.Cut = fmt.Errorf("membership change at index %d: %w", e.Index, err)
		return
	}
	if next, err := l.mem.next(cc, e.Index); err == nil { // refused: as on every replica
		l.mem = next
		l.Generation = next.generation
	}
	l.Index, l.Term = e.Index, e.Term
}

// Close lets go of the state machine. It may be called again.
func (l *Loaded) Close() error {
	if l.closed || l.SM == nil {
		return nil
	}
	l.closed = true
	return l.SM.Close()
}

// Point is where the group made anew begins: behind everything applied, in a term
// that no leader had that this disk heard of.
func (l *Loaded) Point() (ident.Index, ident.Term) {
	return l.Index + 1, max(l.term, l.Term) + SalvageTerms
}

// Kept is a replica as a raftlog is to begin with it.
type Kept struct {
	creation raftlog.Creation
	append   raftlog.Append
}

// SaveOptions describe the replica that a state becomes.
type SaveOptions struct {
	// To is the replica; it has no Members: its checkpoint says who they are.
	To    Spec
	Node  ident.NodeID
	Store ident.StoreID
	// Blob writes the state in place of the state machine's own capture.
	Blob  func(io.Writer) (int64, error)
	Codec snapshot.Codec
}

// Save makes a durable checkpoint of the state, at Point, whose only member is the
// replica To. With Kept in a raftlog, it is complete.
func (l *Loaded) Save(o SaveOptions) (Kept, error) {
	if len(o.To.Members) > 0 {
		return Kept{}, fmt.Errorf("raftgroup: save %s: founders are given by the checkpoint", o.To.Name)
	}
	index, term := l.Point()
	home := Member{Replica: o.To.Replica, Node: o.Node, Store: o.Store}
	mem := initialMembership([]Member{home})
	mem.generation = l.Generation
	ck := snapshot.Checkpoint{
		Group: o.To.Group, CreatedAt: time.Now(),
		Point: snapshot.Point{
			Index: index, Term: term, ConfState: mem.confBytes(), Members: appendMembers(nil, mem.members), ConfGeneration: mem.generation,
		},
	}
	if err := l.write(ck, o); err != nil {
		return Kept{}, fmt.Errorf("save %s in %s: %w", o.To.Name, l.dir, err)
	}
	c, err := o.To.creation()
	if err != nil {
		return Kept{}, err
	}
	return Kept{creation: c, append: raftlog.Append{
		Replica: o.To.Replica, HardState: raftlog.HardState{Term: term, Commit: index},
		Install: &raftlog.Install{Index: index, Term: term, Generation: salvageGeneration, ConfState: ck.Point.ConfState},
	}}, nil
}

// SaveAt is Save of a state without files, elsewhere than where it was loaded: in the
// directory base of the replica To.
func (l *Loaded) SaveAt(fs vfs.FS, base string, o SaveOptions) (Kept, error) {
	l.fs, l.dir = fs, SalvageDir(base)
	if err := vfs.MkdirAllSync(fs, l.dir); err != nil {
		return Kept{}, err
	}
	return l.Save(o)
}

func (l *Loaded) write(ck snapshot.Checkpoint, o SaveOptions) error {
	c, err := l.SM.Capture()
	if err != nil {
		return err
	}
	defer c.Release()
	if err := c.Sync(); err != nil {
		return err
	}
	for _, f := range c.Files() {
		ck.Files = append(ck.Files, snapshot.DataFile{Name: f.Name, Size: f.Size})
	}
	blob := o.Blob
	if blob == nil {
		blob = c.WriteTo
	}
	_, err = snapshot.Write(l.fs, l.dir, ck, o.Codec, blob)
	return err
}

// Seed makes kept the replicas of a new raftlog, durably.
func Seed(log *raftlog.Log, kept []Kept) error {
	cs := make([]raftlog.Creation, 0, len(kept))
	for _, k := range kept {
		cs = append(cs, k.creation)
	}
	if err := log.Create(cs); err != nil {
		return fmt.Errorf("raftgroup: create %d replicas: %w", len(cs), err)
	}
	done := make(chan error, len(kept))
	for i := range kept {
		a := kept[i].append
		a.Done = func(err error) { done <- err }
		log.Append(&a)
	}
	var errs []error
	for range kept {
		errs = append(errs, <-done)
	}
	return errors.Join(errs...)
}
