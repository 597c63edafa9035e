package partition

import (
	"errors"
	"fmt"
	"syscall"

	"chronik/internal/format"
	"chronik/internal/raftgroup"
	"chronik/internal/record"
)

// errCrowded is a full disk to who applies, a little before it is one.
var errCrowded = fmt.Errorf("the room left is the raftlog's: %w", syscall.ENOSPC)

// outcome is the Result of an entry. Waiters may keep it.
type outcome struct {
	// baseOffset is where the batch is: the new one, or the one that a duplicate repeats; -1 if nowhere.
	baseOffset int64
	logStart   int64
	err        error
}

// Apply implements raftgroup.StateMachine. It is all or nothing: batches are
// staged and written together at the end; when that fails, everything decided on
// the way is taken back and the same entries may come again, the first of them alone. An entry's own
// failure (a sequence gap, an offset out of range) is its result, not an error.
func (s *StateMachine) Apply(entries []raftgroup.Entry) ([]raftgroup.Result, error) {
	before := struct {
		cfg     Config
		maxTime int64
		epochs  epochTable
	}{s.cfg, s.maxTime, s.epochs}
	outcomes := make([]outcome, len(entries))
	results := make([]raftgroup.Result, len(entries))
	var add tally
	start := s.log.StartOffset()
	var err error
	for k := range entries {
		o := &outcomes[k]
		o.baseOffset = -1
		if err = s.applyEntry(&entries[k], o, &start, &add); err != nil {
			err = fmt.Errorf("entry %d: %w", entries[k].Index, err)
			break
		}
		o.logStart = start
		results[k] = o
	}
	if err == nil {
		err = s.log.Flush()
	}
	if err != nil {
		s.log.Discard()
		s.producers.rollback()
		s.cfg, s.maxTime, s.epochs = before.cfg, before.maxTime, before.epochs
		s.log.SetLimits(s.cfg.SegmentBytes, s.cfg.SegmentMs)
		s.producers.maxAge = s.cfg.ProducerMaxAgeMs
		return nil, err
	}
	s.producers.commit(s.maxTime)
	s.count(&add)
	s.publish()
	return results, nil
}

// tally counts the entries of one Apply.
type tally struct{ batches, records, bytes, duplicates, outOfOrder, staleEpoch uint64 }

func (s *StateMachine) count(t *tally) {
	s.stats.batches.Add(t.batches)
	s.stats.records.Add(t.records)
	s.stats.bytes.Add(t.bytes)
	s.stats.duplicates.Add(t.duplicates)
	s.stats.outOfOrder.Add(t.outOfOrder)
	s.stats.staleEpoch.Add(t.staleEpoch)
}

// applyEntry decides on one entry. start is the log start as of the entry.
func (s *StateMachine) applyEntry(e *raftgroup.Entry, o *outcome, start *int64, add *tally) error {
	kind, ms, payload, err := decodeEntry(e.Data)
	if err != nil {
		return err
	}
	s.maxTime = max(s.maxTime, ms)
	switch kind {
	case KindBatch:
		if s.crowded != nil && s.crowded() {
			return errCrowded
		}
		return s.applyBatch(payload, epochOf(e.Term), o, add)
	case KindConfig:
		cfg, err := decodeConfig(payload)
		if err != nil {
			return err
		}
		s.cfg = cfg
		s.log.SetLimits(cfg.SegmentBytes, cfg.SegmentMs)
		s.producers.setMaxAge(cfg.ProducerMaxAgeMs, s.maxTime)
		return nil
	case KindLogStart:
		offset, err := decodeLogStart(payload)
		if err != nil {
			return err
		}
		if next := s.log.StagedOffset(); offset > next {
			o.err = fmt.Errorf("%w: log start %d, the log ends at %d", ErrOffsetOutOfRange, offset, next)
			return nil
		}
		if offset > *start {
			*start = offset
			s.log.StageStart(offset)
			s.epochs = s.epochs.from(offset)
		}
		return nil
	default:
		return fmt.Errorf("%w: entry of kind %d: %w", ErrCorrupt, kind, format.ErrNewer)
	}
}

// applyBatch appends a batch, unless its producer's sequence forbids it. The
// leader checked the batch before it proposed it; bytes that are none by now are
// damage, and no replica may decide on damage by itself.
func (s *StateMachine) applyBatch(b []byte, epoch int32, o *outcome, add *tally) error {
	h, n, err := record.ParseBatch(b)
	if err != nil || n != len(b) {
		return fmt.Errorf("%w: batch of %d bytes in an entry of %d: %w", ErrCorrupt, n, len(b), err)
	}
	idempotent := h.ProducerID() >= 0
	if idempotent {
		dup, err := s.producers.check(h, s.maxTime)
		if err != nil {
			o.err = err
			switch {
			case errors.Is(err, ErrDuplicateSequence):
				o.baseOffset = dup.baseOffset
				add.duplicates++
			case errors.Is(err, ErrOutOfOrderSequence):
				add.outOfOrder++
			default:
				add.staleEpoch++
			}
			return nil
		}
	}
	o.baseOffset = s.log.Stage(b, epoch)
	s.epochs = s.epochs.assign(epoch, o.baseOffset)
	if idempotent {
		s.producers.add(h, o.baseOffset, s.maxTime)
	}
	add.batches++
	add.records += uint64(h.NumRecords())
	add.bytes += uint64(len(b))
	return nil
}
