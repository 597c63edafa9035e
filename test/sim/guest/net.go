package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// network connects nodes and clients in memory, as TCP does: in order, each byte once. What TCP cannot lose is
// lost, repeated and turned round one floor up, where frames are (frames.go).
type network struct {
	w *world

	mu        sync.Mutex
	listeners map[string]*listener
	conns     map[*conn]bool
	// cut pairs are refused, their connections reset; what goes down a holed way waits until that is mended.
	cut  map[way]bool
	hole map[way]bool
	rate map[way]int64 // bytes a second; 0: as fast as they come
	lo   time.Duration // each chunk takes between lo and hi
	hi   time.Duration
}

// way leads from one place to another: node ids, 0 for clients.
type way struct{ from, to int }

func newNetwork(w *world) *network {
	return &network{
		w: w, listeners: map[string]*listener{}, conns: map[*conn]bool{}, cut: map[way]bool{}, hole: map[way]bool{}, rate: map[way]int64{},
		lo: 50 * time.Microsecond, hi: 400 * time.Microsecond,
	}
}

// bufferBytes may be on the way in one direction before writers wait.
const bufferBytes = 256 << 10

type listener struct {
	n      *network
	node   int
	addr   string
	queue  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

func (n *network) listen(node int, addr string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: address(addr), Err: syscall.EADDRINUSE}
	}
	l := &listener{n: n, node: node, addr: addr, queue: make(chan net.Conn, 64), closed: make(chan struct{})}
	n.listeners[addr] = l
	return l, nil
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		l.n.mu.Lock()
		if l.n.listeners[l.addr] == l {
			delete(l.n.listeners, l.addr)
		}
		l.n.mu.Unlock()
		close(l.closed)
	})
	return nil
}

func (l *listener) Addr() net.Addr { return address(l.addr) }

// dial connects a place with whoever listens at addr.
func (n *network) dial(ctx context.Context, from int, addr string) (net.Conn, error) {
	refused := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: address(addr), Err: err}
	}
	select {
	case <-time.After(n.delay()):
	case <-ctx.Done():
		return refused(ctx.Err())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[addr]
	switch {
	case l == nil:
		return refused(syscall.ECONNREFUSED)
	case n.cut[way{from, l.node}] || n.hole[way{from, l.node}] || n.hole[way{l.node, from}]:
		return refused(syscall.EHOSTUNREACH)
	}
	out, in := newStream(n, way{from, l.node}), newStream(n, way{l.node, from})
	mine := &conn{n: n, read: in, write: out, local: address(fmt.Sprintf("%d->%s", from, addr)), remote: address(addr)}
	theirs := &conn{n: n, read: out, write: in, local: address(addr), remote: mine.local}
	select {
	case l.queue <- theirs:
	default:
		return refused(syscall.ECONNREFUSED)
	}
	n.conns[mine], n.conns[theirs] = true, true
	return mine, nil
}

func (n *network) delay() time.Duration {
	return n.lo + time.Duration(n.w.rand("net").Int64N(int64(n.hi-n.lo)+1))
}

// setDelay makes every chunk take between lo and hi.
func (n *network) setDelay(lo, hi time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lo, n.hi = lo, hi
}

// setRate bounds what goes between two places, both ways; 0: as fast as it comes.
func (n *network) setRate(a, b int, bytesPerSecond int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rate[way{a, b}], n.rate[way{b, a}] = bytesPerSecond, bytesPerSecond
}

// setCut parts two places or joins them again.
func (n *network) setCut(a, b int, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[way{a, b}], n.cut[way{b, a}] = on, on
	if on {
		n.reset(func(w way) bool { return w == way{a, b} || w == way{b, a} })
	}
}

// setHole swallows, or lets through again, what goes one way.
func (n *network) setHole(from, to int, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hole[way{from, to}] = on
	if !on {
		for c := range n.conns {
			c.read.poke()
		}
	}
}

// kill resets a node's connections and closes its ports, as the kernel does for a dead process.
func (n *network) kill(node int) {
	n.mu.Lock()
	var ls []*listener
	for _, l := range n.listeners {
		if l.node == node {
			ls = append(ls, l)
		}
	}
	n.reset(func(w way) bool { return w.from == node || w.to == node })
	n.mu.Unlock()
	for _, l := range ls {
		_ = l.Close() // in memory
	}
}

func (n *network) reset(match func(way) bool) {
	for c := range n.conns {
		if match(c.read.way) {
			c.read.end(syscall.ECONNRESET, true)
			c.write.end(syscall.ECONNRESET, true)
			delete(n.conns, c)
		}
	}
}

// stream is one direction of a connection.
type stream struct {
	n   *network
	way way

	mu     sync.Mutex
	queue  []chunk
	size   int
	last   time.Time // when the last chunk arrives
	err    error     // what a reader gets behind the last chunk, and a writer at once
	wake   chan struct{}
	space  chan struct{}
	gone   chan struct{} // closed with err
	rd, wd deadline
}

