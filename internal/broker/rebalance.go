package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"chronik/internal/admin"
	"chronik/internal/ident"
	"chronik/internal/metadata"
	"chronik/internal/raftgroup"
)

// movesAtOnce bounds how many replicas are on the move in the cluster. Each is a
// snapshot that some node sends and the target stores, besides its work.
const movesAtOnce = 16

// Rebalance implements admin.Source. Each move is one metadata command; nothing else
// remembers that a rebalance is under way. So whatever ends in between, each group is
// as before, or on its way, or done, and the next request goes on from there.
func (v view) Rebalance(ctx context.Context, dryRun bool) (admin.Rebalance, error) {
	s := v.b.session()
	if s == nil {
		return admin.Rebalance{}, fmt.Errorf("%w: %w", errNoSession, admin.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	select {
	case s.rebalancing <- struct{}{}: // of two that ask here, the second sees what the first began
		defer func() { <-s.rebalancing }()
	case <-ctx.Done():
		return admin.Rebalance{}, ctx.Err()
	}
	if err := s.readMeta(ctx, submitTimeout); err != nil {
		return admin.Rebalance{}, fmt.Errorf("metadata not read: %w: %w", err, admin.ErrUnavailable)
	}
	alive := cluster{s}.Alive
	out := admin.Rebalance{Begun: []admin.Move{}, Unreachable: []int32{}}
	if !dryRun {
		img := s.meta.Image()
		for _, m := range metadata.MayBegin(img, metadata.PlanMoves(img, alive), alive, movesAtOnce) {
			begun, err := s.beginMove(ctx, m)
			if err != nil {
				return out, err
			}
			if begun {
				out.Begun = append(out.Begun, moveView(m))
			}
		}
	}
	img := s.meta.Image()
	out.UnderWay, out.Planned = moveViews(metadata.MovesUnderWay(img)), moveViews(metadata.PlanMoves(img, alive))
	for _, b := range img.Brokers() {
		if !alive(b.Node) {
			out.Unreachable = append(out.Unreachable, int32(b.Node))
		}
	}
	return out, nil
}

// beginMove has the metadata name the replica's successor on the other node. It
// says false if the group was changed or deleted meanwhile.
func (s *session) beginMove(ctx context.Context, m metadata.Move) (bool, error) {
	_, err := s.submit(ctx, &metadata.ReplaceReplica{
		Group: m.Partition.Group, Replica: m.Replica, Node: m.To, Move: true, Reason: "rebalance",
	})
	refused := (*metadata.Error)(nil)
	switch {
	case errors.As(err, &refused):
		s.log.Info("move not begun", "topic", m.Partition.Topic, "partition", m.Partition.Partition, "replica", uint64(m.Replica), "err", err)
		return false, nil
	case err != nil:
		return false, err
	}
	s.log.Info("began to move a replica", "topic", m.Partition.Topic, "partition", m.Partition.Partition,
		"replica", uint64(m.Replica), "from", int32(m.From), "to", int32(m.To))
	return true, nil
}

// readMeta waits until this node's Image is as new as the cluster's: until ctx's deadline, or for limit if it has none.
func (s *session) readMeta(ctx context.Context, limit time.Duration) error {
	r := s.host.Replica(ident.MetaGroup)
	if r == nil {
		return errors.New("no metadata replica here")
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(limit)
	}
	done := make(chan error, 1)
	r.ReadIndex(deadline, func(_ ident.Index, err error) { done <- err })
	return <-done // bounded by the deadline
}

func moveView(m metadata.Move) admin.Move {
	return admin.Move{
		Group: m.Partition.Name(), GroupID: uint64(m.Partition.Group), ReplicaID: uint64(m.Replica), From: int32(m.From), To: int32(m.To),
	}
}

func moveViews(moves []metadata.Move) []admin.Move {
	out := make([]admin.Move, 0, len(moves))
	for _, m := range moves {
		out = append(out, moveView(m))
	}
	return out
}

// handOver has another replica lead before a step takes out this one, which leads: the
// group would wait an election timeout for a new leader. The new one takes the step.
// It says false if there is nothing to hand over, or no voter near enough to the end.
func (s *session) handOver(r *raftgroup.Replica, step metadata.Step, st metadata.GroupStatus) bool {
	if r.Group() == ident.MetaGroup {
		return false
	}
	heir := heirOf(r.Spec().Replica, step, st)
	if heir == 0 {
		return false
	}
	r.TransferLeadership(heir)
	s.log.Info("handed over leadership of a replica that moves", "group", uint64(r.Group()), "replica", uint64(r.Spec().Replica), "to", uint64(heir))
	return true
}

// heirOf is the voter to lead instead of leader, if step takes that out, and 0 if there is none.
func heirOf(leader ident.ReplicaID, step metadata.Step, st metadata.GroupStatus) ident.ReplicaID {
	if step.Kind != metadata.StepChangeVoters || !slices.Contains(step.Remove, leader) {
		return 0
	}
	heir := ident.ReplicaID(0)
	for _, id := range st.Voters {
		p := st.Progress[id]
		near := p.Active && !p.Halted && p.Match+metadata.CatchUpEntries >= st.Commit
		if near && !slices.Contains(step.Remove, id) && (heir == 0 || p.Match > st.Progress[heir].Match) {
			heir = id
		}
	}
	return heir
}
