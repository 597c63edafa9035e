package cli

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"chronik/test/harness"
)

// parent returns the parent of pid, from /proc.
func parent(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Skipf("no /proc here: %v", err)
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	ppid, err := strconv.Atoi(f[1])
	if err != nil {
		t.Fatal(err)
	}
	return ppid
}

// TestDevKilled: the nodes of a dev that gets SIGKILL end with it, also one that
// was restarted by another process; nothing can be started then that nobody ends.
func TestDevKilled(t *testing.T) {
	c := harness.Start(t, harness.Options{})
	dev := parent(t, c.Node(1).PID)
	first := c.Node(2)
	if r := do(t, c, nil, "dev", "wipe", "2", "--data-dir", c.Dir); r.code != 1 || !strings.Contains(r.errs, "dev kill 2") {
		t.Errorf("wipe of a running node: exit code %d, %s", r.code, r.errs)
	}
	c.Kill(2)
	if r := do(t, c, nil, "dev", "kill", "2", "--data-dir", c.Dir); r.code != 1 || !strings.Contains(r.errs, "does not run") {
		t.Errorf("kill of a dead node: exit code %d, %s", r.code, r.errs)
	}
	if c.Node(2).Alive() {
		t.Error("dev restarted a killed node")
	}
	before := c.NodeLog(2)
	c.Restart(2)
	if n := c.Node(2); n.PID == first.PID || strings.Join(n.Argv, " ") != strings.Join(first.Argv, " ") {
		t.Errorf("%+v became %+v", first, n)
	}
	c.Eventually(20*time.Second, "node 2 serves", func() error { return c.Ready(2) })
	if log := c.NodeLog(2); !strings.HasPrefix(log, before) || len(log) == len(before) {
		t.Error("the log of node 2 was not appended to")
	}
	nodes := c.Nodes()
	for _, args := range [][]string{{"dev", "--data-dir", c.Dir}, {"dev", "--data-dir", t.TempDir(), "--base-port", port(nodes[0].Kafka)}} {
		if r := do(t, c, nil, args...); r.code != 1 || !strings.Contains(r.errs, "chronik: hint: ") {
			t.Errorf("a second %v: exit code %d, %s", args, r.code, r.errs)
		}
	}
	if err := syscall.Kill(dev, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.Eventually(10*time.Second, "the nodes end", func() error {
		for _, n := range nodes {
			if n.Alive() {
				return fmt.Errorf("node %d (pid %d) runs", n.ID, n.PID)
			}
		}
		return nil
	})
	if r := do(t, c, nil, "dev", "restart", "2", "--data-dir", c.Dir); r.code != 1 || !strings.Contains(r.errs, "no dev cluster runs") {
		t.Errorf("restart without dev: exit code %d, %s", r.code, r.errs)
	}
	if s := must(t, c, "", "dev", "ps", "--data-dir", c.Dir); strings.Count(s, "dead") != 3 {
		t.Errorf("%s", s)
	}
}

func port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// TestDevEphemeral: one node, no data left, and none of others taken away.
func TestDevEphemeral(t *testing.T) {
	harness.Alone(t)
	exe, base := harness.Binary(t), 0
	if _, err := fmt.Sscan(port(harness.FreeAddr(t)), &base); err != nil {
		t.Fatal(err)
	}
	base = min(base, 60000)
	dir := filepath.Join(t.TempDir(), "data")
	run := func() (*exec.Cmd, *bytes.Buffer) {
		cmd := exec.Command(exe, "dev", "--nodes", "1", "--ephemeral", "--data-dir", dir, "--base-port", strconv.Itoa(base))
		out := &bytes.Buffer{}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout, cmd.Stderr = w, w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_ = w.Close()
		defer func() { _ = r.Close() }()
		late := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
		defer late.Stop()
		buf := make([]byte, 4096)
		for !strings.Contains(out.String(), "Ctrl-C stops") {
			n, err := r.Read(buf)
			out.Write(buf[:n])
			if err != nil {
				break
			}
		}
		return cmd, out
	}
	cmd, out := run()
	if !strings.Contains(out.String(), "ready after") {
		_ = cmd.Wait()
		t.Fatalf("%s", out)
	}
	produce := exec.Command(exe, "produce", "t", "--bootstrap", "127.0.0.1:"+strconv.Itoa(base))
	produce.Stdin = strings.NewReader("alone")
	if b, err := produce.CombinedOutput(); err != nil || !strings.HasPrefix(string(b), "records=1 ") {
		t.Errorf("%v, %s", err, b)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // its pipe is closed: how it ends is not told
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("data is left: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "node-1"), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd, out = run()
	_ = cmd.Wait()
	if !strings.Contains(out.String(), "--ephemeral would remove what is in") {
		t.Errorf("%s", out)
	}
	if _, err := os.Stat(filepath.Join(dir, "node-1")); err != nil {
		t.Error(err)
	}
}
