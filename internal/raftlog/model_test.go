package raftlog

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

// model is what the log must hold after a number of operations. Values are
// never changed once in a history.
type model struct {
	replicas map[ident.ReplicaID]modelReplica
	node     []byte
}

type modelReplica struct {
	creation Creation
	base     ident.Index // of creation or install; trims are not part of it
	baseTerm ident.Term
	log      []Entry // from base+1 on
	hs       HardState
	install  *Install
}

func emptyModel() model { return model{replicas: make(map[ident.ReplicaID]modelReplica)} }

func (m modelReplica) last() ident.Index { return m.base + ident.Index(len(m.log)) }

func (m model) with(id ident.ReplicaID, r modelReplica) model {
	m.replicas = maps.Clone(m.replicas)
	m.replicas[id] = r
	return m
}

func (m model) without(id ident.ReplicaID) model {
	m.replicas = maps.Clone(m.replicas)
	delete(m.replicas, id)
	return m
}

// history is the sequence of models: models[k] after k operations. The log
// must, after any crash, show one of those from the number acknowledged on.
type history struct {
	mu     sync.Mutex
	models []model
	acked  int
	failed error
	// trimmed is the furthest Trim of each replica.
	trimmed map[ident.ReplicaID]ident.Index
}

func newHistory(start model) *history {
	return &history{models: []model{start}, trimmed: make(map[ident.ReplicaID]ident.Index)}
}

func (h *history) now() model { return h.models[len(h.models)-1] }

// submit notes the model after the next operation and returns its Done.
func (h *history) submit(m model) func(error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.models = append(h.models, m)
	number := len(h.models) - 1
	return func(err error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if err == nil && number != h.acked+1 {
			err = fmt.Errorf("operation %d done after %d", number, h.acked)
		}
		h.failed = errors.Join(h.failed, err)
		h.acked = number
	}
}

// state returns what an open log may show now.
func (h *history) state() (models []model, trimmed map[ident.ReplicaID]ident.Index) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.models[h.acked:], maps.Clone(h.trimmed)
}

// matches returns which of the models l shows.
func matches(l *Log, models []model, trimmed map[ident.ReplicaID]ident.Index) (int, error) {
	var all error
	if q := l.Recovery().Quarantined; len(q) > 0 {
		return 0, fmt.Errorf("quarantined without damage: %+v", q)
	}
	for k, m := range models {
		err := shows(l, m, trimmed)
		if err == nil {
			return k, nil
		}
		all = errors.Join(all, fmt.Errorf("model %d of %d: %w", k, len(models), err))
	}
	return 0, all
}

func shows(l *Log, m model, trimmed map[ident.ReplicaID]ident.Index) error {
	if !bytes.Equal(l.NodeBlob(), m.node) {
		return fmt.Errorf("node %q, want %q", l.NodeBlob(), m.node)
	}
	if cs := l.Creations(); len(cs) != len(m.replicas) {
		return fmt.Errorf("%d replicas, want %d", len(cs), len(m.replicas))
	}
	for id, r := range m.replicas {
		v := l.Replica(id)
		if v == nil {
			return fmt.Errorf("replica %d missing", id)
		}
		if err := r.shown(v, trimmed[id]); err != nil {
			return fmt.Errorf("replica %d: %w", id, err)
		}
	}
	return nil
}

func (m modelReplica) shown(v *View, trimmed ident.Index) error {
	first := v.FirstIndex()
	if first < m.base+1 || first > max(m.base, trimmed)+1 || v.LastIndex() != m.last() {
		return fmt.Errorf("log %d to %d, want %d (trimmed to %d) to %d", first, v.LastIndex(), m.base+1, trimmed, m.last())
	}
	if hs := v.HardState(); hs != m.hs {
		return fmt.Errorf("hard state %+v, want %+v", hs, m.hs)
	}
	in := v.Install()
	if (in == nil) != (m.install == nil) || in != nil && (in.Index != m.install.Index || in.Generation != m.install.Generation) {
		return fmt.Errorf("install %+v, want %+v", in, m.install)
	}
	if c := v.Creation(); c.Replica != m.creation.Replica || !bytes.Equal(c.Info, m.creation.Info) || c.First != m.creation.First {
		return fmt.Errorf("creation %+v, want %+v", c, m.creation)
	}
	want := m.baseTerm
	if first > m.base+1 {
		want = m.log[first-m.base-2].Term
	}
	if term, err := v.Term(first - 1); term != want || err != nil {
		return fmt.Errorf("term of %d: %d %w, want %d", first-1, term, err, want)
	}
	got, err := entries(v, 10_000)
	if err != nil {
		return err
	}
	return sameEntries(got, m.log[first-m.base-1:])
}

// chooser is where a test takes its choices from.
type chooser interface{ intn(name string, n int) int }

type rapidChooser struct{ t *rapid.T }

func (c rapidChooser) intn(name string, n int) int { return rapid.IntRange(0, n-1).Draw(c.t, name) }

// driver submits random but valid operations.
type driver struct {
	h      *history
	c      chooser
	nextID ident.ReplicaID
	seq    int
}

