package partition

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"chronik/internal/ident"
	"chronik/internal/raftgroup"
	"chronik/internal/record"
	"chronik/internal/vfs"
)

type fataler interface {
	Helper()
	Fatalf(string, ...any)
}

// plain makes a batch of n records of a producer that is not idempotent.
func plain(t fataler, n int, ts int64) []byte { return build(t, n, 20, ts, -1, -1, -1) }

// build makes a batch of n records with values of pad bytes; id < 0: no producer.
func build(t fataler, n, pad int, ts, id int64, epoch int16, seq int32) []byte {
	t.Helper()
	var b record.Builder
	if id >= 0 {
		b.SetProducer(id, epoch, seq)
	}
	for i := range n {
		b.Append(record.Record{Timestamp: ts + int64(i), Key: fmt.Appendf(nil, "k%d", i), Value: bytes.Repeat([]byte{byte(id + ts)}, pad)})
	}
	out, err := b.Build()
	if err != nil {
		t.Fatalf("build: %v", err)
	}
	return out
}

func configEntry(ms int64, c Config) []byte {
	b, _ := json.Marshal(c)
	return encodeEntry(KindConfig, ms, b)
}

func startEntry(ms, offset int64) []byte {
	return encodeEntry(KindLogStart, ms, binary.BigEndian.AppendUint64(nil, uint64(offset)))
}

// open opens a state machine on fs.
func open(t fataler, fs vfs.FS, dir string, blob []byte, files []raftgroup.CaptureFile) *StateMachine {
	t.Helper()
	sm, err := Opener{}.Open(fs, dir, blob, files)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return sm.(*StateMachine)
}

// checkpoint captures as the engine does, all steps at once.
func checkpoint(t fataler, sm *StateMachine) (blob []byte, files []raftgroup.CaptureFile) {
	t.Helper()
	c, err := sm.Capture()
	if err != nil {
		t.Fatalf("capture: %v", err)
	}
	defer c.Release()
	if err := c.Sync(); err != nil {
		t.Fatalf("sync: %v", err)
	}
	var b bytes.Buffer
	n, err := c.WriteTo(&b)
	if err != nil || n != int64(b.Len()) {
		t.Fatalf("write: %d of %d bytes: %v", n, b.Len(), err)
	}
	c.Published()
	return b.Bytes(), c.Files()
}

// fakeReplica is a group of one: what is proposed is applied at once, unless held.
type fakeReplica struct {
	sm *StateMachine

	mu      sync.Mutex
	index   ident.Index
	term    ident.Term
	leading bool
	alive   int
	refuse  error // answer of Propose and ReadIndex
	after   error // told beside the result of an applied proposal
	hold    bool
	held    []func()
	opts    []raftgroup.ProposeOptions
	silent  bool // ReadIndex is never answered
	damage  error
}

func (r *fakeReplica) IsLeader() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leading
}

func (r *fakeReplica) Alive() int { return r.alive }

func (r *fakeReplica) Damaged(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.damage = err
}

func (r *fakeReplica) Propose(data []byte, opt raftgroup.ProposeOptions, w raftgroup.Waiter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opts = append(r.opts, opt)
	if r.refuse != nil {
		w.Applied(0, 0, nil, r.refuse)
		return
	}
	r.index++
	e := raftgroup.Entry{Index: r.index, Term: r.term, Data: data}
	run := func() {
		res, err := r.sm.Apply([]raftgroup.Entry{e})
		if err != nil {
			w.Applied(0, 0, nil, err)
			return
		}
		w.Applied(e.Index, e.Term, res[0], r.after)
	}
	if r.hold {
		r.held = append(r.held, run)
		return
	}
	run()
}

func (r *fakeReplica) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, run := range r.held {
		run()
	}
	r.held, r.hold = nil, false
}

func (r *fakeReplica) ReadIndex(_ time.Time, done func(ident.Index, error)) {
	if !r.silent {
		done(r.index, r.refuse)
	}
}

// lead makes the replica the serving leader of a term.
func (r *fakeReplica) lead(term ident.Term) {
	r.mu.Lock()
	r.term, r.leading = term, true
	r.mu.Unlock()
	r.sm.RoleChanged(1, term, true)
}

// newPartition returns a serving partition on a memory disk.
func newPartition(t testing.TB) (*Partition, *fakeReplica) {
	t.Helper()
	sm := open(t, vfs.NewCrashableMem(), "p", nil, nil)
	r := &fakeReplica{sm: sm, alive: 3}
	r.lead(1)
	t.Cleanup(func() {
		if err := r.sm.Close(); err != nil {
			t.Error(err)
		}
	})
	return New(r, sm), r
}

// appendTo appends and returns the answer, which the fake gives at once.
func appendTo(t testing.TB, p *Partition, batch []byte, opt AppendOptions) AppendResult {
	t.Helper()
	answers := 0
	var got AppendResult
	p.Append(batch, opt, func(r AppendResult) { got, answers = r, answers+1 })
	if answers != 1 {
		t.Fatalf("%d answers", answers)
	}
	return got
}

func mustAppend(t testing.TB, p *Partition, batch []byte) int64 {
	t.Helper()
	r := appendTo(t, p, batch, AppendOptions{Acks: -1})
	if r.Err != nil {
		t.Fatalf("append: %v", r.Err)
	}
	return r.BaseOffset
}

func background() context.Context { return context.Background() }
