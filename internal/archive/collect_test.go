package archive

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

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
	step chan bool // the scheduler lets the actor's next call happen, or not
	at   chan string
	done chan func()
}

// TestModel runs uploads and collections of successive leaders against each
// other, call by call in any order, with pauses of any length between calls: a
// snapshot whose upload succeeded stays whole until enough newer ones are there.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		// Drawn outside: within the bubble time jumps, which rapid takes for its own.
		script := rapid.SliceOfN(rapid.Uint16Range(0, 6719), 150, 900).Draw(rt, "script")
		var failed string
		synctest.Test(t, func(t *testing.T) { failed = runModel(t, script) })
		if failed != "" {
			rt.Fatal(failed)
		}
	})
}

func runModel(t *testing.T, script []uint16) (failed string) {
	b := bucket.NewMem()
	m := &model{t: t, script: script, b: b, good: map[ident.Index]bool{}, c: must(New(b).Cluster(testCluster)), src: newNode(t)}
	m.src.append("0.log", noise(1, 400))
	for len(m.script) > 0 && failed == "" {
		m.act()
		failed = m.invariant()
	}
	for _, a := range m.actors {
		for a.busy {
			m.stepOf(a, false)
		}
	}
	return failed
}

// choose takes the next decision: one of n.
func (m *model) choose(n int) int {
	if len(m.script) == 0 {
		return 0
	}
	v := int(m.script[0])
	m.script = m.script[1:]
	return v % n
}

type model struct {
	t      *testing.T
	script []uint16
	b      *bucket.Mem
	c      *Cluster
	src    *node // what every leader's disk holds: replicas are equal
	term   ident.Term
	index  ident.Index
	actors []*actor
	good   map[ident.Index]bool // whose upload succeeded
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

// act does one thing: a new leader, a new task, one call of a running one, or time passes.
func (m *model) act() {
	switch m.choose(12) {
	case 0:
		if m.term > 0 && m.choose(4) > 0 {
			return
		}
		m.term++
		a := &actor{step: make(chan bool), at: make(chan string), done: make(chan func(), 1)}
		m.actors = append(m.actors, a)
		term, view := m.term, &Cluster{b: gated{m.b, a}, id: testCluster}
		m.start(a, func() func() {
			cl, err := view.Claim(context.Background(), testGroup, term, 1, WriteOptions{})
			return func() {
				if err == nil {
					a.cl = cl
				}
			}
		})
	case 1, 2:
		m.grow()
	case 3, 4:
		if a := m.pick(false); a != nil && a.cl != nil && m.index > 0 {
			m.task(a)
		}
	case 5:
		time.Sleep([]time.Duration{time.Second, 9 * time.Second, time.Minute, 29 * time.Minute, time.Hour}[m.choose(5)])
	default:
		if a := m.pick(true); a != nil {
			for range 1 + m.choose(12) {
				if a.busy {
					m.stepOf(a, m.choose(40) > 0)
				}
			}
		}
	}
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

func (m *model) pick(busy bool) *actor {
	var as []*actor
	for _, a := range m.actors {
		if a.busy == busy {
			as = append(as, a)
		}
	}
	if len(as) == 0 {
		return nil
	}
	return as[m.choose(len(as))]
}

// start runs f on the actor's goroutine; what it returns runs here when it is done.
func (m *model) start(a *actor, f func() func()) {
	a.busy = true
	go func() { a.done <- f() }()
	m.settle(a)
}

func (m *model) task(a *actor) {
	if m.choose(2) == 0 {
		m.start(a, func() func() {
			_, _ = a.cl.Collect(context.Background(), modelKeep)
			return func() {}
		})
		return
	}
	// Pinned and hashed now, as the manager does.
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
