package partition

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"chronik/internal/ident"
	"chronik/internal/raftgroup"
	"chronik/internal/record"
	"chronik/internal/segment"
	"chronik/internal/vfs"
)

// TestAppendRead walks a batch through: what is read is what was appended, with
// offset and epoch stamped and nothing else changed.
func TestAppendRead(t *testing.T) {
	p, r := newPartition(t)
	var want []byte
	next := int64(0)
	for k, term := range []int32{1, 1, 4, 4, 9} {
		if ok, epoch := p.Leader(); !ok || epoch > term {
			t.Fatal(ok, epoch)
		} else if epoch < term {
			r.lead(ident.Term(term))
		}
		b := plain(t, k+1, int64(100*k))
		kept := bytes.Clone(b)
		if base := mustAppend(t, p, b); base != next {
			t.Fatalf("offset %d, want %d", base, next)
		}
		if !bytes.Equal(b, kept) {
			t.Fatal("Append changed the batch")
		}
		record.Stamp(kept, next, term)
		want = append(want, kept...)
		next += int64(k + 1)
	}
	res, err := p.Read(0, 1<<20)
	if err != nil || !bytes.Equal(res.Data, want) {
		t.Fatalf("read %d bytes, want %d: %v", len(res.Data), len(want), err)
	}
	if res.HighWatermark != next || res.LastStableOffset != next || res.LogStartOffset != 0 || res.LeaderEpoch != 9 {
		t.Fatalf("%+v", res)
	}
	if p.HighWatermark() != next || p.Size() != int64(len(want)) {
		t.Fatal(p.HighWatermark(), p.Size())
	}
	if res, err := p.Read(next, 100); err != nil || len(res.Data) != 0 {
		t.Fatalf("read at the end: %d bytes, %v", len(res.Data), err)
	}
	for _, offset := range []int64{-1, next + 1} {
		if res, err := p.Read(offset, 100); !errors.Is(err, ErrOffsetOutOfRange) || res.HighWatermark != next {
			t.Fatalf("read %d: %+v %v", offset, res, err)
		}
	}
	for _, tt := range []struct {
		epoch, found int32
		end          int64
	}{{1, 1, 3}, {2, 1, 3}, {4, 4, 10}, {8, 4, 10}, {9, 9, 15}, {10, -1, -1}} {
		if found, end := p.EpochEndOffset(tt.epoch); found != tt.found || end != tt.end {
			t.Errorf("epoch %d ends: %d at %d", tt.epoch, found, end)
		}
	}
	if offset, ts, epoch, err := p.OffsetForTimestamp(201); offset != 4 || ts != 201 || epoch != 4 || err != nil {
		t.Error(offset, ts, epoch, err)
	}
	if offset, ts, epoch, err := p.MaxTimestamp(); offset != 14 || ts != 404 || epoch != 9 || err != nil {
		t.Error(offset, ts, epoch, err)
	}
	if offset, ts, epoch, err := p.OffsetForTimestamp(9999); offset != -1 || ts != -1 || epoch != -1 || err != nil {
		t.Error(offset, ts, epoch, err)
	}
	if err := p.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestAppendErrors: every outcome of the engine as the client gets it.
func TestAppendErrors(t *testing.T) {
	good := plain(t, 1, 1)
	tests := []struct {
		name  string
		setup func(*fakeReplica)
		batch []byte
		opt   AppendOptions
		want  error
		base  int64
	}{
		{"not leading", func(r *fakeReplica) { r.leading = false }, good, AppendOptions{}, ErrNotLeader, -1},
		{"leading, not serving", func(r *fakeReplica) { r.sm.RoleChanged(1, 1, false) }, good, AppendOptions{}, ErrNotLeader, -1},
		{"refused", func(r *fakeReplica) { r.refuse = raftgroup.ErrNotLeader }, good, AppendOptions{}, ErrNotLeader, -1},
		{"busy", func(r *fakeReplica) { r.refuse = raftgroup.ErrBusy }, good, AppendOptions{}, ErrBusy, -1},
		{"lost", func(r *fakeReplica) { r.refuse = raftgroup.ErrLeadershipLost }, good, AppendOptions{}, ErrLeadershipLost, -1},
		{"stopped", func(r *fakeReplica) { r.refuse = raftgroup.ErrStopped }, good, AppendOptions{}, ErrNotLeader, -1},
		{"timeout", func(r *fakeReplica) { r.refuse = raftgroup.ErrTimeout }, good, AppendOptions{}, ErrTimeout, -1},
		{"quarantined", func(r *fakeReplica) { r.refuse = raftgroup.ErrQuarantined }, good, AppendOptions{}, ErrStorage, -1},
		{"something else", func(r *fakeReplica) { r.refuse = errors.New("?") }, good, AppendOptions{}, ErrStorage, -1},
		{"too few before", func(r *fakeReplica) { r.alive = 1 }, good, AppendOptions{Acks: -1, MinISR: 2}, ErrNotEnoughReplicas, -1},
		{"too few, acks 1", func(r *fakeReplica) { r.alive = 1 }, good, AppendOptions{Acks: 1, MinISR: 2}, nil, 0},
		{"too few after", func(r *fakeReplica) { r.after = raftgroup.ErrNotEnoughReplicasAfterAppend }, good, AppendOptions{Acks: -1, MinISR: 3}, ErrNotEnoughReplicasAfterAppend, 0},
		{"a gap", func(*fakeReplica) {}, build(t, 1, 1, 1, 5, 0, 3), AppendOptions{}, ErrOutOfOrderSequence, -1},
		{"half a batch", func(*fakeReplica) {}, good[:30], AppendOptions{}, record.ErrCorrupt, -1},
		{"more than a batch", func(*fakeReplica) {}, append(bytes.Clone(good), 1), AppendOptions{}, record.ErrCorrupt, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, r := newPartition(t)
			tt.setup(r)
			res := appendTo(t, p, tt.batch, tt.opt)
			if !errors.Is(res.Err, tt.want) || (tt.want == nil) != (res.Err == nil) || res.BaseOffset != tt.base || res.LogStartOffset != 0 || res.LogAppendTimeMs != -1 {
				t.Fatalf("%+v, want %v at %d", res, tt.want, tt.base)
			}
		})
	}
	if !errors.Is(ErrLeadershipLost, ErrNotLeader) {
		t.Fatal("a client would not look for the new leader")
	}
}

