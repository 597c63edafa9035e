// Command bench measures a cluster of three nodes against what the machine's disk
// allows, in interleaved rounds of one run, and prints a table of medians and ratios.
//
//	go run ./test/bench [-rounds 5] [-seconds 5] [-profile DIR] [-exe FILE] [-least PERCENT] [-most TIMES] [-dearest TIMES]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"chronik/test/bench/backed"
)

type loop struct {
	BytesPerSecond float64 `json:"bytes_per_second"`
	FsyncP50Micros float64 `json:"fdatasync_p50_us"`
	// Processor time, in seconds a GB.
	TCP  float64 `json:"loopback_tcp_cpu_seconds_per_gb"`
	CRC  float64 `json:"crc32c_cpu_seconds_per_gb"`
	Copy float64 `json:"memory_copy_cpu_seconds_per_gb"`
}

// bare is the processor time of what a produced GB asks of three nodes beside the disk, in seconds: each has a
// checksum of it and copies it once; it goes from the leader to two others, and half of a
// connection is the leader's to the client. The writes are left out: what they cost the loop
// depends on how much the kernel has yet to write back.
func (l loop) bare() float64 { return 3*(l.CRC+l.Copy) + 2.5*l.TCP }

type produced struct {
	Seconds        float64 `json:"seconds"`
	BytesPerSecond float64 `json:"bytes_per_second"`
	P50Millis      float64 `json:"p50_ms"`
	P99Millis      float64 `json:"p99_ms"`
}

type bench struct {
	exe, dir  string
	dev       *exec.Cmd // the parent of the nodes
	reserve   *backed.Reserve
	bootstrap string
	seconds   int
	// least is the smallest acceptable share of the bare loop in percent, most the longest acceptable wait for
	// a single record in fdatasyncs; 0: whatever.
	least, most float64
	// dearest is the highest acceptable processor time in that of the bare work; 0: whatever.
	dearest float64
}

// errSlow ends the command with exit code 1.
var errSlow = errors.New("slower than is acceptable")

func main() {
	rounds := flag.Int("rounds", 5, "interleaved rounds")
	seconds := flag.Int("seconds", 5, "seconds of each measurement")
	port := flag.Int("base-port", 27092, "base port of the cluster")
	profile := flag.String("profile", "", "write a CPU profile of every node during the last round's throughput here")
	b := &bench{}
	flag.Float64Var(&b.least, "least", 0, "exit 1 if the median share of the bare loop is below this many percent")
	flag.Float64Var(&b.most, "most", 0, "exit 1 if a single record takes longer than this many fdatasyncs in the median")
	flag.Float64Var(&b.dearest, "dearest", 0, "exit 1 if the nodes use more than this many times the bare work's processor time in the median")
	flag.StringVar(&b.exe, "exe", "", "measure this binary in place of the sources'; in turn with another it tells the two apart")
	flag.Parse()
	b.seconds = *seconds
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx, *rounds, *port, *profile); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context, rounds, port int, profile string) (err error) {
	dir, err := os.MkdirTemp(".", "bench-data-") // on this disk, not on a memory file system
	if err != nil {
		return err
	}
	defer func() { err = first(err, os.RemoveAll(dir)) }()
	b.dir, b.bootstrap = dir, fmt.Sprintf("127.0.0.1:%d", port)
	if b.exe == "" {
		b.exe = filepath.Join(dir, "chronik")
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", b.exe, "chronik/cmd/chronik").CombinedOutput(); err != nil {
			return fmt.Errorf("build: %w: %s", err, out)
		}
	}
	if b.exe, err = filepath.Abs(b.exe); err != nil {
		return err
	}
	b.reserve = backed.NewReserve()
	defer b.reserve.Close()
	if b.dev, err = b.start(ctx, port); err != nil {
		return err
	}
	defer func() {
		_ = b.dev.Process.Signal(os.Interrupt)
		_ = b.dev.Wait()
	}()
	if _, err := b.chronik(ctx, "topic", "create", "bench", "--partitions", "12", "--replication-factor", "3"); err != nil {
		return err
	}
	if _, err := b.chronik(ctx, "topic", "create", "single", "--partitions", "1", "--replication-factor", "3"); err != nil {
		return err
	}
	return b.measure(ctx, rounds, profile, port)
}

