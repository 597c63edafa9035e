package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"chronik/test/sim/machine"
)

// minNodes is how few nodes a smaller run may have: a majority is part of the matter.
const minNodes = 3

// A reducer makes a failing run smaller: every smaller run that fails alike takes its
// place. What it holds was run, so it needs no belief in how runs of different steps,
// faults or nodes hang together.
type reducer struct {
	run     func(context.Context, machine.Args) (machine.Result, error)
	workers int
	args    machine.Args // the smallest that failed
	result  machine.Result
	tried   int
}

// reduce makes the failed run a smaller within the time for that, and prints it.
func (s *sim) reduce(ctx context.Context, a machine.Args, r machine.Result) {
	s.tell(r)
	bounded, cancel := context.WithTimeout(ctx, s.minimise)
	defer cancel()
	twice := r.Violation.Check == determinism
	d := &reducer{workers: s.workers, args: a, result: r, run: func(ctx context.Context, a machine.Args) (machine.Result, error) {
		return s.run(ctx, a, twice)
	}}
	began := time.Now()
	d.reduce(bounded)
	fmt.Fprintf(s.out, "sim: smaller: steps %d to %d, faults %d to %d; %d runs in %v\n",
		a.Steps, d.args.Steps, len(r.Faults)-len(a.Skip), len(kept(d.result, d.args.Skip)), d.tried, round(time.Since(began)))
	again, err := s.run(ctx, d.args, twice)
	switch {
	case err != nil:
		fmt.Fprintf(s.out, "sim: it was not run once more: %v\n", err)
	case again.Violation == nil:
		fmt.Fprintf(s.out, "sim: and it did NOT fail when it was run once more: something is not deterministic\n")
	case again.Trace != d.result.Trace:
		fmt.Fprintf(s.out, "sim: and it ran differently once more: something is not deterministic\n")
	default:
		fmt.Fprintf(s.out, "sim: %s: %s\n", again.Violation.Check, again.Violation.Detail)
	}
	fmt.Fprintf(s.out, "  %s\n", command(d.args))
}

// reduce tries fewer steps, fewer faults, fewer nodes, and then fewer steps again,
// until ctx ends.
func (d *reducer) reduce(ctx context.Context) {
	d.fewerSteps(ctx)
	d.fewerFaults(ctx)
	d.fewerNodes(ctx)
	d.fewerSteps(ctx)
}

// fewerSteps searches by halves for the fewest steps that fail.
func (d *reducer) fewerSteps(ctx context.Context) {
	low := 0 // does not fail, as far as is known
	for low+1 < d.args.Steps && ctx.Err() == nil {
		a := d.args
		a.Steps = low + (d.args.Steps-low)/2
		a.Skip = merged(a.Skip, later(d.result, a.Steps))
		if !d.try(ctx, a) {
			low = a.Steps
		}
	}
}

// later returns the indexes of r's planned faults that fewer steps would not have come to. They are left out: a guest that is
// given fewer steps plans for these, and the faults would come at others.
func later(r machine.Result, steps int) []int {
	var out []int
	for i, name := range r.Faults {
		for word := range strings.FieldsSeq(name) {
			at, ok := strings.CutPrefix(word, "at=")
			if n, err := strconv.Atoi(at); ok && err == nil && n >= steps {
				out = append(out, i)
			}
		}
	}
	return out
}

// fewerFaults is Zeller's and Hildebrandt's ddmin over the faults that happen: it
// leaves out ever smaller parts of them, until none can be left out alone.
func (d *reducer) fewerFaults(ctx context.Context) {
	for parts := 1; ctx.Err() == nil; {
		left := kept(d.result, d.args.Skip)
		if len(left) == 0 {
			return
		}
		parts = min(parts, len(left))
		var candidates []machine.Args
		for i := range parts {
			a := d.args
			a.Skip = merged(a.Skip, left[i*len(left)/parts:(i+1)*len(left)/parts])
			candidates = append(candidates, a)
		}
		switch {
		case d.try(ctx, candidates...):
			parts = max(parts-1, 2)
		case parts == len(left):
			return
		default:
			parts *= 2
		}
	}
}

// fewerNodes applies to guests that count their nodes and so have the flag -nodes.
func (d *reducer) fewerNodes(ctx context.Context) {
	for n := d.result.Counts["nodes"] - 1; n >= minNodes && ctx.Err() == nil; n-- {
		a := d.args
		a.Flags = append(withoutNodes(a.Flags), "-nodes", strconv.FormatInt(n, 10))
		if !d.try(ctx, a) {
			return
		}
	}
}

func withoutNodes(flags []string) []string {
	var out []string
	for i, f := range flags {
		if f != "-nodes" && (i == 0 || flags[i-1] != "-nodes") {
			out = append(out, f)
		}
	}
	return out
}

// try runs candidates, as many at a time as there are workers, and takes the first in
// their order that fails like what is held.
func (d *reducer) try(ctx context.Context, candidates ...machine.Args) bool {
	for len(candidates) > 0 && ctx.Err() == nil {
		now := candidates[:min(d.workers, len(candidates))]
		candidates = candidates[len(now):]
		results := make([]machine.Result, len(now))
		var all sync.WaitGroup
		for i, a := range now {
			all.Go(func() {
				if r, err := d.run(ctx, a); err == nil {
					results[i] = r
				}
			})
		}
		all.Wait()
		d.tried += len(now)
		for i, r := range results {
			if alike(r.Violation, d.result.Violation) {
				d.args, d.result = now[i], r
				return true
			}
		}
	}
	return false
}

// alike reports whether a run failed as the other did: the same check, and for
// crashes the same first line but for its numbers.
func alike(a, b *machine.Violation) bool {
	if a == nil || b == nil || a.Check != b.Check {
		return false
	}
	return a.Check != machine.Crash || reason(a.Detail) == reason(b.Detail)
}

func reason(detail string) string {
	line, _, _ := strings.Cut(detail, "\n")
	return strings.Map(func(r rune) rune {
		if '0' <= r && r <= '9' {
			return -1
		}
		return r
	}, line)
}

// kept returns the indexes of r's planned faults that skip does not name.
func kept(r machine.Result, skip []int) []int {
	skipped := map[int]bool{}
	for _, i := range skip {
		skipped[i] = true
	}
	var out []int
	for i := range r.Faults {
		if !skipped[i] {
			out = append(out, i)
		}
	}
	return out
}

// merged returns the indexes of a and of b, in order.
func merged(a, b []int) []int {
	out := slices.Concat(a, b)
	slices.Sort(out)
	return slices.Compact(out)
}
