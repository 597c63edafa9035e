package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chronik/internal/admin"
	"chronik/internal/ident"
	"chronik/internal/raftgroup"
)

// What a voter that does not take part is.
const (
	voterUnreachable = "unreachable"
	voterReplaced    = "replaced"
)

// presence tells where a voter's store is now: zero if its node is not connected.
type presence func(ident.NodeID) ident.StoreID

// shortfallOf says what a group lacks for a majority, nil if it has one. A voter counts
// while its node is connected with the voter's store: another store in its place is
// another disk, and nothing brings that voter back.
func shortfallOf(name string, voters []raftgroup.Member, at presence) *admin.Shortfall {
	f := &admin.Shortfall{Group: name, Voters: len(voters), Missing: []admin.MissingVoter{}}
	gone := 0
	for _, v := range voters {
		now := at(v.Node)
		if now == v.Store {
			f.Present++
			continue
		}
		m := admin.MissingVoter{ReplicaID: uint64(v.Replica), Node: int32(v.Node), Store: v.Store.String(), State: voterUnreachable}
		if !now.IsZero() {
			m.State, m.CurrentStore = voterReplaced, now.String()
			gone++
		}
		f.Missing = append(f.Missing, m)
	}
	majority := f.Voters/2 + 1
	if f.Voters == 0 || f.Present >= majority {
		return nil
	}
	f.Lost = f.Voters-gone < majority
	return f
}

// shortfalls lists the groups without a majority as this node sees them: its own by
// what their logs say, the others by the metadata as far as it is known here.
func (s *session) shortfalls() []admin.Shortfall { return s.shortfallsOf(true) }

// shortfallsOf is shortfalls, of this node's own groups alone unless others is set.
func (s *session) shortfallsOf(others bool) []admin.Shortfall {
	stores := map[ident.NodeID]ident.StoreID{s.node: s.store.ID()}
	for _, p := range s.tr.Peers() {
		if p.Up {
			stores[p.Node] = p.Info.Store
		}
	}
	at := func(n ident.NodeID) ident.StoreID { return stores[n] }
	out := []admin.Shortfall{}
	here := map[ident.GroupID]bool{}
	for _, r := range s.host.Replicas() {
		st := r.Status()
		if st.State.Ended() || here[st.Group] {
			continue
		}
		voters := slices.DeleteFunc(slices.Clone(st.Members), func(m raftgroup.Member) bool { return m.Learner })
		if len(voters) == 0 {
			continue // it joins, and knows nobody yet
		}
		here[st.Group] = true
		if f := shortfallOf(st.Name, voters, at); f != nil {
			out = append(out, *f)
		}
	}
	for p := range s.meta.Image().Groups() {
		if here[p.Group] || !others {
			continue
		}
		var voters []raftgroup.Member
		for _, r := range p.Replicas {
			if r.Voter() {
				voters = append(voters, raftgroup.Member{Replica: r.ID, Node: r.Node, Store: r.Store})
			}
		}
		if f := shortfallOf(p.Name(), voters, at); f != nil {
			out = append(out, *f)
		}
	}
	return out
}

// shortfallText says it in one line: which groups, and which nodes they miss.
func shortfallText(fs []admin.Shortfall, names int) string {
	var groups []string
	why := map[int32]string{}
	var nodes []int32
	for i := range fs {
		groups = append(groups, fs[i].Group)
		for _, m := range fs[i].Missing {
			if why[m.Node] == "" {
				nodes = append(nodes, m.Node)
			}
			if m.State == voterReplaced {
				why[m.Node] = fmt.Sprintf("node %d is back with another disk (store %.8s, it was %.8s)", m.Node, m.CurrentStore, m.Store)
			} else if why[m.Node] == "" {
				why[m.Node] = fmt.Sprintf("node %d is out of reach", m.Node)
			}
		}
	}
	more := ""
	if n := len(groups) - names; n > 0 {
		groups, more = groups[:names], fmt.Sprintf(" and %d more", n)
	}
	slices.Sort(nodes)
	reasons := make([]string, len(nodes))
	for i, n := range nodes {
		reasons[i] = why[n]
	}
	return fmt.Sprintf("without a majority: %s%s: %s", strings.Join(groups, ", "), more, strings.Join(reasons, ", "))
}

// shortfallHint says what to do about it.
func shortfallHint(fs []admin.Shortfall) string {
	if slices.ContainsFunc(fs, func(f admin.Shortfall) bool { return f.Lost }) {
		return admin.LostHint
	}
	return admin.AwayHint
}

// quorumError is nil, or says which of this node's groups have no majority and why.
func (s *session) quorumError() error {
	fs := s.shortfallsOf(false)
	if len(fs) == 0 {
		return nil
	}
	return errors.New(shortfallText(fs, 10) + "; " + shortfallHint(fs))
}

const (
	quorumEvery = time.Second
	// quorumNames bounds the groups that one log line names.
	quorumNames = 100
)

// watchQuorum logs, once for each time that it changes, which groups have no
// majority. What is over by the next look is not told: nodes come and go at a start.
func (s *session) watchQuorum(ctx context.Context) {
	t := time.NewTicker(quorumEvery)
	defer t.Stop()
	var w quorumWatch
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		fs := s.shortfalls()
		text := ""
		if len(fs) > 0 {
			text = shortfallText(fs, quorumNames)
		}
		switch w.look(text) {
		case quorumNothing:
		case quorumShort:
			s.log.Error("groups cannot go on "+text, "groups", len(fs), "hint", shortfallHint(fs))
		case quorumBack:
			s.log.Info("every group has a majority again")
		}
	}
}

// quorumWatch decides what is worth a line.
type quorumWatch struct{ said, seen string }

type quorumNews uint8

const (
	quorumNothing quorumNews = iota
	quorumShort
	quorumBack
)

func (w *quorumWatch) look(text string) quorumNews {
	seen := w.seen
	w.seen = text
	switch {
	case text != seen || text == w.said:
		return quorumNothing
	case text == "":
		w.said = ""
		return quorumBack
	}
	w.said = text
	return quorumShort
}