func (b *bench) start(ctx context.Context, port int) (*exec.Cmd, error) {
	out := filepath.Join(b.dir, "dev.out")
	f, err := os.Create(out)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	cmd := exec.Command(b.exe, "dev", "--data-dir", filepath.Join(b.dir, "dev"), "--base-port", fmt.Sprint(port))
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for range 600 {
		text, err := os.ReadFile(out)
		if err != nil {
			return nil, err
		}
		if strings.Contains(string(text), "ready after") {
			return cmd, nil
		}
		if strings.Contains(string(text), "chronik: error") || ctx.Err() != nil {
			return nil, fmt.Errorf("dev: %s", text)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil, fmt.Errorf("dev is not ready after 60s")
}

func (b *bench) chronik(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, b.exe, args...)
	cmd.Env = append(os.Environ(), "CHRONIK_BOOTSTRAP="+b.bootstrap)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("chronik %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out, nil
}

func (b *bench) produce(ctx context.Context, args ...string) (produced, error) {
	var p produced
	out, err := b.chronik(ctx, append([]string{"bench", "produce", "--json", "--seconds", fmt.Sprint(b.seconds)}, args...)...)
	if err == nil {
		err = json.Unmarshal(out, &p)
	}
	return p, err
}

func (b *bench) limit(ctx context.Context) (bytesPerSecond, fsyncMillis, bare float64, err error) {
	out, err := b.chronik(ctx, "bench", "limit", "--parts", "loop,tcp,crc,copy", "--json", "--dir", b.dir, "--seconds", fmt.Sprint(b.seconds))
	if err != nil {
		return 0, 0, 0, err
	}
	var ls []loop
	if err := json.Unmarshal(out, &ls); err != nil {
		return 0, 0, 0, err
	}
	var rates, fsyncs, bares []float64
	for _, l := range ls {
		rates = append(rates, l.BytesPerSecond)
		fsyncs = append(fsyncs, l.FsyncP50Micros/1000)
		bares = append(bares, l.bare())
	}
	return median(rates), median(fsyncs), median(bares), nil
}

// round is what one round found.
type round struct {
	loop, fsync, bare float64 // of the machine: bytes a second, ms, s a GB
	rate, p99         float64 // 1 KiB at full load: bytes a second, ms
	cost, resident    float64 // of the nodes meanwhile: s a GB, bytes
	fsyncs, entries   float64 // of one node's raftlog: a second, and entries a fdatasync
	calls             float64 // reads and writes of all nodes a record
	single            float64 // p50 of one outstanding record, ms
	large             float64 // 100 KiB at full load: bytes a second
}

const (
	recordBytes = 1 << 10
	largeBytes  = 100 << 10
)

func (b *bench) measure(ctx context.Context, rounds int, profile string, port int) error {
	var all []round
	for i := range rounds {
		r, err := b.round(ctx, port, func() {
			if profile != "" && i == rounds-1 {
				go b.profiles(ctx, profile, port)
			}
		})
		if err != nil {
			return err
		}
		all = append(all, *r)
		fmt.Fprintf(os.Stderr, "round %d: bare loop %.1f MB/s a process, fdatasync p50 %.2f ms; chronik %.1f MB/s (%.0f %%), 100 KiB %.1f MB/s (%.0f %%); single record p50 %.2f ms (%.1f x); processor time %.1f s/GB (%.2f x of %.1f)\n",
			i+1, r.loop/1e6, r.fsync, r.rate/1e6, 100*r.rate/r.loop, r.large/1e6, 100*r.large/r.loop, r.single, r.single/r.fsync, r.cost, r.cost/r.bare, r.bare)
	}
	return b.report(all)
}

// round measures the machine, then the nodes. Each finds memory that the host need not give first, and nothing
// in the page cache of what was measured before it.
func (b *bench) round(ctx context.Context, port int, measuring func()) (*round, error) {
	r := &round{}
	var err error
	if err = b.fresh(ctx); err != nil {
		return nil, err
	}
	if r.loop, r.fsync, r.bare, err = b.limit(ctx); err != nil {
		return nil, err
	}
	if err := b.fresh(ctx); err != nil {
		return nil, err
	}
	measuring()
	before, err := b.use(ctx, port)
	if err != nil {
		return nil, err
	}
	t, err := b.produce(ctx, "bench")
	if err != nil {
		return nil, err
	}
	after, err := b.use(ctx, port)
	if err != nil {
		return nil, err
	}
	bytes := t.BytesPerSecond * t.Seconds
	r.rate, r.p99, r.resident = t.BytesPerSecond, t.P99Millis, after.resident
	r.cost = (after.cpu - before.cpu) / (bytes / 1e9)
	r.fsyncs = (after.fsyncs - before.fsyncs) / nodes / t.Seconds
	r.entries = (after.entries - before.entries) / (after.fsyncs - before.fsyncs)
	r.calls = (after.calls - before.calls) / (bytes / recordBytes)
	large, err := b.produce(ctx, "bench", "--bytes", fmt.Sprint(largeBytes))
	if err != nil {
		return nil, err
	}
	r.large = large.BytesPerSecond
	single, err := b.produce(ctx, "single", "--single")
	r.single = single.P50Millis
	return r, err
}

// fresh makes the memory what it was when the first round began.
func (b *bench) fresh(ctx context.Context) error {
	if _, err := backed.DropCache(b.dir); err != nil {
		return err
	}
	return b.reserve.Refill(ctx)
}

func (b *bench) report(all []round) error {
	of := func(f func(r *round) float64) float64 {
		var v []float64
		for i := range all {
			v = append(v, f(&all[i]))
		}
		return median(v)
	}
	share := of(func(r *round) float64 { return 100 * r.rate / r.loop })
	latency := of(func(r *round) float64 { return r.single / r.fsync })
	dear := of(func(r *round) float64 { return r.cost / r.bare })
	fmt.Printf("| what (median of %d interleaved rounds of %d s) | value |\n|---|---|\n", len(all), b.seconds)
	fmt.Printf("| bare loop, a process of three: bytes written and fdatasynced | %.1f MB/s |\n", of(func(r *round) float64 { return r.loop / 1e6 }))
	fmt.Printf("| bare loop: fdatasync p50 | %.2f ms |\n", of(func(r *round) float64 { return r.fsync }))
	fmt.Printf("| produce, 1 KiB, 12 partitions, RF 3, acks=all | %.1f MB/s |\n", of(func(r *round) float64 { return r.rate / 1e6 }))
	fmt.Printf("| **as a share of the bare loop** | **%.0f %%** |\n", share)
	fmt.Printf("| the same with 100 KiB | %.1f MB/s |\n", of(func(r *round) float64 { return r.large / 1e6 }))
	fmt.Printf("| **as a share of the bare loop** | **%.0f %%** |\n", of(func(r *round) float64 { return 100 * r.large / r.loop }))
	fmt.Printf("| 1 KiB: p99 at full load | %.1f ms |\n", of(func(r *round) float64 { return r.p99 }))
	fmt.Printf("| 1 KiB: processor time of all nodes | %.1f s/GB |\n", of(func(r *round) float64 { return r.cost }))
	fmt.Printf("| the bare work of three nodes, without the disk: processor time | %.1f s/GB |\n", of(func(r *round) float64 { return r.bare }))
	fmt.Printf("| **processor time / that of the bare work** | **%.2f x** |\n", dear)
	fmt.Printf("| 1 KiB: fdatasyncs of a node's raftlog | %.0f a second |\n", of(func(r *round) float64 { return r.fsyncs }))
	fmt.Printf("| 1 KiB: entries a fdatasync | %.1f |\n", of(func(r *round) float64 { return r.entries }))
	fmt.Printf("| 1 KiB: reads and writes (files and sockets) of all nodes, a record | %.3f |\n", of(func(r *round) float64 { return r.calls }))
	fmt.Printf("| resident memory of a node afterwards | %.0f MB |\n", of(func(r *round) float64 { return r.resident / 1e6 }))
	fmt.Printf("| one outstanding record: p50 | %.2f ms |\n", of(func(r *round) float64 { return r.single }))
	fmt.Printf("| **one outstanding record / fdatasync p50** | **%.1f x** |\n", latency)
	return b.judge(share, latency, dear)
}

const nodes = 3

// used is what the nodes have used together: processor time in seconds, fdatasyncs and entries of their
// raftlogs, system calls that read or write; and the memory of the largest, in bytes.
type used struct{ cpu, fsyncs, entries, calls, resident float64 }

func (b *bench) use(ctx context.Context, port int) (*used, error) {
	u := &used{}
	for i := range nodes {
		text, err := get(ctx, fmt.Sprintf("http://127.0.0.1:%d/metrics", port+200+i))
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, " ")
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				continue // a comment
			}
			switch name {
			case "process_cpu_seconds_total":
				u.cpu += v
			case "process_resident_memory_bytes":
				u.resident = max(u.resident, v)
			case "chronik_raftlog_fsyncs_total":
				u.fsyncs += v
			case "chronik_raftlog_entries_total":
				u.entries += v
			}
		}
	}
	if u.cpu == 0 || u.resident == 0 || u.fsyncs == 0 || u.entries == 0 {
		return nil, errors.New("the nodes' metrics do not have what they use")
	}
	var err error
	u.calls, err = calls(b.dev.Process.Pid)
	return u, err
}

