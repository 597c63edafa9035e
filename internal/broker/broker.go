package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chronik/internal/admin"
	"chronik/internal/config"
	"chronik/internal/raftgroup"
	"chronik/internal/raftlog"
	"chronik/internal/transport"
	"chronik/internal/vfs"
)

// Options of a Broker.
type Options struct {
	Config  *config.Config
	Log     *slog.Logger
	Version string
	// FS is where the data lies; nil: the operating system's.
	FS vfs.FS
	// Net is how the node meets clients and peers; zero: the operating system's TCP.
	Net Net
	// Wall tells the date, for what is stored or judged by it on other nodes too; nil: time.Now. It may step. Whatever
	// waits goes by time.Now, which does not.
	Wall func() time.Time
}

// Net are the ways in and out of a node that a simulated network takes over. Each may be nil.
type Net struct {
	Listen func(addr string) (net.Listener, error)
	Dial   func(ctx context.Context, addr string) (net.Conn, error)
	// Receive may put itself between the transport and the node, to lose, delay or repeat frames.
	Receive func(transport.Handler) transport.Handler
	// Send may put itself between the node's groups and the transport, to look at frames as they leave.
	Send func(transport.Sender) transport.Sender
}

func (n Net) listen(addr string) (net.Listener, error) {
	if n.Listen != nil {
		return n.Listen(addr)
	}
	return net.Listen("tcp", addr)
}

func (n Net) receive(h transport.Handler) transport.Handler {
	if n.Receive != nil {
		return n.Receive(h)
	}
	return h
}

func (n Net) send(s transport.Sender) transport.Sender {
	if n.Send != nil {
		return n.Send(s)
	}
	return s
}

// Broker is a running node.
type Broker struct {
	opt   Options
	log   *slog.Logger
	fs    vfs.FS
	admin *admin.Server
	reg   *prometheus.Registry
	metrics

	cur    atomic.Pointer[session]
	cancel context.CancelFunc
	wg     sync.WaitGroup
	done   chan struct{} // closed when the node has stopped
	err    error         // why, nil for a clean stop; set before done is closed
}

// Error is a reason not to start, or to stop, with advice.
type Error struct {
	Msg  string
	Hint string
	Err  error // may be nil
}

// Error implements error.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Msg
	}
	return e.Msg + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Advice returns what to do about it.
func (e *Error) Advice() string { return e.Hint }

// stopTimeout bounds a clean stop: leaderships are handed over within it.
const stopTimeout = 8 * time.Second

// listeners are a node's three sockets.
type listeners struct{ kafka, raft, admin net.Listener }

// Start opens the ports and the store and begins to serve. It returns once that
// much is certain; what comes after, such as peers that are awaited, is in the
// log and in /readyz. Stop it by ending ctx or by Stop; then Wait.
func Start(ctx context.Context, opt Options) (*Broker, error) {
	b := &Broker{opt: opt, log: opt.Log, fs: opt.FS, done: make(chan struct{}), reg: prometheus.NewRegistry()}
	if b.fs == nil {
		b.fs = vfs.Default
	}
	if b.opt.Wall == nil {
		b.opt.Wall = time.Now
	}
	b.metrics = newMetrics(b.reg, b)
	ls, err := b.listen()
	if err != nil {
		return nil, err
	}
	s, err := b.open(ls)
	if err != nil {
		ls.close()
		return nil, err
	}
	b.admin = admin.NewServer(b.Source(), b.reg, b.log)
	ctx, b.cancel = context.WithCancel(ctx)
	b.wg.Go(func() {
		if err := b.admin.Serve(ls.admin); err != nil {
			b.log.Error("admin address stopped", "err", err)
		}
	})
	b.wg.Go(func() { b.supervise(ctx, s) })
	return b, nil
}

// Source answers what the admin address answers.
func (b *Broker) Source() admin.Source { return view{b} }

// Groups returns the node's groups and the log they share, nil while it has none: a simulation compares
// with the log what leaves the node, and moves leaderships.
func (b *Broker) Groups() (*raftgroup.Host, *raftlog.Log) {
	s := b.session()
	if s == nil {
		return nil, nil
	}
	return s.host, s.rlog
}

func (b *Broker) session() *session { return b.cur.Load() }

// Stop begins a clean stop. Wait tells when it is over.
func (b *Broker) Stop() { b.cancel() }

// Wait returns when the node has stopped: nil after a clean stop. When ctx ends the node is stopped.
func (b *Broker) Wait(ctx context.Context) error {
	select {
	case <-b.done:
	case <-ctx.Done():
		b.cancel()
		<-b.done
	}
	return b.err
}

// supervise runs one session after another until one ends for good.
func (b *Broker) supervise(ctx context.Context, s *session) {
	defer close(b.done)
	for {
		b.cur.Store(s)
		err := s.run(ctx)
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		s.stop(stopCtx)
		cancel()
		if ctx.Err() == nil && errors.Is(err, errRestored) {
			b.log.Warn("store is a restored copy: it gets a new identity", "err", err)
			if s, err = b.renew(s); err == nil {
				continue
			}
		} else if cerr := s.store.Close(); err == nil {
			err = cerr
		}
		if ctx.Err() == nil {
			b.err = err
		}
		break
	}
	b.cur.Store(nil)
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = b.admin.Close(stopCtx) // the process ends
}

// renew gives the store of an ended session a new identity and opens it again.
func (b *Broker) renew(old *session) (*session, error) {
	if err := errors.Join(old.renewStore(), old.store.Close()); err != nil {
		return nil, err
	}
	ls, err := b.listenAgain()
	if err != nil {
		return nil, err
	}
	return b.open(ls)
}

func (b *Broker) listen() (*listeners, error) {
	cfg := b.opt.Config
	ls := &listeners{}
	for _, l := range []struct {
		setting, addr string
		into          *net.Listener
	}{
		{"kafka.listen", cfg.Kafka.Listen, &ls.kafka},
		{"raft.listen", cfg.Raft.Listen, &ls.raft},
		{"admin.listen", cfg.Admin.Listen, &ls.admin},
	} {
		got, err := b.opt.Net.listen(l.addr)
		if err != nil {
			ls.close()
			return nil, listenError(l.setting, l.addr, err)
		}
		*l.into = got
	}
	return ls, nil
}

// listenAgain opens the ports a session closed; the admin port stays open.
func (b *Broker) listenAgain() (*listeners, error) {
	cfg := b.opt.Config
	ls := &listeners{}
	var err error
	if ls.kafka, err = b.opt.Net.listen(cfg.Kafka.Listen); err != nil {
		return nil, listenError("kafka.listen", cfg.Kafka.Listen, err)
	}
	if ls.raft, err = b.opt.Net.listen(cfg.Raft.Listen); err != nil {
		ls.close()
		return nil, listenError("raft.listen", cfg.Raft.Listen, err)
	}
	return ls, nil
}

func listenError(setting, addr string, err error) error {
	hint := fmt.Sprintf("is %s an address of this machine? %s says where to listen", addr, setting)
	if errors.Is(err, syscall.EADDRINUSE) {
		hint = fmt.Sprintf("another program, perhaps another node, listens there; choose another %s", setting)
	}
	return &Error{Msg: fmt.Sprintf("cannot listen on %s (%s)", addr, setting), Hint: hint, Err: err}
}

func (ls *listeners) close() {
	for _, l := range []net.Listener{ls.kafka, ls.raft, ls.admin} {
		if l != nil {
			_ = l.Close() // nothing was accepted yet
		}
	}
}
