package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"chronik/internal/alloctest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testHandler serves what serve says, and all versions kmsg knows of some keys.
type testHandler struct {
	serve func(ctx context.Context, req *Request, reply func(kmsg.Response))
}

func (h *testHandler) Serve(ctx context.Context, req *Request, reply func(kmsg.Response)) {
	h.serve(ctx, req, reply)
}

func (h *testHandler) Versions(key int16) (int16, int16, bool) {
	switch key {
	case 0, 1, 3, 10, 12, 18:
		v := kmsg.RequestForKey(key).MaxVersion()
		if key == 18 {
			v = 3
		}
		return 0, v, true
	}
	return 0, 0, false
}

// logs collects what the server logs.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

type rig struct {
	t    testing.TB
	srv  *Server
	addr string
	logs *logs
}

// start runs a server on loopback until the test ends.
func start(t testing.TB, opt Options, serve func(ctx context.Context, req *Request, reply func(kmsg.Response))) *rig {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, addr: l.Addr().String(), logs: &logs{}}
	opt.Handler = &testHandler{serve}
	opt.Logger = slog.New(slog.NewTextHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r.srv = NewServer(opt)
	served := make(chan error, 1)
	go func() { served <- r.srv.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = r.srv.Close(ctx)
		if err := <-served; !errors.Is(err, ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return r
}

// client is a raw connection.
type client struct {
	net.Conn
	t testing.TB
}

func (r *rig) dial() *client {
	r.t.Helper()
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	r.t.Cleanup(func() { _ = c.Close() })
	return &client{c, r.t}
}

func (c *client) send(id int32, req kmsg.Request) {
	c.t.Helper()
	c.raw(kmsg.NewRequestFormatter(kmsg.FormatterClientID("tester")).AppendRequest(nil, req, id))
}

func (c *client) raw(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// recv reads one response and returns its correlation id and what follows.
func (c *client) recv() (int32, []byte) {
	c.t.Helper()
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		c.t.Fatalf("reading a response: %v", err)
	}
	b := make([]byte, binary.BigEndian.Uint32(head[:]))
	if _, err := io.ReadFull(c, b); err != nil {
		c.t.Fatal(err)
	}
	return int32(binary.BigEndian.Uint32(b)), b[4:]
}

// expectClosed waits until the server hangs up without a byte.
func (c *client) expectClosed() {
	c.t.Helper()
	var b [1]byte
	n, err := c.Read(b[:])
	var ne net.Error
	if n != 0 || err == nil || errors.As(err, &ne) && ne.Timeout() {
		c.t.Fatalf("connection still open: %d bytes, %v", n, err)
	}
}

func metadata(v int16, topic string) kmsg.Request {
	req := kmsg.NewPtrMetadataRequest()
	req.Version = v
	rt := kmsg.NewMetadataRequestTopic()
	rt.Topic = kmsg.StringPtr(topic)
	req.Topics = append(req.Topics, rt)
	return req
}

// echo answers Metadata with the topic asked for.
func echo(req *Request) kmsg.Response {
	resp := req.Body.ResponseKind().(*kmsg.MetadataResponse)
	rt := kmsg.NewMetadataResponseTopic()
	rt.Topic = req.Body.(*kmsg.MetadataRequest).Topics[0].Topic
	resp.Topics = append(resp.Topics, rt)
	return resp
}

func (c *client) recvMetadata(v int16) (int32, string) {
	c.t.Helper()
	id, b := c.recv()
	resp := kmsg.NewPtrMetadataResponse()
	resp.Version = v
	if resp.IsFlexible() {
		b = b[1:]
	}
	if err := resp.ReadFrom(b); err != nil {
		c.t.Fatal(err)
	}
	return id, *resp.Topics[0].Topic
}

func TestRequestsOfBothHeaders(t *testing.T) {
	got := make(chan *Request, 2)
	r := start(t, Options{}, func(_ context.Context, req *Request, reply func(kmsg.Response)) {
		got <- req
		reply(echo(req))
	})
	c := r.dial()
	for i, v := range []int16{1, 12} {
		c.send(int32(40+i), metadata(v, "topic-x"))
		if id, topic := c.recvMetadata(v); id != int32(40+i) || topic != "topic-x" {
			t.Errorf("version %d: %d, %q", v, id, topic)
		}
		req := <-got
		if req.Key != 3 || req.Version != v || req.CorrelationID != int32(40+i) || req.ClientID != "tester" || req.Size < 20 || req.Received.IsZero() || req.Conn.ID() != 1 {
			t.Errorf("request %+v", req)
		}
	}
}

// Answers come in any order and leave in the order of the requests.
func TestPipeliningKeepsOrder(t *testing.T) {
	const n = 50
	var mu sync.Mutex
	var held []func()
	all := make(chan struct{})
	r := start(t, Options{}, func(_ context.Context, req *Request, reply func(kmsg.Response)) {
		mu.Lock()
		defer mu.Unlock()
		held = append(held, func() { reply(echo(req)) })
		if len(held) == n {
			close(all)
		}
	})
	c := r.dial()
	for i := range n {
		c.send(int32(i), metadata(1, fmt.Sprint("t", i)))
	}
	<-all
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(held[(i*37+11)%n]) // 37 and 50 have no common divisor: each once
	}
	for i := range n {
		if id, topic := c.recvMetadata(1); id != int32(i) || topic != fmt.Sprint("t", i) {
			t.Fatalf("response %d: id %d, topic %s", i, id, topic)
		}
	}
	wg.Wait()
}

func TestNoResponseReleasesTheSlot(t *testing.T) {
	q := NewQuota(1 << 20)
	r := start(t, Options{MaxInflight: 2, Memory: q}, func(_ context.Context, req *Request, reply func(kmsg.Response)) {
		if req.Key == 0 {
			reply(nil)
			return
		}
		reply(echo(req))
	})
	c := r.dial()
	produce := kmsg.NewPtrProduceRequest()
	produce.Version = 7
	for i := range 20 {
		c.send(int32(i), produce)
	}
	c.send(99, metadata(1, "after"))
	if id, _ := c.recvMetadata(1); id != 99 {
		t.Errorf("response to %d", id)
	}
	awaitQuota(t, q, 0)
}

// awaitQuota waits, without polling, until q is down to n: by asking for room.
func awaitQuota(t testing.TB, q *Quota, n int64) {
	t.Helper()
	stop := make(chan struct{})
	timer := time.AfterFunc(10*time.Second, func() { close(stop) })
	defer timer.Stop()
	if !q.acquire(q.limit-n, stop) {
		t.Fatalf("%d bytes still held", q.Used())
	}
	q.release(q.limit - n)
	if q.Used() > n {
		t.Fatalf("%d bytes held, want %d", q.Used(), n)
	}
}

func TestApiVersions(t *testing.T) {
	r := start(t, Options{}, func(_ context.Context, req *Request, reply func(kmsg.Response)) {
		reply(req.Body.ResponseKind())
	})
	c := r.dial()
	// An unknown version, with a body nobody can decode.
	c.raw([]byte{0, 0, 0, 14, 0, 18, 0, 99, 0, 0, 0, 7, 0xff, 0xff, 1, 2, 3, 4})
	id, b := c.recv()
	resp := kmsg.NewPtrApiVersionsResponse()
	if err := resp.ReadFrom(b); err != nil || id != 7 || resp.ErrorCode != 35 || len(resp.ApiKeys) != 1 ||
		resp.ApiKeys[0].ApiKey != 18 || resp.ApiKeys[0].MaxVersion != 3 {
		t.Errorf("id %d, %+v, %v", id, resp, err)
	}
	// A known flexible version: the response header has no tags.
	req := kmsg.NewPtrApiVersionsRequest()
	req.Version = 3
	c.send(8, req)
	id, b = c.recv()
	resp = kmsg.NewPtrApiVersionsResponse()
	resp.Version = 3
	if err := resp.ReadFrom(b); err != nil || id != 8 || b[0] != 0 || b[1] != 0 {
		t.Errorf("id %d, %x, %v", id, b, err)
	}
}

func TestHostileInput(t *testing.T) {
	frame := func(body ...byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	}
	tests := []struct {
		name, reason string
		send         []byte
	}{
		{"http", "HTTP request on the Kafka port", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")},
		{"tls", "TLS handshake", []byte{0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00}},
		{"ssh", "SSH client", []byte("SSH-2.0-OpenSSH_9\r\n")},
		{"negative length", "negative frame length -1", []byte{0xff, 0xff, 0xff, 0xff}},
		{"zero length", "frame of 0 bytes", []byte{0, 0, 0, 0}},
		{"short", "frame of 7 bytes", []byte{0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0}},
		{"over the limit", "the limit is 1000000", []byte{0x00, 0x0f, 0x42, 0x41}},
		{"2 GiB", "frame of 2147483647 bytes", []byte{0x7f, 0xff, 0xff, 0xff}},
		{"unknown key", "request of key 999", frame(0x03, 0xe7, 0, 0, 0, 0, 0, 1, 0, 0)},
		{"negative key", "request of key -1", frame(0xff, 0xff, 0, 0, 0, 0, 0, 1, 0, 0)},
		{"key not served", "key 4 (LeaderAndISR)", frame(0, 4, 0, 0, 0, 0, 0, 1, 0, 0)},
		{"version not served", "Metadata version 99 is not served (0 to", frame(0, 3, 0, 99, 0, 0, 0, 1, 0, 0)},
		{"negative version", "Metadata version -1 is not served", frame(0, 3, 0xff, 0xff, 0, 0, 0, 1, 0, 0)},
		{"client id beyond the frame", "malformed request header", frame(0, 3, 0, 1, 0, 0, 0, 1, 0, 50, 'x')},
		{"no client id", "malformed request header", frame(0, 3, 0, 1, 0, 0, 0, 1)},
		{"header tags", "malformed request header", frame(0, 3, 0, 9, 0, 0, 0, 1, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f)},
		{"array length", "malformed body", frame(0, 3, 0, 1, 0, 0, 0, 1, 0, 0, 0x7f, 0xff, 0xff, 0xff)},
		{"body tags", "malformed body", frame(0, 18, 0, 3, 0, 0, 0, 1, 0, 0, 0, 2, 'a', 2, 'b', 0xff, 0xff, 0xff, 0xff, 0x0f)},
		{"body missing", "malformed body", frame(0, 3, 0, 1, 0, 0, 0, 1, 0, 0)},
		{"null where none is", "malformed body", frame(0, 10, 0, 0, 0, 0, 0, 1, 0, 0, 0xff, 0xff)},
		{"decodes to too much", "would decode to", frame(append([]byte{0, 3, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0}, make([]byte, 2<<16)...)...)},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			r := start(t, Options{MaxFrame: 1_000_000, Memory: NewQuota(1 << 30)}, func(context.Context, *Request, func(kmsg.Response)) {
				t.Error("the handler saw it")
			})
			c := r.dial()
			c.raw(tc.send)
			c.expectClosed()
			out := r.logs.String()
			if strings.Count(out, "\n") != 1 || !strings.Contains(out, tc.reason) || !strings.Contains(out, c.LocalAddr().String()) {
				t.Errorf("logged %q, want one line with %q and %s", out, tc.reason, c.LocalAddr())
			}
			if s := r.srv.Stats(); s.ProtocolErrors != 1 || s.Accepted != 1 {
				t.Errorf("%+v", s)
			}
			awaitQuota(t, r.srv.opt.Memory, 0)
		})
	}
}

