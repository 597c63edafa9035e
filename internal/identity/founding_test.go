package identity

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"chronik/internal/ident"
	"chronik/internal/vfs"
)

// world is a few nodes on their way into a cluster: real stores on disks that
// lose what was not synced, calls that are lost, late or made twice, nodes that
// crash, are wiped or cut off. Each node does what Decide says.
type world struct {
	t     fataler
	nodes map[ident.NodeID]*founder
	ids   []ident.NodeID
	cut   map[[2]ident.NodeID]bool
	// heard is what a node (first) last heard another (second) say: when they
	// connected, or when that one's state changed, but not when it prepared.
	heard map[[2]ident.NodeID]Hello
	calls []call
}

type fataler interface {
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

type founder struct {
	id    ident.NodeID
	fs    *vfs.MemFS
	st    *Store
	peers []ident.NodeID
	// life counts processes; an answer to an earlier one is lost.
	life int
	// round is the genesis this process asks consent for, acks who gave it.
	round *Genesis
	acks  map[ident.NodeID]bool
}

type call struct {
	what     string // prepare, ack, commit
	from, to ident.NodeID
	life     int // of the proposer, for an ack
	store    ident.StoreID
	g        *Genesis
}

func newWorld(t fataler, n int) *world {
	w := &world{t: t, nodes: map[ident.NodeID]*founder{}, cut: map[[2]ident.NodeID]bool{}, heard: map[[2]ident.NodeID]Hello{}}
	for i := range n {
		w.ids = append(w.ids, ident.NodeID(i+1))
	}
	for _, id := range w.ids {
		w.nodes[id] = &founder{id: id, fs: vfs.NewCrashableMem(), peers: w.ids}
	}
	for _, id := range w.ids {
		w.start(w.nodes[id])
	}
	return w
}

// says tells everybody connected what f is now.
func (w *world) says(f *founder) {
	for _, id := range w.ids {
		if w.connected(f.id, id) && w.nodes[id].st != nil {
			w.heard[[2]ident.NodeID{id, f.id}] = f.hello()
		}
	}
}

// reconnected lets f hear everybody anew, and be heard.
func (w *world) reconnected(f *founder) {
	w.says(f)
	for _, id := range w.ids {
		k := [2]ident.NodeID{f.id, id}
		if !w.connected(f.id, id) {
			delete(w.heard, k)
			delete(w.heard, [2]ident.NodeID{id, f.id})
		} else if o := w.nodes[id]; o.st != nil {
			w.heard[k] = o.hello()
		}
	}
}

func (w *world) start(f *founder) {
	st, err := OpenStore(f.fs, "/data", f.id)
	if err != nil {
		w.t.Fatal(err)
	}
	f.st, f.round, f.acks = st, nil, nil
	f.life++
	w.reconnected(f)
}

func (f *founder) hello() Hello {
	hash := map[ident.NodeID]string{}
	for _, p := range f.peers {
		hash[p] = ""
	}
	h := Hello{
		Node: f.id, Store: f.st.ID(), State: f.st.State(), JoinOnly: f.st.JoinOnly(), Cluster: f.st.ClusterID(),
		Genesis: f.st.Genesis(), PeersHash: PeersHash(hash), Boot: f.st.Boot(), Run: f.st.Run(),
	}
	b, err := h.Encode()
	if err != nil {
		panic(err)
	}
	if h, err = DecodeHello(b); err != nil {
		panic(err)
	}
	return h
}

func (w *world) connected(a, b ident.NodeID) bool {
	return a != b && !w.cut[[2]ident.NodeID{min(a, b), max(a, b)}]
}

func (w *world) must(err error) {
	if err != nil {
		w.t.Fatal(err)
	}
}

// step lets a node do what Decide says.
func (w *world) step(f *founder) ActionKind {
	if f.st.State() == Member {
		return ActWait
	}
	s := Situation{Node: f.id, Peers: f.peers, Me: f.hello(), Live: map[ident.NodeID]Hello{}}
	for _, o := range w.ids {
		if h, ok := w.heard[[2]ident.NodeID{f.id, o}]; ok {
			s.Live[o] = h
		}
	}
	act := Decide(s)
	defer func() {
		if act.Kind == ActCommit || act.Kind == ActUnprepare || act.Kind == ActJoin {
			w.says(f)
		}
	}()
	switch act.Kind {
	case ActWait:
	case ActPropose:
		w.must(f.st.Unprepare())
		g := NewGenesis(s, 3)
		w.must(f.st.Prepare(g))
		w.ask(f, g)
	case ActResume:
		w.ask(f, f.st.Genesis())
	case ActCommit:
		w.must(f.st.Commit())
	case ActUnprepare:
		w.must(f.st.Unprepare())
		f.round = nil
	case ActJoin:
		w.must(f.st.Join(s.Live[act.Via].Cluster))
	}
	return act.Kind
}

func (w *world) ask(f *founder, g *Genesis) {
	f.round, f.acks = g, map[ident.NodeID]bool{f.id: true}
	for _, m := range g.Members {
		if m.Node != f.id {
			w.calls = append(w.calls, call{what: "prepare", from: f.id, to: m.Node, life: f.life, g: g})
		}
	}
	w.commit(f)
}

// commit commits the round if everybody has consented.
func (w *world) commit(f *founder) {
	if f.round == nil || len(f.acks) < len(f.round.Members) {
		return
	}
	g := f.round
	w.must(f.st.CommitTo(g.ClusterID))
	w.says(f)
	f.round = nil
	for _, m := range g.Members {
		if m.Node != f.id {
			w.calls = append(w.calls, call{what: "commit", from: f.id, to: m.Node, store: f.st.ID(), g: g})
		}
	}
}

func (w *world) deliver(c call) {
	f := w.nodes[c.to]
	switch c.what {
	case "prepare":
		if f.st.Prepare(c.g) == nil {
			w.calls = append(w.calls, call{what: "ack", from: c.to, to: c.from, life: c.life, g: c.g})
		}
	case "ack":
		if f.life == c.life && f.round.Equal(c.g) {
			f.acks[c.from] = true
			w.commit(f)
		}
	case "commit":
		// The receiver takes it from the proposer's store alone, while that is connected.
		if w.nodes[c.from].st.ID() == c.store {
			_ = f.st.CommitTo(c.g.ClusterID) // refused if it holds something else
			w.says(f)
		}
	}
}

func (w *world) crash(f *founder) {
	f.fs = f.fs.CrashClone(vfs.CrashCloneCfg{})
	w.start(f)
}

func (w *world) clusters() []string {
	var out []string
	for _, id := range w.ids {
		if st := w.nodes[id].st; st.State() == Member && !slices.Contains(out, st.ClusterID()) {
			out = append(out, st.ClusterID())
		}
	}
	return out
}

// checkConsent: while a cluster has a member, every founder's store holds its
// genesis. A founder that let go could only join, for which the others may be too few.
func (w *world) checkConsent() {
	for _, id := range w.ids {
		g := w.nodes[id].st.Genesis()
		if g == nil || w.nodes[id].st.State() != Member {
			continue
		}
		for _, m := range g.Members {
			if st := w.nodes[m.Node].st; st.ID() == m.Store && !st.Genesis().Equal(g) {
				w.t.Fatalf("node %d is a member of %s, founder %d let go of it and is %s", id, g.ClusterID, m.Node, st.State())
			}
		}
	}
}

// actions are what may happen; wipes and lists say whether disks are emptied and
// peers lists changed.
func (w *world) actions(wipes, lists bool) map[string]func(*rapid.T) {
	node := func(t *rapid.T) *founder { return w.nodes[rapid.SampledFrom(w.ids).Draw(t, "node")] }
	some := func(t *rapid.T) int {
		if len(w.calls) == 0 {
			t.Skip("no calls")
		}
		return rapid.IntRange(0, len(w.calls)-1).Draw(t, "call")
	}
	acts := map[string]func(*rapid.T){
		"step":  func(t *rapid.T) { w.step(node(t)) },
		"step ": func(t *rapid.T) { w.step(node(t)) }, // twice as often
		"deliver": func(t *rapid.T) {
			i := some(t)
			c := w.calls[i]
			w.calls = slices.Delete(w.calls, i, i+1)
			w.deliver(c)
		},
		"deliver and keep": func(t *rapid.T) { w.deliver(w.calls[some(t)]) },
		"lose":             func(t *rapid.T) { i := some(t); w.calls = slices.Delete(w.calls, i, i+1) },
		"crash":            func(t *rapid.T) { w.crash(node(t)) },
		"cut or heal": func(t *rapid.T) {
			a, b := node(t).id, node(t).id
			k := [2]ident.NodeID{min(a, b), max(a, b)}
			w.cut[k] = !w.cut[k]
			w.reconnected(w.nodes[a])
		},
		"": func(t *rapid.T) {
			if got := w.clusters(); len(got) > 1 {
				t.Fatalf("two clusters: %v", got)
			}
			w.checkConsent()
		},
	}
	if wipes {
		acts["wipe"] = func(t *rapid.T) {
			f := node(t)
			f.fs = vfs.NewCrashableMem()
			w.start(f)
		}
		acts["renew"] = func(t *rapid.T) {
			if f := node(t); f.st.State() == Prepared {
				w.must(f.st.Renew())
				f.round = nil
				w.says(f)
			}
		}
	}
	if lists {
		acts["another list"] = func(t *rapid.T) {
			f := node(t)
			f.peers = rapid.SampledFrom([][]ident.NodeID{{1, 2, 3}, {1, 2}, {2, 3}, {1, 3}}).Draw(t, "peers")
			w.crash(f)
		}
	}
	return acts
}

// settle heals everything and lets all happen in order until nothing does.
func (w *world) settle() {
	clear(w.cut)
	for _, id := range w.ids {
		w.reconnected(w.nodes[id])
	}
	for range 40 {
		for _, id := range w.ids {
			w.step(w.nodes[id])
		}
		for len(w.calls) > 0 {
			c := w.calls[0]
			w.calls = w.calls[1:]
			w.deliver(c)
		}
	}
}

// Whatever is lost, late, repeated, crashed or wiped: never two clusters; and
// once it stops, everybody is in one.
func TestFounding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, rapid.IntRange(1, 4).Draw(t, "nodes"))
		t.Repeat(w.actions(true, false))
		w.settle()
		for _, id := range w.ids {
			if st := w.nodes[id].st; st.State() != Member || st.ClusterID() != w.clusters()[0] {
				t.Fatalf("node %d stays %s of %q; clusters %v", id, st.State(), st.ClusterID(), w.clusters())
			}
		}
	})
}

