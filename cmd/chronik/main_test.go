package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chronik/internal/config"
)

// chronik runs one command line in this process.
func chronik(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	t.Setenv("CHRONIK_BOOTSTRAP", "")
	var o, e bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &o, &e)
	return code, o.String(), e.String()
}

// TestUsage: what is wrong with a command line is one error and one hint, with exit code 2 and before anybody is asked.
func TestUsage(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"foo", `chronik has no command "foo"`},
		{"topci", "did you mean topic"},
		{"topic foo", `chronik topic has no command "foo"`},
		{"dev foo", `chronik dev has no command "foo"`},
		{"group foo", `chronik group has no command "foo"`},
		{"topic create", "want 'chronik topic create TOPIC', got 0 arguments"},
		{"topic create a b", "got 2 arguments"},
		{"topic create a --partitions x", "--partitions"},
		{"topic create a --partitions 0", "want 1 or higher"},
		{"topic create a --replication-factor 0", "want 1 or higher"},
		{"topic create a --config x", "want key=value"},
		{"topic alter a", "nothing to alter"},
		{"topic alter a --partitions 0", "want 1 or higher"},
		{"topic list -o tall", "want wide or json"},
		{"topic list --nonsense", "unknown flag"},
		{"consume", "want 'chronik consume TOPIC'"},
		{"consume t --isolation snapshot", "unknown isolation"},
		{"consume t --offset 1", "--offset needs --partition"},
		{"consume t --partition 0 --offset -1", "want 0 or higher"},
		{"consume t --partition -2", "want 0 or higher"},
		{"consume t --partition 0 --group g", "exclude each other"},
		{"consume t --from-beginning --partition 0 --offset 1", "exclude each other"},
		{"consume t --format %q", "--format"},
		{"consume t --max -1", "want 0 or higher"},
		{"produce t --acks 2", "unknown acks"},
		{"produce t --acks 1 --idempotent", "--idempotent needs --acks all"},
		{"produce t --compression rar", "unknown compression"},
		{"produce t --linger -1s", "want 0s to 1m"},
		{"produce t --batch-records -1", "want 0 or higher"},
		{"group reset g", "--topic is missing"},
		{"group reset g --topic t --to noon", "want earliest or latest"},
		{"status --bootstrap ,", "names no broker"},
		{"status --bootstrap 127.0.0.1:x", "--bootstrap 127.0.0.1:x"},
		{"dev --nodes 0", "want 1 to 99"},
		{"dev --base-port 65400", "--base-port 65400"},
		{"dev --snapshot-threshold -1", "want 0 or higher"},
		{"dev kill x", "want a number"},
		{"dev restart x", "want a number"},
		{"start --node-id x", "node.id"},
		{"start --node-id 0", "node.id"},
		{"start --set node.id", "want key=value"},
		{"start --set nod.id=1", "did you mean node.id?"},
		{"config check --set raft.election_timeout=soon", "raft.election_timeout"},
	} {
		code, out, errs := chronik(t, strings.Fields(c.line)...)
		first, rest, _ := strings.Cut(errs, "\n")
		if code != 2 || out != "" || !strings.HasPrefix(first, "chronik: error: ") || !strings.Contains(first, c.want) ||
			!strings.HasPrefix(rest, "chronik: hint: ") || strings.Count(errs, "\n") != 2 {
			t.Errorf("chronik %s: exit code %d, stdout %q, stderr %q; want 2 and %q", c.line, code, out, errs, c.want)
		}
	}
}

