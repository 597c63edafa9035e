package cli

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"chronik/test/harness"
)

// scrape returns node id's /metrics.
func scrape(t *testing.T, c *harness.Cluster, id int) string {
	t.Helper()
	resp, err := http.Get("http://" + c.Node(id).Admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v", resp.Status, err)
	}
	return string(b)
}

// value finds the sample of a series, written as in the exposition, on any node.
func value(t *testing.T, c *harness.Cluster, series string) (float64, bool) {
	t.Helper()
	for id := 1; id <= 3; id++ {
		for line := range strings.Lines(scrape(t, c, id)) {
			if text, ok := strings.CutPrefix(line, series+" "); ok {
				v, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
				if err != nil {
					t.Fatal(err)
				}
				return v, true
			}
		}
	}
	return 0, false
}

// name is a package of this project, and what is measured.
var name = regexp.MustCompile(`^chronik_(raftlog|raftgroup|broker|partition|snapshot|wire|group|transport|kafka|archive)_[a-z0-9_]+$`)

// metrics: their names, what lint says, labels without bounds, and that docs/metrics.md lists them. They tell lag.
func metrics(t *testing.T, c *harness.Cluster) {
	must(t, c, "", "topic", "create", "lag", "--partitions", "1")
	must(t, c, "a\nb\nc\nd\ne", "produce", "lag")
	must(t, c, "", "consume", "lag", "--group", "late", "--max", "2")
	c.Eventually(10*time.Second, "the group's lag is told", func() error {
		if v, ok := value(t, c, `chronik_group_consumer_lag_records{group="late",partition="0",topic="lag"}`); !ok || v != 3 {
			return fmt.Errorf("%v, %t; want 3", v, ok)
		}
		return nil
	})
	leader, _, err := c.Leader("lag-0")
	if err != nil {
		t.Fatal(err)
	}
	follower := leader%3 + 1
	lag := fmt.Sprintf(`chronik_raftgroup_replication_lag_entries{node="%d",partition="0",topic="lag"}`, follower)
	c.Eventually(10*time.Second, "a follower that runs has no lag", func() error {
		if v, ok := value(t, c, lag); !ok || v != 0 {
			return fmt.Errorf("%v, %t; want 0", v, ok)
		}
		return nil
	})
	all := ""
	for id := 1; id <= 3; id++ {
		text := scrape(t, c, id)
		lint(t, text)
		all += text // what only a coordinator or a leader has
	}
	document(t, all)
}

func lint(t *testing.T, text string) {
	t.Helper()
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "chronik_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	series := 0
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "chronik_") {
			series++
		}
	}
	if series > 3000 {
		t.Errorf("%d series on one node of a small cluster", series)
	}
}

// document compares docs/metrics.md with what a node tells, or writes it.
func document(t *testing.T, text string) {
	t.Helper()
	kinds, rows := map[string]string{}, []string{}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); strings.HasPrefix(line, "# TYPE chronik_") {
			kinds[f[2]] = f[3]
		}
	}
	label := regexp.MustCompile(`([a-z_]+)="`)
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, "# HELP chronik_")
		if !ok {
			continue
		}
		n, help, _ := strings.Cut("chronik_"+strings.TrimSpace(rest), " ")
		if !name.MatchString(n) {
			t.Errorf("%s is not chronik_<package>_<what>_<unit>", n)
		}
		var labels []string
		if m := regexp.MustCompile(`(?m)^` + n + `(_sum)?\{(.*)\}`).FindStringSubmatch(text); m != nil {
			for _, l := range label.FindAllStringSubmatch(m[2], -1) {
				labels = append(labels, "`"+l[1]+"`")
			}
		}
		rows = append(rows, fmt.Sprintf("| `%s` | %s | %s | %s |", n, kinds[n], strings.Join(labels, " "), help))
	}
	slices.Sort(rows)
	rows = slices.Compact(rows)
	got := `# Metrics

<!-- Generated from a running node by test/cli. Change the metrics there and run make docs. -->

` + "`GET /metrics`" + ` on the admin address, in Prometheus's format, besides those of Go and of the process (` + "`go_*`, `process_*`" + `). Counters
begin with the process.

| metric | kind | labels | meaning |
|---|---|---|---|
` + strings.Join(rows, "\n") + "\n"
	file := filepath.Join("..", "..", "docs", "metrics.md")
	if os.Getenv("CHRONIK_TEST_UPDATE") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || string(want) != got {
		t.Errorf("docs/metrics.md is out of date (make docs): %v\n%s", err, got)
	}
}
