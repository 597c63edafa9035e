// Package harness runs real clusters for tests: it builds the chronik binary
// once, starts 'chronik dev', and kills, restarts, wipes and asks its nodes.
package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/admin"
)

var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "chronik-bin-")
	if err != nil {
		return "", err
	}
	if err := look(); err != nil {
		return "", err
	}
	exe := filepath.Join(dir, "chronik")
	args := []string{"build", "-o", exe}
	if os.Getenv("CHRONIK_TEST_RACE") != "" {
		args = append(args, "-race") // what it finds is in a node's log: checkLogs
	}
	out, err := exec.Command("go", append(args, "chronik/cmd/chronik")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build chronik: %w\n%s", err, out)
	}
	return exe, nil
})

// look opens what the binary is built from. The go command caches a test's result
// by the files the test process opened, and would not see that another process built from them.
func look() error {
	root := ".."
	for {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		root = filepath.Join(root, "..")
		if len(root) > 100 {
			return errors.New("no go.mod above the test's directory")
		}
	}
	for _, dir := range []string{"cmd", "internal"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			return f.Close()
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Binary builds chronik, once a test process.
func Binary(tb testing.TB) string {
	tb.Helper()
	exe, err := binary()
	if err != nil {
		tb.Fatal(err)
	}
	return exe
}

// Node is a node as dev.json names it.
type Node struct {
	ID    int      `json:"id"`
	PID   int      `json:"pid"`
	Kafka string   `json:"kafka"`
	Raft  string   `json:"raft"`
	Admin string   `json:"admin"`
	Dir   string   `json:"dir"`
	Argv  []string `json:"argv"`
}

// Options of a cluster.
type Options struct {
	Nodes     int // 3 when 0
	Threshold int // snapshot.threshold_entries
	Set       []string
	Exe       string // the build to start with; this source tree's when empty
	// Namespaces gives each node a network namespace: Cluster.Net cuts them. Needs root.
	Namespaces bool
	// Proxied puts a proxy between any two nodes: Cluster.Proxy disturbs them. Not with Namespaces.
	Proxied bool
	// DiskBytes gives each node a file system of that size: FillDisk. Needs root.
	DiskBytes int64
}

// Cluster is a running 'chronik dev'.
type Cluster struct {
	TB   testing.TB
	Dir  string
	Exe  string
	base int
	cmd  *exec.Cmd
	// Net and Proxy are there if Options asked for them.
	Net   *Net
	Proxy *Proxy
}

// machine is held while a test process runs processes of its own: 'go test ./...' runs
// packages side by side, and a cluster measures time.
var machine struct {
	sync.Mutex
	users int
	file  *os.File
}

// Alone waits until no other test process runs a cluster, and holds that until the test ends.
func Alone(tb testing.TB) {
	tb.Helper()
	machine.Lock()
	defer machine.Unlock()
	if machine.users == 0 {
		f, err := os.OpenFile(filepath.Join(os.TempDir(), "chronik-test.lock"), os.O_CREATE|os.O_RDWR, 0o666)
		if err != nil {
			tb.Fatal(err)
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			tb.Fatal(err)
		}
		machine.file = f
	}
	machine.users++
	tb.Cleanup(func() {
		machine.Lock()
		defer machine.Unlock()
		if machine.users--; machine.users == 0 {
			_ = machine.file.Close() // and with it the lock
		}
	})
}

// Long leaves a test to 'make long': 'go test ./...' is to stay under three minutes.
func Long(tb testing.TB) {
	tb.Helper()
	if os.Getenv("CHRONIK_TEST_LONG") == "" {
		tb.Skip("takes long: make long")
	}
}

// Start runs a cluster until the test ends. Afterwards no log may show a panic.
func Start(tb testing.TB, o Options) *Cluster {
	tb.Helper()
	exe := o.Exe
	if exe == "" {
		exe = Binary(tb) // before others have to wait
	}
	Alone(tb)
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	c := &Cluster{TB: tb, Dir: tb.TempDir(), Exe: exe, base: freeBase(tb, o.Nodes+1)} // one may join
	if o.Namespaces || o.Proxied || o.DiskBytes > 0 {
		c.startOwn(tb, o)
		return c
	}
	args := []string{"dev", "--nodes", fmt.Sprint(o.Nodes), "--data-dir", c.Dir, "--base-port", fmt.Sprint(c.base)}
	if o.Threshold > 0 {
		args = append(args, "--snapshot-threshold", fmt.Sprint(o.Threshold))
	}
	for _, s := range o.Set {
		args = append(args, "--set", s)
	}
	c.cmd = exec.Command(c.Exe, args...)
	out, err := os.Create(filepath.Join(c.Dir, "dev.out"))
	if err != nil {
		tb.Fatal(err)
	}
	c.cmd.Stdout, c.cmd.Stderr = out, out
	if err := c.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		c.stop()
		_ = out.Close()
		c.checkLogs()
	})
	c.Eventually(60*time.Second, "dev says ready", func() error {
		b, err := os.ReadFile(out.Name())
		if err != nil {
			return err
		}
		if strings.Contains(string(b), "chronik: error") {
			tb.Fatalf("dev failed: %s\n%s", b, c.Logs())
		}
		if !strings.Contains(string(b), "ready after") {
			return fmt.Errorf("dev printed: %s", b)
		}
		return nil
	})
	return c
}

