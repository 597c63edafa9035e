package crash

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"chronik/internal/admin"
	"chronik/internal/archive"
	"chronik/internal/bucket"
	"chronik/internal/ident"
	"chronik/internal/vfs"
)

// life is what happens to a node that is a cluster alone, from its first start on.
type life struct {
	c *cluster
	w *walk

	mu  sync.Mutex
	l   *load
	now promise
	// topics are those beside the load's, and whether their creation (true) or deletion was answered.
	topics map[string]bool
}

func (f *life) promised() promise {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.now
	if f.l != nil {
		p.acks = f.l.sofar()
	}
	p.version = p.version*100_000 + len(p.acks)
	return p
}

func (f *life) promise(change func(*promise)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.now)
	f.now.version++
}

const bucketURL = "file:///bucket"

// tuneLife makes a node do in seconds what it does in days.
func tuneLife(c *cluster) {
	cfg := c.cfgs[0]
	cfg.ObjectStore.URL, cfg.ObjectStore.UploadInterval, cfg.ObjectStore.Grace = bucketURL, time.Hour, 4*time.Second
	cfg.Snapshot.RetentionCount = 1
	cfg.Raftlog.MaxBytes = 3 * fileBytes
}

func newLife(t *testing.T, tune func(*disk)) *life {
	t.Helper()
	f := &life{c: newClusterOf(t, 1, tune), topics: map[string]bool{}}
	tuneLife(f.c)
	f.w = &walk{t: t, power: f.c.power, disks: func() []*disk { return f.c.disks }, promised: f.promised, check: lifeHolds}
	return f
}

// lifeHolds is readable, and the snapshots in the directory that is the object store are whole.
func lifeHolds(s shot) error {
	if err := bucketHolds(s); err != nil {
		return err
	}
	return readable(s)
}

func bucketHolds(s shot) error {
	if s.cluster == "" || !strings.Contains(s.what, "bucket") && !strings.Contains(s.what, "archive") {
		return nil
	}
	ctx := context.Background()
	b, err := bucket.Open(bucketURL, bucket.Options{FS: s.left[0]})
	if err != nil {
		return err
	}
	cl, err := archive.New(b).Cluster(s.cluster)
	if err != nil {
		return err
	}
	for g, index := range s.uploaded {
		var skipped error
		m, err := cl.Newest(ctx, g, func(_ archive.Ref, err error) { skipped = err })
		if err = errors.Join(err, skipped); err == nil {
			_, err = cl.Verify(ctx, m, func(d archive.Damage) { skipped = d.Err })
		}
		if err = errors.Join(err, skipped); err != nil {
			return fmt.Errorf("group %d in the object store: %w", g, err)
		}
		if m.Index < index {
			return fmt.Errorf("group %d in the object store is at index %d, uploaded was %d", g, m.Index, index)
		}
	}
	return nil
}

// run is the life. It ends early when the walk has found something.
func (f *life) run(records int) {
	c := f.c
	c.t.Helper()
	c.startAll()
	f.promise(func(p *promise) { p.member = true })
	c.createTopic(true)
	for _, phase := range []func(){
		func() { f.load(records, f.others) },
		func() { f.upload(); f.load(records+records/2, f.others); f.outdate(); f.upload(); f.collected() },
		func() { c.stop(0); c.start(0); c.ready() }, // once more, after a clean end
		func() { f.load(records/4, func() {}) },
		f.powerLoss,
		func() { f.load(records/4, f.others) },
		c.stopAll,
	} {
		select {
		case <-f.w.found:
			return
		default:
			phase()
		}
	}
}

// load produces until n more records are acknowledged; in the midst it does what is between.
func (f *life) load(n int, between func()) {
	f.c.t.Helper()
	f.mu.Lock()
	was := f.l
	f.mu.Unlock()
	l := newLoad(f.c, func(n int) { f.w.take("acknowledgement", fmt.Sprintf("acknowledgement %d", n)) })
	if was != nil {
		l.acks, l.at, l.later = was.acks, was.at, true
	}
	before := len(l.acks)
	f.mu.Lock()
	f.l = l
	f.mu.Unlock()
	l.run()
	l.await(before+n/2, f.w.found)
	between()
	l.await(before+n, f.w.found)
	l.stop()
}