// A length alone buys little memory: a peer that claims 100 MiB and falls
// silent holds 64 KiB, and nothing of the quota.
func TestSilentPeersCostLittle(t *testing.T) {
	q := NewQuota(1 << 20)
	r := start(t, Options{Memory: q}, func(_ context.Context, req *Request, reply func(kmsg.Response)) { reply(echo(req)) })
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var cs []*client
	for range 20 {
		c := r.dial()
		c.raw([]byte{0x06, 0x3f, 0xff, 0xff, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0})
		cs = append(cs, c)
	}
	c := r.dial() // the server still serves
	c.send(1, metadata(1, "t"))
	c.recvMetadata(1)
	runtime.ReadMemStats(&after)
	if n := int64(after.TotalAlloc - before.TotalAlloc); n > 20*(growthStep+32<<10) {
		t.Errorf("%d bytes allocated for 20 silent peers", n)
	}
	awaitQuota(t, q, 0)
	for _, c := range cs {
		_ = c.Close()
	}
}

// produceOf is a Produce request of about n bytes.
func produceOf(n int) kmsg.Request {
	req := kmsg.NewPtrProduceRequest()
	req.Version = 7
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic = "t"
	rp := kmsg.NewProduceRequestTopicPartition()
	rp.Records = bytes.Repeat([]byte{7}, n)
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	return req
}

