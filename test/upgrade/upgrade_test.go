// Package upgrade opens data directories that earlier versions wrote.
package upgrade

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/test/harness"
)

// write makes the fixture of the current version anew: go test ./test/upgrade -run TestFixture -write 0.2.0
var write = flag.String("write", "", "write the fixture of this version")

const (
	topic   = "kept"
	group   = "readers"
	records = 300 // spread over two partitions
)

// settings keep the directory small.
var settings = []string{"--set", "raftlog.file_bytes=64KiB", "--set", "raftlog.max_bytes=1MiB", "--set", "snapshot.threshold_entries=100"}

type process struct {
	cmd   *exec.Cmd
	kafka string
	log   lockedLog
}

// lockedLog is what a process says, to be read while it goes on.
type lockedLog struct {
	mu  sync.Mutex
	all strings.Builder
}

func (l *lockedLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

func start(t *testing.T, dir string) *process {
	t.Helper()
	harness.Alone(t)
	p := &process{kafka: harness.FreeAddr(t)}
	args := append([]string{"start", "--data-dir", dir, "--kafka-addr", p.kafka, "--raft-addr", harness.FreeAddr(t), "--admin-addr", harness.FreeAddr(t)}, settings...)
	p.cmd = exec.Command(harness.Binary(t), args...)
	p.cmd.Stderr = &p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.kill(); t.Log(p.log.String()) })
	for began := time.Now(); ; <-time.After(5 * time.Millisecond) {
		c, err := net.Dial("tcp", p.kafka)
		if err == nil {
			_ = c.Close()
			return p
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("the node does not listen: %v", err)
		}
	}
}

func (p *process) kill() {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Signal(syscall.SIGKILL)
		_ = p.cmd.Wait()
	}
}

func (p *process) client(t *testing.T, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(p.kafka)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func value(i int) string { return fmt.Sprintf("record-%d", i) }

// TestFixture writes a data directory, or checks every one that is kept.
func TestFixture(t *testing.T) {
	if *write != "" {
		writeFixture(t, *write)
	}
	kept, err := filepath.Glob("testdata/*.tar.gz")
	if err != nil || len(kept) == 0 {
		t.Fatalf("no fixtures: %v", err)
	}
	for _, name := range kept {
		t.Run(filepath.Base(name), func(t *testing.T) { checkFixture(t, name) })
	}
}

func writeFixture(t *testing.T, version string) {
	dir := filepath.Join(t.TempDir(), "data")
	p := start(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cl := p.client(t, kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	adm := kadm.NewClient(cl)
	keep := "604800001"
	if _, err := adm.CreateTopic(ctx, 2, 1, map[string]*string{"retention.ms": &keep}, topic); err != nil {
		t.Fatal(err)
	}
	for i := range records {
		if err := cl.ProduceSync(ctx, &kgo.Record{Partition: int32(i % 2), Value: []byte(value(i))}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	var offsets kadm.Offsets
	offsets.AddOffset(topic, 0, 42, -1)
	if err := adm.CommitAllOffsets(ctx, group, offsets); err != nil {
		t.Fatal(err)
	}
	p.kill() // what a crash leaves: a log to replay
	if err := pack(dir, filepath.Join("testdata", version+".tar.gz")); err != nil {
		t.Fatal(err)
	}
}

func checkFixture(t *testing.T, name string) {
	dir := filepath.Join(t.TempDir(), "data")
	if err := unpack(name, dir); err != nil {
		t.Fatal(err)
	}
	checkKept(t, dir)
}

// checkKept starts a node on what writeFixture wrote and reads all of it.
func checkKept(t *testing.T, dir string) {
	t.Helper()
	p := start(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cl := p.client(t, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	got := map[string]bool{}
	for len(got) < records {
		fs := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("read %d of %d records", len(got), records)
		}
		for _, r := range fs.Records() {
			if want := value(int(r.Offset)*2 + int(r.Partition)); string(r.Value) != want {
				t.Fatalf("partition %d offset %d holds %q, want %q", r.Partition, r.Offset, r.Value, want)
			}
			got[string(r.Value)] = true
		}
	}
	adm := kadm.NewClient(cl)
	offsets, err := adm.FetchOffsets(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	if o, ok := offsets.Lookup(topic, 0); !ok || o.At != 42 {
		t.Errorf("group %s is at %v", group, o)
	}
	configs, err := adm.DescribeTopicConfigs(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range configs[0].Configs {
		if c.Key == "retention.ms" && c.MaybeValue() != "604800001" {
			t.Errorf("retention.ms is %s", c.MaybeValue())
		}
	}
	if err := p.client(t).ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte("new")}).FirstErr(); err != nil {
		t.Errorf("the old directory takes no new record: %v", err)
	}
}

// pack writes dir's files, without the lock and the ballast.
func pack(dir, name string) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	defer func() { err = errors.Join(err, w.Close(), z.Close(), f.Close()) }()
	return filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil || !info.Mode().IsRegular() || rel == "ballast" || rel == "LOCK" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: rel, Mode: 0o644, Size: int64(len(b)), ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	})
}

func unpack(name, dir string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		to := filepath.Join(dir, filepath.FromSlash(h.Name))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		b, err := io.ReadAll(io.LimitReader(r, 64<<20))
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, b, 0o644); err != nil {
			return err
		}
	}
}
