package main

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"10MB": 10e6, "1GB": 1e9, "64MiB": 64 << 20, " 3 KiB": 3 << 10, "5": 5, "7B": 7, "2KB": 2000, "1GiB": 1 << 30,
		"": 0, "MB": 0, "-1MB": 0, "0": 0, "1.5GB": 0, "1TB": 0, "99999999999999GB": 0,
	} {
		got, err := parseSize(s)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v; want %d", s, got, err, want)
		}
	}
}

func TestThousands(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0", 7: "7", 100: "100", 1000: "1,000", 50000: "50,000", 100000: "100,000", 1234567: "1,234,567", -1000: "-1,000", -100: "-100",
	} {
		if got := thousands(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// A quantile is never told smaller than it was: the bound of the bucket it lies in.
func TestHistogramQuantiles(t *testing.T) {
	before := metrics{`x_seconds_bucket{le="0.001"}`: 5, `x_seconds_bucket{le="0.002"}`: 5, `x_seconds_bucket{le="+Inf"}`: 5, "x_seconds_count": 5}
	after := metrics{
		`x_seconds_bucket{le="0.001"}`: 95, `x_seconds_bucket{le="0.002"}`: 104, `x_seconds_bucket{le="0.004"}`: 105, `x_seconds_bucket{le="+Inf"}`: 105,
		"x_seconds_count": 105, `y_seconds_bucket{le="9"}`: 9,
	}
	got := histogram(before, after, "x_seconds")
	want := quantiles{Count: 100, P50: 1, P99: 2, P999: 4, Max: 4}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	after["x_max_seconds"] = 0.003
	if got := histogram(before, after, "x_seconds"); got.Max != 3 {
		t.Errorf("max %v, told is 3 ms", got.Max)
	}
	if got := histogram(after, after, "x_seconds"); got.Count != 0 || got.P99 != 0 {
		t.Errorf("nothing happened: %+v", got)
	}
}

func TestLatencyBetween(t *testing.T) {
	l := &load{bytes: 100}
	for i := range 100 {
		l.samples = append(l.samples, sample{at: time.Duration(i) * 10 * time.Millisecond, took: time.Duration(i+1) * time.Millisecond})
	}
	got := l.between(window{0, 250 * time.Millisecond}, window{750 * time.Millisecond, time.Second})
	if got.Records != 50 || got.RecordsPerSec != 100 || got.BytesPerSec != 10000 || got.Max != 100 || got.P50 != 25 {
		t.Errorf("%+v", got)
	}
}

func sweepOf(rows ...[4]float64) *thresholdSweep {
	s := &thresholdSweep{Away: 8}
	for _, r := range rows {
		s.Rows = append(s.Rows, thresholdRow{Threshold: int(r[0]), Load: latency{RecordsPerSec: r[1], P99: r[2]}, Rejoin: r[3]})
	}
	return s
}

func TestChooseThreshold(t *testing.T) {
	for name, c := range map[string]struct {
		s    *thresholdSweep
		want int
	}{
		"the small one costs too much, the large one rejoins late": {sweepOf(
			[4]float64{100, 600, 80, 0.2}, [4]float64{1000, 950, 12, 0.3}, [4]float64{10000, 1000, 10, 0.31}, [4]float64{100000, 1000, 10, 2}), 10000},
		"all alike: the least work":             {sweepOf([4]float64{100, 1000, 10, 1}, [4]float64{1000, 1000, 10, 1}), 1000},
		"latency decides":                       {sweepOf([4]float64{100, 1000, 40, 0.1}, [4]float64{1000, 1000, 10, 1}), 1000},
		"the fastest, when none has both":       {sweepOf([4]float64{100, 1000, 40, 0.1}, [4]float64{1000, 500, 10, 1}), 100},
		"in any order":                          {sweepOf([4]float64{1000, 1000, 10, 1}, [4]float64{100, 1000, 10, 1}), 1000},
		"a single one":                          {sweepOf([4]float64{5, 1, 1, 1}), 5},
		"much sooner beats a little throughput": {sweepOf([4]float64{100, 920, 11, 0.2}, [4]float64{1000, 1000, 10, 1}), 100},
	} {
		if got, _ := c.s.choose(); got.Threshold != c.want {
			t.Errorf("%s: %d, want %d", name, got.Threshold, c.want)
		}
	}
	busy := sweepOf([4]float64{100, 1000, 10, 0.2}, [4]float64{1000, 1000, 10, 1})
	busy.Rows[0].SnapshotSeconds = mostWork + 1
	if got, _ := busy.choose(); got.Threshold != 1000 {
		t.Errorf("%d, which does nothing but snapshots", got.Threshold)
	}
	text := sweepOf([4]float64{100, 600, 80, 0.2}, [4]float64{100000, 1000, 10, 0.3}).advise()
	if !strings.HasPrefix(text, "Choose 100,000: it has 100 % of the best throughput") || !strings.Contains(text, "With 100 it is 60 %") {
		t.Error(text)
	}
	if (&thresholdSweep{}).advise() != "" {
		t.Error("advice from nothing")
	}
}

// The plot is well-formed, has both curves, and names thresholds with separators.
func TestPlot(t *testing.T) {
	for name, s := range map[string]*thresholdSweep{
		"five": sweepOf([4]float64{100, 600, 80, 0.2}, [4]float64{1000, 900, 1, 0.2}, [4]float64{10000, 1000, 1, 0.3},
			[4]float64{50000, 1000, 1, 0.7}, [4]float64{100000, 1000, 1, 1.4}),
		"one": sweepOf([4]float64{100000, 1, 1, 0}), "none": {},
	} {
		svg := s.plot()
		d := xml.NewDecoder(strings.NewReader(svg))
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if n := strings.Count(svg, "<polyline"); n != 2 && len(s.Rows) > 0 {
			t.Errorf("%s: %d curves", name, n)
		}
		if len(s.Rows) > 0 && !strings.Contains(svg, ">100,000<") || strings.Contains(svg, "NaN") {
			t.Errorf("%s: %s", name, svg)
		}
	}
	x := axis{low: 100, high: 100000, from: 0, to: 300, log: true}
	if got := x.at(1000); math.Abs(got-100) > 1e-9 {
		t.Errorf("1,000 is at %v of a logarithmic axis, want a third", got)
	}
	for v, want := range map[float64]float64{0: 1, 0.3: 0.5, 1: 1, 1.1: 2, 2.2: 2.5, 4: 5, 13400: 20000, 20000: 20000, 7: 10} {
		if got := ceiling(v); math.Abs(got-want) > 1e-9*want {
			t.Errorf("ceiling of %v is %v, want %v", v, got, want)
		}
	}
}

// The tables go between the markers, again and again, and nothing else changes.
func TestWriteDocs(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, benchmarksFile)
	r := &snapshotReport{CPUs: 2, Load: "0.50", Thresholds: sweepOf([4]float64{100, 600, 80, 0.2}, [4]float64{100000, 1000, 10, 0.3})}
	r.Thresholds.Advice = r.Thresholds.advise()
	if err := r.writeDocs(dir); err == nil {
		t.Error("no file, no error")
	}
	for _, text := range []string{"nothing", "x" + markerEnd + markerBegin} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := r.writeDocs(dir); err == nil {
			t.Errorf("%q: no markers, no error", text)
		}
	}
	if err := os.WriteFile(file, []byte("# A\n"+markerBegin+"\nstale text\n"+markerEnd+"\n\n# B\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var texts [2]string
	for i := range texts {
		if err := r.writeDocs(dir); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		texts[i] = string(b)
	}
	got := texts[0]
	if got != texts[1] {
		t.Error("written twice it differs")
	}
	if !strings.HasPrefix(got, "# A\n"+markerBegin+"\n") || !strings.HasSuffix(got, markerEnd+"\n\n# B\n") || strings.Contains(got, "stale text") {
		t.Error(got)
	}
	for _, want := range []string{"| 100,000 | 1,000 |", "**Choose 100,000", plotFile} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
	if svg, err := os.ReadFile(filepath.Join(dir, plotFile)); err != nil || !strings.HasPrefix(string(svg), "<svg") {
		t.Errorf("plot: %v", err)
	}
}

func TestBenchSnapshotFlags(t *testing.T) {
	for _, args := range [][]string{
		{"--only", "sizes,nothing"}, {"--sizes", "10XB"}, {"--thresholds", "0"}, {"--duration", "1ms"}, {"--rounds", "0"},
	} {
		var out, errs strings.Builder
		if code := run(t.Context(), append([]string{"bench", "snapshot"}, args...), nil, &out, &errs); code != 2 {
			t.Errorf("%v: exit %d, %s", args, code, errs.String())
		}
	}
}
