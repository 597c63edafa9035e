package transport

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"chronik/internal/ident"
)

// join adds hosts 1..n.
func join(net *Network, n int) ([]*host, []*Node) {
	var hs []*host
	var ns []*Node
	for i := range n {
		h := newHost(ident.NodeID(i + 1))
		h.addr = "mem"
		hs = append(hs, h)
		ns = append(ns, net.Join(h.node, h))
	}
	return hs, ns
}

func (h *host) history() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return fmt.Sprint(h.events)
}

func expect(t *testing.T, h *host, want string) {
	t.Helper()
	if got := h.history(); got != want {
		t.Errorf("node %d: events %s, want %s", h.node, got, want)
	}
}

func TestNetworkUpAndDown(t *testing.T) {
	net := NewNetwork(NetworkOptions{Stepped: true})
	hs, ns := join(net, 3)
	net.Advance(0)
	expect(t, hs[0], "[up 2 up 3]")
	ns[0].Send(2, Append, []byte("lost in the cut"))
	net.Partition(1, 2)
	net.Partition(1, 2)
	net.Advance(0)
	expect(t, hs[0], "[up 2 up 3 down 2]")
	expect(t, hs[1], "[up 1 up 3 down 1]")
	expect(t, hs[2], "[up 1 up 2]")
	if ns[0].Connected(2) || ns[0].Send(2, Control, nil) || !ns[0].Connected(3) || ns[0].Connected(1) || ns[0].Connected(9) {
		t.Error("connected with the wrong ones")
	}
	net.Heal(1, 2)
	net.Advance(0)
	expect(t, hs[0], "[up 2 up 3 down 2 up 2]")
	if len(hs[1].frames) != 0 {
		t.Error("a frame survived its connection")
	}
	net.Isolate(3)
	net.Advance(0)
	expect(t, hs[2], "[up 1 up 2 down 1 down 2]")
	net.HealAll()
	net.Advance(0)
	expect(t, hs[2], "[up 1 up 2 down 1 down 2 up 1 up 2]")
	net.Kill(3)
	ns[2].Close() // no longer there
	net.Advance(0)
	expect(t, hs[2], "[up 1 up 2 down 1 down 2 up 1 up 2]")
	expect(t, hs[1], "[up 1 up 3 down 1 up 1 down 3 up 3 down 3]")
	ns[1].Rehello()
	ns[2].Rehello()
	net.Advance(0)
	expect(t, hs[0], "[up 2 up 3 down 2 up 2 down 3 up 3 down 3 down 2 up 2]")
	if ns[2].Send(1, Control, nil) {
		t.Error("a dead node sends")
	}
	ns[1].Close()
	net.Close()
	expect(t, hs[1], "[up 1 up 3 down 1 up 1 down 3 up 3 down 3 down 1 up 1 down 1]")
}

func TestNetworkRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := NewNetwork(NetworkOptions{})
		a, b := newHost(1), newHost(2)
		a.addr, b.addr = "mem", "mem"
		b.accept = func(PeerInfo) error { return errors.New("no") }
		net.Join(1, a)
		net.Join(2, b)
		time.Sleep(5 * retryRefused)
		synctest.Wait()
		expect(t, a, "[refused 2: no]")
		expect(t, b, "[]")
		b.note(func() { b.accept = nil })
		time.Sleep(2 * retryRefused)
		synctest.Wait()
		expect(t, a, "[refused 2: no up 2]")
		net.Close()
	})
}

// received returns which of n frames arrive, in which order, for a seed.
func receivedFor(seed uint64, stepped bool, set func(*Network)) []string {
	net := NewNetwork(NetworkOptions{Seed: seed, Stepped: stepped})
	defer net.Close()
	hs, ns := join(net, 2)
	settle := func(d time.Duration) {
		if stepped {
			net.Advance(d)
			return
		}
		time.Sleep(d)
		synctest.Wait()
	}
	settle(0)
	set(net)
	for i := range 100 {
		ns[0].Send(2, Append, fmt.Appendf(nil, "%02d", i))
	}
	settle(time.Second)
	hs[1].mu.Lock()
	defer hs[1].mu.Unlock()
	return hs[1].frames[Append]
}

