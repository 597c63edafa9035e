package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func build(ctx context.Context, dir string) (string, error) {
	exe, err := filepath.Abs(filepath.Join(dir, "chronik"))
	if err != nil {
		return "", err
	}
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", exe, "chronik/cmd/chronik").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	return exe, nil
}

// cluster is a 'chronik dev' of three nodes.
type cluster struct {
	exe, dir  string
	bootstrap string
	cmd       *exec.Cmd
}

type node struct {
	PID   int    `json:"pid"`
	Admin string `json:"admin"`
	Dir   string `json:"dir"`
}

const victim = 3 // the node that is killed

func start(ctx context.Context, exe, dir string, port int, quiesce bool) (*cluster, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	c := &cluster{exe: exe, dir: dir, bootstrap: fmt.Sprintf("127.0.0.1:%d", port)}
	f, err := os.Create(filepath.Join(dir, "dev.out"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // the child has its own copy
	c.cmd = exec.Command(exe, "dev", "--data-dir", dir, "--base-port", fmt.Sprint(port), "--set", fmt.Sprintf("raft.quiesce=%v", quiesce))
	c.cmd.Stdout, c.cmd.Stderr = f, f
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	return c, until(ctx, 2*time.Minute, "the cluster is ready", func() (bool, error) {
		text, err := os.ReadFile(f.Name())
		if err == nil && strings.Contains(string(text), "chronik: error") {
			err = fmt.Errorf("dev: %s", text)
		}
		return strings.Contains(string(text), "ready after"), err
	})
}

func (c *cluster) stop() {
	_ = c.cmd.Process.Signal(os.Interrupt)
	_ = c.cmd.Wait()
}

func (c *cluster) nodes() ([]node, error) {
	var dev struct {
		Nodes []node `json:"nodes"`
	}
	b, err := os.ReadFile(filepath.Join(c.dir, "dev.json"))
	if err == nil {
		err = json.Unmarshal(b, &dev)
	}
	return dev.Nodes, err
}

func (c *cluster) chronik(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, c.exe, args...)
	cmd.Env = append(os.Environ(), "CHRONIK_BOOTSTRAP="+c.bootstrap)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("chronik %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// until polls, every 100 ms or as much more as asking takes: a node of thousands of partitions works
// for an answer, and what is waited for shall not wait for the asking.
func until(ctx context.Context, limit time.Duration, what string, ok func() (bool, error)) error {
	end := time.Now().Add(limit)
	for {
		began := time.Now()
		done, err := ok()
		if done && err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("not within %v: %s: %w", limit, what, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(100*time.Millisecond, 3*time.Since(began))):
		}
	}
}

func get(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return b, err
}

// metrics sums a node's metrics over their labels, but for roles, which stand apart.
func (n node) metrics(ctx context.Context) (map[string]float64, error) {
	b, err := get(ctx, "http://"+n.Admin+"/metrics")
	if err != nil {
		return nil, err
	}
	sum := map[string]float64{}
	for line := range strings.SplitSeq(string(b), "\n") {
		name, value, ok := cutLast(line, " ")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return nil, fmt.Errorf("metric %q: %w", line, err)
		}
		bare, labels, _ := strings.Cut(name, "{")
		sum[bare] += v
		if strings.Contains(labels, `role="leader"`) {
			sum[bare+" leader"] += v
		}
	}
	return sum, nil
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// replicas calls fn for each replica of a node.
func (n node) replicas(ctx context.Context, fn func(leaderNode int32, role string)) error {
	b, err := get(ctx, "http://"+n.Admin+"/v1/replicas")
	if err != nil {
		return err
	}
	var got struct {
		Replicas []struct {
			Role       string `json:"role"`
			LeaderNode int32  `json:"leader_node"`
		} `json:"replicas"`
	}
	if err := json.Unmarshal(b, &got); err != nil {
		return err
	}
	for _, r := range got.Replicas {
		fn(r.LeaderNode, r.Role)
	}
	return nil
}

// cpu is the time that the process has had, in seconds.
func (n node) cpu() (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.PID))
	if err != nil {
		return 0, err
	}
	_, rest, _ := cutLast(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0, errors.New("/proc/pid/stat is too short")
	}
	user, err := strconv.ParseFloat(f[11], 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseFloat(f[12], 64)
	return (user + system) / 100, err
}

func (n node) rss() (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.PID))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	f := strings.Fields(rest)
	if len(f) == 0 {
		return 0, errors.New("/proc/pid/status has no VmRSS")
	}
	kb, err := strconv.ParseFloat(f[0], 64)
	return kb * 1024, err
}

// metadataAnswer is the size of what a client gets that asks for every topic.
func (c *cluster) metadataAnswer(ctx context.Context) (float64, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.bootstrap))
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	resp, err := kmsg.NewPtrMetadataRequest().RequestWith(ctx, cl)
	if err != nil {
		return 0, err
	}
	return float64(len(resp.AppendTo(nil))), nil
}

func median(v []float64) float64 {
	s := slices.Clone(v)
	slices.Sort(s)
	return s[len(s)/2]
}
