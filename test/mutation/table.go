package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// resultsHead names the columns of the results' file.
const resultsHead = "nr\tname\tpatch\tlayer\tverdict\tseeds\tseconds\tcommit\tby"

// readResults reads what writeResults wrote; a missing file is empty.
func readResults(name string) ([]result, error) {
	b, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	if lines[0] != resultsHead {
		return nil, fmt.Errorf("%s:1: other columns than %q", name, resultsHead)
	}
	var rs []result
	for i, line := range lines[1:] {
		f := strings.Split(line, "\t")
		if len(f) != 9 {
			return nil, fmt.Errorf("%s:%d: %d columns", name, i+2, len(f))
		}
		seeds, err1 := strconv.Atoi(f[5])
		seconds, err2 := strconv.ParseFloat(f[6], 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, i+2, err)
		}
		rs = append(rs, result{
			nr: f[0], name: f[1], sum: f[2], layer: f[3], verdict: verdict(f[4]), seeds: seeds, seconds: seconds, commit: f[7], by: f[8],
		})
	}
	return rs, nil
}

// writeResults replaces the file as a whole.
func writeResults(name string, rs []result) error {
	var b bytes.Buffer
	fmt.Fprintln(&b, resultsHead)
	for i := range rs {
		r := &rs[i]
		by := strings.NewReplacer("\t", " ", "\n", " ").Replace(r.by)
		fmt.Fprintf(&b, "%s\t%s\t%s\t%s\t%s\t%d\t%.1f\t%s\t%s\n", r.nr, r.name, r.sum, r.layer, r.verdict, r.seeds, r.seconds, r.commit, by)
	}
	if err := os.WriteFile(name+".tmp", b.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(name+".tmp", name)
}

// merge puts r in the place of an earlier verdict of the same layer on the same mutation.
func merge(rs []result, r result) []result {
	rs = slices.DeleteFunc(rs, func(o result) bool { return o.nr == r.nr && o.layer == r.layer })
	rs = append(rs, r)
	slices.SortStableFunc(rs, func(a, b result) int {
		if c := strings.Compare(a.nr, b.nr); c != 0 {
			return c
		}
		return slices.Index(layerNames, a.layer) - slices.Index(layerNames, b.layer)
	})
	return rs
}

// current drops the results of patches that have changed or are gone.
func current(ms []mutation, rs []result) []result {
	return slices.DeleteFunc(rs, func(r result) bool {
		return !slices.ContainsFunc(ms, func(m mutation) bool { return m.nr == r.nr && m.sum == r.sum })
	})
}

// table is the document's part: each mutation and what each layer says of it.
func table(ms []mutation, rs []result) string {
	var b strings.Builder
	n := 0
	commits := map[string]bool{}
	layers := slices.DeleteFunc(slices.Clone(layerNames), func(l string) bool {
		return !slices.ContainsFunc(rs, func(r result) bool { return r.layer == l })
	})
	fmt.Fprintf(&b, "| mutation | breaks | %s |\n|---|---|%s\n", strings.Join(layers, " | "), strings.Repeat("---|", len(layers)))
	for i := range ms {
		m := &ms[i]
		cells := make([]string, len(layers))
		ok := false
		for k, l := range layers {
			for _, r := range rs {
				if r.nr == m.nr && r.layer == l {
					cells[k] = r.cell()
					ok = ok || r.verdict.isCaught()
					commits[r.commit] = true
				}
			}
		}
		if ok {
			n++
		}
		fmt.Fprintf(&b, "| %s %s: %s | %s | %s |\n", m.nr, m.name, escape(m.what), escape(m.breaks), strings.Join(cells, " | "))
	}
	at := make([]string, 0, len(commits))
	for c := range commits {
		at = append(at, c)
	}
	slices.Sort(at)
	fmt.Fprintf(&b, "\n%d of %d caught (`make mutation`; commit %s; each verdict's commit: test/mutation/results.tsv).\n", n, len(ms), strings.Join(at, ", "))
	return b.String()
}

func (r *result) cell() string {
	by := r.by
	if pkg, test, ok := strings.Cut(by, ": "); ok && r.layer != "sim" {
		by = pkg[strings.LastIndexByte(pkg, '/')+1:] + ": " + test
	}
	switch {
	case r.verdict.isCaught() && r.seeds > 0:
		return fmt.Sprintf("seed %d: %s", r.seeds, escape(by))
	case r.verdict == caughtH:
		return fmt.Sprintf("hung: %s", escape(by))
	case r.verdict == caught:
		return fmt.Sprintf("%s, %.0f s", escape(by), r.seconds)
	case r.verdict == survived && r.seeds > 0:
		return fmt.Sprintf("no, %d seeds", r.seeds)
	case r.verdict == survived:
		return "no"
	default:
		return string(r.verdict)
	}
}

func escape(s string) string { return strings.ReplaceAll(s, "|", "\\|") }

const (
	beginMark = "<!-- mutations: written by 'make mutation' -->"
	endMark   = "<!-- end of mutations -->"
)

// putTable replaces what stands between the marks of a document.
func putTable(doc []byte, text string) ([]byte, error) {
	before, rest, ok := bytes.Cut(doc, []byte(beginMark))
	_, after, ok2 := bytes.Cut(rest, []byte(endMark))
	if !ok || !ok2 {
		return nil, fmt.Errorf("no %q followed by %q", beginMark, endMark)
	}
	return slices.Concat(before, []byte(beginMark+"\n\n"+text+"\n"+endMark), after), nil
}
