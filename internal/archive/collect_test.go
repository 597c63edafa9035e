package archive

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"chronik/internal/bucket"
	"chronik/internal/ident"
)

func (r *rig) collect(keep int) Collected {
	r.t.Helper()
	got, err := r.cl.Collect(r.t.Context(), keep)
	noErr(r.t, err)
	return got
}

func (r *rig) count(dir string) int {
	return len(r.b.Names(fmt.Sprintf("%s/groups/7/%s/", testCluster, dir)))
}

// TestRetention keeps the newest snapshots, and objects for the grace time.
func TestRetention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		for i := range 5 {
			r.append(fmt.Sprintf("%d.log", i), noise(uint64(i), 3000))
			r.put(ident.Index(10 + i))
		}
		r.names = r.names[3:] // retention of the topic's records took the first files away
		r.put(20)
		got := r.collect(1)
		if got.Snapshots != 5 || got.Kept != 1 || got.Objects != 0 || got.Waiting != 3 || r.count("manifests") != 1 {
			t.Fatalf("%+v", got)
		}
		time.Sleep(time.Hour - time.Second)
		if got := r.collect(1); got.Objects != 0 {
			t.Fatalf("removed before the grace time: %+v", got)
		}
		time.Sleep(time.Second)
		if got := r.collect(1); got.Objects != 3 || got.Waiting != 0 || got.BytesFreed < 9000 {
			t.Fatalf("%+v", got)
		}
		_, fs, skipped := r.fetch()
		if len(skipped) != 0 || r.count("objects") != 3 {
			t.Fatalf("skipped %v, %d objects", skipped, r.count("objects"))
		}
		ckFiles := r.files
		for name := range ckFiles {
			if name < "3" {
				delete(ckFiles, name)
			}
		}
		r.check(fs, "/d/g1")
	})
}

// TestGraceStartsAgain when a snapshot names an object in between.
func TestGraceStartsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.append("0.log", noise(1, 3000))
		r.checkpoint(10)
		diesAt("archive.upload.objects", 0, func() { _, _ = r.upload(t.Context(), r.cl) })
		r.cl.mu = sync.Mutex{} // the one that died held it
		if got := r.collect(1); got.Waiting != 1 {
			t.Fatalf("%+v", got)
		}
		time.Sleep(59 * time.Minute)
		if up := r.put(10); up.BytesSent != 0 {
			t.Fatalf("%+v", up)
		}
		r.collect(1)
		r.names = nil
		r.put(20)
		time.Sleep(time.Minute)
		if got := r.collect(1); got.Waiting != 1 || got.Objects != 0 {
			t.Fatalf("%+v", got)
		}
		time.Sleep(time.Hour)
		if got := r.collect(1); got.Objects != 1 {
			t.Fatalf("%+v", got)
		}
	})
}

// TestUnreadableManifestKeepsAll: what it names is not known.
func TestUnreadableManifestKeepsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.append("0.log", noise(1, 3000))
		r.put(10)
		r.names = nil
		up := r.put(20)
		r.collect(1)
		r.b.Flip(up.Ref.Object, 100)
		time.Sleep(2 * time.Hour)
		got := r.collect(1)
		if got.Objects != 0 || got.Unreadable != 1 || got.Waiting == 0 || !got.NewestIncomplete {
			t.Fatalf("%+v", got)
		}
		r.b.Flip(up.Ref.Object, 100)
		time.Sleep(2 * time.Hour)
		if got := r.collect(1); got.Objects != 1 {
			t.Fatalf("%+v", got)
		}
	})
}

// TestIncompleteSnapshotsDoNotCount toward those that are kept.
func TestIncompleteSnapshotsDoNotCount(t *testing.T) {
	r := newRig(t)
	r.append("0.log", noise(1, 3000))
	r.put(10)
	r.put(20)
	before := r.b.Names("")
	r.put(30)
	for _, n := range r.b.Names(testCluster + "/groups/7/objects/") {
		if !strings.Contains(strings.Join(before, " "), n) {
			r.b.Lose(n)
		}
	}
	got := r.collect(1)
	if got.Kept != 2 || got.Snapshots != 1 || !got.NewestIncomplete {
		t.Fatalf("%+v", got)
	}
	m, _, skipped := r.fetch()
	if m.Index != 20 || len(skipped) != 1 {
		t.Fatalf("index %d, skipped %v", m.Index, skipped)
	}
}

