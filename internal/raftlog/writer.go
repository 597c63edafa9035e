package raftlog

import (
	"errors"
	"fmt"
	"time"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

// writer is what the sync loop alone touches (and Open before it starts).
type writer struct {
	files    []*logFile // oldest first; the last one is active, if active is not nil
	active   *logFile   // nil after a recovery until the first write
	spare    []string   // paths of files to reuse
	nodeAt   *logFile   // holds the latest node record, of nodeCost bytes
	nodeCost int64
	// nodeDamage: while replaying, the latest node record is unreadable.
	nodeDamage error
	err        error // as Log.err

	lsn uint64 // last one given
	// The batch at work: frames encoded, for active from its end on.
	batch  batch
	zeros  []byte // zeroAhead's
	frames []frame
	spans  []span // what frames' spans point into
	dones  []completion
	foot   footer // records of all frames of active, those in batch included
	cache  tailCache
	move   *move  // relocation at work
	moved  uint64 // number of the last file relocated: once is enough
	// pressedAt is the oldest and the newest file at the last OnPressure call.
	pressedAt [2]uint64
}

// completion is called after the batch, with the batch's error if err is nil.
type completion struct {
	op  op
	err error
}

// syncLoop writes batch after batch until Close.
func (l *Log) syncLoop() {
	defer close(l.stopped)
	var ops []op
	var trims []*replica
	for more := true; more; {
		ops, trims, more = l.collect(ops, trims)
		l.encodeTrims(trims)
		l.encodeMove()
		for i := range ops {
			l.encode(&ops[i])
		}
		l.flush()
		l.maintain()
		clear(ops)
		clear(trims)
	}
	l.shutdown()
}

// collect waits for work and takes all there is. The slices are the last ones, for reuse.
func (l *Log) collect(ops []op, trims []*replica) ([]op, []*replica, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.wake && !l.closing && l.w.move == nil {
		l.cond.Wait()
	}
	l.wake = false
	ops, l.waiting = l.waiting, ops[:0]
	trims, l.trims = l.trims, trims[:0]
	return ops, trims, !l.closing
}

// shutdown seals the active file, so that the next Open need not scan it, and closes all.
func (l *Log) shutdown() {
	if l.w.active != nil && l.w.err == nil {
		if err := l.seal(); err != nil {
			l.fail("seal "+l.w.active.path, err)
		}
	}
	for _, f := range l.w.files {
		if err := errors.Join(f.endDirect(), f.release()); err != nil {
			l.fail("close "+f.path, err)
		}
	}
}

// encode puts one op into the batch, or refuses it. After a failure nothing is looked at any
// more: what comes then follows on what was refused, and not on what the log holds.
func (l *Log) encode(o *op) {
	if l.w.err != nil {
		l.w.dones = append(l.w.dones, completion{*o, l.w.err})
		return
	}
	var err error
	switch o.kind {
	case opAppend:
		err = l.encodeAppend(o.app)
	case opCreate:
		err = l.encodeCreate(o.cs)
	case opRemove:
		err = l.encodeRemove(o.replica)
	case opNode:
		err = l.put(&frame{kind: kindNode, flags: hasBlob, blob: o.blob})
	}
	l.w.dones = append(l.w.dones, completion{*o, err})
}

func (l *Log) encodeAppend(a *Append) error {
	r := l.replicas[a.Replica]
	switch {
	case r == nil || r.gone:
		return fmt.Errorf("append to replica %d: %w", a.Replica, ErrUnknownReplica)
	case r.damage != nil:
		return fmt.Errorf("append to replica %d: %w: %w", a.Replica, ErrQuarantined, r.damage)
	}
	f := frame{
		kind: kindAppend, flags: hasHardState, group: r.group, replica: r.id,
		hs: a.HardState, install: a.Install, entries: a.Entries, n: uint32(len(a.Entries)), own: a.Own,
	}
	base, last := r.loggedBase, r.encLast
	if a.Install != nil {
		if len(a.Install.ConfState) > MaxInfoBytes {
			return fmt.Errorf("append to replica %d: ConfState of %d bytes: %w", r.id, len(a.Install.ConfState), ErrTooLarge)
		}
		f.flags |= hasInstall
		base, last = a.Install.Index, a.Install.Index
	}
	if n := len(a.Entries); n > 0 {
		f.first, f.lastTerm = a.Entries[0].Index, a.Entries[n-1].Term
		invariant.Check(f.first > base && f.first <= last+1,
			"raftlog: replica %d: append from %d to a log of %d to %d", r.id, f.first, base+1, last)
		last = a.Entries[n-1].Index
	}
	invariant.Check(a.HardState.Commit <= last, "raftlog: replica %d: commit %d with last index %d", r.id, a.HardState.Commit, last)
	if err := l.put(&f); err != nil {
		return err
	}
	r.encLast = last
	return nil
}

func (l *Log) encodeCreate(cs []Creation) error {
	for i, c := range cs {
		if l.replicas[c.Replica] != nil {
			return fmt.Errorf("create replica %d: %w", c.Replica, ErrExists)
		}
		for _, other := range cs[:i] {
			if other.Replica == c.Replica {
				return fmt.Errorf("create replica %d twice: %w", c.Replica, ErrExists)
			}
		}
	}
	for i := range cs {
		f := frame{kind: kindCreate, flags: hasCreation, group: cs[i].Group, replica: cs[i].Replica, creation: &cs[i]}
		// Known to this loop from now on, to readers once creation is set.
		r := l.addReplica(cs[i].Replica, cs[i].Group)
		r.encLast, r.loggedBase = cs[i].First, cs[i].First
		if err := l.put(&f); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) encodeRemove(id ident.ReplicaID) error {
	r := l.replicas[id]
	if r == nil || r.gone {
		return fmt.Errorf("remove replica %d: %w", id, ErrUnknownReplica)
	}
	r.gone = true
	return l.put(&frame{kind: kindRemove, group: r.group, replica: id})
}

// encodeTrims writes where the logs of the trimmed replicas now begin.
func (l *Log) encodeTrims(trims []*replica) {
	for _, r := range trims {
		r.mu.Lock()
		base, term := r.base, r.baseTerm
		r.trimQueued = false
		r.mu.Unlock()
		if r.gone || r.removed || base <= r.loggedBase {
			continue
		}
		f := frame{kind: kindTrim, flags: hasBase, group: r.group, replica: r.id, base: base, baseTerm: term}
		if l.put(&f) != nil {
			return // the log has failed
		}
	}
}

// put encodes f into the batch, beginning a new file first if it does not fit.
func (l *Log) put(f *frame) error {
	w := &l.w
	body := f.bodyBytes()
	f.size = frameSize(body)
	if f.size > maxFrameBytes {
		return fmt.Errorf("frame of %d bytes for replica %d: %w", f.size, f.replica, ErrTooLarge)
	}
	if w.err == nil && !w.room(f.size) {
		l.flush()
		l.roll(f.size)
	} else if w.batch.frames() > 0 && w.batch.frames()+f.size > maxBatchBytes {
		l.flush()
	}
	if w.err != nil {
		return w.err
	}
	w.lsn++
	f.lsn, f.durable = w.lsn, l.durable.Load()
	f.off = w.active.end + w.batch.frames()
	start := len(w.spans)
	if f.flags&hasDamage == 0 {
		for i := range f.entries {
			w.spans = addSpan(w.spans, start, &f.entries[i])
		}
		f.spans = w.spans[start:len(w.spans):len(w.spans)]
	}
	w.batch.grow(int(f.size))
	w.batch.buf = appendFrame(w.batch.buf, f, w.active.epoch)
	w.foot.add(f)
	w.frames = append(w.frames, *f)
	return nil
}

// room tells whether a frame of size fits behind what is in the batch, with the footer.
func (w *writer) room(size int64) bool {
	return w.active != nil &&
		w.active.end+w.batch.frames()+size+int64(len(w.foot.buf))+maxFooterRecord <= w.active.size
}

// flush makes the batch durable: one write, one sync; then the index moves, then
// each Done runs. After a failure it only runs the Dones.
func (l *Log) flush() {
	w := &l.w
	if len(w.frames) > 0 && w.err == nil {
		l.write()
	}
	if len(w.frames) > 0 && w.err == nil {
		w.active.end += w.batch.frames()
		l.durable.Store(w.frames[len(w.frames)-1].lsn)
		for i := range w.frames {
			l.apply(w.active, &w.frames[i])
		}
		w.cache.shrink()
	}
	for i := range w.dones {
		d := &w.dones[i]
		err := d.err
		if err == nil {
			err = w.err
		}
		d.op.finish(err)
	}
	clear(w.frames)
	clear(w.dones)
	w.frames, w.dones, w.spans = w.frames[:0], w.dones[:0], w.spans[:0]
	w.batch.next()
}

// write writes and syncs the batch. A failure is final: which pages reached the
// disk, and whether the kernel still holds them as dirty, is unknown.
func (l *Log) write() {
	w := &l.w
	invariant.Point("raftlog/batch-encoded")
	if err := w.active.writeBlocks(w.batch.blocks(), w.active.end-int64(w.batch.lead)); err != nil {
		l.fail("write "+w.active.path, err)
		return
	}
	if err := l.zeroAhead(); err != nil {
		l.fail("write "+w.active.path, err)
		return
	}
	invariant.Point("raftlog/batch-written")
	start := time.Now()
	if err := w.active.f.SyncData(); err != nil {
		l.fail("sync "+w.active.path, err)
		return
	}
	took := time.Since(start)
	invariant.Point("raftlog/batch-synced")
	l.count(took)
}

const (
	// zeroStep is how much is zeroed at a time, zeroBelow the largest batch for which it is.
	zeroStep  = 1 << 20
	zeroBelow = 64 << 10
)

// zeroAhead writes zeros behind a small batch in a file that was never written
// there, and the batch's sync covers them. They change no byte: allocated blocks
// read as zeros. But the first write to such a block makes fdatasync wait for a
// commit of the file system's journal, which takes along what everybody else
// has made, synced or renamed; a block that was written before does not. So of a
// stream of small batches one in hundreds pays. Large ones would write all twice.
func (l *Log) zeroAhead() error {
	f := l.w.active
	head := f.end - int64(l.w.batch.lead) + int64(len(l.w.batch.blocks()))
	if l.w.batch.frames() > zeroBelow || head <= f.written || head >= f.size {
		f.written = max(f.written, head)
		return nil
	}
	to := min(head+zeroStep, f.size)
	if l.w.zeros == nil {
		l.w.zeros = vfs.Blocks(zeroStep)[:zeroStep]
	}
	clear(l.w.zeros) // a file may scribble over what it is given
	if err := f.writeBlocks(l.w.zeros[:to-head], head); err != nil {
		return err
	}
	f.written = to
	return nil
}

func (l *Log) count(fsync time.Duration) {
	w := &l.w
	l.statsMu.Lock()
	defer l.statsMu.Unlock()
	s := &l.stats
	s.Batches++
	s.Frames += uint64(len(w.frames))
	s.Bytes += uint64(w.batch.frames())
	s.MaxBatchFrames = max(s.MaxBatchFrames, uint64(len(w.frames)))
	s.FsyncBuckets[fsyncBucket(fsync)]++
	s.FsyncTotal += fsync
	for i := range w.frames {
		f := &w.frames[i]
		switch f.kind {
		case kindAppend:
			s.Entries += uint64(f.n)
		case kindRelocate:
			s.RelocatedFrames++
			s.RelocatedBytes += uint64(f.size)
		}
	}
}

// roll seals the active file and begins the next, large enough for a frame of size.
func (l *Log) roll(size int64) {
	w := &l.w
	if w.err != nil {
		return
	}
	if w.active != nil {
		if err := l.seal(); err != nil {
			l.fail("seal "+w.active.path, err)
			return
		}
	}
	h := fileHeader{
		store: l.opts.Store, number: 1, epoch: newEpoch(), size: l.opts.FileBytes,
		firstLSN: w.lsn + 1, prevLast: l.durable.Load(),
	}
	if n := len(w.files); n > 0 {
		h.number = w.files[n-1].number + 1
	}
	spare := ""
	if need := dataOffset + size + 2*maxFooterRecord; need > h.size {
		h.size = (need + 4095) &^ 4095
	} else if n := len(w.spare); n > 0 {
		spare = w.spare[n-1]
		w.spare = w.spare[:n-1]
	}
	f, err := makeFile(l.fs, l.opts.Dir, h, spare)
	if errors.Is(err, errNoRoom) && l.opts.MakeRoom != nil && l.opts.MakeRoom() {
		f, err = makeFile(l.fs, l.opts.Dir, h, spare)
	}
	if err != nil {
		l.fail("begin file", err)
		return
	}
	w.files = append(w.files, f)
	w.active = f
	w.batch.restart()
	w.foot.reset()
	l.statsMu.Lock()
	l.stats.Rolls++
	if spare != "" {
		l.stats.Recycled++
	}
	l.statsMu.Unlock()
}

// seal writes the active file's footer and where it is. All its frames are
// durable. Nothing is lost without the sync, but a start after a power loss
// would scan every file the system had not yet written back.
func (l *Log) seal() error {
	f := l.w.active
	s := seal{
		epoch: f.epoch, footerOff: f.end, footerLen: int64(len(l.w.foot.buf)),
		lastLSN: l.durable.Load(), footerCRC: checksum(l.w.foot.buf),
	}
	if len(l.w.foot.buf) > 0 {
		if _, err := f.f.WriteAt(l.w.foot.buf, f.end); err != nil {
			return err
		}
	}
	if _, err := f.f.WriteAt(s.encode(), sealOffset); err != nil {
		return err
	}
	invariant.Point("raftlog/seal-written")
	if err := f.f.SyncData(); err != nil {
		return err
	}
	invariant.Point("raftlog/seal-synced")
	return f.endDirect()
}
