package harness

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// ends is one connection of node 1 to node 2 through a proxy, with its hello said.
type ends struct {
	p         *Proxy
	near, far net.Conn
}

func hello(class Class, from byte) []byte {
	return []byte{'P', 'R', 'I', 'C', 'H', 'R', 'N', 1, byte(class), 0, 0, 0, from, 0, 0, 0, 2}
}

func dial(t *testing.T, class Class) ends {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	p := newProxy(t, []Node{{ID: 2, Raft: l.Addr().String()}})
	near, err := net.Dial("tcp", p.Addr(2))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close() })
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	e := ends{p, near, far}
	e.crosses(t, near, far, hello(class, 1))
	return e
}

// crosses writes b at one end and reads it at the other, and returns how long that took.
func (e ends) crosses(t *testing.T, from, to net.Conn, b []byte) time.Duration {
	t.Helper()
	began := time.Now()
	if _, err := from.Write(b); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(b))
	_ = to.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadFull(to, got); err != nil || !bytes.Equal(got, b) {
		t.Fatalf("%q came as %q: %v", b, got, err)
	}
	return time.Since(began)
}

// silent tells that nothing comes within d, not even an end.
func silent(t *testing.T, c net.Conn, d time.Duration) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(d))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d bytes came, %v", n, err)
	}
}

func TestProxyHoleIsOneWay(t *testing.T) {
	e := dial(t, Control)
	e.p.Set(1, 2, Fault{Hole: true})
	if _, err := e.near.Write([]byte("lost")); err != nil {
		t.Fatal(err)
	}
	e.crosses(t, e.far, e.near, []byte("back"))
	silent(t, e.far, 200*time.Millisecond)
	e.p.Heal()
	_ = e.far.SetReadDeadline(time.Now().Add(5 * time.Second))
	got := make([]byte, 4)
	if _, err := io.ReadFull(e.far, got); err != nil || string(got) != "lost" {
		t.Fatalf("after the hole: %q, %v", got, err)
	}
}

// TestProxyHoleSwallowsTheEnd: who is cut off does not learn that the other has closed, whichever end is the first to write.
func TestProxyHoleSwallowsTheEnd(t *testing.T) {
	e := dial(t, Control)
	e.p.Set(1, 2, Fault{Hole: true})
	_ = e.near.Close()
	silent(t, e.far, 200*time.Millisecond)
	for range 3 { // the way back is sound, but there is nobody to take it
		if _, err := e.far.Write([]byte("anybody?")); err != nil {
			t.Fatal(err)
		}
		silent(t, e.far, 50*time.Millisecond)
	}
	e.p.Heal()
	_ = e.far.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadAll(e.far); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("after the hole the end is not told")
	}
}

func TestProxyRate(t *testing.T) {
	e := dial(t, Append)
	e.p.Set(1, 2, Fault{Rate: 8})
	if took := e.crosses(t, e.near, e.far, []byte("12345678")); took < 900*time.Millisecond || took > 5*time.Second {
		t.Errorf("8 bytes at 8 B/s took %v", took)
	}
	if took := e.crosses(t, e.far, e.near, make([]byte, 1<<20)); took > 5*time.Second {
		t.Errorf("the other way took %v", took)
	}
	// What waits goes on at full speed once the link is sound.
	if _, err := e.near.Write(make([]byte, 64<<10)); err != nil {
		t.Fatal(err)
	}
	e.p.Heal()
	_ = e.far.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(e.far, make([]byte, 64<<10)); err != nil {
		t.Fatal(err)
	}
}

func TestProxyDelay(t *testing.T) {
	e := dial(t, Bulk)
	e.p.Set(2, 1, Fault{Delay: 150 * time.Millisecond})
	if took := e.crosses(t, e.far, e.near, []byte("late")); took < 150*time.Millisecond {
		t.Errorf("took %v", took)
	}
	// Delay is no rate: pieces travel together.
	began := time.Now()
	for range 20 {
		if _, err := e.far.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		<-time.After(5 * time.Millisecond)
	}
	if _, err := io.ReadFull(e.near, make([]byte, 20)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 1500*time.Millisecond {
		t.Errorf("20 pieces took %v", took)
	}
}

func TestProxyLoss(t *testing.T) {
	e := dial(t, Append)
	e.p.Set(1, 2, Fault{Loss: 1, Stall: 200 * time.Millisecond})
	if took := e.crosses(t, e.near, e.far, []byte("again")); took < 200*time.Millisecond {
		t.Errorf("took %v", took)
	}
	e.p.Set(1, 2, Fault{Reset: 1})
	if _, err := e.near.Write([]byte("broken")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{e.far, e.near} {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the connection did not break")
		}
	}
}

// TestProxyClasses: a fault of one class leaves the others alone.
func TestProxyClasses(t *testing.T) {
	for _, class := range []Class{Control, Append} {
		e := dial(t, class)
		e.p.Set(1, 2, Fault{Hole: true, Classes: []Class{Append, Bulk}})
		if class == Append {
			if _, err := e.near.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			silent(t, e.far, 100*time.Millisecond)
			e.p.Heal()
			continue
		}
		e.crosses(t, e.near, e.far, []byte("heartbeat"))
	}
}
