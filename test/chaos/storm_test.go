package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/test/check"
	"chronik/test/harness"
)

// stormDisk is the size of each node's disk in a storm, with log files small enough for it.
const stormDisk = 256 << 20

// episode is how long a cluster lives, and how long other tests of the machine wait for it.
const episode = 100 * time.Second

// stormTime is how long to storm: CHRONIK_TEST_MINUTES, less by default.
func stormTime(t *testing.T) time.Duration {
	t.Helper()
	s := os.Getenv("CHRONIK_TEST_MINUTES")
	if s == "" {
		harness.Long(t)
		return 70 * time.Second
	}
	m, err := strconv.ParseFloat(s, 64)
	if err != nil || m <= 0 || m > 600 {
		t.Fatalf("CHRONIK_TEST_MINUTES=%q", s)
	}
	return time.Duration(m * float64(time.Minute))
}

// TestStorm is the whole of it: two clusters side by side, one in namespaces and one behind proxies,
// every nemesis in random order, some on top of a sick network, and every workload, until the
// time is over. 'make chaos MINUTES=10'.
func TestStorm(t *testing.T) {
	limit := stormTime(t)
	rng, s := seedValue(t)
	ta := newTally(s)
	defer func() { ta.write(t) }()
	kinds := []string{"namespaces", "proxies"}
	if err := harness.NamespacesMissing(); err != nil {
		t.Logf("no cuts in namespaces: %v", err)
		kinds = kinds[1:]
	}
	decks := map[string]*deck{}
	for _, k := range kinds {
		decks[k] = &deck{}
	}
	gone := time.Duration(0)
	for n := 0; !t.Failed() && limit-gone >= 20*time.Second; n++ {
		var storms []*storm
		t.Run(fmt.Sprintf("episode-%d", n), func(t *testing.T) {
			for _, kind := range kinds {
				st := &storm{ta: newTally(s), deck: decks[kind], limit: min(limit-gone, episode) - 12*time.Second}
				storms = append(storms, st)
				seed := rng.Uint64()
				t.Run(kind, func(t *testing.T) {
					t.Parallel()
					st.env = &env{t: t, rng: rand.New(rand.NewPCG(seed, 0))}
					st.run(kind == "namespaces")
				})
			}
		})
		longest := time.Duration(0)
		for _, st := range storms {
			longest = max(longest, st.ta.stormed)
			if st.t.Failed() && len(st.ta.Violations) == 0 { // what ended the test is a violation, too
				st.ta.violated(check.Violation{Kind: check.Trouble})
			}
			ta.add(st.ta)
		}
		gone += longest
	}
	vs := ta.judgeDeaths()
	ta.violated(vs...)
	for _, v := range vs {
		t.Error(v)
	}
	t.Logf("producers were served again after a node's death: p50 %d ms, p95 %d ms of %d", ta.ServedP50ms, ta.ServedP95ms, ta.Deaths)
}

// deck deals every nemesis once before any comes again. It outlives a cluster, and so holds
// names: what a nemesis does is bound to its cluster.
type deck struct{ left []string }

func (d *deck) next(e *env, all []nemesis) nemesis {
	if len(d.left) == 0 {
		for _, n := range all {
			d.left = append(d.left, n.name)
		}
		e.rng.Shuffle(len(d.left), func(i, j int) { d.left[i], d.left[j] = d.left[j], d.left[i] })
	}
	name := d.left[0]
	d.left = d.left[1:]
	return all[slices.IndexFunc(all, func(n nemesis) bool { return n.name == name })]
}

// storm is one cluster's time.
type storm struct {
	*env
	ta    *tally
	deck  *deck
	limit time.Duration // no nemesis begins later
	// damaged says that files were damaged: log lines about that are no trouble.
	damaged bool
}

func (st *storm) nemeses() []nemesis {
	all := slices.Concat(nemeses, []nemesis{
		{"kill and serve", st.killAndServe},
		{"kill and serve", st.killAndServe},
		{"rolling restart", rollingRestart},
		{"kill all again and again", killAllAgain},
		{"flip bits", st.flipBits},
	})
	if st.c.Net != nil {
		all = append(all, cutNemeses...)
	}
	if st.c.Proxy != nil {
		all = append(all, linkNemeses...)
	}
	if harness.DisksMissing() == nil {
		all = append(all, nemesis{"full disk", fullDisk})
	}
	if only := os.Getenv("CHRONIK_TEST_NEMESIS"); only != "" {
		all = slices.DeleteFunc(all, func(n nemesis) bool { return !strings.Contains(n.name, only) })
	}
	return all
}

