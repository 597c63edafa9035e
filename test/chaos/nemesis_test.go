package chaos

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"chronik/test/harness"
)

// env is what a nemesis works with.
type env struct {
	t   *testing.T
	c   *harness.Cluster
	rng *rand.Rand
	l   *load
	// allowed are errors that what was done explains, beside errorsOfRestored.
	allowed []string
	// apart are two nodes that a cut keeps from hearing one another; zero without a cut.
	apart [2]int
}

// seed makes the choices of a run repeatable as far as real processes are.
func seed(t *testing.T) *rand.Rand {
	t.Helper()
	rng, _ := seedValue(t)
	return rng
}

// seedValue is seed, and tells which it is.
func seedValue(t *testing.T) (*rand.Rand, uint64) {
	t.Helper()
	s := uint64(time.Now().UnixNano())
	if v := os.Getenv("CHRONIK_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		s = n
	}
	t.Logf("CHRONIK_SEED=%d", s)
	return rand.New(rand.NewPCG(s, 0)), s
}

// long leaves a test to 'make long' and 'make chaos'.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv("CHRONIK_ROUNDS") == "" {
		harness.Long(t)
	}
}

// rounds is how many rounds to run: short by default, CHRONIK_ROUNDS for the full count.
func rounds(t *testing.T, short int) int {
	t.Helper()
	if s := os.Getenv("CHRONIK_ROUNDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			t.Fatalf("CHRONIK_ROUNDS=%q", s)
		}
		return n
	}
	return short
}

// between lets a random time pass.
func (e *env) between(from, to time.Duration) time.Duration {
	d := from + time.Duration(e.rng.Int64N(int64(to-from)))
	<-time.After(d)
	return d
}

func (e *env) anyNode() int { return 1 + e.rng.IntN(3) }

// signal sends node id's process a signal at once, without waiting for anything.
func (e *env) signal(id int, sig syscall.Signal) {
	e.t.Helper()
	if n := e.c.Node(id); n.Alive() {
		if err := syscall.Kill(n.PID, sig); err != nil {
			e.t.Errorf("signal node %d: %v", id, err)
		}
	}
}

// gone waits until node id's process is.
func (e *env) gone(id int) {
	e.t.Helper()
	e.c.Eventually(15*time.Second, "node is gone", func() error {
		if e.c.Node(id).Alive() {
			return fmt.Errorf("node %d lives", id)
		}
		return nil
	})
}

func (e *env) kill(id int) {
	e.t.Helper()
	e.signal(id, syscall.SIGKILL)
	e.gone(id)
}

// healed waits until the cluster is whole and every partition accepts records, and returns how long that took.
func (e *env) healed(what string) time.Duration {
	e.t.Helper()
	began := time.Now()
	return e.c.Eventually(40*time.Second, what, func() error {
		if err := whole(e.c); err != nil {
			return err
		}
		return e.l.acceptedSince(began)
	})
}

// nemesis breaks something and mends it, and says what it did.
type nemesis struct {
	name string
	run  func(e *env) string
}

var nemeses = []nemesis{
	{"kill one", killOne},
	{"kill two", killTwo},
	{"kill all", killAll},
	{"kill in succession", killInSuccession},
	{"wipe", wipe},
	{"restore a stopped copy", restoreStopped},
	{"restore a running copy", restoreRunning},
	{"stop and continue", stopAndContinue},
	{"restart gracefully", restartGracefully},
}

func killOne(e *env) string {
	id := e.anyNode()
	e.kill(id)
	e.between(0, time.Second)
	e.c.Restart(id)
	return fmt.Sprintf("node %d", id)
}

func killTwo(e *env) string {
	a := e.anyNode()
	b := 1 + (a+e.rng.IntN(2))%3
	e.signal(a, syscall.SIGKILL)
	e.signal(b, syscall.SIGKILL)
	e.gone(a)
	e.gone(b)
	d := e.between(0, time.Second)
	e.c.Restart(a)
	e.c.Restart(b)
	return fmt.Sprintf("nodes %d and %d for %v", a, b, d)
}

func killAll(e *env) string {
	for id := 1; id <= 3; id++ {
		e.signal(id, syscall.SIGKILL)
	}
	for id := 1; id <= 3; id++ {
		e.gone(id)
	}
	for id := 1; id <= 3; id++ {
		e.c.Restart(id)
	}
	return ""
}

