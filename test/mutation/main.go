// Command mutation breaks Chronik on purpose, one patch at a time, and asks each
// layer of tests whether it notices: NN-name.patch is a bug that an engineer could
// make, applied to a copy of the tree.
//
//	patch ──▶ copy of the tree ──▶ package tests ──▶ simulation ──▶ power cuts ──▶ real processes
//	                               each says for itself: caught, by which test, after how long
//
// A layer counts only if it is green on the tree as it is, in the same run, and a
// bug only as caught if what failed fails again. A patch that does not apply, or
// compile, ends the run: it tests nothing. A mutation that no layer catches is exit code 1.
//
//	go run ./test/mutation                    all of them, all layers
//	go run ./test/mutation -only 07,12 -layers packages,crash
//
// Results are kept in test/mutation/results.tsv as they come and shown in docs/testing.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// layerNames are all layers in order of cost.
var layerNames = []string{"packages", "sim", "crash", "chaos"}

type options struct {
	only, layers       []string
	seeds              int
	sim                string
	results, docs, dir string
	noDocs             bool
	limit              time.Duration
}

func main() {
	o := options{dir: "test/mutation", results: "test/mutation/results.tsv", docs: "docs/testing.md"}
	only := flag.String("only", "", "numbers of mutations, with commas; empty: all")
	layers := flag.String("layers", strings.Join(layerNames, ","), "layers to ask, with commas")
	flag.IntVar(&o.seeds, "seeds", 50, "seeds for the simulation")
	flag.StringVar(&o.sim, "sim", "go run ./test/sim -n {seeds} -minimise 0 -check 0", "the simulation's command")
	flag.DurationVar(&o.limit, "limit", 5*time.Minute, "time limit of a package's tests, twice that for crash and chaos")
	flag.BoolVar(&o.noDocs, "no-docs", false, "leave the document alone")
	flag.Parse()
	o.only, o.layers = list(*only), list(*layers)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "mutation:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has run
	}
}

func list(s string) []string {
	return slices.DeleteFunc(strings.Split(s, ","), func(p string) bool { return p == "" })
}

func run(ctx context.Context, o options) (err error) {
	if _, err := os.Stat("go.mod"); err != nil {
		return errors.New("run it in the module's root directory")
	}
	all, err := readMutations(o.dir, nil)
	if err != nil {
		return err
	}
	ms, err := readMutations(o.dir, o.only)
	if err != nil {
		return err
	}
	rs, err := readResults(o.results)
	if err != nil {
		return err
	}
	rs = current(all, rs)
	dir, err := os.MkdirTemp("", "chronik-mutation-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := copyTree(".", dir); err != nil {
		return err
	}
	t := &tester{
		dir: dir, commit: commit(), say: func(format string, args ...any) { fmt.Printf(format+"\n", args...) },
		keep: func(r result) error {
			if r.verdict != invalid {
				rs = merge(rs, r)
			}
			return writeResults(o.results, rs)
		},
	}
	if t.layers, err = o.make(ms); err != nil {
		return err
	}
	if err := t.baseline(ctx); err != nil {
		return err
	}
	var news []result
	for i := range ms {
		r, err := t.try(ctx, &ms[i])
		if err != nil {
			return err
		}
		news = append(news, r...)
	}
	if !o.noDocs {
		if err := document(o.docs, all, rs); err != nil {
			return err
		}
	}
	return judge(ms, news, rs)
}

// judge is the run's end: every mutation caught, in this run or by a layer that was not asked now.
func judge(ms []mutation, news, rs []result) error {
	if left := uncaught(ms, append(slices.Clone(rs), news...)); len(left) > 0 {
		return fmt.Errorf("%d of %d mutations are not caught:\n  %s", len(left), len(ms), strings.Join(left, "\n  "))
	}
	fmt.Printf("%d of %d mutations are caught\n", len(ms), len(ms))
	return nil
}

// make returns the wanted layers.
func (o *options) make(ms []mutation) ([]layer, error) {
	var all []string
	for i := range ms {
		all = append(all, ms[i].packages()...)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	one := func(pkg string) func(*mutation) []string { return func(*mutation) []string { return []string{pkg} } }
	var ls []layer
	for _, name := range o.layers {
		switch name {
		case "packages":
			ls = append(ls, &goTests{title: name, of: (*mutation).packages, all: all, limit: o.limit, quick: true})
		case "sim":
			if _, err := os.Stat("test/sim"); err != nil {
				return nil, fmt.Errorf("layer sim: %w", err)
			}
			args := strings.Fields(strings.ReplaceAll(o.sim, "{seeds}", fmt.Sprint(o.seeds)))
			ls = append(ls, &simulation{args: args, limit: max(10*time.Minute, time.Duration(o.seeds)*10*time.Second)})
		case "crash":
			ls = append(ls, &goTests{title: name, of: one("./test/crash"), all: []string{"./test/crash"}, limit: 2 * o.limit, quick: true})
		case "chaos":
			ls = append(ls, &goTests{
				title: name, of: one("./test/chaos"), all: []string{"./test/chaos"}, pattern: "^TestNemeses$",
				env: []string{"CHRONIK_ROUNDS=8", "CHRONIK_SEED=1"}, limit: 2 * o.limit,
			})
		default:
			return nil, fmt.Errorf("no layer %q; there are %s", name, strings.Join(layerNames, ", "))
		}
	}
	return ls, nil
}

// commit names the tree: the last commit, with a + if files differ from it.
func commit() string {
	out, err := exec.Command("git", "rev-parse", "--short=10", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	c := strings.TrimSpace(string(out))
	dirty, err := exec.Command("git", "status", "--porcelain", "--", "internal", "cmd", "test", ":!test/mutation/results.tsv").Output()
	if err != nil || len(dirty) > 0 {
		c += "+"
	}
	return c
}

func document(name string, ms []mutation, rs []result) error {
	doc, err := os.ReadFile(filepath.FromSlash(name))
	if err != nil {
		return err
	}
	doc, err = putTable(doc, table(ms, rs))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return os.WriteFile(name, doc, 0o644)
}
