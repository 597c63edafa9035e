package harness

import (
	"bytes"
	bigendian "encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// Class is one of the three connections that a node opens to another, as the transport's preamble numbers them.
type Class byte

// The classes of connections.
const (
	Control Class = iota
	Append
	Bulk
)

// Fault is what happens to bytes on their way from one node to another. The zero Fault is a sound link.
type Fault struct {
	// Hole lets nothing through, not even the news that the connection has ended. What was
	// sent arrives once the hole is closed, if the connection still stands, as TCP would repeat it.
	Hole bool
	// Delay is added to the way of every byte, and up to Jitter more.
	Delay, Jitter time.Duration
	// Rate is in bytes a second; 0 is without limit.
	Rate int
	// Loss is the share of pieces that are lost once: TCP repeats them after Stall, and what comes
	// after them waits. Reset is the share at which the connection breaks.
	Loss, Reset float64
	Stall       time.Duration
	// Classes are those that the fault is for; none: all.
	Classes []Class
}

// Proxy stands between the nodes of a cluster. Each node tells its peers the proxy's
// address in place of its own (its entry in cluster.peers), so that everybody dials the
// proxy; who dials is read from the preamble that begins every stream. A connection that
// node 1 opened to node 2 carries bytes both ways: its requests are under the fault from 1 to 2,
// its answers under that from 2 to 1.
type Proxy struct {
	addrs map[int]string // where the proxy stands in for a node

	mu      sync.Mutex
	faults  map[way]Fault
	changed chan struct{} // closed and replaced by each change of faults
	conns   map[net.Conn]bool
	closed  bool
	wg      sync.WaitGroup
}

type way struct{ from, to int }

// newProxy stands in for every node until the test ends.
func newProxy(tb testing.TB, nodes []Node) *Proxy {
	tb.Helper()
	p := &Proxy{addrs: map[int]string{}, faults: map[way]Fault{}, changed: make(chan struct{}), conns: map[net.Conn]bool{}}
	var listeners []net.Listener
	for _, n := range nodes {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		listeners = append(listeners, l)
		p.addrs[n.ID] = l.Addr().String()
		p.wg.Go(func() { p.serve(l, n.ID, n.Raft) })
	}
	tb.Cleanup(func() {
		for _, l := range listeners {
			_ = l.Close()
		}
		p.close()
	})
	return p
}

// Addr is where the proxy stands in for node id.
func (p *Proxy) Addr(id int) string { return p.addrs[id] }

// Set makes f the fault of what from sends to to, on connections there are and to come.
func (p *Proxy) Set(from, to int, f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults[way{from, to}] = f
	p.change()
}

// Heal ends every fault.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.faults)
	p.change()
}

func (p *Proxy) change() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// fault is what holds for w and class now, and a channel that is closed when that changes.
func (p *Proxy) fault(w way, class Class) (Fault, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.faults[w]
	if len(f.Classes) > 0 && !slices.Contains(f.Classes, class) {
		f = Fault{}
	}
	return f, p.changed
}

func (p *Proxy) serve(l net.Listener, node int, addr string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		if !p.keep(c) {
			return
		}
		p.wg.Go(func() { p.carry(c, node, addr) })
	}
}

