package partition

import (
	"errors"
	"slices"
	"testing"
	"time"

	"chronik/internal/ident"
	"chronik/internal/raftgroup"
	"chronik/internal/record"
	"chronik/internal/segment"
	"chronik/internal/snapshot"
	"chronik/internal/vfs"
)

// TestEpochIsTheEntrysTerm: a batch's leader epoch is the term of its entry, not
// the one that the replica follows by the time it applies it (correctness rule 1).
func TestEpochIsTheEntrysTerm(t *testing.T) {
	sm := open(t, vfs.NewCrashableMem(), "p", nil, nil)
	defer func() { _ = sm.Close() }()
	p := New(&fakeReplica{sm: sm, leading: true}, sm)
	sm.RoleChanged(1, 9, true)
	terms := []ident.Term{2, 2, 5}
	var entries []raftgroup.Entry
	for k, term := range terms {
		entries = append(entries, raftgroup.Entry{Index: ident.Index(k + 2), Term: term, Data: encodeEntry(KindBatch, 0, plain(t, 1, 1))})
	}
	if _, err := sm.Apply(entries); err != nil {
		t.Fatal(err)
	}
	for k, term := range terms {
		res, err := p.Read(int64(k), 1)
		if err != nil {
			t.Fatal(err)
		}
		if h, _ := record.Header(res.Data); h.PartitionLeaderEpoch() != int32(term) {
			t.Errorf("batch %d has epoch %d, its entry term %d", k, h.PartitionLeaderEpoch(), term)
		}
	}
	if epoch, end := p.EpochEndOffset(4); epoch != 2 || end != 2 {
		t.Errorf("epoch 4: %d ends at %d", epoch, end)
	}
}

// TestLogStartMovesInApplyOnly: retention and DeleteRecords propose, and nothing
// moves or goes before the entry is applied, on the leader neither (correctness rule 1).
func TestLogStartMovesInApplyOnly(t *testing.T) {
	p, r := newPartition(t)
	if err := p.SetConfig(background(), Config{SegmentBytes: 1}); err != nil {
		t.Fatal(err)
	}
	for k := range 4 {
		mustAppend(t, p, plain(t, 1, int64(1000*k)))
	}
	before := p.Stats()
	r.hold = true
	if start, ok := p.Retain(time.UnixMilli(3500), Retention{Ms: 2000, Bytes: -1}); !ok || start != 2 {
		t.Fatalf("proposed %d (%v)", start, ok)
	}
	if now := p.Stats(); now != before {
		t.Fatalf("proposed is not applied: %+v, before %+v", now, before)
	}
	if res, err := p.Read(0, 1); err != nil || len(res.Data) == 0 {
		t.Fatalf("read before the entry is applied: %v", err)
	}
	r.release()
	if now := p.Stats(); now.LogStartOffset != 2 || now.Segments != 2 {
		t.Fatalf("%+v", now)
	}
}

// TestPipelinedBatchesAreJudgedInApply: an idempotent producer has five batches
// in flight before the first is applied. All are proposed, and apply alone finds the
// repeat and the gap (correctness rule 3).
func TestPipelinedBatchesAreJudgedInApply(t *testing.T) {
	p, r := newPartition(t)
	r.hold = true
	var got []AppendResult
	seqs := []int32{0, 1, 2, 1, 4, 3}
	for _, seq := range seqs {
		p.Append(build(t, 1, 10, 1, 42, 0, seq), AppendOptions{Acks: -1}, func(r AppendResult) { got = append(got, r) })
	}
	if len(r.held) != len(seqs) || len(got) != 0 {
		t.Fatalf("%d of %d batches proposed, %d answered: %+v", len(r.held), len(seqs), len(got), got)
	}
	r.release()
	type answer struct {
		offset int64
		err    error
	}
	want := []answer{{0, nil}, {1, nil}, {2, nil}, {1, ErrDuplicateSequence}, {-1, ErrOutOfOrderSequence}, {3, nil}}
	if !slices.EqualFunc(got, want, func(g AppendResult, w answer) bool {
		return g.BaseOffset == w.offset && errors.Is(g.Err, w.err)
	}) {
		t.Fatalf("%+v", got)
	}
}

// TestCheckpointHoldsAllSegments: those that limits make, and 8 TiB of such as are as large as can be.
func TestCheckpointHoldsAllSegments(t *testing.T) {
	if most := segment.MaxSegments + 8<<40/segment.MaxSegmentBytes; most > snapshot.MaxFiles {
		t.Errorf("%d segments, a checkpoint names %d", most, snapshot.MaxFiles)
	}
}
