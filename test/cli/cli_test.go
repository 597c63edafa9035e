package cli

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"chronik/test/harness"
)

// result is how a command ended.
type result struct {
	code      int
	out, errs string
}

// do runs chronik with stdin in until it ends, at most 30 seconds.
func do(t *testing.T, c *harness.Cluster, in io.Reader, args ...string) result {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), c.Exe, args...)
	cmd.Env = append(os.Environ(), "CHRONIK_BOOTSTRAP="+strings.Join(c.Bootstrap(), ","))
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
	_ = cmd.Wait() // the exit code says it
	if !late.Stop() {
		t.Fatalf("chronik %v hangs: %s", args, errs.String())
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// must is do for what must succeed. It returns stdout.
func must(t *testing.T, c *harness.Cluster, in string, args ...string) string {
	t.Helper()
	r := do(t, c, strings.NewReader(in), args...)
	if r.code != 0 {
		t.Fatalf("chronik %v: exit code %d: %s", args, r.code, r.errs)
	}
	return r.out
}

// fails is do for what must fail with exit code 1, an error that contains want, and a hint.
func fails(t *testing.T, c *harness.Cluster, want string, args ...string) {
	t.Helper()
	r := do(t, c, strings.NewReader("x\n"), args...)
	if r.code != 1 || !strings.Contains(r.errs, "chronik: error: ") || !strings.Contains(r.errs, want) || !strings.Contains(r.errs, "chronik: hint: ") {
		t.Errorf("chronik %v: exit code %d, %q; want 1 and %q", args, r.code, r.errs, want)
	}
}

func equal(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %.300q, want %.300q", what, got, want)
	}
}

// TestCommands runs all that needs a cluster of three against one.
func TestCommands(t *testing.T) {
	c := harness.Start(t, harness.Options{Threshold: 100, Set: []string{"object_store.url=file://" + filepath.Join(t.TempDir(), "store")}})
	for _, s := range []struct {
		name string
		f    func(*testing.T, *harness.Cluster)
	}{
		{"Topics", topics},
		{"RoundTrip", roundTrip},
		{"BenchLimit", benchLimit},
		{"LongLines", longLines},
		{"Keys", keys},
		{"Ends", ends},
		{"Groups", groups},
		{"Interrupt", interrupt},
		{"Pipe", pipe},
		{"Listings", listings},
		{"Metrics", metrics},
		{"Damage", damage},
		{"NodeDies", nodeDies},
	} {
		t.Run(s.name, func(t *testing.T) { s.f(t, c) })
	}
}

func topics(t *testing.T, c *harness.Cluster) {
	equal(t, "create", must(t, c, "", "topic", "create", "one", "--partitions", "2", "--config", "retention.ms=100000"), "created one: 2 partitions, replication factor 3\n")
	equal(t, "create again", must(t, c, "", "topic", "create", "one", "--if-not-exists"), "one exists\n")
	fails(t, c, "TOPIC_ALREADY_EXISTS", "topic", "create", "one")
	fails(t, c, "INVALID_CONFIG", "topic", "create", "two", "--config", "nonsense=1")
	fails(t, c, "INVALID_REPLICATION_FACTOR", "topic", "create", "two", "--replication-factor", "4")
	fails(t, c, "INVALID_TOPIC", "topic", "create", "t/o")
	must(t, c, "", "topic", "alter", "one", "--partitions", "3", "--config", "max.message.bytes=2000000", "--delete-config", "retention.ms")
	var d struct {
		Partitions []struct{ Partition int }
		Configs    map[string]string
	}
	if err := json.Unmarshal([]byte(must(t, c, "", "topic", "describe", "one", "--json")), &d); err != nil {
		t.Fatal(err)
	}
	if len(d.Partitions) != 3 || len(d.Configs) != 1 || d.Configs["max.message.bytes"] != "2000000" {
		t.Errorf("%+v", d)
	}
	equal(t, "delete", must(t, c, "", "topic", "delete", "one"), "deleted one\n")
	fails(t, c, "UNKNOWN_TOPIC_OR_PARTITION", "topic", "delete", "one")
	fails(t, c, "UNKNOWN_TOPIC_OR_PARTITION", "topic", "describe", "one")
	fails(t, c, "UNKNOWN_TOPIC_OR_PARTITION", "consume", "one")
	fails(t, c, "no topic one", "verify", "one")
}

