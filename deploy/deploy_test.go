// Package deploy holds what it takes to run Chronik elsewhere: release archives, a unit of
// systemd, a container file, a dashboard. Its tests hold them to the program.
package deploy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metric is what is known of one: its kind and labels.
type metric struct {
	kind   string
	labels []string
}

// known are the metrics of a node: those of docs/metrics.md, which test/cli compares with
// what three running nodes tell, and those of Go and of the process.
func known(t *testing.T) map[string]metric {
	t.Helper()
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]metric{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(chronik_[a-z0-9_]+)` \\| ([a-z]+) \\| ([^|]*) \\|").FindAllStringSubmatch(string(text), -1) {
		var labels []string
		for _, l := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(m[3], -1) {
			labels = append(labels, l[1])
		}
		all[m[1]] = metric{m[2], labels}
	}
	if len(all) < 50 {
		t.Fatalf("only %d metrics in docs/metrics.md", len(all))
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		all[f.GetName()] = metric{kind: strings.ToLower(f.GetType().String())}
	}
	return all
}

var (
	metricName = regexp.MustCompile(`\b(chronik|go|process)_[a-z0-9_]+`)
	byLabels   = regexp.MustCompile(`\bby \(([^)]*)\)`)
	inBraces   = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)`)
)

// wrongWith tells what a panel's expression asks for that no node has.
func wrongWith(expr string, all map[string]metric) []string {
	var wrong []string
	labels := []string{"instance", "job"} // Prometheus's own
	names := metricName.FindAllString(expr, -1)
	if len(names) == 0 {
		return []string{"no metric"}
	}
	for _, name := range names {
		m, ok := all[name]
		if base, suffix := cutSuffix(name); !ok && suffix != "" {
			if m, ok = all[base]; ok && m.kind != "histogram" {
				ok = false
			}
			labels = append(labels, "le")
		}
		if !ok {
			wrong = append(wrong, "no metric "+name)
		}
		if m.kind == "counter" && !strings.Contains(expr, "rate(") && !strings.Contains(expr, "increase(") {
			wrong = append(wrong, "counter "+name+" without rate")
		}
		labels = append(labels, m.labels...)
	}
	var used []string
	for _, m := range byLabels.FindAllStringSubmatch(expr, -1) {
		used = append(used, strings.Split(m[1], ",")...)
	}
	for _, m := range inBraces.FindAllStringSubmatch(expr, -1) {
		used = append(used, m[1])
	}
	for _, l := range used {
		if l = strings.TrimSpace(l); !slices.Contains(labels, l) {
			wrong = append(wrong, "no label "+l)
		}
	}
	return wrong
}

func cutSuffix(name string) (base, suffix string) {
	for _, s := range []string{"_bucket", "_sum", "_count"} {
		if b, ok := strings.CutSuffix(name, s); ok {
			return b, s
		}
	}
	return name, ""
}

// TestDashboard: each panel asks for metrics and labels that a node has.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			ID      int    `json:"id"`
			Title   string `json:"title"`
			Type    string `json:"type"`
			GridPos struct{ X, Y, W, H int }
			Targets []struct {
				Expr         string `json:"expr"`
				LegendFormat string `json:"legendFormat"`
			} `json:"targets"`
		} `json:"panels"`
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	all := known(t)
	exprs, ids, taken := 0, map[int]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("%s: id %d is another's", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s lies on %q", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if len(p.Targets) == 0 && p.Type != "row" {
			t.Errorf("%s shows nothing", p.Title)
		}
		for _, tg := range p.Targets {
			exprs++
			for _, w := range wrongWith(tg.Expr, all) {
				t.Errorf("%s: %s: %s", p.Title, tg.Expr, w)
			}
		}
	}
	if exprs < 20 {
		t.Errorf("only %d expressions", exprs)
	}
}

// TestWrongExpressions: what TestDashboard finds.
func TestWrongExpressions(t *testing.T) {
	all := known(t)
	for expr, want := range map[string]string{
		`chronik_wire_connections{job="x"}`:                                                          "",
		`chronik_wire_connection`:                                                                    "no metric chronik_wire_connection",
		`rate(chronik_wire_connections_bucket[1m])`:                                                  "no metric chronik_wire_connections_bucket",
		`rate(chronik_raftlog_fsync_seconds_count[1m])`:                                              "",
		`chronik_raftlog_fsyncs_total`:                                                               "counter chronik_raftlog_fsyncs_total without rate",
		`sum by (topic) (chronik_wire_connections)`:                                                  "no label topic",
		`chronik_raftgroup_replicas{rolle="leader"}`:                                                 "no label rolle",
		`histogram_quantile(0.9, sum by (le, api) (rate(chronik_kafka_request_seconds_bucket[1m])))`: "",
		`process_resident_memory_bytes / go_goroutines`:                                              "",
		`1`: "no metric",
	} {
		if got := strings.Join(wrongWith(expr, all), "; "); got != want {
			t.Errorf("%s: %q, want %q", expr, got, want)
		}
	}
}