func TestNetworkLossDelayReorder(t *testing.T) {
	for _, stepped := range []bool{false, true} {
		t.Run(fmt.Sprint("stepped ", stepped), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				slow := func(n *Network) { n.SetDelay(time.Millisecond, 20*time.Millisecond) }
				lossy := func(n *Network) { n.SetLoss(0.3) }
				mixed := func(n *Network) { slow(n); n.SetReorder(true) }
				all := receivedFor(1, stepped, slow)
				if len(all) != 100 || !slices.IsSorted(all) {
					t.Errorf("delay alone: %v", all)
				}
				some := receivedFor(1, stepped, lossy)
				if len(some) < 50 || len(some) > 90 || !slices.IsSorted(some) {
					t.Errorf("loss of 0.3: %d of 100 arrive", len(some))
				}
				if again := receivedFor(1, stepped, lossy); !slices.Equal(some, again) {
					t.Error("the seed does not decide which are lost")
				}
				if other := receivedFor(2, stepped, lossy); slices.Equal(some, other) {
					t.Error("the seed decides nothing")
				}
				shuffled := receivedFor(1, stepped, mixed)
				if len(shuffled) != 100 || slices.IsSorted(shuffled) {
					t.Errorf("reorder: %v", shuffled)
				}
				if again := receivedFor(1, stepped, mixed); !slices.Equal(shuffled, again) {
					t.Error("the seed does not decide the order")
				}
				if r := receivedFor(1, stepped, func(n *Network) { n.SetReorder(true) }); len(r) != 100 || slices.IsSorted(r) {
					t.Errorf("reorder without delay: %v", r)
				}
			})
		})
	}
}

func TestNetworkDelayTakesTime(t *testing.T) {
	net := NewNetwork(NetworkOptions{Stepped: true})
	defer net.Close()
	hs, ns := join(net, 2)
	net.Advance(0)
	net.SetDelay(10*time.Millisecond, 10*time.Millisecond)
	ns[0].Send(2, Control, []byte("a"), nil, []byte("b"))
	net.Advance(9 * time.Millisecond)
	if len(hs[1].frames) != 0 {
		t.Error("too early")
	}
	net.Advance(time.Millisecond)
	if fmt.Sprint(hs[1].frames[Control]) != "[ab]" {
		t.Errorf("frames %v", hs[1].frames)
	}
}

// A direction that is dropped loses everything and nobody is told.
func TestNetworkOneWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := NewNetwork(NetworkOptions{})
		defer net.Close()
		hs, ns := join(net, 2)
		hs[0].onCall = func(context.Context, PeerInfo, string, []byte) ([]byte, error) { return nil, nil }
		synctest.Wait()
		net.Drop(1, 2, true)
		if !ns[0].Send(2, Append, []byte("x")) || !ns[1].Send(1, Append, []byte("y")) {
			t.Error("the loss shows")
		}
		synctest.Wait()
		if len(hs[1].frames) != 0 || len(hs[0].frames[Append]) != 1 {
			t.Errorf("frames %v and %v", hs[0].frames, hs[1].frames)
		}
		expect(t, hs[0], "[up 2]")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := ns[1].Call(ctx, 1, "m", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("call whose answer is lost: %v", err)
		}
		net.Heal(1, 2)
		if _, err := ns[1].Call(t.Context(), 1, "m", nil); err != nil {
			t.Errorf("call after healing: %v", err)
		}
	})
}

func TestNetworkCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := NewNetwork(NetworkOptions{})
		defer net.Close()
		hs, ns := join(net, 2)
		hs[1].onCall = func(ctx context.Context, from PeerInfo, method string, req []byte) ([]byte, error) {
			switch method {
			case "echo":
				return append([]byte(from.Node.String()+":"), req...), nil
			case "fail":
				return nil, errors.New("no such topic")
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}
		synctest.Wait()
		net.SetDelay(time.Second, time.Second)
		begin := time.Now()
		if got, err := ns[0].Call(t.Context(), 2, "echo", []byte("hi")); err != nil || string(got) != "1:hi" || time.Since(begin) != 2*time.Second {
			t.Errorf("echo: %q, %v after %s", got, err, time.Since(begin))
		}
		if _, err := ns[0].Call(t.Context(), 2, "fail", nil); !errors.Is(err, ErrRemote) || err.Error() != "node 2: fail: no such topic" {
			t.Errorf("fail: %v", err)
		}
		if _, err := ns[0].Call(t.Context(), 3, "echo", nil); !errors.Is(err, ErrUnreachable) {
			t.Errorf("unknown node: %v", err)
		}
		if _, err := ns[0].Call(t.Context(), 2, "echo", make([]byte, MaxFrame+1)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("too large: %v", err)
		}
		go func() {
			time.Sleep(5 * time.Second)
			net.Partition(1, 2)
		}()
		if _, err := ns[0].Call(t.Context(), 2, "hang", nil); !errors.Is(err, ErrUnreachable) {
			t.Errorf("cut in mid-call: %v", err)
		}
	})
}

func TestNetworkSteppedCall(t *testing.T) {
	net := NewNetwork(NetworkOptions{Stepped: true})
	defer net.Close()
	hs, ns := join(net, 2)
	hs[1].onCall = func(_ context.Context, _ PeerInfo, m string, _ []byte) ([]byte, error) { return []byte(m), nil }
	net.Advance(0)
	if got, err := ns[0].Call(t.Context(), 2, "m", nil); err != nil || string(got) != "m" {
		t.Errorf("call: %q, %v", got, err)
	}
	net.Drop(2, 1, true)
	if _, err := ns[0].Call(t.Context(), 2, "m", nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("call whose answer is lost: %v", err)
	}
}