func (d *driver) pick(m model) ident.ReplicaID {
	ids := make([]ident.ReplicaID, 0, len(m.replicas))
	for id := range d.nextID {
		if _, ok := m.replicas[id]; ok {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return 0
	}
	return ids[d.c.intn("replica", len(ids))]
}

// submit hands one operation to the log without waiting.
func (d *driver) submit(l *Log) {
	d.seq++
	m := d.h.now()
	id := d.pick(m)
	what := d.c.intn("op", 20)
	switch {
	case id == 0 || what == 0 && len(m.replicas) < 5:
		d.create(l, m)
	case what == 1:
		l.enqueue(op{kind: opRemove, replica: id, done: d.h.submit(m.without(id))})
	case what == 2:
		m.node = fmt.Appendf(nil, "node %d", d.seq)
		l.PutNode(m.node, d.h.submit(m))
	case what == 3:
		d.install(l, m, id)
	default:
		d.append(l, m, id)
	}
}

func (d *driver) create(l *Log, m model) {
	d.nextID++
	c := Creation{Replica: d.nextID - 1, Group: 9, Info: fmt.Appendf(nil, "created %d", d.seq)}
	r := modelReplica{creation: c}
	if d.c.intn("voter", 2) == 0 {
		c.First, c.FirstTerm = 1, 1
		r = modelReplica{creation: c, base: 1, baseTerm: 1, hs: HardState{Term: 1, Commit: 1}}
	}
	l.enqueue(op{kind: opCreate, cs: []Creation{c}, done: d.h.submit(m.with(c.Replica, r))})
}

func (d *driver) install(l *Log, m model, id ident.ReplicaID) {
	r := m.replicas[id]
	in := &Install{
		Index: max(r.hs.Commit, r.base) + 1 + ident.Index(d.c.intn("jump", 50)), Term: r.hs.Term + 1,
		Generation: uint64(d.seq), ConfState: []byte("conf"),
	}
	r = modelReplica{
		creation: r.creation, base: in.Index, baseTerm: in.Term, install: in,
		hs: HardState{Term: in.Term, Vote: 3, Commit: in.Index},
	}
	r.log = run(id, in.Index+1, d.c.intn("after install", 3), in.Term, 50)
	l.Append(&Append{Replica: id, HardState: r.hs, Install: in, Entries: r.log, Done: d.h.submit(m.with(id, r))})
}

func (d *driver) append(l *Log, m model, id ident.ReplicaID) {
	r := m.replicas[id]
	term := max(r.hs.Term, 1)
	first := r.last() + 1
	if d.c.intn("conflict", 5) == 0 { // a new leader overwrites what is not committed
		term++
		if tail := int(first - max(r.hs.Commit, r.base) - 1); tail > 0 {
			first -= ident.Index(d.c.intn("back", tail+1))
		}
	}
	n := d.c.intn("entries", 5)
	es := run(id, first, n, term, []int{0, 100, 1000, 9000}[d.c.intn("size", 4)])
	if n > 0 {
		keep := int(first - r.base - 1)
		r.log = append(r.log[:keep:keep], es...)
	}
	r.hs = HardState{Term: term, Vote: id, Commit: max(r.hs.Commit, r.base)}
	r.hs.Commit += ident.Index(d.c.intn("commit", int(r.last()-r.hs.Commit)+1))
	l.Append(&Append{Replica: id, HardState: r.hs, Entries: es, Done: d.h.submit(m.with(id, r))})
}

// trim trims a replica to something committed. Nothing is in flight.
func (d *driver) trim(l *Log) {
	m := d.h.now()
	id := d.pick(m)
	if id == 0 {
		return
	}
	r := m.replicas[id]
	to := max(r.base, r.hs.Commit-min(r.hs.Commit, ident.Index(d.c.intn("keep", 10))))
	d.h.mu.Lock()
	d.h.trimmed[id] = max(d.h.trimmed[id], to)
	d.h.mu.Unlock()
	l.Trim(id, to)
}

// wait waits until all that was submitted is done.
func (d *driver) wait(l *Log) error {
	done := make(chan error, 1)
	l.PutNode(d.h.now().node, d.h.submitThen(done))
	if err := <-done; err != nil {
		return err
	}
	d.h.mu.Lock()
	defer d.h.mu.Unlock()
	return d.h.failed
}

// submitThen notes an operation that changes nothing.
func (h *history) submitThen(done chan<- error) func(error) {
	f := h.submit(h.now())
	return func(err error) { f(err); done <- err }
}

// Whatever is done and wherever the power fails: what was acknowledged is
// there, and the log shows exactly the state after some number of operations.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fs := &syncFS{FS: vfs.NewCrashableMem()}
		o := testOptions(fs)
		o.MaxBytes = 4 * testFile
		o.CacheBytes = 4000
		l, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		d := &driver{h: newHistory(emptyModel()), c: rapidChooser{t}, nextID: 1}
		losses := 0
		for step := range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0: // power loss
				mem := d.powerLoss(t, fs, l)
				losses++
				fs = &syncFS{FS: mem}
				o.FS = fs
				l = d.reopen(t, o)
			case 1: // clean restart
				if err := errors.Join(d.wait(l), l.Close()); err != nil {
					t.Fatal(err)
				}
				l = d.reopen(t, o)
				if l.Recovery().Scanned > losses { // those before may still be there, unsealed
					t.Fatalf("step %d: scanned %d files after a clean close", step, l.Recovery().Scanned)
				}
			case 2, 3:
				if err := d.wait(l); err != nil {
					t.Fatal(err)
				}
				d.trim(l)
			default:
				for range rapid.IntRange(1, 4).Draw(t, "batch") {
					d.submit(l)
				}
			}
		}
		if err := d.wait(l); err != nil {
			t.Fatal(err)
		}
		models, trimmed := d.h.state()
		if _, err := matches(l, models, trimmed); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// powerLoss clones the disk while a batch is between write and sync, and ends the old log.
