package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"chronik/test/bench/backed"
)

// node is one server process and what starts it again on the same data.
type node struct {
	id    int
	addr  string // where clients connect
	admin string // where Chronik answers over HTTP, else empty
	dir   string // its data, all of it
	log   string
	argv  []string
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process is gone
}

// start executes the process. It dies with this one.
func (n *node) start() error {
	out, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }() // the child has its own
	n.cmd = exec.Command(n.argv[0], n.argv[1:]...)
	n.cmd.Stdout, n.cmd.Stderr = out, out
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.cmd.Start(); err != nil {
		n.cmd = nil
		return err
	}
	cmd, ended := n.cmd, make(chan struct{})
	n.ended = ended
	go func() {
		defer close(ended)
		_ = cmd.Wait() // its status is mostly that of a killed process
	}()
	return nil
}

// kill is kill -9, and waits until the process is gone.
func (n *node) kill() {
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Kill() // it may have ended by itself
	<-n.ended
	n.cmd = nil
}

// tail is the end of the node's output, for an error that it explains.
func (n *node) tail() string {
	text, err := os.ReadFile(n.log)
	if err != nil {
		return err.Error()
	}
	const most = 2000
	return string(text[max(0, len(text)-most):])
}

// cluster is the running nodes of one peer.
type cluster struct {
	peer  peer
	dir   string
	nodes []*node
}

func (c *cluster) seeds() []string {
	var s []string
	for _, n := range c.nodes {
		s = append(s, n.addr)
	}
	return s
}

// without are the addresses of the other nodes.
func (c *cluster) without(n *node) []string {
	var s []string
	for _, other := range c.nodes {
		if other != n {
			s = append(s, other.addr)
		}
	}
	return s
}

func (c *cluster) stop() {
	for _, n := range c.nodes {
		n.kill()
	}
}

// explain adds what the nodes said last.
func (c *cluster) explain(err error) error {
	for _, n := range c.nodes {
		err = fmt.Errorf("%w\n--- %s node %d said last:\n%s", err, c.peer.name(), n.id, n.tail())
	}
	return err
}

// listening waits until the node takes connections.
func (n *node) listening(ctx context.Context) error {
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", n.addr)
		if err == nil {
			return c.Close()
		}
		select {
		case <-n.ended:
			return fmt.Errorf("node %d ended by itself", n.id)
		case <-ctx.Done():
			return fmt.Errorf("node %d does not listen on %s: %w", n.id, n.addr, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// memory is what a process has resident, in bytes.
type memory struct {
	now, peak, anonymous float64
}

func (n *node) memory() (memory, error) {
	var m memory
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.cmd.Process.Pid))
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.ParseFloat(f[1], 64)
		switch f[0] {
		case "VmRSS:":
			m.now = kb * 1024
		case "VmHWM:":
			m.peak = kb * 1024
		case "RssAnon:":
			m.anonymous = kb * 1024
		}
	}
	return m, nil
}

// cpu is the processor time that the process has used.
func (n *node) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := bytes.Cut(text, []byte(") "))
	f := strings.Fields(string(rest))
	if !ok || len(f) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: not understood: %q", n.cmd.Process.Pid, text)
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}

// dropCache is a cluster's, with what was in the page cache back in the reserve.
func (b *bench) dropCache(ctx context.Context, c *cluster) (stayed int64, err error) {
	if stayed, err = c.dropCache(); err != nil {
		return stayed, err
	}
	return stayed, b.reserve.Refill(ctx)
}

// dropCache takes the nodes' files out of the page cache. It returns the bytes that stayed there.
func (c *cluster) dropCache() (stayed int64, err error) {
	for _, n := range c.nodes {
		left, err := backed.DropCache(n.dir)
		stayed += left
		if err != nil {
			return stayed, err
		}
	}
	return stayed, nil
}
