package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

// This file is all there is about how connections are set up. Transport
// security goes here: serverCreds.ServerHandshake and clientOptions wrap the
// raw connection today and would hand it to TLS first.

const (
	// A server asks a silent connection for a sign of life after
	// keepaliveTime, the least gRPC allows, and gives it keepaliveTimeout. So a
	// stopped or cut-off node is noticed within their sum. A client may ask
	// only every 10 s; servers at both ends make up for it.
	keepaliveTime       = time.Second
	keepaliveTimeout    = 2 * time.Second
	clientKeepaliveTime = 10 * time.Second

	// Windows are static: letting gRPC grow them costs pings and a slow start.
	// A message of packBytes fits a stream's window several times.
	streamWindow = 8 << 20
	connWindow   = 16 << 20
	ioBuffer     = 128 << 10
)

// http2Preface is what every HTTP/2 client sends first.
var http2Preface = []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")

func serverOptions(t *Transport) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(serverCreds{t}),
		grpc.ForceServerCodecV2(codec{}),
		grpc.UnknownServiceHandler(t.unknown),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
		grpc.WriteBufferSize(ioBuffer),
		grpc.ReadBufferSize(ioBuffer),
		grpc.ConnectionTimeout(helloTimeout),
		grpc.WaitForHandlers(true),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	}
}

func clientOptions(dial func(context.Context, string) (net.Conn, error)) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dial),
		grpc.WithNoProxy(),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithIdleTimeout(0),
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connWindow),
		grpc.WithWriteBufferSize(ioBuffer),
		grpc.WithReadBufferSize(ioBuffer),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: helloTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: clientKeepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true,
		}),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(codec{}),
			grpc.MaxCallRecvMsgSize(maxMessage),
			grpc.MaxCallSendMsgSize(maxMessage),
		),
	}
}

// serverCreds is the handshake of an accepted connection: it turns away what
// begins neither as HTTP/2 nor as a plain stream, takes over the latter, and makes the connection known to its requests.
type serverCreds struct{ t *Transport }

// conn is one accepted connection. gRPC carries it as AuthInfo.
type conn struct {
	net.Conn
	credentials.CommonAuthInfo
	// head is what of the preface is still to be read again. Only the reader touches it.
	head []byte
	// hello closes the connection unless a Hello is accepted in time.
	hello *time.Timer
	// peer is set by the accepted Hello.
	peer atomic.Pointer[PeerInfo]
}

// AuthType implements credentials.AuthInfo.
func (c *conn) AuthType() string { return "insecure" }

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(b, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// close ends the connection and with it every stream on it.
func (c *conn) close() { _ = c.Conn.Close() }

// Close implements net.Conn.
func (c *conn) Close() error {
	c.hello.Stop()
	return c.Conn.Close()
}

// greeted notes who is at the other end. It returns false if that came too late.
func (c *conn) greeted(info PeerInfo) bool {
	c.peer.Store(&info)
	return c.hello.Stop()
}

// ServerHandshake implements credentials.TransportCredentials.
func (s serverCreds) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	head := make([]byte, len(http2Preface))
	n, err := io.ReadFull(raw, head)
	if n == 0 && errors.Is(err, io.EOF) {
		return nil, nil, io.EOF // somebody looked whether the port is open
	}
	plain := string(head) == plainPreface && !s.t.opt.grpcOnly
	if err != nil || !plain && !bytes.Equal(head, http2Preface) {
		err = fmt.Errorf("it begins with %q", head[:n])
		s.t.stranger(raw.RemoteAddr(), err)
		return nil, nil, err
	}
	c := &conn{Conn: raw}
	c.SecurityLevel = credentials.NoSecurity
	c.hello = time.AfterFunc(helloTimeout, c.close)
	if plain { // served here, on the goroutine that gRPC has for the connection and waits for at its end
		s.t.servePlainStream(c)
		_ = c.Close() // only tells that it was closed before
		return nil, nil, credentials.ErrConnDispatched
	}
	c.head = head
	return c, c, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (serverCreds) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("transport: server credentials cannot dial")
}

// Info implements credentials.TransportCredentials.
func (serverCreds) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "insecure"}
}

// Clone implements credentials.TransportCredentials.
func (s serverCreds) Clone() credentials.TransportCredentials { return s }

// OverrideServerName implements credentials.TransportCredentials.
func (serverCreds) OverrideServerName(string) error { return nil }

// stranger logs a connection that is not a chronik node's, one line a second at most.
func (t *Transport) stranger(from net.Addr, err error) {
	t.strangers.Do(func() {
		t.log.Warn("turned away a connection that is not a chronik node's", "remote", from.String(), "err", err)
	})
}
