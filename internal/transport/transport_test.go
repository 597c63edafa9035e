package transport

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"chronik/internal/ident"
)

func TestOrderAndPacking(t *testing.T) {
	t.Parallel()
	const n = 20000
	b := newHost(2)
	next := map[Class]int{}
	done := make(chan error, 2)
	b.onFrame = func(from PeerInfo, c Class, f []byte) {
		b.mu.Lock()
		defer b.mu.Unlock()
		var i int
		if _, err := fmt.Sscanf(string(f[:10]), "%010d", &i); err != nil || i != next[c] || from.Node != 1 || from.Store != (ident.StoreID{1}) {
			done <- fmt.Errorf("%s frame %q of %+v where %d is next: %w", c, f[:10], from, next[c], err)
		}
		if next[c]++; next[c] == n {
			done <- nil
		}
	}
	a, _ := pairOf(t, newHost(1), b)
	pad := make([]byte, 5000)
	for _, c := range []Class{Control, Append} {
		go func() {
			for i := range n {
				head := fmt.Appendf(nil, "%010d", i)
				for !a.t.Send(2, c, head, pad[:i%40], pad[:(i%50)/49*5000]) {
					runtime.Gosched() // the queue is full
				}
			}
		}()
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	st := a.t.Peers()[0]
	if st.FramesSent != 2*n || st.MessagesSent > n {
		t.Errorf("%d frames in %d messages: not packed", st.FramesSent, st.MessagesSent)
	}
}

// A class that is stuck fills its own queue and delays no other.
func TestClassesAreIndependent(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	var once sync.Once
	open := func() { once.Do(func() { close(release) }) }
	got := make(chan string, 1)
	b := newHost(2)
	b.onFrame = func(_ PeerInfo, c Class, f []byte) {
		if c == Append {
			<-release
			return
		}
		got <- string(f)
	}
	b.onCall = func(context.Context, PeerInfo, string, []byte) ([]byte, error) { return []byte("yes"), nil }
	a, _ := pairOf(t, newHost(1), b)
	t.Cleanup(open)
	big := make([]byte, 1<<20)
	sent := 0
	for a.t.Send(2, Append, big) {
		sent++
	}
	if sent < 60 || sent > 120 {
		t.Errorf("%d MiB taken by a queue of 64", sent)
	}
	if !a.t.Send(2, Control, []byte("beat")) || <-got != "beat" {
		t.Error("a heartbeat waited behind bulk")
	}
	if b, err := a.t.Call(t.Context(), 2, "m", nil); err != nil || string(b) != "yes" {
		t.Errorf("call: %q, %v", b, err)
	}
	if a.t.Peers()[0].FramesDropped != 1 {
		t.Errorf("%d frames counted as dropped", a.t.Peers()[0].FramesDropped)
	}
	open()
}

func TestRefusal(t *testing.T) {
	t.Parallel()
	a, b := newHost(1), newHost(2)
	b.accept = func(p PeerInfo) error { return errors.New("node 1 is of another cluster") }
	lb := listen(t, "127.0.0.1:0")
	a.start(t, nil, map[ident.NodeID]string{2: lb.Addr().String()})
	b.start(t, lb, nil)
	a.awaitEvents(t, "refused 2: node 1 is of another cluster")
	if a.t.Send(2, Control, []byte("x")) || a.t.Connected(2) {
		t.Error("a frame was taken for a node that refuses us")
	}
	if st := a.t.Peers()[0]; st.Refusal != "node 1 is of another cluster" || st.Up {
		t.Errorf("status %+v", st)
	}
	b.note(func() { b.accept = func(PeerInfo) error { return errors.New("still not") } })
	a.awaitEvents(t, "refused 2: node 1 is of another cluster", "refused 2: still not")
	b.note(func() { b.accept = nil })
	a.awaitEvents(t, "refused 2: node 1 is of another cluster", "refused 2: still not", "up 2")
	b.awaitEvents(t, "up 1")
}

func TestWrongAddress(t *testing.T) {
	t.Parallel()
	a, b := newHost(1), newHost(2)
	lb := listen(t, "127.0.0.1:0")
	b.start(t, lb, nil)
	a.start(t, nil, map[ident.NodeID]string{3: lb.Addr().String()})
	a.awaitEvents(t, "refused 3: this is node 2, not node 3: correct the address")
	twin := newHost(2)
	twin.start(t, nil, map[ident.NodeID]string{1: a.addr, 7: lb.Addr().String()})
	twin.await(t, "a refusal of itself", func() bool {
		return strings.Contains(fmt.Sprint(twin.events), "refused 7: this is node 2, not node 7")
	})
	self := newHost(3)
	ls := listen(t, "127.0.0.1:0")
	self.start(t, ls, map[ident.NodeID]string{3: "127.0.0.1:1", 4: ls.Addr().String()})
	self.awaitEvents(t, "refused 4: this is node 3, not node 4: correct the address")
}

// A node that was not told of another dials it where its Hello says, at once.
func TestUnknownNodeIsAnswered(t *testing.T) {
	t.Parallel()
	a, b := newHost(1), newHost(2)
	a.start(t, nil, nil)
	b.start(t, nil, map[ident.NodeID]string{1: a.addr})
	a.awaitEvents(t, "up 2")
	b.awaitEvents(t, "up 1")
	a.t.Send(2, Append, []byte("an"), []byte("swer"))
	b.await(t, "the answer", func() bool { return fmt.Sprint(b.frames[Append]) == "[answer]" })
}

// The peer's stream to us says that it is back, and where: that wakes our link.
func TestReturnWakesLink(t *testing.T) {
	t.Parallel()
	a := newHost(1)
	nobody := listen(t, "127.0.0.1:0")
	_ = nobody.Close()
	a.start(t, nil, map[ident.NodeID]string{2: nobody.Addr().String()})
	a.t.peer(2).mu.Lock()
	for !a.t.peer(2).tried {
		ch := a.t.peer(2).changed
		a.t.peer(2).mu.Unlock()
		<-ch
		a.t.peer(2).mu.Lock()
	}
	a.t.peer(2).mu.Unlock()
	b := newHost(2).start(t, nil, map[ident.NodeID]string{1: a.addr})
	a.awaitEvents(t, "up 2")
	b.awaitEvents(t, "up 1")
	if st := a.t.Peers()[0]; len(st.Addrs) != 2 || st.Addrs[1] != b.addr || st.Info.Addr != b.addr {
		t.Errorf("status %+v", st)
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	a, b := pairOf(t, newHost(1), newHost(2))
	b.t.Close()
	b.awaitEvents(t, "up 1", "down 1")
	a.awaitEvents(t, "up 2", "down 2")
	if a.t.Send(2, Control, []byte("x")) {
		t.Error("a frame was taken for a node that is down")
	}
	b2 := newHost(2)
	b2.store = ident.StoreID{22}
	b2.start(t, listen(t, b.addr), map[ident.NodeID]string{1: a.addr})
	a.awaitEvents(t, "up 2", "down 2", "up 2")
	b2.awaitEvents(t, "up 1")
	if got := a.t.Peers()[0].Info.Store; got != b2.store {
		t.Errorf("store %s, want the new one", got)
	}
	a.t.Send(2, Append, []byte("x"))
	b2.await(t, "a frame", func() bool { return len(b2.frames[Append]) == 1 })
}

func TestRehello(t *testing.T) {
	t.Parallel()
	a, b := pairOf(t, newHost(1), newHost(2))
	b.note(func() { b.store = ident.StoreID{9} })
	b.t.Rehello()
	a.awaitEvents(t, "up 2", "down 2", "up 2")
	b.awaitEvents(t, "up 1", "down 1", "up 1")
	if got := a.t.Peers()[0].Info.Store; got != (ident.StoreID{9}) {
		t.Errorf("store %s after Rehello", got)
	}
}

func TestSetPeer(t *testing.T) {
	t.Parallel()
	a, b := pairOf(t, newHost(1), newHost(2))
	a.note(func() {
		a.accept = func(p PeerInfo) error {
			if p.Node == 2 {
				return errors.New("removed")
			}
			return nil
		}
	})
	a.t.SetPeer(2, "")
	a.awaitEvents(t, "up 2", "down 2")
	if a.t.Send(2, Control, nil) || len(a.t.Peers()) != 0 {
		t.Error("the peer is still there")
	}
	// The stream of another class may be refused before the end of Control is seen.
	b.await(t, "down 1 and refused 1", func() bool {
		return slices.Contains(b.events, "down 1") && slices.Contains(b.events, "refused 1: removed")
	})
	// A node moves: same store, new address.
	c := newHost(3).start(t, nil, map[ident.NodeID]string{1: a.addr})
	a.awaitEvents(t, "up 2", "down 2", "up 3")
	c.awaitEvents(t, "up 1")
	c.t.SetPeer(1, "127.0.0.1:1")
	c.awaitEvents(t, "up 1", "down 1")
	c.t.SetPeer(1, a.addr)
	c.awaitEvents(t, "up 1", "down 1", "up 1")
}

func TestCalls(t *testing.T) {
	t.Parallel()
	b := newHost(2)
	hung := make(chan struct{}, 8)
	b.onCall = func(ctx context.Context, from PeerInfo, method string, req []byte) ([]byte, error) {
		switch method {
		case "echo":
			return append([]byte(from.Node.String()+":"), req...), nil
		case "fail":
			return nil, errors.New("no such topic")
		case "large":
			return make([]byte, MaxFrame), nil
		case "larger":
			return make([]byte, MaxFrame+1), nil
		}
		hung <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	a, _ := pairOf(t, newHost(1), b)
	ctx := t.Context()
	if got, err := a.t.Call(ctx, 2, "echo", []byte("hi")); err != nil || string(got) != "1:hi" {
		t.Errorf("echo: %q, %v", got, err)
	}
	if got, err := a.t.Call(ctx, 2, "echo", make([]byte, MaxFrame-2)); err != nil || len(got) != MaxFrame {
		t.Errorf("large echo: %d bytes, %v", len(got), err)
	}
	_, err := a.t.Call(ctx, 2, "fail", nil)
	var remote *RemoteError
	if !errors.Is(err, ErrRemote) || !errors.As(err, &remote) || remote.Text != "no such topic" || err.Error() != "node 2: fail: no such topic" {
		t.Errorf("fail: %v", err)
	}
	if got, err := a.t.Call(ctx, 2, "large", nil); err != nil || len(got) != MaxFrame {
		t.Errorf("large: %d bytes, %v", len(got), err)
	}
	if _, err := a.t.Call(ctx, 2, "larger", nil); !errors.Is(err, ErrRemote) {
		t.Errorf("larger: %v", err)
	}
	if _, err := a.t.Call(ctx, 2, "echo", make([]byte, MaxFrame+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("request too large: %v", err)
	}
	if _, err := a.t.Call(ctx, 7, "echo", nil); !errors.Is(err, ErrUnreachable) || !errors.Is(err, ErrNotSent) {
		t.Errorf("unknown node: %v", err)
	}
	if _, err := a.t.Call(ctx, 2, strings.Repeat("m", 256), nil); err == nil {
		t.Error("a method name of 256 bytes was taken")
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := a.t.Call(short, 2, "hang", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("deadline: %v", err)
	}
	<-hung
	gone, leave := context.WithCancel(ctx)
	go func() {
		<-hung
		leave()
	}()
	if _, err := a.t.Call(gone, 2, "hang", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	go func() {
		<-hung
		b.t.Close()
	}()
	if _, err := a.t.Call(ctx, 2, "hang", nil); !errors.Is(err, ErrUnreachable) || errors.Is(err, ErrNotSent) {
		t.Errorf("peer went away: %v", err)
	}
	a.awaitEvents(t, "up 2", "down 2")
	begin := time.Now()
	if _, err := a.t.Call(ctx, 2, "echo", nil); !errors.Is(err, ErrNotSent) || time.Since(begin) > firstContact/2 {
		t.Errorf("peer is down: %v after %s", err, time.Since(begin))
	}
}

// A call made while the first connection is being made waits for it.
func TestCallWaitsForFirstContact(t *testing.T) {
	t.Parallel()
	a, b := newHost(1), newHost(2)
	b.onCall = func(context.Context, PeerInfo, string, []byte) ([]byte, error) { return nil, nil }
	lb := listen(t, "127.0.0.1:0")
	b.start(t, lb, nil)
	a.start(t, nil, map[ident.NodeID]string{2: lb.Addr().String()})
	if _, err := a.t.Call(t.Context(), 2, "m", nil); err != nil {
		t.Fatal(err)
	}
}

// A connection of frames, calls or nonsense without a Hello gets nowhere.
func TestStrangers(t *testing.T) {
	t.Parallel()
	var lines lockedBuffer
	b := newHost(2)
	b.log = slog.New(slog.NewTextHandler(&lines, nil))
	b.start(t, nil, nil)
	for _, what := range [][]byte{
		[]byte("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
		bytes.Repeat([]byte{0, 0, 0, 60, 0, 18, 0, 3}, 100),
		append(bytes.Clone(http2Preface), bytes.Repeat([]byte{255}, 100)...),
	} {
		c, err := net.Dial("tcp", b.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(what); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, c) // until the node closes it
		_ = c.Close()
	}
	if got := strings.Count(lines.String(), "\n"); got != 1 || !strings.Contains(lines.String(), "GET /metrics") {
		t.Errorf("%d lines logged, want 1 for all:\n%s", got, lines.String())
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cc, err := dialOnce(ctx, dialTCP, b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cc.Close() }()
	var r received
	if err := cc.Invoke(ctx, callMethod, mem.BufferSlice{mem.SliceBuffer("\x01mreq")}, &r); err == nil || !strings.Contains(err.Error(), "no hello") {
		t.Errorf("a call without hello: %v", err)
	}
	if err := cc.Invoke(ctx, "/other.Program/Method", mem.BufferSlice{}, &r); err == nil || !strings.Contains(err.Error(), "chronik node's port") {
		t.Errorf("another program's call: %v", err)
	}
	stream, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, streamMethod)
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.SendMsg(mem.BufferSlice{mem.SliceBuffer("hello there")})
	if err := stream.RecvMsg(&r); err == nil || !strings.Contains(err.Error(), "preamble") {
		t.Errorf("a stream without preamble: %v", err)
	}
	a := newHost(1).start(t, nil, map[ident.NodeID]string{2: b.addr})
	a.awaitEvents(t, "up 2")
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A cable that is pulled resets nothing: keepalive notices, on both sides.
func TestSilentLoss(t *testing.T) {
	t.Parallel()
	toA, toB := newProxy(t), newProxy(t)
	a, b := newHost(1), newHost(2)
	la, lb := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	toA.run(la.Addr().String())
	toB.run(lb.Addr().String())
	a.start(t, la, map[ident.NodeID]string{2: toB.l.Addr().String()})
	b.start(t, lb, map[ident.NodeID]string{1: toA.l.Addr().String()})
	a.awaitEvents(t, "up 2")
	b.awaitEvents(t, "up 1")
	begin := time.Now()
	close(toA.stall)
	close(toB.stall)
	a.awaitEvents(t, "up 2", "down 2")
	b.awaitEvents(t, "up 1", "down 1")
	if took := time.Since(begin); took > keepaliveTime+keepaliveTimeout+2*time.Second {
		t.Errorf("noticed after %s", took)
	}
}

// TestKilledProcess kills a peer as the operating system does.
func TestKilledProcess(t *testing.T) {
	if addr := os.Getenv("CHRONIK_TEST_PEER"); addr != "" {
		h := newHost(2).start(t, nil, map[ident.NodeID]string{1: addr})
		h.awaitEvents(t, "up 1")
		fmt.Println("up")
		select {}
	}
	t.Parallel()
	a := newHost(1).start(t, nil, nil)
	for _, want := range [][]string{{"up 2", "down 2"}, {"up 2", "down 2", "up 2", "down 2"}} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProcess$")
		cmd.Env = append(os.Environ(), "CHRONIK_TEST_PEER="+a.addr)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "up\n" {
			t.Fatalf("the peer says %q, %v", line, err)
		}
		a.awaitEvents(t, want[:len(want)-1]...)
		begin := time.Now()
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		a.awaitEvents(t, want...)
		if took := time.Since(begin); took > keepaliveTime {
			t.Errorf("a killed process was noticed after %s", took)
		}
		_ = cmd.Wait() // killed
	}
}

// Whatever happens to connections, PeerUp and PeerDown alternate, and the
// nodes find each other again.
func TestUpDownAlternate(t *testing.T) {
	t.Parallel()
	a, b := pairOf(t, newHost(1), newHost(2))
	rng := rand.New(rand.NewPCG(1, 2))
	for range 30 {
		h := []*host{a, b}[rng.IntN(2)]
		peer := h.t.all()[0]
		switch rng.IntN(3) {
		case 0:
			h.t.Rehello()
		case 1:
			peer.mu.Lock()
			peer.endOut(Control)
			peer.judge()
			peer.mu.Unlock()
		case 2:
			peer.mu.Lock()
			if in := peer.in[Control]; in != nil {
				in.conn.close()
			}
			peer.mu.Unlock()
		}
		for _, h := range []*host{a, b} {
			if rng.IntN(2) == 0 {
				h.await(t, "up again", func() bool { return h.t.all()[0].isUp() && len(h.events)%2 == 1 })
			}
		}
	}
	for _, h := range []*host{a, b} {
		h.await(t, "up at last", func() bool { return len(h.events)%2 == 1 })
		h.mu.Lock()
		for i, e := range h.events {
			if strings.HasPrefix(e, "up") != (i%2 == 0) {
				t.Errorf("node %d: events %v", h.node, h.events)
				break
			}
		}
		h.mu.Unlock()
	}
	// The last blow may still be about to take effect.
	for arrived, deadline := false, time.Now().Add(patience); !arrived; runtime.Gosched() {
		a.t.Send(2, Append, []byte("after all"))
		b.mu.Lock()
		arrived = len(b.frames[Append]) > 0
		b.mu.Unlock()
		if time.Now().After(deadline) {
			t.Fatal("no frame arrives any more")
		}
	}
}

func TestNewRefusesNonsense(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Fatal("a transport without anything was made")
	}
	h := newHost(1)
	tr, err := New(Options{Node: 1, Listen: listen(t, "127.0.0.1:0"), Handler: h})
	if err != nil {
		t.Fatal(err)
	}
	if tr.Send(1, Control, nil) || tr.Connected(1) {
		t.Error("a node is connected with itself")
	}
	tr.Close() // never started
	tr.Close()
	tr.Start()
	tr.SetPeer(2, "127.0.0.1:1")
	if len(tr.Peers()) != 0 {
		t.Error("a closed transport took a peer")
	}
}

func TestReachable(t *testing.T) {
	from := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 40000}
	for addr, want := range map[string]string{
		"node2:9192": "node2:9192", "10.0.0.2:9192": "10.0.0.2:9192", "[::1]:9192": "[::1]:9192",
		"0.0.0.0:9192": "10.0.0.7:9192", ":9192": "10.0.0.7:9192", "[::]:9192": "10.0.0.7:9192", "": "", "nonsense": "",
	} {
		if got := reachable(addr, from); got != want {
			t.Errorf("%q is dialed at %q, want %q", addr, got, want)
		}
	}
}

// Every Close returns only when no callback runs any more, the second of two at once too.
func TestCloseTwice(t *testing.T) {
	t.Parallel()
	for range 20 {
		a, b := pairOf(t, newHost(1), newHost(2))
		var both sync.WaitGroup
		for range 2 {
			both.Go(func() {
				b.t.Close()
				b.mu.Lock()
				defer b.mu.Unlock()
				if got := fmt.Sprint(b.events); got != "[up 1 down 1]" {
					t.Errorf("events at the end of Close: %v", got)
				}
			})
		}
		both.Wait()
		a.t.Close()
	}
}

// recycler is a host that hands out the same memory again once it is told to.
type recycler struct {
	*host
	sent chan []byte
}

func (r recycler) Sent(_ string, resp []byte) { r.sent <- resp }

// A large answer lies in the caller's memory, and the callee hears when its own is
// free again: after it was written, once.
func TestCallInto(t *testing.T) {
	a, b := newHost(1), newHost(2)
	r := recycler{b, make(chan []byte, 10)}
	b.onCall = func(_ context.Context, _ PeerInfo, _ string, req []byte) ([]byte, error) {
		if len(req) == 0 {
			return nil, errors.New("refused")
		}
		return bytes.Repeat(req[:1], 1<<20), nil
	}
	l := listen(t, "127.0.0.1:0")
	b.addr = l.Addr().String()
	tb, err := New(Options{Node: 2, Listen: l, Handler: r, Logger: b.log})
	if err != nil {
		t.Fatal(err)
	}
	tb.Start()
	t.Cleanup(tb.Close)
	a.start(t, nil, map[ident.NodeID]string{2: l.Addr().String()})
	a.awaitEvents(t, "up 2")
	buf := make([]byte, 1<<20+1)
	for i := range 5 {
		got, err := a.t.CallInto(t.Context(), 2, "m", []byte{byte(i)}, buf)
		if err != nil || len(got) != 1<<20 || &got[0] != &buf[1] || bytes.Count(got, []byte{byte(i)}) != len(got) {
			t.Fatalf("call %d: %d bytes, %v", i, len(got), err)
		}
		select {
		case resp := <-r.sent:
			if len(resp) != 1<<20 || resp[0] != byte(i) {
				t.Fatalf("call %d: %d bytes of %d given back", i, len(resp), resp[0])
			}
		case <-time.After(patience):
			t.Fatalf("call %d: the response was not given back", i)
		}
	}
	small := make([]byte, 100)
	got, err := a.t.CallInto(t.Context(), 2, "m", []byte{9}, small)
	if err != nil || len(got) != 1<<20 || got[5] != 9 {
		t.Fatalf("into too little: %d bytes, %v", len(got), err)
	}
	<-r.sent
	if _, err := a.t.CallInto(t.Context(), 2, "m", nil, buf); !errors.Is(err, ErrRemote) || len(r.sent) != 0 {
		t.Fatalf("%v, %d given back", err, len(r.sent))
	}
}
