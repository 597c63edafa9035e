package raftgroup

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/snapshot"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// installPoints are the fault points that a receiver passes, from the first file it
// stages to the last trace of the old generation, on both sides of every durable step.
var installPoints = []string{
	"snapshot.stage.create", "snapshot.stage.created", "snapshot.stage.sync", "snapshot.stage.synced",
	"snapshot.stage.rename", "snapshot.stage.renamed", "snapshot.stage.dir-sync",
	"snapshot.generation.rename", "snapshot.generation.renamed", "snapshot.generation.durable",
	"raftgroup.append.submit", "raftlog/batch-encoded", "raftlog/batch-written", "raftlog/batch-synced",
	"raftgroup.install.durable", "raftgroup.install.state", "raftgroup.install.switched",
	"snapshot.generation.remove", "snapshot.generation.removed", "snapshot.generation.gone",
}

// Rule 13: the power is cut at each of them, at the first passing and, where there
// is one, at the second; nothing, or half of what was not synced, is left. What the
// disk opens as is exactly the old state or exactly the new one, and it ends like
// the others.
func TestRule13CrashAtEveryInstallPoint(t *testing.T) {
	seen := map[string]bool{}
	for _, point := range installPoints {
		for k, cut := range []cutAt{{point, 1, 0}, {point, 1, 50}, {point, 2, 50}} {
			t.Run(fmt.Sprintf("%s-%d", strings.ReplaceAll(point, "/", "."), k), func(t *testing.T) {
				for _, p := range cut.run(t) {
					seen[p] = true
				}
			})
		}
	}
	for p := range seen {
		if !slices.Contains(installPoints, p) {
			t.Errorf("an install passes %s and no power is cut there", p)
		}
	}
}

// cutAt cuts a receiver's power when it passes a point for the times-th time.
type cutAt struct {
	point string
	times int
	keep  int // percent of what was not synced
}

// installStep tells points of a receiver from those of others' checkpoints.
func installStep(point string) bool {
	return strings.HasPrefix(point, "snapshot.stage.") || strings.HasPrefix(point, "snapshot.generation.") ||
		strings.HasPrefix(point, "raftgroup.install.")
}

// run returns the install's points that were passed. A point that is passed less
// often is not cut at.
func (cut cutAt) run(t *testing.T) []string {
	var mu sync.Mutex
	var passed []string
	inCluster(t, 3, func(c *cluster) { smallSteps(c); c.open = openFileMachine }, func(c *cluster) {
		id, store, disk := c.away()
		var left *vfs.MemFS
		begun, n := false, 0
		invariant.SetPointHook(func(point string) {
			mu.Lock()
			defer mu.Unlock()
			begun = begun || point == "snapshot.stage.create"
			if begun && installStep(point) {
				passed = append(passed, point)
			}
			if !begun || left != nil || point != cut.point {
				return
			}
			if n++; n == cut.times {
				c.net.Isolate(id) // first: what was promised until now must be on the disk
				left = disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: cut.keep, RNG: rand.New(rand.NewPCG(1, 1))})
			}
		})
		defer invariant.SetPointHook(nil)
		clone := func() *vfs.MemFS { mu.Lock(); defer mu.Unlock(); return left }
		wasCut := func() bool { return clone() != nil }
		back := c.boot(id, store, disk)
		c.eventually("a cut at "+cut.point, func() bool {
			return wasCut() || cut.times > 1 && back.replica().Status().SnapshotsInstalled > 0
		})
		invariant.SetPointHook(nil)
		if !wasCut() {
			return
		}
		back.kill(0)
		c.net.HealAll()
		c.hold = true
		back = c.boot(id, store, clone())
		c.oldOrNew(back)
		startAll(back.host)
		c.same(awayBytes)
		if err := back.ev.quarantine(back.replica().ID()); err != nil {
			t.Error(err)
		}
	})
	mu.Lock()
	defer mu.Unlock()
	return passed
}

// awayBytes is what cluster.away writes: 10 entries of "k0=v", 80 of "k10=v".
const awayBytes = 10*4 + 80*5

