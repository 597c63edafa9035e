package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// loopResult is what one bare loop measured.
type loopResult struct {
	BytesPerSecond float64 `json:"bytes_per_second"`
	FsyncP50Micros float64 `json:"fdatasync_p50_us"`
	FsyncP99Micros float64 `json:"fdatasync_p99_us"`
	Rounds         int     `json:"rounds"`
	// CPU is the processor time of both writes, in seconds a GB.
	CPU float64 `json:"cpu_seconds_per_gb"`
}

// limitResult is what one process got of the machine while the others did the same. The
// bare loop's figures stand in front, whatever else was measured.
type limitResult struct {
	loopResult
	// Single is the loop without the second file.
	Single *loopResult `json:"single_write,omitempty"`
	// Bytes a second: through a TCP connection on loopback, its two ends in this process;
	// of CRC-32C; copied from memory to memory.
	LoopbackTCP float64 `json:"loopback_tcp_bytes_per_second,omitempty"`
	CRC32C      float64 `json:"crc32c_bytes_per_second,omitempty"`
	MemoryCopy  float64 `json:"memory_copy_bytes_per_second,omitempty"`
	// The processor time of the same, in seconds a GB: what others do at the time changes it little.
	LoopbackTCPCPU float64 `json:"loopback_tcp_cpu_seconds_per_gb,omitempty"`
	CRC32CCPU      float64 `json:"crc32c_cpu_seconds_per_gb,omitempty"`
	MemoryCopyCPU  float64 `json:"memory_copy_cpu_seconds_per_gb,omitempty"`
}

// limitParts are what bench limit measures, in this order.
var limitParts = []struct{ name, what string }{
	{"loop", "write + fdatasync, and a second write"},
	{"single", "write + fdatasync"},
	{"tcp", "TCP over loopback"},
	{"crc", "CRC-32C"},
	{"copy", "memory copy"},
}

// shortPart bounds the parts that need no disk: their figures stand still at once.
const shortPart = time.Second

type benchLimit struct {
	dir                  string
	seconds, procs, size int
	single, asJSON       bool
	parts                []string
}

// newBenchLimit measures what the machine allows: above all the bare loop, what three
// processes at once get from the disk when each writes 256 KiB and fdatasyncs, and writes the
// same again to a second file without fsync, as a node's raftlog and segments do.
func newBenchLimit() *cobra.Command {
	var f benchLimit
	c := &cobra.Command{
		Use: "limit", Short: "what the machine allows: the bare loop of writes and fdatasyncs, TCP, CRC-32C, memory", Args: cobra.NoArgs,
		Long: `Measure what the machine allows, with several processes doing the same at once:

  loop     the bare loop: write and fdatasync to one file, and the same bytes to a second file without fsync
  single   the bare loop without the second file
  tcp      bytes through a TCP connection on loopback, both ends in the process
  crc      CRC-32C of memory that is larger than the caches
  copy     copies of such memory

Bytes are random, so that nothing compresses. Seconds a GB are of processor time. With --json an array with one element for each process; the loop's figures are its outer fields.`,
		RunE: func(c *cobra.Command, _ []string) error {
			rs, err := f.run(c.Context())
			if err != nil {
				return err
			}
			if f.asJSON {
				return json.NewEncoder(c.OutOrStdout()).Encode(rs)
			}
			return f.print(c.OutOrStdout(), rs)
		},
	}
	c.Flags().StringVar(&f.dir, "dir", ".", "a directory on the disk to measure")
	c.Flags().IntVar(&f.seconds, "seconds", 5, "how long each loop runs; the other parts take at most a second")
	c.Flags().IntVar(&f.procs, "processes", 3, "how many at once")
	c.Flags().IntVar(&f.size, "bytes", 256<<10, "bytes a write")
	c.Flags().BoolVar(&f.single, "single-write", false, "only the loop, without the second file")
	c.Flags().StringSliceVar(&f.parts, "parts", partNames(), "what to measure")
	c.Flags().BoolVar(&f.asJSON, "json", false, "print JSON")
	return c
}

func partNames() []string {
	var names []string
	for _, p := range limitParts {
		names = append(names, p.name)
	}
	return names
}