func TestLargeFrame(t *testing.T) {
	r := start(t, Options{Memory: NewQuota(1 << 30)}, func(_ context.Context, req *Request, reply func(kmsg.Response)) {
		p := req.Body.(*kmsg.ProduceRequest).Topics[0].Partitions[0]
		if len(p.Records) != 3_000_000 || bytes.Count(p.Records, []byte{7}) != 3_000_000 {
			t.Errorf("%d bytes of records", len(p.Records))
		}
		reply(req.Body.ResponseKind())
	})
	c := r.dial()
	c.send(5, produceOf(3_000_000))
	if id, _ := c.recv(); id != 5 {
		t.Errorf("response to %d", id)
	}
	awaitQuota(t, r.srv.opt.Memory, 0)
}

// Readers wait for memory in line; it comes back with the response, and small
// requests pass meanwhile.
func TestMemoryQuota(t *testing.T) {
	q := NewQuota(300_000)
	produced := make(chan func(), 10)
	r := start(t, Options{Memory: q}, func(_ context.Context, req *Request, reply func(kmsg.Response)) {
		if req.Key == 3 {
			reply(echo(req))
			return
		}
		produced <- func() { reply(req.Body.ResponseKind()) }
	})
	a, b := r.dial(), r.dial()
	a.send(1, produceOf(200_000))
	first := <-produced
	b.send(2, produceOf(200_000)) // no room
	c := r.dial()
	c.send(3, metadata(1, "small"))
	c.recvMetadata(1)
	q.mu.Lock()
	waiting := len(q.waiters)
	q.mu.Unlock()
	if waiting > 1 || len(produced) != 0 {
		t.Fatalf("%d waiters, %d requests served over the quota", waiting, len(produced))
	}
	first()
	a.recv()
	(<-produced)()
	b.recv()
	awaitQuota(t, q, 0)
	// A peer that goes away gives back what it held, once its request is answered.
	a.send(4, produceOf(200_000))
	late := <-produced
	_ = a.Close()
	b.send(5, produceOf(200_000))
	late()
	(<-produced)()
	b.recv()
	awaitQuota(t, q, 0)
	// More than the whole quota is served alone.
	b.send(6, produceOf(900_000))
	(<-produced)()
	b.recv()
	awaitQuota(t, q, 0)
}