// keep notes a connection, to be closed with the proxy.
func (p *Proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

func (p *Proxy) close() {
	p.mu.Lock()
	p.closed = true
	clear(p.faults) // or what waits would wait for ever
	conns := slices.Collect(maps.Keys(p.conns))
	p.change()
	p.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
	p.wg.Wait()
}

// link is one connection through the proxy.
type link struct {
	p        *Proxy
	near     net.Conn // of who dialed
	far      net.Conn // to the node
	to       int
	mu       sync.Mutex
	from     int // 0 until the preamble is seen
	class    Class
	done     chan struct{}
	doneOnce sync.Once
}

// carry brings bytes both ways until either end is done.
func (p *Proxy) carry(near net.Conn, node int, addr string) {
	l := &link{p: p, near: near, to: node, done: make(chan struct{})}
	defer p.drop(near)
	far, err := net.DialTimeout("tcp", addr, 2*time.Second)
	if err != nil {
		return // near is told by its end
	}
	defer p.drop(far)
	if !p.keep(far) {
		return
	}
	l.far = far
	var ways sync.WaitGroup
	ways.Go(func() { l.pump(near, far, true) })
	ways.Go(func() { l.pump(far, near, false) })
	ways.Wait()
}

func (p *Proxy) drop(c net.Conn) {
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	_ = c.Close()
}

// end closes both sides; reset says so with a RST.
func (l *link) end(reset bool) {
	l.doneOnce.Do(func() {
		close(l.done)
		for _, c := range []net.Conn{l.near, l.far} {
			if tc, ok := c.(*net.TCPConn); ok && reset {
				_ = tc.SetLinger(0)
			}
			_ = c.Close()
		}
	})
}

// piece is bytes that arrived at a time; the end of the stream has none.
type piece struct {
	b  []byte
	at time.Time
}

// inFlight bounds the pieces that are on their way at a time: what a long link holds.
const inFlight = 64

// pump carries one direction. Reading goes on while earlier bytes wait for their time.
func (l *link) pump(from, to net.Conn, forward bool) {
	pieces := make(chan piece, inFlight)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(pieces)
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			if n > 0 {
				select {
				case pieces <- piece{bytes.Clone(buf[:n]), time.Now()}:
				case <-l.done:
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	broken := false
	var head []byte // of an unknown sender, until it is known
	for pc := range pieces {
		if forward && l.sender() == 0 && len(head) < maxHead {
			head = append(head, pc.b...)
			l.identify(head)
		}
		if err := l.pass(to, pc, forward); err != nil {
			broken = true
			break
		}
	}
	// The news that an end is gone is lost in a hole, too: that of from's end on this
	// way, that of to's on the other.
	l.throughHole(forward != broken)
	l.end(false)
	reader.Wait()
}

// maxHead is how much of a stream is searched for the preamble.
const maxHead = 64 << 10

// identify looks for the preamble (transport/doc.go): "CHRN", version, class, node.
func (l *link) identify(head []byte) {
	at := bytes.Index(head, []byte("CHRN"))
	if at < 0 || len(head) < at+10 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.class, l.from = Class(head[at+5]), int(bigendian.BigEndian.Uint32(head[at+6:]))
}

func (l *link) sender() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.from
}

// fault is what holds for one direction now. Before the preamble nothing does: it is
// the handshake of an unknown, which says nothing.
func (l *link) fault(forward bool) (Fault, <-chan struct{}) {
	l.mu.Lock()
	w, class, known := way{l.from, l.to}, l.class, l.from != 0
	l.mu.Unlock()
	if !known {
		return Fault{}, nil
	}
	if !forward {
		w = way{w.to, w.from}
	}
	return l.p.fault(w, class)
}

// throughHole waits while there is a hole. It returns the fault then, and false if the connection is over.
func (l *link) throughHole(forward bool) (Fault, bool) {
	for {
		f, changed := l.fault(forward)
		if !f.Hole {
			return f, true
		}
		select {
		case <-changed:
		case <-l.done:
			return f, false
		}
	}
}

// errOver says that the connection is over.
var errOver = errors.New("connection over")

// pass writes a piece when and as fast as the fault lets it.
func (l *link) pass(to net.Conn, pc piece, forward bool) error {
	for b := pc.b; len(b) > 0; {
		f, ok := l.throughHole(forward)
		if !ok {
			return errOver
		}
		if f.Reset > 0 && rand.Float64() < f.Reset {
			l.end(true)
			return errOver
		}
		wait := time.Until(pc.at.Add(f.Delay))
		if f.Jitter > 0 {
			wait += rand.N(f.Jitter)
		}
		if f.Loss > 0 && rand.Float64() < f.Loss {
			wait = max(wait, 0) + f.Stall
		}
		n := len(b)
		if f.Rate > 0 { // eight pieces a second
			n = min(n, max(1, f.Rate/8))
			wait = max(wait, 0) + time.Second*time.Duration(n)/time.Duration(f.Rate)
		}
		if !l.sleep(wait) {
			return errOver
		}
		if _, ok := l.throughHole(forward); !ok {
			return errOver
		}
		if _, err := to.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (l *link) sleep(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.done:
		return false
	}
}

// String tells the fault in a line.
func (f Fault) String() string {
	switch {
	case f.Hole:
		return fmt.Sprintf("hole %v", f.Classes)
	case f.Rate > 0:
		return fmt.Sprintf("%d B/s %v", f.Rate, f.Classes)
	default:
		return fmt.Sprintf("delay %v+%v, loss %.3f for %v, reset %.4f", f.Delay, f.Jitter, f.Loss, f.Stall, f.Reset)
	}
}
