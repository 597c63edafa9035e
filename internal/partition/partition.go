package partition

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"chronik/internal/bytepool"
	"chronik/internal/ident"
	"chronik/internal/raftgroup"
	"chronik/internal/record"
	"chronik/internal/segment"
)

// Replica is what a Partition uses of its *raftgroup.Replica.
type Replica interface {
	// Propose appends data as one entry; proposals of one goroutine keep their order.
	Propose(data []byte, opt raftgroup.ProposeOptions, w raftgroup.Waiter)
	// ReadIndex calls done once this replica has applied everything committed before.
	ReadIndex(deadline time.Time, done func(ident.Index, error))
	// IsLeader tells whether this replica leads and may serve (correctness rule 25).
	IsLeader() bool
	// Alive is the number of voters on connected nodes.
	Alive() int
	// Damaged tells that stored data is not what was written.
	Damaged(err error)
}

var (
	_ Replica                = (*raftgroup.Replica)(nil)
	_ raftgroup.StateMachine = (*StateMachine)(nil)
	_ raftgroup.RoleWatcher  = (*StateMachine)(nil)
	_ raftgroup.OpenFunc     = Opener{}.Open
)

// Partition is one local replica of a topic partition, as clients see it. All
// methods may be called from any goroutine.
type Partition struct {
	replica Replica
	sm      *StateMachine
}

// New returns the serving side of a replica whose state machine is sm.
func New(replica Replica, sm *StateMachine) *Partition { return &Partition{replica: replica, sm: sm} }

// AppendOptions say when an append counts as done.
type AppendOptions struct {
	// Acks is Kafka's: -1 waits for MinISR voters; 0 and 1 for the commit, which is
	// stronger than asked.
	Acks int16
	// Timeout bounds the wait; 0: none.
	Timeout time.Duration
	// MinISR is min.insync.replicas, for Acks -1.
	MinISR int
}

// AppendResult is what became of a batch.
type AppendResult struct {
	// BaseOffset is the first record's; -1 if the batch is not in the log or that is unknown.
	BaseOffset int64
	// LogAppendTimeMs is the batch's timestamp if its type is LogAppendTime, else -1.
	LogAppendTimeMs int64
	LogStartOffset  int64
	Err             error
}

// appendWaiter answers one append.
type appendWaiter struct {
	p    *Partition
	time int64
	done func(AppendResult)
}

// Applied implements raftgroup.Waiter.
func (w *appendWaiter) Applied(_ ident.Index, _ ident.Term, res raftgroup.Result, err error) {
	r := AppendResult{BaseOffset: -1, LogAppendTimeMs: w.time, LogStartOffset: -1, Err: fromGroup(err)}
	if o, ok := res.(*outcome); ok {
		r.BaseOffset, r.LogStartOffset = o.baseOffset, o.logStart
		if r.Err == nil {
			r.Err = o.err
		}
	}
	if r.LogStartOffset < 0 {
		r.LogStartOffset = w.p.LogStartOffset()
	}
	w.done(r)
}

// Append proposes one validated batch. Batches of one goroutine keep their order.
// done is called exactly once, perhaps before Append returns, and must not block.
// batch may be reused when Append returns. Errors in the result: ErrNotLeader
// (ErrLeadershipLost), ErrBusy, ErrTimeout, ErrNotEnoughReplicas,
// ErrNotEnoughReplicasAfterAppend, ErrDuplicateSequence (with the offset),
// ErrOutOfOrderSequence, ErrInvalidProducerEpoch, ErrStorage, and record's
// ErrCorrupt for bytes that have not the length of one batch and ErrTooLarge above MaxBatch. The
// checksum is not looked at again: apply does, on every replica.
func (p *Partition) Append(batch []byte, opt AppendOptions, done func(AppendResult)) {
	w := &appendWaiter{p: p, time: -1, done: done}
	fail := func(err error) {
		done(AppendResult{BaseOffset: -1, LogAppendTimeMs: -1, LogStartOffset: p.LogStartOffset(), Err: err})
	}
	h, err := record.Header(batch)
	switch {
	case err != nil:
		fail(err)
		return
	case h.Size() != len(batch):
		fail(fmt.Errorf("%w: batch of %d bytes in %d", record.ErrCorrupt, h.Size(), len(batch)))
		return
	case len(batch) > MaxBatch:
		fail(fmt.Errorf("%w: %d bytes, at most %d are possible", record.ErrTooLarge, len(batch), MaxBatch))
		return
	}
	lead := p.leading()
	if lead == nil {
		fail(ErrNotLeader)
		return
	}
	if h.TimestampType() == record.LogAppendTime {
		w.time = h.MaxTimestamp()
	}
	now := time.Now()
	po := raftgroup.ProposeOptions{Release: releaseEntry}
	if opt.Timeout > 0 {
		po.Deadline = now.Add(opt.Timeout)
	}
	if opt.Acks == -1 && opt.MinISR > 1 {
		if alive := p.replica.Alive(); alive < opt.MinISR {
			fail(fmt.Errorf("%w: %d alive, %d required", ErrNotEnoughReplicas, alive, opt.MinISR))
			return
		}
		po.MinReplicas = opt.MinISR
	}
	p.replica.Propose(encodeEntry(KindBatch, lead.stamp(now), batch), po, w)
}

