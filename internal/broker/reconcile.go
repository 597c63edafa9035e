package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"chronik/internal/ident"
	"chronik/internal/metadata"
	"chronik/internal/raftgroup"
)

// reconcileEvery bounds how long a change that no event announces goes unseen.
const reconcileEvery = 500 * time.Millisecond

// kick wakes the reconciler.
func (s *session) kick() {
	select {
	case s.kicked <- struct{}{}:
	default: // it is about to run anyway
	}
}

// reconcile makes this node's replicas those the Image names, and moves the groups
// that this node leads to the membership the Image wants. It is the only one
// that creates and removes replicas.
func (s *session) reconcile(ctx context.Context) {
	tick := time.NewTicker(reconcileEvery)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.kicked:
		case <-tick.C:
		}
		s.foundCluster(ctx)
		img := s.meta.Image()
		if img.ClusterID == "" || !s.caughtUp(ctx) {
			continue
		}
		img = s.meta.Image()
		s.learnAddresses(img)
		text := ""
		if err := s.reconcileLocal(ctx, img); err != nil && ctx.Err() == nil {
			text = err.Error()
		}
		if text != said && text != "" { // a full disk says the same at each attempt
			s.log.Warn("reconciled in part", "err", text)
		}
		said = text
		s.reconcileLed(ctx, img)
	}
}

