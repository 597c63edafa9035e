package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// snapshotBench is the command's flags.
type snapshotBench struct {
	only       []string
	sizes      []string
	thresholds []int
	duration   time.Duration
	away       time.Duration
	rounds     int
	partitions int
	rate       int
	limit      string
	dir        string
	json       string
	docs       string
}

// The parts of the measurement, in the order in which they run.
var benchParts = []string{"stall", "sizes", "yield", "rejoin", "thresholds"}

// snapshotReport is what was measured; a part that did not run is null.
type snapshotReport struct {
	When       time.Time       `json:"when"`
	CPUs       int             `json:"cpus"`
	Stall      []stallRow      `json:"stall,omitempty"`
	Sizes      []sizeRow       `json:"sizes,omitempty"`
	Yield      *yieldResult    `json:"yield,omitempty"`
	Rejoin     *rejoinResult   `json:"rejoin,omitempty"`
	Thresholds *thresholdSweep `json:"thresholds,omitempty"`
	// Load is the machine's load average when the run began: others' work spoils times.
	Load string `json:"load_average"`
}

func newBenchSnapshot() *cobra.Command {
	var f snapshotBench
	c := &cobra.Command{
		Use: "snapshot", Short: "what snapshots cost, on throw-away clusters of real processes", Args: cobra.NoArgs,
		Long: "Starts throw-away clusters of three processes and measures what snapshots cost: the apply loop's stall with a million group offsets " +
			"and with ten thousand partitions (stall), creation, transfer and install by size of the state (sizes), the latency of produce while snapshots " +
			"are taken and sent (yield), a hundred partitions that come back at once (rejoin), and a sweep over snapshot.threshold_entries (thresholds), " +
			"which ends in advice. Tables go to stdout, progress to stderr.",
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	fl := c.Flags()
	fl.StringSliceVar(&f.only, "only", benchParts, "the parts to run")
	fl.StringSliceVar(&f.sizes, "sizes", []string{"10MB", "100MB", "1GB"}, "sizes of the state, for sizes")
	fl.IntSliceVar(&f.thresholds, "thresholds", []int{100, 1000, 10000, 50000, 100000}, "values of snapshot.threshold_entries, for thresholds")
	fl.DurationVar(&f.duration, "duration", 15*time.Second, "how long the load of one threshold is measured")
	fl.DurationVar(&f.away, "away", 8*time.Second, "how long a node is away, for thresholds")
	fl.IntVar(&f.rounds, "rounds", 3, "interleaved rounds, for yield")
	fl.IntVar(&f.partitions, "partitions", 100, "partitions that come back at once, for rejoin")
	fl.IntVar(&f.rate, "rate", 500, "records a second of the load whose latency is judged, for yield and rejoin")
	fl.StringVar(&f.limit, "limit", "32MiB", "snapshot.max_bytes_per_second, for yield")
	fl.StringVar(&f.dir, "dir", ".", "a directory on the disk to measure")
	fl.StringVar(&f.json, "json", "", "write the figures to this file as JSON")
	fl.StringVar(&f.docs, "docs", "", "write the tables into DIR/benchmarks.md, between its markers, and a plot beside it")
	fl.StringVar(&f.docs, "report", "", "the same as --docs")
	return c
}

func (f *snapshotBench) check() error {
	for _, p := range f.only {
		if !slices.Contains(benchParts, p) {
			return usagef("--only %q: want some of %s", p, strings.Join(benchParts, ", "))
		}
	}
	for _, s := range f.sizes {
		if _, err := parseSize(s); err != nil {
			return err
		}
	}
	for _, t := range f.thresholds {
		if t < 1 {
			return usagef("--thresholds %d: want 1 or higher", t)
		}
	}
	if f.duration < time.Second || f.away < 0 || f.rounds < 1 || f.partitions < 1 || f.rate < 1 {
		return usagef("--duration is at least 1s, --rounds, --partitions and --rate at least 1")
	}
	if f.docs != "" {
		return checkMarkers(filepath.Join(f.docs, benchmarksFile))
	}
	return nil
}

// parseSize reads 10MB, 1GB, 64MiB or a plain number of bytes.
func parseSize(s string) (int64, error) {
	units := []struct {
		name  string
		bytes int64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}, {"", 1}}
	for _, u := range units {
		text, ok := strings.CutSuffix(strings.TrimSpace(s), u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		if err != nil || n < 1 || n > (1<<50)/u.bytes {
			break
		}
		return n * u.bytes, nil
	}
	return 0, usagef("size %q: want a number with B, KB, MB, GB, KiB, MiB or GiB, like 100MB", s)
}

func (f *snapshotBench) run(c *cobra.Command) error {
	if err := f.check(); err != nil {
		return err
	}
	ctx, began := c.Context(), time.Now()
	r := newSnapshotReport()
	parts := map[string]func(context.Context) error{
		"stall":      func(ctx context.Context) (err error) { r.Stall, err = f.stall(ctx); return err },
		"sizes":      func(ctx context.Context) (err error) { r.Sizes, err = f.measureSizes(ctx); return err },
		"yield":      func(ctx context.Context) (err error) { r.Yield, err = f.yield(ctx); return err },
		"rejoin":     func(ctx context.Context) (err error) { r.Rejoin, err = f.rejoin(ctx); return err },
		"thresholds": func(ctx context.Context) (err error) { r.Thresholds, err = f.sweep(ctx); return err },
	}
	for _, p := range benchParts {
		if !slices.Contains(f.only, p) {
			continue
		}
		if err := parts[p](ctx); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	f.say("took %.0f s", time.Since(began).Seconds())
	fmt.Fprint(c.OutOrStdout(), r.markdown())
	if f.json != "" {
		b, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(f.json, append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	if f.docs != "" {
		return r.writeDocs(f.docs)
	}
	return nil
}

// say tells the progress.
func (f *snapshotBench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