// leading is this replica's role while it serves; nil: it does not.
func (p *Partition) leading() *role {
	if r := p.sm.role.Load(); r != nil && r.leading && p.replica.IsLeader() {
		return r
	}
	return nil
}

// Leader tells whether this replica serves, and as which leader epoch.
func (p *Partition) Leader() (ok bool, epoch int32) {
	r := p.sm.role.Load()
	if r == nil {
		return false, -1
	}
	return r.leading && p.replica.IsLeader(), r.epoch
}

// HighWatermark is the offset behind the last committed and applied record.
func (p *Partition) HighWatermark() int64 { return p.sm.view.Load().next }

// LogStartOffset is the first readable offset.
func (p *Partition) LogStartOffset() int64 { return p.sm.view.Load().start }

// Config is what the last applied Config entry said, with defaults filled in.
func (p *Partition) Config() Config { return p.sm.view.Load().cfg }

// Size is the number of bytes of the log.
func (p *Partition) Size() int64 { return p.sm.view.Load().log.Size() }

// Verify reads every batch and checks its CRC and order.
func (p *Partition) Verify(ctx context.Context) error { return p.sm.Verify(ctx) }

// Watch has w notified whenever the high watermark or the log start moves, or
// leadership changes, until Unwatch. A move that Watch returned before is not
// missed: look after it.
func (p *Partition) Watch(w *Watcher) { p.sm.watchers.add(w) }

// Unwatch ends Watch. w may be notified once more while Unwatch runs.
func (p *Partition) Unwatch(w *Watcher) { p.sm.watchers.remove(w) }

// ReadResult is what a fetch gets. The marks are right beside an error too.
type ReadResult struct {
	Data             []byte // whole batches, the caller's; nil at the end of the log
	Buffer           []byte // where Data lies: for bytepool.Put once nobody reads it
	HighWatermark    int64
	LastStableOffset int64
	LogStartOffset   int64
	LeaderEpoch      int32
}

// Read returns whole batches from the one that holds offset on: as many as fit
// into maxBytes, at least one, all below the high watermark. At the high watermark there are none.
// Errors: ErrNotLeader; ErrOffsetOutOfRange, above the high watermark to be
// confirmed by ReadIndex (correctness rule 26); ErrStorage.
func (p *Partition) Read(offset int64, maxBytes int) (ReadResult, error) {
	ok, epoch := p.Leader()
	var res ReadResult
	err := p.read(func(v *view) error {
		res = ReadResult{HighWatermark: v.next, LastStableOffset: v.next, LogStartOffset: v.start, LeaderEpoch: epoch}
		if !ok {
			return ErrNotLeader
		}
		if offset < v.start || offset > v.next {
			return fmt.Errorf("%w: %d, the log has [%d,%d)", ErrOffsetOutOfRange, offset, v.start, v.next)
		}
		var err error
		if res.Data, res.Buffer, err = v.log.ReadBuffer(offset, maxBytes, v.next); err != nil {
			return err
		}
		if err := v.epochs.allSound(res.Data); err != nil {
			bytepool.Put(res.Buffer)
			res.Data, res.Buffer = nil, nil
			return err
		}
		return nil
	})
	return res, err
}

// read calls fn with the current view. What is found damaged gets the replica replaced.
func (p *Partition) read(fn func(*view) error) error {
	err := p.sm.read(fn)
	if errors.Is(err, raftgroup.ErrCorrupt) {
		p.replica.Damaged(err)
	}
	return err
}

// read calls fn with the current view, again if an install replaced the log meanwhile.
func (s *StateMachine) read(fn func(*view) error) error {
	for {
		v := s.view.Load()
		err := fn(v)
		switch {
		case err == nil || errors.Is(err, ErrNotLeader) || errors.Is(err, ErrOffsetOutOfRange):
			return err
		case errors.Is(err, segment.ErrClosed) && s.view.Load() != v:
			continue
		default:
			return fromSegment(err)
		}
	}
}

// OffsetForTimestamp finds the first record whose timestamp is ts or later, and
// the epoch that wrote it. None: -1, -1, -1.
func (p *Partition) OffsetForTimestamp(ts int64) (offset, timestamp int64, epoch int32, err error) {
	return p.lookUp(func(v *view) (int64, int64, bool, error) { return v.log.OffsetForTimestamp(ts, v.next) })
}

