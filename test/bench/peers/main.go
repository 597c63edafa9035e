// Command peers measures Chronik beside Apache Kafka and NATS JetStream: clusters of
// the same size on loopback, started one after the other, in interleaved rounds, with
// the same client and data. It keeps results as JSON and writes docs/benchmarks.md.
//
//	go run ./test/bench/peers [-part throughput,latency] [-only REGEXP] [-rounds 5] [-seconds 5]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"chronik/test/bench/backed"
)

// steady is after how many seconds of full load figures stay what they are. On two cores a JVM has compiled
// its hot paths by then (Kafka's throughput is up to twice what it is after 5 s), and the page cache has taken all memory, so
// that nothing waits for the host to give more.
const steady = 60

// bench is one run of the command.
type bench struct {
	dir     string // for everything that does not stay
	port    int
	rounds  int
	length  time.Duration
	warm    time.Duration
	fill    int64  // bytes of the restart and cold parts
	profile string // CPU profiles of Chronik's nodes go here
	only    *regexp.Regexp
	peers   []peer
	part    *part
	results *results
	reserve *backed.Reserve    // so that every server finds the same memory
	most    map[string]float64 // records a second at full load, by peer
	round   int
}

// part is a group of workloads that is measured together.
type part struct {
	name  string
	title string
	// once runs before the rounds.
	once func(ctx context.Context, b *bench) error
	// round measures one peer once.
	round func(ctx context.Context, b *bench, p peer) error
}

func main() {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	b := &bench{}
	which := flag.String("part", "all", "which workloads, separated by commas: all, "+strings.Join(names, ", "))
	only := flag.String("only", "", "of those, only workloads that match this regular expression")
	who := flag.String("peers", "chronik,kafka,kafka-flush,nats", "which servers, in the order of a round")
	flag.IntVar(&b.rounds, "rounds", 5, "interleaved rounds")
	seconds := flag.Float64("seconds", 5, "seconds of each measurement")
	warm := flag.Float64("warm", steady, "seconds of the same load before each measurement")
	data := flag.String("data", ".", "a directory on the disk to measure")
	flag.Int64Var(&b.fill, "bytes", 1_000_000_000, "bytes of data for cold reads and restarts")
	flag.IntVar(&b.port, "base-port", 28092, "ports from here to 300 above are used")
	flag.StringVar(&b.profile, "profile", "", "write CPU profiles of Chronik's nodes here")
	results := flag.String("results", "test/bench/results", "where results are kept")
	docs := flag.String("docs", "docs", "where benchmarks.md is; empty: it is not written")
	render := flag.Bool("render", false, "measure nothing, only write docs from the results that are kept")
	flag.Parse()
	b.length, b.warm = time.Duration(*seconds*float64(time.Second)), time.Duration(*warm*float64(time.Second))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := func() error {
		var err error
		if b.only, err = regexp.Compile(*only); err != nil {
			return err
		}
		if !*render {
			err = b.run(ctx, *which, *who, *data, *results)
		}
		if *docs != "" {
			err = errors.Join(err, document(*results, *docs))
		}
		return err
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench peers:", err)
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context, which, who, data, kept string) (err error) {
	chosen, err := choose(which)
	if err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(data, "bench-peers-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if b.dir, err = filepath.Abs(b.dir); err != nil {
		return err
	}
	b.reserve = backed.NewReserve()
	defer b.reserve.Close()
	machine, err := describeMachine()
	if err != nil {
		return err
	}
	fmt.Println("machine:", machine)
	skipped, err := b.assemble(ctx, who)
	if err != nil {
		return err
	}
	for _, p := range chosen {
		b.part, b.most = p, map[string]float64{}
		if b.results, err = openResults(kept, p.name); err != nil {
			return err
		}
		b.results.begin(machine, b, skipped)
		fmt.Printf("\n%s: %s; %d rounds of %v after %v of warm-up\n", p.name, p.title, b.rounds, b.length, b.warm)
		if failed := b.measure(ctx); failed != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", p.name, failed))
		}
		if saved := b.results.save(); saved != nil {
			return errors.Join(err, saved)
		}
		if ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
	}
	return err
}

func (b *bench) measure(ctx context.Context) error {
	if b.part.once != nil {
		if err := b.part.once(ctx, b); err != nil {
			return err
		}
	}
	failed := 0
	for b.round = range b.rounds {
		for _, p := range b.peers {
			err := b.part.round(ctx, b, p)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil { // the others go on: hours may be behind them
				failed++
				fmt.Fprintln(os.Stderr, "FAILED:", err)
				why, _, _ := strings.Cut(err.Error(), "\n")
				b.results.skip(fmt.Sprintf("%s in round %d: %s", failedMark, b.round+1, why))
			}
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d measurements failed", failed, b.rounds*len(b.peers))
	}
	return nil
}

func choose(which string) ([]*part, error) {
	var chosen []*part
	for name := range strings.SplitSeq(which, ",") {
		at := slices.IndexFunc(parts, func(p *part) bool { return p.name == name })
		switch {
		case name == "all":
			chosen = append(chosen, parts...)
		case at < 0:
			return nil, fmt.Errorf("no part %q", name)
		default:
			chosen = append(chosen, parts[at])
		}
	}
	return chosen, nil
}

// assemble prepares the servers, and says which are left out and why.
func (b *bench) assemble(ctx context.Context, who string) (skipped []string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	cache = filepath.Join(cache, "chronik-bench")
	all := []peer{
		&chronikPeer{dir: b.dir},
		&apacheKafka{cache: cache, dir: b.dir},
		&apacheKafka{cache: cache, dir: b.dir, flush: true},
		&natsPeer{dir: b.dir},
	}
	for name := range strings.SplitSeq(who, ",") {
		at := slices.IndexFunc(all, func(p peer) bool { return p.name() == name })
		if at < 0 {
			return nil, fmt.Errorf("no peer %q", name)
		}
		err := all[at].prepare(ctx)
		if errors.Is(err, errMissing) {
			why := name + leftOut + err.Error()
			fmt.Println(why)
			skipped = append(skipped, why)
			continue
		}
		if err != nil {
			return nil, err
		}
		fmt.Printf("%s: %s\n", name, all[at].about())
		b.peers = append(b.peers, all[at])
	}
	return skipped, nil
}

// wants says whether a workload was chosen.
func (b *bench) wants(workload string) bool { return b.only.MatchString(workload) }

// note keeps one measured value.
func (b *bench) note(p peer, workload, metric, unit string, v float64) {
	b.results.add(workload, metric, unit, p.name(), b.round+1, v)
	fmt.Printf("round %d  %-12s %-44s %-22s %s %s\n", b.round+1, p.name(), workload, metric, number(v), unit)
}

// skip says that a peer does not take part in a workload, and why.
func (b *bench) skip(p peer, workload, why string) {
	b.results.skip(fmt.Sprintf("%s, %s: %s", p.name(), workload, why))
}
