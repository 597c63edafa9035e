package transport

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

const (
	dialTimeout  = 2 * time.Second
	helloTimeout = 5 * time.Second
	minBackoff   = 50 * time.Millisecond
	maxBackoff   = time.Second
)

// errRefused marks an error that is the peer's own words against our Hello.
var errRefused = errors.New("refused")

// link keeps one class's stream to one peer open: it dials, says Hello, sends
// what is queued, and begins again when the stream ends. Control goes first;
// the other classes are dialed once the peer has accepted it.
type link struct {
	p     *peer
	class Class
	// kick cuts the pause before the next attempt short.
	kick chan struct{}
}

// wake makes the next attempt begin at once.
func (l *link) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

func (l *link) run() {
	backoff := minBackoff
	for attempt := 0; ; attempt++ {
		session := l.session
		if l.class != Control {
			control, err := l.p.await(l.p.ctx, Control)
			if err != nil {
				return
			}
			if l.class == Append && control.plain {
				session = l.plainSession
			}
		}
		accepted, err := session(l.p.addr(attempt))
		if l.p.ctx.Err() != nil {
			return
		}
		if accepted {
			backoff, attempt = minBackoff, attempt-1 // the address was right
		} else {
			l.report(err)
		}
		pause := time.NewTimer(backoff/2 + rand.N(backoff/2))
		select {
		case <-pause.C:
			backoff = min(2*backoff, maxBackoff)
		case <-l.kick:
			pause.Stop()
			backoff = minBackoff
		case <-l.p.ctx.Done():
			pause.Stop()
			return
		}
	}
}

func (l *link) report(err error) {
	text, refused := err.Error(), errors.Is(err, errRefused)
	if refused {
		text = strings.TrimPrefix(text, errRefused.Error()+": ")
	}
	if !l.p.failed(text, refused) {
		return
	}
	if refused {
		l.p.t.log.Warn("refused by node", "peer", l.p.node, "class", l.class.String(), "err", text)
		return
	}
	l.p.t.log.Info("failed to connect to node", "peer", l.p.node, "class", l.class.String(), "err", text)
}

// session is one connection from dial to end. It tells whether the peer
// accepted it, and if not, why.
func (l *link) session(addr string) (accepted bool, err error) {
	if addr == "" {
		return false, errors.New("no address known")
	}
	ctx, cancel := context.WithCancel(l.p.ctx)
	defer cancel()
	cc, err := dialOnce(ctx, l.p.t.opt.Dial, addr)
	if err != nil {
		return false, err
	}
	defer func() { _ = cc.Close() }() // only tells that it was closed before
	timer := time.AfterFunc(helloTimeout, cancel)
	defer timer.Stop()
	stream, err := cc.NewStream(ctx, &streamDesc, streamMethod)
	if err != nil {
		return false, describe(ctx, err)
	}
	info, err := l.greet(ctx, stream)
	if err != nil {
		return false, err
	}
	header, err := stream.Header() // it came before the Hello
	if err != nil {
		return false, describe(ctx, err)
	}
	if !timer.Stop() {
		return false, errors.New("no hello in time")
	}
	s := &outStream{info: info, cc: cc, end: cancel, plain: len(header.Get(plainHeader)) > 0}
	if !l.p.setOut(l.class, s) {
		return false, errors.New("connection given up")
	}
	l.serve(ctx, stream, cancel)
	l.p.clearOut(l.class, s)
	return true, nil
}

// greet says Hello and judges the answer.
func (l *link) greet(ctx context.Context, stream grpc.ClientStream) (PeerInfo, error) {
	// A failed send shows its cause in the receive.
	_ = stream.SendMsg(mem.BufferSlice{mem.SliceBuffer(l.hello())})
	var m received
	if err := stream.RecvMsg(&m); err != nil {
		return PeerInfo{}, describe(ctx, err)
	}
	return l.judgeReply(m.take())
}

// hello is the first message of a stream to the peer.
func (l *link) hello() []byte {
	t := l.p.t
	return preamble{version: protocolVersion, class: l.class, from: t.opt.Node, to: l.p.node, hello: t.opt.Handler.Hello()}.encode()
}

// judgeReply tells whose answer to our Hello b is.
func (l *link) judgeReply(b []byte) (PeerInfo, error) {
	reply, err := decodePreamble(b)
	if err != nil {
		return PeerInfo{}, err
	}
	if reply.from != l.p.node {
		return PeerInfo{}, fmt.Errorf("node %d answers there", reply.from)
	}
	info, err := l.p.t.opt.Handler.AcceptHello(reply.hello)
	if err != nil {
		return PeerInfo{}, fmt.Errorf("its hello is not acceptable: %w", err)
	}
	if info.Node != l.p.node {
		return PeerInfo{}, fmt.Errorf("its hello is node %d's", info.Node)
	}
	return info, nil
}

// serve sends frames until the stream ends.
func (l *link) serve(ctx context.Context, stream grpc.ClientStream, cancel context.CancelFunc) {
	var sender sync.WaitGroup
	if l.class < bulk {
		box := l.p.boxes[l.class]
		ticket := box.attach()
		sender.Go(func() {
			l.send(stream, box, ticket)
			cancel()
		})
		defer func() {
			box.detach(ticket)
			sender.Wait()
		}()
	}
	// The peer sends nothing but its Hello: whatever comes is the end.
	var m received
	if err := stream.RecvMsg(&m); err == nil {
		m.free()
	}
	cancel()
}

func (l *link) send(stream grpc.ClientStream, box *outbox, ticket uint64) {
	st := &l.p.stats
	for {
		m, frames, ok := box.pop(ticket)
		if !ok {
			return
		}
		n := m.Len()
		if err := stream.SendMsg(m); err != nil {
			return // the receive tells why
		}
		st.messagesSent.Add(1)
		st.framesSent.Add(uint64(frames))
		st.bytesSent.Add(uint64(n))
	}
}

func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

// dialFor dials for dialTimeout at most.
func dialFor(ctx context.Context, dial func(context.Context, string) (net.Conn, error), addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return dial(ctx, addr)
}

// dialOnce returns a gRPC connection over exactly one TCP connection: when
// that ends so does it, and when to try again is the link's decision.
func dialOnce(ctx context.Context, dial func(context.Context, string) (net.Conn, error), addr string) (*grpc.ClientConn, error) {
	raw, err := dialFor(ctx, dial, addr)
	if err != nil {
		return nil, err
	}
	var once sync.Once
	dialer := func(context.Context, string) (c net.Conn, err error) {
		err = errors.New("connection ended")
		once.Do(func() { c, err = raw, nil })
		return c, err
	}
	cc, err := grpc.NewClient("passthrough:///"+addr, clientOptions(dialer)...)
	if err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	// gRPC closes raw once it has taken it; this is for a connection given up before.
	context.AfterFunc(ctx, func() { once.Do(func() { _ = raw.Close() }) })
	return cc, nil
}

// describe turns what gRPC says into what an operator should read.
func describe(ctx context.Context, err error) error {
	st := status.Convert(err)
	if st.Code() == codes.PermissionDenied {
		return fmt.Errorf("%w: %s", errRefused, st.Message())
	}
	if ctx.Err() != nil {
		return errors.New("no hello in time")
	}
	return errors.New(st.Message())
}
