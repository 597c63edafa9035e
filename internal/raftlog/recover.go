package raftlog

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"chronik/internal/ident"
	"chronik/internal/vfs"
)

// Open opens the log in opts.Dir, or makes it if opts.Create is set and there is
// none. ErrMissing: there is none. ErrForeign: it belongs to another store.
// ErrCorrupt: it is damaged beyond what Recovery.Quarantined can express.
// The files are not changed by a failed Open, except that leftovers of the
// making of files are removed.
func Open(opts Options) (*Log, error) {
	start := time.Now()
	opts = opts.withDefaults()
	l := &Log{
		opts: opts, fs: opts.FS, log: opts.Logger,
		failed: make(chan struct{}), stopped: make(chan struct{}),
		replicas: make(map[ident.ReplicaID]*replica),
	}
	l.cond.L = &l.mu
	l.w.cache.limit = opts.CacheBytes
	l.w.foot.reset()
	numbers, err := l.list()
	switch {
	case err != nil:
		return nil, err
	case len(numbers) > 0:
		err = l.recover(numbers)
	case opts.Create:
		err = l.create()
	default:
		return nil, fmt.Errorf("%w: %s", ErrMissing, opts.Dir)
	}
	if err != nil {
		for _, f := range l.w.files {
			err = errors.Join(err, f.release())
		}
		return nil, err
	}
	l.recovery.Took = time.Since(start)
	l.recovery.LastLSN = l.durable.Load()
	if l.maintain(); l.w.err != nil {
		return nil, l.w.err
	}
	go l.syncLoop()
	return l, nil
}

// listFiles returns the log's file numbers, ascending, and the names of the other files made by a log.
func listFiles(fsys vfs.FS, dir string) (numbers []uint64, others []string, err error) {
	if _, err := fsys.Stat(dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, nil
		}
		return nil, nil, fmt.Errorf("raftlog: %w", err)
	}
	names, err := vfs.List(fsys, dir)
	if err != nil {
		return nil, nil, fmt.Errorf("raftlog: list %s: %w", dir, err)
	}
	for _, name := range names {
		if n, ok := parseFileName(name, logSuffix); ok {
			numbers = append(numbers, n)
		} else if _, ok := parseFileName(name, freeSuffix); ok {
			others = append(others, name)
		} else if _, ok := parseFileName(name, newSuffix); ok {
			others = append(others, name)
		}
	}
	slices.Sort(numbers)
	return numbers, others, nil
}

// list finds the log's files, keeps emptied ones for reuse and removes half made ones.
func (l *Log) list() ([]uint64, error) {
	numbers, others, err := listFiles(l.fs, l.opts.Dir)
	if err != nil {
		return nil, err
	}
	for _, name := range others {
		path := l.fs.PathJoin(l.opts.Dir, name)
		n, free := parseFileName(name, freeSuffix)
		free = free && !slices.Contains(numbers, n)
		if free && int64(len(numbers)+len(l.w.spare)+1)*l.opts.FileBytes <= l.opts.MaxBytes {
			l.w.spare = append(l.w.spare, path)
		} else if err := l.fs.Remove(path); err != nil {
			return nil, fmt.Errorf("raftlog: %w", err)
		}
	}
	if len(l.w.spare) > 0 {
		// The process before may have ended between the rename and its sync: a file that is
		// a log file on the disk must not be written anew.
		if err := vfs.SyncDir(l.fs, l.opts.Dir); err != nil {
			return nil, fmt.Errorf("raftlog: sync %s: %w", l.opts.Dir, err)
		}
	}
	return numbers, nil
}

// create makes a new, empty log: a directory with one file.
func (l *Log) create() error {
	if err := vfs.MkdirAllSync(l.fs, l.opts.Dir); err != nil {
		return fmt.Errorf("raftlog: create %s: %w", l.opts.Dir, err)
	}
	l.roll(0)
	if l.w.err != nil {
		return l.w.err
	}
	l.recovery = Recovery{Created: true, Files: 1}
	return nil
}

// recover replays the files. See correctness rule 6 for what is believed.
func (l *Log) recover(numbers []uint64) error {
	w := &l.w
	for _, n := range numbers {
		f, err := openFile(l.fs, l.opts.Dir, n)
		if err != nil {
			return err
		}
		w.files = append(w.files, f)
		if f.store != l.opts.Store {
			return fmt.Errorf("%w: %s is of store %s, this is store %s", ErrForeign, f.path, f.store, l.opts.Store)
		}
		if i := len(w.files) - 1; i > 0 {
			if err := checkChain(w.files[i-1], f); err != nil {
				return err
			}
		}
	}
	l.recovery.Files = len(w.files)
	for i, f := range w.files {
		var err error
		if i+1 < len(w.files) {
			err = l.replay(f, w.files[i+1].prevLast, true)
		} else {
			err = l.replay(f, f.prevLast, false)
		}
		if err != nil {
			return err
		}
	}
	// What was read may so far only be in the page cache; it counts as durable from here on.
	if err := w.files[len(w.files)-1].f.SyncData(); err != nil {
		return fmt.Errorf("raftlog: sync %s: %w", w.files[len(w.files)-1].path, err)
	}
	l.settle()
	return w.nodeDamage
}

