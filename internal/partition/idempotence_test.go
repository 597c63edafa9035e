package partition

import (
	"errors"
	"math"
	"testing"

	"github.com/tidwall/btree"

	"chronik/internal/raftgroup"
	"chronik/internal/vfs"
)

// step is one idempotent batch and what must become of it.
type step struct {
	id    int64
	epoch int16
	seq   int32
	n     int
	at    int64 // leader time; 0: as before
	err   error
	base  int64 // the offset; the original's for a duplicate; ignored on other errors
}

// idempotence are the rules of KIP-98 as Kafka's brokers hold them, and
// correctness rule 3.
var idempotence = map[string][]step{
	"in order":                       {{seq: 0, n: 3}, {seq: 3, n: 2, base: 3}, {seq: 5, n: 1, base: 5}},
	"repeat of the last":             {{seq: 0, n: 3}, {seq: 0, n: 3, err: ErrDuplicateSequence}, {seq: 3, n: 1, base: 3}},
	"gap":                            {{seq: 0, n: 3}, {seq: 4, n: 1, err: ErrOutOfOrderSequence}, {seq: 3, n: 1, base: 3}},
	"overlap is no duplicate":        {{seq: 0, n: 3}, {seq: 1, n: 2, err: ErrOutOfOrderSequence}, {seq: 0, n: 2, err: ErrOutOfOrderSequence}},
	"unknown producer in mid-stream": {{seq: 7, n: 1, err: ErrOutOfOrderSequence}, {seq: 0, n: 1}},
	"two producers":                  {{id: 1, seq: 0, n: 1}, {id: 2, seq: 0, n: 1, base: 1}, {id: 1, seq: 1, n: 1, base: 2}, {id: 2, seq: 0, n: 1, err: ErrDuplicateSequence, base: 1}},
	"any of the last five": {
		{seq: 0, n: 1},
		{seq: 1, n: 2, base: 1},
		{seq: 3, n: 1, base: 3},
		{seq: 4, n: 1, base: 4},
		{seq: 5, n: 1, base: 5},
		{seq: 0, n: 1, err: ErrDuplicateSequence, base: 0},
		{seq: 1, n: 2, err: ErrDuplicateSequence, base: 1},
		{seq: 5, n: 1, err: ErrDuplicateSequence, base: 5},
		{seq: 6, n: 1, base: 6},
		{seq: 0, n: 1, err: ErrOutOfOrderSequence}, // the sixth last is forgotten
		{seq: 1, n: 2, err: ErrDuplicateSequence, base: 1},
	},
	"older epoch":             {{epoch: 4, seq: 0, n: 1}, {epoch: 3, seq: 0, n: 1, err: ErrInvalidProducerEpoch}, {epoch: 3, seq: 1, n: 1, err: ErrInvalidProducerEpoch}, {epoch: 4, seq: 1, n: 1, base: 1}},
	"new epoch begins at 0":   {{epoch: 4, seq: 0, n: 1}, {epoch: 5, seq: 1, n: 1, err: ErrOutOfOrderSequence}, {epoch: 4, seq: 1, n: 1, base: 1}, {epoch: 5, seq: 0, n: 1, base: 2}, {epoch: 4, seq: 2, n: 1, err: ErrInvalidProducerEpoch}},
	"new epoch is no repeat":  {{epoch: 4, seq: 0, n: 1}, {epoch: 5, seq: 0, n: 1, base: 1}, {epoch: 5, seq: 0, n: 1, err: ErrDuplicateSequence, base: 1}},
	"forgotten after max age": {{seq: 0, n: 1, at: 1000}, {seq: 1, n: 1, at: 1999, base: 1}, {seq: 2, n: 1, at: 2999, err: ErrOutOfOrderSequence}, {seq: 0, n: 1, base: 2}},
	"kept up to max age":      {{seq: 0, n: 1, at: 1000}, {seq: 1, n: 1, at: 1999, base: 1}, {seq: 0, n: 1, at: 2998, err: ErrDuplicateSequence}},
	"time never goes back":    {{seq: 0, n: 1, at: 5000}, {seq: 1, n: 1, at: 10, base: 1}, {seq: 2, n: 1, at: 5999, base: 2}},
	"no sequence":             {{seq: -1, n: 1, err: ErrOutOfOrderSequence}},
	"an epoch forgotten":      {{epoch: 9, seq: 0, n: 1, at: 1000}, {epoch: 2, seq: 0, n: 1, at: 2000, base: 1}},
}

