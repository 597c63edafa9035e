package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

const (
	benchmarksFile = "benchmarks.md"
	plotFile       = "bench-snapshot.svg"
	markerBegin    = "<!-- bench snapshot: begin -->"
	markerEnd      = "<!-- bench snapshot: end -->"
)

func newSnapshotReport() *snapshotReport {
	r := &snapshotReport{When: time.Now().UTC(), CPUs: runtime.NumCPU()}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		r.Load, _, _ = strings.Cut(string(b), " ")
	}
	return r
}

// thousands writes a number with separators: 100,000.
func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	digits := strings.TrimPrefix(s, "-")
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return s[:len(s)-len(strings.TrimPrefix(s, "-"))] + digits
}

// markdownTable aligns numbers to the right; the first column is words.
func markdownTable(w *strings.Builder, header []string, rows [][]string) {
	fmt.Fprintf(w, "\n| %s |\n|---|%s\n", strings.Join(header, " | "), strings.Repeat("---:|", len(header)-1))
	for _, r := range rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(r, " | "))
	}
}

func ms(v float64) string      { return fmt.Sprintf("%.3f", v) }
func seconds(v float64) string { return fmt.Sprintf("%.2f", v) }
func mb(v float64) string      { return fmt.Sprintf("%.1f", v/1e6) }

// markdown is the report.
func (r *snapshotReport) markdown() string {
	var w strings.Builder
	fmt.Fprintf(&w, "Run of %s on %d CPUs, load average %s at the start.\n", r.When.Format("2006-01-02 15:04 MST"), r.CPUs, orDash(r.Load))
	r.stallTable(&w)
	r.sizeTable(&w)
	r.yieldTable(&w)
	r.rejoinTable(&w)
	r.thresholdTable(&w)
	return w.String()
}

func (r *snapshotReport) stallTable(w *strings.Builder) {
	if len(r.Stall) == 0 {
		return
	}
	fmt.Fprint(w, "\n### What a capture makes apply wait\n\nA capture and the slowest of the four applies after it, while a checkpoint is encoded, compressed and written all the time; "+
		"*quiet* is the slowest of four applies without captures. Milliseconds.\n")
	var rows [][]string
	for _, s := range r.Stall {
		rows = append(rows, []string{
			s.State, thousands(int64(s.Stall.Count)), ms(s.Stall.P50), ms(s.Stall.P99), "**" + ms(s.Stall.P999) + "**", ms(s.Stall.Max),
			ms(s.Capture.P999), ms(s.Quiet.P999), ms(s.Quiet.Max),
		})
	}
	markdownTable(w, []string{"state", "captures", "p50", "p99", "p99.9", "max", "capture alone, p99.9", "quiet p99.9", "quiet max"}, rows)
}

func (r *snapshotReport) sizeTable(w *strings.Builder) {
	if len(r.Sizes) == 0 {
		return
	}
	fmt.Fprint(w, "\n### By size of the state\n\nOne partition, three processes. The first snapshot syncs what was written since the start, the later ones run under load; "+
		"a follower whose disk was wiped receives all of it. The stall is from the leader's own histogram, whose buckets are wide: upper bounds.\n")
	var rows [][]string
	for _, s := range r.Sizes {
		rows = append(rows, []string{
			s.Size, fmt.Sprintf("%.3f", s.Create), fmt.Sprintf("%.3f", s.Again), seconds(s.Receive), mb(float64(s.Sent)), mb(float64(s.Sent) / max(s.Receive, 1e-9)),
			fmt.Sprintf("%.3f", s.Install), thousands(int64(s.Stall.Count)), ms(s.Stall.P50), ms(s.Stall.P99), ms(s.Stall.P999), ms(s.Stall.Max),
		})
	}
	markdownTable(w, []string{
		"state", "first snapshot, s", "later ones, s", "transfer, s", "MB received", "MB/s", "install, s",
		"captures", "stall p50, ms", "p99", "p99.9", "max",
	}, rows)
}

func (r *snapshotReport) yieldTable(w *strings.Builder) {
	y := r.Yield
	if y == nil {
		return
	}
	fmt.Fprintf(w, "\n### Producing while snapshots are taken and sent\n\n%d interleaved rounds; `snapshot.max_bytes_per_second` is %s, every group takes a snapshot each second while a wiped node receives one (%s MB/s), %.0f were taken.\n",
		y.Rounds, y.Limit, mb(y.SentPerSecond), y.Taken)
	latencies(w, []string{"without", "with"}, []latency{y.Without, y.With})
	fmt.Fprintf(w, "\nThe p99 with snapshots is **%.2f times** that without. %s\n", y.Ratio, fsyncs(y.FsyncWithout, y.FsyncWith))
}

