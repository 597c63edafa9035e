package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

func readAll(p *producing, in string, size int) (lines []string, err error) {
	r := bufio.NewReaderSize(strings.NewReader(in), size)
	for {
		line, err := p.line(r, int64(len(lines)+1))
		if line != nil {
			lines = append(lines, string(line))
		}
		if errors.Is(err, io.EOF) {
			return lines, nil
		}
		if err != nil {
			return lines, err
		}
	}
}

// TestLines: a line is a record whatever its length, and the last one needs no newline.
func TestLines(t *testing.T) {
	long := strings.Repeat("x", 1000)
	for _, c := range []struct {
		in   string
		want []string
	}{
		{"", nil},
		{"\n", []string{""}},
		{"a", []string{"a"}},
		{"a\n", []string{"a"}},
		{"a\n\nb", []string{"a", "", "b"}},
		{"a\r\n", []string{"a\r"}},
		{long + "\n" + long, []string{long, long}},
	} {
		got, err := readAll(&producing{limit: 1001}, c.in, 16)
		if err != nil || strings.Join(got, "|") != strings.Join(c.want, "|") || len(got) != len(c.want) {
			t.Errorf("%.20q: %d lines, %v; want %d", c.in, len(got), err, len(c.want))
		}
	}
	got, err := readAll(&producing{limit: 100, topic: "t"}, "a\n"+long, 16)
	if len(got) != 1 || err == nil || !strings.Contains(err.Error(), "line 2 is longer than the 100 bytes that topic t takes") {
		t.Errorf("%d lines, %v", len(got), err)
	}
}

// TestReadEndless: input without a newline is refused after limit bytes, and not held in memory until it ends.
func TestReadEndless(t *testing.T) {
	p := &producing{limit: 1 << 20, topic: "t"}
	zeros := readerFunc(func(b []byte) (int, error) { clear(b); return len(b), nil })
	if _, err := p.line(bufio.NewReader(zeros), 1); err == nil || !strings.Contains(err.Error(), "line 1 is longer") {
		t.Errorf("%v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// TestReadStopped: an interrupt and a failure end produce although its input is silent.
func TestReadStopped(t *testing.T) {
	silent, w := io.Pipe()
	defer func() { _ = w.Close() }()
	interrupt := make(chan struct{})
	close(interrupt)
	p := &producing{limit: 100, failed: make(chan struct{})}
	if err := p.all(t.Context(), interrupt, silent); !errors.Is(err, errInterrupted) {
		t.Errorf("%v", err)
	}
	p.fail(io.ErrUnexpectedEOF)
	p.fail(io.ErrNoProgress)
	if err := p.all(t.Context(), nil, silent); err != nil || !errors.Is(*p.failure.Load(), io.ErrUnexpectedEOF) {
		t.Errorf("%v, %v", err, *p.failure.Load())
	}
}

// TestSummary: the form scripts read.
func TestSummary(t *testing.T) {
	var b bytes.Buffer
	p := &producing{}
	p.acked.Store(3)
	p.bytes.Store(12)
	p.summary(&b)
	if s := b.String(); !strings.HasPrefix(s, "records=3 bytes=12 seconds=") || !strings.HasSuffix(s, " p50=0.00ms p99=0.00ms\n") {
		t.Errorf("%q", s)
	}
}

// TestExitAtEndStops: what comes behind the end is not printed, nor what is beyond --max.
func TestExitAtEndStops(t *testing.T) {
	formatter, err := kgo.NewRecordFormatter("%v\n")
	if err != nil {
		t.Fatal(err)
	}
	fetch := kgo.Fetches{{Topics: []kgo.FetchTopic{{Topic: "t", Partitions: []kgo.FetchPartition{{Partition: 0, Records: []*kgo.Record{
		{Value: []byte("a"), Offset: 5}, {Value: []byte("b"), Offset: 6}, {Value: []byte("c"), Offset: 7},
	}}}}}}}
	for _, c := range []struct {
		left map[int32]span
		max  int64
		want string
		open int
	}{
		{map[int32]span{0: {5, 7}}, 0, "a\nb\n", 0},
		{map[int32]span{0: {5, 9}}, 0, "a\nb\nc\n", 1},
		{map[int32]span{1: {0, 1}}, 0, "", 1},
		{map[int32]span{0: {0, 3}}, 0, "", 0}, // retention went past the end
		{nil, 1, "a\n", 0},
	} {
		var b bytes.Buffer
		r := &reading{consumeFlags: &consumeFlags{max: c.max}, left: c.left, format: formatter, out: bufio.NewWriter(&b)}
		if _, err := r.print(fetch); err != nil || r.emitted() != nil || b.String() != c.want || len(r.left) != c.open {
			t.Errorf("%+v: %q, left %v, %v", c, b.String(), r.left, err)
		}
	}
}
