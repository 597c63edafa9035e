package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// devNode is a node of a local cluster as dev.json names it.
type devNode struct {
	ID    int      `json:"id"`
	PID   int      `json:"pid"`
	Kafka string   `json:"kafka"`
	Raft  string   `json:"raft"`
	Admin string   `json:"admin"`
	Dir   string   `json:"dir"`
	Argv  []string `json:"argv"`

	logFrom int64 // where its log began when this process started it
}

// devCluster is DATA/dev.json: enough to kill -9 a node and start it again.
type devCluster struct {
	Nodes []devNode `json:"nodes"`
	dir   string
}

type devFlags struct {
	nodes     int
	dataDir   string
	basePort  int
	threshold int
	ephemeral bool
	set       []string
}

func newDev() *cobra.Command {
	var f devFlags
	c := &cobra.Command{
		Use: "dev", Short: "run a local cluster of real processes; Ctrl-C stops it", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c.Context(), c.OutOrStdout()) },
	}
	c.PersistentFlags().StringVar(&f.dataDir, "data-dir", "data/dev", "where the nodes keep their data")
	c.Flags().IntVar(&f.nodes, "nodes", 3, "number of nodes")
	c.Flags().IntVar(&f.basePort, "base-port", 9092, "node i: Kafka here+i-1, Raft here+99+i, admin here+199+i")
	c.Flags().IntVar(&f.threshold, "snapshot-threshold", 0, "snapshot.threshold_entries of the nodes (0: the default)")
	c.Flags().BoolVar(&f.ephemeral, "ephemeral", false, "remove the data at the end")
	c.Flags().StringArrayVar(&f.set, "set", nil, "any setting of the nodes as key=value, repeatable")
	c.AddCommand(newDevKill(&f), newDevRestart(&f), newDevWipe(&f), newDevPs(&f), newDevGuard(&f))
	return c
}

func (f *devFlags) describe() (*devCluster, error) {
	if f.nodes < 1 || f.nodes > 99 {
		return nil, usagef("--nodes %d: want 1 to 99", f.nodes)
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(f.dataDir)
	if err != nil {
		return nil, err
	}
	var peers []string
	if last := 65535 - 199 - f.nodes; f.basePort < 1 || f.basePort > last {
		return nil, usagef("--base-port %d: want 1 to %d with %d nodes", f.basePort, last, f.nodes)
	}
	if f.threshold < 0 {
		return nil, usagef("--snapshot-threshold %d: want 0 or higher", f.threshold)
	}
	for i := 1; i <= f.nodes; i++ {
		peers = append(peers, fmt.Sprintf("%d@127.0.0.1:%d", i, f.basePort+99+i))
	}
	dc := &devCluster{dir: dir}
	for i := 1; i <= f.nodes; i++ {
		n := devNode{
			ID: i, Dir: filepath.Join(dir, fmt.Sprintf("node-%d", i)),
			Kafka: fmt.Sprintf("127.0.0.1:%d", f.basePort+i-1),
			Raft:  fmt.Sprintf("127.0.0.1:%d", f.basePort+99+i),
			Admin: fmt.Sprintf("127.0.0.1:%d", f.basePort+199+i),
		}
		n.Argv = []string{
			exe, "start", "--node-id", strconv.Itoa(i), "--data-dir", n.Dir, "--kafka-addr", n.Kafka,
			"--raft-addr", n.Raft, "--admin-addr", n.Admin,
		}
		if f.nodes > 1 {
			n.Argv = append(n.Argv, "--peers", strings.Join(peers, ","))
		}
		if f.threshold > 0 {
			n.Argv = append(n.Argv, "--set", "snapshot.threshold_entries="+strconv.Itoa(f.threshold))
		}
		for _, s := range f.set {
			n.Argv = append(n.Argv, "--set", s)
		}
		dc.Nodes = append(dc.Nodes, n)
	}
	return dc, nil
}

func (f *devFlags) run(ctx context.Context, out io.Writer) error {
	dc, err := f.describe()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dc.dir, 0o755); err != nil {
		return err
	}
	lock, err := lockDev(dc.dir)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }() // the lock ends with the process anyway
	if f.ephemeral {
		if err := dc.makeEphemeral(); err != nil {
			return err
		}
		defer func() {
			dc.clear()
			_ = os.Remove(filepath.Join(dc.dir, lockName))
			_ = os.Remove(dc.dir) // stays when something else is in it
		}()
	} else if err := os.Remove(filepath.Join(dc.dir, ephemeralMark)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, n := range dc.Nodes {
		if err := portsFree(n); err != nil {
			return err
		}
	}
	defer dc.killAll()
	for i := range dc.Nodes {
		if err := dc.start(i); err != nil {
			return err
		}
	}
	guard, err := dc.guard(false)
	if err != nil {
		return err
	}
	defer func() { _ = guard.Close() }()
	began := time.Now()
	if err := dc.waitReady(ctx, out, 60*time.Second); err != nil {
		if ctx.Err() != nil {
			return errors.Join(errInterrupted, dc.stopAll())
		}
		return err
	}
	fmt.Fprintf(out, "ready after %.1fs\n\nbootstrap servers: %s\nadmin:             http://%s\ndata and logs:     %s\nCtrl-C stops the cluster.\n",
		time.Since(began).Seconds(), dc.bootstrap(), dc.Nodes[0].Admin, dc.dir)
	<-ctx.Done()
	fmt.Fprintln(out, "\nstopping")
	return dc.stopAll()
}

