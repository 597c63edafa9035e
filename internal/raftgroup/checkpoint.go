package raftgroup

import (
	"fmt"
	"log/slog"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/snapshot"
)

// checkpointRetry is how long a checkpoint that failed is not tried again.
const checkpointRetry = 5 * time.Second

// smallCheckpoint is how many bytes of entries a checkpoint may be of and still be small: its time goes into waiting for
// the disk to confirm little, and log pressure asks for those of a thousand groups at once.
const smallCheckpoint = 1 << 20

// checkpointShares is how many small checkpoints are written in place of a large one.
const checkpointShares = 8

// logPressure is why a checkpoint is taken that the raftlog asks for.
const logPressure = "log pressure"

// checkpoint is the durable one of a replica, as the raft worker knows it.
type checkpoint struct {
	index ident.Index
	term  ident.Term
	mem   *membership
	gen   uint64
}

// ckptSide is what the apply worker knows of checkpoints.
type ckptSide struct {
	// index of the last capture that became durable; has: there is one.
	index ident.Index
	has   bool
	// spoilt: that one cannot be read, and the next is taken though nothing was applied since.
	spoilt bool
	// bytes of entries applied since the last capture was taken.
	bytes int64
	// busy: one is being written, of index writing. after runs when it is done.
	busy    bool
	writing ident.Index
	after   []func()
	// again: one was asked for while busy, and why.
	again string
	done  []ckptWaiter
	// notBefore delays the automatic ones after a failure.
	notBefore time.Time
}

// ckptWaiter wants a durable checkpoint at or above an index.
type ckptWaiter struct {
	index ident.Index
	done  func(ident.Index, error)
}

func (c *ckptSide) fail(err error) {
	ws := c.done
	c.done = nil
	for _, w := range ws {
		w.done(0, err)
	}
}

// checkpointIfDue looks at the thresholds after something was applied.
func (r *Replica) checkpointIfDue() {
	a := &r.as
	p := &r.h.opt.Policy
	due := snapshot.Thresholds{Entries: p.ThresholdEntries, Bytes: p.ThresholdBytes}.Due(
		snapshot.Since{Entries: uint64(a.index - a.ckpt.index), Bytes: a.ckpt.bytes})
	if due == snapshot.NotDue || a.ckpt.busy || !a.ckpt.notBefore.IsZero() && time.Now().Before(a.ckpt.notBefore) {
		return
	}
	r.checkpointNow(string(due), nil)
}

// checkpointForSpace takes a checkpoint when apply waits for space: files that were dropped go with it, and every other
// checkpoint stands in line behind what waits.
func (r *Replica) checkpointForSpace() {
	if c := &r.as.ckpt; !c.busy && !time.Now().Before(c.notBefore) {
		r.checkpointNow("no space", nil)
	}
}

// checkpointNow captures the state on the apply worker, O(1), and lets a
// background worker write it.
func (r *Replica) checkpointNow(why string, done func(ident.Index, error)) {
	a := &r.as
	switch {
	case !a.open || r.dying.Load():
		if done != nil {
			done(0, ErrStopped)
		}
		return
	case a.index == 0 || a.ckpt.has && a.index <= a.ckpt.index && !a.ckpt.spoilt:
		if done != nil {
			done(a.ckpt.index, nil)
		}
		return
	}
	if done != nil {
		a.ckpt.done = append(a.ckpt.done, ckptWaiter{index: a.index, done: done})
	}
	if a.ckpt.busy {
		a.ckpt.again = why
		return
	}
	start := time.Now()
	c, err := a.sm.Capture()
	if err != nil {
		r.failApply(fmt.Errorf("capture at index %d: %w", a.index, err))
		return
	}
	job := &checkpointJob{
		r: r, capture: c, dir: a.dir, bytes: a.ckpt.bytes,
		at: checkpoint{index: a.index, term: a.term, mem: a.mem, gen: a.gen}, why: why,
	}
	a.ckpt.busy, a.ckpt.writing = true, a.index
	a.ckpt.bytes = 0
	units := 1
	if job.bytes > smallCheckpoint {
		units = checkpointShares
	}
	r.h.bg.run(units, job.run)
	job.stall = time.Since(start)
}

// checkpointJob writes one capture.
type checkpointJob struct {
	r       *Replica
	capture Capture
	dir     string
	bytes   int64 // of entries applied since the checkpoint before
	at      checkpoint
	why     string
	started time.Time
	named   int64 // bytes of the data files it names, which stay where they are
	// stall is the apply worker's time for the capture. Only that worker touches it.
	stall time.Duration
}

