package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// pipes is a listener without a network: a bubble's time stands still for real sockets.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	gone  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.gone:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.gone) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// fetches serves fetches of size bytes each, in a bubble, until done is called.
func fetches(t *testing.T, room *Quota, size int) (dial func() net.Conn, srv *Server, done func()) {
	t.Helper()
	return piped(t, Options{Responses: room, Handler: &testHandler{
		func(_ context.Context, req *Request, reply func(kmsg.Response)) {
			resp := req.Body.ResponseKind().(*kmsg.FetchResponse)
			ft, fp := kmsg.NewFetchResponseTopic(), kmsg.NewFetchResponseTopicPartition()
			given, _ := req.Room(size)
			fp.RecordBatches = make([]byte, given)
			ft.Partitions = append(ft.Partitions, fp)
			resp.Topics = append(resp.Topics, ft)
			reply(resp)
		},
	}})
}

// piped serves on pipes, in a bubble, until done is called.
func piped(t *testing.T, opt Options) (dial func() net.Conn, srv *Server, done func()) {
	t.Helper()
	p := &pipes{conns: make(chan net.Conn), gone: make(chan struct{})}
	opt.Logger = slog.New(slog.DiscardHandler)
	srv = NewServer(opt)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(p) }()
	var all []net.Conn
	dial = func() net.Conn {
		a, b := net.Pipe()
		p.conns <- b
		all = append(all, a)
		return a
	}
	return dial, srv, func() {
		for _, c := range all {
			_ = c.Close()
		}
		if err := srv.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, ErrServerClosed) {
			t.Error(err)
		}
	}
}

func askFetch(t *testing.T, c net.Conn) {
	t.Helper()
	req := kmsg.NewPtrFetchRequest()
	req.Version = 4
	if _, err := c.Write(kmsg.NewRequestFormatter().AppendRequest(nil, req, 1)); err != nil {
		t.Fatal(err)
	}
}

// TestRoomForResponses: peers that ask and do not read hold no more than the quota;
// they leave others room, and are closed once the room is needed and they have not
// moved for a while. All room returns.
func TestRoomForResponses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 16 << 20
		room := NewQuota(limit)
		dial, srv, done := fetches(t, room, limit)
		for range 200 {
			askFetch(t, dial())
			synctest.Wait()
			if used := room.Used(); used > limit {
				t.Fatalf("%d bytes held, the limit is %d", used, limit)
			}
		}
		if used := room.Used(); used < limit*3/4 {
			t.Errorf("only %d bytes held: the test holds nothing up", used)
		}
		if n := srv.Stats().StalledClosed; n != 0 {
			t.Errorf("%d closed at once", n)
		}
		began := time.Now()
		c := dial()
		askFetch(t, c)
		head := make([]byte, 4)
		if _, err := io.ReadFull(c, head); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 2*stallTimeout {
			t.Errorf("one that reads waited %v", took)
		}
		if srv.Stats().StalledClosed == 0 {
			t.Error("nobody was closed")
		}
		done()
		if used := room.Used(); used != 0 {
			t.Errorf("%d bytes held at the end", used)
		}
	})
}

// TestSlowIsNotStalled: a peer that reads, ever so slowly, is not closed while
// there is room, and takes its response in more time than the idle timeout.
func TestSlowIsNotStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 1 << 20
		dial, srv, done := fetches(t, NewQuota(256<<20), size)
		c := dial()
		askFetch(t, c)
		began := time.Now()
		b := make([]byte, 4<<10)
		for got := 0; got < size; {
			n, err := c.Read(b)
			if err != nil {
				t.Fatalf("after %v and %d bytes: %v", time.Since(began), got, err)
			}
			got += n
			<-time.After(6 * time.Second) // a piece of a write takes longer than stallTimeout
		}
		if took := time.Since(began); took < 2*DefaultIdleTimeout {
			t.Errorf("took %v: too quick to show anything", took)
		}
		if srv.Stats().StalledClosed != 0 {
			t.Error("closed although there was room")
		}
		done()
	})
}