// ephemeralMark is a file that says: what lies beside it may be removed.
const ephemeralMark = "dev.ephemeral"

// makeEphemeral refuses a directory with data of others, and empties one that an
// ephemeral cluster left behind when it was killed.
func (dc *devCluster) makeEphemeral() error {
	mark := filepath.Join(dc.dir, ephemeralMark)
	if _, err := os.Stat(mark); err == nil {
		dc.clear()
	}
	entries, err := os.ReadDir(dc.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != lockName {
			return withHint(fmt.Errorf("--ephemeral would remove what is in %s", dc.dir), "name an empty directory by --data-dir")
		}
	}
	return os.WriteFile(mark, nil, 0o644)
}

// clear removes what a dev cluster made, but for its lock.
func (dc *devCluster) clear() {
	entries, _ := os.ReadDir(dc.dir) // no pattern: the directory's own name may look like one that matches others
	for _, e := range entries {
		switch name := e.Name(); {
		case strings.HasPrefix(name, "node-"), name == "dev.json", name == "dev.json.tmp", name == ephemeralMark:
			_ = os.RemoveAll(filepath.Join(dc.dir, name)) // best effort: the data is of no use to anybody
		}
	}
}

const lockName = "dev.lock"

// running tells whether a dev process holds the directory.
func (dc *devCluster) running() bool {
	lock, err := lockDev(dc.dir)
	if err == nil {
		_ = lock.Close()
	}
	return err != nil
}

// lockDev keeps two dev clusters out of one directory.
func lockDev(dir string) (io.Closer, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, withHint(fmt.Errorf("a dev cluster already runs on %s", dir), "stop it, or choose another --data-dir and --base-port")
	}
	return f, nil
}

func portsFree(n devNode) error {
	for _, addr := range []string{n.Kafka, n.Raft, n.Admin} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return withHint(fmt.Errorf("node %d cannot listen on %s: %w", n.ID, addr, err), "something else runs there: stop it, or choose another --base-port")
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

// freeCluster describes three nodes in dir on ports that nobody uses. They lie below those that
// the system gives to outgoing connections: a node that is down must find its ports free.
func freeCluster(dir string, threshold int, set []string) (*devCluster, error) {
	var err error
	for range 50 {
		f := devFlags{nodes: 3, dataDir: dir, basePort: 10_000 + rand.IntN(22_000-400), threshold: threshold, set: set}
		var dc *devCluster
		if dc, err = f.describe(); err != nil {
			return nil, err
		}
		for _, n := range dc.Nodes {
			err = firstErr(err, portsFree(n))
		}
		if err == nil {
			return dc, nil
		}
	}
	return nil, err
}

// endAll kills the nodes and waits until they are gone, so that their directory can be removed.
func (dc *devCluster) endAll() {
	dc.killAll()
	for i := range dc.Nodes {
		if n := &dc.Nodes[i]; n.alive() {
			_ = n.kill() // a process that does not go away is the guard's
		}
	}
}

func (dc *devCluster) path() string { return filepath.Join(dc.dir, "dev.json") }

func (dc *devCluster) bootstrap() string {
	var addrs []string
	for _, n := range dc.Nodes {
		addrs = append(addrs, n.Kafka)
	}
	return strings.Join(addrs, ",")
}

func (dc *devCluster) save() error {
	b, err := json.MarshalIndent(dc, "", "  ")
	if err != nil {
		return err
	}
	tmp := dc.path() + ".tmp"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, dc.path())
}

func loadDev(dir string) (*devCluster, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	dc := &devCluster{dir: abs}
	b, err := os.ReadFile(dc.path())
	if err != nil {
		return nil, withHint(fmt.Errorf("no dev cluster in %s: %w", dir, err), "'chronik dev' starts one; --data-dir says which is meant")
	}
	if err := json.Unmarshal(b, dc); err != nil {
		return nil, fmt.Errorf("%s: %w", dc.path(), err)
	}
	return dc, nil
}

