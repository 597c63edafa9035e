package segment

import (
	"bytes"
	"fmt"
	"math"
	"testing"

	"chronik/internal/record"
	"chronik/internal/vfs"
)

type fataler interface {
	Helper()
	Fatalf(string, ...any)
}

// build makes a batch of n records with the given timestamps (the last one goes
// on for the rest), each padded to about pad bytes.
func build(t fataler, n, pad int, ts ...int64) []byte {
	t.Helper()
	var b record.Builder
	for i := range n {
		b.Append(record.Record{Timestamp: ts[min(i, len(ts)-1)], Key: fmt.Appendf(nil, "k%d", i), Value: bytes.Repeat([]byte{byte(i)}, pad)})
	}
	out, err := b.Build()
	if err != nil {
		t.Fatalf("build: %v", err)
	}
	return out
}

// stamped is what the log must hold for a batch.
func stamped(b []byte, base int64, epoch int32) []byte {
	b = bytes.Clone(b)
	record.Stamp(b, base, epoch)
	return b
}

func mustOpen(t fataler, o Options) *Log {
	t.Helper()
	l, err := Open(o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return l
}

func mustAppend(t fataler, l *Log, b []byte, epoch int32) int64 {
	t.Helper()
	base, err := l.Append(b, epoch)
	if err != nil {
		t.Fatalf("append: %v", err)
	}
	return base
}

// all returns the log's bytes from its first readable batch on.
func all(t fataler, l *Log) []byte {
	t.Helper()
	var out []byte
	err := l.EachBatch(l.StartOffset(), math.MaxInt64, func(b record.Batch) error {
		out = append(out, b.Bytes()...)
		return nil
	})
	if err != nil {
		t.Fatalf("read all: %v", err)
	}
	return out
}

// checkpoint makes the log durable as the engine would and returns how to open it again.
func checkpoint(t fataler, l *Log, o Options) Options {
	t.Helper()
	p := l.Capture()
	defer p.Release()
	if err := p.Sync(); err != nil {
		t.Fatalf("sync: %v", err)
	}
	p.Published()
	o.Segments, o.StartOffset, o.NextOffset = p.Files(), p.StartOffset, p.NextOffset
	return o
}

func closeLog(t *testing.T, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func memOptions() Options {
	return Options{FS: vfs.NewCrashableMem(), Dir: "d"}
}
