package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/config"
	"chronik/internal/vfs"
)

// given holds the addresses that freeAddr returned: one that is free may be found twice.
var given sync.Map

func freeAddr(t *testing.T) string {
	t.Helper()
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if _, taken := given.LoadOrStore(addr, true); !taken {
			return addr
		}
	}
}

func testConfig(t *testing.T, flags map[string]string) *config.Config {
	t.Helper()
	all := map[string]string{
		"kafka.listen": freeAddr(t), "raft.listen": freeAddr(t), "admin.listen": freeAddr(t),
		"node.data_dir": "/data", "raftlog.max_bytes": "8MiB", "raftlog.file_bytes": "1MiB",
	}
	for k, v := range flags {
		all[k] = v
	}
	cfg, err := config.Load(config.LoadOptions{Flags: all})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// standalone runs a node alone over fs until the test ends.
func standalone(t *testing.T, cfg *config.Config, fs vfs.FS) *Broker {
	t.Helper()
	b, err := Start(context.Background(), Options{Config: cfg, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Version: "test", FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.Stop()
		if err := b.Wait(context.Background()); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return b
}

func client(t *testing.T, cfg *config.Config, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(cfg.Kafka.Listen), kgo.AllowAutoTopicCreation(), kgo.RetryBackoffFn(func(int) time.Duration { return 20 * time.Millisecond }),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func eventually(t *testing.T, limit time.Duration, what string, f func() error) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var err error
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); <-tick.C {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: not within %v: %v", what, limit, err)
}

// TestFullDiskRefusesRecordsAndRecovers holds correctness rule 31.
func TestFullDiskRefusesRecordsAndRecovers(t *testing.T) {
	fs := vfs.NewCrashableMem()
	space := func(free uint64) {
		fs.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 40, AvailBytes: free, UsedBytes: 1<<40 - free})
	}
	space(1 << 39)
	cfg := testConfig(t, nil)
	b := standalone(t, cfg, fs)
	cl := client(t, cfg, kgo.DefaultProduceTopic("t"), kgo.DisableIdempotentWrite(), kgo.RecordRetries(0))
	produce := func(v string) error {
		return cl.ProduceSync(t.Context(), kgo.StringRecord(v)).FirstErr()
	}
	eventually(t, 10*time.Second, "the first record", func() error { return produce("before") })
	space(1 << 20) // below the reserve of two log files
	eventually(t, 5*time.Second, "records are refused", func() error {
		if err := produce("full"); !errors.Is(err, kerr.KafkaStorageError) {
			return fmt.Errorf("produced with %w", err)
		}
		return nil
	})
	reader := client(t, cfg, kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if rs := reader.PollFetches(t.Context()).Records(); len(rs) == 0 || string(rs[0].Value) != "before" {
		t.Errorf("reads do not go on with a full disk: %d records", len(rs))
	}
	space(1 << 39)
	eventually(t, 5*time.Second, "records are accepted again", func() error { return produce("after") })
	if err := b.session().rlog.Err(); err != nil {
		t.Errorf("the raftlog failed: %v", err)
	}
}

// TestRestartKeepsEverything stops and starts a node, and crashes it: what was acknowledged is there.
func TestRestartKeepsEverything(t *testing.T) {
	fs := vfs.NewCrashableMem()
	cfg := testConfig(t, map[string]string{"snapshot.threshold_entries": "10"})
	n := 0
	produce := func(count int) {
		t.Helper()
		cl := client(t, cfg, kgo.DefaultProduceTopic("t"))
		for range count {
			r := kgo.StringRecord(fmt.Sprint(n))
			if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
			if r.Offset != int64(n) {
				t.Fatalf("record %d got offset %d", n, r.Offset)
			}
			n++
		}
	}
	run := func(fs vfs.FS, f func()) {
		t.Helper()
		b, err := Start(context.Background(), Options{Config: cfg, Log: slog.New(slog.DiscardHandler), Version: "test", FS: fs})
		if err != nil {
			t.Fatal(err)
		}
		f()
		b.Stop()
		if err := b.Wait(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	var crashed *vfs.MemFS
	run(fs, func() { produce(35) })
	run(fs, func() {
		produce(35)
		crashed = fs.CrashClone(vfs.CrashCloneCfg{}) // nothing that was not synced
	})
	run(crashed, func() {
		cl := client(t, cfg, kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		got := 0
		for got < n {
			for _, r := range cl.PollFetches(t.Context()).Records() {
				if string(r.Value) != fmt.Sprint(got) {
					t.Fatalf("offset %d holds %q", r.Offset, r.Value)
				}
				got++
			}
		}
		produce(5)
	})
}

// TestTopicMadeAnewBeginsWithoutOffsets: what groups had committed for the topic of that name goes with it,
// also when nobody has looked in between.
func TestTopicMadeAnewBeginsWithoutOffsets(t *testing.T) {
	cfg := testConfig(t, nil)
	standalone(t, cfg, vfs.NewCrashableMem())
	adm := kadm.NewClient(client(t, cfg))
	made := func(topic string, offset int64) {
		t.Helper()
		if _, err := adm.CreateTopic(t.Context(), 1, 1, nil, topic); err != nil {
			t.Fatal(err)
		}
		var os kadm.Offsets
		os.Add(kadm.Offset{Topic: topic, At: offset, LeaderEpoch: -1})
		if err := adm.CommitAllOffsets(t.Context(), "g", os); err != nil {
			t.Fatal(err)
		}
	}
	made("anew", 5)
	made("other", 6)
	if _, err := adm.DeleteTopic(t.Context(), "anew"); err != nil {
		t.Fatal(err)
	}
	if _, err := adm.CreateTopic(t.Context(), 1, 1, nil, "anew"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the old topic's offset is gone", func() error {
		got, err := adm.FetchOffsets(t.Context(), "g")
		if err != nil {
			return err
		}
		if o, ok := got.Lookup("other", 0); !ok || o.At != 6 {
			t.Fatalf("the offset of a topic that is there: %+v, %v", o, ok)
		}
		if o, ok := got.Lookup("anew", 0); ok && o.At >= 0 {
			return fmt.Errorf("it is %d", o.At)
		}
		return nil
	})
}

// TestStartRefusesWithAdvice pins what a node says when it cannot start.
func TestStartRefusesWithAdvice(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	fs := vfs.NewCrashableMem()
	running := testConfig(t, nil)
	standalone(t, running, fs)
	for _, c := range []struct {
		name      string
		flags     map[string]string
		fs        vfs.FS
		err, hint string
	}{
		{"port in use", map[string]string{"kafka.listen": running.Kafka.Listen}, vfs.NewCrashableMem(), "cannot listen on " + running.Kafka.Listen + " (kafka.listen)", "choose another kafka.listen"},
		{"two processes on one directory", nil, fs, "data directory is in use by another process", "is the node running already?"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Start(t.Context(), Options{Config: testConfig(t, c.flags), Log: log, FS: c.fs})
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v", err)
			}
			if !strings.Contains(err.Error(), c.err) || !strings.Contains(e.Advice(), c.hint) {
				t.Errorf("error %q, hint %q", err, e.Advice())
			}
		})
	}
}

// TestDirectoryOfAnotherNode starts node 2 on node 1's directory.
func TestDirectoryOfAnotherNode(t *testing.T) {
	fs := vfs.NewCrashableMem()
	b, err := Start(t.Context(), Options{Config: testConfig(t, nil), Log: slog.New(slog.DiscardHandler), FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	b.Stop()
	if err := b.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err = Start(t.Context(), Options{Config: testConfig(t, map[string]string{"node.id": "2"}), Log: slog.New(slog.DiscardHandler), FS: fs})
	var e *Error
	if !errors.As(err, &e) || !strings.Contains(err.Error(), "belongs to another node") || !strings.Contains(e.Advice(), "node.id") {
		t.Errorf("got %v", err)
	}
}