// TestStalledIsAboutRate: while the node is short of room a peer is given up that takes
// less than a piece within the stall timeout, and none that takes more; without shortage, one
// that takes nothing for the idle timeout.
func TestStalledIsAboutRate(t *testing.T) {
	for _, tc := range []struct {
		name   string
		room   int64
		every  time.Duration // 4 KiB are read
		closed bool
		after  time.Duration // at least and about
	}{
		{"short of room, 20 KB/s", 1 << 20, 200 * time.Millisecond, false, 0},
		{"short of room, 8 KB/s", 1 << 20, 500 * time.Millisecond, true, stallTimeout},
		{"room, a byte now and then", 1 << 40, DefaultIdleTimeout - time.Minute, false, 0},
		{"room, nothing", 1 << 40, DefaultIdleTimeout + time.Minute, true, DefaultIdleTimeout},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const size = 600 << 10
				room := NewQuota(tc.room)
				dial, srv, done := fetches(t, room, size)
				c := dial()
				room.add(-7 * tc.room) // so that the whole share is given
				askFetch(t, c)
				began := time.Now()
				b := make([]byte, 4<<10)
				n, err := c.Read(b)
				room.add(7 * tc.room)
				if tc.room < 1<<40 { // others take the rest, and one waits
					room.add(tc.room)
					other := dial()
					askFetch(t, other)
				}
				got := n
				for err == nil && got < size {
					time.Sleep(tc.every)
					n, err = c.Read(b)
					got += n
				}
				if took := time.Since(began); (err != nil) != tc.closed || took < tc.after {
					t.Errorf("%d of %d bytes in %v: %v", got, size, took, err)
				}
				if stalled := srv.Stats().StalledClosed; (stalled == 1) != (tc.closed && tc.room < 1<<40) {
					t.Errorf("%d closed for being stalled", stalled)
				}
				if tc.room < 1<<40 {
					room.release(tc.room)
				}
				done()
			})
		})
	}
}

// TestSettle: what a handler does not use is back at once, what it uses more counts
// until the response is written.
func TestSettle(t *testing.T) {
	room := NewQuota(1 << 20)
	srv := NewServer(Options{Responses: room, Logger: slog.New(slog.DiscardHandler)})
	c := &Conn{srv: srv, ctx: t.Context()}
	r := &Request{p: &pending{c: c}}
	if n, short := r.Room(1 << 20); n != 128<<10 || short {
		t.Fatal(n, short)
	}
	if r.Settle(128<<10, 10); room.Used() != 10 || r.p.room != 10 {
		t.Fatal(room.Used(), r.p.room)
	}
	room.add(1<<20 - 100)
	if n, short := r.Room(1 << 20); n != 0 || !short { // it holds something, and does not wait
		t.Fatal(n, short)
	}
	if r.Settle(0, 500); room.Used() != 1<<20+410 || r.p.room != 510 {
		t.Fatal(room.Used(), r.p.room)
	}
}

// TestSlowSendersHoldUpNobody: while others wait for request memory, who is within a large frame and brings less
// than a piece, or a 64th of what it holds, within the stall timeout is given up, and nobody who brings more; without need, nobody.
func TestSlowSendersHoldUpNobody(t *testing.T) {
	for _, tc := range []struct {
		name   string
		memory int64
		every  time.Duration // 4 KiB are sent
		closed bool
	}{
		{"short of memory, 8 KB/s", 256 << 20, 500 * time.Millisecond, true},
		{"short of memory, 200 KB/s", 256 << 20, 20 * time.Millisecond, true},
		{"short of memory, 400 KB/s", 256 << 20, 10 * time.Millisecond, false},
		{"memory, 8 KB/s", 1 << 40, 500 * time.Millisecond, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				memory := NewQuota(tc.memory)
				dial, srv, done := piped(t, Options{Memory: memory, Backlog: NewBacklog(256 << 20), Handler: &testHandler{
					func(_ context.Context, req *Request, reply func(kmsg.Response)) { reply(req.Body.ResponseKind()) },
				}})
				head := make([]byte, 4+growthStep) // a Produce frame of 100 MiB begins
				binary.BigEndian.PutUint32(head, 100<<20)
				binary.BigEndian.PutUint16(head[6:], 7)
				var senders sync.WaitGroup
				for range 3 {
					c := dial()
					senders.Go(func() {
						for b := head; ; b = b[:4<<10] {
							if _, err := c.Write(b); err != nil {
								return
							}
							time.Sleep(tc.every)
						}
					})
				}
				time.Sleep(time.Millisecond)
				c := dial()
				answered := make(chan struct{})
				go func() {
					defer close(answered)
					req := kmsg.NewPtrProduceRequest()
					req.Version, req.Acks = 7, 1
					_, err := c.Write(kmsg.NewRequestFormatter().AppendRequest(nil, req, 1))
					if err == nil {
						_, err = io.ReadFull(c, make([]byte, 4))
					}
					if err != nil && tc.closed {
						t.Error(err)
					}
				}()
				time.Sleep(2 * stallTimeout)
				synctest.Wait()
				select {
				case <-answered:
				default:
					if tc.closed {
						t.Errorf("a small request waits after %v; %d bytes are held", 2*stallTimeout, memory.Used())
					}
				}
				if n := srv.Stats().StalledClosed; (n > 0) != tc.closed {
					t.Errorf("%d closed for being stalled", n)
				}
				done()
				<-answered
				senders.Wait()
				if used := memory.Used(); used != 0 {
					t.Errorf("%d bytes held at the end", used)
				}
			})
		})
	}
}