// FreeAddr returns a loopback address that nobody listens on now.
func FreeAddr(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// freeBase finds a base port whose node ports are all free. They lie below those that the
// system gives to outgoing connections: a node that is down must find its ports free.
func freeBase(tb testing.TB, nodes int) int {
	tb.Helper()
	for range 50 {
		if base := 10_000 + rand.IntN(22_000-400); allFree(base, nodes) {
			return base
		}
	}
	tb.Fatal("no free ports")
	return 0
}

func allFree(base, nodes int) bool {
	for i := range nodes {
		for _, p := range []int{base + i, base + 100 + i, base + 200 + i} {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
			if err != nil {
				return false
			}
			_ = l.Close()
		}
	}
	return true
}

func (c *Cluster) stop() {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { _ = c.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		_ = c.cmd.Process.Kill()
		<-done
	}
}

// checkLogs fails the test when a node panicked, and shows the logs of a failed test.
func (c *Cluster) checkLogs() {
	logs := c.Logs()
	for _, bad := range []string{"panic:", "fatal error:", "DATA RACE", "invariant broken"} {
		if strings.Contains(logs, bad) {
			c.TB.Errorf("a node's log shows %q", bad)
		}
	}
	if c.TB.Failed() {
		if keep := os.Getenv("CHRONIK_TEST_KEEP"); keep != "" {
			_ = os.WriteFile(filepath.Join(keep, strings.ReplaceAll(c.TB.Name(), "/", "_")+".log"), []byte(logs), 0o644)
		}
		// Of each node, the end: one that talks much must not hide the others.
		for log := range strings.SplitSeq(logs, "--- node-") {
			if log != "" {
				c.TB.Logf("log of node-%s", log[:min(len(log), 6)]+log[max(min(len(log), 6), len(log)-15_000):])
			}
		}
	}
}

// Logs returns all nodes' logs.
func (c *Cluster) Logs() string {
	var sb strings.Builder
	files, _ := filepath.Glob(filepath.Join(c.Dir, "node-*.log"))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		fmt.Fprintf(&sb, "--- %s\n%s", filepath.Base(f), b)
	}
	return sb.String()
}

// NodeLog returns node id's log.
func (c *Cluster) NodeLog(id int) string {
	b, _ := os.ReadFile(filepath.Join(c.Dir, fmt.Sprintf("node-%d.log", id)))
	return string(b)
}

// Nodes reads dev.json.
func (c *Cluster) Nodes() []Node {
	c.TB.Helper()
	b, err := os.ReadFile(filepath.Join(c.Dir, "dev.json"))
	if err != nil {
		c.TB.Fatal(err)
	}
	var dev struct {
		Nodes []Node `json:"nodes"`
	}
	if err := json.Unmarshal(b, &dev); err != nil {
		c.TB.Fatal(err)
	}
	return dev.Nodes
}

// Node returns node id.
func (c *Cluster) Node(id int) Node {
	c.TB.Helper()
	for _, n := range c.Nodes() {
		if n.ID == id {
			return n
		}
	}
	c.TB.Fatalf("no node %d", id)
	return Node{}
}

