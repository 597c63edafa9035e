package metadata

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"chronik/internal/ident"
)

func TestWipedDiskGetsFreshIDs(t *testing.T) {
	m := cluster(t, 3)
	topic := m.topic("a", 2, 3)
	p0 := topic.Partitions[0]
	old := *p0.OnNode(2)
	res := m.must(registration(2, 22, 2)).(*RegisterResult)
	if res.Lost != 3 { // two partitions and the metadata group
		t.Fatalf("lost %d", res.Lost)
	}
	p := m.img().Partition(p0.Group)
	if p.Generation != p0.Generation+1 || len(p.Replicas) != 4 || !p.Replica(old.ID).Lost {
		t.Fatalf("%+v", p)
	}
	fresh := p.OnNode(2)
	if fresh.ID == old.ID || !fresh.Joining || fresh.Replaces != old.ID || fresh.Store != storeID(22) || fresh.CreatedAt != m.index {
		t.Fatalf("fresh replica %+v", fresh)
	}
	if p.Founder(fresh.ID) || !p.Founder(old.ID) {
		t.Fatal("founders changed")
	}
	if m.img().Retired(p.Group, old.ID) || m.img().Retired(p.Group, m.img().NextReplica) {
		t.Fatal("retired too early")
	}
	if got := p.ReplicaNodes(); len(got) != 3 {
		t.Fatalf("assignment %v", got)
	}
	s := newSim(p0)
	s.settle(m, func(id ident.ReplicaID) bool { return id != old.ID })
	p = m.img().Partition(p.Group)
	if len(p.Replicas) != 3 || p.Replica(old.ID) != nil || p.OnNode(2).Joining {
		t.Fatalf("after the replacement: %+v", p)
	}
	if slices.Index(p.ReplicaNodes(), 2) != slices.Index(p0.ReplicaNodes(), 2) {
		t.Fatal("the newcomer did not take over the place in the order")
	}
	if !m.img().Retired(p.Group, old.ID) {
		t.Fatal("not retired")
	}
	// The same store again: nothing is lost.
	if res := m.must(registration(2, 22, 2)).(*RegisterResult); res.Lost != 0 || res.MetaReplica != m.img().Meta.OnNode(2).ID {
		t.Fatalf("%+v", res)
	}
}

func TestStaleRegistrationIsRefused(t *testing.T) {
	m := cluster(t, 3)
	m.must(registration(2, 22, 2))
	if r := m.do(registration(2, 2, 2)); !errors.Is(r.Err, ErrStaleRegistration) {
		t.Fatalf("a registration from before: %v", r.Err)
	}
	if r := m.do(registration(4, 22, 0)); !errors.Is(r.Err, ErrStaleRegistration) {
		t.Fatalf("another node's store: %v", r.Err)
	}
	c := registration(2, 22, 22)
	c.ClusterID = "other"
	if r := m.do(c); !errors.Is(r.Err, ErrClusterMismatch) {
		t.Fatalf("another cluster: %v", r.Err)
	}
}

