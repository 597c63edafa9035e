package crash

import (
	"errors"
	"fmt"
	"hash/maphash"
	"path"
	"regexp"
	"runtime"
	"sort"
	"sync"
	"testing"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/vfs"
	"chronik/test/offline"
)

// walk goes along with what is done to disks: before and after each change, in the midst of each
// write and at each named point it cuts the power, with none, half and all of what was not synced
// left, and has what is left checked.
//
//	change ──▶ cut ──▶ check: every disk can be read, what was promised is there
//	               ╰─▶ kept: a few of each kind, which are started again later
type walk struct {
	t     testing.TB
	power *power
	disks func() []*disk // all that lose their power together
	// promised says what was promised by now. It is asked before the cut, and after for what may be missing.
	promised func() promise
	// check tells what is wrong with disks of their own.
	check func(shot) error
	// most is how many of a kind are kept; 0: none.
	most int
	// thin: of a kind that has come up that often only each rare-th is cut. 0: all are.
	thin, rare int

	shots chan shot
	wg    sync.WaitGroup
	gate  sync.RWMutex // held while a shot is handed on
	ended bool
	found chan struct{} // closed at the first error

	places places // from where in the code was synced

	mu       sync.Mutex
	checkers map[string]bool // goroutines that read what is left, by number
	kinds    map[string]int  // cuts, by kind of moment
	points   map[string]int
	cuts     int
	seen     map[uint64]bool
	kept     []shot
	keptKind map[string]int
	errs     []error
}

// promise is what clients and other nodes were told.
type promise struct {
	version int // another one: something else was promised
	member  bool
	// joining: one of the nodes has an empty disk, or one that is on its way into the cluster.
	joining bool
	acks    []acked
	// begins: records below may have been deleted.
	begins [partitions]int64
	// cluster has snapshots in the object store, up to an index each.
	cluster  string
	uploaded map[ident.GroupID]ident.Index // replaced, never changed
}

// shot is what was left of the disks at a moment.
type shot struct {
	what    string
	percent int
	left    []*vfs.MemFS
	promise
}

func (s shot) String() string { return fmt.Sprintf("%s, %d %% left", s.what, s.percent) }

// begins starts a walk of the whole kind, or only the first errors are of interest.
func (w *walk) begins(whole bool) {
	if w.thin, w.rare = 24, 8; long {
		w.thin = 0
	}
	if whole {
		w.most = 1
	}
	w.begin(whole)
}

// begin starts to look. Only one walk at a time may look at points.
func (w *walk) begin(points bool) {
	w.shots, w.found = make(chan shot, 4), make(chan struct{})
	w.kinds, w.points, w.seen, w.keptKind = map[string]int{}, map[string]int{}, map[uint64]bool{}, map[string]int{}
	w.checkers = map[string]bool{}
	for range 2 {
		w.wg.Go(func() {
			self, _ := goroutine()
			w.mu.Lock()
			w.checkers[self] = true
			w.mu.Unlock()
			for s := range w.shots {
				w.look(s)
			}
		})
	}
	if points {
		invariant.SetPointHook(func(name string) {
			self, parent := goroutine()
			w.mu.Lock()
			check := w.checkers[self] || w.checkers[parent]
			if !check {
				w.points[name]++
			}
			w.mu.Unlock()
			if check {
				return // what is left of a disk is read by the code that wrote it, which passes points too
			}
			w.take("point "+name, name)
		})
	}
	w.watch(w.disks()...)
}

var ids = regexp.MustCompile(`(?s)^goroutine (\d+) (?:.* in goroutine (\d+)\n)?`)

// goroutine returns the numbers of this goroutine and of the one that started it.
func goroutine() (self, parent string) {
	b := make([]byte, 16<<10)
	m := ids.FindSubmatch(b[:runtime.Stack(b, false)])
	return string(m[1]), string(m[2])
}

func (w *walk) watch(disks ...*disk) {
	fn := func(s step) { w.take(kindOf(s), s.String()) }
	for _, d := range disks {
		d.watch.Store(&fn)
	}
}

// finish waits for what was cut.
func (w *walk) finish() {
	invariant.SetPointHook(nil)
	for _, d := range w.disks() {
		d.watch.Store(nil)
	}
	w.gate.Lock()
	defer w.gate.Unlock()
	if w.ended {
		return
	}
	w.ended = true
	for _, d := range w.disks() {
		w.places.add(d.places.all())
	}
	close(w.shots)
	w.wg.Wait()
}