func (d *driver) powerLoss(t *rapid.T, fs *syncFS, l *Log) *vfs.MemFS {
	gate, entered := make(chan struct{}), make(chan struct{})
	if err := d.wait(l); err != nil {
		t.Fatal(err)
	}
	fs.set(func() { fs.gate, fs.entered = gate, entered })
	n := rapid.IntRange(1, 6).Draw(t, "in flight")
	d.submit(l)
	<-entered
	for range n {
		d.submit(l)
	}
	if rapid.Bool().Draw(t, "second batch") {
		gate <- struct{}{}
		<-entered
	}
	percent := rapid.SampledFrom([]int{0, 30, 50, 80, 100}).Draw(t, "unsynced percent")
	models, trimmed := d.h.state()
	mem := crash(fs.FS.(*vfs.MemFS), percent, rapid.Uint64().Draw(t, "seed"))
	fs.set(func() { fs.gate = nil })
	gate <- struct{}{}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	d.h = &history{models: models, trimmed: trimmed}
	return mem
}

// reopen opens the log, finds the state it shows and goes on from there.
func (d *driver) reopen(t *rapid.T, o Options) *Log {
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	models, trimmed := d.h.state()
	k, err := matches(l, models, trimmed)
	if err != nil {
		t.Fatal(err)
	}
	d.h = newHistory(models[k])
	for _, c := range l.Creations() {
		d.h.trimmed[c.Replica] = l.Replica(c.Replica).FirstIndex() - 1
	}
	return l
}

// snapshotAt is a disk at some moment, with what it must hold.
type snapshotAt struct {
	point   string
	percent int
	fs      *vfs.MemFS
	models  []model
	trimmed map[ident.ReplicaID]ident.Index
}

type randomChooser struct{ state uint64 }

func (c *randomChooser) intn(_ string, n int) int {
	c.state = c.state*6364136223846793005 + 1442695040888963407
	return int((c.state >> 33) % uint64(n))
}

// A power loss on either side of every durable step (batch, seal, new file,
// free) loses nothing acknowledged and shows a state that was.
func TestCrashAtEveryPoint(t *testing.T) {
	mem := vfs.NewCrashableMem()
	o := testOptions(mem)
	o.MaxBytes = 4 * testFile
	d := &driver{h: newHistory(emptyModel()), c: &randomChooser{state: 7}, nextID: 1}
	var shots []snapshotAt
	seen := make(map[string]int)
	seed := uint64(0)
	invariant.SetPointHook(func(point string) {
		if seen[point]++; seen[point] > 12 && seen[point]%8 != 0 {
			return
		}
		models, trimmed := d.h.state()
		for _, percent := range []int{0, 50, 100} {
			seed++
			shots = append(shots, snapshotAt{point, percent, crash(mem, percent, seed), models, trimmed})
		}
	})
	defer invariant.SetPointHook(nil)
	l := openWith(t, o)
	for i := range 200 {
		d.submit(l)
		if i%3 == 0 {
			check(t, d.wait(l))
			d.trim(l)
		}
	}
	check(t, d.wait(l))
	closeLog(t, l)
	s := l.Stats()
	if s.Recycled == 0 || s.RelocatedFrames == 0 {
		t.Fatalf("the scenario must recycle and relocate: %+v", s)
	}
	invariant.SetPointHook(nil)
	for _, p := range []string{
		"raftlog/batch-encoded", "raftlog/batch-written", "raftlog/batch-synced", "raftlog/seal-written", "raftlog/seal-synced",
		"raftlog/file-header-written", "raftlog/file-header-synced", "raftlog/file-named", "raftlog/file-durable",
		"raftlog/free-before", "raftlog/free-renamed", "raftlog/free-durable",
	} {
		if seen[p] == 0 {
			t.Errorf("point %s never passed", p)
		}
	}
	for i, s := range shots {
		if len(s.models) == 1 && len(s.models[0].replicas) == 0 && i < 20 {
			continue // the log itself may not exist yet
		}
		o.FS = s.fs
		l, err := Open(o)
		if err != nil {
			t.Fatalf("shot %d at %s, %d%%: %v", i, s.point, s.percent, err)
		}
		if _, err := matches(l, s.models, s.trimmed); err != nil {
			t.Fatalf("shot %d at %s, %d%%: %v", i, s.point, s.percent, err)
		}
		closeLog(t, l)
	}
}