// run has the processes do one part after the other.
func (f *benchLimit) run(ctx context.Context) ([]limitResult, error) {
	if f.procs < 1 || f.size < 1 || f.seconds < 1 {
		return nil, usagef("--processes, --bytes and --seconds must be 1 or higher")
	}
	if len(f.parts) == 0 {
		return nil, usagef("--parts names nothing")
	}
	for _, p := range f.parts {
		if !slices.Contains(partNames(), p) {
			return nil, usagef("unknown part %q, want some of %s", p, strings.Join(partNames(), ","))
		}
	}
	tmp, err := os.MkdirTemp(f.dir, "bench-limit-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	results := make([]limitResult, f.procs)
	for _, p := range partNames() {
		switch {
		case f.single && p == "loop": // the loop, in another way
			err = f.part(ctx, tmp, "single", results, func(r *limitResult) { r.loopResult, r.Single = *r.Single, nil })
		case !f.single && slices.Contains(f.parts, p):
			err = f.part(ctx, tmp, p, results, func(*limitResult) {})
		}
		if err != nil {
			return nil, err
		}
	}
	return results, nil
}

// part has all processes do one part at once, and adds what they found to results.
func (f *benchLimit) part(ctx context.Context, dir, part string, results []limitResult, then func(*limitResult)) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	errs := make([]error, len(results))
	var wg sync.WaitGroup
	for i := range results {
		wg.Go(func() {
			cmd := exec.CommandContext(ctx, exe, "bench", "loop", "--part", part, "--dir", filepath.Join(dir, strconv.Itoa(i)),
				"--milliseconds", strconv.Itoa(1000*f.seconds), "--bytes", strconv.Itoa(f.size))
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err == nil {
				err = json.Unmarshal(out, &results[i]) // fields of other parts stay
			}
			if err == nil {
				then(&results[i])
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// print writes a table: a line for each part, a column for each process.
func (f *benchLimit) print(w io.Writer, rs []limitResult) error {
	header := []string{"WHAT"}
	for i := range rs {
		header = append(header, fmt.Sprintf("PROCESS %d", i+1))
	}
	var rows [][]string
	line := func(what string, cell func(*limitResult) string) {
		row := []string{what}
		for i := range rs {
			row = append(row, cell(&rs[i]))
		}
		if slices.ContainsFunc(row[1:], func(s string) bool { return s != "" }) {
			rows = append(rows, row)
		}
	}
	loop := func(what string, of func(*limitResult) *loopResult) {
		line(what, func(r *limitResult) string {
			if l := of(r); l != nil && l.Rounds > 0 {
				return fmt.Sprintf("%.1f MB/s, %.2f s/GB", l.BytesPerSecond/1e6, l.CPU)
			}
			return ""
		})
		line("  fdatasync p50, p99", func(r *limitResult) string {
			if l := of(r); l != nil && l.Rounds > 0 {
				return fmt.Sprintf("%.0f, %.0f us", l.FsyncP50Micros, l.FsyncP99Micros)
			}
			return ""
		})
	}
	rate := func(what string, of func(*limitResult) (perSecond, cpu float64)) {
		line(what, func(r *limitResult) string {
			if v, cpu := of(r); v > 0 {
				return fmt.Sprintf("%.0f MB/s, %.2f s/GB", v/1e6, cpu)
			}
			return ""
		})
	}
	first := limitParts[0].what
	if f.single {
		first = limitParts[1].what
	}
	loop(first, func(r *limitResult) *loopResult { return &r.loopResult })
	loop(limitParts[1].what, func(r *limitResult) *loopResult { return r.Single })
	rate(limitParts[2].what, func(r *limitResult) (float64, float64) { return r.LoopbackTCP, r.LoopbackTCPCPU })
	rate(limitParts[3].what, func(r *limitResult) (float64, float64) { return r.CRC32C, r.CRC32CCPU })
	rate(limitParts[4].what, func(r *limitResult) (float64, float64) { return r.MemoryCopy, r.MemoryCopyCPU })
	return table(w, header, rows)
}

// newBenchLoop is one part in one process of bench limit. It prints only the fields it measured.
func newBenchLoop() *cobra.Command {
	var dir, part string
	var millis, size int
	c := &cobra.Command{
		Use: "loop", Hidden: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			d := time.Duration(millis) * time.Millisecond
			var err error
			var found any
			rate := func(what string, m measured) any {
				return map[string]float64{what + "_bytes_per_second": m.perSecond, what + "_cpu_seconds_per_gb": m.cpu}
			}
			switch part {
			case "loop":
				found, err = bareLoop(dir, size, d, false)
			case "single":
				var r loopResult
				r, err = bareLoop(dir, size, d, true)
				found = map[string]loopResult{"single_write": r}
			case "tcp":
				var m measured
				m, err = loopbackTCP(c.Context(), size, min(d, shortPart))
				found = rate("loopback_tcp", m)
			case "crc":
				found = rate("crc32c", ofMemory(size, min(d, shortPart), func(_, b []byte) { crc32.Checksum(b, castagnoli) }))
			case "copy":
				found = rate("memory_copy", ofMemory(size, min(d, shortPart), func(dst, b []byte) { copy(dst, b) }))
			default:
				err = usagef("unknown part %q", part)
			}
			if err != nil {
				return err
			}
			return json.NewEncoder(c.OutOrStdout()).Encode(found)
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "")
	c.Flags().StringVar(&part, "part", "loop", "")
	c.Flags().IntVar(&millis, "milliseconds", 5000, "")
	c.Flags().IntVar(&size, "bytes", 256<<10, "")
	return c
}

// measured is how many bytes a second went through, and their processor time in seconds a GB.
type measured struct{ perSecond, cpu float64 }

// clock measures from its start on.
type clock struct {
	began time.Time
	spent time.Duration
}

func startClock() clock { return clock{time.Now(), processorTime()} }

func (c clock) read(bytes int64) measured {
	return measured{float64(bytes) / time.Since(c.began).Seconds(), (processorTime() - c.spent).Seconds() / (float64(bytes) / 1e9)}
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) != nil {
		return 0 // never fails
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func bareLoop(dir string, size int, d time.Duration, single bool) (loopResult, error) {
	var r loopResult
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return r, err
	}
	synced, err1 := os.Create(filepath.Join(dir, "synced"))
	plain, err2 := os.Create(filepath.Join(dir, "plain"))
	if err := firstErr(err1, err2); err != nil {
		return r, err
	}
	defer func() { _, _ = synced.Close(), plain.Close() }()
	const ring = 1 << 30                             // bytes before both files are overwritten from their start
	_ = unix.Fallocate(int(synced.Fd()), 0, 0, ring) // an optimisation only
	buf := make([]byte, size)
	_, _ = rand.Read(buf)
	var took []time.Duration
	c := startClock()
	var at, total int64
	for time.Since(c.began) < d {
		if at+int64(size) > ring {
			at = 0
		}
		if _, err := synced.WriteAt(buf, at); err != nil {
			return r, err
		}
		t := time.Now()
		if err := unix.Fdatasync(int(synced.Fd())); err != nil {
			return r, err
		}
		took = append(took, time.Since(t))
		if !single {
			if _, err := plain.WriteAt(buf, at); err != nil {
				return r, err
			}
		}
		at += int64(size)
		total += int64(size)
	}
	slices.Sort(took)
	m := c.read(total)
	r.BytesPerSecond, r.CPU = m.perSecond, m.cpu
	r.Rounds = len(took)
	r.FsyncP50Micros = float64(took[len(took)/2].Nanoseconds()) / 1e3
	r.FsyncP99Micros = float64(took[len(took)*99/100].Nanoseconds()) / 1e3
	return r, nil
}

// loopbackTCP is how many bytes a second one connection carries when they are written and
// read size at a time.
func loopbackTCP(ctx context.Context, size int, d time.Duration) (measured, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return measured{}, err
	}
	defer func() { _ = l.Close() }()
	out, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		return measured{}, err
	}
	in, err := l.Accept()
	if err != nil {
		return measured{}, errors.Join(err, out.Close())
	}
	sent := make(chan error, 1)
	from, to := make([]byte, size), make([]byte, size)
	_, _ = rand.Read(from)
	c := startClock()
	go func() {
		var err error
		for err == nil && time.Since(c.began) < d {
			_, err = out.Write(from)
		}
		sent <- errors.Join(err, out.Close())
	}()
	var total int64
	for {
		n, err := in.Read(to)
		total += int64(n)
		if err != nil {
			m := c.read(total)
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return m, errors.Join(err, in.Close(), <-sent)
		}
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ofMemory is how many bytes a second do is through with, size at a time, of memory that is
// larger than the caches.
func ofMemory(size int, d time.Duration, do func(dst, b []byte)) measured {
	pool := make([]byte, max(64<<20, size))
	_, _ = rand.Read(pool)
	dst := make([]byte, len(pool))
	copy(dst, pool) // its pages are there before the clock starts
	c := startClock()
	var total int64
	for at := 0; time.Since(c.began) < d; at += size {
		if at+size > len(pool) {
			at = 0
		}
		do(dst[at:at+size], pool[at:at+size])
		total += int64(size)
	}
	return c.read(total)
}
