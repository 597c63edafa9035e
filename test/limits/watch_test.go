package limits

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chronik/internal/admin"
	"chronik/test/harness"
)

// whole tells whether the test is to run in full: 'make limits'.
func whole() bool { return os.Getenv("CHRONIK_TEST_LIMITS") != "" }

// status reads a field of /proc/PID/status, in bytes.
func status(tb testing.TB, pid int, field string) int64 {
	tb.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			var kb int64
			if _, err := fmt.Sscan(rest, &kb); err != nil {
				tb.Fatal(err)
			}
			return kb << 10
		}
	}
	tb.Fatalf("process %d has no %s", pid, field)
	return 0
}

// peak is the most memory that the process had at a time.
func peak(tb testing.TB, n harness.Node) int64 { return status(tb, n.PID, "VmHWM") }

// files is the number of file descriptors a process has open.
func files(tb testing.TB, pid int) int {
	tb.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		tb.Fatal(err)
	}
	return len(fds)
}

// needFiles ends the test when this machine allows too few open files for it.
func needFiles(tb testing.TB, n uint64) {
	tb.Helper()
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		tb.Fatal(err)
	}
	if l.Max < n {
		tb.Fatalf("a process may have %d files open here, this test needs %d: raise the hard limit (ulimit -Hn %d), or run with CHRONIK_TEST_IDLE=%d", l.Max, n, n, l.Max/4)
	}
	l.Cur = l.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		tb.Fatal(err)
	}
}

// terms returns the term of every group on every node.
func terms(c *harness.Cluster) map[string]uint64 {
	c.TB.Helper()
	all := map[string]uint64{}
	for _, n := range c.Nodes() {
		var rs admin.Replicas
		if err := c.Get(n.ID, "/v1/replicas", &rs); err != nil {
			c.TB.Fatal(err)
		}
		for _, r := range rs.Replicas {
			all[fmt.Sprintf("node %d %s", n.ID, r.Group)] = r.Term
		}
	}
	return all
}

// elections tells where there was one since before, and logs what the nodes said of it.
func elections(c *harness.Cluster, before map[string]uint64) []string {
	c.TB.Helper()
	var where []string
	for who, term := range terms(c) {
		if was, ok := before[who]; ok && was != term {
			where = append(where, fmt.Sprintf("%s was in term %d and is in %d", who, was, term))
		}
	}
	if where == nil {
		return nil
	}
	slices.Sort(where)
	for _, n := range c.Nodes() {
		var said []string
		for line := range strings.Lines(c.NodeLog(n.ID)) {
			if electing.MatchString(line) {
				said = append(said, line)
			}
		}
		c.TB.Logf("node %d:\n%s", n.ID, strings.Join(said[max(0, len(said)-60):], ""))
	}
	return where
}

// sameTerms fails the test when there was an election.
func sameTerms(c *harness.Cluster, before map[string]uint64) {
	c.TB.Helper()
	for _, where := range elections(c, before) {
		c.TB.Errorf("an election: %s", where)
	}
}

// electing is what nodes log, at level debug, of elections and what leads to them.
var electing = regexp.MustCompile("became|election|elected|lost leader|stepped down|quorum|contact|connection|handing over")

// sample is one thing done, and how long it took.
type sample struct {
	began time.Time
	took  time.Duration
}

// samples are those of one kind.
type samples struct {
	mu  sync.Mutex
	all []sample
}

func (s *samples) add(began time.Time) {
	took := time.Since(began)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, sample{began, took})
}

// between returns the quantile of those begun in [from, to), and their number.
func (s *samples) between(from, to time.Time, q float64) (time.Duration, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var took []time.Duration
	for _, x := range s.all {
		if !x.began.Before(from) && x.began.Before(to) {
			took = append(took, x.took)
		}
	}
	if len(took) == 0 {
		return 0, 0
	}
	slices.Sort(took)
	return took[min(len(took)-1, int(q*float64(len(took))))], len(took)
}
