package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	beginMark = "<!-- bench peers: begin -->"
	endMark   = "<!-- bench peers: end -->"
)

// others are the peers that Chronik is compared with, in the order of the columns.
var others = []string{"kafka", "kafka-flush", "nats"}

// document writes the results that are kept between the marks of benchmarks.md, and the plots.
func document(kept, docs string) error {
	var all []*results
	for _, p := range parts {
		r, err := openResults(kept, p.name)
		if err != nil {
			return err
		}
		if len(r.Rows) > 0 || len(r.Skipped) > 0 {
			all = append(all, r)
		}
	}
	file := filepath.Join(docs, "benchmarks.md")
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok1 := bytes.Cut(text, []byte(beginMark))
	_, after, ok2 := bytes.Cut(rest, []byte(endMark))
	if !ok1 || !ok2 {
		return fmt.Errorf("%s: no %s and %s", file, beginMark, endMark)
	}
	var w strings.Builder
	w.Write(before)
	fmt.Fprintf(&w, "%s\n", beginMark)
	writeTargets(&w, all)
	for _, r := range all {
		name, err := r.plot(docs)
		if err != nil {
			return err
		}
		r.write(&w, name)
	}
	writeSettings(&w, all)
	fmt.Fprint(&w, endMark)
	w.Write(after)
	return os.WriteFile(file, []byte(w.String()), 0o644)
}

// target is what a ratio to another server must reach, or Chronik's own value if it is against nobody.
type target struct {
	title, part, workload, metric string
	against                       string
	least                         bool // at least want; else at most
	want                          float64
	enough                        float64 // what Chronik's own value may reach instead, if not 0
}

var targets = []target{
	{"1 KiB, 12 partitions, acks=all, throughput", "throughput", headlineThroughput, "throughput", "kafka", true, 1.5, 0},
	{"the same", "throughput", headlineThroughput, "throughput", "kafka-flush", true, 8, 0},
	{"the same", "throughput", headlineThroughput, "throughput", "nats", true, 3, 0},
	{"100 B, 1,000 partitions, acks=all, throughput", "partitions", headlinePartitions, "throughput", "kafka", true, 2, 0},
	{"the same", "partitions", headlinePartitions, "throughput", "kafka-flush", true, 20, 0},
	{"p99 produce latency at 50 % of the other's maximum", "latency", "50 % of kafka's maximum", "produce p99", "kafka", false, 0.5, 0},
	{"the same", "latency", "50 % of kafka-flush's maximum", "produce p99", "kafka-flush", false, 0.1, 0},
	{"cold catch-up read, fan-out 5", "cold", "cold, fan-out 5", "all consumers together", "kafka", true, 1.2, 0},
	{"leader killed to the next acknowledged record", "failover", headlineFailover, "to the next acknowledged record", "kafka", false, 0.5, 0},
	{"node restart after kill -9 to caught up", "restart", "", "exec to caught up", "kafka", false, 0.3, 0},
	{"exec to the first acknowledged record, one node", "start", headlineStart, "exec to the first acknowledged record", "kafka", false, 0.1, 0},
	{"memory (RSS) a node under the load of the first line", "throughput", headlineThroughput, "RSS of a node, peak", "kafka", false, 0.3, 0},
	{"256 B, one node, acks=1", "standalone", headlineStandalone, "records", "kafka", true, 2, 300_000},
	{"300 idle partitions: of a core, a node", "idle", idleWorkload(300), "of a core, a node", "", false, 3, 0},
	{"the same: RSS of a node", "idle", idleWorkload(300), "RSS of a node", "", false, 143, 0}, // 150 MB
	{"3,000 idle partitions: of a core, a node", "idle", idleWorkload(3000), "of a core, a node", "", false, 6, 0},
	{"the same: memory of a replica", "idle", idleWorkload(3000), perReplica, "", false, 20, 0},
}

// find is the row of a part; without a workload, of the largest fill.
func find(all []*results, part, workload, metric string) *row {
	var found *row
	for _, r := range all {
		if r.Part != part {
			continue
		}
		for _, w := range r.Rows {
			if w.Metric == metric && (w.Workload == workload || workload == "" && (found == nil || w.Session.Bytes > found.Session.Bytes)) {
				found = w
			}
		}
	}
	return found
}

const (
	enoughRounds = 5
	quietPercent = 10.0 // of the machine may go to other work
)

// provisional says why a ratio is not to be trusted yet; empty if it is.
func (s *session) provisional(rounds int) string {
	var why []string
	if rounds < enoughRounds {
		why = append(why, fmt.Sprintf("%d rounds", rounds))
	}
	switch {
	case s.Others == nil:
		why = append(why, "load average "+s.Load)
	case *s.Others > quietPercent:
		why = append(why, fmt.Sprintf("other work took %.0f %% of the machine", *s.Others))
	}
	return strings.Join(why, ", ")
}

func writeTargets(w *strings.Builder, all []*results) {
	fmt.Fprintf(w, "### What was wanted, and what came of it\n\n")
	fmt.Fprintf(w, "A ratio is the median of the rounds' ratios, Chronik's value over the other's of the same round; against nobody, Chronik's own value counts. It is provisional with fewer than %d rounds, or\n"+
		"when other work took more than %.0f %% of the machine's processor time: a JVM that is starved compiles late, so that Kafka suffers most.\n\n", enoughRounds, quietPercent)
	fmt.Fprintf(w, "| workload | against | Chronik | the other | ratio | rounds: lowest, highest | wanted | |\n|---|---|---:|---:|---:|---:|---:|---|\n")
	for _, t := range targets {
		t.write(w, find(all, t.part, t.workload, t.metric))
	}
	fmt.Fprintln(w)
}

