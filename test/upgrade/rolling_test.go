package upgrade

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/test/harness"
)

// TestRollingUpgrade restarts three nodes of the previous release, one after another, as
// this build, and back, under load. No record is lost, none comes twice or in another
// order, and no committed group offset goes back.
func TestRollingUpgrade(t *testing.T) {
	harness.Long(t)
	version, commit := previous(t)
	older, newer := build(t, commit), harness.Binary(t)
	t.Logf("from %s (commit %.9s) to this build, and back", version, commit)
	c := harness.Start(t, harness.Options{Exe: older, Threshold: 500})
	c.CreateTopic(rolled, rolledPartitions)
	w := startWork(t, c)
	for _, exe := range []string{newer, older} {
		for id := 1; id <= 3; id++ {
			c.Stop(id)
			c.Swap(id, exe)
			c.Restart(id)
			if got, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", c.Node(id).PID)); err != nil || got != exe {
				t.Fatalf("node %d runs %s, want %s: %v", id, got, exe, err)
			}
			began := time.Now()
			c.Eventually(60*time.Second, fmt.Sprintf("node %d is back and work goes on", id), func() error {
				for n := 1; n <= 3; n++ {
					if err := c.Ready(n); err != nil {
						return err
					}
				}
				return errors.Join(w.movedSince(began), caughtUp(c))
			})
		}
	}
	w.finish()
	for line := range strings.SplitSeq(c.Logs(), "\n") {
		if strings.Contains(line, "level=ERROR") || strings.Contains(line, "quarantined") {
			t.Errorf("a node's log: %s", line)
		}
	}
}

// caughtUp tells whether no follower of the topic is far behind: the next node may go.
func caughtUp(c *harness.Cluster) error {
	for p := range rolledPartitions {
		_, r, err := c.Leader(fmt.Sprintf("%s-%d", rolled, p))
		if err != nil {
			return err
		}
		if len(r.Followers) != 2 {
			return fmt.Errorf("%s has %d followers", r.Group, len(r.Followers))
		}
		for _, f := range r.Followers {
			if f.LagEntries > 200 {
				return fmt.Errorf("%s: a follower is %d entries behind", r.Group, f.LagEntries)
			}
		}
	}
	return nil
}

// git runs git in the repository. Without git, or in a copy without history, the test is skipped:
// there is nothing to build the previous release from.
func git(t *testing.T, args ...string) []byte {
	t.Helper()
	var errs strings.Builder
	cmd := exec.Command("git", append([]string{"-C", "../.."}, args...)...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("SKIPPED, NOT PROVEN: the previous release cannot be had from git history (a shallow clone?): git %s: %v: %s", strings.Join(args, " "), err, errs.String())
	}
	return out
}

// previous returns the newest release whose code is not this tree's, and its commit. A
// release is marked by the fixture that it wrote: the commit that added it is the release.
func previous(t *testing.T) (version, commit string) {
	t.Helper()
	kept, err := filepath.Glob("testdata/*.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(kept, func(a, b string) int { return compareVersions(versionOf(b), versionOf(a)) })
	for _, name := range kept {
		commit := strings.TrimSpace(string(git(t, "log", "--diff-filter=A", "-1", "--format=%H", "--", "test/upgrade/"+filepath.ToSlash(name))))
		if commit == "" {
			continue // not committed yet
		}
		if len(git(t, "diff", "--name-only", commit, "--", "cmd", "internal", "go.mod")) > 0 {
			return versionOf(name), commit
		}
	}
	t.Skip("SKIPPED, NOT PROVEN: git history holds no release but this one (a shallow clone?)")
	return "", ""
}

func versionOf(name string) string { return strings.TrimSuffix(filepath.Base(name), ".tar.gz") }

func compareVersions(a, b string) int {
	var x, y [3]int
	_, _ = fmt.Sscanf(a, "%d.%d.%d", &x[0], &x[1], &x[2]) // file names of this directory
	_, _ = fmt.Sscanf(b, "%d.%d.%d", &y[0], &y[1], &y[2])
	return slices.Compare(x[:], y[:])
}

// build makes the binary of another commit.
func build(t *testing.T, commit string) string {
	t.Helper()
	dir := t.TempDir()
	r := tar.NewReader(bytes.NewReader(git(t, "archive", commit, "cmd", "internal", "go.mod", "go.sum")))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, "src", filepath.FromSlash(h.Name))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	exe := filepath.Join(dir, "chronik-before")
	cmd := exec.Command("go", "build", "-o", exe, "./cmd/chronik")
	cmd.Dir = filepath.Join(dir, "src")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", commit, err, out)
	}
	return exe
}

const (
	rolled           = "rolled"
	rolledPartitions = 3
	rolledGroup      = "rolling"
)

// work is a producer and a group's consumer that go on through everything.
type work struct {
	t      *testing.T
	c      *harness.Cluster
	cl     *kgo.Client
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex
	acked     [rolledPartitions]map[int64]int // offset -> record number
	sent      [rolledPartitions]int
	lastAck   [rolledPartitions]time.Time
	next      [rolledPartitions]int64 // of the consumer
	lastRead  [rolledPartitions]time.Time
	again     int   // records that the group was given once more
	committed int64 // sum of the group's committed offsets, when last seen
}

