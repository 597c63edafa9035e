package chaos

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chronik/test/check"
)

// tallyFile has one line for each run of TestStorm that 'make chaos' made.
const tallyFile = "testdata/tally.jsonl"

// tally is a line of it.
type tally struct {
	Commit  string  `json:"commit"` // with + when the tree had changes
	When    string  `json:"when"`
	Seed    uint64  `json:"seed"`
	Minutes float64 `json:"minutes"` // of clusters, two of which live side by side
	// Nemeses are how often each was at work.
	Nemeses   map[string]int `json:"nemeses"`
	Acked     int            `json:"acked"`
	Delivered int            `json:"delivered"`
	// MetaCalls are judged by porcupine; Undecided are topics whose history it could not judge in time.
	MetaCalls int `json:"meta_calls"`
	Undecided int `json:"meta_undecided"`
	// Deaths are kills of one node after which it was measured when producers were served again.
	Deaths      int            `json:"deaths"`
	ServedP50ms int64          `json:"served_p50_ms"`
	ServedP95ms int64          `json:"served_p95_ms"`
	Violations  map[string]int `json:"violations"`

	served []time.Duration
	// stormed is the time of all clusters, from whole to judged.
	stormed time.Duration
}

// add takes over what another has counted.
func (ta *tally) add(o *tally) {
	ta.stormed += o.stormed
	ta.served = append(ta.served, o.served...)
	ta.Minutes += o.Minutes
	ta.Acked += o.Acked
	ta.Delivered += o.Delivered
	ta.MetaCalls += o.MetaCalls
	ta.Undecided += o.Undecided
	for k, n := range o.Nemeses {
		ta.Nemeses[k] += n
	}
	for k, n := range o.Violations {
		ta.Violations[k] += n
	}
}

func newTally(seed uint64) *tally {
	return &tally{Commit: commit(), When: time.Now().UTC().Format(time.RFC3339), Seed: seed, Nemeses: map[string]int{}, Violations: map[string]int{}}
}

func commit() string {
	out, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	c := strings.TrimSpace(string(out))
	if changes, err := exec.Command("git", "status", "--porcelain", "--untracked-files=no", ":(exclude)"+tallyFile).Output(); err != nil || len(changes) > 0 {
		c += "+"
	}
	return c
}

func (ta *tally) violated(vs ...check.Violation) {
	for _, v := range vs {
		ta.Violations[string(v.Kind)]++
	}
}

// percentile of d, which is sorted; 0 of nothing.
func percentile(d []time.Duration, percent int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return d[min(len(d)-1, len(d)*percent/100)]
}

// enoughDeaths are so many that a 95th percentile means something.
const enoughDeaths = 20

// judgeDeaths holds the times to what is promised: p95 of 3 s.
func (ta *tally) judgeDeaths() []check.Violation {
	slices.Sort(ta.served)
	p95 := percentile(ta.served, 95)
	ta.Deaths, ta.ServedP50ms, ta.ServedP95ms = len(ta.served), percentile(ta.served, 50).Milliseconds(), p95.Milliseconds()
	if len(ta.served) >= enoughDeaths && p95 > 3*time.Second {
		return []check.Violation{{Kind: check.NotAvailable, Place: "after a node's death", What: fmt.Sprintf("producers were served again after %v (p95 of %d)", p95, len(ta.served))}}
	}
	return nil
}

// write appends the line to the file that CHRONIK_TEST_TALLY names, if it does.
func (ta *tally) write(t *testing.T) {
	t.Helper()
	ta.Minutes = float64(ta.stormed.Round(600*time.Millisecond)/(600*time.Millisecond)) / 100
	line, err := json.Marshal(ta)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", line)
	name := os.Getenv("CHRONIK_TEST_TALLY")
	if name == "" {
		return
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// TestTally adds up the runs that were made: 'make chaos-tally'.
func TestTally(t *testing.T) {
	f, err := os.Open(tallyFile)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	sum := newTally(0)
	runs, deaths := 0, 0
	var worstP95 int64
	for sc := bufio.NewScanner(f); sc.Scan(); runs++ {
		var ta tally
		if err := json.Unmarshal(sc.Bytes(), &ta); err != nil {
			t.Fatalf("line %d: %v", runs+1, err)
		}
		sum.add(&ta)
		deaths += ta.Deaths
		if ta.Deaths >= enoughDeaths {
			worstP95 = max(worstP95, ta.ServedP95ms)
		}
	}
	t.Logf("%d runs, %.1f minutes, %d records acknowledged, %d delivered, %d metadata calls, %d deaths, worst p95 of a run %d ms, violations %v",
		runs, sum.Minutes, sum.Acked, sum.Delivered, sum.MetaCalls, deaths, worstP95, sum.Violations)
	for _, name := range slices.Sorted(maps.Keys(sum.Nemeses)) {
		t.Logf("%5d × %s", sum.Nemeses[name], name)
	}
}

// TestDeathsAreJudged: the p95 fails when it is above 3 s, and not for one slow case of many.
func TestDeathsAreJudged(t *testing.T) {
	for _, c := range []struct {
		slow, all int
		fails     bool
	}{{0, 40, false}, {1, 40, false}, {4, 40, true}, {40, 40, true}, {5, 10, false}} {
		ta := newTally(1)
		for i := range c.all {
			d := time.Second
			if i < c.slow {
				d = 4 * time.Second
			}
			ta.served = append(ta.served, d)
		}
		if got := len(ta.judgeDeaths()) > 0; got != c.fails {
			t.Errorf("%d of %d slow: fails %v", c.slow, c.all, got)
		}
	}
}