// calls counts the system calls of a process's children that read or wrote, as the kernel does.
func calls(parent int) (n float64, err error) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
	if err != nil {
		return 0, err
	}
	for _, list := range lists {
		children, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for _, pid := range strings.Fields(string(children)) {
			text, err := os.ReadFile("/proc/" + pid + "/io")
			if err != nil {
				return 0, err
			}
			for line := range strings.Lines(string(text)) {
				var v float64
				if k, _ := fmt.Sscanf(line, "syscr: %g", &v); k == 1 {
					n += v
				}
				if k, _ := fmt.Sscanf(line, "syscw: %g", &v); k == 1 {
					n += v
				}
			}
		}
	}
	if n == 0 {
		return 0, fmt.Errorf("process %d has no children that read or write", parent)
	}
	return n, nil
}

// judge is the guard against regressions: what it compares is of one run, so that it holds on any machine.
func (b *bench) judge(share, latency, dear float64) error {
	if share < b.least {
		return fmt.Errorf("%w: %.0f %% of the bare loop, at least %.0f %% are expected", errSlow, share, b.least)
	}
	if b.most > 0 && latency > b.most {
		return fmt.Errorf("%w: a single record takes %.1f fdatasyncs, at most %.1f are expected", errSlow, latency, b.most)
	}
	if b.dearest > 0 && dear > b.dearest {
		return fmt.Errorf("%w: the nodes use %.2f times the processor time of the bare work, at most %.2f times are expected", errSlow, dear, b.dearest)
	}
	return nil
}

// profiles takes a CPU profile of each node while the load runs.
func (b *bench) profiles(ctx context.Context, dir string, port int) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return
	}
	done := make(chan error, 3)
	for i := range 3 {
		go func() {
			url := fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/profile?seconds=%d", port+200+i, max(1, b.seconds-1))
			done <- fetch(ctx, url, filepath.Join(dir, fmt.Sprintf("node-%d.pprof", i+1)))
		}()
	}
	for range 3 {
		if err := <-done; err != nil {
			fmt.Fprintln(os.Stderr, "bench: profile:", err)
		}
	}
}

func fetch(ctx context.Context, url, file string) error {
	data, err := get(ctx, url)
	if err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o644)
}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	return io.ReadAll(resp.Body)
}

func median(v []float64) float64 {
	s := slices.Clone(v)
	slices.Sort(s)
	return s[len(s)/2]
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
