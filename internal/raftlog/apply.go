package raftlog

import "chronik/internal/ident"

// damageError is a replica's damage as recorded. It is an ErrCorrupt.
type damageError string

func (e damageError) Error() string { return string(e) }

func (e damageError) Is(target error) bool { return target == ErrCorrupt }

// addReplica makes an empty replica known to the sync loop.
func (l *Log) addReplica(id ident.ReplicaID, group ident.GroupID) *replica {
	r := &replica{id: id, group: group}
	r.view = View{l: l, r: r}
	l.repMu.Lock()
	l.replicas[id] = r
	l.repMu.Unlock()
	return r
}

// apply moves the index by one durable frame of file f. Live and in recovery it is
// the same step; in recovery the replica may be unknown and entries may have gaps,
// because older files are gone. Called on the sync loop (or by Open).
func (l *Log) apply(f *logFile, fr *frame) {
	if fr.kind == kindNode {
		l.repMu.Lock()
		l.node = fr.blob
		l.repMu.Unlock()
		l.w.nodeDamage = nil
		l.pinNode(f)
		return
	}
	r := l.replicas[fr.replica]
	if r == nil {
		r = l.addReplica(fr.replica, fr.group)
	}
	if fr.kind == kindRemove {
		l.applyRemove(r)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.group = fr.group
	if fr.creation != nil {
		r.creation = fr.creation
		r.pin(itemCreation, f, frameHeaderBytes+28+int64(len(r.creation.Info)))
		if fr.kind == kindCreate {
			l.rebase(r, f, fr.creation.First, fr.creation.FirstTerm)
		}
		if r.at[itemHardState] == nil { // what the creation implies
			r.hs = HardState{Term: fr.creation.FirstTerm, Commit: fr.creation.First}
		}
	}
	if fr.install != nil {
		if fr.kind == kindAppend { // voids everything earlier
			r.truncate(0)
			l.w.cache.clear(r)
			r.base, r.loggedBase = 0, 0
			l.rebase(r, f, fr.install.Index, fr.install.Term)
		}
		r.install = fr.install
		r.pin(itemInstall, f, 28+int64(len(r.install.ConfState)))
	}
	if fr.flags&hasBase != 0 {
		l.rebase(r, f, fr.base, fr.baseTerm)
	}
	if fr.flags&hasHardState != 0 {
		r.hs = fr.hs
		r.pin(itemHardState, f, 24)
	}
	if fr.flags&hasDamage != 0 {
		r.damage = damageError(fr.damage)
		r.pin(itemDamage, f, 4+int64(len(fr.damage)))
	}
	if fr.n > 0 {
		l.applyEntries(r, f, fr)
	}
}

// rebase moves the start of the log as the records say, and what readers see if it is behind.
func (l *Log) rebase(r *replica, f *logFile, base ident.Index, term ident.Term) {
	r.pin(itemBase, f, 16)
	if base < r.loggedBase {
		return
	}
	r.loggedBase = base
	if base >= r.base {
		r.base, r.baseTerm = base, term
	}
	r.dropTo(base)
	l.w.cache.dropTo(r, base)
}

func (l *Log) applyEntries(r *replica, f *logFile, fr *frame) {
	last := fr.first + ident.Index(fr.n) - 1
	places := make([]entryRef, 0, maxFooterSpans)
	if fr.kind == kindAppend {
		r.truncate(fr.first)
		places = r.refs
	}
	for _, s := range fr.spans {
		places = append(places, r.addRef(entryRef{
			first: s.first, term: s.term, file: f, off: uint32(fr.off), size: uint32(fr.size), n: s.n, bytes: s.bytes,
		}))
	}
	if fr.kind == kindRelocate { // spans are empty if the entries are lost
		r.replace(fr.first, last, places)
		r.dropTo(r.loggedBase)
		return
	}
	r.refs = places
	if len(fr.entries) > 0 {
		l.w.cache.add(r, fr.entries, fr.own)
	}
}

func (l *Log) applyRemove(r *replica) {
	l.repMu.Lock()
	delete(l.replicas, r.id)
	l.repMu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removed, r.gone = true, true
	r.truncate(0)
	r.refs = nil
	l.w.cache.clear(r)
	for it := range items {
		r.pin(it, nil, 0)
	}
}

func (l *Log) pinNode(f *logFile) {
	cost := frameHeaderBytes + int64(len(l.node))
	if old := l.w.nodeAt; old != nil {
		old.pins--
		old.live -= l.w.nodeCost
	}
	l.w.nodeAt, l.w.nodeCost = f, cost
	f.pins++
	f.live += cost
}
