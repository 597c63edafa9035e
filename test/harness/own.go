package harness

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A cluster whose nodes differ in more than their numbers is not started by 'chronik dev' but
// here: each in a network namespace, behind proxies, or on a small disk. It is the same to
// everything else: dev.json names the nodes, and kill, restart and wipe are 'chronik dev's.

// startOwn starts the nodes of a cluster, each as o asks.
func (c *Cluster) startOwn(tb testing.TB, o Options) {
	tb.Helper()
	if o.Namespaces {
		c.Net = newNet(tb, o.Nodes)
	}
	nodes := c.describe(o)
	if o.Proxied {
		c.Proxy = newProxy(tb, nodes)
	}
	var peers []string
	for _, n := range nodes {
		addr := n.Raft
		if c.Proxy != nil {
			addr = c.Proxy.Addr(n.ID)
		}
		peers = append(peers, fmt.Sprintf("%d@%s", n.ID, addr))
	}
	for i := range nodes {
		nodes[i].Argv = append(nodes[i].Argv, "--peers", strings.Join(peers, ","))
		if o.DiskBytes > 0 {
			mountDisk(tb, filepath.Dir(nodes[i].Dir), o.DiskBytes)
		}
	}
	c.save(nodes)
	lock, guard := c.lock(), c.guard()
	tb.Cleanup(func() {
		c.stopOwn() // before the guard does it, without asking
		_ = guard.Close()
		_ = lock.Close()
		c.checkLogs()
	})
	for _, n := range nodes {
		c.Restart(n.ID)
	}
	for _, n := range nodes {
		c.Eventually(60*time.Second, "every node serves", func() error { return c.Ready(n.ID) })
	}
}

// describe makes up the nodes' addresses, directories and commands, but for the peers.
func (c *Cluster) describe(o Options) []Node {
	var nodes []Node
	for id := 1; id <= o.Nodes; id++ {
		n := Node{
			ID: id, Dir: filepath.Join(c.Dir, fmt.Sprintf("node-%d", id)),
			Kafka: fmt.Sprintf("127.0.0.1:%d", c.base+id-1), Raft: fmt.Sprintf("127.0.0.1:%d", c.base+99+id), Admin: fmt.Sprintf("127.0.0.1:%d", c.base+199+id),
		}
		if o.DiskBytes > 0 { // below the mount, so that a wipe can remove it
			n.Dir = filepath.Join(c.Dir, fmt.Sprintf("disk-%d", id), "node")
		}
		if c.Net != nil {
			addr := c.Net.Addr(id)
			n.Kafka, n.Raft, n.Admin = addr+":9092", addr+":9192", addr+":9292"
			n.Argv = append(n.Argv, c.Net.within(id)...)
		}
		n.Argv = append(n.Argv, c.Exe, "start", "--node-id", strconv.Itoa(id), "--data-dir", n.Dir, "--kafka-addr", n.Kafka,
			"--raft-addr", n.Raft, "--admin-addr", n.Admin)
		if o.Threshold > 0 {
			n.Argv = append(n.Argv, "--set", "snapshot.threshold_entries="+strconv.Itoa(o.Threshold))
		}
		for _, s := range o.Set {
			n.Argv = append(n.Argv, "--set", s)
		}
		nodes = append(nodes, n)
	}
	return nodes
}

// save writes dev.json.
func (c *Cluster) save(nodes []Node) {
	c.TB.Helper()
	b, err := json.Marshal(map[string][]Node{"nodes": nodes})
	if err != nil {
		c.TB.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.Dir, "dev.json"), b, 0o644); err != nil {
		c.TB.Fatal(err)
	}
}

// lock is what tells 'chronik dev restart' that somebody will end the nodes.
func (c *Cluster) lock() io.Closer {
	c.TB.Helper()
	f, err := os.OpenFile(filepath.Join(c.Dir, "dev.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		c.TB.Fatal(err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		c.TB.Fatal(err)
	}
	return f
}

// guard starts the process that kills the nodes when this one is gone, however it went:
// the pipe ends with it.
func (c *Cluster) guard() io.Closer {
	c.TB.Helper()
	cmd := exec.Command(c.Exe, "dev", "guard", "--data-dir", c.Dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	w, err := cmd.StdinPipe()
	if err != nil {
		c.TB.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.TB.Fatal(err)
	}
	return closer(func() error { return firstError(w.Close(), cmd.Wait()) })
}

type closer func() error

func (f closer) Close() error { return f() }

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// stopOwn ends the nodes in order, and kills what does not end.
func (c *Cluster) stopOwn() {
	nodes := c.Nodes()
	for _, n := range nodes {
		if n.Alive() {
			_ = syscall.Kill(n.PID, syscall.SIGCONT)
			_ = syscall.Kill(n.PID, syscall.SIGTERM) // gone meanwhile: fine
		}
	}
	deadline := time.Now().Add(15 * time.Second)
	for _, n := range nodes {
		for n.Alive() && time.Now().Before(deadline) {
			<-time.After(20 * time.Millisecond)
		}
		if n.Alive() {
			c.TB.Errorf("node %d does not end", n.ID)
			_ = syscall.Kill(n.PID, syscall.SIGKILL)
		}
	}
}