// A peer that does not read its responses stops being served.
func TestSlowReaderIsBounded(t *testing.T) {
	var mu sync.Mutex
	served := 0
	reached := make(chan struct{}, 1000)
	r := start(t, Options{MaxPendingBytes: 4 << 20, MaxInflight: 1000}, func(_ context.Context, req *Request, reply func(kmsg.Response)) {
		resp := req.Body.ResponseKind().(*kmsg.FetchResponse)
		rt := kmsg.NewFetchResponseTopic()
		rp := kmsg.NewFetchResponseTopicPartition()
		rp.RecordBatches = make([]byte, 1<<20)
		rt.Partitions = append(rt.Partitions, rp)
		resp.Topics = append(resp.Topics, rt)
		mu.Lock()
		served++
		mu.Unlock()
		reply(resp)
		reached <- struct{}{}
	})
	c := r.dial()
	fetch := kmsg.NewPtrFetchRequest()
	fetch.Version = 4
	for i := range 200 {
		c.send(int32(i), fetch)
	}
	for range 4 {
		<-reached
	}
	// Another connection goes through many rounds: whatever the first one may
	// still do, it has had the time.
	d := r.dial()
	for i := range 20 {
		d.send(int32(i), fetch)
		d.recv()
		<-reached
	}
	mu.Lock()
	n := served
	mu.Unlock()
	if n > 20+40 {
		t.Errorf("%d of 200 responses of 1 MiB were made for a peer that reads nothing", n-20)
	}
	for i := range 200 { // nothing is lost once it reads
		if id, b := c.recv(); id != int32(i) || len(b) < 1<<20 {
			t.Fatalf("response %d: id %d, %d bytes", i, id, len(b))
		}
	}
}

