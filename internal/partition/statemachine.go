package partition

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync/atomic"
	"time"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/raftgroup"
	"chronik/internal/record"
	"chronik/internal/segment"
	"chronik/internal/vfs"
)

// Opener opens the state machines of a node's partitions.
type Opener struct {
	// Handles is the node's cache of open segment files; nil: each has its own.
	Handles *segment.Handles
	// Crowded, if set, tells whether the disk has no room for records. Then Apply of one says that it is full, and is
	// called again: what segments would take is the raftlog's last. What frees room is applied, once it comes alone.
	Crowded func() bool
	// Wall tells the date a new partition's time begins at; nil: time.Now. Apply does not ask it (correctness rule 1).
	Wall func() time.Time
}

// Open is a raftgroup.OpenFunc.
func (o Opener) Open(fs vfs.FS, dir string, blob []byte, files []raftgroup.CaptureFile) (raftgroup.StateMachine, error) {
	s := &StateMachine{fs: fs, handles: o.Handles, crowded: o.Crowded, wall: o.Wall}
	if s.handles == nil {
		s.handles = segment.NewHandles(0)
	}
	if s.wall == nil {
		s.wall = time.Now
	}
	st, err := loadState(blob)
	if err == nil {
		err = sameFiles(st.segments, files)
	}
	if err == nil {
		err = s.load(dir, st)
	}
	if err != nil {
		return nil, fmt.Errorf("partition in %s: %w", dir, err)
	}
	return s, nil
}

// loadState decodes a checkpoint's blob; none is a new partition.
func loadState(blob []byte) (*state, error) {
	if blob == nil {
		return newState(), nil
	}
	return decodeState(blob)
}

// sameFiles proves that a blob and the list of files beside it are of one checkpoint.
func sameFiles(infos []segment.Info, files []raftgroup.CaptureFile) error {
	if len(infos) != len(files) {
		return fmt.Errorf("%w: %d files, the blob names %d", ErrCorrupt, len(files), len(infos))
	}
	for k, i := range infos {
		if f := files[k]; f.Name != i.Name() || f.Size != i.Size {
			return fmt.Errorf("%w: file %s of %d bytes, the blob names %s of %d", ErrCorrupt, f.Name, f.Size, i.Name(), i.Size)
		}
	}
	return nil
}

// StateMachine is a topic partition as its Raft group replicates it: the batches
// and what deciding on the next one takes. It implements
// raftgroup.StateMachine and RoleWatcher.
type StateMachine struct {
	fs      vfs.FS
	handles *segment.Handles
	crowded func() bool // nil: never
	wall    func() time.Time

	// The applier's. Everything here follows from the entries applied so far, and
	// from nothing else (correctness rule 1).
	log     *segment.Log
	cfg     Config
	maxTime int64 // the largest leader time seen, ms; the only clock of apply
	epochs  epochTable
	producers

	// view is what others may see. The applier replaces it after each commit.
	view     atomic.Pointer[view]
	role     atomic.Pointer[role]
	watchers watchers
	stats    counters
}

// view is the partition at one moment. Immutable, except that log goes on growing
// behind next.
type view struct {
	log    *segment.Log
	start  int64 // LogStartOffset
	next   int64 // HighWatermark: everything below is committed and applied
	epochs epochTable
	cfg    Config
	// maxTime is the largest leader time applied.
	maxTime int64
	// producers is the size of the producer table.
	producers int
}

// role is who leads, as this replica last heard.
type role struct {
	leader  ident.NodeID
	epoch   int32
	leading bool
	// since is when this replica heard of it, and base the leader's time then, ms.
	since time.Time
	base  int64
}

// stamp is the leader's time, ms: that of the leaders before this one, and what passed since it leads. The date
// is not in it. A leader whose clock is days ahead, or steps, would otherwise have every producer forgotten
// at once, and a repeated batch appended twice or refused.
func (r *role) stamp(now time.Time) int64 { return r.base + now.Sub(r.since).Milliseconds() }

// counters since the process started. The applier adds to all of them.
type counters struct {
	batches, records, bytes            atomic.Uint64
	duplicates, outOfOrder, staleEpoch atomic.Uint64
}

