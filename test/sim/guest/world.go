package main

import (
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// A step is this much virtual time. After each the invariants are checked.
const step = 50 * time.Millisecond

// defaultSteps are 10 seconds of faults.
const defaultSteps = 200

// convergence is how long a mended cluster may take until all is well again.
const convergence = 90 * time.Second

type options struct {
	seed  uint64
	steps int
	nodes int
	skip  map[int]bool
	log   *slog.Logger
}

// world is all there is in a run.
type world struct {
	opt   options
	log   *slog.Logger
	trace *trace
	net   *network
	nodes []*node // node i+1 at i
	load  *load
	check *checker
	plan  []*fault

	mu        sync.Mutex
	streams   map[string]*rand.Rand
	odds      chances
	violation *violation
	counts    map[string]int64
	ended     bool // nodes are stopped from here on: what they say is no news
}

type violation struct {
	Check  string `json:"check"`
	Detail string `json:"detail"`
}

// result is what the host reads.
type result struct {
	Seed      uint64           `json:"seed"`
	Steps     int              `json:"steps"`
	Hash      string           `json:"hash"`
	Events    int64            `json:"events"`
	VirtualNS int64            `json:"virtual_ns"`
	Faults    []string         `json:"faults"`
	Violation *violation       `json:"violation"`
	Counts    map[string]int64 `json:"counts"`
}

func newWorld(opt options) *world {
	w := &world{opt: opt, log: opt.log.With("at", 0), trace: newTrace(), streams: map[string]*rand.Rand{}, counts: map[string]int64{}}
	w.net = newNetwork(w)
	w.check = newChecker(w)
	n := opt.nodes
	if n == 0 {
		n = 3
		if w.rand("plan").IntN(5) == 0 {
			n = 4
		}
	}
	for i := range n {
		w.nodes = append(w.nodes, newNode(w, i+1, n))
	}
	w.plan = makePlan(w)
	w.load = newLoad(w)
	return w
}

// rand returns a purpose's own stream of random numbers, so that a fault left out
// does not change what the others are.
func (w *world) rand(purpose string) *rand.Rand {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.streams[purpose]
	if r == nil {
		h := fnv.New64a()
		_, _ = h.Write([]byte(purpose)) // a hash does not fail
		r = rand.New(rand.NewPCG(w.opt.seed, h.Sum64()))
		w.streams[purpose] = r
	}
	return r
}

func (w *world) chances() chances {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.odds
}

func (w *world) setChances(c chances) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.odds = c
}

func (w *world) count(what string, n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what] += n
}

// fail ends the run at the first violation: what comes after would only hide it.
func (w *world) fail(check, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.violation != nil {
		return
	}
	w.violation = &violation{check, fmt.Sprintf(format, args...)}
	w.log.Error("VIOLATION", "check", check, "detail", w.violation.Detail)
}

func (w *world) failed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.violation != nil
}

func (w *world) say(what string, args ...any) {
	w.trace.text(what)
	w.log.Info(what, args...)
}

// run is the whole story: a cluster is founded, loaded, broken, mended, and must then be well.
func (w *world) run() {
	for _, n := range w.nodes {
		n.start()
	}
	if !w.await("the cluster is founded", convergence, w.ready) || !w.load.prepare() {
		return
	}
	w.load.start()
	for s := 0; s < w.opt.steps && !w.failed(); s++ {
		w.begin(s)
		time.Sleep(step)
		w.check.step()
	}
	w.mend()
	w.load.mark()
	if w.await("the mended cluster is well", convergence, w.well) {
		w.load.finish()
	}
	if !w.failed() {
		w.check.end()
	}
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
}

// begin begins the faults that are due in step s.
func (w *world) begin(s int) {
	for i, f := range w.plan {
		if f.step == s && !w.opt.skip[i] {
			go f.inject()
		}
	}
}

// mend ends every fault. Those that are still under way end by themselves, without effect.
func (w *world) mend() {
	w.say("mended")
	for _, f := range w.plan {
		f.cancel()
	}
	w.setChances(chances{})
	w.net.mend()
	for _, n := range w.nodes {
		n.disk.setHung(false)
		n.disk.setSlow(0)
		n.disk.setRoom(0)
		n.disk.setFail(0)
		n.start()
	}
}

// await checks once a step until ok says nil. A cluster that does not get there is a violation of its own.
func (w *world) await(what string, limit time.Duration, ok func() error) bool {
	began := time.Now()
	var err error
	for time.Since(began) < limit {
		if w.failed() {
			return false
		}
		if err = ok(); err == nil {
			w.say(what, "took", time.Since(began))
			return true
		}
		time.Sleep(step)
		w.check.step()
	}
	w.fail("converges", "%s: not within %v: %v", what, limit, err)
	return false
}

// ready tells whether every node serves.
func (w *world) ready() error {
	for _, n := range w.nodes {
		if err := n.ready(); err != nil {
			return fmt.Errorf("node %d: %w", n.id, err)
		}
	}
	return nil
}

// well tells whether every replica is where it should be and clients are served again.
func (w *world) well() error {
	if err := w.ready(); err != nil {
		return err
	}
	if err := w.whole(); err != nil {
		return err
	}
	return w.load.served()
}

// whole tells whether no replica is lost, on its way, or behind.
func (w *world) whole() error {
	for _, n := range w.nodes {
		src := n.source()
		if src == nil {
			return fmt.Errorf("node %d is down", n.id)
		}
		if err := src.Ready(); err != nil { // without a leader nobody says who is behind, and who joins has nothing yet
			return fmt.Errorf("node %d: %w", n.id, err)
		}
		c := src.Cluster()
		for _, t := range c.Topics {
			c.Internal = append(c.Internal, t.Partitions...)
		}
		for _, p := range c.Internal {
			for _, r := range p.Replicas {
				if r.Lost || r.Joining {
					return fmt.Errorf("node %d: replica %d of %s is not whole: %+v", n.id, r.ReplicaID, p.Group, r)
				}
			}
		}
		for _, r := range src.Replicas().Replicas {
			if r.State != "running" || r.Transfer != nil {
				return fmt.Errorf("node %d: %s is %s", n.id, r.Group, r.State)
			}
			for _, f := range r.Followers {
				if !f.Alive || f.State != "StateReplicate" {
					return fmt.Errorf("node %d: %s: follower %d is %s", n.id, r.Group, f.ReplicaID, f.State)
				}
			}
		}
	}
	return nil
}

func (w *world) result() result {
	r := result{
		Seed: w.opt.seed, Steps: w.opt.steps, Hash: w.trace.sum(), Events: w.trace.frames + w.counts["acked"] + w.counts["read"],
		VirtualNS: int64(time.Since(w.trace.began)), Violation: w.violation, Counts: w.counts, Faults: w.faults(),
	}
	r.Counts["frames"], r.Counts["chunks"], r.Counts["bytes"], r.Counts["disk"] = w.trace.frames, w.trace.chunks, w.trace.bytes, w.trace.ops
	r.Counts["nodes"] = int64(len(w.nodes))
	return r
}

// faults are the plan, in its order.
func (w *world) faults() []string {
	out := []string{}
	for _, f := range w.plan {
		out = append(out, f.String())
	}
	return out
}
