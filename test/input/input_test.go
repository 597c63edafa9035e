// Package input streams real files through a cluster while a node dies and
// returns, and reads back the same bytes.
package input

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/test/harness"
)

const topic = "source"

// digest hashes a key's lines in order, each with its length.
type digest struct {
	h     hash.Hash
	lines int
}

type digests map[string]*digest

func (d digests) add(key string, line []byte) {
	f := d[key]
	if f == nil {
		f = &digest{h: sha256.New()}
		d[key] = f
	}
	f.h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(line))))
	f.h.Write(line)
	f.lines++
}

// TestRealInput streams every line of every Go file under GOROOT/src/net, or with
// CHRONIK_FULL=1 (make demo-input) under GOROOT/src: over two million records.
func TestRealInput(t *testing.T) {
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(strings.TrimSpace(string(goroot)), "src", "net")
	if os.Getenv("CHRONIK_FULL") != "" {
		root = filepath.Dir(root)
	}
	c := harness.Start(t, harness.Options{})
	c.CreateTopic(topic, 12, "max.message.bytes=2097152")
	cl := c.Client(kgo.DefaultProduceTopic(topic), kgo.ProducerBatchMaxBytes(2<<20), kgo.ProducerLinger(5*time.Millisecond),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.MaxBufferedBytes(64<<20))
	want, sent := digests{}, 0
	var acked atomic.Int64
	var failure atomic.Pointer[error]
	bytes, longest := 0, 0
	killed, restarted := false, false
	began := time.Now()
	err = eachLine(root, func(path string, line []byte) error {
		want.add(path, line)
		sent++
		bytes += len(line)
		longest = max(longest, len(line))
		cl.Produce(t.Context(), &kgo.Record{Key: []byte(path), Value: line}, func(_ *kgo.Record, err error) {
			if err != nil {
				failure.CompareAndSwap(nil, &err)
			}
			acked.Add(1)
		})
		if err := failure.Load(); err != nil {
			return *err
		}
		switch {
		case !killed && sent >= 50_000:
			killed = true
			c.Kill(2)
		case killed && !restarted && sent >= 100_000:
			restarted = true
			c.Restart(2)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := cl.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f := failure.Load(); f != nil {
		t.Fatal(*f)
	}
	if !restarted {
		t.Fatalf("only %d lines: no node was killed and restarted", sent)
	}
	t.Logf("produced %d lines of %d files, %d bytes, longest %d, in %v", sent, len(want), bytes, longest, time.Since(began))
	began = time.Now()
	got := consume(t, c, sent)
	for path, w := range want {
		g := got[path]
		if g == nil || g.lines != w.lines || string(g.h.Sum(nil)) != string(w.h.Sum(nil)) {
			t.Fatalf("%s came back different", path)
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d keys came back, want %d", len(got), len(want))
	}
	t.Logf("read the same %d lines back, in order a key, in %v", sent, time.Since(began))
}

// eachLine calls f with every line of every regular .go file under root. The slice is f's own.
func eachLine(root string, f func(path string, line []byte) error) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || filepath.Ext(path) != ".go" {
			return err
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }() // read only
		r := bufio.NewReaderSize(file, 1<<16)
		for {
			line, err := r.ReadBytes('\n')
			if len(line) > 0 {
				if ferr := f(path, []byte(strings.TrimSuffix(string(line), "\n"))); ferr != nil {
					return ferr
				}
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
}

func consume(t *testing.T, c *harness.Cluster, n int) digests {
	t.Helper()
	cl := c.Client(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxBytes(16<<20))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	got, read := digests{}, 0
	for read < n {
		fs := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("read %d of %d lines", read, n)
		}
		fs.EachRecord(func(r *kgo.Record) {
			got.add(string(r.Key), r.Value)
			read++
		})
	}
	return got
}