// TestIdempotence runs each case entry by entry, all in one Apply, and with a
// reopen and an install from a checkpoint between any two entries.
func TestIdempotence(t *testing.T) {
	cfg := configEntry(0, Config{ProducerMaxAgeMs: 1000})
	for name, steps := range idempotence {
		entries := []raftgroup.Entry{{Index: 1, Term: 1, Data: cfg}}
		at := int64(0)
		for k, s := range steps {
			if s.at != 0 {
				at = s.at
			}
			entries = append(entries, raftgroup.Entry{Index: entries[k].Index + 1, Term: 1, Data: encodeEntry(KindBatch, at, build(t, s.n, 5, 1, s.id, s.epoch, s.seq))})
		}
		check := func(t *testing.T, results []raftgroup.Result) {
			t.Helper()
			for k, s := range steps {
				o := results[k+1].(*outcome)
				if !errors.Is(o.err, s.err) || (s.err == nil) != (o.err == nil) {
					t.Errorf("step %d %+v: %v", k, s, o.err)
				}
				if (s.err == nil || errors.Is(s.err, ErrDuplicateSequence)) && o.baseOffset != s.base {
					t.Errorf("step %d %+v: offset %d", k, s, o.baseOffset)
				}
			}
		}
		t.Run(name, func(t *testing.T) {
			sm := open(t, vfs.NewCrashableMem(), "p", nil, nil)
			results, err := sm.Apply(entries)
			if err != nil {
				t.Fatal(err)
			}
			check(t, results)
		})
		for _, mode := range []string{"one by one", "reopened", "installed"} {
			t.Run(name+"/"+mode, func(t *testing.T) {
				fs := vfs.NewCrashableMem()
				sm := open(t, fs, "p", nil, nil)
				var results []raftgroup.Result
				for k := range entries {
					r, err := sm.Apply(entries[k : k+1])
					if err != nil {
						t.Fatal(err)
					}
					results = append(results, r...)
					if mode == "one by one" {
						continue
					}
					blob, files := checkpoint(t, sm)
					if mode == "reopened" {
						if err := sm.Close(); err != nil {
							t.Fatal(err)
						}
						fs = fs.CrashClone(vfs.CrashCloneCfg{})
						sm = open(t, fs, "p", blob, files)
						continue
					}
					fresh := open(t, fs, "fresh", nil, nil)
					if err := fresh.Install("p", blob); err != nil {
						t.Fatal(err)
					}
					sm = fresh
				}
				check(t, results)
			})
		}
	}
}

// TestSequenceWraps: 0 follows 2^31-1, in the middle of a batch too.
func TestSequenceWraps(t *testing.T) {
	table := producers{table: btree.NewMap[int64, *producer](32), maxAge: 1000}
	table.table.Set(1, (*producer)(nil).with(0, batchRef{baseSeq: math.MaxInt32 - 3, lastSeq: math.MaxInt32 - 2}))
	sm := open(t, vfs.NewCrashableMem(), "p", nil, nil)
	sm.producers, sm.maxTime = table, 0
	apply := func(seq int32, n int) *outcome {
		t.Helper()
		r, err := sm.Apply([]raftgroup.Entry{{Index: 1, Term: 1, Data: encodeEntry(KindBatch, 0, build(t, n, 1, 1, 1, 0, seq))}})
		if err != nil {
			t.Fatal(err)
		}
		return r[0].(*outcome)
	}
	if o := apply(math.MaxInt32-1, 4); o.err != nil { // up to 2^31-1, then 0 and 1
		t.Fatal(o.err)
	}
	if o := apply(math.MaxInt32-1, 4); !errors.Is(o.err, ErrDuplicateSequence) || o.baseOffset != 0 {
		t.Fatal(o.err)
	}
	if o := apply(3, 1); !errors.Is(o.err, ErrOutOfOrderSequence) {
		t.Fatal(o.err)
	}
	if o := apply(2, 1); o.err != nil || o.baseOffset != 4 {
		t.Fatal(o.err)
	}
	if nextSequence(math.MaxInt32) != 0 {
		t.Fatal("no wrap between batches")
	}
}

// TestForgottenStaysForgotten: raising the max age does not bring back a producer
// that had expired, although nothing had removed it from the table.
func TestForgottenStaysForgotten(t *testing.T) {
	sm := open(t, vfs.NewCrashableMem(), "p", nil, nil)
	apply := func(data []byte) *outcome {
		t.Helper()
		r, err := sm.Apply([]raftgroup.Entry{{Index: 1, Term: 1, Data: data}})
		if err != nil {
			t.Fatal(err)
		}
		return r[0].(*outcome)
	}
	apply(configEntry(0, Config{ProducerMaxAgeMs: 1000}))
	apply(encodeEntry(KindBatch, 100, build(t, 1, 1, 1, 1, 0, 0)))
	sm.producers.purged = math.MaxInt64 // nothing is removed on the way
	apply(configEntry(1200, Config{ProducerMaxAgeMs: 100_000}))
	if o := apply(encodeEntry(KindBatch, 1200, build(t, 1, 1, 1, 1, 0, 1))); !errors.Is(o.err, ErrOutOfOrderSequence) {
		t.Fatalf("a forgotten producer went on: %v", o.err)
	}
}

// TestExpiredAreRemoved: the table does not grow with producers that come and go.
func TestExpiredAreRemoved(t *testing.T) {
	sm := open(t, vfs.NewCrashableMem(), "p", nil, nil)
	entries := []raftgroup.Entry{{Index: 1, Term: 1, Data: configEntry(0, Config{ProducerMaxAgeMs: 1000})}}
	for k := range int64(500) {
		entries = append(entries, raftgroup.Entry{Index: 1, Term: 1, Data: encodeEntry(KindBatch, k*100, build(t, 1, 1, 1, k, 0, 0))})
	}
	for k := range entries {
		if _, err := sm.Apply(entries[k : k+1]); err != nil {
			t.Fatal(err)
		}
	}
	if n := sm.view.Load().producers; n > 15 {
		t.Fatalf("%d producers", n)
	}
}
