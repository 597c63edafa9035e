package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestPatchesApply holds that each mutation still finds what it breaks: code that has
// changed leaves no mutation behind in silence.
func TestPatchesApply(t *testing.T) {
	ms, err := readMutations(".", nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(ms) < 20 {
		t.Errorf("%d mutations, there should be 20 at least", len(ms))
	}
	for i := range ms {
		for k := range ms[i].files {
			d := &ms[i].files[k]
			src, err := os.ReadFile(filepath.Join("../..", filepath.FromSlash(d.path)))
			if err == nil {
				_, err = d.apply(src)
			}
			if err != nil {
				t.Errorf("%s-%s: %v", ms[i].nr, ms[i].name, err)
			}
		}
		for _, pkg := range ms[i].packages() {
			if _, err := os.Stat(filepath.Join("../..", pkg)); err != nil {
				t.Errorf("%s-%s: %v", ms[i].nr, ms[i].name, err)
			}
		}
	}
}

// TestPatchesCompile builds the tree with all mutations at once, or as many as do not touch the same lines.
func TestPatchesCompile(t *testing.T) {
	ms, err := readMutations(".", nil)
	if err != nil {
		t.Fatal(err)
	}
	for left := ms; len(left) > 0; {
		dir, replace := t.TempDir(), map[string]string{}
		var names []string
		var later []mutation
		for i := range left {
			if together(t, dir, replace, &left[i]) {
				names = append(names, left[i].nr)
			} else {
				later = append(later, left[i])
			}
		}
		if len(names) == 0 {
			t.Fatalf("mutation %s does not apply", left[0].nr)
		}
		overlay, err := json.Marshal(map[string]any{"Replace": replace})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "./internal/...")
		cmd.Dir = "../.."
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("mutations %s: %v\n%s", strings.Join(names, " "), err, out)
		}
		left = later
	}
}