// TestDeposedLeader removes nothing and replaces nothing.
func TestDeposedLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.append("0.log", noise(1, 3000))
		r.put(10)
		r.put(20)
		newer := must(r.c.Claim(t.Context(), testGroup, 6, 2, WriteOptions{}))
		before := fmt.Sprint(r.b.Names(""))
		_, err := r.cl.Collect(t.Context(), 1)
		wantErr(t, err, ErrDeposed)
		r.checkpoint(30)
		_, err = r.upload(t.Context(), r.cl)
		wantErr(t, err, ErrDeposed)
		_, err = r.c.Claim(t.Context(), testGroup, 5, 1, WriteOptions{})
		wantErr(t, err, ErrDeposed)
		if after := fmt.Sprint(r.b.Names("")); after != before {
			t.Fatalf("%s became %s", before, after)
		}
		got, err := newer.Collect(t.Context(), 1)
		noErr(t, err)
		if got.Snapshots != 1 || r.count("terms") != 1 {
			t.Fatalf("%+v, %d claims", got, r.count("terms"))
		}
	})
}

// actor is a leader in the model: a node with its own copy of the group.
type actor struct {
	cl   *Claim
	busy bool
	step chan bool   // the scheduler lets the actor's next call happen, or not
	at   chan string // what it is, one that waits
	done chan func()
}

// next says what call the actor waits to make, "" if it sleeps.
func (a *actor) next() string {
	select {
	case what := <-a.at:
		a.at <- what
		return what
	default:
		return ""
	}
}

// TestModel has a leader with a past (snapshots, uploads that died, garbage of any
// age) collect or upload while its successor claims, uploads and collects: call by
// call in any order, calls refused, pauses of any length between them. A snapshot
// whose upload succeeded stays whole until enough newer ones are there.
func TestModel(t *testing.T) {
	for seed := range uint64(*modelSeeds) {
		synctest.Test(t, func(t *testing.T) {
			if failed := runModel(t, rand.New(rand.NewPCG(*modelFrom+seed, 1))); failed != "" {
				t.Fatalf("seed %d: %s", *modelFrom+seed, failed)
			}
		})
	}
}

var (
	modelSeeds = flag.Int("model.seeds", 800, "how many runs TestModel makes")
	modelFrom  = flag.Uint64("model.from", 0, "the first of them")
)

func runModel(t *testing.T, rnd *rand.Rand) string {
	b := bucket.NewMem()
	m := &model{t: t, rnd: rnd, b: b, c: must(New(b).Cluster(testCluster)), src: newNode(t), good: map[ident.Index]bool{}}
	m.src.append("0.log", noise(1, 400))
	old := m.leader(1)
	m.past(old)
	m.task(old)
	// The race. Both are stepped in any order until both are done.
	for range m.choose(8) {
		if old.busy {
			m.stepOf(old, true)
		}
	}
	young := m.leader(2)
	hurry := m.choose(3) // the young one may do much between two calls of the old
	for tasks := 3; ; {
		if m.choose(12) == 0 {
			time.Sleep([]time.Duration{time.Second, 9 * time.Second, 11 * time.Second, time.Minute, 31 * time.Minute, time.Hour}[m.choose(6)])
		}
		switch {
		case !young.busy && young.cl != nil && tasks > 0:
			tasks--
			m.task(young)
		case old.busy && (!young.busy || m.choose(2+10*hurry) == 0):
			m.stepOf(old, m.lucky())
		case young.busy:
			m.stepOf(young, m.lucky())
		default:
			return m.invariant()
		}
		if failed := m.invariant(); failed != "" {
			m.stop(old)
			m.stop(young)
			return failed
		}
	}
}

func (m *model) lucky() bool { return m.choose(30) != 29 }

// past is what happened before: uploads of which some died, collections, time.
func (m *model) past(a *actor) {
	m.finish(a)
	for range 1 + m.choose(3) {
		if m.index == 0 || m.choose(2) == 0 {
			m.grow()
		}
		m.upload(a)
		switch m.choose(3) {
		case 0: // it dies somewhere
			for range m.choose(12) {
				m.stepOf(a, true)
			}
			m.stop(a)
		case 1: // it dies before its manifest
			for a.busy && a.next() != "put if absent" {
				m.stepOf(a, true)
			}
			m.stop(a)
		default:
			m.finish(a)
		}
		if m.choose(3) > 0 {
			m.collect(a)
			m.finish(a)
			time.Sleep([]time.Duration{time.Minute, time.Hour}[m.choose(2)])
		}
	}
}

// choose decides: one of n.
func (m *model) choose(n int) int { return m.rnd.IntN(n) }

type model struct {
	t     *testing.T
	rnd   *rand.Rand
	b     *bucket.Mem
	c     *Cluster
	src   *node // what every leader's disk holds: replicas are equal
	index ident.Index
	good  map[ident.Index]bool // whose upload succeeded
}

// modelKeep is how many snapshots the model's collectors keep.
const modelKeep = 2

// gated is the bucket as one actor sees it: every call waits for the scheduler.
type gated struct {
	bucket.Bucket
	a *actor
}

