package broker

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"chronik/internal/admin"
	"chronik/internal/ident"
	"chronik/internal/metadata"
	"chronik/internal/raftgroup"
	"chronik/internal/snapshot"
)

// view answers the admin server for whatever session runs.
type view struct{ b *Broker }

var _ admin.Source = view{}

var errNoSession = errors.New("the node is starting")

// Ready implements admin.Source: this node's Image is current, clients are served,
// and every group it hosts has a majority and a leader that can be reached.
func (v view) Ready() error {
	s := v.b.session()
	if s == nil {
		return errNoSession
	}
	short := s.quorumError()
	phase := s.phase.Load().(string)
	if phase == phaseMetadata {
		phase += ": " + s.metadataWait()
	}
	switch serving := s.serving.Load(); {
	case !serving && short != nil:
		return fmt.Errorf("%s; %w", phase, short)
	case !serving:
		return errors.New(phase)
	case short != nil:
		return short
	}
	for _, r := range s.host.Replicas() {
		st := r.Status()
		switch {
		case st.State.Ended() || st.Role == raftgroup.RoleLearner:
		case st.LeaderNode == 0:
			return fmt.Errorf("%s has no leader", st.Name)
		case st.LeaderNode != s.node && !s.tr.Connected(st.LeaderNode):
			return fmt.Errorf("%s: leader node %d is out of reach", st.Name, st.LeaderNode)
		case st.LeaderNode == s.node && !st.Serving:
			return fmt.Errorf("%s: leadership is new", st.Name)
		}
	}
	return nil
}

// Cluster implements admin.Source.
func (v view) Cluster() admin.Cluster {
	c := admin.Cluster{Node: int32(v.b.opt.Config.Node.ID), Nodes: []admin.Node{}, Topics: []admin.Topic{}, Internal: []admin.Partition{}}
	s := v.b.session()
	if s == nil {
		return c
	}
	img := s.meta.Image()
	c.ClusterID, c.MetaIndex = img.ClusterID, uint64(img.Index)
	for _, b := range img.Brokers() {
		c.Nodes = append(c.Nodes, admin.Node{
			ID: int32(b.Node), Store: b.Store.String(), Kafka: net.JoinHostPort(b.KafkaHost, strconv.Itoa(int(b.KafkaPort))),
			Raft: b.RaftAddr, Admin: b.AdminAddr, Rack: b.Rack, Alive: cluster{s}.Alive(b.Node),
		})
	}
	for t := range img.Topics() {
		at := admin.Topic{Topic: t.Name, ID: t.ID.String(), Partitions: []admin.Partition{}}
		for _, p := range t.Partitions {
			at.Partitions = append(at.Partitions, s.partitionView(p))
		}
		c.Topics = append(c.Topics, at)
	}
	if img.Meta != nil {
		c.Internal = append(c.Internal, s.partitionView(img.Meta))
	}
	for _, p := range img.Coordinators {
		c.Internal = append(c.Internal, s.partitionView(p))
	}
	return c
}

func (s *session) partitionView(p *metadata.Partition) admin.Partition {
	l := s.leaders.Get(p.Group)
	ap := admin.Partition{
		Group: p.Name(), Partition: p.Partition, Leader: int32(l.Node), Term: uint64(l.Term),
		Generation: p.Generation, Replicas: []admin.PartitionReplica{},
	}
	for _, r := range p.Replicas {
		ap.Replicas = append(ap.Replicas, admin.PartitionReplica{
			ReplicaID: uint64(r.ID), Node: int32(r.Node), Joining: r.Joining, Lost: r.Lost, Learner: r.Learner,
		})
	}
	return ap
}

// Replicas implements admin.Source.
func (v view) Replicas() admin.Replicas {
	out := admin.Replicas{Node: int32(v.b.opt.Config.Node.ID), Replicas: []admin.Replica{}, Retired: []admin.Replica{}, WithoutQuorum: []admin.Shortfall{}}
	s := v.b.session()
	if s == nil {
		return out
	}
	out.WithoutQuorum = s.shortfalls()
	img := s.meta.Image()
	transfers := map[ident.GroupID]*admin.Transfer{}
	for _, t := range s.receiver.Transfers() {
		transfers[t.Group] = transferView(s, t)
	}
	for _, r := range s.host.Replicas() {
		st := r.Status()
		row := replicaRow(st)
		if p := s.registry.partitionOf(st.Group, st.Replica); p != nil {
			row.LogStartOffset, row.HighWatermark = p.LogStartOffset(), p.HighWatermark()
		}
		row.Transfer = transfers[st.Group]
		if img.ClusterID != "" && img.Retired(st.Group, st.Replica) {
			out.Retired = append(out.Retired, row)
			continue
		}
		out.Replicas = append(out.Replicas, row)
	}
	return out
}

