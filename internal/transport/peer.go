package transport

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"

	"chronik/internal/ident"
)

// peer is everything about one other node: the streams of both directions,
// and the judgement whether it is up.
//
// It is up while its Control stream to us and ours to it are open and both
// name one store. When either ends, every stream of both directions is ended
// and made anew: what is left of a half-dead connection cannot linger.
type peer struct {
	t    *Transport
	node ident.NodeID
	ctx  context.Context // ends with stop
	end  context.CancelFunc
	// boxes are the frames to send, for Control and Append.
	boxes [bulk]*outbox
	links [classes]*link
	stats peerStats

	mu    sync.Mutex
	addrs []string // to dial in turn: the configured one, then what the peer says
	out   [classes]*outStream
	in    [classes]*inStream
	// accepted counts streams that were accepted, to tell the older of two.
	accepted uint64
	up       bool
	info     PeerInfo
	// tried says that the first attempt to connect has ended.
	tried              bool
	refusal, lastError string
	// changed is closed and replaced when out or tried changes.
	changed chan struct{}
	// events are the Handler's calls to make, in order; telling says that a
	// goroutine makes them.
	events  []func(Handler)
	telling bool
}

type peerStats struct {
	framesSent, framesReceived, dropped    atomic.Uint64
	messagesSent, bytesSent, bytesReceived atomic.Uint64
	connects                               atomic.Uint64
}

// outStream is an accepted stream to the peer.
type outStream struct {
	info PeerInfo
	cc   *grpc.ClientConn // nil for a plain one
	end  func()
	// plain says, of a Control stream, that the peer takes plain streams.
	plain  bool
	serial uint64
}

// inStream is an accepted stream from the peer.
type inStream struct {
	info PeerInfo
	conn *conn
	// done is closed when no frame of it will be delivered any more.
	done   chan struct{}
	live   bool // our Hello is on its way back
	serial uint64
}

func newPeer(t *Transport, node ident.NodeID) *peer {
	p := &peer{t: t, node: node, changed: make(chan struct{})}
	p.ctx, p.end = context.WithCancel(t.ctx)
	p.boxes[Control] = newOutbox(max(t.opt.MaxQueueBytes/8, 1))
	p.boxes[Append] = newOutbox(t.opt.MaxQueueBytes)
	for c := range classes {
		p.links[c] = &link{p: p, class: c, kick: make(chan struct{}, 1)}
	}
	return p
}

func (p *peer) run() {
	p.t.links.Add(len(p.links))
	for _, l := range p.links {
		go func() {
			defer p.t.links.Done()
			l.run()
		}()
	}
}

// stop ends the peer for good.
func (p *peer) stop() {
	p.end()
	p.sever()
}

// sever ends every stream; the links make new ones unless the peer is stopped.
func (p *peer) sever() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.severLocked()
	p.judge()
}

func (p *peer) severLocked() {
	for c := range classes {
		p.endOut(c)
		if in := p.in[c]; in != nil {
			in.live = false
			in.conn.close()
		}
	}
}

// endOut ends the stream to the peer and, for Control, drops what is queued.
func (p *peer) endOut(c Class) {
	if c == Control {
		p.boxes[Control].setOpen(false)
		p.boxes[Append].setOpen(false)
	}
	if s := p.out[c]; s != nil {
		s.end()
		p.out[c] = nil
		p.signal()
	}
}

func (p *peer) signal() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// setAddr makes addr the configured address.
func (p *peer) setAddr(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.addrs) > 0 && p.addrs[0] == addr {
		return
	}
	p.addrs = []string{addr}
	p.endOut(Control)
	p.judge()
	p.links[Control].wake()
}

// learnAddr adds what the peer says of itself, to be tried after the configured address.
func (p *peer) learnAddr(addr string) {
	if addr == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case slices.Contains(p.addrs, addr):
	case len(p.addrs) < 2:
		p.addrs = append(p.addrs, addr)
	default:
		p.addrs[1] = addr
	}
}

// addr returns the address for the n-th attempt, "" if none is known.
func (p *peer) addr(n int) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.addrs) == 0 {
		return ""
	}
	return p.addrs[n%len(p.addrs)]
}

// setOut enters an accepted stream to the peer. It returns false if the peer
// is stopped or the Control stream is gone, without which no other lives.
func (p *peer) setOut(c Class, s *outStream) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil || (c != Control && p.out[Control] == nil) {
		return false
	}
	p.accepted++
	s.serial = p.accepted
	p.out[c] = s
	if c == Control {
		p.boxes[Control].setOpen(true)
		p.boxes[Append].setOpen(true)
		p.refusal, p.lastError, p.tried = "", "", true
		p.stats.connects.Add(1)
	}
	p.signal()
	p.judge()
	return true
}

