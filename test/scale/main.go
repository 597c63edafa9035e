// Command scale measures what partitions cost a cluster of three nodes that does nothing: for each number
// of partitions a fresh cluster, the time to create them, CPU, memory and traffic of a node at
// rest, the size of the metadata, the time until every partition is led again after kill -9 of a node, and the time
// of that node's return.
//
//	go run ./test/scale [-partitions 10,100,1000,3000] [-seconds 20] [-docs docs/scaling.md]
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// point is what was measured with one number of partitions. What is of a node is the median of three.
type point struct {
	Partitions int `json:"partitions"`
	// CreateSeconds is from the request until every partition has a leader that serves.
	CreateSeconds float64 `json:"create_s"`
	CPUPercent    float64 `json:"cpu_percent"` // of a core, a node
	RSS           float64 `json:"rss_bytes"`
	SentBytes     float64 `json:"sent_bytes_per_s"` // frames to both peers
	SentMessages  float64 `json:"sent_messages_per_s"`
	Resting       int     `json:"resting_replicas"`
	// MetadataBytes is the answer to a client that asks for the topic; MetaState the metadata group's checkpoint.
	MetadataBytes float64 `json:"metadata_response_bytes"`
	MetaState     float64 `json:"metadata_checkpoint_bytes"`
	LogBytes      float64 `json:"raftlog_live_bytes"`
	// FailoverSeconds is from kill -9 of a node until every partition is led by another; RejoinSeconds from its
	// start until each of its replicas knows a leader.
	FailoverSeconds float64 `json:"failover_s"`
	RejoinSeconds   float64 `json:"rejoin_s"`
	// Load is the machine's load average at the end: what the timings were measured beside.
	Load float64 `json:"load"`
}

func main() {
	list := flag.String("partitions", "10,100,1000,3000", "numbers of partitions, each with a cluster of its own")
	seconds := flag.Int("seconds", 20, "for how long idle nodes are watched")
	port := flag.Int("base-port", 31000, "base port of the cluster")
	docs := flag.String("docs", "", "replace the table in this file")
	out := flag.String("json", "", "write the points here")
	quiesce := flag.Bool("quiesce", true, "raft.quiesce of the nodes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *list, *seconds, *port, *quiesce, *docs, *out); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, list string, seconds, port int, quiesce bool, docs, out string) (err error) {
	dir, err := os.MkdirTemp(".", "scale-data-") // on this disk, not on a memory file system
	if err != nil {
		return err
	}
	defer func() { err = first(err, os.RemoveAll(dir)) }()
	exe, err := build(ctx, dir)
	if err != nil {
		return err
	}
	var points []point
	for s := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return fmt.Errorf("-partitions: %q is no number of partitions", s)
		}
		p, err := measure(ctx, exe, fmt.Sprintf("%s/%d", dir, n), n, seconds, port, quiesce)
		if err != nil {
			return fmt.Errorf("%d partitions: %w", n, err)
		}
		fmt.Fprintf(os.Stderr, "%+v\n", p)
		points = append(points, p)
	}
	var text strings.Builder
	report(&text, points, seconds)
	fmt.Print(text.String())
	if out != "" {
		b, err := json.MarshalIndent(points, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(out, append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	if docs != "" {
		return intoDocs(docs, text.String())
	}
	return nil
}

const (
	beginMark = "<!-- measured: make scale -->\n"
	endMark   = "<!-- end of measured -->\n"
)

// intoDocs replaces what stands between the marks.
func intoDocs(file, text string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(b), beginMark)
	_, after, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no marks for the measured table", file)
	}
	return os.WriteFile(file, []byte(before+beginMark+text+endMark+after), 0o644)
}

// report prints the table and, for what grows by the partition, the straight line through the points.
func report(w io.Writer, ps []point, seconds int) {
	fmt.Fprintf(w, "Idle for %d s after everything rests; a node's figures are medians of three. %s.\n\n", seconds, time.Now().UTC().Format("2006-01-02"))
	fmt.Fprintln(w, "| partitions (RF 3) | create | CPU of a core, a node | RSS a node | frames sent, a node | resting | metadata answer | metadata checkpoint | all led again after kill -9 | the node's return | load |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|---|---|---|---|")
	for _, p := range ps {
		fmt.Fprintf(w, "| %d | %.1f s | %.2f %% | %.1f MB | %.1f kB/s in %.0f messages/s | %d | %.1f kB | %s | %.2f s | %.2f s | %.1f |\n",
			p.Partitions, p.CreateSeconds, p.CPUPercent, p.RSS/1e6, p.SentBytes/1e3, p.SentMessages, p.Resting,
			p.MetadataBytes/1e3, size(p.MetaState), p.FailoverSeconds, p.RejoinSeconds, p.Load)
	}
	if len(ps) < 2 {
		return
	}
	fmt.Fprint(w, "\nStraight lines through the points (least squares; the residual is the worst point's, relative to the largest):\n\n")
	fmt.Fprintln(w, "| what | at no partition | each partition | worst residual |\n|---|---|---|---|")
	for _, l := range []struct {
		name, unit string
		scale      float64
		of         func(point) float64
	}{
		{"CPU", "% of a core", 1, func(p point) float64 { return p.CPUPercent }},
		{"RSS", "kB", 1e3, func(p point) float64 { return p.RSS }},
		{"frames sent", "B/s", 1, func(p point) float64 { return p.SentBytes }},
		{"metadata answer", "B", 1, func(p point) float64 { return p.MetadataBytes }},
		{"metadata checkpoint", "B", 1, func(p point) float64 { return p.MetaState }},
		{"create", "s", 1, func(p point) float64 { return p.CreateSeconds }},
		{"failover", "s", 1, func(p point) float64 { return p.FailoverSeconds }},
		{"return", "s", 1, func(p point) float64 { return p.RejoinSeconds }},
	} {
		a, b, worst := line(ps, l.of)
		fmt.Fprintf(w, "| %s | %.3g %s | %.3g %s | %.0f %% |\n", l.name, a/l.scale, l.unit, b/l.scale, l.unit, 100*worst)
	}
}

// size is in kB; a checkpoint that a node did not write before it was ended is not there.
func size(bytes float64) string {
	if bytes == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f kB", bytes/1e3)
}

// line fits of(p) = a + b * partitions.
func line(all []point, of func(point) float64) (a, b, worst float64) {
	var n, sx, sy, sxx, sxy, most float64
	var ps []point // those measured
	for _, p := range all {
		if of(p) > 0 {
			ps = append(ps, p)
		}
	}
	for _, p := range ps {
		x, y := float64(p.Partitions), of(p)
		n, sx, sy, sxx, sxy = n+1, sx+x, sy+y, sxx+x*x, sxy+x*y
		most = max(most, y)
	}
	b = (n*sxy - sx*sy) / (n*sxx - sx*sx)
	a = (sy - b*sx) / n
	for _, p := range ps {
		if most > 0 {
			worst = max(worst, abs(of(p)-a-b*float64(p.Partitions))/most)
		}
	}
	return a, b, worst
}

func abs(v float64) float64 { return max(v, -v) }

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