// TestAppendOptions: acks=all alone asks for replicas, and a timeout becomes a deadline (correctness rule 27).
func TestAppendOptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, r := newPartition(t)
		b := plain(t, 1, 1)
		record.SetLogAppendTime(b, 777)
		for _, opt := range []AppendOptions{
			{Acks: 0, MinISR: 2, Timeout: time.Second},
			{Acks: 1, MinISR: 2},
			{Acks: -1, MinISR: 2, Timeout: time.Minute},
			{Acks: -1, MinISR: 1},
		} {
			if res := appendTo(t, p, b, opt); res.Err != nil || res.LogAppendTimeMs != 777 {
				t.Fatalf("%+v", res)
			}
		}
		now := time.Now()
		want := []raftgroup.ProposeOptions{{Deadline: now.Add(time.Second)}, {}, {Deadline: now.Add(time.Minute), MinReplicas: 2}, {}}
		same := func(a, b raftgroup.ProposeOptions) bool {
			return a.Deadline.Equal(b.Deadline) && a.MinReplicas == b.MinReplicas
		}
		if !slices.EqualFunc(r.opts, want, same) {
			t.Fatalf("%+v, want %+v", r.opts, want)
		}
	})
}

// TestDuplicateAcrossLeaders: a batch that two leaders got is in the log once, and
// the second answer has the first one's offset.
func TestDuplicateAcrossLeaders(t *testing.T) {
	p, r := newPartition(t)
	mustAppend(t, p, plain(t, 3, 1))
	b := build(t, 2, 10, 1, 42, 0, 0)
	if base := mustAppend(t, p, b); base != 3 {
		t.Fatal(base)
	}
	mustAppend(t, p, plain(t, 1, 1))
	r.lead(2)
	res := appendTo(t, p, b, AppendOptions{Acks: -1})
	if !errors.Is(res.Err, ErrDuplicateSequence) || res.BaseOffset != 3 || p.HighWatermark() != 6 {
		t.Fatalf("%+v, high watermark %d", res, p.HighWatermark())
	}
	s := p.Stats()
	if s.Duplicates != 1 || s.Batches != 3 || s.Records != 6 || s.Producers != 1 || s.Segments != 1 || s.HighWatermark != 6 || s.Bytes != p.Size() || s.AppendedBytes != uint64(p.Size()) {
		t.Fatalf("%+v", s)
	}
}