// clearOut says that the stream has ended.
func (p *peer) clearOut(c Class, s *outStream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out[c] != s {
		return
	}
	p.endOut(c)
	if c == Control {
		p.endOut(Append)
		p.endOut(bulk)
	}
	p.judge()
}

// failed notes that an attempt to connect has failed; refused says that the
// peer said no. It tells whether the text is news.
func (p *peer) failed(text string, refused bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	news := p.lastError != text
	p.lastError = text
	if refused && p.refusal != text {
		p.refusal = text
		p.tell(func(h Handler) { h.Refused(p.node, text) })
	}
	if !p.tried {
		p.tried = true
		p.signal()
	}
	return news
}

// enter makes s the peer's stream of its class, after the one before has
// delivered its last frame.
func (p *peer) enter(c Class, s *inStream) {
	p.mu.Lock()
	for p.in[c] != nil {
		old := p.in[c]
		old.live = false
		p.judge()
		p.mu.Unlock()
		old.conn.close()
		<-old.done
		p.mu.Lock()
	}
	p.in[c] = s
	p.mu.Unlock()
}

// setLive counts s as open, now that the peer will know it is accepted.
func (p *peer) setLive(c Class, s *inStream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.accepted++
	s.live, s.serial = true, p.accepted
	if p.ctx.Err() != nil {
		s.live = false
		s.conn.close()
	}
	p.judge()
	if c == Control && p.out[Control] == nil {
		p.links[Control].wake()
	}
}

// leave says that s has ended.
func (p *peer) leave(c Class, s *inStream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.live = false
	p.in[c] = nil
	close(s.done)
	p.judge()
}

// judge compares what the streams say with what the Handler was told.
func (p *peer) judge() {
	out, in := p.out[Control], p.in[Control]
	both := out != nil && in != nil && in.live
	if both && out.info.Store != in.info.Store {
		// One of the two is left from before the store changed.
		both = false
		if out.serial < in.serial {
			p.endOut(Control)
			p.endOut(Append)
			p.endOut(bulk)
		} else {
			in.live = false
			in.conn.close()
		}
	}
	switch {
	case both && !p.up:
		p.up, p.info = true, in.info
		info := in.info
		p.tell(func(h Handler) {
			p.t.log.Info("connected with node", "peer", p.node, "store", info.Store)
			h.PeerUp(info)
		})
	case !both && p.up:
		p.up = false
		p.tell(func(h Handler) {
			p.t.log.Info("lost connection with node", "peer", p.node)
			h.PeerDown(p.node)
		})
		p.severLocked()
	}
}

// tell queues a call to the Handler. Caller holds p.mu.
func (p *peer) tell(event func(Handler)) {
	p.events = append(p.events, event)
	if p.telling {
		return
	}
	p.telling = true
	p.t.callbacks.Add(1)
	go func() {
		defer p.t.callbacks.Done()
		for {
			p.mu.Lock()
			if len(p.events) == 0 {
				p.events, p.telling = nil, false
				p.mu.Unlock()
				return
			}
			next := p.events[0]
			p.events = p.events[1:]
			p.mu.Unlock()
			next(p.t.opt.Handler)
		}
	}()
}

func (p *peer) isUp() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.up
}

// await blocks until the peer has accepted our stream of class c.
func (p *peer) await(ctx context.Context, c Class) (*outStream, error) {
	for {
		p.mu.Lock()
		s, changed := p.out[c], p.changed
		p.mu.Unlock()
		if s != nil {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (p *peer) status() PeerStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return PeerStatus{
		Node:           p.node,
		Addrs:          slices.Clone(p.addrs),
		Up:             p.up,
		Out:            p.out[Control] != nil,
		In:             p.in[Control] != nil && p.in[Control].live,
		Info:           p.info,
		Refusal:        p.refusal,
		LastError:      p.lastError,
		QueuedBytes:    p.boxes[Control].queued() + p.boxes[Append].queued(),
		FramesSent:     p.stats.framesSent.Load(),
		FramesReceived: p.stats.framesReceived.Load(),
		FramesDropped:  p.stats.dropped.Load(),
		MessagesSent:   p.stats.messagesSent.Load(),
		BytesSent:      p.stats.bytesSent.Load(),
		BytesReceived:  p.stats.bytesReceived.Load(),
		Connects:       p.stats.connects.Load(),
	}
}
