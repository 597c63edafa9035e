package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"chronik/test/sim/machine"
)

func TestMain(m *testing.M) {
	machine.Worker()
	goleak.VerifyTestMain(m)
}

// small runs machine's own test guest, which is compiled once.
var small = sync.OnceValues(func() (*machine.Machine, error) {
	cache, err := machine.CacheDir()
	if err != nil {
		return nil, err
	}
	wasm, err := machine.Build(context.Background(), ".", "./machine/testdata/guest", cache)
	if err != nil {
		return nil, err
	}
	return machine.Open(context.Background(), wasm, machine.Options{Cache: filepath.Join(cache, "test")})
})

// simulate runs the command with args over the small guest.
func simulate(t *testing.T, args ...string) (string, error) {
	t.Helper()
	o, err := parse(args, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	m, err := small()
	if err != nil {
		t.Fatal(err)
	}
	s := &sim{options: o, exec: m.Run, program: "0123456789ab", out: &out}
	if o.single {
		err = s.one(t.Context())
	} else {
		err = s.sweep(t.Context())
	}
	return out.String(), err
}

func TestSweepKeepsTally(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "tally.tsv")
	out, err := simulate(t, "-n", "23", "-steps", "4", "-check", "5", "-batch", "10", "-tally", path, "-resume", "--", "-mode", "mixed")
	if err != nil {
		t.Fatal(err, out)
	}
	if !strings.Contains(out, "seeds 1 to 23: 23 seeds, 92 events") || !strings.Contains(out, "crash 46, cut 23, wipe 23;") ||
		!strings.Contains(out, "4 run twice, 0 violations") {
		t.Error(out)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out, err = simulate(t, "-n", "2", "-tally", path, "-resume", "--", "-mode", "violation")
	if !errors.Is(err, errViolation) || !strings.Contains(out, "seed 24: VIOLATION of agreement") {
		t.Error(err, out)
	}
	after, err := os.ReadFile(path)
	if err != nil || !bytes.HasPrefix(after, before) {
		t.Fatalf("lines changed: %v\n%s\n%s", err, before, after)
	}
	lines := strings.Split(strings.TrimSpace(string(after)), "\n")
	var got []string
	for _, line := range lines[1:] {
		got = append(got, strings.Join(strings.Split(line, "\t")[2:7], " "))
	}
	if want := []string{"1 10 10 4 40", "11 20 10 4 40", "21 23 3 4 12"}; !slices.Equal(got[:3], want) || !strings.HasPrefix(got[3], "24 ") {
		t.Errorf("got %q", got)
	}
	if !strings.HasSuffix(lines[4], "\t0123456789ab") || strings.Count(string(after), "date") != 1 {
		t.Errorf("the guest is not named:\n%s", after)
	}
	if next, err := nextSeed(path, string(after)); err != nil || next < 25 || next > 26 {
		t.Errorf("next %d, %v", next, err)
	}
}

// TestTooFewSeeds: of a sweep that is cut short, and of one that is not.
func TestTooFewSeeds(t *testing.T) {
	out, err := simulate(t, "-n", "3", "-steps", "4", "-least", "3", "--", "-mode", "mixed")
	if err != nil || strings.Contains(out, "TOO FEW") {
		t.Error(err, out)
	}
	o, err := parse([]string{"-n", "3", "-least", "3", "-workers", "1", "-for", "10ms"}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	var short bytes.Buffer
	s := &sim{options: o, out: &short, exec: func(_ context.Context, a machine.Args) (machine.Result, error) {
		time.Sleep(300 * time.Millisecond) // longer than seeds are begun
		return machine.Result{Seed: a.Seed}, nil
	}}
	if err := s.sweep(t.Context()); !errors.Is(err, errTooFew) || !strings.Contains(short.String(), "were run to their end, -least asks for 3\n") {
		t.Error(err, short.String())
	}
	if _, err := parse([]string{"-n", "3", "-least", "4"}, io.Discard); err == nil {
		t.Error("more than there are")
	}
}

// TestOldTally: lines that name no guest count, and those that are added to them have the columns' names before them.
func TestOldTally(t *testing.T) {
	old := "date\tcommit\tfrom\tto\tseeds\tsteps\tevents\tvirtual_s\tviolations\n" +
		"2026-11-26T11:13:54Z\td2dbbb25d2d9\t1\t89\t89\t150\t436037\t817\t1\n"
	path := filepath.Join(t.TempDir(), "tally.tsv")
	if err := os.WriteFile(path, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"1", "2"} {
		if out, err := simulate(t, "-n", n, "-steps", "4", "-batch", "1", "-tally", path, "-resume", "--", "-mode", "mixed"); err != nil {
			t.Fatal(err, out)
		}
	}
	text, err := os.ReadFile(path)
	added, ok := strings.CutPrefix(string(text), old+tallyHeader)
	lines := strings.Split(strings.TrimSpace(added), "\n")
	if err != nil || !ok || len(lines) != 3 {
		t.Fatalf("%v\n%s", err, text)
	}
	for i, line := range lines {
		if f := strings.Split(line, "\t"); f[2] != strconv.Itoa(90+i) || len(f) != 10 || f[9] != "0123456789ab" {
			t.Errorf("line %q", line)
		}
	}
}

func TestBadTallyIsNamed(t *testing.T) {
	for text, want := range map[string]string{
		tallyHeader + "a\tb\n":                          "x:2: 2 fields",
		tallyHeader + "d\tc\t1\tten\t1\t1\t1\t1\t0":     "x:2: strconv",
		tallyHeader + "d\tc\t1\t2\t1\t1\t1\t1\t0\ta\tb": "x:2: 11 fields",
	} {
		if _, err := nextSeed("x", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, text := range []string{"", tallyHeader} {
		if next, err := nextSeed("x", text); err != nil || next != 1 {
			t.Errorf("%q: %d, %v", text, next, err)
		}
	}
}

// TestViolationIsReduced: the guest fails with at least 37 steps and the faults 1 and 6.
func TestViolationIsReduced(t *testing.T) {
	out, err := simulate(t, "-n", "50", "-steps", "400", "-workers", "3", "--", "-mode", "violation", "-need", "37")
	if !errors.Is(err, errViolation) {
		t.Error(err)
	}
	want := " -steps 37 -skip 0,2,3,4,5,7 -- -mode violation -need 37\n"
	if !strings.Contains(out, "VIOLATION of agreement: as asked") || !strings.Contains(out, "steps 400 to 37, faults 8 to 2") || !strings.HasSuffix(out, want) {
		t.Fatal(out)
	}
	// The printed command fails, as printed.
	words := strings.Fields(out[strings.LastIndex(out, "./test/sim")+len("./test/sim"):])
	out, err = simulate(t, words...)
	if !errors.Is(err, errViolation) || !strings.Contains(out, "VIOLATION of agreement") {
		t.Error(err, out)
	}
}

// TestCrashIsReduced: a guest that panics has no result, but its plan is known.
func TestCrashIsReduced(t *testing.T) {
	out, err := simulate(t, "-seed", "9", "-steps", "100", "-minimise", "1m", "--", "-mode", "panic")
	if !errors.Is(err, errViolation) || !strings.Contains(out, "VIOLATION of crash: exit code 2 without a result: panic: broken at 100") ||
		!strings.HasSuffix(out, "-seed 9 -steps 1 -skip 0,1,2,3,4,5,6,7 -- -mode panic\n") {
		t.Error(err, out)
	}
}

// TestReducer: what need not be is left out, whatever the order of its parts; another
// violation is not taken for the one that is looked for.
func TestReducer(t *testing.T) {
	for _, needed := range [][]int{{}, {0}, {19}, {3, 4}, {0, 10, 19}, {1, 2, 3, 5, 8, 13}} {
		run := func(_ context.Context, a machine.Args) (machine.Result, error) {
			r := machine.Result{Faults: make([]string, 20), Counts: map[string]int64{"nodes": 5}}
			if i := slices.Index(a.Flags, "-nodes"); i >= 0 && a.Flags[i+1] == "3" {
				r.Violation = &machine.Violation{Check: "other"}
				return r, nil
			}
			left := kept(r, a.Skip)
			if a.Steps >= 25 && !slices.ContainsFunc(needed, func(i int) bool { return !slices.Contains(left, i) }) {
				r.Violation = &machine.Violation{Check: machine.Crash, Detail: "panic: at " + string(rune('0'+len(left)%10)) + "\nand more"}
			}
			return r, nil
		}
		a := machine.Args{Seed: 1, Steps: 1000, Flags: []string{"-x"}}
		r, _ := run(t.Context(), a)
		d := &reducer{run: run, workers: 4, args: a, result: r}
		d.reduce(t.Context())
		if got := kept(d.result, d.args.Skip); !slices.Equal(got, needed) || d.args.Steps != 25 || !slices.Equal(d.args.Flags, []string{"-x", "-nodes", "4"}) {
			t.Errorf("needed %v: left %v of %d steps, %v, after %d runs", needed, got, d.args.Steps, d.args.Flags, d.tried)
		}
	}
}

// TestFewerStepsPlanNoOthers: faults that the fewer steps do not come to are left out by name.
func TestFewerStepsPlanNoOthers(t *testing.T) {
	r := machine.Result{Faults: []string{"kill at=49 node=1", "cut", "flip at=50 n=7", "wipe at=149"}}
	if got := later(r, 50); !slices.Equal(got, []int{2, 3}) {
		t.Error(got)
	}
}

// TestDeterminismIsChecked: a run that has another trace the second time is a violation,
// which is made smaller by running every smaller one twice.
func TestDeterminismIsChecked(t *testing.T) {
	o, err := parse([]string{"-n", "10", "-steps", "100", "-check", "4"}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	var n atomic.Uint64
	s := &sim{options: o, out: &out, exec: func(_ context.Context, a machine.Args) (machine.Result, error) {
		r := machine.Result{Seed: a.Seed, Steps: a.Steps, Hash: "same"}
		if a.Seed == 8 && a.Steps > 12 {
			r.Trace = n.Add(1)
		}
		return r, nil
	}}
	if err := s.sweep(t.Context()); !errors.Is(err, errViolation) {
		t.Error(err)
	}
	if !strings.Contains(out.String(), "seed 8: VIOLATION of determinism") || !strings.HasSuffix(out.String(), "-seed 8 -steps 13\n") {
		t.Error(out.String())
	}
}