// fsyncs says what the raftlog's fdatasync took, by upper bounds of its buckets.
func fsyncs(before, after quantiles) string {
	return fmt.Sprintf("The raftlog's fdatasync took p50 %s and p99 %s ms before, p50 %s and p99 %s ms meanwhile, at most.",
		ms(before.P50), ms(before.P99), ms(after.P50), ms(after.P99))
}

func latencies(w *strings.Builder, names []string, ls []latency) {
	var rows [][]string
	for i, l := range ls {
		rows = append(rows, []string{names[i], thousands(int64(l.Records)), ms(l.P50), ms(l.P99), ms(l.P999), ms(l.Max)})
	}
	markdownTable(w, []string{"produce latency, ms", "records", "p50", "p99", "p99.9", "max"}, rows)
}

func (r *snapshotReport) rejoinTable(w *strings.Builder) {
	j := r.Rejoin
	if j == nil {
		return
	}
	fmt.Fprintf(w, "\n### %s partitions come back at once\n\nA node of three is wiped and started again under load: after %s s it is a voter of every group again (%s MB received, at most %d transfers at once, %d leaders lost).\n",
		thousands(int64(j.Partitions)), seconds(j.Seconds), mb(j.Received), j.MostAtOnce, j.LeadersLost)
	latencies(w, []string{"before", "during"}, []latency{j.Before, j.During})
	fmt.Fprintf(w, "\nThe p99 meanwhile is **%.2f times** that before. %s\n", j.Ratio, fsyncs(j.FsyncBefore, j.FsyncDuring))
}

func (r *snapshotReport) thresholdTable(w *strings.Builder) {
	t := r.Thresholds
	if t == nil {
		return
	}
	fmt.Fprintf(w, "\n### Which threshold\n\nOne partition, %d clients, records of 256 bytes in batches of one, %.0f s with three nodes; then a node is away for %.0f s, and comes back with its disk once the load has ended.\n",
		sweepClients, t.Seconds, t.Away)
	var rows [][]string
	for _, v := range t.Rows {
		rows = append(rows, []string{
			thousands(int64(v.Threshold)), thousands(int64(v.Load.RecordsPerSec)), fmt.Sprintf("%.2f", v.Load.P50), fmt.Sprintf("%.2f", v.Load.P99),
			thousands(int64(v.Snapshots)), seconds(v.SnapshotSeconds), mb(v.RaftlogLive), mb(v.RaftlogBytes), mb(v.DiskBytes),
			seconds(v.Rejoin), mb(v.Received), thousands(int64(v.Replayed)),
		})
	}
	markdownTable(w, []string{
		"threshold", "records/s", "p50, ms", "p99, ms", "snapshots", "s of snapshots a minute", "raftlog live, MB", "raftlog files, MB", "disk, MB",
		"rejoin, s", "MB received", "entries replayed",
	}, rows)
	fmt.Fprintf(w, "\n**%s**\n", t.Advice)
}

func checkMarkers(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return withHint(err, "--docs names the directory that has "+benchmarksFile)
	}
	begin, end := strings.Index(string(text), markerBegin), strings.Index(string(text), markerEnd)
	if begin < 0 || end < begin {
		return withHint(fmt.Errorf("%s: no place for the tables", file), "it takes the lines "+markerBegin+" and "+markerEnd)
	}
	return nil
}

// writeDocs puts the report between the markers of dir's benchmarks.md, and the plot beside it.
func (r *snapshotReport) writeDocs(dir string) error {
	file := filepath.Join(dir, benchmarksFile)
	if err := checkMarkers(file); err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	head, rest, _ := strings.Cut(string(text), markerBegin)
	_, tail, _ := strings.Cut(rest, markerEnd)
	body := r.markdown()
	if r.Thresholds != nil {
		body += fmt.Sprintf("\n![throughput and rejoin time by threshold](%s)\n", plotFile)
		if err := os.WriteFile(filepath.Join(dir, plotFile), []byte(r.Thresholds.plot()), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(file, []byte(head+markerBegin+"\n"+body+markerEnd+tail), 0o644)
}
