package harness

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listenIn opens a UDP socket in a namespace. The socket stays there, the thread that
// opened it is given up.
func listenIn(t *testing.T, namespace, addr string) *net.UDPConn {
	t.Helper()
	type result struct {
		c   *net.UDPConn
		err error
	}
	ch := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: it ends with the goroutine
		f, err := os.Open("/var/run/netns/" + namespace)
		if err != nil {
			ch <- result{nil, err}
			return
		}
		defer func() { _ = f.Close() }()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			ch <- result{nil, err}
			return
		}
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(addr)})
		ch <- result{c, err}
	}()
	r := <-ch
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { _ = r.c.Close() })
	return r.c
}

func TestNetCutsOneWay(t *testing.T) {
	nt := newNet(t, 2)
	socks := []*net.UDPConn{nil, listenIn(t, nt.namespace(1), nt.Addr(1)), listenIn(t, nt.namespace(2), nt.Addr(2))}
	arrives := func(from, to int) bool {
		t.Helper()
		if _, err := socks[from].WriteTo([]byte("x"), socks[to].LocalAddr()); err != nil {
			t.Fatal(err)
		}
		_ = socks[to].SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		_, _, err := socks[to].ReadFrom(make([]byte, 10))
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		return err == nil
	}
	look := func(what string, there, back bool) {
		t.Helper()
		if a, b := arrives(1, 2), arrives(2, 1); a != there || b != back {
			t.Errorf("%s: 1 to 2 %v, 2 to 1 %v, want %v, %v", what, a, b, there, back)
		}
	}
	look("sound", true, true)
	nt.CutOneWay(1, 2)
	look("cut one way", false, true)
	nt.Cut(1, 2)
	look("cut", false, false)
	nt.Heal()
	look("healed", true, true)
	nt.Unplug(2)
	look("unplugged", false, false)
	nt.Heal()
	look("plugged in", true, true)
}

// TestDeadProcessesNetIsRemoved: what a test left that died goes with the next one, and nothing else.
func TestDeadProcessesNetIsRemoved(t *testing.T) {
	if err := NamespacesMissing(); err != nil {
		t.Skip(err)
	}
	dead := netPrefix + "4999999x1" // above the highest process id there can be
	alive := fmt.Sprintf("%s%dx900", netPrefix, os.Getpid())
	t.Cleanup(func() { removeNets(t, dead); removeNets(t, alive) })
	for _, name := range []string{dead, alive} {
		if _, err := ip("netns", "add", name+"-1"); err != nil {
			t.Fatal(err)
		}
		if _, err := ip("link", "add", name+"b", "type", "bridge"); err != nil {
			t.Fatal(err)
		}
	}
	removeLeftNets(t)
	left := strings.Join(netNames(t), " ")
	if strings.Contains(left, dead) || !strings.Contains(left, alive+"-1") || !strings.Contains(left, alive+"b") {
		t.Errorf("left: %s", left)
	}
}