// roundTrip: what goes in comes out, byte for byte, with every acks and codec.
func roundTrip(t *testing.T, c *harness.Cluster) {
	must(t, c, "", "topic", "create", "trip", "--partitions", "1")
	want := ""
	rng := rand.New(rand.NewPCG(1, 2))
	for _, acks := range []string{"all", "1", "0"} {
		for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
			var in strings.Builder
			fmt.Fprintf(&in, "%s %s\n\n\x00\xff\t\r\n", acks, codec)
			for range 50 {
				fmt.Fprintf(&in, "%x\n", rng.Uint64())
			}
			in.WriteString("no newline")
			r := do(t, c, strings.NewReader(in.String()), "produce", "trip", "--acks", acks, "--compression", codec)
			if r.code != 0 || !strings.HasPrefix(r.errs, "records=54 bytes=") {
				t.Fatalf("acks %s, %s: exit code %d, %s", acks, codec, r.code, r.errs)
			}
			want += in.String() + "\n"
			if acks == "0" { // nobody says when it is there
				c.Eventually(10*time.Second, "records without acknowledgement arrive", func() error {
					if got := must(t, c, "", "consume", "trip", "--from-beginning", "--exit-at-end"); got != want {
						return fmt.Errorf("%d bytes of %d", len(got), len(want))
					}
					return nil
				})
			}
		}
	}
	equal(t, "consume", must(t, c, "", "consume", "trip", "--from-beginning", "--exit-at-end", "--isolation", "read_committed"), want)
	file := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(file, []byte("from a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	equal(t, "produce --quiet", do(t, c, nil, "produce", "trip", "--file", file, "--batch-records", "1", "--quiet").errs, "")
	equal(t, "the last", must(t, c, "", "consume", "trip", "--partition", "0", "--offset", "810", "--exit-at-end", "--format", "%p %o %v"), "0 810 from a file\n")
	equal(t, "a new topic", do(t, c, strings.NewReader(""), "produce", "by-produce").errs[:9], "records=0")
}

// longLines: a topic takes lines as long as its setting says, and refuses longer ones by name.
func longLines(t *testing.T, c *harness.Cluster) {
	must(t, c, "", "topic", "create", "long", "--partitions", "1")
	line := strings.Repeat("0123456789abc", 100_000)
	r := do(t, c, strings.NewReader("short\n"+line), "produce", "long")
	if r.code != 1 || !strings.Contains(r.errs, "line 2 is longer than the 1048588 bytes") || !strings.Contains(r.errs, "max.message.bytes") || !strings.HasPrefix(r.errs, "records=1 ") {
		t.Errorf("exit code %d, %.300s", r.code, r.errs)
	}
	must(t, c, "", "topic", "alter", "long", "--config", "max.message.bytes=2000000")
	must(t, c, line+"\n"+line, "produce", "long")
	must(t, c, line, "produce", "long", "--compression", "lz4")
	equal(t, "long lines", must(t, c, "", "consume", "long", "--from-beginning", "--exit-at-end"), "short\n"+strings.Repeat(line+"\n", 3))
}

func keys(t *testing.T, c *harness.Cluster) {
	must(t, c, "", "topic", "create", "keys", "--partitions", "1")
	must(t, c, "k:v\nk:\n:v\nnone\na:b:c", "produce", "keys", "--key-separator", ":")
	equal(t, "keys", must(t, c, "", "consume", "keys", "--from-beginning", "--exit-at-end", "--format", "%o<%k>%v"), "0<k>v\n1<k>\n2<>v\n3<>none\n4<a>b:c\n")
}

// ends: --exit-at-end ends, whatever there is to read.
func ends(t *testing.T, c *harness.Cluster) {
	must(t, c, "", "topic", "create", "empty", "--partitions", "3")
	for _, more := range [][]string{{}, {"--from-beginning"}, {"--group", "of-nothing"}, {"--partition", "2"}, {"--partition", "0", "--offset", "0"}} {
		equal(t, fmt.Sprint(more), must(t, c, "", append([]string{"consume", "empty", "--exit-at-end"}, more...)...), "")
	}
	fails(t, c, "is beyond the end of empty-0, which is 0", "consume", "empty", "--partition", "0", "--offset", "1")
	if r := do(t, c, nil, "consume", "empty", "--partition", "3"); r.code != 1 || !strings.Contains(r.errs, "no partition 3") {
		t.Errorf("exit code %d, %s", r.code, r.errs)
	}
	equal(t, "from now on", must(t, c, "", "consume", "trip", "--exit-at-end"), "")
	equal(t, "--max", must(t, c, "", "consume", "keys", "--from-beginning", "--max", "2"), "v\n\n")
	// Retention takes what is before a segment that is full.
	must(t, c, "", "topic", "create", "cut", "--partitions", "1", "--config", "segment.bytes=1048576", "--config", "retention.bytes=1048576")
	must(t, c, strings.Repeat(strings.Repeat("x", 1023)+"\n", 4096), "produce", "cut")
	must(t, c, "last", "produce", "cut")
	got := must(t, c, "", "consume", "cut", "--from-beginning", "--exit-at-end")
	if !strings.HasSuffix(got, "\nlast\n") {
		t.Errorf("%d bytes that end with %q", len(got), got[max(0, len(got)-20):])
	}
	if got := must(t, c, "", "consume", "cut", "--partition", "0", "--offset", "0", "--exit-at-end"); !strings.HasSuffix(got, "\nlast\n") {
		t.Errorf("%d bytes that end with %q", len(got), got[max(0, len(got)-20):])
	}
}

func groups(t *testing.T, c *harness.Cluster) {
	must(t, c, "", "topic", "create", "work", "--partitions", "1")
	must(t, c, "a\nb\nc\nd", "produce", "work")
	equal(t, "first two", must(t, c, "", "consume", "work", "--group", "g", "--max", "2"), "a\nb\n")
	equal(t, "the rest", must(t, c, "", "consume", "work", "--group", "g", "--exit-at-end"), "c\nd\n")
	equal(t, "nothing", must(t, c, "", "consume", "work", "--group", "g", "--exit-at-end"), "")
	must(t, c, "", "group", "reset", "g", "--topic", "work")
	equal(t, "again", must(t, c, "", "consume", "work", "--group", "g", "--max", "3"), "a\nb\nc\n")
	var d struct {
		State      string
		Partitions []struct{ Committed, Lag int64 }
	}
	if err := json.Unmarshal([]byte(must(t, c, "", "group", "describe", "g", "-o", "json")), &d); err != nil {
		t.Fatal(err)
	}
	if d.State != "Empty" || len(d.Partitions) != 1 || d.Partitions[0].Committed != 3 || d.Partitions[0].Lag != 1 {
		t.Errorf("%+v", d)
	}
	must(t, c, "", "group", "reset", "g", "--topic", "work", "--to", "latest")
	equal(t, "after the latest", must(t, c, "", "consume", "work", "--group", "g", "--exit-at-end"), "")
	fails(t, c, "UNKNOWN_TOPIC_OR_PARTITION", "group", "reset", "g", "--topic", "absent")
	// Neither while a member is there.
	member := exec.Command(c.Exe, "consume", "work", "--group", "g", "--bootstrap", strings.Join(c.Bootstrap(), ","))
	if err := member.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = member.Process.Kill() }()
	c.Eventually(20*time.Second, "the member is there", func() error {
		if s := must(t, c, "", "group", "describe", "g"); !strings.Contains(s, "group g: Stable, 1 members") {
			return fmt.Errorf("%s", s)
		}
		return nil
	})
	fails(t, c, "group g", "group", "reset", "g", "--topic", "work")
	fails(t, c, "NON_EMPTY_GROUP", "group", "delete", "g")
	if err := member.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := member.Wait(); err != nil {
		t.Errorf("Ctrl-C of consume: %v", err)
	}
	equal(t, "delete", must(t, c, "", "group", "delete", "g"), "deleted g\n")
	fails(t, c, "GROUP_ID_NOT_FOUND", "group", "delete", "g")
	fails(t, c, "GROUP_ID_NOT_FOUND", "group", "describe", "g")
}

