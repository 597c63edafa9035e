package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// state is how one run of a layer ended.
type state string

const (
	green state = "green"
	red   state = "red"
	// hung: the layer's own time limit ended it, and said so.
	hung state = "hung"
	// unbuilt: what it tests does not compile. Nothing was tested.
	unbuilt state = "does not compile"
	// cut: this program's time limit ended it. That says nothing.
	cut state = "ended without a verdict"
)

// outcome is one run of a layer.
type outcome struct {
	state state
	// failed names what failed: package.Test, or a check of the simulation.
	failed []string
	// seeds is after how many seeds, 0 where there are none.
	seeds  int
	took   time.Duration
	output string
}

// bad tells whether the run says that something is wrong.
func (o *outcome) bad() bool { return o.state == red || o.state == hung }

// layer is one kind of test. run looks at the tree in dir; m is nil for the tree as
// it is. again, if not empty, are the names that an earlier run gave as failed.
type layer interface {
	name() string
	run(ctx context.Context, dir string, m *mutation, again []string) outcome
}

// goTests is a layer of ordinary tests.
type goTests struct {
	title string
	// of gives the packages for a mutation; all are those of every mutation, for the baseline.
	of      func(*mutation) []string
	all     []string
	pattern string // -run
	env     []string
	// limit is for each package without a mutation. With one it is ten times what the
	// slowest of them took then, a minute at least.
	limit  time.Duration
	normal map[string]time.Duration // by import path
	// quick ends a run at the first test that fails.
	quick bool
}

func (l *goTests) name() string { return l.title }

func (l *goTests) run(ctx context.Context, dir string, m *mutation, again []string) outcome {
	pkgs, pattern := l.all, l.pattern
	if m != nil {
		pkgs = l.of(m)
	}
	if len(again) > 0 {
		pkgs, pattern = narrow(again)
	}
	// Paths are trimmed so that the next run, in another copy, finds what is built.
	args := []string{"test", "-json", "-trimpath", "-vet=off", "-count=1", "-timeout", l.limitFor(m, pkgs).String()}
	if l.quick && m != nil {
		args = append(args, "-failfast")
	}
	if pattern != "" {
		args = append(args, "-run", pattern)
	}
	// The go command's own limit is for each package; ours is behind all of them.
	wait := time.Duration(len(pkgs)+1)*l.limit + time.Minute
	r := command(ctx, dir, wait, l.env, "go", append(args, pkgs...)...)
	if m == nil {
		l.normal = packageTimes(r.out)
	}
	return judgeTests(r)
}

// limitFor is how long a package's tests may take.
func (l *goTests) limitFor(m *mutation, pkgs []string) time.Duration {
	if m == nil {
		return l.limit
	}
	var slowest time.Duration
	for path, took := range l.normal {
		if slices.ContainsFunc(pkgs, func(p string) bool { return strings.HasSuffix(path, strings.TrimPrefix(p, ".")) }) {
			slowest = max(slowest, took)
		}
	}
	return min(max(10*slowest, time.Minute), l.limit)
}

// packageTimes reads how long each package's tests took.
func packageTimes(out []byte) map[string]time.Duration {
	times := map[string]time.Duration{}
	for line := range bytes.Lines(out) {
		var e testEvent
		if json.Unmarshal(line, &e) == nil && e.Action == "pass" && e.Test == "" {
			times[e.Package] = time.Duration(e.Elapsed * float64(time.Second))
		}
	}
	return times
}

// narrow makes of failed tests the packages and the pattern that run them and no others. A package that
// failed outside of any test is run whole.
func narrow(failed []string) (pkgs []string, pattern string) {
	var tests []string
	whole := false
	for _, f := range failed {
		pkg, test, _ := strings.Cut(f, ": ")
		pkgs = append(pkgs, pkg)
		if test == "" {
			whole = true
		}
		tests = append(tests, regexp.QuoteMeta(test))
	}
	slices.Sort(pkgs)
	pkgs = slices.Compact(pkgs)
	if whole {
		return pkgs, ""
	}
	return pkgs, "^(" + strings.Join(tests, "|") + ")$"
}

// ran is how a command ended.
type ran struct {
	out  []byte
	err  error
	cut  bool
	took time.Duration
}