// oldOrNew looks at a replica that was opened and does nothing yet: it is what it was
// before it left, or the snapshot.
func (c *cluster) oldOrNew(nd *node) {
	c.t.Helper()
	r := nd.replica()
	st := r.Status()
	m, ok := r.StateMachine().(*fileMachine)
	if st.State != StateHeld || !ok {
		c.t.Fatalf("opened as %+v", st)
	}
	l := c.leader().replica()
	want, err := vfs.ReadFile(c.leader().fs, path.Join(snapshot.GenDir(l.base, l.liveGen.Load()), machineFile), 1<<30)
	must(c.t, err)
	size := m.size.Load()
	got, err := vfs.ReadFile(nd.fs, m.name, 1<<30)
	must(c.t, err)
	if int64(len(got)) < size || !bytes.Equal(got[:size], want[:size]) {
		c.t.Fatalf("the state has %d bytes that are not the group's first", size)
	}
	gens, err := snapshot.Generations(nd.fs, r.base)
	must(c.t, err)
	for _, g := range gens {
		if g.N < r.liveGen.Load() || !g.Staging && g.N > r.liveGen.Load() {
			c.t.Fatalf("generation %d is live, and %s is there after the start", r.liveGen.Load(), g.Dir)
		}
	}
	switch r.liveGen.Load() {
	case firstGeneration: // old: what away had applied at most
		if st.AppliedIndex > 30 || st.FirstIndex > 30 || st.LastIndex > 30 {
			c.t.Fatalf("the old generation with another log: %+v", st)
		}
	default:
		if at := st.SnapshotIndex; st.AppliedIndex != at || st.FirstIndex != at+1 || st.LastIndex < at || at < 60 || size < 60*4 {
			c.t.Fatalf("the new generation is not the snapshot: %+v, %d bytes", st, size)
		}
	}
}

// Under load a follower that returns needs one snapshot an absence: while it is on
// its way the leader takes others and trims, but not what the first one's receiver
// needs next.
func TestOneSnapshotAnAbsenceUnderLoad(t *testing.T) {
	inCluster(t, 3, func(c *cluster) { smallSteps(c); c.open = openFileMachine }, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 20)
		c.net.SetDelay(20*time.Millisecond, 30*time.Millisecond)
		stop, ended := make(chan struct{}), make(chan struct{})
		var written atomic.Int64
		go func() { // a write each 10 ms
			defer close(ended)
			for {
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond):
				}
				c.mu.Lock()
				l := c.leads()
				c.mu.Unlock()
				if l != nil {
					l.replica().Propose([]byte("k=vvvvvvvv"), ProposeOptions{}, ignored{&written})
				}
			}
		}()
		for round := range 3 {
			c.mu.Lock()
			f := c.follower()
			id, store := f.id, f.store
			disk := f.kill(0)
			c.mu.Unlock()
			gone := written.Load()
			c.eventually("away for long", func() bool { return written.Load() > gone+100 })
			c.trimmedLeader(f.replica().Status().LastIndex + 20)
			c.mu.Lock()
			back := c.boot(id, store, disk)
			c.mu.Unlock()
			trims := c.leader().replica().Status().FirstIndex
			c.eventually("installed", func() bool { return back.replica().Status().SnapshotsInstalled > 0 })
			now := written.Load()
			c.eventually("caught up under load", func() bool {
				st := back.replica().Status()
				return written.Load() > now+100 && st.State == StateRunning && st.AppliedIndex+50 > c.leader().replica().Status().AppliedIndex
			})
			if st := back.replica().Status(); st.SnapshotsInstalled != 1 || back.rcv.Stats().Completed != 1 {
				t.Errorf("round %d: %d snapshots installed, %+v", round, st.SnapshotsInstalled, back.rcv.Stats())
			}
			if c.leader().replica().Status().FirstIndex < trims+40 {
				t.Errorf("round %d: the leader did not trim on: this proves nothing", round)
			}
		}
		close(stop)
		<-ended
	})
}

// ignored counts what was applied.
type ignored struct{ n *atomic.Int64 }

func (i ignored) Applied(_ ident.Index, _ ident.Term, _ Result, err error) {
	if err == nil {
		i.n.Add(1)
	}
}

// slowDone is a network on which nobody answers that a snapshot is not needed any more.
type slowDone struct{ transport.Sender }

