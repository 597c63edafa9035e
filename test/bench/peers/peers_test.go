package main

import (
	"context"
	"encoding/xml"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"
)

func TestHistogramIsWithinTwoPercent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		us := rapid.Int64Range(0, 1<<36).Draw(t, "us")
		var h histogram
		h.add(time.Duration(us) * time.Microsecond)
		got := h.quantile(0.5).Microseconds()
		if got < us || float64(got-us) > 0.02*float64(us)+1 {
			t.Fatalf("%d us is counted as %d us", us, got)
		}
	})
}

func TestHistogramQuantiles(t *testing.T) {
	var h histogram
	if h.quantile(0.99) != 0 {
		t.Error("an empty histogram has a quantile")
	}
	for i := range 1000 {
		h.add(time.Duration(i+1) * time.Millisecond)
	}
	for _, q := range []float64{0.1, 0.5, 0.99, 0.999} {
		want, got := q*1000, float64(h.quantile(q).Microseconds())/1e3
		if math.Abs(got-want) > 0.02*want+1 {
			t.Errorf("quantile %v is %.1f ms, want %.1f", q, got, want)
		}
	}
}

// stalling answers at once, but for one second in which it takes nothing.
type stalling struct {
	from time.Time
	done bool
}

func (s *stalling) Produce(_ context.Context, r *kgo.Record, promise func(*kgo.Record, error)) {
	if !s.done && time.Now().After(s.from) {
		s.done = true
		time.Sleep(time.Second)
	}
	promise(r, nil)
}

// Records that should have been sent while the server took none are late, each by
// what was left of the stall: coordinated omission would count one.
func TestLatencyCountsFromWhenARecordIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		r := &run{load: load{Topics: []string{"t"}, Rate: 100, Producers: 1, For: 4 * time.Second}, began: now, values: newValues(64, false)}
		r.paced(t.Context(), &stalling{from: now.Add(time.Second)}, 0)
		var n int64
		for i := range r.late.buckets {
			n += r.late.buckets[i].Load()
		}
		if n != 400 {
			t.Errorf("%d records are counted, not 400", n)
		}
		// A quarter came late, evenly up to one second.
		for q, want := range map[float64]time.Duration{0.5: 0, 0.875: 500 * time.Millisecond, 0.99: 960 * time.Millisecond} {
			if got := r.late.quantile(q); got < want-20*time.Millisecond || got > want+20*time.Millisecond {
				t.Errorf("quantile %v is %v, want about %v", q, got, want)
			}
		}
	})
}

// A server that never comes back: what was not sent counts as well.
func TestWhatWasNeverSentIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &run{load: load{Topics: []string{"t"}, Rate: 10, Producers: 1, For: time.Second}, began: time.Now(), values: newValues(64, false)}
		r.paced(t.Context(), stuck{}, 0)
		if got := r.late.quantile(0.5); got < catchUpLimit {
			t.Errorf("the median is %v, though nothing was taken for %v", got, 2*catchUpLimit)
		}
	})
}

type stuck struct{}

func (stuck) Produce(context.Context, *kgo.Record, func(*kgo.Record, error)) {
	time.Sleep(2 * catchUpLimit)
}

func TestRatioIsOfRoundsThatHaveBoth(t *testing.T) {
	r := &results{now: &session{}}
	for round, own := range map[int]float64{1: 10, 2: 20, 3: 30, 4: 1000} {
		r.add("w", "m", "MB/s", "chronik", round, own)
	}
	for round, other := range map[int]float64{1: 10, 2: 10, 3: 10} { // it failed in round 4
		r.add("w", "m", "MB/s", "kafka", round, other)
	}
	if got := median(r.Rows[0].ratios("kafka")); got != 2 {
		t.Errorf("ratio %v, want 2", got)
	}
	if got := r.Rows[0].ratios("nats"); got != nil {
		t.Errorf("a ratio to what was not measured: %v", got)
	}
}