func checkChain(a, b *logFile) error {
	switch {
	case b.number != a.number+1:
		return b.corrupt(0, fmt.Sprintf("file %d is missing before this one", b.number-1))
	case b.firstLSN < a.firstLSN || b.prevLast < a.prevLast:
		return b.corrupt(0, fmt.Sprintf("first LSN %d after a file that begins with %d", b.firstLSN, a.firstLSN))
	}
	return nil
}

// replay applies f's frames. closed says that a later file vouches for all LSNs
// up to durable; else f is the last file, and its own frames tell how far it was durable.
func (l *Log) replay(f *logFile, durable uint64, closed bool) error {
	s, ok, err := f.readSeal()
	if err != nil {
		return err
	}
	if ok {
		err := l.replayFooter(f, &s)
		if err == nil && closed && s.lastLSN != durable {
			return f.corrupt(sealOffset, fmt.Sprintf("sealed at LSN %d, the next file follows %d", s.lastLSN, durable))
		}
		if !errors.Is(err, errFormat) {
			return err
		}
		l.log.Warn("raftlog footer unreadable, scanning the file", "file", f.path, "offset", s.footerOff, "err", err)
		durable = max(durable, s.lastLSN)
	}
	return l.replayScan(f, durable, closed)
}

// readSeal returns the seal of f if it is sealed. A file too short for one is not.
func (f *logFile) readSeal() (seal, bool, error) {
	b := make([]byte, sealBytes)
	err := f.readAt(b, sealOffset)
	if errors.Is(err, ErrCorrupt) {
		return seal{}, false, nil
	}
	if err != nil {
		return seal{}, false, err
	}
	s, ok := decodeSeal(b, &f.fileHeader)
	return s, ok, nil
}

// replayFooter applies what the footer tells. An error that is errFormat means
// that the footer is not usable, and nothing was applied.
func (l *Log) replayFooter(f *logFile, s *seal) error {
	st, err := f.f.Stat()
	if err != nil {
		return fmt.Errorf("raftlog: %s: %w", f.path, err)
	}
	if s.footerOff+s.footerLen > st.Size() {
		return fmt.Errorf("%w: file ends before its footer", errFormat)
	}
	b := make([]byte, s.footerLen)
	if err := f.readAt(b, s.footerOff); err != nil {
		if errors.Is(err, ErrCorrupt) {
			return fmt.Errorf("%w: %w", errFormat, err)
		}
		return err
	}
	if checksum(b) != s.footerCRC {
		return fmt.Errorf("%w: footer checksum", errFormat)
	}
	var frames []footFrame
	last, err := decodeFooter(b, f.firstLSN, s.footerOff, func(fr *footFrame) error {
		frames = append(frames, *fr)
		return nil
	})
	if err == nil && last != s.lastLSN {
		err = fmt.Errorf("%w: footer ends with LSN %d, seal says %d", errFormat, last, s.lastLSN)
	}
	if err != nil {
		return err
	}
	for i := range frames {
		fr := &frames[i]
		if !fr.read {
			l.apply(f, &fr.frame)
			continue
		}
		full, err := f.readFrame(fr.off, fr.size, false)
		if err == nil && (full.lsn != fr.lsn || full.replica != fr.replica) {
			err = f.corrupt(fr.off, fmt.Sprintf("frame %d of replica %d where %d of replica %d belongs", full.lsn, full.replica, fr.lsn, fr.replica))
		}
		switch {
		case err == nil:
			l.apply(f, &full)
		case !errors.Is(err, ErrCorrupt):
			return err
		case fr.size == frameHeaderBytes: // no body: a remove record, void anyway, and the footer names who
			l.apply(f, &frame{kind: kindRemove, replica: fr.replica, group: fr.group})
		default:
			l.applyDamage(f, fr.group, fr.replica, err)
		}
	}
	f.end = s.footerOff
	l.sawLSN(s.lastLSN)
	return nil
}

// sawLSN notes an LSN that is part of the log.
func (l *Log) sawLSN(lsn uint64) {
	l.w.lsn = max(l.w.lsn, lsn)
	l.durable.Store(max(l.durable.Load(), lsn))
}