// MaxTimestamp finds the first record with the largest timestamp. None: -1, -1, -1.
func (p *Partition) MaxTimestamp() (offset, timestamp int64, epoch int32, err error) {
	return p.lookUp(func(v *view) (int64, int64, bool, error) { return v.log.MaxTimestamp(v.next) })
}

func (p *Partition) lookUp(fn func(*view) (int64, int64, bool, error)) (offset, timestamp int64, epoch int32, err error) {
	err = p.read(func(v *view) error {
		o, ts, ok, err := fn(v)
		if offset, timestamp, epoch = -1, -1, -1; ok {
			offset, timestamp, epoch = o, ts, v.epochs.at(o)
		}
		return err
	})
	if err != nil {
		return -1, -1, -1, err
	}
	return offset, timestamp, epoch, nil
}

// EpochEndOffset finds the largest leader epoch at or below epoch, and the offset
// behind its last record. (-1, -1): epoch is newer than this leader's.
func (p *Partition) EpochEndOffset(epoch int32) (foundEpoch int32, endOffset int64) {
	v := p.sm.view.Load()
	_, current := p.Leader()
	if n := len(v.epochs); n > 0 { // apply may be ahead of the news of a leader
		current = max(current, v.epochs[n-1].epoch)
	}
	return v.epochs.end(epoch, current, v.next)
}

// ReadIndex returns once this replica has applied everything that was committed
// when it was called: the high watermark is then not behind what any client has
// seen (correctness rule 26).
func (p *Partition) ReadIndex(ctx context.Context) error {
	done := make(chan error, 1)
	deadline, _ := ctx.Deadline()
	p.replica.ReadIndex(deadline, func(_ ident.Index, err error) { done <- err })
	select {
	case err := <-done:
		return fromGroup(err)
	case <-ctx.Done():
		return fromGroup(ctx.Err())
	}
}

// SetLogStart moves the log start to offset in all replicas (DeleteRecords) and
// returns once that is applied here. One at or below the current start changes
// nothing. Errors: as of Append; ErrOffsetOutOfRange above the high watermark.
func (p *Partition) SetLogStart(ctx context.Context, offset int64) error {
	return p.command(ctx, KindLogStart, binary.BigEndian.AppendUint64(nil, uint64(offset)))
}

// SetConfig gives apply its settings and returns once they hold here.
func (p *Partition) SetConfig(ctx context.Context, c Config) error {
	payload, err := json.Marshal(c.complete())
	if err != nil {
		return err
	}
	return p.command(ctx, KindConfig, payload)
}

// waiterFunc is a Waiter that is a function.
type waiterFunc func(res raftgroup.Result, err error)

// Applied implements raftgroup.Waiter.
func (f waiterFunc) Applied(_ ident.Index, _ ident.Term, res raftgroup.Result, err error) {
	f(res, err)
}

// command proposes an entry that is no batch and waits for it.
func (p *Partition) command(ctx context.Context, kind Kind, payload []byte) error {
	done := make(chan error, 1)
	p.propose(ctx, kind, payload, func(res raftgroup.Result, err error) {
		if o, ok := res.(*outcome); ok && err == nil {
			err = o.err
			done <- err
			return
		}
		done <- fromGroup(err)
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fromGroup(ctx.Err())
	}
}

func (p *Partition) propose(ctx context.Context, kind Kind, payload []byte, w waiterFunc) {
	lead := p.leading()
	if lead == nil {
		w(nil, raftgroup.ErrNotLeader)
		return
	}
	deadline, _ := ctx.Deadline()
	p.replica.Propose(encodeEntry(kind, lead.stamp(time.Now()), payload), raftgroup.ProposeOptions{Deadline: deadline}, w)
}

// Digest tells what is stored, so that replicas can be compared.
type Digest struct {
	From    int64  `json:"from"`
	To      int64  `json:"to"`
	Records int64  `json:"records"`
	Batches int64  `json:"batches"`
	SHA256  string `json:"sha256"`
}

// Digest hashes the batches that hold an offset of [from, to), whole and as
// consumers read them, on any replica, leading or not. from < 0 is the log start
// and to < 0 the high watermark; both are clipped to these.
func (p *Partition) Digest(from, to int64) (Digest, error) {
	var d Digest
	err := p.read(func(v *view) error {
		d = Digest{From: max(from, v.start), To: to}
		if to < 0 || to > v.next {
			d.To = v.next
		}
		d.From = min(d.From, d.To)
		hash := sha256.New()
		err := v.log.EachBatch(d.From, d.To, func(b record.Batch) error {
			if err := v.epochs.sound(b); err != nil {
				return err
			}
			hash.Write(b.Bytes())
			d.Records += int64(b.NumRecords())
			d.Batches++
			return nil
		})
		d.SHA256 = hex.EncodeToString(hash.Sum(nil))
		return err
	})
	return d, err
}
