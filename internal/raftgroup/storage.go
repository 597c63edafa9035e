package raftgroup

import (
	"errors"
	"fmt"
	"math"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"chronik/internal/ident"
	"chronik/internal/raftlog"
)

// logView is what a group reads of the shared log (raftlog.View).
type logView interface {
	FirstIndex() ident.Index
	LastIndex() ident.Index
	Term(i ident.Index) (ident.Term, error)
	Entries(lo, hi ident.Index, maxBytes int64) ([]raftlog.Entry, error)
}

// storage is raft's Storage over one replica's view of the raftlog. All
// methods run on the replica's raft worker, inside Step or Ready.
//
// It keeps its own first index: the raftlog trims when it likes, and the index
// must not move between two questions of one Step. Invariant: first is at least
// the raftlog's, and the term before first is always known.
type storage struct {
	view logView
	// first is the lowest index whose entry may be asked for. Moved by trimmed and installed.
	first ident.Index
	// firstTerm is the term of the entry before first.
	firstTerm ident.Term
	hs        *pb.HardState
	cs        *pb.ConfState
	// snapshot answers raft's wish to send a snapshot: O(1), no I/O.
	snapshot func() (*pb.Snapshot, error)
}

// InitialState implements raft.Storage.
func (s *storage) InitialState() (*pb.HardState, *pb.ConfState, error) { return s.hs, s.cs, nil }

// FirstIndex implements raft.Storage.
func (s *storage) FirstIndex() (uint64, error) { return uint64(s.first), nil }

// LastIndex implements raft.Storage.
func (s *storage) LastIndex() (uint64, error) {
	return uint64(max(s.view.LastIndex(), s.first-1)), nil
}

// Term implements raft.Storage.
func (s *storage) Term(i uint64) (uint64, error) {
	switch {
	case ident.Index(i) == s.first-1:
		return uint64(s.firstTerm), nil
	case ident.Index(i) < s.first:
		return 0, raft.ErrCompacted
	}
	t, err := s.view.Term(ident.Index(i))
	return uint64(t), storageError(err)
}

// Entries implements raft.Storage.
func (s *storage) Entries(lo, hi, maxSize uint64) ([]*pb.Entry, error) {
	if ident.Index(lo) < s.first {
		return nil, raft.ErrCompacted
	}
	es, err := s.view.Entries(ident.Index(lo), ident.Index(hi), int64(min(maxSize, math.MaxInt64)))
	if err != nil {
		return nil, storageError(err)
	}
	if len(es) == 0 {
		return nil, raft.ErrUnavailable
	}
	return toRaft(es), nil
}

// Snapshot implements raft.Storage.
func (s *storage) Snapshot() (*pb.Snapshot, error) { return s.snapshot() }

// trimmed moves first past to. The caller has checked that to is applied.
func (s *storage) trimmed(to ident.Index) error {
	if to < s.first {
		return nil
	}
	t, err := s.view.Term(to)
	if err != nil {
		return fmt.Errorf("term at the trim point %d: %w", to, err)
	}
	s.first, s.firstTerm = to+1, t
	return nil
}

// installed says that the log now begins after a snapshot.
func (s *storage) installed(index ident.Index, term ident.Term) {
	s.first, s.firstTerm = index+1, term
}

// storageError maps the raftlog's sentinels to raft's, which compares by ==.
func storageError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raftlog.ErrCompacted):
		return raft.ErrCompacted
	case errors.Is(err, raftlog.ErrUnavailable):
		return raft.ErrUnavailable
	}
	return err
}

// entryBuf is an entry with its fields beside it: one allocation for a run of
// entries instead of four for each.
type entryBuf struct {
	e     pb.Entry
	term  uint64
	index uint64
	typ   pb.EntryType
}

func (b *entryBuf) set(typ pb.EntryType, term, index uint64, data []byte) *pb.Entry {
	b.typ, b.term, b.index = typ, term, index
	b.e.Type, b.e.Term, b.e.Index = &b.typ, &b.term, &b.index
	if len(data) > 0 {
		b.e.Data = data
	}
	return &b.e
}

func toRaft(es []raftlog.Entry) []*pb.Entry {
	bufs := make([]entryBuf, len(es))
	out := make([]*pb.Entry, len(es))
	for i := range es {
		e := &es[i]
		out[i] = bufs[i].set(pb.EntryType(e.Type), uint64(e.Term), uint64(e.Index), e.Data)
	}
	return out
}

func toLog(es []*pb.Entry) []raftlog.Entry {
	out := make([]raftlog.Entry, len(es))
	for i, e := range es {
		out[i] = raftlog.Entry{
			Index: ident.Index(e.GetIndex()), Term: ident.Term(e.GetTerm()),
			Type: uint8(e.GetType()), Data: e.GetData(),
		}
	}
	return out
}
