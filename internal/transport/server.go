package transport

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
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

func refuse(reason string) error {
	if len(reason) > maxRefusal {
		reason = reason[:maxRefusal]
	}
	return status.Error(codes.PermissionDenied, reason)
}

// serveStream is one stream from a peer, from its Hello to its end.
func (t *Transport) serveStream(stream grpc.ServerStream) error {
	c, err := connOf(stream.Context())
	if err != nil {
		return err
	}
	var m received
	if err := stream.RecvMsg(&m); err != nil {
		return err
	}
	pre, err := decodePreamble(m.take())
	if err != nil {
		t.stranger(c.RemoteAddr(), err)
		return refuse(err.Error())
	}
	if pre.to != t.opt.Node {
		return refuse(fmt.Sprintf("this is node %d, not node %d: correct the address", t.opt.Node, pre.to))
	}
	if pre.from == t.opt.Node {
		return refuse(fmt.Sprintf("node id %d is this node's own: two nodes have the same id, or one dials itself", pre.from))
	}
	info, err := t.opt.Handler.AcceptHello(pre.hello)
	if err != nil {
		return refuse(err.Error())
	}
	if info.Node != pre.from {
		return refuse(fmt.Sprintf("the hello is node %d's, the stream node %d's", info.Node, pre.from))
	}
	addr := reachable(info.Addr, c.RemoteAddr())
	p := t.ensure(info.Node, addr)
	if p == nil {
		return status.Error(codes.Unavailable, ErrClosed.Error())
	}
	p.learnAddr(addr)
	in := &inStream{info: info, conn: c, done: make(chan struct{})}
	p.enter(pre.class, in)
	defer p.leave(pre.class, in)
	// Before the answer: the peer may call as soon as it has that.
	if !c.greeted(info) {
		return status.Error(codes.DeadlineExceeded, "hello came too late")
	}
	reply := preamble{version: protocolVersion, class: pre.class, from: t.opt.Node, to: info.Node, hello: t.opt.Handler.Hello()}
	if err := stream.SendMsg(reply.encode()); err != nil {
		return err
	}
	p.setLive(pre.class, in)
	return t.receive(stream, p, info, pre.class)
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