// load opens the segments of st and makes them the state. On error nothing has changed.
func (s *StateMachine) load(dir string, st *state) error {
	log, err := segment.Open(segment.Options{
		FS: s.fs, Dir: dir, Segments: st.segments, StartOffset: st.start, NextOffset: st.next,
		SegmentBytes: st.cfg.SegmentBytes, SegmentMs: st.cfg.SegmentMs, Handles: s.handles,
	})
	if err != nil {
		return err
	}
	s.log, s.cfg, s.maxTime, s.epochs = log, st.cfg, st.maxTime, st.epochs
	s.producers = producers{table: st.producers, maxAge: st.cfg.ProducerMaxAgeMs, purged: st.maxTime}
	s.publish()
	return nil
}

// publish shows the state to everybody else and tells who watches.
func (s *StateMachine) publish() {
	s.view.Store(&view{log: s.log, start: s.log.StartOffset(), next: s.log.NextOffset(), epochs: s.epochs, cfg: s.cfg, maxTime: s.maxTime, producers: s.table.Len()})
	s.watchers.notify()
}

// Install implements raftgroup.StateMachine.
func (s *StateMachine) Install(dir string, blob []byte) error {
	st, err := decodeState(blob)
	if err != nil {
		return fmt.Errorf("install in %s: %w", dir, err)
	}
	next := s.log.NextOffset()
	invariant.Check(st.next >= next, "partition in %s: a snapshot ends at offset %d, the state before at %d", dir, st.next, next)
	old := s.log
	if err := s.load(dir, st); err != nil {
		return fmt.Errorf("install in %s: %w", dir, err)
	}
	return old.Close()
}

// Close implements raftgroup.StateMachine.
func (s *StateMachine) Close() error {
	s.role.Store(nil)
	s.watchers.notify()
	return s.log.Close()
}

// RoleChanged implements raftgroup.RoleWatcher. One that leads has applied all of the leaders before it.
func (s *StateMachine) RoleChanged(leader ident.NodeID, term ident.Term, leading bool) {
	r := &role{leader: leader, epoch: epochOf(term), leading: leading, since: time.Now(), base: s.view.Load().maxTime}
	if r.base == math.MinInt64 {
		r.base = s.wall().UnixMilli()
	}
	s.role.Store(r)
	s.watchers.notify()
}

// epochOf is the leader epoch of a term.
func epochOf(term ident.Term) int32 {
	invariant.Check(term <= math.MaxInt32, "term %d is no leader epoch", term)
	return int32(term)
}

// Capture implements raftgroup.StateMachine: the list of segments, the epoch
// table and the tree of producers are shared, not copied.
func (s *StateMachine) Capture() (raftgroup.Capture, error) {
	pin := s.log.Capture()
	return &capture{pin: pin, state: state{
		start: pin.StartOffset, next: pin.NextOffset, maxTime: s.maxTime, cfg: s.cfg, epochs: s.epochs, producers: s.table.Copy(),
	}}, nil
}

// capture implements raftgroup.Capture.
type capture struct {
	pin   *segment.Pin
	state state
}

func (c *capture) Sync() error { return c.pin.Sync() }

func (c *capture) WriteTo(w io.Writer) (int64, error) {
	st := c.state
	st.segments = c.pin.Files()
	return st.writeTo(w)
}

func (c *capture) Files() []raftgroup.CaptureFile {
	infos := c.pin.Files()
	files := make([]raftgroup.CaptureFile, len(infos))
	for k, i := range infos {
		files[k] = raftgroup.CaptureFile{Name: i.Name(), Size: i.Size}
	}
	return files
}

func (c *capture) Published() { c.pin.Published() }
func (c *capture) Release()   { c.pin.Release() }

// Offsets returns the first readable offset and the one the next record gets.
func (s *StateMachine) Offsets() (start, next int64) {
	v := s.view.Load()
	return v.start, v.next
}

// Verify implements raftgroup.Verifier: it reads every batch and checks its CRC, order and epoch.
func (s *StateMachine) Verify(ctx context.Context) error {
	return s.read(func(v *view) error {
		return v.log.Verify(ctx, func(b record.Batch) error {
			if b.NextOffset() > v.next {
				return nil // applied since
			}
			return v.epochs.sound(b)
		})
	})
}

// VerifyStaged reads every batch of a received snapshot. The error of one that is
// not what was written wraps raftgroup.ErrCorrupt.
func VerifyStaged(ctx context.Context, fs vfs.FS, dir string, blob []byte, files []raftgroup.CaptureFile) error {
	sm, err := Opener{}.Open(fs, dir, blob, files)
	if err != nil {
		return fromSegment(err)
	}
	return errors.Join(sm.(*StateMachine).Verify(ctx), sm.Close())
}
