package machine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"io"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/sys"
)

// Args say what one run is. Runs of the same guest with equal Seed, Steps, Skip and
// Flags are equal to the byte.
type Args struct {
	Seed  uint64
	Steps int
	// Skip holds the indexes of the planned faults that do not happen.
	Skip []int
	// Flags are further arguments of the guest.
	Flags []string
	// Log, if not nil, receives what the guest prints as it prints it.
	Log io.Writer `json:"-"`
	// Virtual bounds the run's virtual time, CPU what it computes; zero means
	// DefaultVirtual and DefaultCPU. Not the real time: it depends on what else the
	// machine does, and a run that was found to hang would not when it is run again.
	Virtual, CPU time.Duration
}

// Command returns the arguments as the guest gets them, its name first.
func (a Args) Command() []string {
	out := []string{"guest", "-seed", strconv.FormatUint(a.Seed, 10), "-steps", strconv.Itoa(a.Steps)}
	if len(a.Skip) > 0 {
		out = append(out, "-skip", JoinInts(a.Skip))
	}
	return append(out, a.Flags...)
}

func (a Args) cpu() time.Duration {
	if a.CPU == 0 {
		return DefaultCPU
	}
	return a.CPU
}

// JoinInts writes indexes as the guest's -skip and the command's read them.
func JoinInts(ints []int) string {
	parts := make([]string, len(ints))
	for i, n := range ints {
		parts[i] = strconv.Itoa(n)
	}
	return strings.Join(parts, ",")
}

// A Violation says which check failed, and how. Runs that did not come to their end
// have one of the host's: see Crash and Hung.
type Violation struct {
	Check  string `json:"check"`
	Detail string `json:"detail"`
}

// The checks that are the host's own.
const (
	// Crash: the guest panicked, trapped, ran out of memory, or ended without a result.
	Crash = "crash"
	// Hung: the guest passed the bound of virtual time or of computing.
	Hung = "hung"
)

// A Result is what a run came to. The fields with JSON names are the guest's report.
type Result struct {
	Seed  uint64 `json:"seed"`
	Steps int    `json:"steps"`
	// Hash is the guest's own hash of what it saw.
	Hash   string `json:"hash"`
	Events int64  `json:"events"`
	// Virtual is the virtual time of the guest's part that counts.
	Virtual time.Duration `json:"virtual_ns"`
	// Faults are the kinds of the planned faults, skipped ones included, in order.
	Faults    []string         `json:"faults"`
	Violation *Violation       `json:"violation"`
	Counts    map[string]int64 `json:"counts"`

	// Trace is a hash of everything that passed between guest and host: each sleep and
	// the time it began, each byte printed. Equal runs have equal ones.
	Trace uint64 `json:"-"`
	// Clock is the virtual time at the run's end, Wall what it took.
	Clock time.Duration `json:"-"`
	Wall  time.Duration `json:"-"`
	// Output is the end of what the guest printed, Stderr of what its runtime did.
	Output []byte `json:"-"`
	Stderr []byte `json:"-"`
}

const (
	readCost  = 50   // nanoseconds that pass at each look at the clock
	yieldCost = 1000 // and when the guest gives up the processor

	keepHead   = 64 << 10
	keepOutput = 1 << 20
	keepStderr = 64 << 10
	detailSize = 2000

	exitStopped = 0xffff0001 // not an exit code of a Go program
)

// epochTime is the wall clock's time at the start of every run.
var epochTime = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// A clock is the time of one run. Nothing moves it but the guest: it looks, sleeps or
// yields. Each of these moves it, so a guest that waits for a time gets there.
type clock struct {
	now   int64 // monotonic: nanoseconds since the start
	jump  int64 // the wall clock's distance from epochTime+now
	bound int64
	over  bool
	stop  atomic.Bool // set from outside: end at the next call
	trace hash.Hash64
	word  [16]byte
}

func (c *clock) pass(ns int64) {
	if c.stop.Load() {
		panic(sys.NewExitError(exitStopped))
	}
	c.now += ns
	if c.now > c.bound || c.now < 0 {
		c.over = true
		panic(sys.NewExitError(exitStopped))
	}
}

func (c *clock) nanotime() int64 {
	c.pass(readCost)
	return c.now
}

func (c *clock) walltime() (int64, int32) {
	c.pass(readCost)
	t := epochTime.UnixNano() + c.now + c.jump
	return t / 1e9, int32(t % 1e9)
}

func (c *clock) nanosleep(ns int64) {
	c.note(ns)
	if ns > c.bound {
		ns = c.bound // no overflow; the bound is passed below
	}
	c.pass(max(ns, 0) + readCost)
}

func (c *clock) yield() {
	c.pass(yieldCost)
}

// note adds an event to the trace.
func (c *clock) note(what int64) {
	b := c.word[:0]
	b = appendInt64(b, c.now)
	b = appendInt64(b, what)
	_, _ = c.trace.Write(b)
}

func appendInt64(b []byte, n int64) []byte {
	for range 8 {
		b = append(b, byte(n))
		n >>= 8
	}
	return b
}

type clockKey struct{}

// jump is the guest's sim.jump: the wall clock moves by ns, the monotonic does not.
func jump(ctx context.Context, _ api.Module, stack []uint64) {
	c := ctx.Value(clockKey{}).(*clock)
	c.jump += int64(stack[0])
	c.note(c.jump)
}