// TestWatch: news is told when it can be read, and the end of leadership too.
func TestWatch(t *testing.T) {
	p, r := newPartition(t)
	var calls atomic.Int32
	var seen int64
	w := NewWatcher(func() { calls.Add(1); seen = p.HighWatermark() })
	p.Watch(w)
	p.Watch(w) // twice is once
	mustAppend(t, p, plain(t, 2, 1))
	if calls.Load() != 1 || seen != 2 {
		t.Fatalf("%d calls, high watermark %d", calls.Load(), seen)
	}
	r.sm.RoleChanged(2, 5, false)
	if calls.Load() != 2 {
		t.Fatal("loss of leadership was not told")
	}
	if _, err := p.Read(0, 10); !errors.Is(err, ErrNotLeader) {
		t.Fatalf("read from a follower: %v", err)
	}
	p.Unwatch(w)
	r.lead(6)
	mustAppend(t, p, plain(t, 2, 1))
	if calls.Load() != 2 {
		t.Fatal("told after Unwatch")
	}
}

// TestSetLogStart: moved for good, by an entry, and no further than the log goes.
func TestSetLogStart(t *testing.T) {
	p, r := newPartition(t)
	for k := range 5 {
		mustAppend(t, p, plain(t, 2, int64(k)))
	}
	if err := p.SetLogStart(background(), 5); err != nil {
		t.Fatal(err)
	}
	if p.LogStartOffset() != 5 {
		t.Fatal(p.LogStartOffset())
	}
	if epoch, end := p.EpochEndOffset(0); epoch != 0 || end != 5 {
		t.Fatalf("before all epochs: %d ends at %d", epoch, end)
	}
	if _, err := p.Read(4, 100); !errors.Is(err, ErrOffsetOutOfRange) {
		t.Fatalf("read below the start: %v", err)
	}
	res, err := p.Read(5, 1)
	if h, _ := record.Header(res.Data); err != nil || h.BaseOffset() != 4 {
		t.Fatalf("read at the start: %v", err)
	}
	if err := p.SetLogStart(background(), 3); err != nil || p.LogStartOffset() != 5 {
		t.Fatalf("moved back to %d: %v", p.LogStartOffset(), err)
	}
	if err := p.SetLogStart(background(), 11); !errors.Is(err, ErrOffsetOutOfRange) {
		t.Fatalf("beyond the end: %v", err)
	}
	if err := p.SetLogStart(background(), 10); err != nil || p.Size() != 0 {
		t.Fatalf("%d bytes left: %v", p.Size(), err)
	}
	if res := appendTo(t, p, plain(t, 1, 1), AppendOptions{}); res.BaseOffset != 10 || res.LogStartOffset != 10 {
		t.Fatalf("%+v", res)
	}
	r.leading = false
	if err := p.SetLogStart(background(), 11); !errors.Is(err, ErrNotLeader) {
		t.Fatalf("on a follower: %v", err)
	}
}

// TestCommandTimeout: a command that is not applied ends with the context, and
// may be applied later.
func TestCommandTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, r := newPartition(t)
		r.hold = true
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := p.SetConfig(ctx, Config{SegmentBytes: 1000}); !errors.Is(err, ErrTimeout) {
			t.Fatalf("got %v", err)
		}
		r.release()
		if c := p.Config(); c.SegmentBytes != 1000 || c.SegmentMs != segment.DefaultSegmentMs {
			t.Fatalf("%+v", c)
		}
		if !r.opts[0].Deadline.Equal(time.Now()) {
			t.Fatalf("deadline %v", r.opts[0].Deadline)
		}
		r.silent = true
		ctx, cancel = context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := p.ReadIndex(ctx); !errors.Is(err, ErrTimeout) {
			t.Fatalf("ReadIndex: %v", err)
		}
		r.silent = false
		if err := p.ReadIndex(context.Background()); err != nil {
			t.Fatalf("ReadIndex: %v", err)
		}
		r.refuse = raftgroup.ErrNotLeader
		if err := p.ReadIndex(context.Background()); !errors.Is(err, ErrNotLeader) {
			t.Fatalf("ReadIndex: %v", err)
		}
	})
}

