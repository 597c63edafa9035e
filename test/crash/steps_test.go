package crash

import (
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chronik/internal/vfs"
)

// long is set for the form of the tests in which no moment is left out.
var long = os.Getenv("CHRONIK_TEST_LONG") != ""

// walks are those that have been made, by the name of what was walked along.
var walks = struct {
	sync.Mutex
	done map[string]*walk
}{done: map[string]*walk{}}

// stories are what is walked along. Each makes, runs and ends a walk.
var stories = map[string]func(*testing.T, func(*disk)) *walk{
	"life":   lifeStory,
	"rejoin": rejoinStory,
}

// walked returns the walk along a story, which is made once. No test may run in parallel: points
// do not tell whose they are.
func walked(t *testing.T, name string) *walk {
	t.Helper()
	walks.Lock()
	defer walks.Unlock()
	w := walks.done[name]
	if w == nil {
		w = stories[name](t, nil)
		walks.done[name] = w
		w.report()
	}
	return w
}

func lifeStory(t *testing.T, tune func(*disk)) *walk {
	t.Helper()
	f := newLife(t, tune)
	f.w.begins(tune == nil)
	defer f.w.finish()
	records := 120
	if long {
		records *= 3
	}
	f.run(records)
	f.w.finish()
	return f.w
}

// TestEveryStepOfALife cuts the power at every change of a node's disk: first start, log, segments,
// checkpoints, trims, topics that come and go, uploads into a directory, clean end, start, recovery.
// Then it starts a node on what was left at each kind of moment.
func TestEveryStepOfALife(t *testing.T) {
	w := walked(t, "life")
	t.Run("again", func(t *testing.T) {
		for _, s := range w.kept {
			t.Run(s.String(), func(t *testing.T) {
				t.Parallel()
				again(t, s)
			})
		}
	})
}

// rejoinStory is the founding of a cluster of three, and how the third node comes back, first with its
// disk and then without, when the others have trimmed their logs. All three lose their power at once.
func rejoinStory(t *testing.T, tune func(*disk)) *walk {
	t.Helper()
	c := newCluster(t, tune)
	for _, cfg := range c.cfgs {
		cfg.Raft.ElectionTimeout, cfg.Raft.HeartbeatInterval = 1500*time.Millisecond, 150*time.Millisecond
	}
	l := newLoad(c, nil)
	var member, joining atomic.Bool
	w := &walk{t: t, power: c.power, disks: func() []*disk { return slices.Clone(c.disks) }, check: readable}
	w.promised = func() promise {
		acks := l.sofar()
		p := promise{version: 4 * len(acks), member: member.Load(), joining: joining.Load(), acks: acks}
		if p.member {
			p.version++
		}
		if p.joining {
			p.version += 2
		}
		return p
	}
	w.begins(tune == nil)
	defer w.finish()
	// Nodes that are stopped for cuts at all that happens would elect leaders and nothing else.
	w.most, w.thin, w.rare = 0, 2, 100 // TestRestartFromPowerCuts starts clusters again
	if long {
		w.thin, w.rare = 8, 16
	}
	c.startAll()
	member.Store(true)
	c.createTopic(true)
	for _, d := range c.disks {
		d.watch.Store(nil)
	}
	l.run()
	defer l.stop()
	l.await(100, w.found)
	c.outrun(2)
	w.watch(c.disks[2])
	c.start(2)
	c.eventually("node 3 has installed snapshots", func() error { return c.installed(2) })
	c.stop(2)
	joining.Store(true)
	w.exchange(c, 2)
	l.await(len(l.sofar())+100, w.found)
	c.start(2)
	c.eventually("node 3 has replaced its replicas", func() error { return c.installed(2) })
	joining.Store(false)
	l.await(len(l.sofar())+20, w.found)
	l.stop()
	w.finish()
	return w
}

// exchange gives a node that does not run an empty disk.
func (w *walk) exchange(c *cluster, i int) {
	d := newDisk(vfs.NewCrashableMem(), c.power)
	c.power.mu.Lock()
	w.places.add(c.disks[i].places.all())
	c.disks[i] = d
	c.power.mu.Unlock()
	w.watch(d)
}

// TestEveryStepOfARejoin cuts the power of three nodes at every change of a disk while they found a cluster,
// and of the third one's while it comes back through snapshots.
func TestEveryStepOfARejoin(t *testing.T) { walked(t, "rejoin") }
