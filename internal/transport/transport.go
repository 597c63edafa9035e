package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	"chronik/internal/ident"
)

// Class says which connection a frame takes. Frames of one class to one peer
// keep their order; classes never wait for each other.
type Class uint8

// The classes of frames. bulk carries calls.
const (
	// Control is for what must never wait: heartbeats, votes, node heartbeats.
	Control Class = iota
	// Append is for log entries.
	Append
	bulk
	classes
)

// String returns the class's name.
func (c Class) String() string {
	switch c {
	case Control:
		return "control"
	case Append:
		return "append"
	case bulk:
		return "bulk"
	default:
		return fmt.Sprintf("class %d", uint8(c))
	}
}

var (
	// ErrUnreachable says that a call did not reach the peer, or that the
	// connection went away before the answer came: whether it ran is unknown.
	ErrUnreachable = errors.New("node unreachable")
	// ErrNotSent is the ErrUnreachable of a call that certainly did not run.
	ErrNotSent = fmt.Errorf("%w: not sent", ErrUnreachable)
	// ErrTooLarge says that a request or response is larger than MaxFrame.
	ErrTooLarge = errors.New("message too large")
	// ErrRemote is what every error returned by a peer's Handler.Call matches.
	ErrRemote = errors.New("remote error")
	// ErrClosed says that the transport is closed.
	ErrClosed = errors.New("transport closed")
)

// RemoteError is an error that the peer's Handler.Call returned, as text. It matches ErrRemote.
type RemoteError struct {
	Node   ident.NodeID
	Method string
	Text   string
}

// Error implements error.
func (e *RemoteError) Error() string {
	return fmt.Sprintf("node %d: %s: %s", e.Node, e.Method, e.Text)
}

// Unwrap returns ErrRemote.
func (e *RemoteError) Unwrap() error { return ErrRemote }

// PeerInfo is who a peer said it is, as AcceptHello understood it.
type PeerInfo struct {
	Node  ident.NodeID
	Store ident.StoreID
	// Addr is where the peer can be dialed, "" if it did not say.
	Addr string
}

// Handler is what the transport calls. Calls for different peers run at the
// same time. It must not call Close.
type Handler interface {
	// Hello returns this node's introduction, opaque here, at most MaxHello bytes.
	Hello() []byte
	// AcceptHello judges a peer's introduction. It is asked for every stream of
	// either direction, so several times for one peer, and must answer alike
	// each time. An error refuses the stream; its text travels to the peer.
	AcceptHello(hello []byte) (PeerInfo, error)
	// Refused says that node refused this node's Hello: once for each distinct
	// reason until it accepts one.
	Refused(node ident.NodeID, reason string)
	// Frame takes one frame and owns it. Frames of one peer and class come in
	// the order they were sent, some perhaps never, and perhaps before PeerUp
	// or after PeerDown. While it blocks, that peer's class waits.
	Frame(from PeerInfo, class Class, frame []byte)
	// Call answers a peer's call, on a goroutine of its own, and owns req.
	// ctx ends with the caller's or with the connection.
	Call(ctx context.Context, from PeerInfo, method string, req []byte) ([]byte, error)
	// PeerUp says that both directions' Control streams are open, PeerDown that
	// one ended. For one peer they alternate strictly, beginning with PeerUp;
	// neither they nor Refused overlap.
	PeerUp(p PeerInfo)
	PeerDown(node ident.NodeID)
}

// Recycler is what a Handler may implement besides Handler, to use a response's
// memory again: Sent is called once a Call's response has been written or given up.
// Short responses may be left out, and so may any over an in-memory Network.
type Recycler interface {
	Sent(method string, resp []byte)
}

// Sender is the sending half that Transport and the in-memory Network's nodes share.
type Sender interface {
	// Send queues one frame, the concatenation of bufs, which must not be
	// modified any more. It never blocks; false means dropped: node unknown,
	// not connected, its queue full, or the frame larger than MaxFrame.
	Send(node ident.NodeID, class Class, bufs ...[]byte) bool
	// Call asks node's Handler.Call. Errors: ErrUnreachable (ErrNotSent if it certainly did not run), ErrTooLarge,
	// ErrRemote, ctx's.
	Call(ctx context.Context, node ident.NodeID, method string, req []byte) ([]byte, error)
	// Connected tells whether node is up: between PeerUp and PeerDown.
	Connected(node ident.NodeID) bool
}

// Options configure a Transport.
type Options struct {
	Node ident.NodeID
	// Listen is where peers connect. The transport closes it.
	Listen net.Listener
	// Peers are the addresses known at start. This node itself is ignored.
	Peers   map[ident.NodeID]string
	Handler Handler
	// Dial opens connections to peers; nil: TCP.
	Dial   func(ctx context.Context, addr string) (net.Conn, error)
	Logger *slog.Logger
	// MaxQueueBytes bounds the Append frames queued for one peer; Control
	// frames have an eighth of it. 0 means 64 MiB.
	MaxQueueBytes int

	// grpcOnly is a release before 0.4.0, for tests: it takes no plain streams.
	grpcOnly bool
}

// Transport connects this node with its peers.
type Transport struct {
	opt    Options
	log    *slog.Logger
	server *grpc.Server
	// ctx ends with Close.
	ctx    context.Context
	cancel context.CancelFunc
	// strangers limits the lines about connections that are not ours.
	strangers rate.Sometimes

	links     sync.WaitGroup // outgoing links and the listener
	callbacks sync.WaitGroup // goroutines that tell the Handler about peers

	mu      sync.RWMutex
	peers   map[ident.NodeID]*peer
	started bool
	closed  bool
	done    chan struct{} // closed when Close is done
}