func (s slowDone) Call(ctx context.Context, n ident.NodeID, method string, req []byte) ([]byte, error) {
	if method == snapshot.MethodDone {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return s.Sender.Call(ctx, n, method, req)
}

// TestRule13LateCleanUp: a second snapshot is installed before the first one's remains are removed.
func TestRule13LateCleanUp(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		smallSteps(c)
		tune := c.tune
		c.tune = func(o *Options) { tune(o); o.Policy.HoldBytes = 1; o.Sender = slowDone{o.Sender} }
	}, func(c *cluster) {
		c.create(3)
		f := c.follower()
		for n := range 2 {
			c.net.Isolate(f.id)
			c.fill("k", 60*n, 60*n+60)
			c.trimmedLeader(ident.Index(60*n + 40))
			c.net.HealAll()
			c.eventually("installed", func() bool { return f.replica().Status().SnapshotsInstalled == uint64(n+1) })
		}
		<-time.After(10 * time.Second)
		names, err := vfs.List(f.fs, f.replica().base)
		must(t, err)
		if !slices.Equal(names, []string{"g3"}) {
			t.Errorf("left %v", names)
		}
		id, store := f.id, f.store
		f = c.boot(id, store, f.kill(100))
		if err := f.ev.quarantine(f.replica().ID()); err != nil {
			t.Error(err)
		}
		c.converge(120)
	})
}

// slowToProve has received snapshots looked at for d, or until the look is ended, which is said to ended.
func slowToProve(c *cluster, d time.Duration, begun, ended *atomic.Int64) {
	smallSteps(c)
	tune := c.tune
	c.tune = func(o *Options) {
		tune(o)
		o.Verify = func(ctx context.Context, _ vfs.FS, _ Spec, _ string, _ []byte, _ []CaptureFile) error {
			begun.Add(1)
			select {
			case <-time.After(d):
				return nil
			case <-ctx.Done():
				ended.Add(1)
				return ctx.Err()
			}
		}
	}
}

// TestPinLastsUntilSnapshotIsProved: reading a large snapshot takes longer than a pin that nobody renews. Without
// the pin the log behind the snapshot would be gone, and the next one would end alike.
func TestPinLastsUntilSnapshotIsProved(t *testing.T) {
	var begun, ended atomic.Int64
	inCluster(t, 3, func(c *cluster) { slowToProve(c, 5*time.Minute, &begun, &ended) }, func(c *cluster) {
		back := c.boot(c.away())
		n := 90
		for end := time.Now().Add(6 * time.Minute); time.Now().Before(end); <-time.After(2 * time.Second) {
			c.fill("k", n, n+1)
			n++
		}
		c.converge(n)
		if got := back.replica().Status().SnapshotsInstalled; got != 1 || begun.Load() != 1 {
			t.Errorf("%d snapshots installed, %d looked at", got, begun.Load())
		}
	})
}

// TestProvingEnds: a look at a received snapshot, or at the own state, is ended by a stop and by a removal.
func TestProvingEnds(t *testing.T) {
	for what, end := range map[string]func(nd *node){
		"stop":   func(nd *node) { nd.stop(context.Background()) },
		"remove": func(nd *node) { must(t, nd.host.Remove(nd.replica().ID())) },
		"own": func(nd *node) {
			r := nd.replica()
			r.postLocal(localEvent{fn: func(*outbox) { r.verifySelf() }})
			<-time.After(time.Second)
			must(t, nd.host.Remove(r.ID()))
		},
	} {
		t.Run(what, func(t *testing.T) {
			var begun, ended atomic.Int64
			inCluster(t, 3, func(c *cluster) {
				slowToProve(c, time.Hour, &begun, &ended)
				c.open = func(fs vfs.FS, dir string, blob []byte, files []CaptureFile) (StateMachine, error) {
					sm, err := OpenMemory(fs, dir, blob, files)
					return endless{sm.(*MemoryStateMachine), &ended}, err
				}
			}, func(c *cluster) {
				back := c.boot(c.away())
				c.eventually("it looks", func() bool { return begun.Load() == 1 })
				start, want := time.Now(), int64(1)
				if end(back); what == "own" {
					want = 2
				}
				c.eventually("it ends", func() bool { return ended.Load() >= want })
				if took := time.Since(start); took > time.Minute {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// endless never comes to an end of what it stores.
type endless struct {
	*MemoryStateMachine
	ended *atomic.Int64
}

func (s endless) Verify(ctx context.Context) error {
	select {
	case <-time.After(time.Hour):
	case <-ctx.Done():
		s.ended.Add(1)
	}
	return ctx.Err()
}