// Peers lists that differ, and change, as long as any two have a node in common.
func TestFoundingWithDifferentLists(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 3)
		t.Repeat(w.actions(false, true))
		w.settle()
		if got := w.clusters(); len(got) > 1 {
			t.Fatalf("two clusters: %v", got)
		}
		for _, f := range w.nodes {
			f.peers = w.ids
			w.crash(f)
		}
		w.settle()
		for _, id := range w.ids {
			if st := w.nodes[id].st; st.State() != Member {
				t.Fatalf("node %d stays %s although the lists are equal now", id, st.State())
			}
		}
	})
}

// Without faults, three nodes are a cluster after one round of consent; and the
// crash of any one of them, at any step of it, loses nothing.
func TestFoundingCrashAtEveryStep(t *testing.T) {
	for victim := ident.NodeID(1); victim <= 3; victim++ {
		for at := 0; ; at++ {
			crashed := false
			w, n := newWorld(t, 3), 0
			tick := func() {
				if n == at {
					w.crash(w.nodes[victim])
					crashed = true
				}
				n++
			}
			for range 10 {
				for _, id := range w.ids {
					tick()
					w.step(w.nodes[id])
				}
				for len(w.calls) > 0 {
					tick()
					c := w.calls[0]
					w.calls = w.calls[1:]
					w.deliver(c)
				}
			}
			if got := w.clusters(); len(got) != 1 {
				t.Fatalf("crash of node %d at %d: clusters %v", victim, at, got)
			}
			for _, f := range w.nodes {
				if f.st.State() != Member || len(f.st.Genesis().Members) != 3 {
					t.Fatalf("crash of node %d at %d: node %d is %s", victim, at, f.id, f.st.State())
				}
			}
			if !crashed {
				break
			}
		}
	}
}
