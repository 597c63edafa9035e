package raftgroup

import (
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"

	"chronik/internal/ident"
	"chronik/internal/snapshot"
)

// String returns the word of the admin API.
func (r Role) String() string {
	switch r {
	case RoleCandidate:
		return "candidate"
	case RoleLeader:
		return "leader"
	case RoleLearner:
		return "learner"
	case RoleFollower:
	}
	return "follower"
}

// String returns the word of the admin API.
func (s State) String() string {
	switch s {
	case StateHeld:
		return "held"
	case StateReceiving:
		return "receiving-snapshot"
	case StateHalted:
		return "halted"
	case StateQuarantined:
		return "quarantined"
	case StateStopped:
		return "stopped"
	case StateRunning:
	}
	return "running"
}

// Ended tells whether the replica's state machine is closed: what it knows of its group may be old.
func (s State) Ended() bool {
	return s == StateHalted || s == StateQuarantined || s == StateStopped
}

// MarshalText implements encoding.TextMarshaler.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// indexesMoved publishes what a pass under load changes, and asks for a new Status
// if anything else did: one a pass would be a large part of what small entries cost.
func (r *Replica) indexesMoved() {
	rs := &r.rs
	rs.moved = false
	s := r.status.Load()
	if s.Term != rs.hs.Term || s.Leader != ident.ReplicaID(rs.lead) || s.LeaderNode == 0 || s.State != rs.state ||
		s.Serving != r.serving.Load() || !s.follows(rs.role) {
		rs.dirty = true
		return
	}
	if r.last.Load() != uint64(rs.last) || r.commit.Load() != uint64(rs.hs.Commit) {
		rs.stale = rs.role == raft.StateLeader // a heartbeat changes nothing
	}
	r.publishIndexes()
}

// follows tells whether s is of this role, and of followers that all keep up: of
// others whoever waits for them wants to hear at once.
func (s *Status) follows(role raft.StateType) bool {
	switch role { //nolint:exhaustive // candidates come and go
	case raft.StateFollower:
		return s.Role == RoleFollower || s.Role == RoleLearner
	case raft.StateLeader:
		for i := range s.Followers {
			if f := &s.Followers[i]; f.Learner || !f.Alive || f.State != stateReplicate {
				return false
			}
		}
		return s.Role == RoleLeader
	}
	return false
}

var stateReplicate = tracker.StateReplicate.String()

func (r *Replica) publishIndexes() {
	rs := &r.rs
	r.last.Store(uint64(rs.last))
	r.commit.Store(uint64(rs.hs.Commit))
	if rs.st != nil {
		r.first.Store(uint64(rs.st.first))
	}
}

// refresh publishes a new Status. Runs on the raft worker, or before it knows
// the replica.
func (r *Replica) refresh() {
	rs := &r.rs
	rs.dirty, rs.moved, rs.stale = false, false, false
	r.publishIndexes()
	s := &Status{
		Group: r.spec.Group, Replica: r.spec.Replica, Name: r.spec.Name,
		Topic: r.spec.Topic, Partition: r.spec.Partition, Kind: r.spec.Kind,
		State: rs.state, Term: rs.hs.Term,
		Leader: ident.ReplicaID(rs.lead), Members: rs.mem.members, Serving: r.serving.Load(),
	}
	s.ConfGeneration, s.Resting = rs.mem.generation, rs.quiet.on
	s.Changing = len(rs.mem.conf.GetVotersOutgoing()) > 0 || rs.role == raft.StateLeader && !s.Serving
	if s.State == StateRunning && !r.released.Load() {
		s.State = StateHeld
	}
	if rs.reason != nil {
		s.Reason = rs.reason.Error()
	}
	if rs.lead != raft.None {
		s.LeaderNode = r.nodeOf(rs.lead)
	}
	switch {
	case rs.role == raft.StateLeader:
		s.Role = RoleLeader
		s.Followers = r.followers()
	case rs.role != raft.StateFollower:
		s.Role = RoleCandidate
	case !r.votes() && !slices.Contains(rs.mem.conf.GetVotersOutgoing(), uint64(r.spec.Replica)):
		s.Role = RoleLearner
	}
	if rs.lead != raft.None {
		rs.camp.led = true
	}
	r.status.Store(s)
}

// followers is the leader's view of the others, by replica id.
func (r *Replica) followers() []Follower {
	rs := &r.rs
	size := r.bytesBetween()
	var out []Follower
	rs.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if id == uint64(r.spec.Replica) {
			return
		}
		f := Follower{
			Replica: ident.ReplicaID(id), Node: r.nodeOf(id), Learner: pr.IsLearner,
			Match: ident.Index(pr.Match), State: pr.State.String(),
		}
		if rs.last > f.Match {
			f.Lag = uint64(rs.last - f.Match)
			f.LagBytes = size(f.Match, rs.last)
		}
		f.Alive = f.Node != 0 && r.h.reachable(f.Node)
		f.Halted = r.isHalted(f.Replica)
		out = append(out, f)
	})
	return out
}

// noteProgress tells the waiters how many voters hold what (rule 27), and
// notes whether every follower keeps up and was sent everything.
func (r *Replica) noteProgress() {
	rs := &r.rs
	if rs.role != raft.StateLeader {
		r.allSent.Store(false)
		return
	}
	var buf [8]ident.Index
	match := buf[:0]
	sent := true
	rs.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if id != uint64(r.spec.Replica) {
			sent = sent && !pr.IsLearner && pr.State == tracker.StateReplicate && pr.Next == uint64(rs.last)+1
		}
		if slices.Contains(rs.mem.conf.GetVoters(), id) {
			match = append(match, ident.Index(pr.Match))
		}
	})
	r.allSent.Store(sent)
	if !r.waiters.wanting() {
		return
	}
	slices.SortFunc(match, func(a, b ident.Index) int {
		switch {
		case a > b:
			return -1
		case a < b:
			return 1
		}
		return 0
	})
	r.waiters.progress(match)
}

// jitter spreads the periodic checkpoints of replicas born together.
func (h *Host) jitter(iv time.Duration, id ident.ReplicaID) time.Duration {
	return snapshot.Jitter(iv, uint64(id))
}