var _ Sender = (*Transport)(nil)

// New makes a transport. Nothing happens before Start, so that a Handler may
// keep the Transport and use it in its callbacks.
func New(opt Options) (*Transport, error) {
	if opt.Node <= 0 || opt.Listen == nil || opt.Handler == nil {
		return nil, errors.New("transport: node id, listener and handler are needed")
	}
	if opt.MaxQueueBytes == 0 {
		opt.MaxQueueBytes = 64 << 20
	}
	if opt.Logger == nil {
		opt.Logger = slog.Default()
	}
	if opt.Dial == nil {
		opt.Dial = dialTCP
	}
	t := &Transport{
		opt:       opt,
		log:       opt.Logger,
		strangers: rate.Sometimes{Interval: time.Second},
		peers:     make(map[ident.NodeID]*peer),
		done:      make(chan struct{}),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.server = newServer(t)
	return t, nil
}

// Start begins to listen and to dial.
func (t *Transport) Start() {
	t.mu.Lock()
	if t.started || t.closed {
		t.mu.Unlock()
		return
	}
	t.started = true
	t.links.Add(1)
	t.mu.Unlock()
	go func() {
		defer t.links.Done()
		if err := t.server.Serve(t.opt.Listen); err != nil && t.ctx.Err() == nil {
			t.log.Error("stopped listening for nodes", "addr", t.opt.Listen.Addr().String(), "err", err)
		}
	}()
	for node, addr := range t.opt.Peers {
		t.SetPeer(node, addr)
	}
}

// SetPeer says where node can be dialed and keeps a connection to it from now
// on. An empty address forgets the node and drops its connections.
func (t *Transport) SetPeer(node ident.NodeID, addr string) {
	if addr == "" {
		t.mu.Lock()
		p := t.peers[node]
		delete(t.peers, node)
		t.mu.Unlock()
		if p != nil {
			p.stop()
		}
		return
	}
	if p := t.ensure(node, addr); p != nil {
		p.setAddr(addr)
	}
}

// ensure returns node's peer. If need be it makes it, with addr, which may be empty,
// known before its links look for one. It returns nil for this node itself and after Close.
func (t *Transport) ensure(node ident.NodeID, addr string) *peer {
	if node == t.opt.Node || node <= 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	p := t.peers[node]
	if p == nil {
		p = newPeer(t, node)
		p.learnAddr(addr)
		t.peers[node] = p
		p.run()
	}
	return p
}

func (t *Transport) peer(node ident.NodeID) *peer {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.peers[node]
}

// Send implements Sender. Frames are taken as soon as the peer has accepted
// this node's Control stream, which is before PeerUp.
func (t *Transport) Send(node ident.NodeID, class Class, bufs ...[]byte) bool {
	p := t.peer(node)
	if p == nil || class >= bulk {
		return false
	}
	if !p.boxes[class].push(bufs) {
		p.stats.dropped.Add(1)
		return false
	}
	return true
}

// Connected implements Sender.
func (t *Transport) Connected(node ident.NodeID) bool {
	p := t.peer(node)
	return p != nil && p.isUp()
}

// Rehello ends all streams, so that every peer is told this node's Hello anew.
// Handlers see PeerDown and PeerUp.
func (t *Transport) Rehello() {
	for _, p := range t.all() {
		p.sever()
	}
}

// PeerStatus is what is known about the connection to one peer.
type PeerStatus struct {
	Node ident.NodeID
	// Addrs are the addresses dialed in turn, the configured one first.
	Addrs []string
	// Up says that both directions are connected; Out and In are the Control
	// streams to and from the peer.
	Up, Out, In bool
	// Info is what the peer said in its last accepted Hello.
	Info PeerInfo
	// Refusal is why the peer refuses this node, LastError why the last attempt
	// to connect failed; "" when connected.
	Refusal, LastError string
	// QueuedBytes wait to be sent. The other counters are since the start.
	QueuedBytes                                      int
	FramesSent, FramesReceived, FramesDropped        uint64
	MessagesSent, BytesSent, BytesReceived, Connects uint64
}

// Peers returns the state of every peer, by node id.
func (t *Transport) Peers() []PeerStatus {
	ps := t.all()
	out := make([]PeerStatus, 0, len(ps))
	for _, p := range ps {
		out = append(out, p.status())
	}
	slices.SortFunc(out, func(a, b PeerStatus) int { return cmp.Compare(a.Node, b.Node) })
	return out
}

func (t *Transport) all() []*peer {
	t.mu.RLock()
	defer t.mu.RUnlock()
	ps := make([]*peer, 0, len(t.peers))
	for _, p := range t.peers {
		ps = append(ps, p)
	}
	return ps
}

// Close ends every connection, gives PeerDown for each peer that is up, and
// returns when no callback runs any more.
func (t *Transport) Close() {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		<-t.done
		return
	}
	t.closed = true
	started := t.started
	t.mu.Unlock()
	t.cancel()
	if !started {
		_ = t.opt.Listen.Close() // never listened on
	}
	for _, p := range t.all() {
		p.stop()
	}
	t.server.Stop()
	t.links.Wait()
	t.callbacks.Wait()
	close(t.done)
}
