package snapshot

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// Small snapshots share a slot, large ones do not, and nobody is passed by.
func TestSlotsShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if sharesOf(0) != 1 || sharesOf(shareBytes) != 1 || sharesOf(shareBytes+1) != shares {
			t.Fatal("a small snapshot takes one share, any other all of a slot")
		}
		s := slots{free: 2 * shares}
		alive := func() error { return errors.New("nobody gave it a share for an hour") }
		take := func(ctx context.Context, n int) error {
			return s.acquire(ctx, PriorityVoter, n, time.Hour, alive)
		}
		noErr(t, take(t.Context(), shares))
		for range shares {
			noErr(t, take(t.Context(), 1))
		}
		ctx, cancel := context.WithCancel(t.Context())
		large, small := make(chan error, 1), make(chan error, 1)
		go func() { large <- take(ctx, shares) }()
		synctest.Wait()
		go func() { small <- take(t.Context(), 1) }()
		synctest.Wait()
		s.release(1)
		synctest.Wait()
		select {
		case err := <-small:
			t.Fatalf("a small one passed by a large one: %v", err)
		case err := <-large:
			t.Fatalf("a large one got a share: %v", err)
		default:
		}
		cancel() // then the small one's turn has come
		if err := <-large; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		noErr(t, <-small)
		go func() { large <- take(t.Context(), shares) }()
		synctest.Wait()
		for range shares {
			s.release(1)
		}
		noErr(t, <-large)
		s.release(shares)
		s.release(shares)
		if s.free != 2*shares || len(s.waiting) != 0 {
			t.Fatalf("%d shares free, %d waiting", s.free, len(s.waiting))
		}
	})
}
