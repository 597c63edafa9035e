package metadata

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"chronik/internal/ident"
)

type (
	rids = []ident.ReplicaID
	prog = map[ident.ReplicaID]Progress
)

func describe(steps []Step) string {
	s := ""
	for _, st := range steps {
		switch st.Kind {
		case StepAddLearner:
			s += fmt.Sprintf("learner%v ", ids(st.Add))
		case StepChangeVoters:
			s += fmt.Sprintf("voters+%v-%v demote%v ", ids(st.Add), st.Remove, st.Demote)
		case StepRemoveLearner:
			s += fmt.Sprintf("drop%v ", st.Remove)
		case StepReport:
			s += "report "
		}
	}
	return s
}

// One group of three on nodes 1 to 3 as replicas 1, 2, 3; 4 and later are
// newcomers. Ids below 100 are given.
func planImage(removing rids, replicas ...Replica) *Image {
	img := emptyImage()
	w := newWork(img)
	w.img.NextReplica, w.img.NextGroup = 100, 10
	w.putTopic(&Topic{ID: topicID(1), Name: "t"})
	w.setPartition(&Partition{Group: 5, TopicID: topicID(1), Topic: "t", Generation: 7, Replicas: replicas, Removing: removing})
	return w.done()
}

func TestPlan(t *testing.T) {
	a, b, c := Replica{ID: 1, Node: 1}, Replica{ID: 2, Node: 2}, Replica{ID: 3, Node: 3}
	lost := func(r Replica) Replica { r.Lost = true; return r }
	joins := func(id, old int) Replica {
		return Replica{ID: ident.ReplicaID(id), Node: 3, Joining: true, Replaces: ident.ReplicaID(old)}
	}
	near := prog{1: {1000, true, false}, 2: {1000, true, false}, 4: {900, true, false}, 5: {900, true, false}, 6: {900, true, false}}
	far := prog{1: {1000, true, false}, 2: {1000, true, false}, 4: {10, true, false}, 5: {10, true, false}}
	away := prog{1: {1000, true, false}, 2: {1000, true, false}, 4: {1000, false, false}, 5: {1000, false, false}}
	halted := prog{1: {1000, true, false}, 2: {1000, true, false}, 4: {1000, true, true}}
	for _, tc := range []struct {
		name string
		img  *Image
		st   GroupStatus
		want string
	}{
		{"nothing to do", planImage(nil, a, b, c), GroupStatus{Voters: rids{1, 2, 3}, Progress: near}, ""},
		{"newcomer unknown", planImage(nil, a, b, lost(c), joins(4, 3)), GroupStatus{Voters: rids{1, 2, 3}, Progress: near}, "learner[4] "},
		{"newcomer far behind", planImage(nil, a, b, lost(c), joins(4, 3)), GroupStatus{Voters: rids{1, 2, 3}, Learners: rids{4}, Progress: far}, ""},
		{"newcomer away", planImage(nil, a, b, lost(c), joins(4, 3)), GroupStatus{Voters: rids{1, 2, 3}, Learners: rids{4}, Progress: away}, ""},
		{"newcomer halted", planImage(nil, a, b, lost(c), joins(4, 3)), GroupStatus{Voters: rids{1, 2, 3}, Learners: rids{4}, Progress: halted}, ""},
		{"newcomer caught up", planImage(nil, a, b, lost(c), joins(4, 3)), GroupStatus{Voters: rids{1, 2, 3}, Learners: rids{4}, Progress: near}, "voters+[4]-[3] demote[] "},
		{"a change is under way", planImage(nil, a, b, lost(c), joins(4, 3)), GroupStatus{Voters: rids{1, 2, 3}, Learners: rids{4}, Progress: near, Changing: true}, ""},
		{"image older than the group", planImage(nil, a, b, lost(c), joins(4, 3)), GroupStatus{Voters: rids{1, 2, 3}, Learners: rids{4}, Progress: near, ConfGeneration: 8}, ""},
		{"done, not reported", planImage(nil, a, b, lost(c), joins(4, 3)), GroupStatus{Voters: rids{1, 2, 4}, Progress: near}, "report "},
		{"newcomer lost as a learner", planImage(rids{4}, a, b, lost(c), joins(5, 3)), GroupStatus{Voters: rids{1, 2, 3}, Learners: rids{4}, Progress: near}, "learner[5] "},
		{"newcomer lost, next one far", planImage(rids{4}, a, b, lost(c), joins(5, 3)), GroupStatus{Voters: rids{1, 2, 3}, Learners: rids{4, 5}, Progress: far}, "drop[4] "},
		{"newcomer lost, next one near", planImage(rids{4}, a, b, lost(c), joins(5, 3)), GroupStatus{Voters: rids{1, 2, 3}, Learners: rids{4, 5}, Progress: near}, "voters+[5]-[3] demote[] "},
		{"newcomer lost as an unreported voter", planImage(rids{4}, a, b, lost(c), joins(5, 3)), GroupStatus{Voters: rids{1, 2, 4}, Progress: near}, "learner[5] "},
		{"its heir caught up", planImage(rids{4}, a, b, lost(c), joins(5, 3)), GroupStatus{Voters: rids{1, 2, 4}, Learners: rids{5}, Progress: near}, "voters+[5]-[4] demote[] "},
		{"its heir took over", planImage(rids{4}, a, b, lost(c), joins(5, 3)), GroupStatus{Voters: rids{1, 2, 5}, Progress: near}, "report "},
		{"removed, not reported", planImage(rids{4}, a, b, c), GroupStatus{Voters: rids{1, 2, 3}, Progress: near}, "report "},
		{"stray learner of a retired id", planImage(nil, a, b, c), GroupStatus{Voters: rids{1, 2, 3}, Learners: rids{50}, Progress: near}, "drop[50] "},
		{"learner younger than the image", planImage(nil, a, b, c), GroupStatus{Voters: rids{1, 2, 3}, Learners: rids{500}, Progress: near}, ""},
		{"majority lost", planImage(nil, a, lost(b), lost(c), joins(4, 2), joins(5, 3)), GroupStatus{Voters: rids{1, 2, 3}, Learners: rids{4}, Progress: prog{1: {1000, true, false}, 4: {1000, true, false}}}, ""},
		{"majority lost but back", planImage(nil, a, lost(b), lost(c), joins(4, 2), joins(5, 3)), GroupStatus{Voters: rids{1, 2, 3}, Learners: rids{4}, Progress: near}, "voters+[4]-[2] demote[] "},
		{"majority lost, first one done", planImage(nil, a, lost(b), lost(c), joins(4, 2), joins(5, 3)), GroupStatus{Voters: rids{1, 4, 3}, Progress: near}, "report learner[5] "},
		{"newcomer votes beside the old one", planImage(nil, a, b, c, joins(4, 3)), GroupStatus{Voters: rids{1, 2, 3, 4}, Progress: near}, "voters+[]-[3] demote[] "},
		{"a move", planImage(nil, a, b, c, joins(4, 1)), GroupStatus{Voters: rids{1, 2, 3}, Learners: rids{4}, Progress: near}, "voters+[4]-[1] demote[] "},
		{"group deleted", planImage(nil, a, b, c), GroupStatus{}, ""},
	} {
		tc.st.Commit = 1000
		if got := describe(Plan(tc.img, 5, tc.st)); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	for _, s := range Plan(planImage(nil, a, b, lost(c), joins(4, 3)), 5, GroupStatus{Voters: rids{1, 2, 3}}) {
		if s.Generation != 7 {
			t.Errorf("step without the generation: %+v", s)
		}
	}
}

// sim is one group as Raft would hold it, obedient to Plan.
type sim struct {
	group            ident.GroupID
	voters, learners rids
	generation       uint64
	// grows: the group was made anew with one voter and gets others one by one.
	grows bool
}

func newSim(p *Partition) *sim {
	s := &sim{group: p.Group}
	for _, r := range p.Replicas {
		if r.Voter() {
			s.voters = append(s.voters, r.ID)
		} else if r.Learner {
			s.learners = append(s.learners, r.ID)
		}
	}
	return s
}

func (s *sim) status(active func(ident.ReplicaID) bool) GroupStatus {
	st := GroupStatus{
		Voters: slices.Clone(s.voters), Learners: slices.Clone(s.learners),
		ConfGeneration: s.generation, Commit: 100, Progress: prog{},
	}
	for _, id := range append(slices.Clone(s.voters), s.learners...) {
		st.Progress[id] = Progress{Match: 100, Active: active(id)}
	}
	return st
}

// apply carries a step out as the group's state machine would.
func (s *sim) apply(t fataler, st Step) {
	if st.Generation < s.generation {
		return // refused as stale (correctness rule 22)
	}
	s.generation = st.Generation
	without := func(l rids, id ident.ReplicaID) rids {
		return slices.DeleteFunc(l, func(o ident.ReplicaID) bool { return o == id })
	}
	before := slices.Clone(s.voters)
	switch st.Kind {
	case StepAddLearner:
		s.learners = append(s.learners, ids(st.Add)...)
	case StepRemoveLearner:
		for _, id := range st.Remove {
			if slices.Contains(s.voters, id) {
				t.Fatalf("%d is a voter and removed as a learner", id)
			}
			s.learners = without(s.learners, id)
		}
	case StepChangeVoters:
		for _, r := range st.Add {
			if !slices.Contains(s.learners, r.ID) {
				t.Fatalf("%d becomes a voter without having been a learner", r.ID)
			}
			s.learners, s.voters = without(s.learners, r.ID), append(s.voters, r.ID)
		}
		for _, id := range append(slices.Clone(st.Remove), st.Demote...) {
			if !slices.Contains(s.voters, id) {
				t.Fatalf("%d is no voter and loses its seat", id)
			}
			s.voters = without(s.voters, id)
		}
		s.learners = append(s.learners, st.Demote...)
	case StepReport: // changes nothing here
	}
	kept := 0
	for _, id := range before {
		if slices.Contains(s.voters, id) {
			kept++
		}
	}
	if s.group != ident.MetaGroup && !s.grows && len(s.voters) != len(before) {
		t.Fatalf("voters %v became %v", before, s.voters)
	}
	if kept < len(before)/2+1 && len(before) > 1 && s.group != ident.MetaGroup {
		t.Fatalf("voters %v became %v: no majority of the old ones is left", before, s.voters)
	}
}

// settle lets the group's leader work with the current image until there is nothing left to do.
func (s *sim) settle(m *meta, active func(ident.ReplicaID) bool) {
	for range 50 {
		steps := Plan(m.img(), s.group, s.status(active))
		if len(steps) == 0 {
			return
		}
		for _, st := range steps {
			if st.Kind == StepReport {
				m.do(st.Report)
			} else {
				s.apply(m.t, st)
			}
		}
	}
	m.t.Fatalf("no end: %s", describe(Plan(m.img(), s.group, s.status(active))))
}

func all(ident.ReplicaID) bool { return true }

func metaRoles(img *Image) string {
	s := ""
	for _, r := range img.Meta.Replicas {
		role := "V"
		switch {
		case r.Joining:
			role = "J"
		case r.Learner:
			role = "L"
		case r.Lost:
			role = "X"
		}
		s += fmt.Sprintf("%d%s ", r.Node, role)
	}
	return s
}

func TestMetaGrowsAndShrinks(t *testing.T) {
	m := cluster(t, 1)
	s := newSim(m.img().Meta)
	for _, tc := range []struct {
		node   int
		before string
		after  string
	}{
		{2, "1V 2L ", "1V 2L "},
		{3, "1V 2J 3J ", "1V 2V 3V "},
		{4, "1V 2V 3V 4L ", "1V 2V 3V 4L "},
		{5, "1V 2V 3V 4J 5J ", "1V 2V 3V 4V 5V "},
		{6, "1V 2V 3V 4V 5V 6L ", "1V 2V 3V 4V 5V 6L "},
	} {
		res := m.must(registration(tc.node, tc.node, 0)).(*RegisterResult)
		if res.MetaReplica == 0 || len(res.Members) != tc.node {
			t.Fatalf("node %d: %+v", tc.node, res)
		}
		if got := metaRoles(m.img()); got != tc.before {
			t.Fatalf("node %d registered: %s", tc.node, got)
		}
		s.settle(m, all)
		if got := metaRoles(m.img()); got != tc.after {
			t.Fatalf("node %d settled: %s", tc.node, got)
		}
	}
	for _, tc := range []struct {
		node  ident.NodeID
		after string
	}{
		{2, "1V 6V 3V 4V 5V "}, // the learner takes the seat
		{5, "1V 6L 3V 4V "},    // four members: three voters
		{4, "1V 3V 6V "},
		{1, "3V 6L "},
	} {
		m.must(&RetireBroker{Node: tc.node})
		s.settle(m, all)
		if got := metaRoles(m.img()); got != tc.after || len(m.img().Meta.Removing) != 0 {
			t.Fatalf("node %d retired: %s removing %v", tc.node, got, m.img().Meta.Removing)
		}
		if len(s.voters) != MetaVoters(len(m.img().Meta.Replicas)) {
			t.Fatalf("node %d retired: voters %v", tc.node, s.voters)
		}
	}
	if r := m.do(&RetireBroker{Node: 3}); r.Err == nil {
		t.Fatal("the last voter was retired")
	}
}

func TestMetaSwapOfDeadVoter(t *testing.T) {
	m := cluster(t, 4)
	s := newSim(m.img().Meta)
	away := map[ident.NodeID]time.Duration{2: MetaVoterDeadAfter - 1}
	awayFor := func(n ident.NodeID) time.Duration { return away[n] }
	if c := PlanMetaSwap(m.img(), awayFor); c != nil {
		t.Fatalf("too early: %+v", c)
	}
	away[2] = MetaVoterDeadAfter
	swap := PlanMetaSwap(m.img(), awayFor)
	if swap == nil {
		t.Fatal("no swap")
	}
	m.must(swap)
	if r := m.do(swap); r.Err == nil {
		t.Fatal("the same swap twice")
	}
	if PlanMetaSwap(m.img(), awayFor) != nil {
		t.Fatal("a second swap of the same seat")
	}
	dead := m.img().Meta.OnNode(2).ID
	s.settle(m, func(id ident.ReplicaID) bool { return id != dead })
	if got := metaRoles(m.img()); got != "1V 2L 3V 4V " {
		t.Fatalf("after the swap: %s", got)
	}
	if !slices.Contains(s.learners, dead) {
		t.Fatal("the dead voter with its disk should stay as a learner")
	}
	// It comes back with an empty disk: the learner is replaced, nothing else moves.
	res := m.must(registration(2, 22, 2)).(*RegisterResult)
	if res.MetaReplica == dead {
		t.Fatal("an id was reused")
	}
	s.settle(m, all)
	if got := metaRoles(m.img()); got != "1V 3V 4V 2L " || slices.Contains(s.learners, dead) {
		t.Fatalf("after its return: %s learners %v", got, s.learners)
	}
}

func TestMetaSwapOfDeadNewcomer(t *testing.T) {
	m := cluster(t, 4)
	s := newSim(m.img().Meta)
	lost := m.img().Meta.OnNode(2).ID
	m.must(registration(2, 22, 2)) // comes back empty, then dies again
	away := func(n ident.NodeID) time.Duration {
		if n == 2 {
			return MetaVoterDeadAfter
		}
		return 0
	}
	m.must(PlanMetaSwap(m.img(), away))
	newcomer := m.img().Meta.OnNode(2)
	if !newcomer.Learner || m.img().Meta.successor(lost).Node != 4 {
		t.Fatal(metaRoles(m.img()))
	}
	s.settle(m, func(id ident.ReplicaID) bool { return id != lost && id != newcomer.ID })
	if got := metaRoles(m.img()); got != "1V 4V 3V 2L " {
		t.Fatal(got)
	}
}

func TestMetaVoterWipedWhileItsSeatIsSwapped(t *testing.T) {
	m := cluster(t, 4)
	s := newSim(m.img().Meta)
	dead := m.img().Meta.OnNode(2).ID
	m.must(&SwapMetaVoter{Generation: m.img().Meta.Generation, Dead: dead, With: m.img().Meta.OnNode(4).ID})
	m.must(registration(2, 22, 2))
	s.settle(m, func(id ident.ReplicaID) bool { return id != dead })
	if got := metaRoles(m.img()); got != "1V 4V 3V 2L " {
		t.Fatal(got)
	}
	if slices.Contains(s.voters, dead) || slices.Contains(s.learners, dead) {
		t.Fatal("the lost replica is still in the group")
	}
}
