package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"chronik/test/sim/machine"
)

const guestPackage = "chronik/test/sim/guest"

// determinism is the check that a run equals its repetition.
const determinism = "determinism"

// These end the command with exit code 1. What was violated, or is missing, is printed by then.
var (
	errViolation = errors.New("a violation")
	errTooFew    = errors.New("too few seeds")
)

type options struct {
	seed, from  uint64
	n, steps    int
	least       int
	skip        []int
	verbose     bool
	tally       string
	resume      bool
	batch       int
	workers     int
	runFor      time.Duration
	check       int
	minimise    time.Duration
	keepGoing   bool
	virtual     time.Duration
	cpu         time.Duration
	cache       string
	guest       []string
	single      bool
	minimiseSet bool
}

func main() {
	machine.Worker()
	o, err := parse(os.Args[1:], os.Stderr)
	if err != nil {
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, o, os.Stdout); {
	case errors.Is(err, errViolation), errors.Is(err, errTooFew):
		os.Exit(1)
	case err != nil:
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(2)
	}
}

func parse(args []string, stderr io.Writer) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("sim", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Uint64Var(&o.seed, "seed", 0, "run this seed alone")
	f.Uint64Var(&o.from, "from", 1, "first seed of a sweep")
	f.IntVar(&o.n, "n", 100, "seeds of a sweep")
	f.IntVar(&o.least, "least", 0, "a sweep of which fewer seeds were run to their end has failed")
	f.IntVar(&o.steps, "steps", 200, "steps of each run")
	skip := f.String("skip", "", "indexes of the planned faults that do not happen: 0,2,5")
	f.BoolVar(&o.verbose, "v", false, "print the guest's log")
	f.StringVar(&o.tally, "tally", "", "add what was done to this file")
	f.BoolVar(&o.resume, "resume", false, "begin after the highest seed in the tally")
	f.IntVar(&o.batch, "batch", 500, "seeds of one line of the tally")
	f.IntVar(&o.workers, "workers", runtime.GOMAXPROCS(0), "runs at a time")
	f.DurationVar(&o.runFor, "for", 0, "begin no seed after this time; 0: no limit")
	f.IntVar(&o.check, "check", 50, "run every so many seeds twice and compare; 0: none")
	f.DurationVar(&o.minimise, "minimise", 3*time.Minute, "time to make a failing seed smaller; a single seed is made smaller only if this is given")
	f.BoolVar(&o.keepGoing, "keep-going", false, "a violation does not end the sweep")
	f.DurationVar(&o.virtual, "virtual", machine.DefaultVirtual, "bound of a run's virtual time")
	f.DurationVar(&o.cpu, "cpu", machine.DefaultCPU, "bound of what a run computes")
	f.StringVar(&o.cache, "cache", "", "directory of compiled guests (default: in the user's cache directory)")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	f.Visit(func(set *flag.Flag) {
		o.single = o.single || set.Name == "seed"
		o.minimiseSet = o.minimiseSet || set.Name == "minimise"
	})
	o.guest = f.Args()
	var err error
	if o.skip, err = parseInts(*skip); err == nil && (o.n < 1 || o.steps < 1 || o.workers < 1 || o.batch < 1) {
		err = errors.New("-n, -steps, -workers and -batch are at least 1")
	}
	if err == nil && o.least > o.n {
		err = errors.New("-least is at most -n")
	}
	if err == nil && o.resume && o.tally == "" {
		err = errors.New("-resume needs -tally")
	}
	if err != nil {
		fmt.Fprintln(stderr, "sim:", err)
	}
	return o, err
}

func parseInts(s string) ([]int, error) {
	if s == "" {
		return nil, nil
	}
	var out []int
	for part := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || n < 0 {
			return nil, fmt.Errorf("-skip: %q is no index", part)
		}
		out = append(out, n)
	}
	return out, nil
}

