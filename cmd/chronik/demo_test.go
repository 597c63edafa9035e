package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"chronik/internal/admin"
)

// What was acknowledged and is not there, or is not the same, is found, with its offset.
func TestReading(t *testing.T) {
	type rec struct {
		offset int64
		value  string
	}
	for name, c := range map[string]struct {
		there []rec
		found int
		want  string
	}{
		"all":         {[]rec{{0, "a"}, {1, "never acknowledged"}, {2, "c"}}, 2, ""},
		"lost":        {[]rec{{0, "a"}}, 1, "orders-0: 1 of 2 acknowledged records are there"},
		"a hole":      {[]rec{{0, "a"}, {2, "c"}}, 1, "orders-0: offset 2 where 1 is next"},
		"overwritten": {[]rec{{0, "a"}, {1, "b"}, {2, "d"}}, 1, "orders-0: offset 2 holds other bytes than were acknowledged"},
		"exchanged":   {[]rec{{0, "c"}, {1, "b"}, {2, "a"}}, 0, "orders-0: offset 0 holds other bytes than were acknowledged"},
		"not from 0":  {[]rec{{1, "b"}, {2, "c"}}, 1, "orders-0: offset 1 where 0 is next"},
	} {
		rd := demoReading{want: map[int64]uint64{0: shortSum([]byte("a")), 2: shortSum([]byte("c"))}}
		for _, r := range c.there {
			rd.see(r.offset, []byte(r.value))
		}
		got := ""
		if err := rd.end(); err != nil {
			got = err.Error()
		}
		if got != c.want || rd.found != c.found {
			t.Errorf("%s: %q, %d found; want %q, %d", name, got, rd.found, c.want, c.found)
		}
	}
}

func TestProgressBar(t *testing.T) {
	for _, c := range []struct {
		t    admin.Transfer
		want string
	}{
		{admin.Transfer{}, "[....................]   0%  0 B of 0 B  0 B/s  - left  0 B reused"},
		{
			admin.Transfer{BytesDone: 12_345_678, BytesTotal: 24_691_356, BytesReused: 999_999, BytesPerSecond: 6_291_456, SecondsLeft: 1.96},
			"[##########..........]  50%  12.3 MB of 24.7 MB  6.3 MB/s  2s left  1000.0 kB reused",
		},
		{admin.Transfer{BytesDone: 5e9, BytesTotal: 5e9}, "[####################] 100%  5.0 GB of 5.0 GB  0 B/s  - left  0 B reused"},
		{admin.Transfer{BytesTotal: 5e9, BytesPerSecond: 1e6, SecondsLeft: 5000}, "[....................]   0%  0 B of 5.0 GB  1.0 MB/s  1h23m20s left  0 B reused"},
		{admin.Transfer{BytesDone: 7, BytesTotal: 5}, "[####################] 100%  7 B of 5 B  0 B/s  - left  0 B reused"},
	} {
		if got := progressBar(c.t); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}

// The p99 is that of what was acknowledged within the spans, and of nothing else.
func TestP99OfSpans(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	l := demoLoad{}
	for i := range 1000 {
		took := time.Millisecond
		if i >= 200 && i < 300 {
			took = time.Second // between the spans
		}
		if i == 150 {
			took = 7 * time.Millisecond // one of 100: it is the p99
		}
		l.timings = append(l.timings, timing{at: at(i), took: took})
	}
	for _, c := range []struct {
		spans []time.Time
		want  float64
	}{
		{nil, 0},
		{[]time.Time{at(2000), at(3000)}, 0},
		{[]time.Time{at(0), at(100)}, 1},
		{[]time.Time{at(150), at(151)}, 7},
		{[]time.Time{at(100), at(200), at(300), at(1000)}, 1},
		{[]time.Time{at(190), at(210)}, 1000},
	} {
		if got := l.p99(c.spans...); got != c.want {
			t.Errorf("%v: %v, want %v", c.spans, got, c.want)
		}
	}
}

// Without a terminal a line is written at most once a second, and with --json nothing but the result.
func TestDemoViewIsPlain(t *testing.T) {
	var out bytes.Buffer
	v := newDemoView(&out, false, time.Now())
	v.title("title")
	for range 3 {
		v.progress(admin.Transfer{BytesDone: 1, BytesTotal: 2})
	}
	v.say("said %d", 1)
	if got := out.String(); strings.Count(got, "50%") != 1 || strings.ContainsAny(got, "\r\x1b") || !strings.HasSuffix(got, "s  said 1\n") {
		t.Errorf("%q", got)
	}
	out.Reset()
	v = newDemoView(&out, true, time.Now())
	v.title("title")
	v.progress(admin.Transfer{})
	v.say("said")
	if out.Len() > 0 {
		t.Errorf("%q before the result", out.String())
	}
	v.end(&demoReport{Verified: true})
	if got := out.String(); !strings.HasPrefix(got, "{\n  \"verified\": true,") {
		t.Errorf("%q", got)
	}
}

// TestGuardKeeps: the guard removes a directory when its parent died, and not when it was told to keep it.
func TestGuardKeeps(t *testing.T) {
	for told, want := range map[string]bool{"": false, guardKeeps: true} {
		dc := &devCluster{dir: t.TempDir()}
		if err := dc.save(); err != nil {
			t.Fatal(err)
		}
		var errs bytes.Buffer
		if code := run(t.Context(), []string{"dev", "guard", "--data-dir", dc.dir, "--remove=true"}, strings.NewReader(told), io.Discard, &errs); code != 0 {
			t.Errorf("told %q: exit code %d, %s", told, code, errs.String())
		}
		if _, err := os.Stat(dc.path()); (err == nil) != want {
			t.Errorf("told %q: %v, want kept %t", told, err, want)
		}
	}
}