func replicaRow(st raftgroup.Status) admin.Replica {
	row := admin.Replica{
		Topic: st.Topic, Partition: st.Partition, Group: st.Name, ReplicaID: uint64(st.Replica),
		LeaderNode: int32(st.LeaderNode), Term: uint64(st.Term), FirstIndex: uint64(st.FirstIndex), LastIndex: uint64(st.LastIndex),
		CommitIndex: uint64(st.CommitIndex), AppliedIndex: uint64(st.AppliedIndex), SnapshotIndex: uint64(st.SnapshotIndex),
		SnapshotsCreated: st.SnapshotsCreated, SnapshotsInstalled: st.SnapshotsInstalled,
		SnapshotBytesReceived: st.SnapshotBytesReceived, SnapshotBytesReused: st.SnapshotBytesReused,
		EntriesReplayed: st.EntriesReplayed, Reason: st.Reason, Resting: st.Resting,
	}
	for _, f := range st.Followers {
		row.Followers = append(row.Followers, admin.Follower{
			ReplicaID: uint64(f.Replica), Node: int32(f.Node), Learner: f.Learner, Alive: f.Alive, State: f.State,
			Progress: admin.Progress{MatchIndex: uint64(f.Match), LagEntries: f.Lag, LagBytes: f.LagBytes},
		})
	}
	switch st.Role {
	case raftgroup.RoleLeader:
		row.Role = "leader"
		row.Progress = &admin.Progress{MatchIndex: uint64(st.LastIndex)}
	case raftgroup.RoleCandidate:
		row.Role = "candidate"
	case raftgroup.RoleLearner:
		row.Role = "learner"
	case raftgroup.RoleFollower:
		row.Role = "follower"
	}
	switch st.State {
	case raftgroup.StateReceiving:
		row.State = "receiving-snapshot"
	case raftgroup.StateHalted:
		row.State = "halted"
	case raftgroup.StateQuarantined, raftgroup.StateStopped:
		row.State = "quarantined"
	case raftgroup.StateHeld, raftgroup.StateRunning:
		row.State = "running"
	}
	return row
}

func transferView(s *session, t snapshot.Transfer) *admin.Transfer {
	var from []admin.TransferSource
	for _, b := range t.From {
		from = append(from, admin.TransferSource{Source: b.Source, Bytes: uint64(b.Bytes)})
	}
	at := &admin.Transfer{
		Group: strconv.FormatUint(uint64(t.Group), 10), Direction: string(t.Direction), State: t.State, Source: int32(t.Peer), Target: int32(s.node),
		Index: uint64(t.Index), Term: uint64(t.Term),
		BytesReceived: uint64(t.BytesReceived), From: from,
		BytesDone: uint64(t.BytesDone), BytesTotal: uint64(t.BytesTotal), BytesReused: uint64(t.BytesReused),
		BytesPerSecond: t.Rate, SecondsLeft: t.Left().Seconds(), Seconds: time.Since(t.Started).Seconds(), Attempts: t.Attempts,
	}
	if t.Direction == snapshot.Outgoing {
		at.Source, at.Target = at.Target, at.Source
	}
	if r := s.host.Replica(t.Group); r != nil { // else it is being removed
		spec := r.Spec()
		at.Group, at.Topic, at.Partition = spec.Name, spec.Topic, spec.Partition
	}
	return at
}

// Transfers implements admin.Source.
func (v view) Transfers() []admin.Transfer {
	out := []admin.Transfer{}
	s := v.b.session()
	if s == nil {
		return out
	}
	for _, t := range append(s.receiver.Transfers(), s.server.Transfers()...) {
		out = append(out, *transferView(s, t))
	}
	return out
}

// Digest implements admin.Source.
func (v view) Digest(topic string, partition int32, from, to int64) (admin.Digest, error) {
	s := v.b.session()
	if s == nil {
		return admin.Digest{}, errNoSession
	}
	mp := s.meta.Image().TopicPartition(topic, partition)
	if mp == nil {
		return admin.Digest{}, fmt.Errorf("%s-%d: %w", topic, partition, admin.ErrNotFound)
	}
	p := s.registry.partition(mp.Group)
	if p == nil {
		return admin.Digest{}, fmt.Errorf("%s-%d: no replica on this node: %w", topic, partition, admin.ErrNotFound)
	}
	if from < 0 {
		from = p.LogStartOffset()
	}
	if to < 0 {
		to = p.HighWatermark()
	}
	d, err := p.Digest(from, to)
	if err != nil {
		return admin.Digest{}, err
	}
	return admin.Digest{From: d.From, To: d.To, Records: d.Records, Batches: d.Batches, SHA256: d.SHA256}, nil
}

// Checkpoints implements admin.Source.
func (v view) Checkpoints() []admin.Checkpoint {
	out := []admin.Checkpoint{}
	s := v.b.session()
	if s == nil {
		return out
	}
	for _, r := range s.host.Replicas() {
		if row := s.checkpointRow(r); row.Index > 0 {
			out = append(out, row)
		}
	}
	return out
}