func run(ctx context.Context, o *options, out io.Writer) error {
	p, program, err := open(ctx, o)
	if err != nil {
		return err
	}
	s := &sim{options: o, exec: p.Run, program: program, out: out}
	if o.single {
		err = s.one(ctx)
	} else {
		err = s.sweep(ctx)
	}
	return first(err, p.Close())
}

// open compiles the guest of the sources at hand and returns its name as well.
func open(ctx context.Context, o *options) (*machine.Pool, string, error) {
	if o.cache == "" {
		var err error
		if o.cache, err = machine.CacheDir(); err != nil {
			return nil, "", err
		}
	}
	began := time.Now()
	wasm, err := machine.Build(ctx, ".", guestPackage, o.cache)
	if err != nil {
		return nil, "", err
	}
	built := time.Now()
	p, err := machine.NewPool(ctx, wasm, machine.Options{Cache: o.cache})
	if err == nil {
		fmt.Fprintf(os.Stderr, "sim: guest built in %v, compiled in %v\n", round(built.Sub(began)), round(time.Since(built)))
	}
	return p, programName(wasm), err
}

// sim is the command at work.
type sim struct {
	*options
	exec    func(context.Context, machine.Args) (machine.Result, error) // Pool.Run
	program string                                                      // the guest's name
	out     io.Writer
}

func (s *sim) args(seed uint64) machine.Args {
	return machine.Args{Seed: seed, Steps: s.steps, Skip: s.skip, Flags: s.guest, Virtual: s.virtual, CPU: s.cpu}
}

// one runs the seed that was asked for.
func (s *sim) one(ctx context.Context) error {
	a := s.args(s.seed)
	if s.verbose {
		a.Log = s.out // the guest is not told: it would be another run
	}
	r, err := s.run(ctx, a, s.check == 1)
	if err != nil {
		return err
	}
	var t sums
	t.add(r)
	fmt.Fprintf(s.out, "sim: seed %d, hash %s, trace %016x, %s\n", r.Seed, r.Hash, r.Trace, t.text(r.Wall))
	fmt.Fprintf(s.out, "sim: planned faults: %s\n", numbered(r.Faults))
	if r.Violation == nil {
		return nil
	}
	if s.minimiseSet {
		a.Flags, a.Log = s.guest, nil
		s.reduce(ctx, a, r)
	} else {
		s.tell(r)
	}
	return errViolation
}

// run runs a; twice if that is wished and the first time finds nothing.
func (s *sim) run(ctx context.Context, a machine.Args, twice bool) (machine.Result, error) {
	r, err := s.exec(ctx, a)
	if err != nil || r.Violation != nil || !twice {
		return r, err
	}
	a.Log = nil
	again, err := s.exec(ctx, a)
	if err != nil {
		return r, err
	}
	if again.Hash != r.Hash || again.Trace != r.Trace || again.Violation != nil {
		r.Violation = &machine.Violation{Check: determinism, Detail: fmt.Sprintf(
			"hash %s, trace %016x, %d events, %v; then %s, %016x, %d, %v",
			r.Hash, r.Trace, r.Events, r.Clock, again.Hash, again.Trace, again.Events, again.Clock)}
	}
	return r, nil
}

// tell prints a violation and what the guest printed last.
func (s *sim) tell(r machine.Result) {
	fmt.Fprintf(s.out, "sim: seed %d: VIOLATION of %s: %s\n", r.Seed, r.Violation.Check, r.Violation.Detail)
}

// command is what shows the run a again.
func command(a machine.Args) string {
	words := []string{"go run ./test/sim", "-seed", strconv.FormatUint(a.Seed, 10), "-steps", strconv.Itoa(a.Steps)}
	if len(a.Skip) > 0 {
		words = append(words, "-skip", machine.JoinInts(a.Skip))
	}
	if len(a.Flags) > 0 {
		words = append(append(words, "--"), a.Flags...)
	}
	return strings.Join(words, " ")
}

func numbered(names []string) string {
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = fmt.Sprintf("%d %s", i, name)
	}
	return strings.Join(out, ", ")
}

func round(d time.Duration) time.Duration {
	return d.Round(10 * time.Millisecond)
}