// TestErrors: what fails for other reasons has exit code 1, and a hint.
func TestErrors(t *testing.T) {
	dir := t.TempDir()
	nobody := "127.0.0.1:1"
	segment := filepath.Join(dir, "00000000000000000000.seg")
	file := filepath.Join(dir, "c.toml")
	if err := errors.Join(os.WriteFile(segment, []byte("not a batch"), 0o600), os.WriteFile(file, []byte("[node]\nidd = 1\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ line, want, hint string }{
		{"status --bootstrap " + nobody, "no broker answers at " + nobody, "chronik dev"},
		{"topic list --bootstrap " + nobody, "no broker answers", "--bootstrap"},
		{"consume t --bootstrap " + nobody, "no broker answers", "--bootstrap"},
		{"produce t --bootstrap " + nobody, "no broker answers", "--bootstrap"},
		{"verify t --bootstrap " + nobody, "no broker answers", "--bootstrap"},
		{"produce t --file " + filepath.Join(dir, "none"), "no such file", ""},
		{"dev ps --data-dir " + dir, "no dev cluster in " + dir, "--data-dir"},
		{"dev restart 1 --data-dir " + dir, "no dev cluster in " + dir, "--data-dir"},
		{"dev kill 1 --data-dir " + dir, "no dev cluster in " + dir, "--data-dir"},
		{"config check --config " + filepath.Join(dir, "none"), "no such file", "--config"},
		{"config check --config " + file, "did you mean node.id", ""},
		{"debug segment " + segment, segment, ""},
		{"debug raftlog " + segment, segment, ""},
		{"debug snapshot " + segment, segment, ""},
	} {
		code, _, errs := chronik(t, strings.Fields(c.line)...)
		if code != 1 || !strings.HasPrefix(errs, "chronik: error: ") || !strings.Contains(errs, c.want) || !strings.Contains(errs, c.hint) {
			t.Errorf("chronik %s: exit code %d, stderr %q; want 1, %q and %q", c.line, code, errs, c.want, c.hint)
		}
	}
}

// TestDefaults: the environment names the brokers when the flag does not.
func TestDefaults(t *testing.T) {
	for _, c := range []struct{ flag, env, want string }{
		{"", "", "127.0.0.1:9092"},
		{"", "a:1, b:2,", "a:1,b:2"},
		{"c:3", "a:1", "c:3"},
	} {
		t.Setenv("CHRONIK_BOOTSTRAP", c.env)
		b := bootstrap{addrs: c.flag}
		if got, err := b.seeds(); err != nil || strings.Join(got, ",") != c.want {
			t.Errorf("flag %q, environment %q: %v, %v; want %s", c.flag, c.env, got, err, c.want)
		}
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// TestOutput: a full disk is an error of every command, a reader that left is none.
func TestOutput(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
	}{{syscall.ENOSPC, 1}, {syscall.EPIPE, 0}} {
		for _, line := range []string{"version", "config print", "config print --json", "config check", "config reference", "reference", "--help", "topic"} {
			var errs bytes.Buffer
			code := run(t.Context(), strings.Fields(line), strings.NewReader(""), failing{c.err}, &errs)
			if code != c.code || (errs.Len() > 0) != (c.code == 1) {
				t.Errorf("chronik %s with %v: exit code %d, want %d; stderr %q", line, c.err, code, c.code, errs.String())
			}
		}
	}
}

// TestReaderLeft: a command that failed says so, even if nobody reads what it printed before.
func TestReaderLeft(t *testing.T) {
	file := filepath.Join(t.TempDir(), "00000001.log")
	if err := os.WriteFile(file, []byte("not a raftlog"), 0o600); err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	code := run(t.Context(), []string{"debug", "raftlog", file}, strings.NewReader(""), failing{syscall.EPIPE}, &errs)
	if code != 1 || !strings.Contains(errs.String(), "chronik: error: ") || !strings.Contains(errs.String(), file) {
		t.Errorf("exit code %d, stderr %q", code, errs.String())
	}
}

// TestInterrupt: Ctrl-C while a broker is asked that accepts and says nothing ends the command at once, in words.
func TestInterrupt(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		if _, err := l.Accept(); err == nil {
			cancel()
		}
	}()
	var errs bytes.Buffer
	code := run(ctx, []string{"topic", "list", "--bootstrap", l.Addr().String()}, strings.NewReader(""), &errs, &errs)
	if code != 1 || errs.String() != "chronik: error: interrupted\n" {
		t.Errorf("exit code %d, %q", code, errs.String())
	}
}

// TestConfigPrint: the JSON names every setting, and the environment sets what it says.
func TestConfigPrint(t *testing.T) {
	t.Setenv("CHRONIK_SNAPSHOT_THRESHOLD_ENTRIES", "7")
	code, out, errs := chronik(t, "config", "print", "--json", "--set", "node.rack=r1")
	var list []config.Setting
	if err := json.Unmarshal([]byte(out), &list); code != 0 || err != nil {
		t.Fatalf("exit code %d, %v, %s", code, err, errs)
	}
	got := map[string]config.Setting{}
	for _, s := range list {
		got[s.Name] = s
	}
	if s := got["snapshot.threshold_entries"]; s.Value != "7" || s.Env != "CHRONIK_SNAPSHOT_THRESHOLD_ENTRIES" || !strings.Contains(s.Origin, s.Env) {
		t.Errorf("%+v", s)
	}
	if s := got["node.rack"]; s.Value != "r1" || s.Origin != "flag --set" {
		t.Errorf("%+v", s)
	}
	if s := got["raft.election_timeout"]; s.Value != "1s" || s.Origin != "default" {
		t.Errorf("%+v", s)
	}
}

// TestGenerated: the references under docs are those of this program. make docs writes them.
func TestGenerated(t *testing.T) {
	for file, args := range map[string][]string{"cli.md": {"reference"}, "configuration.md": {"config", "reference"}} {
		want, err := os.ReadFile(filepath.Join("..", "..", "docs", file))
		if err != nil {
			t.Fatal(err)
		}
		if _, out, _ := chronik(t, args...); out != string(want) {
			t.Errorf("docs/%s is out of date: make docs", file)
		}
	}
}

// TestDevDescribe: ports, and argv that starts a node.
func TestDevDescribe(t *testing.T) {
	dir := t.TempDir()
	f := devFlags{nodes: 3, dataDir: dir, basePort: 9092, threshold: 5}
	dc, err := f.describe()
	if err != nil {
		t.Fatal(err)
	}
	n := dc.Nodes[2]
	if n.Kafka != "127.0.0.1:9094" || n.Raft != "127.0.0.1:9194" || n.Admin != "127.0.0.1:9294" || n.Dir != filepath.Join(dir, "node-3") || n.Argv[1] != "start" {
		t.Errorf("%+v", n)
	}
	if code, out, errs := chronik(t, append([]string{"config", "print"}, n.Argv[2:]...)...); code != 0 || !strings.Contains(out, "threshold_entries = 5 ") {
		t.Errorf("exit code %d, %s%s", code, out, errs)
	}
	b, err := json.Marshal(dc)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{`"nodes":[{"id":1,"pid":`, `"kafka":"127.0.0.1:9092"`, `"raft":`, `"admin":`, `"dir":`, `"argv":[`} {
		if !bytes.Contains(b, []byte(key)) {
			t.Errorf("dev.json lacks %s: %s", key, b)
		}
	}
}

// TestEphemeral: only what a dev cluster made is removed, and nothing that was there before.
func TestEphemeral(t *testing.T) {
	dir := t.TempDir()
	dc := &devCluster{dir: dir}
	precious := filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := dc.makeEphemeral(); err == nil || !strings.Contains(err.Error(), "would remove") {
		t.Fatalf("a directory with data was taken: %v", err)
	}
	if err := os.Remove(precious); err != nil {
		t.Fatal(err)
	}
	if err := dc.makeEphemeral(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "node-1"), 0o700), os.WriteFile(dc.logPath(1), nil, 0o600), dc.save()); err != nil {
		t.Fatal(err)
	}
	if err := dc.makeEphemeral(); err != nil { // as after a SIGKILL
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != ephemeralMark {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// TestRestartsAtOnce: nodes that are restarted at the same time are all in dev.json, so that dev ends them.
func TestRestartsAtOnce(t *testing.T) {
	dir := t.TempDir()
	dc := &devCluster{dir: dir}
	for i := 1; i <= 8; i++ {
		n := devNode{ID: i, Dir: filepath.Join(dir, "node-"+strconv.Itoa(i))}
		n.Argv = []string{"sh", "-c", "sleep 10 & wait", n.Dir}
		dc.Nodes = append(dc.Nodes, n)
	}
	lock, err := lockDev(dir)
	if err := errors.Join(err, dc.save()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	var wg sync.WaitGroup
	for _, n := range dc.Nodes {
		wg.Go(func() {
			var errs bytes.Buffer
			if code := run(t.Context(), []string{"dev", "restart", strconv.Itoa(n.ID), "--data-dir", dir}, strings.NewReader(""), io.Discard, &errs); code != 0 {
				t.Errorf("restart %d: exit code %d, %s", n.ID, code, errs.String())
			}
		})
	}
	wg.Wait()
	got, err := loadDev(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range got.Nodes {
		n := &got.Nodes[i]
		if !n.alive() {
			t.Errorf("node %d: pid %d of dev.json does not run", n.ID, n.PID)
			continue
		}
		_ = syscall.Kill(-n.PID, syscall.SIGKILL) // with the sleep it waits for
	}
}

// TestLastError: what a node ended with is told, and not what one of an earlier run did.
func TestLastError(t *testing.T) {
	dc := &devCluster{dir: t.TempDir()}
	for said, want := range map[string]string{"killed\n": "", "chronik: error: new\nchronik: hint: x\n": ": new"} {
		dc.Nodes = []devNode{{ID: 1, Argv: []string{"printf", "%s", said}}}
		if err := os.WriteFile(dc.logPath(1), []byte("chronik: error: of an earlier run\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := dc.start(0); err != nil {
			t.Fatal(err)
		}
		for range 500 {
			if b, err := os.ReadFile(dc.logPath(1)); err == nil && strings.HasSuffix(string(b), said) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if got := dc.lastError(&dc.Nodes[0]); got != want {
			t.Errorf("after %q: %q, want %q", said, got, want)
		}
	}
}

// TestClearTakesNoPattern: a directory whose name is a pattern does not have the data of others removed.
func TestClearTakesNoPattern(t *testing.T) {
	parent := t.TempDir()
	theirs, ours := filepath.Join(parent, "a", "node-1"), filepath.Join(parent, "[ab]", "node-1")
	if err := errors.Join(os.MkdirAll(theirs, 0o700), os.MkdirAll(ours, 0o700)); err != nil {
		t.Fatal(err)
	}
	(&devCluster{dir: filepath.Dir(ours)}).clear()
	if _, err := os.Stat(theirs); err != nil {
		t.Errorf("the data of others: %v", err)
	}
	if _, err := os.Stat(ours); err == nil {
		t.Error("its own data is left")
	}
}