// killInSuccession kills a node again and again shortly after its start.
func killInSuccession(e *env) string {
	id := e.anyNode()
	n := 3 + e.rng.IntN(5)
	for range n {
		e.kill(id)
		e.c.Restart(id)
		e.between(30*time.Millisecond, 500*time.Millisecond)
	}
	return fmt.Sprintf("node %d, %d times", id, n)
}

func wipe(e *env) string {
	id := e.anyNode()
	e.kill(id)
	e.c.Wipe(id)
	e.between(0, 500*time.Millisecond)
	e.c.Restart(id)
	return fmt.Sprintf("node %d", id)
}

// restoreStopped gives a node back an older copy of its disk, taken while it was stopped.
func restoreStopped(e *env) string {
	id := e.anyNode()
	old := filepath.Join(e.t.TempDir(), "older")
	e.c.Stop(id)
	copyDir(e.t, e.c.Node(id).Dir, old)
	e.c.Restart(id)
	e.healed("whole before the restore")
	d := e.between(0, time.Second)
	e.kill(id)
	e.c.Wipe(id)
	copyDir(e.t, old, e.c.Node(id).Dir)
	e.c.Restart(id)
	return fmt.Sprintf("node %d, %v old", id, d)
}

// restoreRunning gives a node a copy of its disk that was taken while it ran. Such a
// copy is not consistent: the node may refuse it, and is then wiped.
func restoreRunning(e *env) string {
	id := e.anyNode()
	old := filepath.Join(e.t.TempDir(), "running")
	e.allowed = append(e.allowed, "quarantined replica") // whose files were copied at different times
	// cp fails on files that vanish under it; what it got is the copy.
	_ = exec.Command("cp", "-a", e.c.Node(id).Dir, old).Run()
	d := e.between(0, time.Second)
	e.kill(id)
	e.c.Wipe(id)
	copyDir(e.t, old, e.c.Node(id).Dir)
	e.c.Restart(id)
	return fmt.Sprintf("node %d, %v old%s", id, d, e.wipeIfRefused(id))
}

// wipeIfRefused waits until node id, whose disk was damaged, serves, or wipes it if it refused to start.
func (e *env) wipeIfRefused(id int) string {
	e.t.Helper()
	if e.apart != [2]int{} && e.apart[0] != id && e.apart[1] != id {
		// The two that have voted do not hear one another, and the third has lost what it
		// voted with: until the cut heals there is no majority for it to join.
		e.heal()
	}
	refused := false
	e.c.Eventually(40*time.Second, "node serves or refuses", func() error { // also beside a cut, until leaderships have moved
		if !e.c.Node(id).Alive() {
			refused = true
			return nil
		}
		return e.c.Ready(id)
	})
	if !refused {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(e.c.NodeLog(id)), "\n")
	last := ""
	for _, l := range lines[max(0, len(lines)-5):] {
		if strings.HasPrefix(l, "chronik: error") {
			last = l
		}
	}
	if last == "" {
		e.t.Errorf("node %d ended without saying why: %q", id, lines[max(0, len(lines)-5):])
	}
	e.c.Wipe(id)
	e.c.Restart(id)
	return fmt.Sprintf(", refused (%s) and wiped", last)
}

// stopAndContinue freezes a process: to the others it looks dead, and it does not know.
func stopAndContinue(e *env) string {
	id := e.anyNode()
	role := "a node"
	switch e.rng.IntN(3) {
	case 0:
		if n, _, err := e.c.Leader("__meta"); err == nil {
			id, role = n, "the metadata leader"
		}
	case 1:
		if n, _, err := e.c.Leader(e.l.o.topic + "-0"); err == nil {
			id, role = n, "the leader of partition 0"
		}
	}
	limit := 3 * time.Second
	if os.Getenv("CHRONIK_ROUNDS") != "" {
		limit = 8 * time.Second
	}
	e.signal(id, syscall.SIGSTOP)
	d := e.between(500*time.Millisecond, limit)
	e.signal(id, syscall.SIGCONT)
	return fmt.Sprintf("%s, node %d, for %v", role, id, d)
}

func restartGracefully(e *env) string {
	id := e.anyNode()
	e.c.Stop(id)
	e.c.Restart(id)
	return fmt.Sprintf("node %d", id)
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v %s", err, out)
	}
}