// TestRetained: which segments retention drops.
func TestRetained(t *testing.T) {
	var segs []segment.Info
	for k := range int64(4) { // 100 bytes each, newest records at 1000, 2000, 3000, 4000
		segs = append(segs, segment.Info{BaseOffset: 10 * k, NextOffset: 10*k + 10, Size: 100, MaxTimestamp: 1000 * (k + 1)})
	}
	noTime := slices.Clone(segs)
	noTime[0].MaxTimestamp = -1
	tests := []struct {
		name string
		segs []segment.Info
		r    Retention
		want int64
	}{
		{"unbounded", segs, Retention{-1, -1}, 0},
		{"exactly old enough to stay", segs, Retention{4000, -1}, 0},
		{"one too old", segs, Retention{3999, -1}, 10},
		{"all too old", segs, Retention{500, -1}, 40},
		{"fits", segs, Retention{-1, 400}, 0},
		{"does not fit, but without one it would be too little", segs, Retention{-1, 301}, 0},
		{"one surplus", segs, Retention{-1, 300}, 10},
		{"two surplus", segs, Retention{-1, 150}, 20},
		{"nothing is to be kept", segs, Retention{-1, 0}, 40},
		{"either", segs, Retention{2500, 350}, 20},
		{"without time", noTime, Retention{10, -1}, 0},
		{"no segments", nil, Retention{0, 0}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := retained(tt.segs, tt.r, 5000); got != tt.want {
				t.Errorf("start %d, want %d", got, tt.want)
			}
		})
	}
}

// TestRetain: the leader proposes, followers wait for the entry.
func TestRetain(t *testing.T) {
	p, r := newPartition(t)
	if err := p.SetConfig(background(), Config{SegmentBytes: 1}); err != nil {
		t.Fatal(err)
	}
	for k := range 4 {
		mustAppend(t, p, plain(t, 1, int64(1000*k)))
	}
	now := time.UnixMilli(3500)
	r.leading = false
	if start, ok := p.Retain(now, Retention{Ms: 2000, Bytes: -1}); ok || start != 0 {
		t.Fatalf("a follower proposed %d", start)
	}
	r.leading = true
	if start, ok := p.Retain(now, Retention{Ms: 2000, Bytes: -1}); !ok || start != 2 || p.LogStartOffset() != 2 || p.Stats().Segments != 2 {
		t.Fatalf("proposed %d (%v), log start %d, %+v", start, ok, p.LogStartOffset(), p.Stats())
	}
	if start, ok := p.Retain(now, Retention{Ms: 2000, Bytes: -1}); ok || start != 2 {
		t.Fatalf("proposed %d again", start)
	}
}

// TestDigest: equal on replicas with equal batches, over what was asked for only,
// on followers too.
func TestDigest(t *testing.T) {
	p, r := newPartition(t)
	if err := p.SetConfig(background(), Config{SegmentBytes: 300}); err != nil {
		t.Fatal(err)
	}
	var bounds []int
	for k := range 10 {
		mustAppend(t, p, plain(t, 2, int64(k)))
		bounds = append(bounds, int(p.Size()))
	}
	var stored []byte
	for next := int64(0); next < 20; {
		res, err := p.Read(next, 1)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, res.Data...)
		next += 2
	}
	r.leading = false
	for _, tt := range []struct{ from, to, wantFrom, wantTo, first, last int64 }{
		{-1, -1, 0, 20, 0, 10},
		{0, 20, 0, 20, 0, 10},
		{4, 8, 4, 8, 2, 4},
		{5, 7, 5, 7, 2, 4}, // whole batches
		{0, 99, 0, 20, 0, 10},
		{9, 3, 3, 3, 0, 0},
	} {
		d, err := p.Digest(tt.from, tt.to)
		if err != nil {
			t.Fatal(err)
		}
		var part []byte
		if tt.last > 0 {
			lo := 0
			if tt.first > 0 {
				lo = bounds[tt.first-1]
			}
			part = stored[lo:bounds[tt.last-1]]
		}
		sum := sha256.Sum256(part)
		want := Digest{tt.wantFrom, tt.wantTo, 2 * (tt.last - tt.first), tt.last - tt.first, hex.EncodeToString(sum[:])}
		if d != want {
			t.Errorf("digest [%d,%d): %+v, want %+v", tt.from, tt.to, d, want)
		}
	}
}

