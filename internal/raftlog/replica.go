package raftlog

import (
	"sort"
	"sync"

	"chronik/internal/ident"
)

// item is a record of a replica of which only the latest counts; the file that
// holds it cannot be freed.
type item int

const (
	itemCreation item = iota
	itemBase
	itemHardState
	itemInstall
	itemDamage
	items
)

// entryRef says where a run of entries of one term is. Several may refer to one
// frame, and one to a part of a frame.
type entryRef struct {
	first ident.Index
	term  ident.Term
	file  *logFile
	off   uint32 // of the frame
	size  uint32 // of the frame
	n     uint32
	bytes uint32 // counted in file.live
}

func (e *entryRef) last() ident.Index { return e.first + ident.Index(e.n) - 1 }

// replica is what the log knows of one replica. The sync loop changes it, under
// mu as far as readers look; Trim moves base, under mu.
type replica struct {
	id    ident.ReplicaID
	group ident.GroupID
	view  View

	mu sync.Mutex
	// base is the index before the first one kept, baseTerm its term. Trim moves
	// it ahead of loggedBase, which is what the durable records say; refs follow
	// loggedBase. Invariant: loggedBase <= base <= last.
	base     ident.Index
	baseTerm ident.Term
	// refs, by index, without a gap from loggedBase+1 on (while replaying there may be gaps).
	refs    []entryRef
	bytes   int64
	hs      HardState
	install *Install
	cache   []Entry // the last entries: contiguous, up to last, maybe empty
	removed bool
	// trimQueued: the replica waits in Log.trims.
	trimQueued bool
	creation   *Creation // nil while replaying, or if its record is damaged
	damage     error     // non-nil: quarantined
	// top is the last index when damage was found in the open log: what is lost then must
	// not pull the last index back under who works with it. After a restart it is as replayed.
	top ident.Index

	// The rest belongs to the sync loop alone.

	loggedBase ident.Index
	// encLast is the last index including what the batch at work adds.
	encLast ident.Index
	at      [items]*logFile
	cost    [items]int64
	gone    bool // a remove record is encoded
}

// last returns the last index. mu is held, or the caller is the sync loop.
func (r *replica) last() ident.Index {
	if n := len(r.refs); n > 0 {
		return max(r.refs[n-1].last(), r.top)
	}
	return max(r.base, r.top)
}

// find returns the position of the first ref that ends at or after i.
func (r *replica) find(i ident.Index) int {
	return sort.Search(len(r.refs), func(k int) bool { return r.refs[k].last() >= i })
}

// pin moves item it, of about cost bytes, to file f (nil: gives it up).
func (r *replica) pin(it item, f *logFile, cost int64) {
	if old := r.at[it]; old != nil {
		old.pins--
		old.live -= r.cost[it]
	}
	r.at[it], r.cost[it] = f, cost
	if f != nil {
		f.pins++
		f.live += cost
		f.touched[r] = struct{}{}
	}
}

func (r *replica) dropRef(e *entryRef) {
	e.file.pins--
	e.file.live -= int64(e.bytes)
	r.bytes -= int64(e.bytes)
}

func (r *replica) addRef(e entryRef) entryRef {
	e.file.pins++
	e.file.live += int64(e.bytes)
	e.file.touched[r] = struct{}{}
	r.bytes += int64(e.bytes)
	return e
}

// truncate drops all entries from i on.
func (r *replica) truncate(i ident.Index) {
	k := len(r.refs)
	for k > 0 && r.refs[k-1].first >= i {
		k--
		r.dropRef(&r.refs[k])
	}
	clear(r.refs[k:])
	r.refs = r.refs[:k]
	if k > 0 && r.refs[k-1].last() >= i {
		r.refs[k-1].n = uint32(i - r.refs[k-1].first)
	}
}

// dropTo drops the refs that end at or before base.
func (r *replica) dropTo(base ident.Index) {
	k := 0
	for k < len(r.refs) && r.refs[k].last() <= base {
		r.dropRef(&r.refs[k])
		r.refs[k] = entryRef{}
		k++
	}
	r.refs = r.refs[k:]
}

// replace gives entries lo..hi new places without touching the others.
func (r *replica) replace(lo, hi ident.Index, places []entryRef) {
	out := make([]entryRef, 0, len(r.refs)+len(places)+1)
	i := 0
	for ; i < len(r.refs) && r.refs[i].first < lo; i++ {
		e := r.refs[i]
		if e.last() < lo {
			out = append(out, e)
			continue
		}
		if e.last() > hi { // both ends stay: the second becomes a ref of its own
			tail := e
			tail.first, tail.n, tail.bytes = hi+1, uint32(e.last()-hi), 0
			e.n = uint32(lo - e.first)
			out = append(append(append(out, e), places...), r.addRef(tail))
			r.refs = append(out, r.refs[i+1:]...)
			return
		}
		e.n = uint32(lo - e.first)
		out = append(out, e)
	}
	out = append(out, places...)
	for ; i < len(r.refs) && r.refs[i].first <= hi; i++ {
		e := r.refs[i]
		if e.last() <= hi {
			r.dropRef(&e)
			continue
		}
		e.n = uint32(e.last() - hi)
		e.first = hi + 1
		out = append(out, e)
	}
	r.refs = append(out, r.refs[i:]...)
}

// term answers for base and every entry kept. mu is held.
func (r *replica) term(i ident.Index) (ident.Term, error) {
	switch {
	case i < r.base:
		return 0, ErrCompacted
	case i == r.base:
		return r.baseTerm, nil
	case i > r.last():
		return 0, ErrUnavailable
	}
	k := r.find(i)
	if k == len(r.refs) || r.refs[k].first > i {
		return 0, ErrCorrupt // a gap: only in a quarantined replica
	}
	return r.refs[k].term, nil
}