// Bootstrap returns every node's Kafka address.
func (c *Cluster) Bootstrap() []string {
	c.TB.Helper()
	var addrs []string
	for _, n := range c.Nodes() {
		addrs = append(addrs, n.Kafka)
	}
	return addrs
}

// CLI runs chronik with args against the cluster and returns its standard output.
func (c *Cluster) CLI(args ...string) (string, error) {
	return c.CLIInput("", args...)
}

// CLIInput is CLI with standard input.
func (c *Cluster) CLIInput(stdin string, args ...string) (string, error) {
	cmd := exec.Command(c.Exe, args...)
	cmd.Env = append(os.Environ(), "CHRONIK_BOOTSTRAP="+strings.Join(c.Bootstrap(), ","))
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("chronik %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

func (c *Cluster) must(args ...string) {
	c.TB.Helper()
	if out, err := c.CLI(args...); err != nil {
		c.TB.Fatalf("%v\n%s", err, out)
	}
}

// Kill sends node id SIGKILL and waits until it is gone.
func (c *Cluster) Kill(id int) {
	c.TB.Helper()
	c.must("dev", "kill", fmt.Sprint(id), "--data-dir", c.Dir)
}

// Restart starts node id.
func (c *Cluster) Restart(id int) {
	c.TB.Helper()
	c.must("dev", "restart", fmt.Sprint(id), "--data-dir", c.Dir)
}

// Swap makes exe the build that node id is started with from now on.
func (c *Cluster) Swap(id int, exe string) {
	c.TB.Helper()
	nodes := c.Nodes()
	for i := range nodes {
		if nodes[i].ID == id {
			nodes[i].Argv[0] = exe
		}
	}
	b, err := json.Marshal(map[string][]Node{"nodes": nodes})
	if err != nil {
		c.TB.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.Dir, "dev.json"), b, 0o644); err != nil {
		c.TB.Fatal(err)
	}
}

// Wipe empties node id's directory.
func (c *Cluster) Wipe(id int) {
	c.TB.Helper()
	c.must("dev", "wipe", fmt.Sprint(id), "--data-dir", c.Dir)
}

// Join starts one more node with the same peers and settings, and waits until it serves.
func (c *Cluster) Join() Node {
	c.TB.Helper()
	nodes := c.Nodes()
	last := nodes[len(nodes)-1]
	i := last.ID // nodes are numbered from 1
	n := Node{
		ID: i + 1, Kafka: fmt.Sprintf("127.0.0.1:%d", c.base+i), Raft: fmt.Sprintf("127.0.0.1:%d", c.base+100+i),
		Admin: fmt.Sprintf("127.0.0.1:%d", c.base+200+i), Dir: filepath.Join(c.Dir, fmt.Sprintf("node-%d", i+1)),
	}
	own := map[string]string{fmt.Sprint(last.ID): fmt.Sprint(n.ID), last.Kafka: n.Kafka, last.Raft: n.Raft, last.Admin: n.Admin, last.Dir: n.Dir}
	for _, arg := range last.Argv {
		if a, ok := own[arg]; ok {
			arg = a
		}
		n.Argv = append(n.Argv, arg)
	}
	c.save(append(nodes, n))
	c.Restart(n.ID) // which makes it one of those that dev ends
	c.Eventually(60*time.Second, "the new node serves", func() error { return c.Ready(n.ID) })
	return c.Node(n.ID)
}

// Stop sends node id SIGTERM and waits until it is gone.
func (c *Cluster) Stop(id int) {
	c.TB.Helper()
	n := c.Node(id)
	if err := syscall.Kill(n.PID, syscall.SIGTERM); err != nil {
		c.TB.Fatal(err)
	}
	c.Eventually(15*time.Second, "node stops", func() error {
		if n.Alive() {
			return fmt.Errorf("node %d still runs", id)
		}
		return nil
	})
}

// Alive tells whether the node's process runs, or has not let go of its ports yet.
func (n Node) Alive() bool {
	proc := fmt.Sprintf("/proc/%d/", n.PID)
	b, err := os.ReadFile(proc + "cmdline")
	if err != nil {
		return false
	}
	if len(b) > 0 {
		return strings.Contains(string(b), n.Dir) // else the id was given anew
	}
	// It is ending. Its files are closed once its last thread is, and only a zombie is left.
	threads, err := os.ReadDir(proc + "task")
	if err != nil || len(threads) > 1 {
		return err == nil
	}
	stat, err := os.ReadFile(proc + "stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// Ready returns nil once node id says it serves.
func (c *Cluster) Ready(id int) error {
	client := http.Client{Timeout: 2 * time.Second}
	resp, err := client.Get("http://" + c.Node(id).Admin + "/readyz")
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("node %d: %s: %s", id, resp.Status, why)
	}
	return nil
}

// Get reads JSON from node id's admin address.
func (c *Cluster) Get(id int, path string, into any) error {
	client := http.Client{Timeout: 5 * time.Second}
	if strings.HasPrefix(path, "/v1/digest") {
		client.Timeout = 25 * time.Second // it reads a whole partition
	}
	resp, err := client.Get("http://" + c.Node(id).Admin + path)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", path, resp.Status, body)
	}
	return json.Unmarshal(body, into)
}

// Replica returns node id's live replica of group ("orders-0").
func (c *Cluster) Replica(id int, group string) (admin.Replica, error) {
	var rs admin.Replicas
	if err := c.Get(id, "/v1/replicas", &rs); err != nil {
		return admin.Replica{}, err
	}
	for _, r := range rs.Replicas {
		if r.Group == group {
			return r, nil
		}
	}
	return admin.Replica{}, fmt.Errorf("node %d has no replica of %s", id, group)
}

// Leader returns the node that says it leads group.
func (c *Cluster) Leader(group string) (int, admin.Replica, error) {
	var last error
	for _, n := range c.Nodes() {
		r, err := c.Replica(n.ID, group)
		if err == nil && r.Role == "leader" {
			return n.ID, r, nil
		}
		last = err
	}
	return 0, admin.Replica{}, errors.Join(fmt.Errorf("no leader of %s", group), last)
}

// DigestsEqual compares every node's digest of a partition up to offset to.
func (c *Cluster) DigestsEqual(topic string, partition int, to int64) error {
	var first admin.Digest
	for i, n := range c.Nodes() {
		var d admin.Digest
		if err := c.Get(n.ID, fmt.Sprintf("/v1/digest?topic=%s&partition=%d", topic, partition), &d); err != nil {
			return err
		}
		if d.To != to {
			return fmt.Errorf("node %d: digest of %s-%d reaches %d, want %d", n.ID, topic, partition, d.To, to)
		}
		if i == 0 {
			first = d
		} else if d != first {
			return fmt.Errorf("%s-%d: digests differ: %+v on node %d, %+v before", topic, partition, d, n.ID, first)
		}
	}
	return nil
}

// Eventually waits until f returns nil, asking every 20 ms, and fails the test after limit.
func (c *Cluster) Eventually(limit time.Duration, what string, f func() error) time.Duration {
	c.TB.Helper()
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			c.TB.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		<-tick.C
	}
}

// Client returns a franz-go client of the cluster.
func (c *Cluster) Client(opts ...kgo.Opt) *kgo.Client {
	c.TB.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(c.Bootstrap()...), kgo.MetadataMinAge(50 * time.Millisecond), kgo.DialTimeout(2 * time.Second),
		kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }),
		kgo.AlwaysRetryEOF(), // a node that is killed right after it was connected to looks like one that wants TLS
	}, opts...)...)
	if err != nil {
		c.TB.Fatal(err)
	}
	c.TB.Cleanup(cl.Close)
	return cl
}

// CreateTopic creates a topic with three replicas a partition (or as many as nodes).
func (c *Cluster) CreateTopic(topic string, partitions int, configs ...string) {
	c.TB.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	kv := map[string]*string{}
	for _, s := range configs {
		k, v, _ := strings.Cut(s, "=")
		kv[k] = &v
	}
	cl := c.Client()
	if _, err := kadm.NewClient(cl).CreateTopic(ctx, int32(partitions), -1, kv, topic); err != nil {
		c.TB.Fatalf("create topic %s: %v", topic, err)
	}
}
