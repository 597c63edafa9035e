// Package archive runs real clusters that keep snapshots in an object store.
package archive

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chronik/test/harness"
)

// records are lines from..to.
func records(from, to int) string {
	var sb strings.Builder
	for i := from; i <= to; i++ {
		fmt.Fprintf(&sb, "record %06d %s\n", i, strings.Repeat("x", 200))
	}
	return sb.String()
}

func must(t *testing.T, out string, err error) string {
	t.Helper()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// created is what 'snapshot create --json' prints.
type created struct {
	Snapshots []struct {
		Group    string `json:"group"`
		Node     int    `json:"node"`
		Index    uint64 `json:"index"`
		Leader   bool   `json:"leader"`
		Uploaded uint64 `json:"uploaded"`
	} `json:"snapshots"`
}

// create takes snapshots of a topic and returns the index at which orders-0 is in the object store.
func create(t *testing.T, c *harness.Cluster) uint64 {
	t.Helper()
	out, err := c.CLI("snapshot", "create", "orders", "--upload", "--json")
	var got created
	if err := json.Unmarshal([]byte(must(t, out, err)), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Snapshots) != 3 {
		t.Fatalf("%s", out)
	}
	for _, s := range got.Snapshots {
		if s.Uploaded > 0 {
			if !s.Leader || s.Uploaded < s.Index {
				t.Fatalf("%s", out)
			}
			return s.Uploaded
		}
	}
	t.Fatalf("nothing was uploaded: %s", out)
	return 0
}

// objects lists the object store's files below the groups' kind of directory, oldest first.
func objects(t *testing.T, dir, kind string) map[string]bool {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*", "groups", "*", kind, "*"))
	if err != nil {
		t.Fatal(err)
	}
	set := map[string]bool{}
	for _, n := range names {
		set[n] = true
	}
	return set
}

// TestObjectStore produces, uploads, lists and verifies; then a bit in the store
// flips: verify names the object, and a download falls back and says so.
func TestObjectStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	url := "file://" + dir
	c := harness.Start(t, harness.Options{Threshold: 1000, Set: []string{"object_store.url=" + url}})
	c.CreateTopic("orders", 1)
	out, err := c.CLIInput(records(1, 500), "produce", "orders")
	must(t, out, err)
	first := create(t, c)
	before := objects(t, dir, "objects")
	out, err = c.CLIInput(records(501, 600), "produce", "orders")
	must(t, out, err)
	second := create(t, c)
	if second <= first {
		t.Fatalf("index %d after %d", second, first)
	}

	// Only what is new was sent: about a hundred records.
	group := groupOf(t, c)
	added := addedTo(t, dir, group, before)

	// __meta comes by itself, and every list shows both places.
	c.Eventually(20*time.Second, "__meta and orders-0 are listed", func() error {
		out, err := c.CLI("snapshot", "list", "--from", url)
		if err != nil {
			return err
		}
		if !strings.Contains(out, "orders-0") || !strings.Contains(out, "__meta") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	out, err = c.CLI("snapshot", "list", "orders", "-o", "wide")
	for _, want := range []string{"node 1", "node 2", "node 3", "object store", fmt.Sprint(first), fmt.Sprint(second)} {
		if !strings.Contains(must(t, out, err), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	out, err = c.CLI("snapshot", "show", "orders-0")
	if !strings.Contains(must(t, out, err), "0 to before 600") {
		t.Errorf("show: %s", out)
	}
	out, err = c.CLI("snapshot", "verify", "--all")
	must(t, out, err)
	metrics(t, c)
	for m := range objects(t, dir, "manifests") {
		out, err := c.CLI("debug", "snapshot", m)
		if !strings.Contains(must(t, out, err), "check           ok") {
			t.Errorf("debug: %s", out)
		}
		break
	}

	// A bit flips in what only the second snapshot has.
	flip(t, added)
	_, err = c.CLI("snapshot", "verify", "orders-0")
	if err == nil || !strings.Contains(err.Error(), filepath.Base(added)) || !strings.Contains(err.Error(), "bytes") {
		t.Fatalf("verify: %v", err)
	}
	to := filepath.Join(t.TempDir(), "g1")
	out, err = c.CLI("snapshot", "download", "orders-0", "--from", url, "--to", to)
	if !strings.Contains(must(t, out, err), fmt.Sprintf("index %d", first)) {
		t.Errorf("download: %s", out)
	}
	out, err = c.CLI("debug", "snapshot", filepath.Join(to, "checkpoint"))
	if !strings.Contains(must(t, out, err), fmt.Sprintf("index           %d\n", first)) {
		t.Errorf("downloaded: %s", out)
	}
}

// TestWrongUse: each mistake is an error that says what to do.
func TestWrongUse(t *testing.T) {
	exe := harness.Binary(t)
	store := filepath.Join(t.TempDir(), "store")
	for _, w := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{"list", "--from", "file://" + store}, 1, []string{"there are no snapshots in file://", "hint"}},
		{[]string{"verify", "--from", "gs://x"}, 2, []string{"want file:///directory or s3://bucket/prefix"}},
		{[]string{"verify", "--from", "file://" + store, "--cluster", "c1"}, 1, []string{"nothing to verify", "cluster c1", "hint"}},
		{[]string{"show", "--from", "file://" + store}, 2, []string{"want 'chronik snapshot show GROUP'"}},
		{[]string{"show", "orders-0", "--from", "file://" + store, "--cluster", "c1"}, 1, []string{"no snapshot of a group orders-0", "hint"}},
		{[]string{"show", "7", "--from", "file://" + store, "--cluster", "../x"}, 2, []string{"cluster id"}},
		{[]string{"download", "7", "--from", "file://" + store}, 2, []string{"--to"}},
		{[]string{"download", "7", "--from", "file://" + store, "--cluster", "c1", "--to", store + "/x"}, 1, []string{"group 7", "no snapshot"}},
		{[]string{"verify", "--index", "5", "--from", "file://" + store}, 2, []string{"--index wants a group"}},
		{[]string{"create", "--partition", "1"}, 2, []string{"--partition wants a topic"}},
		{[]string{"lits"}, 2, []string{"did you mean list"}},
	} {
		var errs strings.Builder
		cmd := exec.Command(exe, append([]string{"snapshot"}, w.args...)...)
		cmd.Stderr = &errs
		_ = cmd.Run() // the exit code says it
		for _, want := range w.want {
			if cmd.ProcessState.ExitCode() != w.code || !strings.Contains(errs.String(), want) {
				t.Errorf("snapshot %v: exit code %d, %q; want %d and %q", w.args, cmd.ProcessState.ExitCode(), errs.String(), w.code, want)
			}
		}
	}
	if _, err := os.Stat(store); err == nil {
		t.Error("a question made the directory")
	}
}

// groupOf is the directory of orders-0 in the store.
func groupOf(t *testing.T, c *harness.Cluster) string {
	t.Helper()
	out, err := c.CLI("snapshot", "show", "orders-0", "--json")
	var v struct {
		GroupID uint64 `json:"group_id"`
	}
	if err := json.Unmarshal([]byte(must(t, out, err)), &v); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("/groups/%d/", v.GroupID)
}

func flip(t *testing.T, name string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 4
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// metrics looks for what the leader of orders-0 tells.
func metrics(t *testing.T, c *harness.Cluster) {
	t.Helper()
	id, _, err := c.Leader("orders-0")
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + c.Node(id).Admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), "chronik_archive_uploads_total") || strings.Contains(string(b), "chronik_archive_uploads_total 0\n") {
		t.Errorf("node %d tells of no upload", id)
	}
}

// addedTo returns the one object of a hundred records that a group has more than before.
func addedTo(t *testing.T, dir, group string, before map[string]bool) string {
	t.Helper()
	var added []string
	var sum int64
	for n := range objects(t, dir, "objects") {
		if before[n] || !strings.Contains(n, group) {
			continue
		}
		st, err := os.Stat(n)
		if err != nil {
			t.Fatal(err)
		}
		added = append(added, n)
		sum += st.Size()
	}
	if len(added) != 1 || sum > 60_000 {
		t.Fatalf("%d objects of %d bytes were added", len(added), sum)
	}
	return added[0]
}

// TestNewLeaderSendsOnlyWhatIsNew: what another node sent is used, since replicas' files are equal.
func TestNewLeaderSendsOnlyWhatIsNew(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	c := harness.Start(t, harness.Options{Threshold: 1000, Set: []string{"object_store.url=file://" + dir}})
	c.CreateTopic("orders", 1)
	out, err := c.CLIInput(records(1, 500), "produce", "orders")
	must(t, out, err)
	create(t, c)
	group, before := groupOf(t, c), objects(t, dir, "objects")
	old, _, err := c.Leader("orders-0")
	if err != nil {
		t.Fatal(err)
	}
	c.Kill(old)
	c.Eventually(20*time.Second, "another leads", func() error {
		for _, n := range c.Nodes() {
			if r, err := c.Replica(n.ID, "orders-0"); n.ID != old && err == nil && r.Role == "leader" {
				return nil
			}
		}
		return fmt.Errorf("nobody does")
	})
	c.Restart(old)
	c.Eventually(20*time.Second, "the old leader is back", func() error { return c.Ready(old) })
	out, err = c.CLIInput(records(501, 600), "produce", "orders")
	must(t, out, err)
	create(t, c)
	if id, _, err := c.Leader("orders-0"); err != nil || id == old {
		t.Fatalf("node %d leads, %v", id, err)
	}
	addedTo(t, dir, group, before)
	out, err = c.CLI("snapshot", "verify")
	must(t, out, err)
}

// TestUnusableStore: a cluster whose object store cannot be written serves as if there were none.
func TestUnusableStore(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c := harness.Start(t, harness.Options{Threshold: 100, Set: []string{"object_store.url=file://" + file + "/store"}})
	c.CreateTopic("orders", 1)
	out, err := c.CLIInput(records(1, 300), "produce", "orders", "--batch-records", "1")
	must(t, out, err)
	if _, err := c.CLI("snapshot", "create", "orders", "--upload"); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Fatalf("create: %v", err)
	}
	c.Eventually(20*time.Second, "a node says so", func() error {
		if !strings.Contains(c.Logs(), "Failed to upload snapshot for") {
			return fmt.Errorf("nothing in the logs")
		}
		return nil
	})
	c.Eventually(20*time.Second, "the replicas are equal", func() error { return c.DigestsEqual("orders", 0, 300) })
	for _, n := range c.Nodes() {
		if err := c.Ready(n.ID); err != nil {
			t.Error(err)
		}
	}
}