// start runs node i in a process group of its own, so that a terminal's Ctrl-C reaches only dev, and records its pid.
func (dc *devCluster) start(i int) error {
	n := &dc.Nodes[i]
	log, err := os.OpenFile(dc.logPath(n.ID), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the child has its own copy
	if n.logFrom, err = log.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	cmd := exec.Command(n.Argv[0], n.Argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	n.PID = cmd.Process.Pid
	go func() { _ = cmd.Wait() }() // reaps; the exit is in the node's log
	return dc.save()
}

// guard starts a small process that outlives a SIGKILL of dev and then kills the
// nodes dev.json names. It waits for the end of the returned pipe, which comes
// when this process ends, however it ends. With remove it removes the cluster's directory, too,
// unless guardKeeps was written into the pipe.
func (dc *devCluster) guard(remove bool) (io.WriteCloser, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe, "dev", "guard", "--data-dir", dc.dir, "--remove="+strconv.FormatBool(remove))
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, r.Close(), w.Close())
	}
	go func() { _ = cmd.Wait() }()
	return w, r.Close()
}

func (dc *devCluster) waitReady(ctx context.Context, out io.Writer, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for i := range dc.Nodes {
		n := &dc.Nodes[i]
		for !ready(ctx, n.Admin) {
			if !n.alive() {
				return withHint(fmt.Errorf("node %d ended at start%s", n.ID, dc.lastError(n)), "its log says more: "+dc.logPath(n.ID))
			}
			if time.Now().After(deadline) {
				return withHint(fmt.Errorf("node %d is not ready after %v", n.ID, limit), "its log says more: "+dc.logPath(n.ID))
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(50 * time.Millisecond):
			}
		}
		fmt.Fprintf(out, "node %d  pid %-7d kafka %s  admin http://%s\n", n.ID, n.PID, n.Kafka, n.Admin)
	}
	return nil
}

func ready(ctx context.Context, admin string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin+"/readyz", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode == http.StatusOK
}

// logPath is where the output of node id goes.
func (dc *devCluster) logPath(id int) string {
	return filepath.Join(dc.dir, fmt.Sprintf("node-%d.log", id))
}

// lastError is the last line of a node's log that says what went wrong since its start.
func (dc *devCluster) lastError(n *devNode) string {
	f, err := os.Open(dc.logPath(n.ID))
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }() // read only
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	// The log has all runs in it, and how it ended stands at its end.
	from := max(n.logFrom, end-64<<10)
	b := make([]byte, max(end-from, 0))
	if _, err := f.ReadAt(b, from); err != nil {
		return ""
	}
	text := string(b)
	_, text, ok := strings.Cut(text[max(0, strings.LastIndex(text, "chronik: error: ")):], "chronik: error: ")
	if !ok {
		return ""
	}
	line, _, _ := strings.Cut(text, "\n")
	return ": " + line
}

// alive tells whether the recorded pid still is this node (a pid may be given anew).
func (n *devNode) alive() bool {
	if n.PID <= 0 {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", n.PID))
	if errors.Is(err, os.ErrNotExist) {
		if _, perr := os.Stat("/proc/self"); perr == nil {
			return false
		}
		return syscall.Kill(n.PID, 0) == nil // no /proc here
	}
	if err != nil || len(b) > 0 {
		return err == nil && strings.Contains(string(b), n.Dir)
	}
	// It is ending. Its ports are free once its last thread is gone, and only a zombie is left.
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", n.PID))
	if err != nil || len(threads) > 1 {
		return err == nil
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.PID))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func (dc *devCluster) killAll() {
	for _, n := range dc.Nodes {
		if n.alive() {
			_ = syscall.Kill(n.PID, syscall.SIGKILL) // gone already: fine
		}
	}
}

// stopAll asks every node to stop and waits up to ten seconds; what remains is killed by the caller.
func (dc *devCluster) stopAll() error {
	if cur, err := loadDev(dc.dir); err == nil {
		dc.Nodes = cur.Nodes // a dev restart may have replaced a process
	}
	for _, n := range dc.Nodes {
		if n.alive() {
			_ = syscall.Kill(n.PID, syscall.SIGTERM) // gone already: fine
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		left := 0
		for _, n := range dc.Nodes {
			if n.alive() {
				left++
			}
		}
		if left == 0 {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return errors.New("some nodes did not stop within 10s and were killed")
}
