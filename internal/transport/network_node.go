package transport

import (
	"context"
	"fmt"
	"slices"
	"time"

	"chronik/internal/ident"
)

// Node is one node's end of a Network. It implements Sender.
type Node struct {
	n       *Network
	id      ident.NodeID
	handler Handler
	// left says that the node is gone: it gets no frames and opens no connection.
	left bool
	// silent says that its Handler is told nothing any more.
	silent bool
	lanes  map[laneKey]*lane
	// refusals are the last reasons told, by peer.
	refusals map[ident.NodeID]string
}

var _ Sender = (*Node)(nil)

// Close takes the node away; its own Handler sees PeerDown too.
func (nd *Node) Close() {
	nd.n.mu.Lock()
	defer nd.n.mu.Unlock()
	if nd.n.nodes[nd.id] == nd {
		nd.n.leave(nd.id, false)
	}
}

func (nd *Node) lane(k laneKey) *lane {
	l := nd.lanes[k]
	if l == nil {
		l = nd.n.newLane(k)
		nd.lanes[k] = l
	}
	return l
}

// Rehello ends the node's connections, so that its Hello is said anew.
func (nd *Node) Rehello() {
	n := nd.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if nd.left {
		return
	}
	for _, other := range n.ids() {
		if other != nd.id {
			n.disconnect(nd.id, other)
			n.connect(nd.id, other)
		}
	}
}

// Connected implements Sender.
func (nd *Node) Connected(node ident.NodeID) bool {
	nd.n.mu.Lock()
	defer nd.n.mu.Unlock()
	_, s := nd.to(node)
	return s != nil
}

// to returns the peer and the session with it, nil while there is none.
func (nd *Node) to(node ident.NodeID) (*Node, *session) {
	if nd.left || node == nd.id {
		return nil, nil
	}
	return nd.n.nodes[node], nd.n.pair(nd.id, node).session
}

// Send implements Sender.
func (nd *Node) Send(node ident.NodeID, class Class, bufs ...[]byte) bool {
	frame := slices.Concat(bufs...)
	n := nd.n
	n.mu.Lock()
	defer n.mu.Unlock()
	peer, s := nd.to(node)
	if s == nil || class >= bulk || len(frame) > MaxFrame {
		return false
	}
	l := nd.lane(laneKey{nd.id, node, class})
	if l.bytes > 0 && l.bytes+len(frame) > laneBytes {
		return false
	}
	// Drawn for each frame, whatever the settings, so that they do not shift the rest.
	lost, delay := l.rng.Float64() < n.loss, n.delay(l.rng.Float64())
	if n.reorder && delay == 0 {
		delay = time.Duration(l.rng.Int64N(int64(reorderSpan)))
	}
	if lost || n.dropped[laneKey{from: nd.id, to: node}] {
		return true // on its way, as far as the sender can see
	}
	from := s.infos[nd.id]
	l.bytes += len(frame)
	n.schedule(l, delay, n.reorder, func() {
		n.mu.Lock()
		l.bytes -= len(frame)
		gone := s.over() || n.dropped[laneKey{from: nd.id, to: node}]
		n.mu.Unlock()
		if !gone {
			peer.handler.Frame(from, class, frame)
		}
	})
	return true
}

// delay turns a number in [0, 1) into a delay.
func (n *Network) delay(r float64) time.Duration {
	return n.delayMin + time.Duration(r*float64(n.delayMax-n.delayMin))
}

// Call implements Sender. In a Stepped network the peer answers at once, on
// the caller's goroutine.
func (nd *Node) Call(ctx context.Context, node ident.NodeID, method string, req []byte) ([]byte, error) {
	n := nd.n
	fail := func(err error) ([]byte, error) { return nil, fmt.Errorf("node %d: %s: %w", node, method, err) }
	if len(req) > MaxFrame {
		return fail(ErrTooLarge)
	}
	n.mu.Lock()
	peer, s := nd.to(node)
	var way [2]time.Duration
	if s != nil {
		l := nd.lane(laneKey{nd.id, node, bulk})
		way = [2]time.Duration{n.delay(l.rng.Float64()), n.delay(l.rng.Float64())}
		n.wg.Add(1) // Close waits for the callee
	}
	n.mu.Unlock()
	if s == nil {
		return fail(ErrNotSent)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &netCall{from: nd, to: peer, session: s, method: method, req: slices.Clone(req), way: way}
	if n.opt.Stepped {
		c.run(ctx)
		n.wg.Done()
	} else {
		c.done = make(chan struct{})
		go func() {
			defer n.wg.Done()
			defer close(c.done)
			c.run(ctx)
		}()
		select {
		case <-c.done:
		case <-s.down:
			return fail(ErrUnreachable)
		case <-ctx.Done():
			return fail(ctx.Err())
		}
	}
	switch {
	case c.lost != nil:
		return fail(c.lost)
	case c.err != nil:
		return nil, &RemoteError{Node: node, Method: method, Text: c.err.Error()}
	}
	return c.resp, nil
}

// netCall is one call on its way.
type netCall struct {
	from, to *Node
	session  *session
	method   string
	req      []byte
	way      [2]time.Duration
	done     chan struct{}
	resp     []byte
	err      error // the callee's
	lost     error // the network's
}

func (c *netCall) run(ctx context.Context) {
	if c.lost = c.travel(ctx, c.from.id, c.to.id, c.way[0]); c.lost != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-c.session.down:
			cancel()
		case <-stop:
		}
	}()
	resp, err := c.to.handler.Call(ctx, c.session.infos[c.from.id], c.method, c.req)
	if c.lost = c.travel(ctx, c.to.id, c.from.id, c.way[1]); c.lost != nil {
		return
	}
	if c.err = err; err == nil {
		if len(resp) > MaxFrame {
			c.err = ErrTooLarge
		}
		c.resp = slices.Clone(resp)
	}
}

// travel waits until the message is at the other end.
func (c *netCall) travel(ctx context.Context, from, to ident.NodeID, delay time.Duration) error {
	n := c.from.n
	n.mu.Lock()
	dropped := n.dropped[laneKey{from: from, to: to}]
	n.mu.Unlock()
	if n.opt.Stepped {
		if dropped || c.session.over() {
			return ErrUnreachable
		}
		return nil
	}
	var arrived <-chan time.Time
	switch {
	case dropped:
	case delay == 0 && !c.session.over():
		return nil
	default:
		timer := time.NewTimer(delay)
		defer timer.Stop()
		arrived = timer.C
	}
	select {
	case <-arrived:
		return nil
	case <-c.session.down:
		return ErrUnreachable
	case <-ctx.Done():
		return ctx.Err()
	}
}