// interrupt: Ctrl-C ends a produce whose input is silent, after what it read is acknowledged.
func interrupt(t *testing.T, c *harness.Cluster) {
	must(t, c, "", "topic", "create", "silent", "--partitions", "1")
	r, w := io.Pipe()
	defer func() { _ = w.Close() }()
	cmd := exec.Command(c.Exe, "produce", "silent", "--bootstrap", strings.Join(c.Bootstrap(), ","))
	var errs bytes.Buffer
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(in, r) }()
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "said\n"); err != nil {
		t.Fatal(err)
	}
	c.Eventually(20*time.Second, "the line arrives", func() error {
		if got := must(t, c, "", "consume", "silent", "--from-beginning", "--exit-at-end"); got != "said\n" {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v", err)
	}
	if s := errs.String(); !strings.HasPrefix(s, "records=1 bytes=4 ") || !strings.HasSuffix(s, "\nchronik: error: interrupted\n") {
		t.Errorf("%q", s)
	}
}

// pipe: consume ends when its reader has gone, even while nothing comes, and commits no more than it wrote.
func pipe(t *testing.T, c *harness.Cluster) {
	cmd := exec.Command("sh", "-c", `"$0" consume work --group piped --bootstrap "$1" | head -n 2`, c.Exe, strings.Join(c.Bootstrap(), ","))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	done := make(chan struct{})
	var out []byte
	var err error
	go func() { out, err = cmd.Output(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("consume | head hangs")
	}
	if err != nil || string(out) != "a\nb\n" || errs.Len() > 0 {
		t.Errorf("%q, %q, %v", out, errs.String(), err)
	}
	c.Eventually(10*time.Second, "the member has left", func() error {
		if s := must(t, c, "", "group", "describe", "piped"); !strings.Contains(s, "group piped: Empty") {
			return fmt.Errorf("%s", s)
		}
		return nil
	})
}

// listings: every one has JSON and more columns, and a full disk is an error of each.
func listings(t *testing.T, c *harness.Cluster) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("no /dev/full here")
	}
	defer func() { _ = full.Close() }()
	for _, line := range []string{
		"topic list", "topic describe trip", "group list", "group describe piped", "status", "verify trip", "dev ps --data-dir " + c.Dir, "config print",
	} {
		args := strings.Fields(line)
		if out := must(t, c, "", append(args, "--json")...); !json.Valid([]byte(out)) || strings.Contains(out, "null,") && !strings.Contains(out, `"transfer": null`) {
			t.Errorf("chronik %s --json: %.200s", line, out)
		}
		if out, wide := must(t, c, "", args...), must(t, c, "", append(args, "-o", "wide")...); len(wide) <= len(out) && line != "config print" {
			t.Errorf("chronik %s -o wide shows no more:\n%s%s", line, out, wide)
		}
		cmd := exec.Command(c.Exe, args...)
		cmd.Env = append(os.Environ(), "CHRONIK_BOOTSTRAP="+c.Bootstrap()[0])
		var errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = full, &errs
		if err := cmd.Run(); cmd.ProcessState.ExitCode() != 1 || !strings.Contains(errs.String(), "no space left on device") {
			t.Errorf("chronik %s on a full disk: %v, %s", line, err, errs.String())
		}
	}
}

