package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"chronik/internal/admin"
)

// isTerminal tells whether w shows what control characters do.
func isTerminal(w io.Writer) bool {
	if o, ok := w.(*output); ok {
		w = o.w
	}
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}

// demoView tells the story: with a bar that moves on a terminal, line by line elsewhere, as JSON at the end.
type demoView struct {
	w     io.Writer
	json  bool
	live  bool
	began time.Time
	bar   bool      // one stands on the terminal's last line
	shown time.Time // when the last progress line was written
}

func newDemoView(w io.Writer, asJSON bool, began time.Time) *demoView {
	return &demoView{w: w, json: asJSON, live: isTerminal(w) && !asJSON, began: began}
}

func (v *demoView) say(format string, args ...any) {
	if v.json {
		return
	}
	v.clear()
	fmt.Fprintf(v.w, "%5.1fs  %s\n", time.Since(v.began).Seconds(), fmt.Sprintf(format, args...))
}

func (v *demoView) title(text string) {
	if !v.json {
		fmt.Fprintf(v.w, "\n        %s\n", text)
	}
}

// progress shows a transfer: in place on a terminal, else as a line each second.
func (v *demoView) progress(t admin.Transfer) {
	switch {
	case v.json:
	case v.live:
		fmt.Fprintf(v.w, "\r        %s\x1b[K", progressBar(t))
		v.bar = true
	case time.Since(v.shown) >= time.Second:
		v.shown = time.Now()
		fmt.Fprintf(v.w, "        %s\n", progressBar(t))
	}
}

// clear takes the bar away.
func (v *demoView) clear() {
	if v.bar {
		fmt.Fprint(v.w, "\r\x1b[K")
		v.bar = false
	}
}

const barWidth = 20

// progressBar is a transfer on one line of less than 80 columns beside the margin.
func progressBar(t admin.Transfer) string {
	done := 0.0
	if t.BytesTotal > 0 {
		done = min(1, float64(t.BytesDone)/float64(t.BytesTotal))
	}
	full := int(done * barWidth)
	return fmt.Sprintf("[%s%s] %3.0f%%  %s of %s  %s/s  %s left  %s reused",
		strings.Repeat("#", full), strings.Repeat(".", barWidth-full), 100*done, size(int64(t.BytesDone)), size(int64(t.BytesTotal)),
		size(int64(t.BytesPerSecond)), timeLeft(t), size(int64(t.BytesReused)))
}

// timeLeft is the estimate, or a dash where there is none yet.
func timeLeft(t admin.Transfer) string {
	if t.SecondsLeft <= 0 {
		return "-"
	}
	return time.Duration(t.SecondsLeft * float64(time.Second)).Round(time.Second).String()
}

// size is a number of bytes for people.
func size(n int64) string {
	switch f := float64(n); {
	case f >= 1e9:
		return fmt.Sprintf("%.1f GB", f/1e9)
	case f >= 1e6:
		return fmt.Sprintf("%.1f MB", f/1e6)
	case f >= 1e3:
		return fmt.Sprintf("%.1f kB", f/1e3)
	}
	return fmt.Sprintf("%d B", n)
}

// end prints the result: as JSON in any case, else if it is a good one.
func (v *demoView) end(r *demoReport) {
	if v.json {
		enc := json.NewEncoder(v.w)
		enc.SetIndent("", "  ")
		_ = enc.Encode(r) // output remembers the error
		return
	}
	v.clear()
	if !r.Verified {
		return
	}
	var rows [][]string
	for _, ret := range r.Returns {
		rows = append(rows, []string{
			ret.Disk, size(int64(ret.BytesSent)), size(int64(ret.BytesReused)), fmt.Sprint(ret.Replayed), fmt.Sprintf("%.1f", ret.Seconds),
			fmt.Sprintf("%.1f ms", r.P99Before), fmt.Sprintf("%.1f ms", ret.P99),
		})
	}
	fmt.Fprintln(v.w)
	_ = table(v.w, []string{"DISK", "SENT", "REUSED", "REPLAYED", "SECONDS", "P99 BEFORE", "P99 DURING"}, rows) // output remembers the error
	fmt.Fprintf(v.w, "\nverified in %.1f s: three equal replicas, %d records acknowledged, none lost\n", r.Seconds, r.Acknowledged)
	if r.Dir != "" {
		fmt.Fprintf(v.w, "data and logs: %s\n", r.Dir)
	}
}
