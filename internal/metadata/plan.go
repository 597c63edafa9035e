package metadata

import (
	"slices"

	"chronik/internal/ident"
)

// CatchUpEntries is how far behind the commit index a learner may be when it is
// made a voter.
const CatchUpEntries = 256

// GroupStatus is a group's Raft membership as its leader has applied it.
type GroupStatus struct {
	Voters   []ident.ReplicaID
	Learners []ident.ReplicaID
	// Changing: a membership change is proposed and not applied, or the
	// configuration is joint, or the leader has not yet applied its own term's entry.
	Changing bool
	// ConfGeneration is the highest generation an applied change carried.
	ConfGeneration uint64
	Commit         ident.Index
	// Progress has the leader's view of the others; missing = not heard of.
	Progress map[ident.ReplicaID]Progress
}

// Progress is a leader's view of another replica.
type Progress struct {
	Match  ident.Index
	Active bool // its node is connected and it answers
	Halted bool // it has no state: it neither leads nor is given a vote
}

// StepKind is what a group's leader has to do.
type StepKind uint8

// Kinds of steps.
const (
	// StepAddLearner: propose one change that adds Add as learners.
	StepAddLearner StepKind = iota
	// StepChangeVoters: propose one joint change with automatic leave that makes
	// voters of Add, learners of Demote and takes out Remove.
	StepChangeVoters
	// StepRemoveLearner: propose one change that takes out Remove.
	StepRemoveLearner
	// StepReport: submit Report to the metadata group.
	StepReport
)

// Step is one thing to do. A change of membership carries Generation in its context.
type Step struct {
	Kind       StepKind
	Generation uint64
	Add        []Replica
	Demote     []ident.ReplicaID
	Remove     []ident.ReplicaID
	Report     *ReportMembership
}

// Plan tells the leader of a group what to do next to bring the group's
// membership to what img wants: at most a report and one membership change, in that
// order. It returns nothing when there is nothing to do, when it has to wait, and
// when img is older than what the group has already done.
func Plan(img *Image, group ident.GroupID, st GroupStatus) []Step {
	p := img.Partition(group)
	if p == nil || st.Changing || len(st.Voters) == 0 || st.ConfGeneration > p.Generation {
		return nil
	}
	pl := &planner{img: img, p: p, st: st}
	var steps []Step
	if pl.mustReport() {
		steps = append(steps, Step{Kind: StepReport, Generation: p.Generation, Report: &ReportMembership{
			Group: group, Generation: p.Generation,
			Voters: sorted(st.Voters), Learners: sorted(st.Learners),
		}})
	}
	if pl.majorityLost() {
		return steps
	}
	for _, next := range []func() (Step, bool){pl.promote, pl.addLearner, pl.removeLearner, pl.shrink} {
		if s, ok := next(); ok {
			s.Generation = p.Generation
			return append(steps, s)
		}
	}
	return steps
}

func sorted(ids []ident.ReplicaID) []ident.ReplicaID {
	ids = slices.Clone(ids)
	slices.Sort(ids)
	return ids
}

type planner struct {
	img *Image
	p   *Partition
	st  GroupStatus
}

func (pl *planner) voter(id ident.ReplicaID) bool   { return slices.Contains(pl.st.Voters, id) }
func (pl *planner) learner(id ident.ReplicaID) bool { return slices.Contains(pl.st.Learners, id) }

// unwanted tells whether id is to leave the group. An id that img does not know
// yet is not.
func (pl *planner) unwanted(id ident.ReplicaID) bool {
	return slices.Contains(pl.p.Removing, id) || pl.img.Retired(pl.p.Group, id)
}

// mustReport tells whether the configuration shows a replacement or removal done
// that the metadata still waits for.
func (pl *planner) mustReport() bool {
	for _, r := range pl.p.Replicas {
		if r.joined(pl.st.Voters) {
			return true
		}
	}
	for _, id := range pl.p.Removing {
		if !pl.voter(id) && !pl.learner(id) {
			return true
		}
	}
	return false
}