// flipOne damages the last occurrence of a text in a node's segments, and returns the file's name.
func flipOne(dir, text string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "replicas", "*", "g*", "*.seg"))
	if err != nil {
		return "", err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return "", err
		}
		if at := bytes.LastIndex(b, []byte(text)); at >= 0 {
			b[at] ^= 1
			return f, os.WriteFile(f, b, 0o600)
		}
	}
	return "", fmt.Errorf("none of %v has it", files)
}

// damage: a byte that changes in a replica's file is found by verify, which names
// the file, and the replica is replaced by a good one.
func damage(t *testing.T, c *harness.Cluster) {
	must(t, c, "", "topic", "create", "hurt", "--partitions", "1")
	must(t, c, strings.Repeat("precious\n", 1000), "produce", "hurt")
	must(t, c, "", "verify", "hurt")
	var hurt string
	c.Eventually(5*time.Second, "a file of node 3 has the records", func() (err error) {
		hurt, err = flipOne(c.Node(3).Dir, "precious")
		return err
	})
	fails(t, c, "hurt-0: node 3: 500", "verify", "hurt")
	c.Eventually(20*time.Second, "the replica is replaced", func() error {
		if r := do(t, c, nil, "verify", "hurt"); r.code != 0 || strings.Contains(r.out, "false") {
			return fmt.Errorf("%s%s", r.out, r.errs)
		}
		return nil
	})
	if !strings.Contains(c.NodeLog(3), hurt+": byte ") {
		t.Errorf("the log of node 3 does not name %s", hurt)
	}
	if _, err := os.Stat(hurt); err == nil {
		c.Eventually(10*time.Second, "the damaged file is gone", func() error {
			if _, err := os.Stat(hurt); err == nil {
				return fmt.Errorf("%s is still there", hurt)
			}
			return nil
		})
	}
}

