package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"chronik/internal/admin"
	"chronik/internal/archive"
	"chronik/internal/bucket"
	"chronik/internal/ident"
	"chronik/internal/metadata"
	"chronik/internal/partition"
	"chronik/internal/raftgroup"
	"chronik/internal/snapshot"
)

// openBucket opens object_store.url, nil if it is empty. Nobody is spoken to.
func (b *Broker) openBucket() (bucket.Bucket, error) {
	url := b.opt.Config.ObjectStore.URL
	if url == "" {
		return nil, nil
	}
	st, err := bucket.Open(url, bucket.Options{FS: b.fs})
	if err != nil {
		return nil, &Error{Msg: "cannot use object_store.url", Err: err, Hint: "file:///directory, or s3://bucket/prefix?endpoint=http://host:port&region=r"}
	}
	return st, nil
}

// startArchive begins to bring the snapshots of the groups this node leads into
// the object store. The cluster's id is known by now.
func (s *session) startArchive(ctx context.Context) error {
	if s.bucket == nil {
		return nil
	}
	cl, err := archive.New(s.bucket).Cluster(s.meta.Image().ClusterID)
	if err != nil {
		return err
	}
	m := archive.NewManager(archive.ManagerOptions{
		Cluster: cl, Node: s.node, Groups: archiveGroups{s}, Pins: s.server,
		Keep: s.cfg.Snapshot.RetentionCount, Interval: s.cfg.ObjectStore.UploadInterval, MaxConcurrent: s.cfg.Snapshot.MaxConcurrent,
		Write: archive.WriteOptions{Grace: s.cfg.ObjectStore.Grace}, Logger: s.log,
	})
	s.archive.Store(m)
	s.tasks.Go(func() { m.Run(ctx) })
	s.tasks.Go(func() { s.freshMeta(ctx) })
	s.log.Info("keeping snapshots in the object store", "url", s.bucket.String(), "count", s.cfg.Snapshot.RetentionCount)
	return nil
}

const (
	// archiveLeast is the size from which on a snapshot is worth a look into the
	// object store: asking takes longer than sending less.
	archiveLeast = snapshot.ChunkBytes
	// archiveRest is how long an object store that failed is not asked: nodes come
	// back with hundreds of groups, and each would wait for it.
	archiveRest = 30 * time.Second
)

// archivedChunks opens what the object store has of a group whose snapshot is
// about to be received: raftgroup's Options.Archive.
func (s *session) archivedChunks(ctx context.Context, g ident.GroupID, size int64) (snapshot.ChunkSource, error) {
	id := s.store.ClusterID()
	if s.bucket == nil || id == "" || size < archiveLeast || time.Now().UnixNano() < s.archiveRests.Load() {
		return nil, nil
	}
	cl, err := archive.New(s.bucket).Cluster(id)
	if err != nil {
		return nil, err
	}
	src, err := cl.Source(ctx, g)
	if err != nil && !errors.Is(err, context.Canceled) {
		s.archiveRests.Store(time.Now().Add(archiveRest).UnixNano())
	}
	return src, err
}

// metaFreshEvery is how old the newest snapshot of a changed metadata group may become.
const metaFreshEvery = 2 * time.Second

// freshMeta has the metadata group's leader take a snapshot soon after a change,
// not only at its threshold: a restore needs the newest, and it is small.
func (s *session) freshMeta(ctx context.Context) {
	t := time.NewTicker(metaFreshEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if r := s.host.Replica(ident.MetaGroup); r != nil && r.IsLeader() {
			if st := r.Status(); st.AppliedIndex > st.SnapshotIndex {
				r.TakeCheckpoint(nil)
			}
		}
	}
}

// archiveGroups is the session as the archive's Manager sees it.
type archiveGroups struct{ s *session }

var _ archive.Groups = archiveGroups{}

// Led implements archive.Groups.
func (a archiveGroups) Led() []archive.Led {
	img := a.s.meta.Image()
	var out []archive.Led
	for _, r := range a.s.host.Replicas() {
		if !r.IsLeader() {
			continue
		}
		st, spec := r.Status(), r.Spec()
		if st.SnapshotIndex == 0 {
			continue
		}
		l := archive.Led{
			Info: archive.Info{
				Group: st.Group, Name: st.Name, Topic: st.Topic, Partition: st.Partition, Kind: spec.Kind, Key: spec.Key,
				LogStartOffset: -1, NextOffset: -1,
			},
			Term: st.Term, Checkpoint: st.SnapshotIndex, Prompt: spec.Kind == metadata.KindMeta,
		}
		if p := img.Partition(st.Group); p != nil && !p.TopicID.IsZero() {
			l.Info.TopicID = p.TopicID.String()
		}
		out = append(out, l)
	}
	return out
}

// Hold implements archive.Groups.
func (a archiveGroups) Hold(ctx context.Context, g ident.GroupID) (archive.Held, error) {
	r := a.s.host.Replica(g)
	if r == nil {
		return archive.Held{}, fmt.Errorf("group %d: %w", g, raftgroup.ErrStopped)
	}
	const tries = 5
	for range tries {
		p, dir, err := a.s.pinCheckpoint(ctx, r)
		if err != nil {
			return archive.Held{}, err
		}
		h := archive.Held{Pin: p}
		current, err := a.describe(&h, r.Spec().Kind, dir)
		if err == nil && current {
			return h, nil
		}
		a.s.server.Unpin(p.ID)
		if err != nil {
			return archive.Held{}, err
		}
	}
	return archive.Held{}, fmt.Errorf("%s: checkpoints are taken faster than they can be pinned", r.Spec().Name)
}

