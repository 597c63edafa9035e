package partition

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"chronik/internal/vfs"
)

// TestStepsForgetNoProducer: leaders whose dates lie days apart, and step, go on with each other's producers. One is
// forgotten once it was silent for a day of one leader.
func TestStepsForgetNoProducer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var date time.Duration
		sm, err := Opener{Wall: func() time.Time { return time.Now().Add(date) }}.Open(vfs.NewCrashableMem(), "p", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		r := &fakeReplica{sm: sm.(*StateMachine), alive: 3}
		r.lead(1)
		defer func() {
			if err := r.sm.Close(); err != nil {
				t.Error(err)
			}
		}()
		p := New(r, r.sm)
		batch := func(seq int32) []byte { return build(t, 1, 20, 1000, 7, 0, seq) }
		repeated := func(seq int32, want int64) {
			t.Helper()
			if got := appendTo(t, p, batch(seq), AppendOptions{Acks: -1}); !errors.Is(got.Err, ErrDuplicateSequence) || got.BaseOffset != want {
				t.Fatalf("sequence %d again: offset %d, %v", seq, got.BaseOffset, got.Err)
			}
		}
		mustAppend(t, p, batch(0))
		for i, d := range []time.Duration{48 * time.Hour, -48 * time.Hour, 30 * 24 * time.Hour, 0} {
			date = d // a step of the leader's clock
			repeated(int32(i), int64(i))
			r.lead(r.term + 1) // another leads, by another clock
			repeated(int32(i), int64(i))
			mustAppend(t, p, batch(int32(i+1)))
		}
		time.Sleep(23 * time.Hour)
		mustAppend(t, p, plain(t, 1, 1000))
		r.lead(r.term + 1)
		time.Sleep(30 * time.Minute)
		repeated(4, 4)
		time.Sleep(30 * time.Minute) // 23 hours of one leader, and one of the next
		if got := appendTo(t, p, batch(5), AppendOptions{Acks: -1}); !errors.Is(got.Err, ErrOutOfOrderSequence) {
			t.Fatalf("a producer that was silent for a day: %v", got.Err)
		}
	})
}