// write is the target's line; found is nil if it was never measured.
func (t *target) write(w *strings.Builder, found *row) {
	sign := "≤"
	if t.least {
		sign = "≥"
	}
	wanted := fmt.Sprintf("%s %g", sign, t.want)
	if t.enough > 0 {
		wanted += fmt.Sprintf(", or %s itself", thousands(int64(t.enough)))
	}
	var values []float64
	title := t.title
	switch {
	case found == nil:
	case t.against == "":
		values = slices.Collect(maps.Values(found.Values["chronik"]))
	default:
		values = found.ratios(t.against)
		if t.workload == "" {
			title += " (" + found.Workload + ")"
		}
	}
	if len(values) == 0 {
		fmt.Fprintf(w, "| %s | %s | | | | | %s | not measured |\n", title, t.against, wanted)
		return
	}
	v, own := median(values), found.median("chronik")
	verdict := "**missed**"
	if t.least == (v >= t.want) || v == t.want || t.enough > 0 && own >= t.enough {
		verdict = "reached"
	}
	if why := found.Session.provisional(len(values)); why != "" {
		verdict = fmt.Sprintf("provisionally %s: %s", strings.Trim(verdict, "*"), why)
	}
	other, ratio := "", ""
	if t.against != "" {
		other, ratio = number(found.median(t.against))+" "+found.Unit, "**"+number(v)+"**"
	}
	fmt.Fprintf(w, "| %s | %s | %s %s | %s | %s | %s, %s | %s | %s |\n", title, t.against, number(own), found.Unit,
		other, ratio, number(slices.Min(values)), number(slices.Max(values)), wanted, verdict)
}

// write makes the table of a part: medians, and Chronik's ratio to each other server.
func (r *results) write(w *strings.Builder, plot string) {
	title := r.Part
	for _, p := range parts {
		if p.name == r.Part {
			title = p.title
		}
	}
	fmt.Fprintf(w, "### %s: %s\n\n", r.Part, title)
	var sessions []*session
	for _, row := range r.Rows {
		if !slices.ContainsFunc(sessions, func(s *session) bool { return s.When.Equal(row.Session.When) }) {
			sessions = append(sessions, row.Session)
		}
	}
	for _, s := range sessions {
		others := ""
		if s.Others != nil {
			others = fmt.Sprintf(", other work took %.0f %% of the machine", *s.Others)
		}
		fmt.Fprintf(w, "%s UTC: %d rounds, %g s each after %g s of warm-up, load average at the start %s%s.\n",
			s.When.Format("2006-01-02 15:04"), s.Rounds, s.Seconds, s.Warm, s.Load, others)
	}
	if len(r.Rows) > 0 {
		fmt.Fprintf(w, "\n| workload | metric | Chronik | Kafka | Kafka flush | NATS | ÷ Kafka | ÷ Kafka flush | ÷ NATS |\n|---|---|---:|---:|---:|---:|---:|---:|---:|\n")
	}
	for _, row := range r.Rows {
		fmt.Fprintf(w, "| %s | %s, %s | %s |", row.Workload, row.Metric, row.Unit, cell(row.Values["chronik"], row.median("chronik")))
		for _, o := range others {
			fmt.Fprintf(w, " %s |", cell(row.Values[o], row.median(o)))
		}
		for _, o := range others {
			rs := row.ratios(o)
			fmt.Fprintf(w, " %s |", cell(rs, median(rs)))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w)
	if plot != "" {
		fmt.Fprintf(w, "![%s](%s)\n\n", title, plot)
	}
	for _, s := range r.Skipped {
		fmt.Fprintf(w, "- Not measured: %s.\n", strings.TrimSuffix(s, "."))
	}
	if len(r.Skipped) > 0 {
		fmt.Fprintln(w)
	}
}

// cell is empty if nothing was measured.
func cell[V []float64 | map[int]float64](values V, v float64) string {
	if len(values) == 0 {
		return ""
	}
	return number(v)
}

// writeSettings says what ran, as of the last session that had each.
func writeSettings(w *strings.Builder, all []*results) {
	about, machines := map[string]string{}, map[string]bool{}
	for _, r := range all {
		for _, row := range r.Rows {
			machines[row.Session.Machine] = true
			for name, s := range row.Session.Peers {
				about[name] = s
			}
		}
	}
	fmt.Fprintf(w, "### Machine, versions and settings\n\n")
	for m := range machines {
		fmt.Fprintf(w, "- %s; every server and the client share it; loopback.\n", m)
	}
	for _, name := range append([]string{"chronik"}, others...) {
		if about[name] != "" {
			fmt.Fprintf(w, "- %s: %s.\n", name, about[name])
		}
	}
	fmt.Fprintf(w, "- Client: franz-go, idempotent with acks=all, linger %v (0 at fixed rates), batches of at most %d KiB, %d requests in flight to a broker, %d MiB outstanding in all, records to partitions in turn.\n",
		lingerTime, batchBytes>>10, inFlight, bufferBytes>>20)
	fmt.Fprintf(w, "- Records are windows into random bytes; with a codec half of each is text. Each cluster starts on an empty directory, one at a time.\n")
}

// number shows three digits that mean something.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 1000:
		return thousands(int64(math.Round(v)))
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 1:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3g", v)
	}
}

func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

var errNothing = errors.New("nothing to plot")