func TestQuarantineMoveAndRepeats(t *testing.T) {
	m := cluster(t, 4)
	p := m.topic("a", 1, 3).Partitions[0]
	free := ident.NodeID(10)
	for n := ident.NodeID(1); n <= 4; n++ {
		if p.OnNode(n) == nil {
			free = n
		}
	}
	first := p.Replicas[0]
	taken := p.Replicas[1].Node
	for name, c := range map[string]*ReplaceReplica{
		"move to itself":        {Group: p.Group, Replica: first.ID, Move: true},
		"to a node that has it": {Group: p.Group, Replica: first.ID, Node: taken, Move: true},
		"unknown node":          {Group: p.Group, Replica: first.ID, Node: 77},
		"unknown replica":       {Group: p.Group, Replica: 9999},
		"meta moves":            {Group: ident.MetaGroup, Replica: 1, Node: 2, Move: true},
	} {
		if r := m.do(c); r.Err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	move := &ReplaceReplica{Group: p.Group, Replica: first.ID, Node: free, Move: true}
	res := m.must(move).(*ReplaceReplicaResult)
	if again := m.must(move).(*ReplaceReplicaResult); *again != *res {
		t.Fatalf("asked twice: %+v then %+v", res, again)
	}
	if p := m.img().Partition(p.Group); p.Replica(first.ID).Lost || p.MajorityLost() {
		t.Fatal("a move marks the old replica lost")
	}
	// The old replica is quarantined in mid-move: the move's target stays.
	quarantine := &ReplaceReplica{Group: p.Group, Replica: first.ID, Node: free}
	if r := m.do(quarantine); r.Err != nil {
		t.Fatal(r.Err)
	}
	// The newcomer itself is quarantined: a fresh id in the same place.
	target := m.img().Partition(p.Group).successor(first.ID).ID
	res = m.must(&ReplaceReplica{Group: p.Group, Replica: target}).(*ReplaceReplicaResult)
	q := m.img().Partition(p.Group)
	if res.Replica == target || res.Node != free || q.Replica(target) != nil || !slices.Contains(q.Removing, target) || q.Replica(res.Replica).Replaces != first.ID {
		t.Fatalf("%+v in %+v", res, q)
	}
	if m.img().Retired(p.Group, target) {
		t.Fatal("a replica that may still be in the group is not retired")
	}
}

func TestMajorityLost(t *testing.T) {
	m := cluster(t, 3)
	p := m.topic("a", 1, 3).Partitions[0]
	m.must(registration(1, 21, 1))
	if m.img().Partition(p.Group).MajorityLost() {
		t.Fatal("one of three is no majority")
	}
	m.must(registration(2, 22, 2))
	if q := m.img().Partition(p.Group); !q.MajorityLost() || len(q.OfflineNodes()) != 2 {
		t.Fatal("two of three are")
	}
}

// world is a cluster whose groups are led with images of any age, whose reports
// come late or never, and whose disks are wiped at any moment.
type world struct {
	m       *meta
	t       *rapid.T
	sims    []*sim
	images  []*Image // recent ones, oldest first
	reports []*ReportMembership
	nextDsk int
	given   map[ident.ReplicaID]ident.StoreID // every id ever seen and its store
}

func (w *world) note() {
	img := w.m.img()
	w.images = append(w.images, img)
	checkImage(w.t, img)
	for p := range img.Groups() {
		for _, r := range p.Replicas {
			if s, ok := w.given[r.ID]; ok && s != r.Store {
				w.t.Fatalf("replica %d moved from store %s to %s", r.ID, s, r.Store)
			}
			w.given[r.ID] = r.Store
			if img.Retired(p.Group, r.ID) {
				w.t.Fatalf("replica %d is named and retired", r.ID)
			}
		}
	}
	for _, s := range w.sims {
		for _, id := range append(slices.Clone(s.voters), s.learners...) {
			if slices.Contains(s.voters, id) && img.Retired(s.group, id) {
				w.t.Fatalf("group %d: voter %d is retired", s.group, id)
			}
		}
	}
}

func (w *world) leaderActs(s *sim) {
	img := w.images[rapid.IntRange(max(0, len(w.images)-4), len(w.images)-1).Draw(w.t, "image")]
	for _, st := range Plan(img, s.group, s.status(all)) {
		if st.Kind == StepReport {
			w.reports = append(w.reports, st.Report)
		} else {
			s.apply(w.t, st)
		}
	}
}

func (w *world) step() {
	switch rapid.IntRange(0, 9).Draw(w.t, "what") {
	case 0, 1:
		node := ident.NodeID(rapid.IntRange(1, 5).Draw(w.t, "node"))
		w.nextDsk++
		c := registration(int(node), w.nextDsk, 0)
		c.Previous = w.m.img().StoreOf(node)
		w.m.must(c)
	case 2:
		s := w.sims[rapid.IntRange(0, len(w.sims)-1).Draw(w.t, "group")]
		p := w.m.img().Partition(s.group)
		r := p.Replicas[rapid.IntRange(0, len(p.Replicas)-1).Draw(w.t, "replica")]
		w.m.do(&ReplaceReplica{
			Group: p.Group, Replica: r.ID, Move: rapid.Bool().Draw(w.t, "move"),
			Node: ident.NodeID(rapid.IntRange(0, 5).Draw(w.t, "to")),
		})
	case 3, 4:
		if len(w.reports) > 0 { // any of them, also twice
			w.m.do(w.reports[rapid.IntRange(0, len(w.reports)-1).Draw(w.t, "report")])
		}
	case 5:
		meta := w.m.img().Meta
		pick := func(what string) ident.ReplicaID {
			return meta.Replicas[rapid.IntRange(0, len(meta.Replicas)-1).Draw(w.t, what)].ID
		}
		w.m.do(&SwapMetaVoter{Generation: meta.Generation, Dead: pick("dead"), With: pick("with")})
	default:
		w.leaderActs(w.sims[rapid.IntRange(0, len(w.sims)-1).Draw(w.t, "group")])
	}
	w.note()
}

func TestReplacementModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := cluster(t, 5)
		topic := m.topic("a", 3, 3)
		w := &world{m: m, t: rt, nextDsk: 100, given: map[ident.ReplicaID]ident.StoreID{}}
		w.sims = append(w.sims, newSim(m.img().Meta))
		for _, p := range topic.Partitions {
			w.sims = append(w.sims, newSim(p))
		}
		w.note()
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			w.step()
		}
		// Left alone, every group becomes what is wanted.
		for _, s := range w.sims {
			s.settle(m, all)
			w.note()
			p := m.img().Partition(s.group)
			want := 3
			if s.group == ident.MetaGroup {
				want = MetaVoters(5)
			}
			var voters rids
			for _, r := range p.Replicas {
				if r.Joining || r.Lost {
					rt.Fatalf("%s: unfinished %+v", p.Name(), p)
				}
				if r.Voter() {
					voters = append(voters, r.ID)
				}
			}
			if len(voters) != want || len(p.Removing) != 0 || !slices.Equal(sorted(voters), sorted(s.voters)) {
				rt.Fatalf("%s: wanted %v, is %v, removing %v", p.Name(), voters, s.voters, p.Removing)
			}
		}
	})
}