func TestMaxInflight(t *testing.T) {
	in := make(chan func(), 100)
	r := start(t, Options{MaxInflight: 3}, func(_ context.Context, req *Request, reply func(kmsg.Response)) {
		in <- func() { reply(echo(req)) }
	})
	c := r.dial()
	for i := range 10 {
		c.send(int32(i), metadata(1, "t"))
	}
	for i := range 10 {
		answer := <-in
		if len(in) > 2 {
			t.Fatalf("%d requests beside one in flight, the limit is 3", len(in))
		}
		answer()
		if id, _ := c.recvMetadata(1); id != int32(i) {
			t.Fatalf("id %d", id)
		}
	}
}

func TestCloseWaitsForRequests(t *testing.T) {
	in := make(chan func(), 1)
	r := start(t, Options{}, func(_ context.Context, req *Request, reply func(kmsg.Response)) {
		in <- func() { reply(echo(req)) }
	})
	busy, idle := r.dial(), r.dial()
	busy.send(1, metadata(1, "t"))
	answer := <-in
	closed := make(chan error, 1)
	go func() { closed <- r.srv.Close(context.Background()) }()
	idle.expectClosed() // at once: it owes nothing
	select {
	case err := <-closed:
		t.Fatalf("closed with a request in flight: %v", err)
	default:
	}
	answer()
	if id, _ := busy.recvMetadata(1); id != 1 {
		t.Errorf("id %d", id)
	}
	busy.expectClosed()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("tcp", r.addr); err == nil {
		_ = c.Close()
		t.Error("still listening")
	}
}

func TestCloseGivesUp(t *testing.T) {
	in := make(chan func(), 1)
	gone := make(chan struct{})
	q := NewQuota(1 << 20)
	r := start(t, Options{Memory: q}, func(ctx context.Context, req *Request, reply func(kmsg.Response)) {
		in <- func() { reply(echo(req)) }
		go func() { <-ctx.Done(); close(gone) }()
	})
	c := r.dial()
	c.send(1, metadata(1, "t"))
	answer := <-in
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.srv.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("close: %v", err)
	}
	c.expectClosed()
	<-gone
	if q.Used() == 0 {
		t.Error("the request's bytes were given back while its handler had them")
	}
	answer() // too late, and harmless
	awaitQuota(t, q, 0)
}

func TestClosedTellsTheHandler(t *testing.T) {
	gone := make(chan struct{})
	r := start(t, Options{}, func(_ context.Context, req *Request, reply func(kmsg.Response)) {
		go func() {
			<-req.Conn.Closed()
			reply(nil)
			close(gone)
		}()
	})
	c := r.dial()
	c.send(1, metadata(1, "t"))
	_ = c.Close()
	<-gone
}

func TestIdleTimeout(t *testing.T) {
	in := make(chan func(), 1)
	r := start(t, Options{IdleTimeout: 30 * time.Millisecond}, func(_ context.Context, req *Request, reply func(kmsg.Response)) {
		in <- func() { reply(echo(req)) }
	})
	idle := r.dial()
	idle.expectClosed()
	half := r.dial()
	half.raw([]byte{0, 0})
	half.expectClosed()
	// With a request in flight a connection outlives any number of timeouts.
	busy := r.dial()
	busy.send(1, metadata(1, "t"))
	answer := <-in
	other := r.dial()
	other.expectClosed() // one timeout has passed, at least
	answer()
	if id, _ := busy.recvMetadata(1); id != 1 {
		t.Errorf("id %d", id)
	}
	if n := r.srv.Stats().IdleClosed; n < 3 {
		t.Errorf("%d idle connections closed", n)
	}
}

func TestMaxConns(t *testing.T) {
	r := start(t, Options{MaxConns: 1}, func(_ context.Context, req *Request, reply func(kmsg.Response)) { reply(echo(req)) })
	a := r.dial()
	a.send(1, metadata(1, "t"))
	a.recvMetadata(1)
	r.dial().expectClosed()
	if s := r.srv.Stats(); s.Refused != 1 || s.Connections != 1 {
		t.Errorf("%+v", s)
	}
	if !strings.Contains(r.logs.String(), "too many connections") {
		t.Error(r.logs.String())
	}
}

