package main

import (
	"context"
	"sync"
	"time"

	"chronik/internal/transport"
)

// frames stands between a node's transport and the node: it loses, repeats, delays and
// so reorders single frames, each with the chance the network has now.
type frames struct {
	transport.Handler
	w    *world
	node int

	mu   sync.Mutex
	gone bool
	late sync.WaitGroup
}

// chances are a frame's, in percent.
type chances struct{ lost, twice, late int }

// Frame implements transport.Handler.
func (f *frames) Frame(from transport.PeerInfo, class transport.Class, frame []byte) {
	f.w.trace.frame(int(from.Node), f.node, len(frame))
	c, rng := f.w.chances(), f.w.rand("frames")
	roll := func(percent int) bool { return rng.IntN(100) < percent }
	if lost, twice, late := roll(c.lost), roll(c.twice), roll(c.late); lost {
		return
	} else if twice {
		f.later(rng.IntN(20), from, class, append([]byte(nil), frame...))
	} else if late {
		f.later(rng.IntN(200), from, class, frame)
		return
	}
	f.Handler.Frame(from, class, frame)
}

func (f *frames) later(ms int, from transport.PeerInfo, class transport.Class, frame []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone {
		return
	}
	f.late.Go(func() {
		time.Sleep(time.Duration(ms) * time.Millisecond)
		f.mu.Lock()
		gone := f.gone
		f.mu.Unlock()
		if !gone {
			f.Handler.Frame(from, class, frame)
		}
	})
}

// end drops what is still on its way: the node behind it is about to stop.
func (f *frames) end() {
	f.mu.Lock()
	f.gone = true
	f.mu.Unlock()
}

// Sent implements transport.Recycler.
func (f *frames) Sent(method string, resp []byte) {
	if r, ok := f.Handler.(transport.Recycler); ok {
		r.Sent(method, resp)
	}
}

// Call implements transport.Handler.
func (f *frames) Call(ctx context.Context, from transport.PeerInfo, method string, req []byte) ([]byte, error) {
	f.w.trace.call(int(from.Node), f.node, method, len(req))
	return f.Handler.Call(ctx, from, method, req)
}
