package chaos

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"chronik/test/harness"
)

// errorsOfRestored are log lines of a node that got another disk: it must say so.
var errorsOfRestored = []string{"restored copy", "raftlog does not belong to the store", "cannot open"}

// TestNemeses breaks a loaded cluster in every way, in random order. It must be
// whole again each time, and at the end every record where it was acknowledged.
// CHRONIK_TEST_NEMESIS limits it to those whose name contains the value.
func TestNemeses(t *testing.T) {
	rng := seed(t)
	c := harness.Start(t, harness.Options{Threshold: 300})
	e := &env{t: t, c: c, rng: rng, l: startLoad(t, c, loadOptions{size: 100, rate: time.Millisecond})}
	e.healed("whole at the beginning")
	deck := []nemesis{}
	for i := range rounds(t, 1) {
		if len(deck) == 0 {
			deck = slices.Clone(nemeses)
			if only := os.Getenv("CHRONIK_TEST_NEMESIS"); only != "" {
				deck = slices.DeleteFunc(deck, func(n nemesis) bool { return !strings.Contains(n.name, only) })
			}
			rng.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		n := deck[0]
		deck = deck[1:]
		e.l.worstGap()
		what := n.run(e)
		took := e.healed(n.name + " " + what)
		t.Logf("%s round %d: %s %s: whole after %v, longest without an acknowledgement %v", time.Now().UTC().Format("15:04:05.000"), i, n.name, what, took, e.l.worstGap())
		if t.Failed() {
			break
		}
		e.between(0, 300*time.Millisecond)
	}
	e.l.finish()
	e.quiet(errorsOfRestored...)
}
