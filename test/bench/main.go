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
	"strings"
	"syscall"
	"time"
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
	dev, err := b.start(ctx, port)
	if err != nil {
		return err
	}
	defer func() {
		_ = dev.Process.Signal(os.Interrupt)
		_ = dev.Wait()
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

func (b *bench) measure(ctx context.Context, rounds int, profile string, port int) error {
	var limit, fsync, rate, p99, single, share, latency, costs, memory, bares, dear []float64
	for i := range rounds {
		l, f, bare, err := b.limit(ctx)
		if err != nil {
			return err
		}
		if profile != "" && i == rounds-1 {
			go b.profiles(ctx, profile, port)
		}
		before, _, err := b.use(ctx, port)
		if err != nil {
			return err
		}
		t, err := b.produce(ctx, "bench")
		if err != nil {
			return err
		}
		after, resident, err := b.use(ctx, port)
		if err != nil {
			return err
		}
		cost := (after - before) / (t.BytesPerSecond * t.Seconds / 1e9)
		costs, memory = append(costs, cost), append(memory, resident/1e6)
		bares, dear = append(bares, bare), append(dear, cost/bare)
		s, err := b.produce(ctx, "single", "--single")
		if err != nil {
			return err
		}
		limit, fsync, rate, p99 = append(limit, l/1e6), append(fsync, f), append(rate, t.BytesPerSecond/1e6), append(p99, t.P99Millis)
		single, share, latency = append(single, s.P50Millis), append(share, 100*t.BytesPerSecond/l), append(latency, s.P50Millis/f)
		fmt.Fprintf(os.Stderr, "round %d: bare loop %.1f MB/s a process, fdatasync p50 %.2f ms; chronik %.1f MB/s (%.0f %%); single record p50 %.2f ms (%.1f x); processor time %.1f s/GB (%.2f x of %.1f)\n",
			i+1, l/1e6, f, t.BytesPerSecond/1e6, 100*t.BytesPerSecond/l, s.P50Millis, s.P50Millis/f, cost, cost/bare, bare)
	}
	fmt.Printf("| what (median of %d interleaved rounds of %d s) | value |\n|---|---|\n", rounds, b.seconds)
	fmt.Printf("| bare loop, a process of three: bytes written and fdatasynced | %.1f MB/s |\n", median(limit))
	fmt.Printf("| bare loop: fdatasync p50 | %.2f ms |\n", median(fsync))
	fmt.Printf("| produce, 1 KiB, 12 partitions, RF 3, acks=all | %.1f MB/s |\n", median(rate))
	fmt.Printf("| produce: p99 at full load | %.1f ms |\n", median(p99))
	fmt.Printf("| produce: processor time of all nodes | %.1f s/GB |\n", median(costs))
	fmt.Printf("| the bare work of three nodes, without the disk: processor time | %.1f s/GB |\n", median(bares))
	fmt.Printf("| **processor time / that of the bare work** | **%.2f x** |\n", median(dear))
	fmt.Printf("| produce: resident memory of a node afterwards | %.0f MB |\n", median(memory))
	fmt.Printf("| **produce as a share of the bare loop** | **%.0f %%** |\n", median(share))
	fmt.Printf("| one outstanding record: p50 | %.2f ms |\n", median(single))
	fmt.Printf("| **one outstanding record / fdatasync p50** | **%.1f x** |\n", median(latency))
	return b.judge(median(share), median(latency), median(dear))
}

// use asks the nodes for the processor time they have used together, in seconds, and for the
// memory of the largest, in bytes.
func (b *bench) use(ctx context.Context, port int) (cpu, resident float64, err error) {
	for i := range 3 {
		text, err := get(ctx, fmt.Sprintf("http://127.0.0.1:%d/metrics", port+200+i))
		if err != nil {
			return 0, 0, err
		}
		for line := range strings.Lines(string(text)) {
			var v float64
			if n, _ := fmt.Sscanf(line, "process_cpu_seconds_total %g", &v); n == 1 {
				cpu += v
			}
			if n, _ := fmt.Sscanf(line, "process_resident_memory_bytes %g", &v); n == 1 {
				resident = max(resident, v)
			}
		}
	}
	if cpu == 0 || resident == 0 {
		return 0, 0, errors.New("the nodes' metrics do not have what they use")
	}
	return cpu, resident, nil
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