var (
	hexes  = regexp.MustCompile(`[0-9a-f]{12,}`)
	digits = regexp.MustCompile(`[0-9]+`)
)

// kindOf names the kind of a step: that of its change and of its file.
func kindOf(s step) string {
	s.name = digits.ReplaceAllString(hexes.ReplaceAllString(s.name, "x"), "n")
	return s.String()
}

// take cuts the power at a moment.
func (w *walk) take(kind, what string) {
	w.gate.RLock()
	defer w.gate.RUnlock()
	w.mu.Lock()
	w.kinds[kind]++
	n := w.kinds[kind]
	w.mu.Unlock()
	if w.ended || w.thin > 0 && n > w.thin && n%w.rare != 0 {
		return
	}
	for _, percent := range percents {
		p := w.promised()
		s := shot{what: what, percent: percent, left: w.power.cut(w.disks(), percent), promise: p}
		// What may be missing may have begun to be so since.
		now := w.promised()
		s.begins, s.joining = now.begins, s.joining || now.joining
		if w.isNew(s) {
			w.keep(kind, s)
			w.shots <- s
		}
	}
}

// isNew tells whether the same disks were not seen with the same promise.
func (w *walk) isNew(s shot) bool {
	h := sum(s.left) + uint64(s.version)*0x9e3779b97f4a7c15
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cuts++
	was := w.seen[h]
	w.seen[h] = true
	return !was
}

// keep keeps a copy of a shot if there are not enough of its kind.
func (w *walk) keep(kind string, s shot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	kind = fmt.Sprint(kind, s.percent)
	if w.keptKind[kind] >= w.most {
		return
	}
	w.keptKind[kind]++
	s.left = copies(s.left)
	w.kept = append(w.kept, s)
}

// copies copies disks of which everything is synced.
func copies(disks []*vfs.MemFS) []*vfs.MemFS {
	out := make([]*vfs.MemFS, len(disks))
	for i, d := range disks {
		out[i] = d.CrashClone(vfs.CrashCloneCfg{})
	}
	return out
}

func (w *walk) look(s shot) {
	err := w.check(s)
	if err == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.errs) == 0 {
		close(w.found)
	}
	w.errs = append(w.errs, fmt.Errorf("%v: %w", s, err))
}

// report fails the test for what was found.
func (w *walk) report() {
	w.t.Helper()
	for _, err := range w.errs[:min(5, len(w.errs))] {
		w.t.Error(err)
	}
	w.t.Logf("%d cuts at moments of %d kinds and %d points: %d different disks, %d wrong", w.cuts, len(w.kinds), len(w.points), len(w.seen), len(w.errs))
}

var seed = maphash.MakeSeed()

// sum is a hash of all that disks hold.
func sum(disks []*vfs.MemFS) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	var walk func(fs *vfs.MemFS, dir string)
	walk = func(fs *vfs.MemFS, dir string) {
		names, err := fs.List(dir)
		if err != nil {
			panic(err)
		}
		sort.Strings(names)
		for _, name := range names {
			at := path.Join(dir, name)
			st, err := fs.Stat(at)
			if err != nil {
				panic(err)
			}
			_, _ = h.WriteString(at) // never fails
			_ = h.WriteByte(0)
			if st.IsDir() {
				walk(fs, at)
				continue
			}
			b, err := fs.UnsafeGetFileDataBuffer(at)
			if err != nil {
				panic(err)
			}
			_, _ = h.Write(b)
			_ = h.WriteByte(1)
		}
	}
	for _, fs := range disks {
		walk(fs, "/")
		_ = h.WriteByte(2)
	}
	return h.Sum64()
}

// readable is the check of a walk: what the disks hold, read without a node.
func readable(s shot) error {
	acks := make([]acked, 0, len(s.acks))
	for _, a := range s.acks {
		if a.offset >= s.begins[a.partition] {
			acks = append(acks, a)
		}
	}
	err := verdictOf(s.left, acks)
	var l *loss
	if !errors.As(err, &l) || s.member && !s.joining || l.records > 0 {
		return err
	}
	for _, err := range l.replicas { // on its way into a cluster it may be none's member yet
		if !errors.Is(err, offline.ErrNotMember) {
			return l
		}
	}
	return nil
}
