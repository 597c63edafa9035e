// Package start measures how soon after exec a node acknowledges its first record.
package start

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/test/harness"
)

// node is one standalone process on a directory.
type node struct {
	t     *testing.T
	exe   string
	dir   string
	kafka string
	args  []string
	cmd   *exec.Cmd
}

func newNode(t *testing.T) *node {
	t.Helper()
	harness.Alone(t)
	n := &node{t: t, exe: harness.Binary(t), dir: filepath.Join(t.TempDir(), "data"), kafka: harness.FreeAddr(t)}
	n.args = []string{"start", "--data-dir", n.dir, "--kafka-addr", n.kafka, "--raft-addr", harness.FreeAddr(t), "--admin-addr", harness.FreeAddr(t)}
	t.Cleanup(n.kill)
	return n
}

func (n *node) exec() time.Time {
	n.t.Helper()
	n.cmd = exec.Command(n.exe, n.args...)
	n.cmd.Stderr = os.Stderr
	began := time.Now()
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	return began
}

func (n *node) kill() {
	if n.cmd != nil && n.cmd.ProcessState == nil {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait()
	}
}

func (n *node) client(opts ...kgo.Opt) *kgo.Client {
	n.t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(n.kafka), kgo.DefaultProduceTopic("first"), kgo.AllowAutoTopicCreation(), kgo.ProducerLinger(0),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.RetryBackoffFn(func(int) time.Duration { return 5 * time.Millisecond }),
		kgo.MetadataMinAge(10 * time.Millisecond), kgo.UnknownTopicRetries(-1),
	}, opts...)...)
	if err != nil {
		n.t.Fatal(err)
	}
	return cl
}

// firstAck returns how long after began a record was acknowledged.
func (n *node) firstAck(began time.Time) time.Duration {
	n.t.Helper()
	for { // the client backs off when a dial fails: knock first
		c, err := net.Dial("tcp", n.kafka)
		if err == nil {
			_ = c.Close()
			break
		}
		if time.Since(began) > 30*time.Second {
			n.t.Fatal("the node does not listen")
		}
		<-time.After(2 * time.Millisecond)
	}
	cl := n.client()
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := cl.ProduceSync(ctx, kgo.StringRecord("first")).FirstErr(); err != nil {
		n.t.Fatal(err)
	}
	return time.Since(began)
}

func report(t *testing.T, what string, took []time.Duration, limit time.Duration) {
	t.Helper()
	slices.Sort(took)
	t.Logf("%s: median %v of %v", what, took[len(took)/2], took)
	if m := took[len(took)/2]; m > limit {
		t.Errorf("%s: median %v, want at most %v", what, m, limit)
	}
}

// TestFirstRecordOfAnEmptyNode: within 300 ms of exec, the topic's creation included.
func TestFirstRecordOfAnEmptyNode(t *testing.T) {
	var took []time.Duration
	for range 10 {
		n := newNode(t)
		took = append(took, n.firstAck(n.exec()))
		n.kill()
	}
	report(t, "exec to first acknowledged record, empty", took, 300*time.Millisecond)
}

// TestFirstRecordAfterKill: with data, after kill -9, within 2 s. CHRONIK_TEST_BYTES says how
// much data; make start-time takes 5 GB.
func TestFirstRecordAfterKill(t *testing.T) {
	size := int64(64 << 20)
	if s := os.Getenv("CHRONIK_TEST_BYTES"); s != "" {
		var err error
		if size, err = strconv.ParseInt(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	n := newNode(t)
	n.firstAck(n.exec())
	n.fill(size)
	var took []time.Duration
	for range 10 {
		n.kill()
		took = append(took, n.firstAck(n.exec()))
		n.fill(16 << 20) // a restart right after a restart has nothing to replay
	}
	report(t, fmt.Sprintf("exec to first acknowledged record after kill -9 with %d MB", size/1e6), took, 2*time.Second)
}

// fill produces size bytes of records that do not compress.
func (n *node) fill(size int64) {
	n.t.Helper()
	cl := n.client(kgo.MaxBufferedBytes(64<<20), kgo.ProducerLinger(5*time.Millisecond))
	defer cl.Close()
	value := make([]byte, 64<<10)
	_, _ = rand.Read(value)
	for sent := int64(0); sent < size; sent += int64(len(value)) {
		cl.Produce(context.Background(), &kgo.Record{Value: value}, func(_ *kgo.Record, err error) {
			if err != nil {
				n.t.Errorf("fill: %v", err)
			}
		})
	}
	if err := cl.Flush(context.Background()); err != nil {
		n.t.Fatal(err)
	}
}
