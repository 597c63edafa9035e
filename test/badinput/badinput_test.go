// Package badinput throws wrong bytes, wrong requests and wrong directories at
// real nodes: the right error or a closed connection, and the node stays up.
package badinput

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/record"
	"chronik/test/harness"
)

// rss returns a process' resident bytes.
func rss(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// throw sends b on a fresh connection and waits until the node closes it or answers.
func throw(t *testing.T, addr string, b []byte) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 2*time.Second)
	if err != nil {
		t.Fatalf("%s does not accept: %v", addr, err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
	_, _ = c.Write(b) // the node may close at any byte
	_, _ = io.Copy(io.Discard, c)
}

// request frames a Kafka request by hand.
func request(key, version int16, body ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(key))
	b = binary.BigEndian.AppendUint16(b, uint16(version))
	b = binary.BigEndian.AppendUint32(b, 7)
	b = append(b, 0xff, 0xff) // no client id
	b = append(b, body...)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

func hostile(rng *rand.Rand) map[string][]byte {
	noise := make([]byte, 64<<10)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	return map[string][]byte{
		"random bytes":           noise,
		"a 2 GiB length":         {0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 1},
		"a negative length":      {0xff, 0xff, 0xff, 0xff},
		"a length and no more":   {0x05, 0xf5, 0xe1, 0x00},
		"HTTP":                   []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"a TLS hello":            {0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3},
		"an unknown key":         request(9999, 0),
		"an unknown version":     request(3, 99),
		"a negative version":     request(3, -1),
		"a truncated body":       request(0, 9, 0, 1),
		"a huge array":           request(3, 1, 0x7f, 0xff, 0xff, 0xff),
		"a huge compact array":   request(3, 9, 0, 0xff, 0xff, 0xff, 0xff, 0x0f),
		"produce with junk":      request(0, 3, append([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0x10, 0, 0, 0, 0, 1}, noise[:200]...)...),
		"an endless tag section": request(18, 3, 0, 1, 'x', 1, 'y', 0xff, 0xff, 0xff, 0xff, 0x0f),
	}
}

func TestHostileBytes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	c := harness.Start(t, harness.Options{})
	c.CreateTopic("t", 1)
	n := c.Node(1)
	before := rss(t, n.PID)
	for name, b := range hostile(rng) {
		for _, addr := range []string{n.Kafka, n.Raft, n.Admin} {
			throw(t, addr, b)
		}
		if err := c.Ready(1); err != nil {
			t.Fatalf("after %s: %v", name, err)
		}
	}
	// Many connections that announce much and send nothing.
	var held []net.Conn
	for range 200 {
		conn, err := net.Dial("tcp", n.Kafka)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte{0x05, 0xf5, 0xe1, 0x00, 0, 0, 0, 9})
		held = append(held, conn)
	}
	if after := rss(t, n.PID); after > before+128<<20 {
		t.Errorf("memory grew from %d to %d MiB", before>>20, after>>20)
	}
	for _, conn := range held {
		_ = conn.Close()
	}
	cl := c.Client(kgo.DefaultProduceTopic("t"))
	if err := cl.ProduceSync(t.Context(), kgo.StringRecord("still here")).FirstErr(); err != nil {
		t.Errorf("the cluster does not serve any more: %v", err)
	}
}

// produceRaw sends one partition's records as they are and returns the partition's error.
func produceRaw(t *testing.T, cl *kgo.Client, topic string, partition int32, records []byte) error {
	t.Helper()
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 5000
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewProduceRequestTopicPartition()
	rp.Partition, rp.Records = partition, records
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	req.Version = 9
	resp, err := cl.Broker(1).Request(t.Context(), req)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0].ErrorCode)
}

