package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"chronik/internal/ident"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds how long a test waits for what must happen.
const patience = 10 * time.Second

// host is a Handler that keeps what it was told.
type host struct {
	node  ident.NodeID
	store ident.StoreID
	addr  string

	mu      sync.Mutex
	changed chan struct{}
	// accept judges hellos, nil for all.
	accept  func(PeerInfo) error
	onFrame func(PeerInfo, Class, []byte)
	onCall  func(context.Context, PeerInfo, string, []byte) ([]byte, error)
	events  []string // "up 2", "down 2", "refused 2: …"
	frames  map[Class][]string
	log     *slog.Logger
	// grpcOnly makes it an older release.
	grpcOnly bool
	t        *Transport
}

func newHost(node ident.NodeID) *host {
	return &host{
		node: node, store: ident.StoreID{byte(node)}, changed: make(chan struct{}),
		frames: make(map[Class][]string), log: slog.New(slog.DiscardHandler),
	}
}

// start runs a transport for the host on l, or on a new port.
func (h *host) start(tb testing.TB, l net.Listener, peers map[ident.NodeID]string) *host {
	tb.Helper()
	if l == nil {
		l = listen(tb, "127.0.0.1:0")
	}
	h.addr = l.Addr().String()
	t, err := New(Options{Node: h.node, Listen: l, Peers: peers, Handler: h, Logger: h.log, grpcOnly: h.grpcOnly})
	if err != nil {
		tb.Fatal(err)
	}
	h.t = t
	t.Start()
	tb.Cleanup(t.Close)
	return h
}

func listen(tb testing.TB, addr string) net.Listener {
	tb.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

func (h *host) Hello() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return fmt.Appendf(nil, "%d %s %s", h.node, h.store, h.addr)
}

func (h *host) AcceptHello(b []byte) (PeerInfo, error) {
	var (
		p     PeerInfo
		store string
	)
	if _, err := fmt.Sscanf(string(b), "%d %s %s", &p.Node, &store, &p.Addr); err != nil {
		return p, err
	}
	id, err := ident.ParseStoreID(store)
	if err != nil {
		return p, err
	}
	p.Store = id
	h.mu.Lock()
	accept := h.accept
	h.mu.Unlock()
	if accept != nil {
		err = accept(p)
	}
	return p, err
}

func (h *host) note(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *host) event(format string, args ...any) {
	h.note(func() { h.events = append(h.events, fmt.Sprintf(format, args...)) })
}

func (h *host) Refused(node ident.NodeID, reason string) { h.event("refused %d: %s", node, reason) }
func (h *host) PeerUp(p PeerInfo)                        { h.event("up %d", p.Node) }
func (h *host) PeerDown(node ident.NodeID)               { h.event("down %d", node) }

func (h *host) Frame(from PeerInfo, class Class, frame []byte) {
	h.mu.Lock()
	f := h.onFrame
	h.mu.Unlock()
	if f != nil {
		f(from, class, frame)
		return
	}
	h.note(func() { h.frames[class] = append(h.frames[class], string(frame)) })
}

func (h *host) Call(ctx context.Context, from PeerInfo, method string, req []byte) ([]byte, error) {
	h.mu.Lock()
	f := h.onCall
	h.mu.Unlock()
	if f == nil {
		return nil, errors.New("no calls here")
	}
	return f(ctx, from, method, req)
}

// await blocks until cond, called with h locked, is true.
func (h *host) await(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		h.mu.Lock()
		ok, changed, events := cond(), h.changed, fmt.Sprint(h.events)
		h.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			tb.Fatalf("node %d: waited in vain for %s; events %s", h.node, what, events)
		}
	}
}

func (h *host) awaitEvents(tb testing.TB, want ...string) {
	tb.Helper()
	h.await(tb, fmt.Sprint(want), func() bool { return len(h.events) >= len(want) })
	h.mu.Lock()
	defer h.mu.Unlock()
	if got := fmt.Sprint(h.events[:len(want)]); got != fmt.Sprint(want) {
		tb.Fatalf("node %d: events %v, want %v", h.node, h.events, want)
	}
}

// pairOf starts two nodes and waits until each has the other.
func pairOf(tb testing.TB, a, b *host) (*host, *host) {
	tb.Helper()
	la, lb := listen(tb, "127.0.0.1:0"), listen(tb, "127.0.0.1:0")
	peers := map[ident.NodeID]string{a.node: la.Addr().String(), b.node: lb.Addr().String()}
	a.start(tb, la, peers)
	b.start(tb, lb, peers)
	a.awaitEvents(tb, fmt.Sprintf("up %d", b.node))
	b.awaitEvents(tb, fmt.Sprintf("up %d", a.node))
	return a, b
}

// proxy forwards connections to addr until it is cut. Stalled connections stay
// open and carry nothing, as behind a cable that was pulled.
type proxy struct {
	l     net.Listener
	addr  string
	stall chan struct{}
	wg    sync.WaitGroup
	mu    sync.Mutex
	conns []net.Conn
}

func newProxy(tb testing.TB) *proxy {
	p := &proxy{l: listen(tb, "127.0.0.1:0"), stall: make(chan struct{})}
	tb.Cleanup(func() {
		_ = p.l.Close()
		p.mu.Lock()
		for _, c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) run(addr string) {
	p.addr = addr
	p.wg.Go(func() {
		for {
			in, err := p.l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", p.addr)
			if err != nil {
				_ = in.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, in, out)
			p.mu.Unlock()
			p.wg.Go(func() { p.copy(in, out) })
			p.wg.Go(func() { p.copy(out, in) })
		}
	})
}

func (p *proxy) copy(dst, src net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		select {
		case <-p.stall:
			if err != nil {
				return
			}
			continue
		default:
		}
		if err == nil {
			_, err = dst.Write(buf[:n])
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				_ = src.Close()
			}
			_ = dst.Close()
			return
		}
	}
}