// level is that of the words about a checkpoint. A thousand groups may take one for the raftlog's sake
// every few seconds, which it says itself.
func (j *checkpointJob) level() slog.Level {
	if j.why == logPressure {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

func (j *checkpointJob) run() {
	j.started = time.Now()
	r, t := j.r, &j.r.h.timing
	r.log.Log(r.h.ctx, j.level(), "Creating snapshot for "+r.spec.Name, "topic", r.spec.Topic, "partition", r.spec.Partition,
		"index", j.at.index, "term", j.at.term, "bytes", j.bytes, "reused", 0, "took", time.Duration(0), "reason", j.why)
	t.writing.Add(1)
	r.bg.Lock()
	info, syncErr, err := j.write()
	r.bg.Unlock()
	t.writing.Add(-1)
	if err == nil {
		t.created.observe(time.Since(j.started))
		t.createdBytes.Add(uint64(info.FileBytes))
	}
	j.capture.Release()
	r.as.post(r, applyItem{ahead: true, fn: func() { r.checkpointDone(j, info, syncErr, err) }})
}

func (j *checkpointJob) write() (info snapshot.WriteInfo, syncErr, err error) {
	if j.r.dying.Load() {
		return info, nil, ErrStopped
	}
	invariant.Point("raftgroup.checkpoint.sync")
	if err := j.capture.Sync(); err != nil {
		j.r.h.opt.Receiver.MarkUnsynced(j.dir) // the replica that takes this one's place here would link its files
		return info, err, err
	}
	ck := snapshot.Checkpoint{
		Group: j.r.spec.Group,
		Point: snapshot.Point{
			Index: j.at.index, Term: j.at.term, ConfState: j.at.mem.confBytes(),
			Members: appendMembers(nil, j.at.mem.members), ConfGeneration: j.at.mem.generation,
		},
		CreatedAt: time.Now(),
	}
	for _, f := range j.capture.Files() {
		ck.Files = append(ck.Files, snapshot.DataFile{Name: f.Name, Size: f.Size})
		j.named += f.Size
	}
	info, err = snapshot.Write(j.r.h.opt.FS, j.dir, ck, j.r.h.opt.Compression, j.capture.WriteTo)
	if err != nil {
		return info, nil, err
	}
	j.capture.Published()
	return info, nil, nil
}

// checkpointDone runs on the apply worker after the job.
func (r *Replica) checkpointDone(j *checkpointJob, info snapshot.WriteInfo, syncErr, err error) {
	start := time.Now()
	a := &r.as
	a.ckpt.busy = false
	stale := a.gen != j.at.gen // an install came between: the directory is on its way out
	switch {
	case err == nil && !stale:
		a.ckpt.index, a.ckpt.has, a.ckpt.spoilt = j.at.index, true, false
		r.count.created.Add(1)
		r.log.Log(r.h.ctx, j.level(), "Created snapshot for "+r.spec.Name, "topic", r.spec.Topic, "partition", r.spec.Partition,
			"index", j.at.index, "term", j.at.term, "bytes", info.FileBytes, "reused", j.named, "took", time.Since(j.started))
		at := j.at
		r.postLocal(localEvent{fn: func(*outbox) { r.published(&at) }})
	case err != nil && !stale && !isStopped(err):
		r.log.Error("Failed to create snapshot for "+r.spec.Name, "topic", r.spec.Topic, "partition", r.spec.Partition,
			"index", j.at.index, "term", j.at.term, "bytes", info.FileBytes, "reused", j.named, "took", time.Since(j.started), "err", err)
		a.ckpt.bytes += j.bytes
		a.ckpt.notBefore = time.Now().Add(checkpointRetry)
		if syncErr != nil {
			// What the kernel did with the dirty pages is unknown, also when it says that the disk is full: never sync again.
			r.failApply(fmt.Errorf("sync at index %d: %w", j.at.index, syncErr))
		}
	}
	r.tellCheckpoint(err)
	if err == nil {
		a.ckpt.notBefore = time.Time{}
	}
	r.h.timing.stall.observe(j.stall + time.Since(start))
	after := a.ckpt.after
	a.ckpt.after = nil
	for _, fn := range after {
		fn()
	}
	if why := a.ckpt.again; why != "" {
		a.ckpt.again = ""
		if err == nil {
			r.checkpointNow(why, nil)
		}
	} else if err == nil && a.open && !r.dying.Load() {
		r.checkpointIfDue() // what was applied meanwhile may be enough for the next
	}
}

func (r *Replica) tellCheckpoint(err error) {
	c := &r.as.ckpt
	if err != nil && !r.dying.Load() {
		c.fail(err)
		return
	}
	kept := c.done[:0]
	var ready []ckptWaiter
	for _, w := range c.done {
		if c.has && w.index <= c.index {
			ready = append(ready, w)
		} else {
			kept = append(kept, w)
		}
	}
	clear(c.done[len(kept):])
	c.done = kept
	for _, w := range ready {
		w.done(c.index, nil)
	}
	if len(c.done) > 0 && c.again == "" {
		c.again = "request"
	}
}

// published makes a checkpoint the replica's, if it is above the one it has
// (rule 13), and trims the log behind it. Runs on the raft worker.
func (r *Replica) published(c *checkpoint) {
	rs := &r.rs
	if r.ended() || c.gen != rs.gen || rs.ckpt != nil && c.index <= rs.ckpt.index {
		return
	}
	rs.ckpt = c
	r.snapIndex.Store(uint64(c.index))
	rs.dirty = true
	r.scheduleCheckpoint()
	r.trim()
}

// checkpointFor takes a checkpoint for a follower unless one at or above need is
// there or on its way: raft asks again with every message until it is published.
func (r *Replica) checkpointFor(need ident.Index) {
	c := &r.as.ckpt
	if c.has && c.index >= need || c.busy && c.writing >= need {
		return
	}
	r.checkpointNow("follower", nil)
}

// renewCheckpoint has a checkpoint that cannot be read, or be sent, written again, of whatever index.
func (r *Replica) renewCheckpoint(why error) {
	r.as.post(r, applyItem{fn: func() {
		if r.as.ckpt.has {
			r.log.Warn("checkpoint is written anew", "err", why)
			r.as.ckpt.spoilt = true
			r.checkpointNow("damage", nil)
		}
	}})
}

// snapshotForRaft answers raft's wish to send a snapshot, inside Step: O(1).
// What it names is only a placeholder; the offer pins the newest checkpoint.
// A checkpoint below the last applied membership change would carry an old
// configuration, which raft would ignore for ever (correctness rule 14).
func (r *Replica) snapshotForRaft() (*pb.Snapshot, error) {
	rs := &r.rs
	c := rs.ckpt
	if c == nil || c.index < rs.lastConf || c.index+1 < rs.st.first {
		need := max(rs.lastConf, rs.st.first-1)
		r.as.post(r, applyItem{fn: func() { r.checkpointFor(need) }})
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return c.raftSnapshot(), nil
}

// raftSnapshot is the checkpoint as raft sees it.
func (c *checkpoint) raftSnapshot() *pb.Snapshot {
	index, term := uint64(c.index), uint64(c.term)
	return &pb.Snapshot{Metadata: &pb.SnapshotMetadata{ConfState: c.mem.conf, Index: &index, Term: &term}}
}

// trim lets go of the log behind the checkpoint, on the raft worker, to at most
// what raft knows as applied (correctness rule 10).
func (r *Replica) trim() {
	rs := &r.rs
	if r.ended() || rs.ckpt == nil || rs.ckpt.index < rs.st.first {
		return
	}
	in := snapshot.TrimInput{
		Snapshot: rs.ckpt.index, Applied: ident.Index(rs.rn.BasicStatus().Applied), First: rs.st.first,
		KeepEntries: uint64(r.h.opt.Policy.KeepEntries), KeepBytes: snapshot.KeepBytes,
		HoldBytes: r.h.opt.Policy.HoldBytes, Bytes: r.bytesBetween(),
	}
	pressed := !time.Now().After(rs.pressedUntil)
	urgent := pressed && rs.urgent
	switch {
	case urgent:
		in.KeepEntries = 0
	case pressed:
		in.Yield = rs.pressedTo
	}
	if rs.role == raft.StateLeader && !urgent {
		for _, f := range r.followers() {
			in.Followers = append(in.Followers, snapshot.Follower{Alive: f.Alive, Match: f.Match})
		}
	}
	if !pressed {
		in.Pinned = r.h.opt.Server.Live(r.spec.Group)
	}
	to := snapshot.TrimTo(in)
	if to < rs.st.first {
		return
	}
	if err := rs.st.trimmed(to); err != nil {
		r.log.Warn("log not trimmed", "index", to, "err", err)
		return
	}
	invariant.Point("raftgroup.trim")
	r.h.opt.Log.Trim(r.spec.Replica, to)
	rs.dirty = true
}

// bytesBetween estimates the size of a range of entries by their mean size.
func (r *Replica) bytesBetween() func(after, to ident.Index) int64 {
	rs := &r.rs
	n := int64(rs.last) - int64(rs.st.first) + 1
	if n <= 0 {
		return func(_, _ ident.Index) int64 { return 0 }
	}
	mean := rs.view.Bytes()/n + 1
	return func(after, to ident.Index) int64 { return mean * (int64(to) - int64(after)) }
}
