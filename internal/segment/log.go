package segment

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"

	"chronik/internal/vfs"
)

// Errors. They come wrapped with the place.
var (
	// ErrCorrupt: a file's bytes are not what was written. The message names file
	// and byte. Nothing is removed: the replica is quarantined.
	ErrCorrupt = errors.New("corrupt segment")
	// ErrOutOfRange: the offset lies before the log's start or behind its end.
	ErrOutOfRange = errors.New("offset out of range")
	// ErrClosed: the log is closed.
	ErrClosed = errors.New("segment log closed")
)

// Limits of segments.
const (
	// MaxSegmentBytes is the largest size a segment is rolled at.
	MaxSegmentBytes = math.MaxInt32
	// MaxSegments is how many segments the limits of size and age make. A log that has them goes on in
	// the last, up to MaxSegmentBytes: a checkpoint names at most snapshot.MaxFiles (65,536), and
	// without one the Raft log is never trimmed again. Part of the format, like the defaults below.
	MaxSegments = 60_000
	// DefaultSegmentBytes and DefaultSegmentMs are the limits before SetLimits.
	// They are part of the format: changed, replicas would roll apart.
	DefaultSegmentBytes = 1 << 30
	DefaultSegmentMs    = 7 * 24 * 3600 * 1000
)

// Options says where a log lives and what a checkpoint knows of it.
type Options struct {
	FS  vfs.FS
	Dir string
	// Segments are the checkpoint's, in order of offset; none is an empty log.
	Segments []Info
	// StartOffset is the first readable offset; NextOffset the one the next batch
	// gets, which must agree with the last segment if there is one.
	StartOffset int64
	NextOffset  int64
	// SegmentBytes and SegmentMs are the limits as of the checkpoint; 0 = the defaults.
	SegmentBytes int64
	SegmentMs    int64
	// Handles is the node's cache of open files; nil = an own one.
	Handles *Handles
}

// Log is one partition's applied batches. Stage, StageStart, Flush, Discard,
// SetLimits, Limits, DropBefore, Capture and Close belong to one goroutine, the
// applier. Everything else is safe from any goroutine at any time and holds no
// lock across I/O.
type Log struct {
	fs      vfs.FS
	dir     string
	handles *Handles

	// list is never empty; its last segment is the active one, which may be empty
	// and then has no file. The applier replaces the list, never changes one.
	list  atomic.Pointer[[]*segment]
	start atomic.Int64 // first readable offset

	maxSegments         int     // MaxSegments, but for tests
	limitBytes, limitMs int64   // the applier's
	stage               staging // the applier's

	created   atomic.Uint64 // files created here so far
	writeBack atomic.Bool   // a write-back goroutine runs
	closing   atomic.Bool
	wg        sync.WaitGroup

	// syncMu serializes Pin.Sync. It guards dirSynced and failed.
	syncMu    sync.Mutex
	dirSynced uint64 // created as of the last directory sync
	failed    error  // the first failed sync; never retried

	mu        sync.Mutex // guards what follows; never held across I/O
	seq       uint64     // counts captures and drops
	publishes uint64     // highest seq of a published capture
	pins      map[*Pin]struct{}
	drops     []*segment // dropped and not yet unlinked
}