// Run runs the guest once, in an instance of its own: nothing is shared with other
// runs, which may go on at the same time. An error means that the run says nothing,
// because ctx ended or the machine failed; what the guest does wrong is a Violation.
func (m *Machine) Run(ctx context.Context, a Args) (Result, error) {
	began := time.Now()
	if a.Virtual == 0 {
		a.Virtual = DefaultVirtual
	}
	c := &clock{bound: int64(a.Virtual), trace: fnv.New64a()}
	stdout := &tail{max: keepOutput, also: a.Log, trace: c}
	stderr := &tail{max: keepStderr, trace: c}
	cfg := wazero.NewModuleConfig().WithName("").WithArgs(a.Command()...).
		WithStdout(stdout).WithStderr(stderr).WithRandSource(source(a.Seed)).
		WithNanotime(c.nanotime, 1).WithWalltime(c.walltime, 1).
		WithNanosleep(c.nanosleep).WithOsyield(c.yield)
	for _, kv := range environment {
		cfg = cfg.WithEnv(kv[0], kv[1])
	}
	mem, err := m.memory.take()
	if err != nil {
		return Result{}, err
	}
	defer mem.leave()
	bounded, cancel := context.WithCancel(context.WithValue(ctx, clockKey{}, c))
	defer m.watch(a.cpu(), cancel)()
	defer context.AfterFunc(bounded, func() { c.stop.Store(true) })()
	mod, err := m.runtime.InstantiateModule(experimental.WithMemoryAllocator(bounded, mem), m.module, cfg)
	if mod != nil {
		_ = mod.Close(context.WithoutCancel(ctx)) // memory only: it has no files
	}
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	r := Result{Seed: a.Seed, Steps: a.Steps}
	switch code, ended := exitCode(err); {
	case c.over:
		r.Violation = &Violation{Hung, fmt.Sprintf("still running after %v of virtual time", a.Virtual)}
	case bounded.Err() != nil:
		r.Violation = &Violation{Hung, fmt.Sprintf("still computing after %v, at %v of virtual time", a.cpu(), time.Duration(c.now))}
	case !ended:
		r.Violation = &Violation{Crash, lastOf(err.Error(), detailSize)}
	default:
		r.report(code, stdout.bytes(), stderr.bytes())
	}
	r.Trace, r.Clock, r.Wall = c.trace.Sum64(), time.Duration(c.now), time.Since(began)
	r.Output, r.Stderr = stdout.bytes(), stderr.bytes()
	if r.Faults == nil {
		r.Faults = planned(stdout.head)
	}
	return r, nil
}

// exitCode returns what the guest exited with; false if it did not exit but trapped.
func exitCode(err error) (uint32, bool) {
	var exit *sys.ExitError
	switch {
	case err == nil:
		return 0, true
	case errors.As(err, &exit):
		return exit.ExitCode(), true
	default:
		return 0, false
	}
}

// What the guest's lines begin with that are for the host.
const (
	planPrefix   = "PLAN " // then the names of the planned faults, as JSON
	resultPrefix = "RESULT "
)

// planned returns the faults of the guest's plan. It prints them first, so that they
// are known even if it does not come to its result.
func planned(head []byte) []string {
	for line := range bytes.Lines(head) {
		if text, ok := bytes.CutPrefix(line, []byte(planPrefix)); ok {
			var names []string
			_ = json.Unmarshal(text, &names) // nothing depends on it but shorter lists of faults
			return names
		}
	}
	return nil
}

// report fills in what the guest says in its last line. Exit code 0 without a
// violation and 1 with one are its two good ends.
func (r *Result) report(code uint32, stdout, stderr []byte) {
	seed, steps := r.Seed, r.Steps
	text := strings.TrimRight(string(stdout), "\n")
	line, ok := strings.CutPrefix(text[strings.LastIndexByte(text, '\n')+1:], resultPrefix)
	var unreadable error
	if ok {
		unreadable = json.Unmarshal([]byte(line), r)
		r.Seed, r.Steps = seed, steps
	}
	switch {
	case unreadable != nil:
		r.Violation = &Violation{Crash, fmt.Sprintf("result line: %v: %s", unreadable, lastOf(line, detailSize))}
	case ok && code == 0 && r.Violation == nil, ok && code == 1 && r.Violation != nil:
	case ok && code <= 1:
		r.Violation = &Violation{Crash, fmt.Sprintf("exit code %d does not fit the result %s", code, lastOf(line, detailSize))}
	default:
		r.Violation = &Violation{Crash, fmt.Sprintf("exit code %d without a result: %s", code, crashText(string(stderr)))}
	}
}

// crashText picks from what Go's runtime printed: the reason, and where.
func crashText(stderr string) string {
	for _, start := range []string{"panic: ", "fatal error: ", "runtime: "} {
		if i := strings.Index("\n"+stderr, "\n"+start); i >= 0 {
			return firstOf(stderr[i:], detailSize)
		}
	}
	return lastOf(stderr, detailSize)
}

func firstOf(s string, n int) string {
	return strings.TrimSpace(s[:min(n, len(s))])
}

func lastOf(s string, n int) string {
	return strings.TrimSpace(s[max(0, len(s)-n):])
}

// A tail keeps the first keepHead bytes written to it and the last max, and passes
// all on.
type tail struct {
	max   int
	head  []byte
	buf   []byte
	also  io.Writer
	trace *clock // nil: the writes are no run's
}

func (t *tail) Write(p []byte) (int, error) {
	if t.trace != nil {
		t.trace.pass(0)
		t.trace.note(int64(len(p)))
		_, _ = t.trace.trace.Write(p)
	}
	t.head = append(t.head, p[:min(len(p), keepHead-len(t.head))]...)
	t.buf = append(t.buf, p...)
	if len(t.buf) > 2*t.max {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-t.max:]...)
	}
	if t.also != nil {
		_, _ = t.also.Write(p) // a log that cannot be written changes no run
	}
	return len(p), nil
}

func (t *tail) bytes() []byte {
	return t.buf[max(0, len(t.buf)-t.max):]
}