// upload takes checkpoints and waits until they are in the object store.
func (f *life) upload() {
	t := f.c.t
	t.Helper()
	now := map[ident.GroupID]ident.Index{}
	f.c.eventually("checkpoints are uploaded", func() error { // an upload is to be over within its grace time
		var done admin.Snapshots
		if err := f.c.post(0, "/v1/snapshots?upload=true&topic="+topic, &done); err != nil {
			return err
		}
		for _, s := range done.Snapshots {
			if s.Error != "" {
				return errors.New(s.Error)
			}
			now[ident.GroupID(s.GroupID)] = ident.Index(s.Index)
		}
		return nil
	})
	names, err := vfs.List(f.c.disks[0].mem, "/bucket")
	must(t, err)
	for _, name := range names {
		if !strings.HasPrefix(name, ".") {
			f.promise(func(p *promise) { p.cluster, p.uploaded = name, now })
		}
	}
}

// outdate deletes all records. What was uploaded before the last load began is then named by no
// later snapshot of one partition at least: a third of its records, 60 of 200 bytes at an average, are more than a segment.
func (f *life) outdate() {
	adm, done := f.admin()
	defer done()
	f.deleteRecords(adm, func(end int64) int64 { return end })
}

// collected waits until an object that no snapshot names is removed.
func (f *life) collected() {
	if f.w.most == 0 {
		return
	}
	f.c.eventually("objects are collected", func() error {
		f.w.mu.Lock()
		defer f.w.mu.Unlock()
		if f.w.points["archive.collect.object"] == 0 {
			return errors.New("none is")
		}
		return nil
	})
}

// others are the procedures beside appending: topics come and go, records are deleted.
func (f *life) others() {
	t := f.c.t
	t.Helper()
	adm, done := f.admin()
	defer done()
	ctx, cancel := context.WithTimeout(context.Background(), settle)
	defer cancel()
	name := fmt.Sprintf("brief-%d", len(f.topics))
	_, err := adm.CreateTopic(ctx, 1, 1, nil, name)
	must(t, err)
	f.promise(func(*promise) { f.topics[name] = true })
	f.deleteRecords(adm, func(end int64) int64 { return end / 2 })
	gone, err := adm.DeleteTopic(ctx, name)
	must(t, errors.Join(err, gone.Err))
	f.promise(func(*promise) { f.topics[name] = false })
}

func (f *life) admin() (adm *kadm.Client, done func()) {
	cl := f.c.client()
	return kadm.NewClient(cl), cl.Close
}

// deleteRecords deletes those below what upTo makes of a partition's end.
func (f *life) deleteRecords(adm *kadm.Client, upTo func(end int64) int64) {
	t := f.c.t
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), settle)
	defer cancel()
	ends, err := adm.ListEndOffsets(ctx, topic)
	must(t, errors.Join(err, ends.Error()))
	var to kadm.Offsets
	f.promise(func(p *promise) {
		for i := range p.begins {
			o, _ := ends.Lookup(topic, int32(i))
			p.begins[i] = max(p.begins[i], upTo(o.Offset))
			to.AddOffset(topic, int32(i), p.begins[i], -1)
		}
	})
	deleted, err := adm.DeleteRecords(ctx, to)
	must(t, errors.Join(err, deleted.Error()))
}

// powerLoss starts the node again on half of what was not synced.
func (f *life) powerLoss() {
	c := f.c
	left := c.power.cut(c.disks, 50)
	c.stop(0)
	places := c.disks[0].places.all()
	omit := c.disks[0].omit
	c.disks[0].watch.Store(nil)
	c.replace(left)
	c.disks[0].omit = omit
	c.disks[0].places.add(places)
	f.w.watch(c.disks...)
	c.start(0)
	c.ready()
}

// again starts a node on what was left at a moment of a life, and sees that it serves, has what
// was acknowledged, takes records, and complains about nothing.
func again(t *testing.T, s shot) {
	t.Helper()
	c := newClusterOf(t, 1, nil)
	tuneLife(c)
	c.replace(s.left)
	c.startAll()
	c.createTopic(true)
	got, begins := c.readFrom(s.begins)
	at := map[place]string{}
	for p, vs := range got {
		for i, v := range vs {
			at[place{int32(p), begins[p] + int64(i)}] = v
		}
		if begins[p] > s.begins[p] {
			t.Errorf("%v: partition %d begins at %d, nobody deleted from %d on", s, p, begins[p], s.begins[p])
		}
	}
	for _, a := range missing(s.acks, at) {
		if a.offset >= s.begins[a.partition] {
			t.Errorf("%v: lost: offset %d of partition %d: %.40s", s, a.offset, a.partition, a.value)
		}
	}
	c.stopAll()
	for line := range strings.SplitSeq(c.logs.String(), "\n") {
		if strings.Contains(line, "quarantined") || strings.Contains(line, "level=ERROR") {
			t.Errorf("%v: log: %s", s, line)
		}
	}
}