// replayScan reads f frame by frame. Bad frames up to durable are damage. Behind
// it, in a closed file, everything is what an earlier recovery dropped; in the
// last file the first bad frame is the torn end.
func (l *Log) replayScan(f *logFile, durable uint64, closed bool) error {
	l.recovery.Scanned++
	data, err := f.readAll()
	if err != nil {
		return err
	}
	res := scan(data, &f.fileHeader)
	cut := durable // the last LSN to keep
	if !closed {
		durable = max(durable, res.durable)
		cut = ^uint64(0)
	}
	bad := res.bad
	kept := uint64(0)
	for i := range res.frames {
		fr := &res.frames[i]
		for ; len(bad) > 0 && bad[0].lsn < fr.lsn && bad[0].lsn <= durable; bad = bad[1:] {
			if err := l.damageAt(f, &bad[0]); err != nil {
				return err
			}
		}
		if fr.lsn > cut || (len(bad) > 0 && bad[0].lsn < fr.lsn) {
			break
		}
		l.apply(f, fr)
		kept, f.end = fr.lsn, fr.end()
	}
	for ; len(bad) > 0 && bad[0].lsn <= durable; bad = bad[1:] {
		if err := l.damageAt(f, &bad[0]); err != nil {
			return err
		}
		kept = max(kept, bad[0].lsn)
	}
	l.sawLSN(max(kept, f.prevLast))
	l.w.lsn = max(l.w.lsn, res.lastLSN(), res.bad[len(res.bad)-1].lsn, f.firstLSN-1)
	if !closed && len(bad) > 0 {
		l.noteTorn(f, &res, &bad[0])
	}
	return nil
}

// noteTorn reports a torn end at spot, unless the log just ends there.
func (l *Log) noteTorn(f *logFile, res *scanResult, spot *badSpot) {
	dropped := 0
	for i := range res.frames {
		if res.frames[i].lsn > spot.lsn {
			dropped++
		}
	}
	if !spot.started && dropped == 0 {
		return
	}
	l.recovery.TornFile, l.recovery.TornAt, l.recovery.TornFrames = f.path, spot.off, dropped
	l.log.Info("raftlog ends torn, dropped what was never acknowledged", "file", f.path, "offset", spot.off, "lsn", spot.lsn, "frames", dropped)
}

// readAll reads a file as far as it can have frames.
func (f *logFile) readAll() ([]byte, error) {
	st, err := f.f.Stat()
	if err != nil {
		return nil, fmt.Errorf("raftlog: %s: %w", f.path, err)
	}
	b := make([]byte, max(0, min(st.Size(), f.size)))
	if err := f.readAt(b, 0); err != nil {
		return nil, err
	}
	return b, nil
}

// damageAt handles a bad frame that was durable once: its replica is quarantined
// if the frame's header tells it, else nobody can be trusted.
func (l *Log) damageAt(f *logFile, spot *badSpot) error {
	err := f.corrupt(spot.off, spot.what)
	if !spot.told {
		return err
	}
	if spot.kind == kindRemove { // void anyway, and it names who
		l.apply(f, &frame{kind: kindRemove, replica: spot.replica, group: spot.group})
		return nil
	}
	l.applyDamage(f, spot.group, spot.replica, err)
	return nil
}

// applyDamage marks a replica as damaged, from the place in the log on where the damage is.
func (l *Log) applyDamage(f *logFile, group ident.GroupID, id ident.ReplicaID, err error) {
	if id == 0 { // a node record: a later one makes good for it
		l.w.nodeDamage = err
		return
	}
	l.apply(f, &frame{kind: kindRelocate, flags: hasDamage, replica: id, group: group, damage: err.Error()})
}

// settle checks each replica as a whole, once all files are replayed.
func (l *Log) settle() {
	for _, r := range l.all() {
		r.encLast = r.last()
		err := r.damage
		if err == nil {
			if err = r.check(); err != nil {
				// The evidence is what is missing, and stays missing: nothing to pin.
				r.damage = err
			}
		}
		if err != nil {
			l.recovery.Quarantined = append(l.recovery.Quarantined, Damage{Replica: r.id, Group: r.group, Err: err})
			l.log.Error("raftlog replica quarantined", "replica", r.id, "group", r.group, "err", err)
		}
	}
	slices.SortFunc(l.recovery.Quarantined, func(a, b Damage) int { return cmp.Compare(a.Replica, b.Replica) })
}

// check holds what must be true of an undamaged replica after recovery.
func (r *replica) check() error {
	if r.creation == nil {
		return damageError(fmt.Sprintf("raftlog: corrupt: replica %d: no creation record", r.id))
	}
	next := r.loggedBase + 1
	for i := range r.refs {
		e := &r.refs[i]
		if e.first > next {
			return damageError(fmt.Sprintf("raftlog: corrupt: replica %d: entries %d to %d are missing", r.id, next, e.first-1))
		}
		next = e.last() + 1
	}
	if r.hs.Commit > r.last() {
		return damageError(fmt.Sprintf("raftlog: corrupt: replica %d: commit %d, last index %d", r.id, r.hs.Commit, r.last()))
	}
	return nil
}