// A later run of one workload replaces that and keeps the others.
func TestResultsAreReplacedByWorkload(t *testing.T) {
	dir := t.TempDir()
	b := &bench{rounds: 1}
	run := func(v float64, rounds int, workloads ...string) {
		r, err := openResults(dir, "throughput")
		if err != nil {
			t.Fatal(err)
		}
		r.begin("a machine", b, nil)
		for _, w := range workloads {
			for round := range rounds {
				r.add(w, "throughput", "MB/s", "chronik", round+1, v)
			}
		}
		if err := r.save(); err != nil {
			t.Fatal(err)
		}
	}
	run(1, 3, "a", "b")
	run(2, 1, "b")
	r, err := openResults(dir, "throughput")
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Rows) != 2 || r.Rows[0].median("chronik") != 1 || r.Rows[1].median("chronik") != 2 {
		t.Errorf("rows %+v %+v", r.Rows[0], r.Rows[1])
	}
}

func TestDocumentReplacesOnlyItsPart(t *testing.T) {
	kept, docs := t.TempDir(), t.TempDir()
	r, err := openResults(kept, "throughput")
	if err != nil {
		t.Fatal(err)
	}
	r.begin("a machine", &bench{rounds: 2}, nil)
	r.now.began = usage{} // what else this machine does is no matter here
	r.now.Load = "9 9 9"
	for round := 1; round <= 2; round++ {
		r.add(headlineThroughput, "throughput", "MB/s", "chronik", round, 30)
		r.add(headlineThroughput, "throughput", "MB/s", "kafka", round, 10)
		r.add(headlineThroughput, "throughput", "MB/s", "kafka-flush", round, 10)
	}
	if err := r.save(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(docs, "benchmarks.md")
	if err := os.WriteFile(file, []byte("before\n"+beginMark+"\nold\n"+endMark+"\nafter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it reads what it wrote
		if err := document(kept, docs); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got := string(text)
	if !strings.HasPrefix(got, "before\n"+beginMark) || !strings.HasSuffix(got, endMark+"\nafter\n") || strings.Contains(got, "\nold\n") {
		t.Errorf("around the marks: %s", got)
	}
	for _, want := range []string{
		"| kafka | 30.0 MB/s | 10.0 MB/s | **3.00** | 3.00, 3.00 | ≥ 1.5 | provisionally reached: 2 rounds, load average 9 9 9 |",
		"| kafka-flush | 30.0 MB/s | 10.0 MB/s | **3.00** | 3.00, 3.00 | ≥ 8 | provisionally missed: 2 rounds, load average 9 9 9 |",
		"not measured",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	svg, err := os.ReadFile(filepath.Join(docs, "bench-peers-throughput.svg"))
	if err != nil {
		t.Fatal(err)
	}
	if err := xml.Unmarshal(svg, new(any)); err != nil {
		t.Errorf("the plot is no XML: %v", err)
	}
}

func TestOthersShare(t *testing.T) {
	before := parseStat("cpu  100 50 50 800 0 0 0 0 0 0\ncpu0 1 1 1 1\n")
	before.own = time.Second
	after := parseStat("cpu  200 100 90 1000 100 5 5 0 0 0\n") // 2 s of 5 s busy
	after.own = 1500 * time.Millisecond
	if got, ok := after.others(before); !ok || got != 30 {
		t.Errorf("others took %v %%, %v; want 30", got, ok)
	}
	if _, ok := after.others(usage{}); ok {
		t.Error("a share of what was not known")
	}
	if u := parseStat("intr 1 2 3"); u.known {
		t.Error("a line without processor times was understood")
	}
}

func TestNodeThatEndsIsNotWaitedFor(t *testing.T) {
	n := &node{id: 1, addr: "127.0.0.1:1", log: filepath.Join(t.TempDir(), "log"), argv: []string{"sh", "-c", "echo why; exit 1"}}
	if err := n.start(); err != nil {
		t.Fatal(err)
	}
	err := n.listening(t.Context())
	if err == nil || !strings.Contains(err.Error(), "ended by itself") {
		t.Errorf("%v", err)
	}
	if got := n.tail(); got != "why\n" {
		t.Errorf("it said %q", got)
	}
	n.kill()
}

func TestProvisional(t *testing.T) {
	quiet, busy := quietPercent, quietPercent+1
	for _, c := range []struct {
		others *float64
		rounds int
		want   string
	}{
		{&quiet, enoughRounds, ""},
		{&quiet, enoughRounds - 1, "4 rounds"},
		{&busy, enoughRounds, "other work took 11 % of the machine"},
		{nil, enoughRounds, "load average 1 2 3"},
	} {
		s := &session{Others: c.others, Load: "1 2 3"}
		if got := s.provisional(c.rounds); got != c.want {
			t.Errorf("%d rounds: %q, want %q", c.rounds, got, c.want)
		}
	}
}

func TestVerdicts(t *testing.T) {
	quiet := 0.0
	for _, target := range targets {
		r := &results{Part: target.part, now: &session{Others: &quiet}}
		for _, c := range []struct {
			ratio float64
			want  string
		}{{target.want * 0.9, "reached"}, {target.want, "reached"}, {target.want * 1.1, "reached"}} {
			switch {
			case target.least && c.ratio < target.want, !target.least && c.ratio > target.want:
				c.want = "**missed**"
			}
			r.Rows = nil
			for round := range enoughRounds {
				r.add(target.workload, target.metric, "", "chronik", round, c.ratio)
				r.add(target.workload, target.metric, "", target.against, round, 1)
			}
			var w strings.Builder
			writeTargets(&w, []*results{r})
			found := false
			for line := range strings.Lines(w.String()) {
				found = found || strings.Contains(line, "| "+target.against+" |") && strings.Contains(line, "| "+c.want+" |")
			}
			if !found {
				t.Errorf("%s against %s at %v: no %s in\n%s", target.title, target.against, c.ratio, c.want, w.String())
			}
		}
	}
}

func TestWhatIsEnoughByItself(t *testing.T) {
	quiet := 0.0
	want := target{title: "t", part: "p", workload: "w", metric: "m", against: "kafka", least: true, want: 2, enough: 1000}
	for own, verdict := range map[float64]string{999: "**missed**", 1000: "reached"} {
		r := &results{Part: "p", now: &session{Others: &quiet}}
		for round := range enoughRounds {
			r.add("w", "m", "", "chronik", round, own)
			r.add("w", "m", "", "kafka", round, 1500)
		}
		var w strings.Builder
		want.write(&w, r.Rows[0])
		if !strings.HasSuffix(w.String(), "| ≥ 2, or 1,000 itself | "+verdict+" |\n") {
			t.Errorf("%v: %s", own, w.String())
		}
	}
}

func TestPomHasTheVersionThatIsSaid(t *testing.T) {
	if !strings.Contains(string(pom), "<kafka.version>"+kafkaVersion+"</kafka.version>") {
		t.Errorf("pom.xml does not fetch Kafka %s", kafkaVersion)
	}
}

func TestTargetsNameParts(t *testing.T) {
	for _, target := range targets {
		if _, err := choose(target.part); err != nil {
			t.Error(err)
		}
	}
	if _, err := choose("throughput,nothing"); err == nil {
		t.Error("an unknown part was accepted")
	}
}

func TestValues(t *testing.T) {
	v := newValues(100, false)
	due := time.Unix(5, 6)
	if a, b := v.at(1), v.at(2); string(a) == string(b) || len(a) != 100 {
		t.Error("records are not distinct")
	}
	if b := v.stamped(1, due); string(b[:8]) == string(v.at(1)[:8]) || string(b[8:]) != string(v.at(1)[8:]) {
		t.Error("only the first 8 bytes are the stamp")
	}
	if !strings.Contains(string(newValues(1024, true).at(0)), "quick brown") {
		t.Error("nothing to compress")
	}
}