// Open opens the log of a checkpoint. What lies behind a segment's length, and
// segment files the checkpoint does not name, are remains of a crash: the former
// is written over, the latter are removed. A missing or short file, or a bad
// batch at the end of the last one, is ErrCorrupt and changes nothing on disk.
func Open(o Options) (*Log, error) {
	if o.Handles == nil {
		o.Handles = NewHandles(0)
	}
	l := &Log{fs: o.FS, dir: o.Dir, handles: o.Handles, pins: make(map[*Pin]struct{}), maxSegments: MaxSegments}
	l.SetLimits(o.SegmentBytes, o.SegmentMs)
	if err := checkInfos(&o); err != nil {
		return nil, fmt.Errorf("segments in %s: %w", o.Dir, err)
	}
	if err := vfs.MkdirAllSync(o.FS, o.Dir); err != nil {
		return nil, fmt.Errorf("segments in %s: %w", o.Dir, err)
	}
	list := make([]*segment, 0, len(o.Segments)+1)
	for _, i := range o.Segments {
		s, err := l.openSegment(i)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	if len(list) == 0 {
		list = append(list, newSegment(o.FS, o.Dir, o.NextOffset))
	} else if err := l.openActive(list[len(list)-1]); err != nil {
		return nil, err
	}
	if err := l.removeUnknown(list); err != nil {
		return nil, fmt.Errorf("segments in %s: %w", o.Dir, err)
	}
	l.start.Store(o.StartOffset)
	l.list.Store(&list)
	return l, nil
}

// checkInfos verifies that the segments follow each other without a gap.
func checkInfos(o *Options) error {
	for k, i := range o.Segments {
		if i.BaseOffset < 0 || i.NextOffset <= i.BaseOffset || i.Size <= 0 {
			return fmt.Errorf("%w: checkpoint: segment %+v", ErrCorrupt, i)
		}
		if k > 0 && o.Segments[k-1].NextOffset != i.BaseOffset {
			return fmt.Errorf("%w: checkpoint: no segment for offset %d", ErrCorrupt, o.Segments[k-1].NextOffset)
		}
	}
	base := o.NextOffset
	if n := len(o.Segments); n > 0 {
		base = o.Segments[0].BaseOffset
		if next := o.Segments[n-1].NextOffset; o.NextOffset != next {
			return fmt.Errorf("%w: checkpoint: next offset %d, the segments end at %d", ErrCorrupt, o.NextOffset, next)
		}
	}
	if o.StartOffset < base || o.StartOffset > o.NextOffset {
		return fmt.Errorf("%w: checkpoint: start offset %d of [%d,%d]", ErrCorrupt, o.StartOffset, base, o.NextOffset)
	}
	return nil
}

func (l *Log) openSegment(i Info) (*segment, error) {
	s := newSegment(l.fs, l.dir, i.BaseOffset)
	st, err := l.fs.Stat(s.path)
	if err != nil {
		if isNotExist(err) {
			err = corrupt(s.path, 0, err)
		}
		return nil, err
	}
	if st.Size() < i.Size {
		return nil, corrupt(s.path, st.Size(), fmt.Errorf("file ends, the checkpoint says %d bytes", i.Size))
	}
	s.pub.Store(&published{size: i.Size, next: i.NextOffset, firstTime: i.FirstTimestamp, maxTime: i.MaxTimestamp, indexOnDisk: true})
	s.synced.Store(i.Size)
	s.started = i.Size
	return s, nil
}

// openActive loads the index of the segment that is appended to, and proves its end.
func (l *Log) openActive(s *segment) error {
	f, err := l.fs.Open(s.path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	p := s.pub.Load()
	x, indexed := l.loadIndex(s, p.size)
	last, err := extendIndex(f, s, x, p)
	if err != nil && indexed > 0 {
		// The index may be what is wrong: only the batches decide.
		x, indexed = freshIndexer(s), 0
		last, err = extendIndex(f, s, x, p)
	}
	if err != nil {
		return err
	}
	if err := verifyBatch(f, s.path, last, p.size); err != nil {
		return err
	}
	s.indexed.Store(indexed)
	s.pub.Store(&x.published)
	return nil
}

// loadIndex returns what the index file knows of the segment's first size bytes.
func (l *Log) loadIndex(s *segment, size int64) (x *indexer, indexed int64) {
	x = freshIndexer(s)
	index, covered, next, err := readIndexFile(l.fs, l.idxPath(s), s.base)
	if err != nil {
		return x, 0
	}
	if covered > size { // written for a checkpoint that was not published
		n := sort.Search(len(index), func(i int) bool { return index[i].pos >= size })
		index = index[:n:n]
		covered, next = index[n-1].pos, index[n-1].offset
	}
	x.index, x.size, x.next = index, covered, next
	return x, covered
}

func freshIndexer(s *segment) *indexer {
	return &indexer{published{next: s.base, firstTime: math.MinInt64, maxTime: math.MinInt64}}
}

// extendIndex walks from the last entry of x to the end of p, adds what is
// missing to x and returns the position of the last batch.
func extendIndex(f vfs.File, s *segment, x *indexer, p *published) (last int64, err error) {
	covered := x.size
	from := entry{offset: s.base}
	if n := len(x.index); n > 0 {
		from = x.index[n-1]
	}
	sc := newScanner(f, s.path, from.pos, p.size, from.offset, 64<<10)
	maxTime := from.maxBefore
	if len(x.index) == 0 {
		maxTime = math.MinInt64
	}
	for sc.pos < p.size {
		if err := sc.next(); err != nil {
			return 0, err
		}
		last = sc.start
		if sc.start >= covered {
			x.maxTime = maxTime
			x.add(sc.h.BaseOffset(), sc.h.NextOffset(), sc.h.MaxTimestamp(), int64(sc.h.Size()))
		}
		maxTime = max(maxTime, sc.h.MaxTimestamp())
	}
	if sc.want != p.next {
		return 0, corrupt(s.path, last, fmt.Errorf("ends at offset %d, the checkpoint says %d", sc.want, p.next))
	}
	x.size, x.next, x.firstTime, x.maxTime = p.size, p.next, p.firstTime, p.maxTime
	return last, nil
}

// verifyBatch checks the CRC of the batch from pos to end.
func verifyBatch(f vfs.File, path string, pos, end int64) error {
	b := make([]byte, end-pos)
	if n, err := f.ReadAt(b, pos); n < len(b) {
		return readError(path, pos, len(b), n, err)
	}
	return checkCRC(path, pos, b)
}

// removeUnknown removes what is no file of the checkpoint. The removals need no
// directory sync: after a crash they are made again.
func (l *Log) removeUnknown(list []*segment) error {
	names, err := vfs.List(l.fs, l.dir)
	if err != nil {
		return err
	}
	known := make(map[string]bool, 2*len(list))
	for _, s := range list {
		if s.pub.Load().size > 0 {
			known[s.name], known[idxName(s.name)] = true, true
		}
	}
	for _, name := range names {
		ours := strings.HasSuffix(name, segSuffix) || strings.HasSuffix(name, idxSuffix) || strings.HasSuffix(name, idxSuffix+tmpSuffix)
		if ours && !known[name] {
			if err := l.fs.Remove(l.fs.PathJoin(l.dir, name)); err != nil && !isNotExist(err) {
				return err
			}
		}
	}
	return nil
}

func (l *Log) idxPath(s *segment) string { return l.fs.PathJoin(l.dir, idxName(s.name)) }

// SetLimits sets when segments roll: before a batch that would make one larger
// than segmentBytes, or whose max timestamp is more than segmentMs after that of the
// segment's first batch. 0 or less is the default. Replicas roll at the same
// offsets because both come from entries of the log.
func (l *Log) SetLimits(segmentBytes, segmentMs int64) {
	if segmentBytes <= 0 {
		segmentBytes = DefaultSegmentBytes
	}
	if segmentMs <= 0 {
		segmentMs = DefaultSegmentMs
	}
	l.limitBytes, l.limitMs = min(segmentBytes, MaxSegmentBytes), segmentMs
}

// Limits is what SetLimits set.
func (l *Log) Limits() (segmentBytes, segmentMs int64) { return l.limitBytes, l.limitMs }

func (l *Log) active() *segment {
	list := *l.list.Load()
	return list[len(list)-1]
}

// NextOffset is the offset the next batch gets.
func (l *Log) NextOffset() int64 { return l.active().pub.Load().next }

// StartOffset is the first readable offset.
func (l *Log) StartOffset() int64 { return l.start.Load() }

// Size is the number of bytes of all segments.
func (l *Log) Size() int64 {
	var n int64
	for _, s := range *l.list.Load() {
		n += s.pub.Load().size
	}
	return n
}

// Segments lists the segments that have a file.
func (l *Log) Segments() []Info { return infos(*l.list.Load(), nil) }

// infos describes list; last stands for the last segment's view if not nil.
func infos(list []*segment, last *published) []Info {
	out := make([]Info, 0, len(list))
	for k, s := range list {
		i := s.info()
		if k == len(list)-1 && last != nil {
			i = Info{BaseOffset: s.base, NextOffset: last.next, Size: last.size, FirstTimestamp: last.firstTime, MaxTimestamp: last.maxTime}
		}
		if i.Size > 0 {
			out = append(out, i)
		}
	}
	return out
}

// find returns the segment that holds offset: the last one that starts at or before it.
func find(list []*segment, offset int64) int {
	return max(sort.Search(len(list), func(i int) bool { return list[i].base > offset })-1, 0)
}

// Close closes the files. Reads that run end as they would have; pins stay valid
// to release. No other call may follow.
func (l *Log) Close() error {
	l.Discard()
	l.closing.Store(true)
	l.wg.Wait()
	l.mu.Lock()
	all := append(slices.Clone(*l.list.Load()), l.drops...)
	l.drops = nil
	l.mu.Unlock()
	for _, s := range all {
		if w := s.w.Swap(nil); w != nil {
			w.release()
		}
		l.handles.forget(s, nil)
	}
	return nil
}