type chunk struct {
	at   time.Time
	data []byte
}

func newStream(n *network, w way) *stream {
	s := &stream{n: n, way: w, wake: make(chan struct{}, 1), space: make(chan struct{}, 1), gone: make(chan struct{})}
	s.rd.init()
	s.wd.init()
	return s
}

func (s *stream) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// end ends the stream; what is on the way is dropped by a reset.
func (s *stream) end(err error, drop bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if drop {
		s.queue, s.size = nil, 0
	}
	if s.err == nil {
		s.err = err
		close(s.gone)
	}
	s.poke()
}

func (s *stream) write(b []byte) (int, error) {
	s.n.mu.Lock() // before the stream's, as whoever resets connections takes them
	delay, rate := s.n.delay(), s.n.rate[s.way]
	s.n.mu.Unlock()
	for {
		s.mu.Lock()
		if s.err != nil {
			s.mu.Unlock()
			return 0, syscall.EPIPE
		}
		if s.size < bufferBytes {
			break
		}
		s.mu.Unlock()
		select {
		case <-s.space:
		case <-s.gone:
		case <-s.wd.wait():
			return 0, os.ErrDeadlineExceeded
		}
	}
	defer s.mu.Unlock()
	at := time.Now().Add(delay)
	if at.Before(s.last) {
		at = s.last
	}
	if rate > 0 {
		at = at.Add(time.Duration(len(b)) * time.Second / time.Duration(rate))
	}
	s.last = at
	s.queue = append(s.queue, chunk{at, append([]byte(nil), b...)})
	s.size += len(b)
	s.poke()
	return len(b), nil
}

func (s *stream) read(b []byte) (int, error) {
	for {
		n, wait, err := s.tryRead(b)
		if n > 0 || err != nil {
			return n, err
		}
		var timer *time.Timer
		var due <-chan time.Time
		if wait > 0 {
			timer = time.NewTimer(wait)
			due = timer.C
		}
		select {
		case <-s.wake:
		case <-due:
		case <-s.rd.wait():
			err = os.ErrDeadlineExceeded
		}
		if timer != nil {
			timer.Stop()
		}
		if err != nil {
			return 0, err
		}
	}
}

// tryRead takes what has arrived, or says how long the next chunk takes; 0: nobody knows.
func (s *stream) tryRead(b []byte) (n int, wait time.Duration, err error) {
	s.n.mu.Lock()
	holed := s.n.hole[s.way]
	s.n.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(s.queue) == 0:
		return 0, 0, s.err
	case holed:
		return 0, 0, nil
	}
	if wait = time.Until(s.queue[0].at); wait > 0 {
		return 0, wait, nil
	}
	head := &s.queue[0]
	n = copy(b, head.data)
	if head.data = head.data[n:]; len(head.data) == 0 {
		s.queue = s.queue[1:]
	}
	s.size -= n
	select {
	case s.space <- struct{}{}:
	default:
	}
	s.n.w.trace.delivered(s.way, n)
	return n, 0, nil
}

// conn is one end of a connection.
type conn struct {
	n             *network
	read, write   *stream
	local, remote net.Addr
	once          sync.Once
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.read.read(b)
	return n, c.wrap("read", err)
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.write.write(b)
	return n, c.wrap("write", err)
}

func (c *conn) wrap(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

func (c *conn) Close() error {
	c.once.Do(func() {
		c.n.mu.Lock()
		delete(c.n.conns, c)
		c.n.mu.Unlock()
		c.read.end(net.ErrClosed, true)
		c.write.end(io.EOF, false)
	})
	return nil
}

func (c *conn) LocalAddr() net.Addr                { return c.local }
func (c *conn) RemoteAddr() net.Addr               { return c.remote }
func (c *conn) SetReadDeadline(t time.Time) error  { c.read.rd.set(t); return nil }
func (c *conn) SetWriteDeadline(t time.Time) error { c.write.wd.set(t); return nil }
func (c *conn) SetDeadline(t time.Time) error {
	c.read.rd.set(t)
	c.write.wd.set(t)
	return nil
}

// deadline is a moment that can be moved while somebody waits for it.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	over  chan struct{}
}

func (d *deadline) init() { d.over = make(chan struct{}) }

func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.over
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.over // it has run, or is about to
	}
	d.timer = nil
	select {
	case <-d.over:
		d.over = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	over := d.over
	if left := time.Until(t); left > 0 {
		d.timer = time.AfterFunc(left, func() { close(over) })
		return
	}
	close(over)
}

// mend undoes every cut, hole and limit.
func (n *network) mend() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	clear(n.hole)
	clear(n.rate)
	n.lo, n.hi = 50*time.Microsecond, 400*time.Microsecond
	for c := range n.conns {
		c.read.poke()
	}
}