// describe reads what the pinned checkpoint says. It says false if another took its place meanwhile.
func (a archiveGroups) describe(h *archive.Held, kind byte, dir string) (bool, error) {
	f, err := snapshot.Open(a.s.b.fs, dir)
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }() // only read
	if f.Point.Index != h.Pin.Point.Index {
		return false, nil
	}
	h.CreatedAt, h.LogStartOffset, h.NextOffset = f.CreatedAt, -1, -1
	if kind != metadata.KindTopic {
		return true, nil
	}
	blob, err := f.ReadBlob()
	if err == nil {
		h.LogStartOffset, h.NextOffset, err = partition.Offsets(blob)
	}
	return true, err
}

// pinCheckpoint waits for a pin. One that comes too late is let go.
func (s *session) pinCheckpoint(ctx context.Context, r *raftgroup.Replica) (*snapshot.Pin, string, error) {
	type answer struct {
		p   *snapshot.Pin
		dir string
		err error
	}
	var mu sync.Mutex
	gone := false
	got := make(chan answer, 1)
	r.PinCheckpoint(func(p *snapshot.Pin, dir string, err error) {
		mu.Lock()
		defer mu.Unlock()
		if gone && err == nil {
			s.server.Unpin(p.ID)
			return
		}
		got <- answer{p, dir, err}
	})
	select {
	case a := <-got:
		return a.p, a.dir, a.err
	case <-ctx.Done():
	case <-time.After(30 * time.Second): // the replica has ended
	}
	mu.Lock()
	defer mu.Unlock()
	gone = true
	select {
	case a := <-got:
		return a.p, a.dir, a.err
	default:
		return nil, "", fmt.Errorf("%s: no pin: %w", r.Spec().Name, errors.Join(ctx.Err(), raftgroup.ErrStopped))
	}
}

// archivedTimeout bounds what a question about the object store may take.
const archivedTimeout = 20 * time.Second

// Archived implements admin.Source.
func (v view) Archived(ctx context.Context) admin.Archived {
	out := admin.Archived{Snapshots: []admin.ArchivedSnapshot{}}
	s := v.b.session()
	if s == nil || s.bucket == nil {
		return out
	}
	out.URL = s.bucket.String()
	m := s.archive.Load()
	if m == nil {
		out.Error = s.phase.Load().(string)
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, archivedTimeout)
	defer cancel()
	refs, err := m.Cluster().All(ctx)
	if err != nil {
		out.Error = err.Error()
	}
	img := s.meta.Image()
	for _, r := range refs {
		row := admin.ArchivedSnapshot{
			GroupID: uint64(r.Group), Index: uint64(r.Index), LeaderTerm: uint64(r.LeaderTerm), Modified: r.Modified.UTC(), Object: r.Object,
		}
		if p := img.Partition(r.Group); p != nil {
			row.Group = p.Name()
		}
		out.Snapshots = append(out.Snapshots, row)
	}
	return out
}

// TakeCheckpoint implements admin.Source: it returns when the checkpoints are
// durable and, with upload, those of the groups this node leads are in the object store.
func (v view) TakeCheckpoint(ctx context.Context, topic string, part int32, upload bool) ([]admin.Checkpoint, error) {
	s := v.b.session()
	if s == nil {
		return nil, errNoSession
	}
	if upload && s.archive.Load() == nil {
		return nil, fmt.Errorf("no object store: object_store.url is empty: %w", admin.ErrNotFound)
	}
	var rs []*raftgroup.Replica
	for _, r := range s.host.Replicas() {
		spec := r.Spec()
		if topic == "" || spec.Topic == topic && (part < 0 || spec.Partition == part) {
			rs = append(rs, r)
		}
	}
	if len(rs) == 0 {
		return nil, fmt.Errorf("%s: %w", topic, admin.ErrNotFound)
	}
	out := make([]admin.Checkpoint, len(rs))
	var wg sync.WaitGroup
	for i, r := range rs {
		out[i] = s.checkpointRow(r)
		wg.Go(func() { s.takeCheckpoint(ctx, r, upload, &out[i]) })
	}
	wg.Wait()
	return out, ctx.Err()
}

func (s *session) takeCheckpoint(ctx context.Context, r *raftgroup.Replica, upload bool, row *admin.Checkpoint) {
	type answer struct {
		index ident.Index
		err   error
	}
	got := make(chan answer, 1)
	r.TakeCheckpoint(func(index ident.Index, err error) { got <- answer{index, err} })
	var a answer
	select {
	case a = <-got:
	case <-ctx.Done():
		a.err = ctx.Err()
	case <-s.life.Done():
		a.err = raftgroup.ErrStopped
	}
	if a.err != nil {
		row.Error = a.err.Error()
		return
	}
	row.Index = uint64(a.index)
	m := s.archive.Load()
	if !upload || m == nil || !r.IsLeader() || a.index == 0 {
		return
	}
	// The raft worker hears of the checkpoint a moment later.
	for r.IsLeader() && r.Status().SnapshotIndex < a.index {
		select {
		case <-ctx.Done():
			row.Error = ctx.Err().Error()
			return
		case <-time.After(settleTime):
		}
	}
	at, err := m.Upload(ctx, r.Group())
	row.Uploaded = uint64(at)
	if err != nil {
		row.Error = strings.TrimSpace(err.Error())
	}
}

func (s *session) checkpointRow(r *raftgroup.Replica) admin.Checkpoint {
	st := r.Status()
	return admin.Checkpoint{
		Group: st.Name, GroupID: uint64(st.Group), Topic: st.Topic, Partition: st.Partition, Index: uint64(st.SnapshotIndex), Leader: r.IsLeader(),
	}
}
