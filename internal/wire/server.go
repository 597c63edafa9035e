package wire

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Request is one decoded request.
type Request struct {
	Conn          *Conn
	Key           int16
	Version       int16
	CorrelationID int32
	ClientID      string // empty if null
	Body          kmsg.Request
	Size          int       // the frame's bytes, without the size field
	Received      time.Time // when its last byte was here

	p   *pending // nil without a socket
	buf *[]byte  // the frame, if Release may give it back
}

// Handler serves requests.
type Handler interface {
	// Serve is called on the connection's reading goroutine, in arrival order.
	// It must call reply exactly once, now or later, from any goroutine; nil
	// means that no response is sent (acks=0). While Serve blocks, the
	// connection's next request waits. Responses leave in request order. ctx
	// ends with the connection. req.Body's byte slices alias the frame, which is
	// the handler's until it calls req.Release.
	Serve(ctx context.Context, req *Request, reply func(kmsg.Response))
	// Versions tells which versions of a key are served. Others never reach
	// Serve: ApiVersions is answered with error 35 and its own range, anything
	// else closes the connection.
	Versions(key int16) (minVersion, maxVersion int16, ok bool)
}

// Defaults of Options.
const (
	DefaultMaxFrame        = 100 << 20
	DefaultMaxInflight     = 64
	DefaultMaxPendingBytes = 8 << 20
	DefaultIdleTimeout     = 10 * time.Minute
)

// Options configure a Server. Handler is required.
type Options struct {
	Handler         Handler
	MaxFrame        int           // largest request in bytes
	MaxInflight     int           // requests of one connection that wait for their response
	MaxPendingBytes int           // responses that wait for a slow peer before its next request is read
	Memory          *Quota        // bytes of requests in flight, shared by what shares it; nil: unlimited
	Responses       *Quota        // bytes of responses whose handlers asked for Room, until written; nil: unlimited
	Backlog         *Backlog      // Produce requests worked on; nil: unlimited
	IdleTimeout     time.Duration // a connection without a request in flight, or a peer that takes no byte, for this long is closed
	MaxConns        int           // 0: unlimited
	Logger          *slog.Logger
}

// ErrServerClosed is what Serve returns after Close.
var ErrServerClosed = errors.New("wire: server closed")

// Server accepts connections and serves them.
type Server struct {
	opt Options
	log *slog.Logger

	mu        sync.Mutex
	closed    bool
	stop      chan struct{} // closed with closed
	listeners map[net.Listener]struct{}
	conns     map[*Conn]struct{}
	// lastShed and lastShedSenders are when connections were last looked at for being stalled.
	lastShed, lastShedSenders time.Time
	// lastRefused is when a refusal was last logged.
	lastRefused time.Time
	wg          sync.WaitGroup // two a connection

	nextID                        atomic.Uint64
	accepted, refused             atomic.Uint64
	requests, bytesIn, bytesOut   atomic.Uint64
	protocolErrors, idleConnsGone atomic.Uint64
	stalledConnsGone              atomic.Uint64
}

// Stats are counters since start, but Connections, which is a gauge.
type Stats struct {
	Connections    int
	Accepted       uint64
	Refused        uint64 // over MaxConns
	ProtocolErrors uint64 // connections closed for what they sent
	IdleClosed     uint64
	StalledClosed  uint64 // took no response, or sent no request, while the node was short of room
	Requests       uint64
	BytesIn        uint64
	BytesOut       uint64
}

// NewServer returns a server. Zero options get their defaults.
func NewServer(opt Options) *Server {
	if opt.MaxFrame <= 0 {
		opt.MaxFrame = DefaultMaxFrame
	}
	if opt.MaxInflight <= 0 {
		opt.MaxInflight = DefaultMaxInflight
	}
	if opt.MaxPendingBytes <= 0 {
		opt.MaxPendingBytes = DefaultMaxPendingBytes
	}
	if opt.IdleTimeout <= 0 {
		opt.IdleTimeout = DefaultIdleTimeout
	}
	if opt.Logger == nil {
		opt.Logger = slog.Default()
	}
	return &Server{
		opt: opt, log: opt.Logger, stop: make(chan struct{}),
		listeners: map[net.Listener]struct{}{}, conns: map[*Conn]struct{}{},
	}
}

// Stats returns the server's counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	n := len(s.conns)
	s.mu.Unlock()
	return Stats{
		Connections: n, Accepted: s.accepted.Load(), Refused: s.refused.Load(), ProtocolErrors: s.protocolErrors.Load(),
		IdleClosed: s.idleConnsGone.Load(), StalledClosed: s.stalledConnsGone.Load(), Requests: s.requests.Load(), BytesIn: s.bytesIn.Load(), BytesOut: s.bytesOut.Load(),
	}
}

// Serve accepts connections from l until Close, which makes it return
// ErrServerClosed, or until l fails. It closes l.
func (s *Server) Serve(l net.Listener) error {
	defer func() { _ = l.Close() }()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	var pause time.Duration
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			s.add(nc)
			continue
		case s.isClosed():
			return ErrServerClosed
		case !retryable(err):
			return err
		}
		// Out of file descriptors, most likely: others will be closed.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.log.Warn("accept failed, will retry", "took", pause, "err", err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-s.stop:
			timer.Stop()
			return ErrServerClosed
		}
	}
}

// refusalsEvery is how often a refused connection is logged.
const refusalsEvery = time.Second

func retryable(err error) bool {
	var ne net.Error
	//nolint:staticcheck // the kernel's passing shortages are reported by nothing else
	return errors.As(err, &ne) && ne.Temporary()
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// add starts a connection, or refuses it.
func (s *Server) add(nc net.Conn) {
	if tc, ok := nc.(*net.TCPConn); ok {
		_ = tc.SetNoDelay(true) // a failure shows in the first read
	}
	s.mu.Lock()
	switch {
	case s.closed:
		s.mu.Unlock()
		_ = nc.Close()
		return
	case s.opt.MaxConns > 0 && len(s.conns) >= s.opt.MaxConns:
		now := time.Now()
		quiet := now.Sub(s.lastRefused) < refusalsEvery // a client that comes again and again fills no log
		if !quiet {
			s.lastRefused = now
		}
		s.mu.Unlock()
		if n := s.refused.Add(1); !quiet { // before the client can see it: who finds a closed connection finds the reason
			s.log.Warn("refused connection", "peer", nc.RemoteAddr().String(), "reason", "too many connections (kafka.max_connections)", "limit", s.opt.MaxConns, "refused", n)
		}
		_ = nc.Close()
		return
	}
	c := newConn(s, nc, s.nextID.Add(1))
	s.conns[c] = struct{}{}
	s.wg.Add(2)
	s.mu.Unlock()
	s.accepted.Add(1)
	go c.readLoop()
	go c.writeLoop()
}

func (s *Server) remove(c *Conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// Close stops accepting and reading, waits until the requests in flight are
// answered and their responses written, and closes the connections. When ctx
// ends first, connections are closed as they are and ctx's error is returned; a
// handler may then still be running.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stop)
	}
	for l := range s.listeners {
		_ = l.Close()
	}
	conns := s.snapshot()
	s.mu.Unlock()
	for _, c := range conns {
		c.drain()
	}
	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	conns = s.snapshot()
	s.mu.Unlock()
	for _, c := range conns {
		c.close()
	}
	return ctx.Err()
}

func (s *Server) snapshot() []*Conn {
	out := make([]*Conn, 0, len(s.conns))
	for c := range s.conns {
		out = append(out, c)
	}
	return out
}