// A franz-go client finds its way.
func TestFranzClient(t *testing.T) {
	r := start(t, Options{}, func(_ context.Context, req *Request, reply func(kmsg.Response)) {
		resp := req.Body.ResponseKind()
		switch resp := resp.(type) {
		case *kmsg.ApiVersionsResponse:
			for _, key := range []int16{0, 1, 3, 18} {
				k := kmsg.NewApiVersionsResponseApiKey()
				k.ApiKey = key
				_, k.MaxVersion, _ = (&testHandler{}).Versions(key)
				resp.ApiKeys = append(resp.ApiKeys, k)
			}
		case *kmsg.MetadataResponse:
			host, port, _ := net.SplitHostPort(req.Conn.LocalAddr().String())
			b := kmsg.NewMetadataResponseBroker()
			b.NodeID, b.Host = 1, host
			_, _ = fmt.Sscan(port, &b.Port)
			resp.Brokers = append(resp.Brokers, b)
		}
		reply(resp)
	})
	cl, err := kgo.NewClient(kgo.SeedBrokers(r.addr))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := cl.Ping(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestAnsweringTwiceStops(t *testing.T) {
	panicked := make(chan any, 1)
	r := start(t, Options{}, func(_ context.Context, req *Request, reply func(kmsg.Response)) {
		reply(echo(req))
		defer func() { panicked <- recover() }()
		reply(echo(req))
	})
	c := r.dial()
	c.send(1, metadata(1, "t"))
	if got := <-panicked; !strings.Contains(fmt.Sprint(got), "answered twice") {
		t.Errorf("%v", got)
	}
}

// FuzzConn sends a stranger's bytes to a served connection: it must end, and
// give its memory back.
func FuzzConn(f *testing.F) {
	form := kmsg.NewRequestFormatter()
	for _, v := range []int16{0, 1, 9, 12} {
		f.Add(form.AppendRequest(nil, metadata(v, "t"), 1))
	}
	f.Add(form.AppendRequest(nil, produceOf(100), 1))
	f.Add([]byte("GET / HTTP/1.1"))
	f.Add([]byte{0, 0, 0, 14, 0, 18, 0, 99, 0, 0, 0, 7, 0xff, 0xff, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		q := NewQuota(1 << 20)
		s := NewServer(Options{
			MaxFrame: 1 << 16, Memory: q, Logger: slog.New(slog.DiscardHandler),
			Handler: &testHandler{func(_ context.Context, req *Request, reply func(kmsg.Response)) {
				reply(req.Body.ResponseKind())
			}},
		})
		mine, theirs := net.Pipe()
		s.add(theirs)
		drained := make(chan struct{})
		go func() {
			_, _ = io.Copy(io.Discard, mine)
			close(drained)
		}()
		_, _ = mine.Write(b)
		_ = mine.Close()
		<-drained
		if err := s.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		if n := q.Used(); n != 0 {
			t.Fatalf("%d bytes still held", n)
		}
	})
}

// Who gives up waiting does not keep those behind it waiting.
func TestQuotaLine(t *testing.T) {
	q := NewQuota(100)
	q.add(60)
	stop := make(chan struct{})
	large, small := make(chan bool), make(chan bool)
	lines := func(n int) {
		for {
			q.mu.Lock()
			got := len(q.waiters)
			q.mu.Unlock()
			if got == n {
				return
			}
			runtime.Gosched()
		}
	}
	go func() { large <- q.acquire(80, stop) }()
	lines(1)
	go func() { small <- q.acquire(30, nil) }() // fits, and waits for its turn
	lines(2)
	close(stop)
	if <-large {
		t.Error("acquired after stop")
	}
	if !<-small || q.Used() != 90 {
		t.Errorf("%d bytes held", q.Used())
	}
	q.release(90)
	if !q.acquire(1000, nil) || q.Used() != 1000 {
		t.Errorf("alone: %d bytes held", q.Used())
	}
	var none *Quota
	none.add(5)
	none.release(5)
	if !none.acquire(1<<40, nil) || none.Used() != 0 {
		t.Error("a nil quota limits")
	}
}