func startWork(t *testing.T, c *harness.Cluster) *work {
	t.Helper()
	w := &work{t: t, c: c}
	w.cl = c.Client(kgo.DefaultProduceTopic(rolled), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(2*time.Millisecond))
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	t.Cleanup(cancel)
	for p := range rolledPartitions {
		w.acked[p] = map[int64]int{}
		w.wg.Go(func() { w.produce(ctx, p) })
	}
	w.wg.Go(func() { w.consume(ctx) })
	c.Eventually(30*time.Second, "work goes on", func() error { return w.movedSince(time.Time{}) })
	return w
}

func content(p, n int) string { return fmt.Sprintf("%d:%d", p, n) }

// produce keeps twenty records outstanding, each acknowledged once, about a thousand a second.
func (w *work) produce(ctx context.Context, p int) {
	window := make(chan struct{}, 20)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		<-tick.C
		select {
		case <-ctx.Done():
			w.sent[p] = n
			return
		case window <- struct{}{}:
		}
		w.cl.Produce(context.Background(), &kgo.Record{Partition: int32(p), Value: []byte(content(p, n))}, func(r *kgo.Record, err error) {
			<-window
			if err != nil {
				w.t.Errorf("produce record %d to partition %d: %v", n, p, err)
				return
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.lastAck[p] = time.Now()
			if was, ok := w.acked[p][r.Offset]; ok {
				w.t.Errorf("partition %d: offset %d was given to record %d and to %d", p, r.Offset, was, n)
			}
			w.acked[p][r.Offset] = n
		})
	}
}

// consume reads as a group's only member, commits what it has read, and looks at what is committed.
func (w *work) consume(ctx context.Context) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(w.c.Bootstrap()...), kgo.ConsumerGroup(rolledGroup), kgo.ConsumeTopics(rolled),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(), kgo.FetchMaxWait(100*time.Millisecond), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		w.t.Error(err)
		return
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	for ctx.Err() == nil {
		fs := cl.PollFetches(ctx)
		w.mu.Lock()
		fs.EachRecord(func(r *kgo.Record) {
			switch next := &w.next[r.Partition]; {
			case r.Offset > *next:
				w.t.Errorf("the group was given offset %d of partition %d where %d is next: lost", r.Offset, r.Partition, *next)
			case r.Offset < *next:
				w.again++
			default:
				*next++
			}
			if want := content(int(r.Partition), int(r.Offset)); string(r.Value) != want {
				w.t.Errorf("partition %d offset %d holds %q, want %q", r.Partition, r.Offset, r.Value, want)
			}
			w.lastRead[r.Partition] = time.Now()
		})
		w.mu.Unlock()
		if err := cl.CommitUncommittedOffsets(ctx); err != nil && ctx.Err() == nil {
			w.t.Logf("commit: %v", err) // a coordinator that has just gone
		}
		offsets, err := adm.FetchOffsets(ctx, rolledGroup)
		if err != nil {
			continue // as above
		}
		sum := int64(0)
		offsets.Each(func(o kadm.OffsetResponse) { sum += max(o.At, 0) })
		w.mu.Lock()
		if sum < w.committed {
			w.t.Errorf("committed offsets went back: %d in all, %d before", sum, w.committed)
		}
		w.committed = sum
		w.mu.Unlock()
	}
}

// movedSince tells whether each partition had a record acknowledged and one read since.
func (w *work) movedSince(since time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for p := range rolledPartitions {
		if !w.lastAck[p].After(since) {
			return fmt.Errorf("partition %d accepted nothing since", p)
		}
		if !w.lastRead[p].After(since) {
			return fmt.Errorf("the group was given nothing of partition %d since", p)
		}
	}
	return nil
}

// finish stops the work and compares: record n of a partition lies at offset n, all of them,
// and replicas are equal.
func (w *work) finish() {
	w.t.Helper()
	w.cancel()
	w.wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := w.cl.Flush(ctx); err != nil {
		w.t.Fatalf("records remain unacknowledged: %v", err)
	}
	total := 0
	for p := range rolledPartitions {
		w.check(ctx, p)
		total += w.sent[p]
		w.c.Eventually(30*time.Second, "digests are equal", func() error { return w.c.DigestsEqual(rolled, p, int64(w.sent[p])) })
	}
	w.t.Logf("%d records acknowledged, each once and in place; the group got %d of them again", total, w.again)
}

func (w *work) check(ctx context.Context, p int) {
	w.t.Helper()
	cl := w.c.Client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{rolled: {int32(p): kgo.NewOffset().AtStart()}}), kgo.FetchMaxWait(100*time.Millisecond))
	defer cl.Close()
	for next := 0; next < w.sent[p]; {
		fs := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			w.t.Fatalf("partition %d: read %d of %d records", p, next, w.sent[p])
		}
		fs.EachRecord(func(r *kgo.Record) {
			if n, ok := w.acked[p][r.Offset]; !ok || n != next || r.Offset != int64(next) || string(r.Value) != content(p, next) {
				w.t.Fatalf("partition %d offset %d holds %q, was acknowledged for record %d; record %d belongs there", p, r.Offset, r.Value, n, next)
			}
			next++
		})
	}
}
