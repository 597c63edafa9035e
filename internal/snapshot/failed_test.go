package snapshot

import (
	"context"
	"errors"
	"testing"
)

// A Fetch that fails tells how far it came, and its error stays what it was.
func TestFailedFetchTellsHowFarItCame(t *testing.T) {
	g := newRig(t, threeFiles(), threeNames...)
	g.server.Attempt(g.pin.ID, 3)
	g.server.Attempt(g.pin.ID+1, 4) // no such pin: nothing happens
	ctx, cancel := context.WithCancel(t.Context())
	var out Transfer
	n := 0
	g.wire.hook = hookEvery(MethodChunk, func() {
		if n++; n == 6 {
			out = g.server.Transfers()[0]
			cancel()
		}
	})
	g.newReceiver(ReceiverOptions{Parallel: 1})
	_, err := g.recv.Fetch(ctx, g.offer(), g.opt, g.wire)
	wantErr(t, err, context.Canceled)
	if got := FetchedBefore(err); got.Received <= 0 || got.Received >= g.pin.Bytes || got.Reused != 0 || got.Took <= 0 {
		t.Errorf("%+v of %d bytes", got, g.pin.Bytes)
	}
	if got := FetchedBefore(errors.New("another")); got != (Fetched{}) {
		t.Errorf("%+v of an error that is none of a Fetch", got)
	}
	if out.Attempts != 3 {
		t.Errorf("%d attempts of the outgoing transfer, want 3", out.Attempts)
	}
}
