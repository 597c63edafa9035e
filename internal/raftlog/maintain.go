package raftlog

import (
	"fmt"
	"slices"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

// relocateBytes bounds what one batch relocates, so that appends do not wait long.
const relocateBytes = 1 << 20

// move is the relocation of all that is live in the oldest file.
type move struct {
	file  *logFile
	queue []*replica
	count int64
}

// maintain frees files, and relocates or asks for trims if they are too many.
func (l *Log) maintain() {
	if l.w.err == nil {
		l.freeOldest()
	}
	if l.w.err == nil {
		l.relieve()
	}
	if l.w.err != nil {
		l.w.move = nil
	}
	l.measure()
}

// measure publishes the sizes.
func (l *Log) measure() {
	w := &l.w
	l.statsMu.Lock()
	defer l.statsMu.Unlock()
	s := &l.stats
	s.LiveBytes, s.TotalBytes = w.live(), w.total()+int64(len(w.spare))*l.opts.FileBytes
	s.ActiveLeft = 0
	if w.active != nil {
		s.ActiveLeft = w.active.size - w.active.end - int64(len(w.foot.buf)) - 2*maxFooterRecord
	}
	s.Files, s.Spare, s.Replicas = len(w.files), len(w.spare), len(l.replicas)
	s.CacheBytes = w.cache.bytes
}

func (w *writer) live() (n int64) {
	for _, f := range w.files {
		n += f.live
	}
	return n
}

func (w *writer) total() (n int64) {
	for _, f := range w.files {
		n += f.size
	}
	return n
}

// freeOldest takes files without anything live off the old end, one by one and
// each durably, so that a crash never leaves a younger one out. What made them
// free is durable: the index only moves after the sync. The last file stays: it
// shows that the log exists and where its LSNs are.
func (l *Log) freeOldest() {
	w := &l.w
	for len(w.files) > 1 && w.files[0].pins == 0 {
		f := w.files[0]
		w.files = slices.Delete(w.files, 0, 1)
		if err := l.freeFile(f); err != nil {
			l.fail("free "+f.path, err)
			return
		}
	}
}

// freeFile keeps f for reuse or removes it. A file that is being read is removed:
// its readers keep their handle, and nobody overwrites what they read. New
// readers cannot come, since no reference leads to it any more.
func (l *Log) freeFile(f *logFile) error {
	w := &l.w
	invariant.Point("raftlog/free-before")
	keep := f.size == l.opts.FileBytes && f.users.Load() == 1 &&
		w.total()+int64(len(w.spare)+1)*l.opts.FileBytes <= l.opts.MaxBytes
	if err := f.release(); err != nil {
		return err
	}
	if keep {
		path := l.fs.PathJoin(l.opts.Dir, fileName(f.number, freeSuffix))
		if err := l.fs.Rename(f.path, path); err != nil {
			return err
		}
		w.spare = append(w.spare, path)
	} else if err := l.fs.Remove(f.path); err != nil {
		return err
	}
	invariant.Point("raftlog/free-renamed")
	if err := vfs.SyncDir(l.fs, l.opts.Dir); err != nil {
		return err
	}
	invariant.Point("raftlog/free-durable")
	return nil
}

// relieve acts when the files take more than half of MaxBytes: if little in the
// oldest is live, that is relocated; else its owners are asked to trim. Near
// the limit "little" is half a file instead of an eighth: each relocation frees
// more than it writes, so it comes to an end. If near the limit most bytes are dead,
// those behind an oldest file that nobody trims, it is relocated whatever it takes: one
// round over all files writes what is live, less than half, and frees them all, so
// that comes to an end too.
func (l *Log) relieve() {
	w := &l.w
	total := w.total()
	over := total > l.opts.MaxBytes/2
	l.pressed.Store(over)
	if !over || w.move != nil || len(w.files) < 2 {
		return
	}
	oldest := w.files[0]
	limit := oldest.size / 8
	urgent := total > l.opts.MaxBytes/8*7
	if urgent {
		limit = oldest.size / 2
		if w.live() < total/2 {
			limit = maxFileBytes
		}
	}
	if oldest.live <= limit && oldest.number != w.moved {
		w.moved = oldest.number
		w.move = &move{file: oldest, queue: owners(oldest)}
		return
	}
	l.mu.Lock()
	fn := l.pressure
	l.mu.Unlock()
	at := [2]uint64{oldest.number, w.files[len(w.files)-1].number}
	if fn == nil || at == w.pressedAt {
		return
	}
	w.pressedAt = at
	rs := owners(oldest)
	holders := make([]Holder, len(rs))
	for i, r := range rs {
		holders[i] = Holder{r.id, r.upTo(oldest)}
	}
	l.log.Info("raftlog under pressure", "file", oldest.path, "bytes", total, "live", oldest.live, "replicas", len(rs), "urgent", urgent)
	fn(holders, urgent)
}

// owners returns the replicas with something live in f, by id.
func owners(f *logFile) []*replica {
	var rs []*replica
	for r := range f.touched {
		if r.pins(f) {
			rs = append(rs, r)
		} else {
			delete(f.touched, r)
		}
	}
	slices.SortFunc(rs, func(a, b *replica) int {
		if a.id < b.id {
			return -1
		}
		return 1
	})
	return rs
}

// pins tells whether anything live of r is in f. Called on the sync loop.
func (r *replica) pins(f *logFile) bool {
	if slices.Contains(r.at[:], f) {
		return true
	}
	return slices.ContainsFunc(r.refs, func(e entryRef) bool { return e.file == f })
}

// upTo is r's last entry in f, 0 if there is none. Called on the sync loop.
func (r *replica) upTo(f *logFile) (last ident.Index) {
	for i := range r.refs {
		if e := &r.refs[i]; e.file == f {
			last = max(last, e.last())
		}
	}
	return last
}

// encodeMove puts the next part of the relocation at work into the batch. It
// comes before the batch's appends, so the index is exactly the state that the
// log's records so far make; reading happens here, on the sync loop, and is
// bounded by relocateBytes.
func (l *Log) encodeMove() {
	w := &l.w
	m := w.move
	if m == nil {
		return
	}
	if w.nodeAt == m.file {
		if l.put(&frame{kind: kindNode, flags: hasBlob, blob: l.node}) != nil {
			return
		}
	}
	budget := int64(relocateBytes)
	for len(m.queue) > 0 && budget > 0 {
		done, used, err := l.moveReplica(m.queue[0], m.file, budget)
		if err != nil {
			return // the log has failed
		}
		budget -= used
		m.count += used
		if !done {
			return
		}
		m.queue = m.queue[1:]
	}
	if len(m.queue) == 0 {
		w.move = nil
		l.log.Debug("relocated what was live in an old file", "file", m.file.path, "bytes", m.count)
	}
}

// moveReplica relocates what r has in f, entries up to budget bytes.
func (l *Log) moveReplica(r *replica, f *logFile, budget int64) (done bool, used int64, err error) {
	if r.gone {
		return true, 0, nil
	}
	if slices.Contains(r.at[:], f) {
		meta := r.record()
		if err := l.put(meta); err != nil {
			return false, 0, err
		}
		used += meta.size
	}
	var refs []entryRef
	base := r.loggedBase // as of now: a put may apply a trim, and what it drops does no harm
	for _, e := range r.refs {
		if e.file == f && e.last() > base {
			refs = append(refs, e)
		}
	}
	for i := 0; i < len(refs); {
		if used >= budget {
			return false, used, nil
		}
		fr := frame{kind: kindRelocate, group: r.group, replica: r.id}
		n, bad := gather(&fr, r, base, refs[i:], budget-used)
		if bad != nil {
			l.foundDamage(r, refs[i].first, bad)
			fr.flags, fr.damage = hasDamage, bad.Error()
			fr.first, fr.n, n = refs[i].first, refs[i].n, 1
		}
		if err := l.put(&fr); err != nil {
			return false, used, err
		}
		used += fr.size
		i += n
	}
	return true, used, nil
}

// foundDamage quarantines r, whose entries from first on cannot be read: the record of it follows.
func (l *Log) foundDamage(r *replica, first ident.Index, err error) {
	l.log.Error("raftlog entries unreadable, replica quarantined", "replica", r.id, "index", first, "err", err)
	r.mu.Lock()
	r.damage, r.top = damageError(err.Error()), r.last()
	r.mu.Unlock()
	l.mu.Lock()
	fn := l.damage
	l.mu.Unlock()
	if fn != nil {
		fn(r.id, err)
	}
}

// record is all of r but its entries, as one relocate frame.
func (r *replica) record() *frame {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := &frame{
		kind: kindRelocate, group: r.group, replica: r.id,
		flags: hasBase, base: r.base, baseTerm: r.baseTerm,
	}
	if r.creation != nil {
		f.flags |= hasCreation
		f.creation = r.creation
	}
	if r.at[itemHardState] != nil {
		f.flags |= hasHardState
		f.hs = r.hs
	}
	if r.install != nil {
		f.flags |= hasInstall
		f.install = r.install
	}
	if r.at[itemDamage] != nil {
		f.flags |= hasDamage
		f.damage = r.damage.Error() // not wrapped: it must not grow with each relocation
	}
	return f
}

// gather fills f with the entries behind base of the first refs, adjacent ones up to budget
// bytes, and returns how many refs that were. An error concerns the first ref.
func gather(f *frame, r *replica, base ident.Index, refs []entryRef, budget int64) (int, error) {
	var fr frame
	for i := range refs {
		e := &refs[i]
		if i > 0 && (budget <= 0 || e.first != refs[i-1].last()+1) {
			return i, nil
		}
		if fr.off != int64(e.off) {
			var err error
			fr, err = e.file.readFrame(int64(e.off), int64(e.size), true)
			if err == nil {
				err = checkOwner(&fr, r, e)
			}
			if err != nil && i > 0 {
				return i, nil
			}
			if err != nil {
				return 0, err
			}
		}
		lo := max(e.first, base+1)
		f.entries = append(f.entries, fr.entries[lo-fr.first:e.last()+1-fr.first]...)
		f.first, f.n = f.entries[0].Index, uint32(len(f.entries))
		f.lastTerm = e.term
		budget -= int64(e.size)
	}
	return len(refs), nil
}

// checkOwner holds the index against the frame it points to.
func checkOwner(fr *frame, r *replica, e *entryRef) error {
	if fr.replica == r.id && fr.first <= e.first && e.last() < fr.first+ident.Index(fr.n) {
		return nil
	}
	return e.file.corrupt(fr.off, fmt.Sprintf("frame of replica %d, entries from %d, is not that of replica %d, entries from %d",
		fr.replica, fr.first, r.id, e.first))
}