func TestBadBatches(t *testing.T) {
	c := harness.Start(t, harness.Options{Nodes: 1})
	c.CreateTopic("t", 1)
	cl := c.Client(kgo.MaxVersions(versionsOf2021()))
	good := func() []byte {
		var b record.Builder
		for i := range 5 {
			b.Append(record.Record{Timestamp: time.Now().UnixMilli(), OffsetDelta: int32(i), Value: []byte("v")})
		}
		out, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if err := produceRaw(t, cl, "t", 0, good()); err != nil {
		t.Fatalf("a good batch: %v", err)
	}
	for _, bad := range []struct {
		name      string
		topic     string
		partition int32
		records   []byte
		want      error
	}{
		{"a corrupt CRC", "t", 0, flip(good(), 30), kerr.CorruptMessage},
		{"a truncated batch", "t", 0, good()[:40], kerr.CorruptMessage},
		{"wrong offset deltas", "t", 0, recrc(set32(good(), 23, 99)), kerr.InvalidRecord},
		{"a negative partition", "t", -1, good(), kerr.UnknownTopicOrPartition},
		{"a partition beyond the last", "t", 7, good(), kerr.UnknownTopicOrPartition},
		{"an unknown topic", "nope", 0, good(), kerr.UnknownTopicOrPartition},
		{"an oversized batch", "t", 0, oversized(t), kerr.MessageTooLarge},
		{"random bytes", "t", 0, []byte(strings.Repeat("\x8f\x01\xaa", 200)), nil},
	} {
		err := produceRaw(t, cl, bad.topic, bad.partition, bad.records)
		if bad.want == nil && err == nil || bad.want != nil && !errors.Is(err, bad.want) {
			t.Errorf("%s: got %v, want %v", bad.name, err, bad.want)
		}
	}
	if err := produceRaw(t, cl, "t", 0, good()); err != nil {
		t.Errorf("a good batch after the bad ones: %v", err)
	}
}

func TestDeletedTopic(t *testing.T) {
	c := harness.Start(t, harness.Options{})
	c.CreateTopic("gone", 3)
	cl := c.Client(kgo.DefaultProduceTopic("gone"), kgo.UnknownTopicRetries(1), kgo.RecordRetries(3))
	if err := cl.ProduceSync(t.Context(), kgo.StringRecord("x")).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CLI("topic", "delete", "gone"); err != nil {
		t.Fatal(err)
	}
	// Each node hears of it on its own.
	c.Eventually(10*time.Second, "no records are taken for a deleted topic", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := cl.ProduceSync(ctx, kgo.StringRecord("x")).FirstErr(); err == nil {
			return errors.New("produced to a deleted topic")
		}
		return nil
	})
	c.Eventually(10*time.Second, "the replicas' data is gone", func() error {
		for _, n := range c.Nodes() {
			dirs, err := filepath.Glob(filepath.Join(n.Dir, "replicas", "*"))
			if err != nil {
				return err
			}
			if len(dirs) != 1 { // meta's
				return fmt.Errorf("node %d has %v", n.ID, dirs)
			}
		}
		return nil
	})
}

// TestWrongStarts pins what the command line says: an error, a hint, exit 1 or 2.
func TestWrongStarts(t *testing.T) {
	exe := harness.Binary(t)
	other := harness.Start(t, harness.Options{Nodes: 1})
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(dir, "bad.toml")
	if err := os.WriteFile(bad, []byte("[kafka]\nlisten = \"127.0.0.1:9092\"\nadvertized = \"x:1\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	free := []string{"--kafka-addr", harness.FreeAddr(t), "--raft-addr", harness.FreeAddr(t), "--admin-addr", harness.FreeAddr(t)}
	for _, c := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"a port in use", append(free[2:], "--data-dir", dir+"/a", "--kafka-addr", other.Node(1).Kafka), 1, []string{"cannot listen on", "kafka.listen"}},
		{"a directory in use", append(free, "--data-dir", other.Node(1).Dir), 1, []string{"in use by another process"}},
		{"a file as directory", append(free, "--data-dir", file), 1, []string{"cannot open the data directory"}},
		{"an unwritable disk", append(free, "--data-dir", "/proc/nothing"), 1, []string{"cannot open the data directory"}},
		{"an unknown setting", []string{"--config", bad}, 1, []string{"bad.toml:3", "advertized", "advertised"}},
		{"a wrong flag", []string{"--nonsense"}, 2, []string{"nonsense"}},
		{"advertising every address", append(free[2:], "--data-dir", dir+"/b", "--kafka-addr", "0.0.0.0:39092"), 1, []string{"kafka.advertised"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			out, err := exec.CommandContext(ctx, exe, append([]string{"start"}, c.args...)...).CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != c.code {
				t.Fatalf("ended with %v, want exit code %d: %s", err, c.code, out)
			}
			for _, want := range append(c.want, "chronik: error:", "chronik: hint:") {
				if !strings.Contains(string(out), want) {
					t.Errorf("said %q, without %q", out, want)
				}
			}
			if strings.Contains(string(out), "goroutine ") {
				t.Errorf("a stack: %s", out)
			}
		})
	}
}

