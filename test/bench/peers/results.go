package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// results is what is kept of a part. A later run of some of its workloads replaces
// only those.
type results struct {
	Part    string   `json:"part"`
	Rows    []*row   `json:"rows"`
	Skipped []string `json:"skipped"`
	file    string
	now     *session
}

// row is one metric of one workload: a value a peer and round.
type row struct {
	Workload string                     `json:"workload"`
	Metric   string                     `json:"metric"`
	Unit     string                     `json:"unit"`
	Values   map[string]map[int]float64 `json:"values"` // by peer and round, from 1
	Session  *session                   `json:"session"`
}

// session is when and where a row was measured.
type session struct {
	When    time.Time         `json:"when"`
	Machine string            `json:"machine"`
	Load    string            `json:"load_average"` // of the last 1, 5 and 15 minutes at the start
	Rounds  int               `json:"rounds"`
	Seconds float64           `json:"seconds"`
	Warm    float64           `json:"warm_seconds"`
	Bytes   int64             `json:"fill_bytes"`
	Peers   map[string]string `json:"peers"`
	// Others is how much of the machine's processor time went to what is not of this
	// command, in percent; nil: not known.
	Others *float64 `json:"others_percent"`
	began  usage
}

func openResults(dir, part string) (*results, error) {
	r := &results{Part: part, file: filepath.Join(dir, part+".json")}
	text, err := os.ReadFile(r.file)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(text, r)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.file, err)
	}
	return r, nil
}

func (r *results) begin(machine string, b *bench, skipped []string) {
	// What failed or could not be had before is of that session; that a server does not do a workload stays true.
	r.Skipped = slices.DeleteFunc(r.Skipped, func(s string) bool { return strings.HasPrefix(s, failedMark) || strings.Contains(s, leftOut) })
	r.Skipped = append(r.Skipped, skipped...)
	r.now = &session{
		When: time.Now().UTC().Truncate(time.Minute), Machine: machine, Rounds: b.rounds,
		Seconds: b.length.Seconds(), Warm: b.warm.Seconds(), Bytes: b.fill, Peers: map[string]string{},
	}
	r.now.began = usageNow()
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		if f := strings.Fields(string(text)); len(f) >= 3 {
			r.now.Load = strings.Join(f[:3], " ")
		}
	}
	for _, p := range b.peers {
		r.now.Peers[p.name()] = p.about()
	}
}

func (r *results) add(workload, metric, unit, peer string, round int, v float64) {
	at := slices.IndexFunc(r.Rows, func(w *row) bool { return w.Workload == workload && w.Metric == metric })
	if at < 0 {
		at = len(r.Rows)
		r.Rows = append(r.Rows, nil)
	}
	if r.Rows[at] == nil || r.Rows[at].Session != r.now {
		r.Rows[at] = &row{Workload: workload, Metric: metric, Unit: unit, Values: map[string]map[int]float64{}, Session: r.now}
	}
	if r.Rows[at].Values[peer] == nil {
		r.Rows[at].Values[peer] = map[int]float64{}
	}
	r.Rows[at].Values[peer][round] = v
}

const (
	failedMark = "FAILED"
	leftOut    = " is left out: "
)

func (r *results) skip(why string) {
	if !slices.Contains(r.Skipped, why) {
		r.Skipped = append(r.Skipped, why)
		fmt.Println("skipped:", why)
	}
}

// save replaces the file at once.
func (r *results) save() error {
	if share, ok := usageNow().others(r.now.began); ok {
		r.now.Others = &share
	}
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(r.file), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(r.file+".new", append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(r.file+".new", r.file)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Clone(v)
	slices.Sort(s)
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// median of a peer's rounds; 0 without any.
func (w *row) median(peer string) float64 { return median(slices.Collect(maps.Values(w.Values[peer]))) }

// ratios are Chronik's value over the other's, of each round that has both.
func (w *row) ratios(over string) []float64 {
	var rs []float64
	for round, own := range w.Values["chronik"] {
		if other := w.Values[over][round]; other > 0 {
			rs = append(rs, own/other)
		}
	}
	return rs
}

func describeMachine() (string, error) {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	model := "processor of unknown make"
	for line := range bytes.Lines(info) {
		if k, v, ok := strings.Cut(string(line), ":"); ok && strings.TrimSpace(k) == "model name" {
			model = strings.TrimSpace(v)
			break
		}
	}
	mem := ""
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kb int
		if _, err := fmt.Sscanf(string(text), "MemTotal: %d kB", &kb); err == nil {
			mem = fmt.Sprintf(", %.0f GiB", float64(kb)/(1<<20))
		}
	}
	kernel := ""
	if out, err := exec.Command("uname", "-r").Output(); err == nil {
		kernel = ", Linux " + strings.TrimSpace(string(out))
	}
	return fmt.Sprintf("%d CPUs (%s)%s%s, %s", runtime.NumCPU(), model, mem, kernel, runtime.Version()), nil
}
