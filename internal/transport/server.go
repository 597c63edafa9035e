package transport

import (
	"context"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const (
	serviceName  = "chronik.Transport"
	streamMethod = "/" + serviceName + "/Stream"
	callMethod   = "/" + serviceName + "/Call"
	// maxRefusal bounds a refusal's text: it travels in a header.
	maxRefusal = 1 << 10
)

// streamDesc is the stream as the dialing side needs to know it.
var streamDesc = grpc.StreamDesc{StreamName: "Stream", ClientStreams: true, ServerStreams: true}

// newServer registers the one service by hand: there is no generated code.
func newServer(t *Transport) *grpc.Server {
	stream := streamDesc
	stream.Handler = func(_ any, s grpc.ServerStream) error { return t.serveStream(s) }
	call := grpc.MethodDesc{
		MethodName: "Call",
		Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			return t.serveCall(ctx, decode)
		},
	}
	s := grpc.NewServer(serverOptions(t)...)
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: serviceName,
		HandlerType: (*any)(nil),
		Streams:     []grpc.StreamDesc{stream},
		Methods:     []grpc.MethodDesc{call},
	}, t)
	return s
}

// connOf returns the connection that a request came on.
func connOf(ctx context.Context) (*conn, error) {
	if p, ok := grpcpeer.FromContext(ctx); ok {
		if c, ok := p.AuthInfo.(*conn); ok {
			return c, nil
		}
	}
	return nil, status.Error(codes.Internal, "connection unknown")
}

// trim shortens a refusal's text to what is sent.
func trim(reason string) string { return reason[:min(len(reason), maxRefusal)] }

// refusal is why a peer's Hello is not accepted, for the peer to read.
type refusal string

// Error implements error.
func (r refusal) Error() string { return string(r) }

// errLate says that a Hello came when the connection was already given up.
var errLate = errors.New("hello came too late")

// admission is a stream from a peer whose Hello was accepted.
type admission struct {
	p     *peer
	class Class
	in    *inStream
	reply []byte // our Hello
}

// leave says that the stream has ended.
func (a *admission) leave() { a.p.leave(a.class, a.in) }

// admit judges the first message of a stream that came on c. Errors: a refusal, ErrClosed, errLate.
func (t *Transport) admit(c *conn, first []byte) (*admission, error) {
	pre, err := decodePreamble(first)
	if err != nil {
		t.stranger(c.RemoteAddr(), err)
		return nil, refusal(err.Error())
	}
	if pre.to != t.opt.Node {
		return nil, refusal(fmt.Sprintf("this is node %d, not node %d: correct the address", t.opt.Node, pre.to))
	}
	if pre.from == t.opt.Node {
		return nil, refusal(fmt.Sprintf("node id %d is this node's own: two nodes have the same id, or one dials itself", pre.from))
	}
	info, err := t.opt.Handler.AcceptHello(pre.hello)
	if err != nil {
		return nil, refusal(err.Error())
	}
	if info.Node != pre.from {
		return nil, refusal(fmt.Sprintf("the hello is node %d's, the stream node %d's", info.Node, pre.from))
	}
	addr := reachable(info.Addr, c.RemoteAddr())
	p := t.ensure(info.Node, addr)
	if p == nil {
		return nil, ErrClosed
	}
	p.learnAddr(addr)
	a := &admission{p: p, class: pre.class, in: &inStream{info: info, conn: c, done: make(chan struct{})}}
	p.enter(a.class, a.in)
	// Before the answer: the peer may call as soon as it has that.
	if !c.greeted(info) {
		a.leave()
		return nil, errLate
	}
	a.reply = preamble{version: protocolVersion, class: a.class, from: t.opt.Node, to: info.Node, hello: t.opt.Handler.Hello()}.encode()
	return a, nil
}

// serveStream is one gRPC stream from a peer, from its Hello to its end.
func (t *Transport) serveStream(stream grpc.ServerStream) error {
	c, err := connOf(stream.Context())
	if err != nil {
		return err
	}
	var m received
	if err := stream.RecvMsg(&m); err != nil {
		return err
	}
	a, err := t.admit(c, m.take())
	var no refusal
	switch {
	case errors.As(err, &no):
		return status.Error(codes.PermissionDenied, trim(string(no)))
	case errors.Is(err, ErrClosed):
		return status.Error(codes.Unavailable, err.Error())
	case err != nil:
		return status.Error(codes.DeadlineExceeded, err.Error())
	}
	defer a.leave()
	if a.class == Control && !t.opt.grpcOnly {
		if err := stream.SetHeader(metadata.Pairs(plainHeader, "1")); err != nil {
			return err
		}
	}
	if err := stream.SendMsg(mem.BufferSlice{mem.SliceBuffer(a.reply)}); err != nil {
		return err
	}
	a.p.setLive(a.class, a.in)
	return t.receive(stream, a.p, a.in.info, a.class)
}

// reachable returns where a peer that says addr of itself can be dialed. One that
// listens on every address of its machine is dialed at the one it comes from.
func reachable(addr string, from net.Addr) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return addr
	}
	host, _, err = net.SplitHostPort(from.String())
	if err != nil {
		return ""
	}
	return net.JoinHostPort(host, port)
}

// receive delivers frames until the stream ends.
func (t *Transport) receive(stream grpc.ServerStream, p *peer, info PeerInfo, class Class) error {
	deliver := func(frame []byte) {
		p.stats.framesReceived.Add(1)
		t.opt.Handler.Frame(info, class, frame)
	}
	for {
		var m received
		if err := stream.RecvMsg(&m); err != nil {
			return err
		}
		if class == bulk {
			m.free()
			return status.Error(codes.InvalidArgument, "a bulk stream carries no frames")
		}
		p.stats.bytesReceived.Add(uint64(m.data.Len()))
		err := unpack(m.data, deliver)
		m.free()
		if err != nil {
			t.log.Error("ended a stream with malformed frames", "peer", info.Node, "class", class.String(), "err", err)
			return status.Error(codes.InvalidArgument, err.Error())
		}
	}
}

// unknown answers a gRPC program that is not ours.
func (t *Transport) unknown(_ any, stream grpc.ServerStream) error {
	if c, err := connOf(stream.Context()); err == nil {
		method, _ := grpc.MethodFromServerStream(stream)
		t.stranger(c.RemoteAddr(), fmt.Errorf("it asks for %q", method))
	}
	return status.Error(codes.Unimplemented, "this is a chronik node's port for other nodes")
}