func (g gated) wait(ctx context.Context, what string) error {
	g.a.at <- what
	if !<-g.a.step {
		return fmt.Errorf("the store refused")
	}
	return ctx.Err() // a request whose time is over does not take effect
}

func (g gated) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if err := g.wait(ctx, "read"); err != nil {
		return 0, err
	}
	return g.Bucket.ReadAt(ctx, name, p, off)
}

func (g gated) Put(ctx context.Context, name string, data []byte) error {
	if err := g.wait(ctx, "put"); err != nil {
		return err
	}
	return g.Bucket.Put(ctx, name, data)
}

func (g gated) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	if err := g.wait(ctx, "put if absent"); err != nil {
		return err
	}
	return g.Bucket.PutIfAbsent(ctx, name, data)
}

func (g gated) List(ctx context.Context, dir string, fn func(bucket.Object) error) error {
	if err := g.wait(ctx, "list"); err != nil {
		return err
	}
	return g.Bucket.List(ctx, dir, fn)
}

func (g gated) Delete(ctx context.Context, name string) error {
	if err := g.wait(ctx, "delete"); err != nil {
		return err
	}
	return g.Bucket.Delete(ctx, name)
}

// leader makes the claimant of a term; its claim is under way.
func (m *model) leader(term ident.Term) *actor {
	a := &actor{step: make(chan bool), at: make(chan string, 1), done: make(chan func(), 1)}
	view := &Cluster{b: gated{m.b, a}, id: testCluster}
	m.start(a, func() func() {
		cl, err := view.Claim(context.Background(), testGroup, term, 1, WriteOptions{})
		return func() {
			if err == nil {
				a.cl = cl
			}
		}
	})
	return a
}

// grow takes a new checkpoint; now and then the files begin anew, as a topic's records expire.
func (m *model) grow() {
	switch m.choose(4) {
	case 0:
		m.src.names, m.src.files = nil, map[string][]byte{}
		m.src.append(fmt.Sprintf("%d.log", m.index), noise(uint64(m.index)+1000, 100))
	default:
		m.src.append(m.src.names[0], noise(uint64(m.index)+100, 50))
	}
	m.index++
	m.src.checkpoint(m.index)
}

// start runs f on the actor's goroutine; what it returns runs here when it is done.
func (m *model) start(a *actor, f func() func()) {
	a.busy = true
	go func() { a.done <- f() }()
	m.settle(a)
}

func (m *model) task(a *actor) {
	switch m.choose(5) {
	case 0, 1:
		m.collect(a)
	case 2:
		m.grow()
		m.upload(a)
	default:
		m.upload(a)
	}
}

func (m *model) collect(a *actor) {
	m.start(a, func() func() {
		_, _ = a.cl.Collect(context.Background(), modelKeep)
		return func() {}
	})
}

// upload pins and hashes now, as the manager does.
func (m *model) upload(a *actor) {
	if m.index == 0 {
		m.grow()
	}
	index, src := m.index, m.src
	pin := must(src.server.Pin(testGroup, 70, src.dir, 0))
	man, _, err := src.server.Manifest(context.Background(), pin.ID)
	noErr(m.t, err)
	m.start(a, func() func() {
		_, err := a.cl.Upload(context.Background(), Info{Name: "orders-0", Index: index, Term: 3}, man, pinned{src.server, pin.ID})
		src.server.Unpin(pin.ID)
		return func() {
			if err == nil {
				m.good[index] = true
			}
		}
	})
}

// finish lets what the actor does end; stop has every call of it refused.
func (m *model) finish(a *actor) {
	for a.busy {
		m.stepOf(a, true)
	}
}

func (m *model) stop(a *actor) {
	for a.busy {
		m.stepOf(a, false)
	}
}

// settle waits until the actor is at its next call, asleep, or done.
func (m *model) settle(a *actor) {
	synctest.Wait()
	select {
	case f := <-a.done:
		f()
		a.busy = false
	default:
	}
}

// stepOf lets the actor's next call happen, or be refused.
func (m *model) stepOf(a *actor, lucky bool) {
	select {
	case <-a.at:
		a.step <- lucky
	default: // it sleeps
		time.Sleep(time.Second)
	}
	m.settle(a)
}

// invariant: of the newest snapshots that were uploaded, as many as are kept are whole.
func (m *model) invariant() string {
	whole := map[ident.Index]bool{}
	for _, r := range must(m.c.Snapshots(context.Background(), testGroup)) {
		man := must(m.c.Manifest(context.Background(), r))
		if m.c.Check(context.Background(), man) == nil {
			whole[r.Index] = true
		}
	}
	newer := 0
	for i := m.index; i > 0 && newer < modelKeep; i-- {
		if m.good[i] && !whole[i] {
			return fmt.Sprintf("snapshot %d was uploaded and is not whole; %d newer ones are", i, newer)
		}
		if whole[i] {
			newer++
		}
	}
	return ""
}