// foundCluster proposes the first command of a new metadata group. Every leader
// of it tries until one has been applied; its content is genesis', so all say the same.
func (s *session) foundCluster(ctx context.Context) {
	if s.meta.Image().ClusterID != "" || s.leaders.Get(ident.MetaGroup).Node != s.node {
		return
	}
	g := s.store.Genesis()
	if g == nil {
		return
	}
	cmd := &metadata.Genesis{ClusterID: g.ClusterID, Coordinators: int32(s.cfg.Group.Partitions)}
	for _, m := range g.Members {
		cmd.Members = append(cmd.Members, metadata.GenesisMember{Node: m.Node, Store: m.Store, Replica: m.MetaReplica, Learner: m.Learner})
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := s.submit(ctx, cmd); err != nil && ctx.Err() == nil {
		s.log.Warn("genesis not applied yet", "err", err)
	}
}

// caughtUp tells whether this node's Image has once been as new as the cluster's
// since the start: an older one may name replicas that were retired here.
func (s *session) caughtUp(ctx context.Context) bool {
	if s.current {
		return true
	}
	r := s.host.Replica(ident.MetaGroup)
	if r == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	done := make(chan error, 1)
	deadline, _ := ctx.Deadline()
	r.ReadIndex(deadline, func(_ ident.Index, err error) { done <- err })
	s.current = <-done == nil // bounded by the deadline
	if s.current {
		close(s.metaCurrent)
	}
	return s.current
}

func (s *session) learnAddresses(img *metadata.Image) {
	for _, b := range img.Brokers() {
		if b.Node != s.node && b.RaftAddr != "" && s.dialed[b.Node] != b.RaftAddr {
			s.dialed[b.Node] = b.RaftAddr
			s.tr.SetPeer(b.Node, b.RaftAddr)
		}
	}
}

func (s *session) reconcileLocal(ctx context.Context, img *metadata.Image) error {
	plan := metadata.CreateLocal(img, s.node, s.store.ID(), s.locals(), s.memory.createdUpTo())
	var errs []error
	if len(plan.Create) > 0 {
		errs = append(errs, s.create(plan.Create))
	}
	for _, l := range plan.Retired {
		errs = append(errs, s.retire(l))
	}
	for _, w := range plan.Lost {
		s.log.Error("replica is lost", "topic", w.Partition.Topic, "partition", w.Partition.Partition, "replica", uint64(w.Replica.ID))
		s.askReplacement(ctx, w.Partition.Group, w.Replica.ID, "absent from its node's log")
	}
	return errors.Join(errs...)
}

// locals lists the replicas that the raftlog knows.
func (s *session) locals() func(yield func(metadata.Local) bool) {
	return func(yield func(metadata.Local) bool) {
		for _, c := range s.rlog.Creations() {
			// The metadata's own replica is opened, again if need be, by who creates it.
			unopened := c.Group != ident.MetaGroup && s.host.ByID(c.Replica) == nil
			if !yield(metadata.Local{Replica: c.Replica, Group: c.Group, CreatedAt: c.CreatedAt, Unopened: unopened}) {
				return
			}
		}
	}
}

// create makes replicas that the Image names and that never were, all with one log record batch, and opens
// those that were made and could not be opened. For want of disk space some may not open: they
// are tried again at the next look, the others serve.
func (s *session) create(wanted []metadata.Wanted) error {
	specs := make([]raftgroup.Spec, 0, len(wanted))
	for _, w := range wanted {
		specs = append(specs, w.Spec())
	}
	errs := []error{s.host.Create(specs)}
	for _, w := range wanted {
		if s.rlog.Replica(w.Replica.ID) != nil { // the log has the whole batch, or nothing of it
			s.memory.created(w.Replica.CreatedAt)
		}
		if r := s.host.ByID(w.Replica.ID); r != nil {
			errs = append(errs, s.registry.adopt(r, s.log))
			s.release(r.Group())
		}
	}
	s.changed.notify()
	return errors.Join(errs...)
}

// retire deletes a replica that an applied Image does not name any more. What was
// ever created here is made durable first, lest its absence be taken for a loss.
func (s *session) retire(l metadata.Local) error {
	if err := s.memory.persist(); err != nil {
		return err
	}
	s.registry.forget(l.Group, l.Replica)
	if err := s.host.Remove(l.Replica); err != nil {
		return fmt.Errorf("remove replica %d: %w", l.Replica, err)
	}
	s.log.Info("removed retired replica", "group", uint64(l.Group), "replica", uint64(l.Replica))
	if s.meta.Image().Partition(l.Group) == nil {
		s.leaders.Forget(l.Group)
	}
	s.changed.notify()
	return nil
}

// askReplacement has the metadata name a fresh replica in the place of one that
// is lost or quarantined. It is asked again until the Image shows it.
func (s *session) askReplacement(ctx context.Context, group ident.GroupID, replica ident.ReplicaID, why string) {
	s.mu.Lock()
	busy := s.asking[replica]
	s.asking[replica] = true
	s.mu.Unlock()
	if busy {
		return
	}
	s.tasks.Go(func() {
		defer func() {
			s.mu.Lock()
			delete(s.asking, replica)
			s.mu.Unlock()
		}()
		if group != ident.MetaGroup {
			select { // an Image as old as this node's checkpoint may not name the replica yet
			case <-ctx.Done():
			case <-s.metaCurrent:
			}
		}
		for ctx.Err() == nil && !s.replacing(group, replica) {
			err := s.replace(ctx, &metadata.ReplaceReplica{Group: group, Replica: replica, Reason: why})
			if err == nil {
				s.log.Info("asked for a replacement", "group", uint64(group), "replica", uint64(replica), "err", why)
				s.kick()
				return
			}
			s.log.Warn("replacement not granted yet", "group", uint64(group), "replica", uint64(replica), "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	})
}

// replace has cmd applied. Without a metadata replica no Image comes here, so the
// successor of that one is made by what the answer says.
func (s *session) replace(ctx context.Context, cmd *metadata.ReplaceReplica) error {
	if cmd.Group != ident.MetaGroup {
		_, err := s.submit(ctx, cmd)
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	next, err := s.metaSuccessor(ctx, cmd)
	if errors.Is(err, metadata.ErrUnknownReplica) {
		next, err = s.registeredMeta(ctx)
	}
	if err != nil {
		return err
	}
	// Without CreatedAt: it says nothing about what else was created here.
	if err := s.host.Create([]raftgroup.Spec{metaSpec(next)}); err != nil {
		return err
	}
	s.release(ident.MetaGroup)
	return nil
}

// metaSuccessor asks for the metadata replica that takes the place of the one cmd names.
func (s *session) metaSuccessor(ctx context.Context, cmd *metadata.ReplaceReplica) (ident.ReplicaID, error) {
	reply, err := s.submitUntilProposed(ctx, cmd)
	if err == nil {
		err = reply.Err
	}
	if err != nil {
		return 0, err
	}
	res, ok := reply.Result.(*metadata.ReplaceReplicaResult)
	if !ok || res.Store != s.store.ID() {
		return 0, fmt.Errorf("the metadata replica's successor is not for this store: %+v", reply.Result)
	}
	return res.Replica, nil
}

// registeredMeta asks which metadata replica this store has, by registering it as it is. It is for a
// successor that was named in an answer that did not come: of a learner that it replaced the metadata
// knows nothing any more.
func (s *session) registeredMeta(ctx context.Context) (ident.ReplicaID, error) {
	cmd, err := s.registration()
	if err != nil {
		return 0, err
	}
	cmd.ClusterID, cmd.Previous = s.store.ClusterID(), cmd.Store
	reply, err := s.submitUntilProposed(ctx, cmd)
	if err == nil {
		err = reply.Err
	}
	if err != nil {
		return 0, err
	}
	res, ok := reply.Result.(*metadata.RegisterResult)
	if !ok || res.Founder { // a founder's replica is never made from an answer
		return 0, fmt.Errorf("the metadata replica's successor is not known: %+v", reply.Result)
	}
	return res.MetaReplica, nil
}

// replacing tells whether the Image already gives the replica's place to another, or never heard of it.
func (s *session) replacing(group ident.GroupID, replica ident.ReplicaID) bool {
	p := s.meta.Image().Partition(group)
	if p == nil {
		return s.meta.Image().ClusterID != ""
	}
	r := p.Replica(replica)
	return r == nil || slices.ContainsFunc(p.Replicas, func(o metadata.Replica) bool { return o.Replaces == replica })
}

// reconcileLed takes the next step of each group this node leads, where the Image asks for one.
func (s *session) reconcileLed(ctx context.Context, img *metadata.Image) {
	for _, r := range s.host.Replicas() {
		if !r.IsLeader() {
			continue
		}
		if r.Group() == ident.MetaGroup {
			if swap := metadata.PlanMetaSwap(img, s.away.since); swap != nil {
				s.submitOnceInBackground(ctx, swap)
			}
		}
		status := groupStatus(r.Status())
		for _, step := range metadata.Plan(img, r.Group(), status) {
			if !s.handOver(r, step, status) {
				s.take(ctx, r, step)
			}
		}
	}
}

func groupStatus(st raftgroup.Status) metadata.GroupStatus {
	gs := metadata.GroupStatus{
		Changing: st.Changing, ConfGeneration: st.ConfGeneration, Commit: st.CommitIndex,
		Progress: map[ident.ReplicaID]metadata.Progress{},
	}
	for _, m := range st.Members {
		if m.Learner {
			gs.Learners = append(gs.Learners, m.Replica)
		} else {
			gs.Voters = append(gs.Voters, m.Replica)
		}
	}
	gs.Progress[st.Replica] = metadata.Progress{Match: st.LastIndex, Active: true}
	for _, f := range st.Followers {
		gs.Progress[f.Replica] = metadata.Progress{Match: f.Match, Active: f.Alive, Halted: f.Halted}
	}
	return gs
}

// take proposes one change of membership, or reports one. At most one is under way a group.
func (s *session) take(ctx context.Context, r *raftgroup.Replica, step metadata.Step) {
	if step.Kind == metadata.StepReport {
		s.submitOnceInBackground(ctx, step.Report)
		return
	}
	c := raftgroup.ConfChange{Generation: step.Generation, Demote: step.Demote, Remove: step.Remove}
	for _, a := range step.Add {
		m := raftgroup.Member{Replica: a.ID, Node: a.Node, Store: a.Store}
		if step.Kind == metadata.StepAddLearner {
			c.AddLearner = append(c.AddLearner, m)
		} else {
			c.AddVoter = append(c.AddVoter, m)
		}
	}
	key := fmt.Sprintf("conf %d", r.Group())
	if !s.begin(key) {
		return
	}
	r.ProposeConfChange(c, raftgroup.ProposeOptions{Deadline: time.Now().Add(10 * time.Second)}, waiterFunc(func(err error) {
		s.end(key)
		switch {
		case err == nil || errors.Is(err, raftgroup.ErrNotLeader) || errors.Is(err, raftgroup.ErrStopped):
		case errors.Is(err, raftgroup.ErrConfChangeRefused):
			// Raft has not taken note of the change before yet. The next look proposes it again, or something newer.
			s.log.Debug("membership change refused", "group", uint64(r.Group()), "err", err)
		default:
			s.log.Warn("membership not changed yet", "group", uint64(r.Group()), "err", err)
		}
		s.kick()
	}))
}

// waiterFunc is a raftgroup.Waiter that only wants the error.
type waiterFunc func(error)

func (f waiterFunc) Applied(_ ident.Index, _ ident.Term, _ raftgroup.Result, err error) { f(err) }

// begin marks a piece of work as under way, unless it is.
func (s *session) begin(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.underway[key] {
		return false
	}
	s.underway[key] = true
	return true
}

func (s *session) end(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.underway, key)
}

// submitOnceInBackground submits cmd unless the same one is under way.
func (s *session) submitOnceInBackground(ctx context.Context, cmd metadata.Command) {
	data, err := metadata.Encode(cmd)
	if err != nil {
		s.log.Error("command not encoded", "err", err)
		return
	}
	key := "submit " + string(data)
	if !s.begin(key) {
		return
	}
	s.tasks.Go(func() {
		defer s.kick()
		defer s.end(key)
		if _, err := s.submit(ctx, cmd); err != nil && ctx.Err() == nil && !errors.Is(err, metadata.ErrStaleGeneration) {
			s.log.Warn("command not applied yet", "err", err)
		}
	})
}