// TestDirectoryOfAnotherCluster starts node 3 of a cluster on node 3's directory of another one.
func TestDirectoryOfAnotherCluster(t *testing.T) {
	a, b := harness.Start(t, harness.Options{}), harness.Start(t, harness.Options{})
	a.Kill(3)
	b.Kill(3)
	n := a.Node(3)
	if err := os.RemoveAll(n.Dir); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", b.Node(3).Dir, n.Dir).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, n.Argv[0], n.Argv[1:]...).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("ended with %v: %s", err, out)
	}
	for _, want := range []string{"another cluster", "chronik: error:", "chronik: hint:"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("said %q, without %q", out, want)
		}
	}
	if err := a.Ready(1); err != nil {
		t.Errorf("the stranger harmed the cluster: %v", err)
	}
}

// TestFullDisk fills a small file system that one node lies on (needs root for a tmpfs).
func TestFullDisk(t *testing.T) {
	harness.Long(t)
	if os.Geteuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	dir := t.TempDir()
	harness.Alone(t)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=48m"); err != nil {
		t.Skipf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	kafka := harness.FreeAddr(t)
	var log strings.Builder
	cmd := exec.Command(harness.Binary(t), "start", "--data-dir", dir+"/data", "--kafka-addr", kafka, "--raft-addr", harness.FreeAddr(t), "--admin-addr", harness.FreeAddr(t),
		"--set", "raftlog.file_bytes=1MiB", "--set", "raftlog.max_bytes=8MiB")
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		if err := <-ended; err == nil {
			t.Error("the node ended by itself")
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
	cl, err := kgo.NewClient(kgo.SeedBrokers(kafka), kgo.DefaultProduceTopic("t"), kgo.AllowAutoTopicCreation(), kgo.DisableIdempotentWrite(),
		kgo.RecordRetries(2), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.RetryBackoffFn(func(int) time.Duration { return 20 * time.Millisecond }))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	acked := 0
	produce := func(v []byte) error { return cl.ProduceSync(t.Context(), &kgo.Record{Value: v}).FirstErr() }
	value := []byte(strings.Repeat("0123456789abcdef", 16<<10)) // 256 KiB
	began := time.Now()
	for {
		err := produce(value)
		if errors.Is(err, kerr.KafkaStorageError) {
			break
		}
		if err == nil {
			acked++
		} else if acked > 0 {
			t.Fatalf("record %d: %v", acked, err)
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("the node ended: %v", err)
		default:
		}
		if time.Since(began) > 60*time.Second {
			t.Fatal("the disk does not fill")
		}
	}
	t.Logf("refused after %d records of 256 KiB", acked)
	readBack(t, kafka, acked)
	harness.Alone(t)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=256m"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		err := produce([]byte("after"))
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("space has returned, but: %v", err)
		}
	}
}

func readBack(t *testing.T, kafka string, n int) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(kafka), kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for got := 0; got < n; {
		fs := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("read %d of %d records from a full disk", got, n)
		}
		got += fs.NumRecords()
	}
}