func (st *storm) run(namespaces bool) {
	o := harness.Options{Threshold: 300, Namespaces: namespaces, Proxied: !namespaces}
	if harness.DisksMissing() == nil {
		o.DiskBytes, o.Set = stormDisk, []string{"raftlog.file_bytes=2MiB", "raftlog.max_bytes=32MiB"}
	}
	st.c = harness.Start(st.t, o)
	all := st.nemeses()
	if len(all) == 0 {
		st.t.Skipf("no nemesis here has %q in its name", os.Getenv("CHRONIK_TEST_NEMESIS"))
	}
	began := time.Now() // not before: other tests may have had the machine
	defer func() { st.ta.stormed += time.Since(began) }()
	st.l = startLoad(st.t, st.c, loadOptions{size: 100, rate: 4 * time.Millisecond})
	acks1 := startLoad(st.t, st.c, loadOptions{topic: "acks1", partitions: 2, size: 50, rate: 5 * time.Millisecond, acks1: true})
	group, stop := startConsumers(st.env, "readers", 2)
	defer stop()
	asked := st.askOffsets(group)
	meta := startMetaLoad(st.t, st.c, st.rng.Uint64(), 150*time.Millisecond)
	st.healed("whole at the beginning")
	for round := 0; time.Since(began) < st.limit && !st.t.Failed(); round++ {
		st.round(round, st.deck.next(st.env, all))
	}
	calls, _, undecided, found := meta.finish()
	st.ta.MetaCalls += calls
	st.ta.Undecided += undecided
	for _, l := range []*load{st.l, acks1} {
		l.finish()
		acked, delivered := l.totals()
		st.ta.Acked += acked
		st.ta.Delivered += delivered
		found = append(found, l.found...)
	}
	group.reachEnd(stop)
	asked()
	found = append(found, group.found...)
	st.ta.violated(found...)
	if !st.damaged {
		st.quiet(append(slices.Clone(errorsOfRestored), "disk full: records are refused", "disk tight", "no space left on device", "cannot go on without a majority")...)
	}
}

// askOffsets asks for what the group has committed, all the time, until the returned function is called.
func (st *storm) askOffsets(group *consumers) (finish func()) {
	adm := kadm.NewClient(st.c.Client(kgo.RequestTimeoutOverhead(2 * time.Second)))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_ = group.look(adm) // no answer under a nemesis: none is promised
			select {
			case <-ctx.Done():
			case <-time.After(300 * time.Millisecond):
			}
		}
	}()
	return func() {
		cancel()
		<-done
		st.c.Eventually(20*time.Second, "committed offsets are answered", func() error { return group.look(adm) })
	}
}

// round lets one nemesis loose, and waits until the cluster is whole again.
func (st *storm) round(i int, n nemesis) {
	st.l.worstGap()
	on := ""
	if !slices.ContainsFunc(slices.Concat(cutNemeses, linkNemeses), func(m nemesis) bool { return m.name == n.name }) &&
		n.name != "kill and serve" && st.rng.IntN(3) == 0 { // that one measures
		on = st.disturb()
		st.ta.Nemeses["on top of a sick network"]++
	}
	what := n.run(st.env)
	st.heal()
	st.ta.Nemeses[n.name]++
	took := st.healed(n.name + " " + what)
	st.t.Logf("%s round %d: %s: %s %s: whole after %v, longest without an acknowledgement %v", time.Now().UTC().Format("15:04:05.000"), i, n.name, what, on, took, st.l.worstGap())
	if n.name == "flip bits" {
		for id := 1; id <= 3; id++ {
			st.lookAt(id)
		}
	}
	st.between(0, 300*time.Millisecond)
}

// killAndServe kills the leader of a partition and measures when every partition has accepted a
// record that was sent later. The node stays dead until then.
func (st *storm) killAndServe(e *env) string {
	group := fmt.Sprintf("%s-%d", e.l.o.topic, e.rng.IntN(e.l.o.partitions))
	id := e.leaderOf(group)
	e.signalAt(id)
	e.gone(id)
	var took time.Duration
	e.c.Eventually(20*time.Second, "producers are served after a node's death", func() (err error) {
		took, err = e.l.servedAfter()
		return err
	})
	st.ta.served = append(st.ta.served, took)
	e.c.Restart(id)
	return fmt.Sprintf("the leader of %s, node %d: producers served again after %v", group, id, took)
}

// leaderOf waits for a leader of group.
func (e *env) leaderOf(group string) (id int) {
	e.t.Helper()
	e.c.Eventually(20*time.Second, "a leader", func() (err error) {
		id, _, err = e.c.Leader(group)
		return err
	})
	return id
}

// flipBits damages a file of a killed node.
func (st *storm) flipBits(e *env) string {
	st.damaged = true
	kind := []string{".seg", "checkpoint", "raftlog/"}[e.rng.IntN(3)]
	id := e.anyNode()
	e.kill(id)
	where := flip(e.t, e.rng, e.c.Node(id).Dir, kind)
	e.c.Restart(id)
	return fmt.Sprintf("node %d, %s%s", id, where, e.wipeIfRefused(id))
}

func rollingRestart(e *env) string {
	for id := 1; id <= 3; id++ {
		e.c.Stop(id)
		e.c.Restart(id)
		e.healed("rolling restart")
	}
	return "one after the other"
}

func killAllAgain(e *env) string {
	n := 2 + e.rng.IntN(4)
	for range n {
		killAll(e)
		e.between(0, 1500*time.Millisecond)
	}
	return fmt.Sprintf("%d times", n)
}

// fullDisk takes all space of a node's disk for a while. The node must live through it.
func fullDisk(e *env) string {
	id, role := e.pick()
	left := int64(e.rng.IntN(3)) << 18
	e.c.FillDisk(id, left)
	d := e.between(500*time.Millisecond, 4*time.Second)
	if !e.c.Node(id).Alive() {
		e.t.Errorf("node %d ended on a full disk", id)
	}
	e.c.EmptyDisk(id)
	return fmt.Sprintf("of %s, node %d, %d bytes left, for %v", role, id, left, d)
}

// signalAt kills a node and tells the load when.
func (e *env) signalAt(id int) {
	e.t.Helper()
	e.l.died(time.Now())
	e.signal(id, syscall.SIGKILL)
}
