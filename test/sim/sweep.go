package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"chronik/test/sim/machine"
)

const (
	progressEvery = 15 * time.Second
	reduceAtMost  = 3 // violations of one sweep: the rest is only told
)

// sums is what a number of runs came to.
type sums struct {
	seeds, violations, twice int
	events                   int64
	virtual                  time.Duration
	faults                   map[string]int64
	counts                   map[string]int64
}

// add counts r. A planned fault counts if the guest says that it began: the run may have been over before.
func (t *sums) add(r machine.Result) {
	if t.faults == nil {
		t.faults, t.counts = map[string]int64{}, map[string]int64{}
	}
	t.seeds++
	t.events += r.Events
	t.virtual += r.Clock
	if r.Violation != nil {
		t.violations++
	}
	kinds := map[string]bool{}
	for _, name := range r.Faults {
		kind, _, _ := strings.Cut(name, " ")
		kinds[kind] = true
	}
	for kind := range kinds {
		if n := r.Counts["fault "+kind]; n > 0 {
			t.faults[kind] += n
		}
	}
	for name, n := range r.Counts {
		t.counts[name] += n
	}
}

// text is one line of them, for runs that took d.
func (t *sums) text(d time.Duration) string {
	faults := make([]string, 0, len(t.faults))
	for _, name := range slices.Sorted(maps.Keys(t.faults)) {
		faults = append(faults, fmt.Sprintf("%s %d", name, t.faults[name]))
	}
	if len(faults) == 0 {
		faults = append(faults, "none")
	}
	return fmt.Sprintf("%d seeds, %d events, virtual time %v, faults: %s; %.1f seeds/min, %d run twice, %d violations",
		t.seeds, t.events, t.virtual.Round(time.Second), strings.Join(faults, ", "),
		float64(t.seeds)/max(d.Minutes(), 1e-9), t.twice, t.violations)
}

// A done is a run that came to its end, or the error that ended the sweep.
type done struct {
	seed   uint64
	twice  bool
	result machine.Result
	err    error
}

// sweep runs seeds until all are done, the time is over, ctx ends, or one is violated.
func (s *sim) sweep(ctx context.Context) error {
	t, err := openTally(ctx, s.options, s.program)
	if err != nil {
		return err
	}
	from := s.from
	if s.resume {
		from = t.next
	}
	began := time.Now()
	begin, stop := context.WithCancel(ctx) // while begin lives, seeds are begun
	defer stop()
	if s.runFor > 0 {
		timer := time.AfterFunc(s.runFor, stop)
		defer timer.Stop()
	}
	c := &collector{sim: s, next: from, last: from - 1, waiting: map[uint64]done{}, tally: t, stop: stop}
	err = c.collect(s.results(ctx, begin, from), began)
	fmt.Fprintf(s.out, "sim: seeds %d to %d: %s\n", from, c.next-1, c.all.text(time.Since(began)))
	for _, name := range slices.Sorted(maps.Keys(c.all.counts)) {
		fmt.Fprintf(s.out, "sim:   %s %d\n", name, c.all.counts[name])
	}
	s.conclude(ctx, c.bad)
	switch {
	case err != nil:
		return err
	case len(c.bad) > 0:
		return errViolation
	case c.all.seeds < s.least:
		fmt.Fprintf(s.out, "sim: TOO FEW SEEDS: %d were run to their end, -least asks for %d\n", c.all.seeds, s.least)
		return errTooFew
	}
	return nil
}

// conclude prints the violations. The lowest seeds come last and are made smaller: one,
// or more if the sweep went on behind it.
func (s *sim) conclude(ctx context.Context, bad []machine.Result) {
	slices.SortFunc(bad, func(a, b machine.Result) int { return cmp.Compare(b.Seed, a.Seed) })
	smaller := 1
	if s.keepGoing {
		smaller = reduceAtMost
	}
	for i, r := range bad {
		if len(bad)-i <= smaller && s.minimise > 0 && ctx.Err() == nil {
			s.reduce(ctx, s.args(r.Seed), r)
		} else {
			s.tell(r)
			fmt.Fprintf(s.out, "  %s\n", command(s.args(r.Seed)))
		}
	}
}

// results runs the seeds from first on with all workers. Seeds are begun in order,
// while begin lives; those begun end unless ctx does. The channel is closed after them.
func (s *sim) results(ctx, begin context.Context, first uint64) <-chan done {
	seeds := make(chan uint64)
	go func() {
		defer close(seeds)
		for i := range uint64(s.n) {
			if begin.Err() != nil {
				return
			}
			select {
			case seeds <- first + i:
			case <-begin.Done():
				return
			}
		}
	}()
	out := make(chan done)
	var workers sync.WaitGroup
	for range s.workers {
		workers.Go(func() {
			for seed := range seeds {
				d := done{seed: seed, twice: s.check > 0 && seed%uint64(s.check) == 0}
				d.result, d.err = s.run(ctx, s.args(seed), d.twice)
				if ctx.Err() != nil {
					return // the run was cut short
				}
				out <- d
			}
		})
	}
	go func() {
		workers.Wait()
		close(out)
	}()
	return out
}

// A collector takes runs as they end and counts them in the order of their seeds.
type collector struct {
	*sim
	next    uint64          // all seeds before it are counted
	last    uint64          // all seeds up to it are in the tally
	waiting map[uint64]done // ended before an earlier seed did
	all     sums
	batched sums
	bad     []machine.Result
	tally   *tally
	stop    func()
}

func (c *collector) collect(results <-chan done, began time.Time) error {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	var failed error
	for {
		select {
		case d, ok := <-results:
			if !ok {
				return first(failed, c.flush())
			}
			if d.err != nil {
				failed = first(failed, fmt.Errorf("seed %d: %w", d.seed, d.err))
				c.stop()
				continue
			}
			failed = first(failed, c.take(d))
		case <-tick.C:
			fmt.Fprintf(os.Stderr, "sim: %v: %s\n", time.Since(began).Round(time.Second), c.all.text(time.Since(began)))
		}
	}
}

func (c *collector) take(d done) error {
	if d.result.Violation != nil {
		c.bad = append(c.bad, d.result)
		fmt.Fprintf(os.Stderr, "sim: seed %d: %s\n", d.seed, d.result.Violation.Check)
		if !c.keepGoing {
			c.stop()
		}
	}
	c.waiting[d.seed] = d
	for {
		d, ok := c.waiting[c.next]
		if !ok {
			return nil
		}
		delete(c.waiting, c.next)
		c.next++
		for _, t := range []*sums{&c.all, &c.batched} {
			t.add(d.result)
			if d.twice {
				t.twice++
			}
		}
		if c.batched.seeds >= c.batch {
			if err := c.flush(); err != nil {
				return err
			}
		}
	}
}

// flush adds what was counted since the last time to the tally.
func (c *collector) flush() error {
	if c.batched.seeds == 0 {
		return nil
	}
	err := c.tally.add(c.last+1, c.next-1, c.steps, c.batched)
	c.last, c.batched = c.next-1, sums{}
	return err
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
