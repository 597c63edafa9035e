package main

import (
	"fmt"
	"math"
	"strings"
)

// axis maps values to pixels, from low at pixel from to high at pixel to.
type axis struct {
	low, high float64
	from, to  float64
	log       bool
}

func (a axis) at(v float64) float64 {
	lo, hi := a.low, a.high
	if a.log {
		v, lo, hi = math.Log10(v), math.Log10(lo), math.Log10(hi)
	}
	if hi == lo {
		return (a.from + a.to) / 2
	}
	return a.from + (v-lo)/(hi-lo)*(a.to-a.from)
}

// ceiling is the smallest of 1, 2, 2.5, 5 times a power of ten at or above v.
func ceiling(v float64) float64 {
	if v <= 0 {
		return 1
	}
	p := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 2.5, 5} {
		if v <= m*p*(1+1e-9) {
			return m * p
		}
	}
	return 10 * p
}

const (
	plotWidth, plotHeight    = 760, 420
	plotLeft, plotRight      = 90, 670
	plotTop, plotBottom      = 60, 350
	plotTicks                = 5
	throughputInk, rejoinInk = "#1f5fa8", "#b3541e"
)

// plot draws throughput (left axis) and rejoin time (right axis) against the
// threshold as an SVG that reads on light and dark pages.
func (s *thresholdSweep) plot() string {
	var w strings.Builder
	fmt.Fprintf(&w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n", plotWidth, plotHeight)
	fmt.Fprintf(&w, `<title>Throughput and rejoin time by snapshot.threshold_entries</title>`+"\n")
	fmt.Fprintf(&w, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", plotWidth, plotHeight)
	text(&w, (plotLeft+plotRight)/2, 28, "middle", "#222222", "Throughput and rejoin time by snapshot.threshold_entries")
	if len(s.Rows) == 0 {
		fmt.Fprintln(&w, `</svg>`)
		return w.String()
	}
	lo, hi := float64(s.Rows[0].Threshold), float64(s.Rows[0].Threshold)
	rate, back := 0.0, 0.0
	for _, r := range s.Rows {
		lo, hi = min(lo, float64(r.Threshold)), max(hi, float64(r.Threshold))
		rate, back = max(rate, r.Load.RecordsPerSec), max(back, r.Rejoin)
	}
	x := axis{low: lo, high: hi, from: plotLeft + 30, to: plotRight - 30, log: true}
	left := axis{high: ceiling(rate), from: plotBottom, to: plotTop}
	right := axis{high: ceiling(back), from: plotBottom, to: plotTop}
	for i := range plotTicks + 1 {
		part := float64(i) / plotTicks
		y := left.at(left.high * part)
		fmt.Fprintf(&w, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#dddddd"/>`+"\n", plotLeft, y, plotRight, y)
		text(&w, plotLeft-8, y+4, "end", throughputInk, thousands(int64(left.high*part)))
		text(&w, plotRight+8, y+4, "start", rejoinInk, fmt.Sprintf("%.4g", right.high*part))
	}
	fmt.Fprintf(&w, `<path d="M%d %d V%d H%d V%d" fill="none" stroke="#888888"/>`+"\n", plotLeft, plotTop, plotBottom, plotRight, plotTop)
	var rates, backs [][2]float64
	for _, r := range s.Rows {
		px := x.at(float64(r.Threshold))
		fmt.Fprintf(&w, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#888888"/>`+"\n", px, plotBottom, px, plotBottom+5)
		text(&w, px, plotBottom+20, "middle", "#222222", thousands(int64(r.Threshold)))
		rates = append(rates, [2]float64{px, left.at(r.Load.RecordsPerSec)})
		backs = append(backs, [2]float64{px, right.at(r.Rejoin)})
	}
	line(&w, rates, throughputInk, "")
	line(&w, backs, rejoinInk, "6 4")
	text(&w, (plotLeft+plotRight)/2, plotBottom+44, "middle", "#222222", "snapshot.threshold_entries (logarithmic)")
	turned(&w, 22, (plotTop+plotBottom)/2, throughputInk, "records/s (solid)")
	turned(&w, plotWidth-18, (plotTop+plotBottom)/2, rejoinInk, fmt.Sprintf("rejoin after %.0f s away, s (dashed)", s.Away))
	fmt.Fprintln(&w, `</svg>`)
	return w.String()
}

func text(w *strings.Builder, x, y float64, anchor, ink, s string) {
	fmt.Fprintf(w, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s">%s</text>`+"\n", x, y, anchor, ink, s)
}

func turned(w *strings.Builder, x, y float64, ink, s string) {
	fmt.Fprintf(w, `<text transform="translate(%.1f %.1f) rotate(-90)" text-anchor="middle" fill="%s">%s</text>`+"\n", x, y, ink, s)
}

func line(w *strings.Builder, at [][2]float64, ink, dashes string) {
	var points []string
	for _, p := range at {
		points = append(points, fmt.Sprintf("%.1f,%.1f", p[0], p[1]))
	}
	dash := ""
	if dashes != "" {
		dash = ` stroke-dasharray="` + dashes + `"`
	}
	fmt.Fprintf(w, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2.5"%s/>`+"\n", strings.Join(points, " "), ink, dash)
	for _, p := range at {
		fmt.Fprintf(w, `<circle cx="%.1f" cy="%.1f" r="4" fill="%s"/>`+"\n", p[0], p[1], ink)
	}
}
