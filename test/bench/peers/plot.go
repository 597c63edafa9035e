package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// plots say which metric of a part is drawn.
var plots = map[string]struct {
	metric string
	better string
	only   string // workloads that end so
}{
	"throughput": {"throughput", "higher is better", ", none"},
	"partitions": {"records", "higher is better", ""},
	"latency":    {"produce p99", "lower is better", ""},
	"cold":       {"all consumers together", "higher is better", ""},
}

var inks = map[string]string{"chronik": "#1f5fa8", "kafka": "#b3541e", "kafka-flush": "#e0a070", "nats": "#5a8f3c"}

const (
	plotWidth, barHeight, groupGap = 760, 16, 14
	plotLeft, plotRight            = 230, 660
	plotTop                        = 64
)

// plot writes the part's bars as an SVG that reads on light and dark pages, and
// returns its name; none if the part has no plot or no values.
func (r *results) plot(docs string) (string, error) {
	svg, err := r.bars()
	if errors.Is(err, errNothing) {
		return "", nil
	}
	name := "bench-peers-" + r.Part + ".svg"
	return name, errors.Join(err, os.WriteFile(filepath.Join(docs, name), []byte(svg), 0o644))
}

func (r *results) bars() (string, error) {
	what, ok := plots[r.Part]
	if !ok {
		return "", errNothing
	}
	most, bars := 0.0, 0
	var rows []*row
	names := append([]string{"chronik"}, others...)
	for _, row := range r.Rows {
		if row.Metric != what.metric || !strings.HasSuffix(row.Workload, what.only) {
			continue
		}
		rows = append(rows, row)
		for _, name := range names {
			if len(row.Values[name]) > 0 {
				most, bars = max(most, row.median(name)), bars+1
			}
		}
	}
	if most == 0 {
		return "", errNothing
	}
	least := floor(rows, names)
	height := plotTop + bars*barHeight + len(rows)*groupGap + 20
	var w strings.Builder
	fmt.Fprintf(&w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, height)
	title := fmt.Sprintf("%s, %s, logarithmic: %s", what.metric, rows[0].Unit, what.better)
	fmt.Fprintf(&w, "<title>%s</title>\n<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n", title, plotWidth, height)
	label(&w, plotWidth/2, 22, "middle", "#222222", title)
	for i, name := range names {
		x := float64(plotLeft + i*110)
		fmt.Fprintf(&w, `<rect x="%.0f" y="36" width="12" height="12" fill="%s"/>`+"\n", x, inks[name])
		label(&w, x+17, 46, "start", "#222222", name)
	}
	y := float64(plotTop)
	for _, row := range rows {
		top := y
		for _, name := range names {
			if len(row.Values[name]) == 0 {
				continue
			}
			v := row.median(name)
			long := (plotRight - plotLeft) * math.Log(max(1, v/least)) / math.Log(most/least)
			fmt.Fprintf(&w, `<rect x="%d" y="%.1f" width="%.1f" height="%d" fill="%s"/>`+"\n", plotLeft, y, long, barHeight-2, inks[name])
			label(&w, plotLeft+long+5, y+11, "start", "#222222", number(v))
			y += barHeight
		}
		label(&w, plotLeft-8, (top+y)/2+3, "end", "#222222", row.Workload)
		y += groupGap
	}
	fmt.Fprintln(&w, "</svg>")
	return w.String(), nil
}

// floor is where the bars begin: a third of the smallest value.
func floor(rows []*row, names []string) float64 {
	var all []float64
	for _, row := range rows {
		for _, name := range names {
			if v := row.median(name); v > 0 {
				all = append(all, v)
			}
		}
	}
	return slices.Min(all) / 3
}

func label(w *strings.Builder, x, y float64, anchor, ink, s string) {
	s = strings.NewReplacer("&", "&amp;", "<", "&lt;").Replace(s)
	fmt.Fprintf(w, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s">%s</text>`+"\n", x, y, anchor, ink, s)
}
