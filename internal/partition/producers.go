package partition

import (
	"fmt"
	"math"

	"github.com/tidwall/btree"

	"chronik/internal/record"
)

// cachedBatches is how many batches of a producer are known again (KIP-98: the
// number of requests a producer may have in flight).
const cachedBatches = 5

// batchRef is a batch as the producer table remembers it.
type batchRef struct {
	baseSeq, lastSeq int32
	baseOffset       int64
	time             int64 // leader time, ms
}

// producer is an idempotent producer's state. Immutable: a batch makes a new one.
type producer struct {
	epoch int16
	// n >= 1 batches are kept, the newest last.
	n       int
	batches [cachedBatches]batchRef
	// lastTime is the largest leader time seen at its last batch, ms.
	lastTime int64
}

func (p *producer) last() batchRef { return p.batches[p.n-1] }

// with returns the state after one more batch.
func (p *producer) with(epoch int16, b batchRef) *producer {
	next := &producer{epoch: epoch, lastTime: b.time}
	if p != nil && p.epoch == epoch {
		next.n = copy(next.batches[:cachedBatches-1], p.batches[max(0, p.n-cachedBatches+1):p.n])
	}
	next.batches[next.n] = b
	next.n++
	return next
}

// producers is the producer table of a partition. Only the applier touches it;
// a copy made by Map.Copy is the encoder's.
type producers struct {
	table *btree.Map[int64, *producer]
	// maxAge is how long a producer that is silent is remembered, ms of leader time.
	maxAge int64
	// purged is the time expired producers were last removed.
	purged int64
	// undo brings back what the entries applied since the last commit replaced.
	undo []undo
}

type undo struct {
	id  int64
	old *producer // nil: there was none
}

// get returns a producer's state, nil if it is unknown or forgotten by now. That
// an expired one may still be in the table makes no difference to anyone.
func (t *producers) get(id, now int64) *producer {
	p, ok := t.table.Get(id)
	if !ok || t.expired(p, now) {
		return nil
	}
	return p
}

func (t *producers) expired(p *producer, now int64) bool {
	age := now - p.lastTime
	return age >= t.maxAge && age > 0
}

// check decides on a batch of an idempotent producer as Kafka's broker does
// (KIP-98), except that an unknown producer must begin at sequence 0 (correctness
// rule 3). ErrDuplicateSequence comes with the batch it repeats.
func (t *producers) check(h record.Batch, now int64) (batchRef, error) {
	p := t.get(h.ProducerID(), now)
	epoch, base, last := h.ProducerEpoch(), h.BaseSequence(), h.LastSequence()
	switch {
	case p == nil:
		if base != 0 {
			return batchRef{}, fmt.Errorf("%w: producer %d is unknown and starts at sequence %d", ErrOutOfOrderSequence, h.ProducerID(), base)
		}
	case epoch < p.epoch:
		return batchRef{}, fmt.Errorf("%w: producer %d has epoch %d, the batch %d", ErrInvalidProducerEpoch, h.ProducerID(), p.epoch, epoch)
	case epoch > p.epoch:
		if base != 0 {
			return batchRef{}, fmt.Errorf("%w: producer %d starts epoch %d at sequence %d", ErrOutOfOrderSequence, h.ProducerID(), epoch, base)
		}
	default:
		for _, b := range p.batches[:p.n] {
			if b.baseSeq == base && b.lastSeq == last {
				return b, ErrDuplicateSequence
			}
		}
		if want := nextSequence(p.last().lastSeq); base != want {
			return batchRef{}, fmt.Errorf("%w: producer %d sends sequence %d, expected %d", ErrOutOfOrderSequence, h.ProducerID(), base, want)
		}
	}
	return batchRef{}, nil
}

// nextSequence counts round: 0 follows the largest int32.
func nextSequence(seq int32) int32 {
	if seq == math.MaxInt32 {
		return 0
	}
	return seq + 1
}

// add takes a batch into the table.
func (t *producers) add(h record.Batch, baseOffset, now int64) {
	id := h.ProducerID()
	old, _ := t.table.Get(id)
	t.undo = append(t.undo, undo{id, old})
	known := old
	if old != nil && t.expired(old, now) {
		known = nil
	}
	t.table.Set(id, known.with(h.ProducerEpoch(), batchRef{h.BaseSequence(), h.LastSequence(), baseOffset, now}))
}

// rollback undoes every add since the last commit, newest first.
func (t *producers) rollback() {
	for k := len(t.undo) - 1; k >= 0; k-- {
		if u := t.undo[k]; u.old != nil {
			t.table.Set(u.id, u.old)
		} else {
			t.table.Delete(u.id)
		}
	}
	t.commit(math.MinInt64)
}

// commit makes the adds final and now and then removes what has expired.
func (t *producers) commit(now int64) {
	clear(t.undo)
	t.undo = t.undo[:0]
	// The first difference overflows: purged begins as the least int64.
	if age := now - t.purged; now > t.purged && (age < 0 || age >= t.maxAge/8) {
		t.purged = now
		t.purge(now)
		clear(t.undo)
		t.undo = t.undo[:0]
	}
}

// purge removes what has expired.
func (t *producers) purge(now int64) {
	first := len(t.undo)
	t.table.Scan(func(id int64, p *producer) bool {
		if t.expired(p, now) {
			t.undo = append(t.undo, undo{id, p})
		}
		return true
	})
	for _, u := range t.undo[first:] {
		t.table.Delete(u.id)
	}
}

// setMaxAge changes how long producers are remembered. What is forgotten by then
// stays forgotten, on replicas that have removed it and on those that have not.
func (t *producers) setMaxAge(maxAge, now int64) {
	if maxAge != t.maxAge {
		t.purge(now)
		t.maxAge = maxAge
	}
}