// TestLookUpInUnreadableRecords: a batch of records that decompress to more than is allowed, stored by a node that let it
// pass, makes nobody take the replica for damaged.
func TestLookUpInUnreadableRecords(t *testing.T) {
	p, r := newPartition(t)
	big := record.Builder{Codec: record.Zstd}
	big.Append(record.Record{Timestamp: 1000, Value: make([]byte, record.DefaultMaxDecompressed)})
	raw, err := big.Build()
	must(t, err)
	mustAppend(t, p, raw)
	for _, look := range []func() (int64, int64, int32, error){
		func() (int64, int64, int32, error) { return p.OffsetForTimestamp(900) }, p.MaxTimestamp,
	} {
		if offset, ts, epoch, err := look(); offset != 0 || ts != 1000 || epoch != 1 || err != nil {
			t.Errorf("offset %d, timestamp %d, epoch %d: %v", offset, ts, epoch, err)
		}
	}
	if r.damage != nil {
		t.Errorf("damaged: %v", r.damage)
	}
}

// TestFullDisk: an append that meets a full disk changes nothing and goes in when
// the engine tries again.
func TestFullDisk(t *testing.T) {
	full := true
	fs := errorfs.Wrap(vfs.NewCrashableMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileWriteAt && full {
			return syscall.ENOSPC
		}
		return nil
	}))
	sm := open(t, fs, "p", nil, nil)
	entries := []raftgroup.Entry{
		{Index: 2, Term: 1, Data: encodeEntry(KindBatch, 1, build(t, 2, 1, 1, 7, 0, 0))},
		{Index: 3, Term: 1, Data: configEntry(5, Config{SegmentBytes: 10})},
		{Index: 4, Term: 2, Data: startEntry(6, 1)},
	}
	_, err := sm.Apply(entries)
	if !vfs.IsNoSpace(err) || !strings.Contains(err.Error(), segment.FileName(0)) {
		t.Fatalf("got %v", err)
	}
	if sm.maxTime != math.MinInt64 || sm.cfg != DefaultConfig() || len(sm.epochs) != 0 || sm.table.Len() != 0 || sm.view.Load().start != 0 {
		t.Fatalf("state changed: %+v", sm)
	}
	full = false
	res, err := sm.Apply(entries)
	if err != nil || told(res[0]) != "offset 0 log start 0: <nil>" || sm.view.Load().start != 1 {
		t.Fatalf("%v %v", res, err)
	}
}

// TestInstallUnderReads: readers go on while a snapshot replaces the files, and
// never see the high watermark go back.
func TestInstallUnderReads(t *testing.T) {
	p, r := newPartition(t)
	mem := r.sm.fs.(*vfs.MemFS)
	batch := plain(t, 3, 1)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		wg.Go(func() {
			high := int64(0)
			for {
				res, err := p.Read(max(high-3, 0), 1<<10)
				if err != nil {
					t.Error(err)
					return
				}
				if res.HighWatermark < high {
					t.Errorf("high watermark %d after %d", res.HighWatermark, high)
				}
				high = res.HighWatermark
				if _, err := p.Digest(0, -1); err != nil {
					t.Error(err)
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for gen := range 20 {
		for range 5 {
			mustAppend(t, p, batch)
		}
		blob, files := checkpoint(t, r.sm)
		dir := fmt.Sprintf("g%d", gen)
		if err := vfs.MkdirAllSync(mem, dir); err != nil {
			t.Fatal(err)
		}
		old := "p"
		if gen > 0 {
			old = fmt.Sprintf("g%d", gen-1)
		}
		for _, f := range files {
			if err := vfs.WriteFileSync(mem, dir+"/"+f.Name, content(t, mem, old, f), vfs.CategorySegment); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.sm.Install(dir, blob); err != nil {
			t.Fatal(err)
		}
		if err := mem.RemoveAll(old); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	if p.HighWatermark() != 300 {
		t.Fatal(p.HighWatermark())
	}
}

// TestBatchTooLargeIsNotProposed: a batch whose entry no replica takes is refused before it is proposed.
func TestBatchTooLargeIsNotProposed(t *testing.T) {
	p, r := newPartition(t)
	var b record.Builder
	b.Append(record.Record{Timestamp: 1, Value: make([]byte, MaxBatch)})
	batch, err := b.Build()
	must(t, err)
	if got := appendTo(t, p, batch, AppendOptions{Acks: -1}); !errors.Is(got.Err, record.ErrTooLarge) || got.BaseOffset != -1 {
		t.Errorf("%d bytes: offset %d, %v", len(batch), got.BaseOffset, got.Err)
	}
	if r.index != 0 {
		t.Error("it was proposed")
	}
}
