package rejoin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/admin"
	"chronik/test/harness"
)

// book knows what was written: record i of the topic lies at offset i.
type book struct {
	t  *testing.T
	c  *harness.Cluster
	cl *kgo.Client
	n  int
}

func newBook(t *testing.T, c *harness.Cluster) *book {
	t.Helper()
	c.CreateTopic("orders", 1)
	return &book{t: t, c: c, cl: c.Client(kgo.ProducerLinger(0), kgo.ProduceRequestTimeout(time.Second), kgo.RequestTimeoutOverhead(time.Second))}
}

func entry(i int) string { return fmt.Sprintf("record %d %s", i, strings.Repeat(fmt.Sprint(i%7), 80)) }

// write appends n records, one a request, each acknowledged.
func (b *book) write(n int) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	defer cancel()
	for range n {
		r, err := b.cl.ProduceSync(ctx, &kgo.Record{Topic: "orders", Value: []byte(entry(b.n))}).First()
		if err != nil {
			b.t.Fatalf("record %d: %v", b.n, err)
		}
		if r.Offset != int64(b.n) {
			b.t.Fatalf("record %d was given offset %d", b.n, r.Offset)
		}
		b.n++
	}
}

// check reads everything back: nothing lost, nothing overwritten, nothing added.
func (b *book) check(seeds ...string) {
	b.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(seeds...), kgo.FetchMaxWait(100*time.Millisecond), kgo.MetadataMinAge(50*time.Millisecond),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"orders": {0: kgo.NewOffset().AtStart()}}))
	if err != nil {
		b.t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Second)
	defer cancel()
	for next := 0; next < b.n; {
		fs := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			b.t.Fatalf("read %d of %d records: %v", next, b.n, fs.Errors())
		}
		fs.EachRecord(func(r *kgo.Record) {
			if r.Offset != int64(next) || string(r.Value) != entry(next) {
				b.t.Errorf("offset %d holds %.30q, where record %d belongs", r.Offset, r.Value, next)
			}
			next++
		})
	}
}

// mended waits until every node is a plain member again that has all records.
func (b *book) mended() {
	b.t.Helper()
	took := b.c.Eventually(20*time.Second, "the cluster mends itself", func() error {
		for id := 1; id <= 3; id++ {
			if err := b.c.Ready(id); err != nil {
				return err
			}
		}
		if err := voters(b.c, group, int64(b.n)); err != nil {
			return err
		}
		if err := voters(b.c, "__meta", -1); err != nil {
			return err
		}
		return replaced(b.c)
	})
	b.t.Logf("mended after %v", took)
	if err := b.c.DigestsEqual("orders", 0, int64(b.n)); err != nil {
		b.t.Error(err)
	}
	b.check(b.c.Bootstrap()...)
}

// scraped asks every node for its metrics until stop, and wants them whenever it answers at all.
func (b *book) scraped() (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	for _, n := range b.c.Nodes() {
		wg.Go(func() {
			client := http.Client{Timeout: 2 * time.Second}
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-done:
					return
				case <-tick.C:
				}
				resp, err := client.Get("http://" + n.Admin + "/metrics")
				if err != nil {
					continue // it is down
				}
				body, _ := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					b.t.Errorf("metrics of node %d: %s: %.300s", n.ID, resp.Status, body)
					return
				}
			}
		})
	}
	return func() { close(done); wg.Wait() }
}

// TestWipedMetaLeader: the metadata's leader loses its disk, and another leads when it comes back:
// raft would overwrite committed entries in silence if its id came back, too.
func TestWipedMetaLeader(t *testing.T) {
	c := harness.Start(t, harness.Options{Threshold: 50})
	b := newBook(t, c)
	b.write(70)
	old, meta, err := c.Leader("__meta")
	if err != nil {
		t.Fatal(err)
	}
	orders, err := c.Replica(old, group)
	if err != nil {
		t.Fatal(err)
	}
	c.Kill(old)
	c.Eventually(10*time.Second, "another leads the metadata", func() error {
		id, r, err := c.Leader("__meta")
		if err == nil && (id == old || r.Term <= meta.Term) {
			err = fmt.Errorf("node %d leads in term %d", id, r.Term)
		}
		return err
	})
	b.write(70)
	stop := b.scraped()
	c.Wipe(old)
	c.Restart(old)
	b.mended()
	stop()
	for name, before := range map[string]uint64{"__meta": meta.ReplicaID, group: orders.ReplicaID} {
		if r, err := c.Replica(old, name); err != nil || r.ReplicaID <= before {
			t.Errorf("%s: replica %d on the new disk, %d on the old one, %v", name, r.ReplicaID, before, err)
		}
	}
	b.write(10)
	b.mended()
}