// together adds a mutation to those that an overlay holds already, unless they exclude each other.
func together(t *testing.T, dir string, replace map[string]string, m *mutation) bool {
	t.Helper()
	out := map[string][]byte{}
	for i := range m.files {
		d := &m.files[i]
		name, err := filepath.Abs(filepath.Join("../..", filepath.FromSlash(d.path)))
		if err != nil {
			t.Fatal(err)
		}
		from := name
		if r, ok := replace[name]; ok {
			from = r
		}
		src, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if out[name], err = d.apply(src); err != nil {
			return false
		}
	}
	for name, b := range out {
		replace[name] = filepath.Join(dir, strings.ReplaceAll(name, string(filepath.Separator), "_"))
		if err := os.WriteFile(replace[name], b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return true
}

// TestVerdictsAreCurrent holds that every patch as it is was caught, and that the document shows the verdicts kept.
func TestVerdictsAreCurrent(t *testing.T) {
	ms, err := readMutations(".", nil)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := readResults("results.tsv")
	if err != nil {
		t.Fatal(err)
	}
	now := current(ms, slices.Clone(rs))
	if n := len(rs) - len(now); n > 0 {
		t.Errorf("results.tsv has %d verdicts on patches that have changed or are gone", n)
	}
	for _, m := range uncaught(ms, now) {
		t.Errorf("%s: no layer caught the patch as it is now: run 'make mutation ONLY=%.2s'", m, m)
	}
	doc, err := os.ReadFile("../../docs/testing.md")
	if err != nil {
		t.Fatal(err)
	}
	if want, err := putTable(doc, table(ms, rs)); err != nil || !bytes.Equal(doc, want) {
		t.Errorf("docs/testing.md does not show what results.tsv holds: run 'go run ./test/mutation -layers \"\"' (%v)", err)
	}
}

// patchOf is a patch file that turns before into after in a.go.
func patchOf(before, after string) string {
	return fmt.Sprintf("What: w\nBreaks: b\nTests: x\n\ndiff --git a/a.go b/a.go\n--- a/a.go\n+++ b/a.go\n@@ -3,1 +3,1 @@ func f() {\n-%s\n+%s\n", before, after)
}

func mustParse(t *testing.T, file, text string) mutation {
	t.Helper()
	m, err := parseMutation(file, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestApply(t *testing.T) {
	m := mustParse(t, "07-name.patch", patchOf("two", "2"))
	if m.nr != "07" || m.name != "name" || m.what != "w" || m.breaks != "b" || !slices.Equal(m.packages(), []string{"./.", "./internal/x"}) {
		t.Errorf("parsed %+v, packages %v", m, m.packages())
	}
	for _, tt := range []struct{ name, src, want string }{
		{"in place", "0\n1\ntwo\n3\n", "0\n1\n2\n3\n"},
		{"moved", "two\n3\n", "2\n3\n"},
		{"in place, and elsewhere too", "two\n1\ntwo\n", "two\n1\n2\n"},
		{"gone", "0\n1\n2\n", ""},
		{"moved, to one of two places", "two\ntwo\n3\n4\n", ""},
	} {
		got, err := m.files[0].apply([]byte(tt.src))
		if tt.want == "" && !errors.Is(err, errPatch) || tt.want != "" && (err != nil || string(got) != tt.want) {
			t.Errorf("%s: %q, %v", tt.name, got, err)
		}
	}
	two := mustParse(t, "08-n.patch", patchOf("a", "a\n+b\n+c")+"@@ -9,3 +11,2 @@\n x\n-y\n z\n")
	got, err := two.files[0].apply([]byte("0\n1\na\n3\n4\n5\n6\n7\nx\ny\nz\nx\ny\nz"))
	if want := "0\n1\na\nb\nc\n3\n4\n5\n6\n7\nx\nz\nx\ny\nz"; err != nil || string(got) != want {
		t.Errorf("two hunks: %q, %v", got, err)
	}
}

func TestBadPatches(t *testing.T) {
	good := patchOf("a", "b")
	for name, tt := range map[string]struct{ file, text string }{
		"no number":    {"name.patch", good},
		"no diff":      {"01-n.patch", "What: w\nBreaks: b\n"},
		"no What":      {"01-n.patch", strings.Replace(good, "What", "Why", 1)},
		"no change":    {"01-n.patch", patchOf("a", "a")},
		"no hunk":      {"01-n.patch", good[:strings.Index(good, "@@")]},
		"outside":      {"01-n.patch", strings.ReplaceAll(good, "b/a.go", "b/../../a.go")},
		"half a head":  {"01-n.patch", strings.Replace(good, "+++ b/a.go\n", "", 1)},
		"no line":      {"01-n.patch", strings.Replace(good, "@@ -3", "@@ -x", 1)},
		"words inside": {"01-n.patch", strings.Replace(good, "+b", "garbage", 1)},
	} {
		if m, err := parseMutation(tt.file, []byte(tt.text)); !errors.Is(err, errPatch) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
}

// fakeLayer says what each of its runs finds, one after the other.
type fakeLayer struct {
	runs []outcome
	saw  []string // a.go as each run found it
}

func (*fakeLayer) name() string { return "packages" }

func (l *fakeLayer) run(_ context.Context, dir string, _ *mutation, _ []string) outcome {
	b, err := os.ReadFile(filepath.Join(dir, "a.go"))
	if err != nil {
		return outcome{state: unbuilt, output: err.Error()}
	}
	l.saw = append(l.saw, string(b))
	o := l.runs[0]
	l.runs = l.runs[1:]
	return o
}

// TestVerdicts holds when a mutation counts as caught: twice failed, and not by a
// patch that tests nothing.
func TestVerdicts(t *testing.T) {
	bad := outcome{state: red, failed: []string{"./a: TestA"}, seeds: 3}
	for _, tt := range []struct {
		name string
		runs []outcome
		want verdict
		ok   bool
	}{
		{"twice red", []outcome{bad, bad}, caught, true},
		{"twice hung", []outcome{{state: hung}, {state: hung}}, caughtH, true},
		{"green: a patch that does nothing", []outcome{{state: green}}, survived, false},
		{"red once", []outcome{bad, {state: green}}, unsteady, false},
		{"red, then cut", []outcome{bad, {state: cut}}, unsteady, false},
		{"does not compile", []outcome{{state: unbuilt}}, invalid, false},
		{"cut", []outcome{{state: cut}}, invalid, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &fakeLayer{runs: tt.runs}
			var kept []result
			tr := &tester{
				dir: t.TempDir(), layers: []layer{l}, commit: "c", say: t.Logf,
				keep: func(r result) error { kept = append(kept, r); return nil },
			}
			name := filepath.Join(tr.dir, "a.go")
			if err := os.WriteFile(name, []byte("0\n1\ntwo\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			m := mustParse(t, "01-n.patch", patchOf("two", "2"))
			rs, err := tr.try(t.Context(), &m)
			if err != nil || len(rs) != 1 || rs[0].verdict != tt.want || !slices.Equal(rs, kept) {
				t.Fatalf("%+v, %v; want %s", rs, err, tt.want)
			}
			if err := judge([]mutation{m}, rs, nil); (err == nil) != tt.ok {
				t.Errorf("the run ends with %v", err)
			}
			if len(l.runs) != 0 || slices.Contains(l.saw, "0\n1\ntwo\n") {
				t.Errorf("%d runs left; they saw %q", len(l.runs), l.saw)
			}
			if b, err := os.ReadFile(name); err != nil || string(b) != "0\n1\ntwo\n" {
				t.Errorf("afterwards the file is %q, %v", b, err)
			}
		})
	}
}

func TestBaselineMustBeGreen(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, st := range []state{red, hung, unbuilt, cut, green} {
		tr := &tester{dir: dir, layers: []layer{&fakeLayer{runs: []outcome{{state: st}}}}, say: t.Logf}
		if err := tr.baseline(t.Context()); errors.Is(err, errBaseline) == (st == green) {
			t.Errorf("%s: %v", st, err)
		}
	}
}

func TestPatchThatDoesNotApply(t *testing.T) {
	tr := &tester{dir: t.TempDir(), say: t.Logf}
	if err := os.WriteFile(filepath.Join(tr.dir, "a.go"), []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := mustParse(t, "01-n.patch", patchOf("two", "2"))
	if rs, err := tr.try(t.Context(), &m); !errors.Is(err, errPatch) || len(rs) > 0 {
		t.Errorf("%v, %v", rs, err)
	}
}

// TestGoTests runs the go command on a small module, mutated in each way that a
// verdict has to tell apart.
func TestGoTests(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{
		"go.mod": "module chronik\n\ngo 1.26\n",
		"a.go":   "package a\n\n// One is 1.\nfunc One() int {\n\treturn 1\n}\n",
		"a_test.go": "package a\n\nimport \"testing\"\n\nfunc TestOne(t *testing.T) {\n\tt.Run(\"sub\", func(t *testing.T) {\n\t\tif One() != 1 {\n\t\t\tt.Fatal(\"not 1\")\n\t\t}\n\t})\n}\n\n" +
			"func TestOther(t *testing.T) {}\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := &goTests{title: "packages", of: func(*mutation) []string { return []string{"./..."} }, all: []string{"./..."}, limit: 3 * time.Second}
	tr := &tester{dir: dir, layers: []layer{l}, say: t.Logf, keep: func(result) error { return nil }}
	if err := tr.baseline(t.Context()); err != nil || l.normal["chronik"] == 0 {
		t.Fatal(err, l.normal)
	}
	l.normal = nil
	for _, tt := range []struct {
		after string
		want  verdict
	}{
		{"\treturn 2 - 1", survived},
		{"\treturn 2", caught},
		{"\tpanic(1)", caught},
		{"\tdone := make(chan bool)\n+\tgo func() { panic(done) }()\n+\t<-done\n+\treturn 1", caught},
		{"\tfor one := 1; ; one++ {\n+\t}", caughtH},
		{"\treturn one", invalid},
	} {
		m := mustParse(t, "01-n.patch", patchOf("\treturn 1", tt.after))
		rs, err := tr.try(t.Context(), &m)
		if err != nil || len(rs) != 1 {
			t.Fatalf("%q: %v, %v", tt.after, rs, err)
		}
		if rs[0].verdict != tt.want || rs[0].verdict.isCaught() && rs[0].by != "chronik: TestOne" {
			t.Errorf("%q: %s by %q; want %s", tt.after, rs[0].verdict, rs[0].by, tt.want)
		}
	}
}

func TestLimits(t *testing.T) {
	l := &goTests{limit: time.Hour, normal: packageTimes([]byte(`{"Action":"pass","Package":"chronik/internal/a","Test":"TestA","Elapsed":900}
no JSON
{"Action":"pass","Package":"chronik/internal/a","Elapsed":12.5}
{"Action":"pass","Package":"chronik/internal/b","Elapsed":1}
`))}
	for _, tt := range []struct {
		m    *mutation
		pkgs []string
		want time.Duration
	}{
		{nil, []string{"./internal/a"}, time.Hour},
		{&mutation{}, []string{"./internal/b", "./internal/a"}, 125 * time.Second},
		{&mutation{}, []string{"chronik/internal/a"}, 125 * time.Second},
		{&mutation{}, []string{"./internal/b"}, time.Minute},
	} {
		if got := l.limitFor(tt.m, tt.pkgs); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.pkgs, got, tt.want)
		}
	}
}

func TestNarrow(t *testing.T) {
	for _, tt := range []struct {
		failed  []string
		pkgs    string
		pattern string
	}{
		{[]string{"./b: TestB", "./a: TestA", "./b: TestC"}, "./a ./b", "^(TestB|TestA|TestC)$"},
		{[]string{"./b: TestB", "./a: "}, "./a ./b", ""},
	} {
		pkgs, pattern := narrow(tt.failed)
		if strings.Join(pkgs, " ") != tt.pkgs || pattern != tt.pattern {
			t.Errorf("%v: %v %q", tt.failed, pkgs, pattern)
		}
	}
}

func TestResultsAndTable(t *testing.T) {
	name := filepath.Join(t.TempDir(), "results.tsv")
	m := mustParse(t, "01-n.patch", patchOf("a", "b"))
	n := mustParse(t, "02-o.patch", patchOf("a", "c"))
	rs, err := readResults(name)
	if err != nil || rs != nil {
		t.Fatal(rs, err)
	}
	for _, r := range []result{
		{nr: "02", name: "o", sum: n.sum, layer: "packages", verdict: survived, seconds: 2, commit: "x"},
		{nr: "01", name: "n", sum: m.sum, layer: "sim", verdict: caught, seeds: 7, by: "high-\twatermark", commit: "x"},
		{nr: "01", name: "n", sum: m.sum, layer: "packages", verdict: survived, commit: "x"},
		{nr: "01", name: "n", sum: m.sum, layer: "packages", verdict: caught, by: "./internal/a: TestA", seconds: 1.5, commit: "y"},
	} {
		rs = merge(rs, r)
	}
	if err := writeResults(name, rs); err != nil {
		t.Fatal(err)
	}
	got, err := readResults(name)
	if rs[1].by = "high- watermark"; err != nil || !slices.Equal(got, rs) || got[0].layer != "packages" || got[0].commit != "y" {
		t.Fatalf("%+v, %v; wrote %+v", got, err, rs)
	}
	text := table([]mutation{m, n}, got)
	for _, want := range []string{"| 01 n: w | b | a: TestA, 2 s | seed 7: high- watermark |", "| 02 o: w | b | no |  |", "1 of 2 caught", "commit x, y"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	doc, err := putTable([]byte("before\n"+beginMark+"\nold\n"+endMark+"\nafter\n"), "new")
	if want := "before\n" + beginMark + "\n\nnew\n" + endMark + "\nafter\n"; err != nil || string(doc) != want {
		t.Errorf("%q, %v", doc, err)
	}
	if _, err := putTable([]byte("before\n"), "new"); err == nil {
		t.Error("a document without marks is taken")
	}
	if left := current([]mutation{n}, got); len(left) != 1 || left[0].nr != "02" {
		t.Errorf("of a patch that is gone stays %+v", left)
	}
}

func TestJudgeSeeds(t *testing.T) {
	sh := func(limit time.Duration, script string) outcome {
		return judgeSeeds(command(t.Context(), ".", limit, nil, "sh", "-c", script))
	}
	total := "echo 'sim: seeds 1 to 9: 9 seeds, 100 events, virtual time 1s'; "
	bad := total + "echo 'sim: seed 7: VIOLATION of order: record 3'; echo 'sim: seed 5: VIOLATION of high-watermark: 8 after 9'; exit 1"
	if o := sh(time.Minute, bad); o.state != red || o.seeds != 5 || !slices.Equal(o.failed, []string{"high-watermark"}) {
		t.Errorf("%+v", o)
	}
	if o := sh(time.Minute, total); o.state != green || o.seeds != 9 || len(o.failed) > 0 {
		t.Errorf("%+v", o)
	}
	for _, script := range []string{"echo no such thing; exit 1", "true", total + "exit 2", "echo 'sim: seed 1: VIOLATION of x: y'"} {
		if o := sh(time.Minute, script); o.state != unbuilt {
			t.Errorf("%s: %+v", script, o)
		}
	}
	if o := sh(50*time.Millisecond, "sleep 60 & wait"); o.state != cut || o.took > 30*time.Second {
		t.Errorf("%+v", o)
	}
}