// command runs a program in dir, its descendants with it to the end.
func command(ctx context.Context, dir string, limit time.Duration, env []string, name string, args ...string) ran {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &out
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	start := time.Now()
	err := cmd.Run()
	return ran{out: out.Bytes(), err: err, cut: ctx.Err() != nil, took: time.Since(start)}
}

// testEvent is a line of 'go test -json'.
type testEvent struct {
	Action, Package, Test, Output string
	Elapsed                       float64 // seconds
}

// judgeTests reads what 'go test -json' said.
func judgeTests(r ran) outcome {
	o := outcome{took: r.took}
	var text strings.Builder
	failed := map[string]bool{}  // packages
	running := map[string]bool{} // package and test
	timedOut := false
	sc := bufio.NewScanner(bytes.NewReader(r.out))
	sc.Buffer(nil, 64<<20)
	for sc.Scan() {
		var e testEvent
		if json.Unmarshal(sc.Bytes(), &e) != nil {
			text.WriteString(sc.Text() + "\n")
			continue
		}
		text.WriteString(e.Output)
		test, _, sub := strings.Cut(e.Test, "/")
		pkg := e.Package
		key := pkg + ": " + test
		switch e.Action {
		case "build-fail":
			o.state = unbuilt
		case "run":
			running[key] = true
		case "pass", "skip":
			if test != "" && !sub {
				delete(running, key)
			}
		case "fail":
			if test == "" {
				failed[pkg] = true
			} else if !slices.Contains(o.failed, key) {
				o.failed = append(o.failed, key)
			}
		case "output":
			timedOut = timedOut || strings.HasPrefix(e.Output, "panic: test timed out after ")
		}
	}
	o.output = text.String()
	for pkg := range failed { // a process that died may leave its test without a verdict
		blamed := slices.ContainsFunc(o.failed, func(f string) bool { return strings.HasPrefix(f, pkg+": ") })
		for key := range running {
			if !blamed && strings.HasPrefix(key, pkg+": ") {
				o.failed = append(o.failed, key)
			}
		}
		if !slices.ContainsFunc(o.failed, func(f string) bool { return strings.HasPrefix(f, pkg+": ") }) {
			o.failed = append(o.failed, pkg+": ")
		}
	}
	slices.Sort(o.failed)
	switch {
	case o.state == unbuilt:
	case r.cut:
		o.state = cut
	case timedOut:
		o.state = hung
	case len(failed) > 0:
		o.state = red
	case r.err != nil:
		o.state = unbuilt // the go command itself failed: nothing was tested
	default:
		o.state = green
	}
	return o
}

// simulation is the layer of seeds: one command, which says which seed violates
// which check and does not exit with 0 then.
type simulation struct {
	args  []string
	limit time.Duration
}

func (*simulation) name() string { return "sim" }

func (l *simulation) run(ctx context.Context, dir string, _ *mutation, _ []string) outcome {
	return judgeSeeds(command(ctx, dir, l.limit, nil, l.args[0], l.args[1:]...))
}

// What the simulation prints of a seed that does not hold, and at the end.
var (
	violation = regexp.MustCompile(`(?m)^sim: seed (\d+): VIOLATION of ([^:\n]+)`)
	seedsDone = regexp.MustCompile(`(?m)^sim: seeds \d+ to \d+: (\d+) seeds`)
)

// judgeSeeds reads what the simulation said. It is the only place that knows how. A
// sweep begins with seed 1 and stops at the first violation.
func judgeSeeds(r ran) outcome {
	o := outcome{took: r.took, output: string(r.out)}
	if m := seedsDone.FindSubmatch(r.out); m != nil {
		o.seeds, _ = strconv.Atoi(string(m[1])) // digits; too many of them are 0
	}
	lowest := 0
	for _, m := range violation.FindAllSubmatch(r.out, -1) {
		if seed, err := strconv.Atoi(string(m[1])); err == nil && (lowest == 0 || seed < lowest) {
			lowest, o.failed = seed, []string{string(m[2])}
		}
	}
	switch {
	case r.cut:
		o.state = cut
	case r.err == nil && o.seeds > 0 && lowest == 0:
		o.state = green
	case r.err != nil && lowest > 0:
		o.state, o.seeds = red, lowest
	default: // it did not come as far as a verdict
		o.state = unbuilt
		o.output = fmt.Sprintf("%v\n%s", r.err, o.output)
	}
	return o
}