// TestLostMajorityWaits: records are on two nodes only; one of them loses its disk, or gets an older one
// back, while the other is down. The third could elect it, or be elected by it, and both lack the records:
// nothing may be acknowledged until the one that has them returns. Then all mends itself.
func TestLostMajorityWaits(t *testing.T) {
	for _, disk := range []string{"older", "empty"} {
		t.Run(disk, func(t *testing.T) {
			t.Parallel()
			c := harness.Start(t, harness.Options{Threshold: 50})
			b := newBook(t, c)
			b.write(30)
			keeps, _, err := c.Leader(group)
			if err != nil {
				t.Fatal(err)
			}
			loses, lags := keeps%3+1, (keeps+1)%3+1
			older := filepath.Join(t.TempDir(), "older")
			c.Stop(loses)
			copyDir(t, c.Node(loses).Dir, older)
			c.Restart(loses)
			b.mended()
			was, err := c.Replica(loses, group)
			if err != nil {
				t.Fatal(err)
			}
			c.Kill(lags)
			b.write(70) // a majority has them: keeps and loses
			c.Kill(keeps)
			c.Kill(loses)
			c.Wipe(loses)
			if disk == "older" {
				copyDir(t, older, c.Node(loses).Dir)
			}
			c.Restart(lags)
			c.Restart(loses)
			b.waits(loses, lags)
			c.Restart(keeps)
			b.mended()
			if r, err := c.Replica(loses, group); err != nil || r.ReplicaID <= was.ReplicaID {
				t.Errorf("replica %d, it was %d, %v", r.ReplicaID, was.ReplicaID, err)
			}
			b.write(10)
			b.mended()
		})
	}
}

// waits: for some time nobody leads and nothing is acknowledged.
func (b *book) waits(ids ...int) {
	b.t.Helper()
	cl := b.c.Client(kgo.DisableIdempotentWrite(), kgo.ProduceRequestTimeout(time.Second), kgo.MaxProduceRequestsInflightPerBroker(1))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(b.t.Context(), 2*time.Second)
	defer cancel()
	if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "orders", Value: []byte("nobody may acknowledge this")}).FirstErr(); err == nil {
		b.t.Fatal("a record was acknowledged without those that a majority had")
	}
	for _, id := range ids {
		if err := b.c.Ready(id); err == nil {
			b.t.Errorf("node %d says it serves", id)
		}
		if r, err := b.c.Replica(id, group); err == nil && r.Role == "leader" {
			b.t.Errorf("node %d leads with %d records", id, r.HighWatermark)
		}
	}
}