// nodeDies: produce and consume go on over a kill -9, and say what is missing when too much is.
func nodeDies(t *testing.T, c *harness.Cluster) {
	must(t, c, "", "topic", "create", "over", "--partitions", "1")
	leader, _, err := c.Leader("over-0")
	if err != nil {
		t.Fatal(err)
	}
	in, w := io.Pipe()
	ended := make(chan result, 1)
	go func() { ended <- do(t, c, in, "produce", "over", "--linger", "1ms") }()
	sum := sha256.New()
	for i := range 20_000 {
		if i == 5_000 {
			c.Kill(leader)
		}
		line := fmt.Sprintf("line %d\n", i)
		sum.Write([]byte(line))
		if _, err := io.WriteString(w, line); err != nil {
			t.Fatal(err)
		}
	}
	_ = w.Close()
	if r := <-ended; r.code != 0 || !strings.Contains(r.errs, "records=20000 ") {
		t.Errorf("exit code %d, %s", r.code, r.errs)
	}
	got := sha256.Sum256([]byte(must(t, c, "", "consume", "over", "--from-beginning", "--exit-at-end")))
	if !bytes.Equal(got[:], sum.Sum(nil)) {
		t.Error("what came out is not what went in")
	}
	fails(t, c, fmt.Sprintf("node %d", leader), "verify", "over")
	if s := must(t, c, "", "status"); !strings.Contains(s, "unreachable") {
		t.Errorf("status does not name the dead node:\n%s", s)
	}
	must(t, c, "", "dev", "restart", fmt.Sprint(leader), "--data-dir", c.Dir)
	c.Eventually(20*time.Second, "replicas are equal", func() error {
		if r := do(t, c, nil, "verify", "over"); r.code != 0 {
			return fmt.Errorf("%s", r.errs)
		}
		return nil
	})
}