// majorityLost tells whether fewer voters than a quorum are left: nothing is
// proposed then (correctness rule 21). A replica marked lost that answers all the
// same, because its disk came back, is not.
func (pl *planner) majorityLost() bool {
	sound := 0
	for _, id := range pl.st.Voters {
		if r := pl.p.Replica(id); r == nil || !r.Lost || pl.st.Progress[id].Active {
			sound++
		}
	}
	return sound < len(pl.st.Voters)/2+1
}

// caughtUp tells whether a learner is near enough to the end to vote.
func (pl *planner) caughtUp(id ident.ReplicaID) bool {
	pr := pl.st.Progress[id]
	return pr.Active && !pr.Halted && pr.Match+CatchUpEntries >= pl.st.Commit && pr.Match > 0
}

// promote makes voters of learners that have caught up: one replacement at a
// time, together with what it replaces, or all that only add, so that the number of
// voters does not stop at an even one.
func (pl *planner) promote() (Step, bool) {
	var adding []Replica
	allReady := true
	for _, r := range pl.p.Replicas {
		if !r.Joining || r.joined(pl.st.Voters) {
			continue
		}
		if pl.voter(r.ID) { // made a voter under an earlier order that replaced nobody
			s := pl.replacement(r)
			s.Add = nil
			return s, true
		}
		ready := pl.learner(r.ID) && pl.caughtUp(r.ID)
		if r.Replaces == 0 {
			adding = append(adding, r)
			allReady = allReady && ready
			continue
		}
		if ready {
			return pl.replacement(r), true
		}
	}
	if len(adding) == 0 || !allReady {
		return Step{}, false
	}
	return Step{Kind: StepChangeVoters, Add: adding}, true
}

// replacement is the joint change that gives r the place it joins for. If the
// replica that r replaces has left already, an earlier newcomer took its place and
// was lost before that was reported: then that one goes.
func (pl *planner) replacement(r Replica) Step {
	s := Step{Kind: StepChangeVoters, Add: []Replica{r}}
	switch {
	case pl.voter(r.Replaces):
		old := pl.p.Replica(r.Replaces)
		if pl.p.Group == ident.MetaGroup && old != nil && !old.Lost {
			s.Demote = []ident.ReplicaID{r.Replaces}
		} else {
			s.Remove = []ident.ReplicaID{r.Replaces}
		}
	default:
		for _, id := range sorted(pl.st.Voters) {
			if pl.unwanted(id) {
				s.Remove = []ident.ReplicaID{id}
				break
			}
		}
	}
	return s
}

// addLearner brings in a replica that is wanted and not there yet.
func (pl *planner) addLearner() (Step, bool) {
	for _, r := range pl.p.Replicas {
		if (r.Joining || r.Learner) && !r.Lost && !pl.voter(r.ID) && !pl.learner(r.ID) {
			return Step{Kind: StepAddLearner, Add: []Replica{r}}, true
		}
	}
	return Step{}, false
}

// removeLearner takes out learners that are no longer wanted. A retired id never
// comes back, so this is right at any time.
func (pl *planner) removeLearner() (Step, bool) {
	for _, id := range sorted(pl.st.Learners) {
		if pl.unwanted(id) {
			return Step{Kind: StepRemoveLearner, Remove: []ident.ReplicaID{id}}, true
		}
	}
	return Step{}, false
}

// shrink takes seats away: unwanted voters that no newcomer stands in for leave,
// and voters wanted as learners become that, in one change.
func (pl *planner) shrink() (Step, bool) {
	heirs := 0 // newcomers whose place an unwanted voter holds
	for _, r := range pl.p.Replicas {
		if r.Joining && r.Replaces != 0 && !pl.voter(r.ID) && !pl.voter(r.Replaces) {
			heirs++
		}
	}
	s := Step{Kind: StepChangeVoters}
	for _, id := range sorted(pl.st.Voters) {
		r := pl.p.Replica(id)
		switch {
		case r != nil && r.Learner:
			s.Demote = append(s.Demote, id)
		case r == nil && slices.Contains(pl.p.Removing, id) && heirs > 0:
			heirs--
		case r == nil && slices.Contains(pl.p.Removing, id):
			s.Remove = append(s.Remove, id)
		}
	}
	gone := len(s.Demote) + len(s.Remove)
	return s, gone > 0 && gone < len(pl.st.Voters)
}