// TestFrozenNodeIsReplaced: node 3 is stopped in its tracks, a new one with its id and an empty disk takes
// its place, and then the old process goes on as if nothing had been. It must not harm anything.
func TestFrozenNodeIsReplaced(t *testing.T) {
	harness.Long(t)
	t.Parallel() // it mostly waits for keepalives
	c := harness.Start(t, harness.Options{Threshold: 50})
	b := newBook(t, c)
	b.write(70)
	frozen := b.freeze(3)
	fresh := replace(t, c, frozen)
	twin := twinOf(c, fresh)
	c.Eventually(20*time.Second, "the replacement follows", func() error { return twin.follows(b.n) })
	b.write(10)
	if err := syscall.Kill(frozen.PID, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	took := c.Eventually(20*time.Second, "the old process ends", func() error {
		if frozen.Alive() {
			return fmt.Errorf("pid %d runs", frozen.PID)
		}
		return nil
	})
	t.Logf("the old process ended after %v: %s", took, lastLine(c.NodeLog(3)))
	if !strings.Contains(c.NodeLog(3), "chronik: error: ") {
		t.Error("it did not say why")
	}
	b.write(10)
	c.Eventually(20*time.Second, "the replacement goes on", func() error { return twin.follows(b.n) })
	b.check(c.Node(1).Kafka, c.Node(2).Kafka)
}

// TestFrozenNodeOutlivesItsReplacement: as before, but the replacement has died when the old process goes on.
// Nobody claims the node's id any more: it notices that it was replaced, gets a new identity and serves again.
func TestFrozenNodeOutlivesItsReplacement(t *testing.T) {
	harness.Long(t)
	t.Parallel() // it mostly waits for keepalives
	c := harness.Start(t, harness.Options{Threshold: 50})
	b := newBook(t, c)
	b.write(70)
	frozen := b.freeze(3)
	fresh := replace(t, c, frozen)
	twin := twinOf(c, fresh)
	c.Eventually(20*time.Second, "the replacement follows", func() error { return twin.follows(b.n) })
	if err := syscall.Kill(fresh.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.write(10)
	if err := syscall.Kill(frozen.PID, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	b.write(10)
	b.mended()
	// Now the replacement is the second one.
	out, err := exec.Command(fresh.Argv[0], fresh.Argv[1:]...).CombinedOutput()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 || strings.Count(string(out), "chronik: error: ") != 1 || !strings.Contains(string(out), "node id is taken") {
		t.Errorf("the replacement came back: %v, %s", err, out)
	}
}

func lastLine(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	return lines[len(lines)-1]
}

// freeze stops a node in its tracks, writes meanwhile, and waits until nodes 1 and 2 miss it.
func (b *book) freeze(id int) harness.Node {
	b.t.Helper()
	frozen := b.c.Node(id)
	if err := syscall.Kill(frozen.PID, syscall.SIGSTOP); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = syscall.Kill(frozen.PID, syscall.SIGCONT) }) // else it could not end
	b.write(70)
	b.c.Eventually(30*time.Second, "its peers miss it", func() error {
		for peer := 1; peer <= 2; peer++ {
			var v admin.Cluster
			if err := b.c.Get(peer, "/v1/cluster", &v); err != nil {
				return err
			}
			if n := v.NodeByID(int32(id)); n == nil || n.Alive {
				return fmt.Errorf("node %d sees it alive", peer)
			}
		}
		return nil
	})
	return frozen
}

// replace starts a node with the id of old on an empty directory and other ports.
func replace(t *testing.T, c *harness.Cluster, old harness.Node) harness.Node {
	t.Helper()
	n := harness.Node{ID: old.ID, Kafka: harness.FreeAddr(t), Raft: harness.FreeAddr(t), Admin: harness.FreeAddr(t), Dir: filepath.Join(t.TempDir(), "fresh")}
	peers := strings.ReplaceAll(peersOf(old.Argv), fmt.Sprintf("%d@%s", old.ID, old.Raft), fmt.Sprintf("%d@%s", n.ID, n.Raft))
	log, err := os.Create(filepath.Join(c.Dir, "node-3-fresh.log")) // shown and looked at as the others
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(c.Exe, "start", "--node-id", fmt.Sprint(n.ID), "--data-dir", n.Dir, "--kafka-addr", n.Kafka, "--raft-addr", n.Raft,
		"--admin-addr", n.Admin, "--peers", peers, "--set", "snapshot.threshold_entries=50")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
	})
	n.PID, n.Argv = cmd.Process.Pid, cmd.Args
	return n
}

// twin is a node that dev.json does not know, beside the cluster's.
type twin struct {
	c     *harness.Cluster
	fresh harness.Node
}

func twinOf(c *harness.Cluster, fresh harness.Node) twin { return twin{c, fresh} }

// follows: it is a full member with n records, the same as those of nodes 1 and 2.
func (w twin) follows(n int) error {
	var rs admin.Replicas
	if err := w.get("/v1/replicas", &rs); err != nil {
		return err
	}
	for _, r := range rs.Replicas {
		if r.State != "running" || r.Role == "learner" {
			return fmt.Errorf("replica of %s: %s %s", r.Group, r.Role, r.State)
		}
	}
	const digest = "/v1/digest?topic=orders&partition=0"
	var mine, theirs admin.Digest
	if err := w.get(digest, &mine); err != nil {
		return err
	}
	for id := 1; id <= 2; id++ {
		if err := w.c.Get(id, digest, &theirs); err != nil {
			return err
		}
		if mine != theirs || mine.To != int64(n) {
			return fmt.Errorf("%+v here, %+v on node %d, want %d records", mine, theirs, id, n)
		}
	}
	return nil
}

func (w twin) get(path string, into any) error {
	client := http.Client{Timeout: 2 * time.Second}
	resp, err := client.Get("http://" + w.fresh.Admin + path)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}
