package machine

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	Worker()
	goleak.VerifyTestMain(m)
}

// The guest is compiled once for all tests.
var (
	built = sync.OnceValues(func() ([]byte, error) {
		cache, err := CacheDir()
		if err != nil {
			return nil, err
		}
		return Build(context.Background(), ".", "./testdata/guest", cache)
	})
	guest     = sync.OnceValues(func() (*Machine, error) { return open(false) })
	stoppable = sync.OnceValues(func() (*Machine, error) { return open(true) })
)

func open(stoppable bool) (*Machine, error) {
	wasm, err := built()
	if err != nil {
		return nil, err
	}
	cache, err := testCache()
	if err != nil {
		return nil, err
	}
	return Open(context.Background(), wasm, Options{Cache: cache, Memory: 256 << 20, Stoppable: stoppable})
}

// testCache keeps compiled guests from run to run, apart from the big ones.
func testCache() (string, error) {
	dir, err := CacheDir()
	return filepath.Join(dir, "test"), err
}

func run(t *testing.T, a Args, mode string) Result {
	t.Helper()
	m, err := guest()
	if err != nil {
		t.Fatal(err)
	}
	if a.Steps == 0 {
		a.Steps = 10
	}
	a.Flags = append([]string{"-mode", mode}, a.Flags...)
	r, err := m.Run(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSameSeedSameBytes(t *testing.T) {
	seen := map[uint64]string{}
	for seed := range uint64(5) {
		var results [4]Result
		var all sync.WaitGroup
		for i := range results { // in parallel: runs share nothing
			all.Go(func() { results[i] = run(t, Args{Seed: seed}, "mixed") })
		}
		all.Wait()
		for i, r := range results {
			if r.Violation != nil {
				t.Fatalf("seed %d: %+v", seed, r.Violation)
			}
			if !bytes.Equal(r.Output, results[0].Output) || r.Trace != results[0].Trace || r.Clock != results[0].Clock || r.Hash != results[0].Hash {
				t.Errorf("seed %d: run %d differs:\n%s\n%s", seed, i, results[0].Output, r.Output)
			}
		}
		seen[results[0].Trace] = results[0].Hash
	}
	hashes := map[string]bool{}
	for _, h := range seen {
		hashes[h] = true
	}
	if len(seen) != 5 || len(hashes) != 5 {
		t.Errorf("5 seeds have %d traces and %d hashes", len(seen), len(hashes))
	}
}

func TestVirtualTime(t *testing.T) {
	for mode, want := range map[string]string{
		"sleep": "1h0m0s 1h0m0s\n",
		"jump":  "0s -25h0m0s\n",
		"busy":  "time went on\n",
	} {
		r := run(t, Args{}, mode)
		if got, _, _ := strings.Cut(string(r.Output), resultPrefix); r.Violation != nil || got != want {
			t.Errorf("%s: %q, want %q; %+v", mode, got, want, r.Violation)
		}
	}
	r := run(t, Args{}, "sleep")
	if r.Clock < time.Hour || r.Clock > time.Hour+time.Millisecond || r.Virtual < time.Hour || r.Virtual > r.Clock {
		t.Errorf("an hour's sleep took %v of %v", r.Virtual, r.Clock)
	}
}

func TestReport(t *testing.T) {
	r := run(t, Args{Seed: 1<<63 + 5, Steps: 7, Skip: []int{0, 3}}, "violation")
	if r.Violation == nil || *r.Violation != (Violation{"agreement", "as asked"}) {
		t.Errorf("violation %+v", r.Violation)
	}
	if r.Seed != 1<<63+5 || r.Steps != 7 || r.Events != 7 || r.Hash == "" || len(r.Faults) != 8 || r.Counts["nodes"] != 3 {
		t.Errorf("result %+v", r)
	}
	if r := run(t, Args{Skip: []int{6}}, "violation"); r.Violation != nil {
		t.Errorf("without its fault: %+v", r.Violation)
	}
}

// TestBadEnds: whatever a guest does, its run ends and says what it was.
func TestBadEnds(t *testing.T) {
	for _, c := range []struct {
		mode, check, detail string
		args                Args
	}{
		{mode: "panic", check: Crash, detail: "panic: broken at 10"},
		{mode: "deadlock", check: Crash, detail: "all goroutines are asleep"},
		{mode: "exit", check: Crash, detail: "exit code 7"},
		{mode: "silent", check: Crash, detail: "exit code 0 without a result"},
		{mode: "liar", check: Crash, detail: "exit code 0 does not fit"},
		{mode: "garbage", check: Crash, detail: "result line"},
		{mode: "bomb", check: Crash, detail: "out of memory"},
		{mode: "ask", check: Hung, detail: "still computing after 300ms", args: Args{CPU: 300 * time.Millisecond}},
		{mode: "forever", check: Hung, detail: "still running after 10h0m0s of virtual time", args: Args{Virtual: 10 * time.Hour}},
	} {
		t.Run(c.mode, func(t *testing.T) {
			t.Parallel()
			r := run(t, c.args, c.mode)
			if r.Violation == nil || r.Violation.Check != c.check || !strings.Contains(r.Violation.Detail, c.detail) {
				t.Errorf("%+v", r.Violation)
			}
			if c.mode == "panic" && len(r.Faults) != 8 {
				t.Errorf("the plan is lost: %v", r.Faults)
			}
		})
	}
}

func TestOutputIsBounded(t *testing.T) {
	var log bytes.Buffer
	r := run(t, Args{Log: &log}, "flood")
	if r.Violation != nil || len(r.Output) > keepOutput || log.Len() < 3*keepOutput {
		t.Errorf("kept %d of %d: %+v", len(r.Output), log.Len(), r.Violation)
	}
	if !bytes.HasSuffix(log.Bytes(), r.Output) {
		t.Error("what is kept is not the end")
	}
}

func TestCancelledRunSaysNothing(t *testing.T) {
	m, err := guest()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if r, err := m.Run(ctx, Args{Flags: []string{"-mode", "ask"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestStoppable: a guest that can be stopped runs like one that cannot, and ends even
// if it asks for nothing.
func TestStoppable(t *testing.T) {
	m, err := stoppable()
	if err != nil {
		t.Fatal(err)
	}
	r, err := m.Run(t.Context(), Args{Seed: 3, Steps: 10, Flags: []string{"-mode", "mixed"}})
	if want := run(t, Args{Seed: 3}, "mixed"); err != nil || r.Trace != want.Trace || !bytes.Equal(r.Output, want.Output) {
		t.Errorf("another trace: %v", err)
	}
	r, err = m.Run(t.Context(), Args{CPU: 300 * time.Millisecond, Flags: []string{"-mode", "spin"}})
	if err != nil || r.Violation == nil || r.Violation.Check != Hung {
		t.Errorf("%+v, %v", r.Violation, err)
	}
}

func TestPool(t *testing.T) {
	wasm, err := built()
	if err != nil {
		t.Fatal(err)
	}
	cache, err := testCache()
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPool(t.Context(), wasm, Options{Cache: cache})
	if err != nil {
		t.Fatal(err)
	}
	want := run(t, Args{Seed: 4}, "mixed")
	same := func() {
		t.Helper()
		var log bytes.Buffer
		got, err := p.Run(t.Context(), Args{Seed: 4, Steps: 10, Flags: []string{"-mode", "mixed"}, Log: &log})
		if err != nil || got.Trace != want.Trace || got.Hash != want.Hash || got.Clock != want.Clock || !bytes.Equal(got.Output, want.Output) {
			t.Errorf("another run: %+v, %v", got, err)
		}
		if !bytes.Equal(log.Bytes(), want.Output) {
			t.Errorf("log of %d bytes, want %d", log.Len(), len(want.Output))
		}
	}
	same()
	same() // in the same process
	if len(p.idle) != 1 {
		t.Errorf("%d processes", len(p.idle))
	}
	// A guest that only computes takes its process with it; another takes its place.
	r, err := p.Run(t.Context(), Args{CPU: time.Second, Flags: []string{"-mode", "spin"}})
	if err != nil || r.Violation == nil || r.Violation.Check != Hung {
		t.Errorf("%+v, %v", r.Violation, err)
	}
	if len(p.idle) != 0 {
		t.Error("a dead process is kept")
	}
	same()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if _, err := p.Run(ctx, Args{Flags: []string{"-mode", "spin"}}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

func TestPrune(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"a", "b", "c", "d"} {
		path := filepath.Join(dir, "v", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		at := epochTime.Add(time.Duration(i) * time.Hour)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := prune(dir, "*/*", 3); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "v", "*"))
	if err != nil || len(left) != 3 || filepath.Base(left[0]) != "b" {
		t.Errorf("left %v, %v", left, err)
	}
}