// TestUnit: the unit starts the program with flags that it has, does not try again what
// stays wrong, and stands up to systemd's own check where there is one.
func TestUnit(t *testing.T) {
	text, err := os.ReadFile("chronik.service")
	if err != nil {
		t.Fatal(err)
	}
	unit := string(text)
	exe := filepath.Join(t.TempDir(), "chronik")
	if out, err := exec.Command("go", "build", "-o", exe, "../cmd/chronik").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	start := regexp.MustCompile(`(?m)^ExecStart=/usr/local/bin/chronik (.*)$`).FindStringSubmatch(unit)
	if start == nil {
		t.Fatal("no ExecStart")
	}
	args := strings.Fields(strings.NewReplacer("/etc/chronik/chronik.toml", "bad.toml", "/var/lib/chronik", t.TempDir()).Replace(start[1]))
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "bad.toml"), []byte("[kafka]\nlissten = \"x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ends := func(args ...string) (string, int) {
		cmd := exec.Command(exe, args...)
		cmd.Dir = dir
		out, _ := cmd.CombinedOutput() // the exit code says it
		return string(out), cmd.ProcessState.ExitCode()
	}
	// With a setting that does not exist the node ends before it touches anything.
	if out, code := ends(args...); code != 1 || !strings.Contains(out, "lissten") {
		t.Errorf("the unit's flags: exit code %d, %s", code, out)
	}
	_, code := ends(append(args, "--no-such-flag")...)
	if !regexp.MustCompile(`(?m)^RestartPreventExitStatus=` + strconv.Itoa(code) + `$`).MatchString(unit) {
		t.Errorf("a wrong command line ends with %d: the unit starts it again", code)
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("no systemd-analyze here: the unit's syntax is not checked")
		return
	}
	file := filepath.Join(t.TempDir(), "chronik.service")
	if err := os.WriteFile(file, bytes.ReplaceAll(text, []byte("/usr/local/bin/chronik"), []byte(exe)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", file).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v: %s", err, out)
	}
}

// TestContainerfile: nobody's rights, and settings that exist.
func TestContainerfile(t *testing.T) {
	text, err := os.ReadFile("Containerfile")
	if err != nil {
		t.Fatal(err)
	}
	reference, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"FROM scratch", "\nUSER 65532:65532\n", "CGO_ENABLED=0", "ENTRYPOINT [\"/chronik\"]"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q", want)
		}
	}
	settings := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\|").FindAllStringSubmatch(string(reference), -1) {
		settings["CHRONIK_"+strings.ToUpper(strings.ReplaceAll(m[1], ".", "_"))] = true
	}
	names := regexp.MustCompile(`CHRONIK_[A-Z_]+`).FindAllString(string(text), -1)
	for _, name := range names {
		if !settings[name] {
			t.Errorf("no setting %s", name)
		}
	}
	if len(names) < 4 {
		t.Errorf("only %v", names)
	}
}

// TestRelease builds an archive twice: the bytes are the same. What is in it is a static binary of the source's version.
func TestRelease(t *testing.T) {
	if os.Getenv("CHRONIK_TEST_LONG") == "" {
		t.Skip("compiles everything anew, for minutes: make long")
	}
	var sums [2]string
	dist := filepath.Join(t.TempDir(), "dist")
	for i := range sums {
		cmd := exec.Command("./release.sh")
		cmd.Env = append(os.Environ(), "DIST="+dist, "ARCHS=amd64", "GOFLAGS=-buildvcs=true")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		b, err := os.ReadFile(filepath.Join(dist, "SHA256SUMS"))
		if err != nil {
			t.Fatal(err)
		}
		sums[i] = string(b)
	}
	if sums[0] != sums[1] || !strings.Contains(sums[0], "-linux-amd64.tar.gz") {
		t.Errorf("two builds differ:\n%s%s", sums[0], sums[1])
	}
	archive := filepath.Join(dist, strings.Fields(sums[0])[1])
	files := unpack(t, archive)
	for _, want := range []string{"chronik", "LICENSE", "README.md", "CHANGELOG.md", "deploy/chronik.service", "deploy/grafana.json"} {
		if files[want] == nil {
			t.Errorf("no %s in the archive", want)
		}
	}
	bin, err := elf.NewFile(bytes.NewReader(files["chronik"]))
	if err != nil {
		t.Fatal(err)
	}
	if libs, err := bin.ImportedLibraries(); err != nil || len(libs) > 0 {
		t.Errorf("not static: %v, %v", libs, err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(files["chronik"], []byte(filepath.Dir(here))) {
		t.Error("the binary names the directory it was built in")
	}
	source, err := os.ReadFile("../cmd/chronik/version.go")
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`const version = "(.*)"`).FindSubmatch(source)[1]
	if name := filepath.Base(archive); name != "chronik-"+string(version)+"-linux-amd64.tar.gz" {
		t.Errorf("archive %s of version %s", name, version)
	}
}

// unpack returns the files of an archive, without the directory they all lie in.
func unpack(t *testing.T, archive string) map[string][]byte {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	gz, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	tr := tar.NewReader(gz)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" {
			t.Errorf("%s belongs to %d %d %q", h.Name, h.Uid, h.Gid, h.Uname)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(h.Name, "/")
		if h.Typeflag == tar.TypeReg {
			files[name] = b
		}
	}
}
