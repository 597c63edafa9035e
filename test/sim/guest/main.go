// Command guest is one simulated run: whole nodes, their disks, the network between them, clients, faults and
// checks, in one program that is compiled to WebAssembly and given its time and its randomness
// by test/sim/machine. A seed says all that happens.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
)

// began and ended are called at the run's beginning and end.
var began, ended = func() {}, func() {}

func main() {
	var opt options
	flag.Uint64Var(&opt.seed, "seed", 1, "the run's seed")
	flag.IntVar(&opt.steps, "steps", defaultSteps, "steps of virtual time before everything is mended")
	flag.IntVar(&opt.nodes, "nodes", 0, "nodes; 0: as the seed says")
	skip := flag.String("skip", "", "numbers of faults to leave out, with commas between")
	flag.Parse()
	began()
	opt.skip = map[int]bool{}
	for _, s := range strings.Split(*skip, ",") {
		if n, err := strconv.Atoi(s); err == nil {
			opt.skip[n] = true
		}
	}
	// Collecting seldom is faster, and a run is short.
	debug.SetGCPercent(400)
	// The log is always written: what is not logged would be another run. The host drops it.
	opt.log = slog.New(slog.NewTextHandler(os.Stdout, nil))
	w := newWorld(opt)
	show("PLAN", w.faults())
	w.run()
	ended()
	show("RESULT", w.result())
	if w.violation != nil {
		os.Exit(1)
	}
}

// show prints a line for the host.
func show(word string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	fmt.Printf("%s %s\n", word, b)
}
