package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// verdict is what a layer's runs say of a mutation.
type verdict string

const (
	caught   verdict = "caught"
	caughtH  verdict = "hung"     // caught: twice the layer's own time limit ended it
	survived verdict = "survived" // the layer was green
	unsteady verdict = "unsteady" // failed once, not twice: not caught
	invalid  verdict = "invalid"  // the patch does not apply or compile, or the layer gave no verdict
)

func (v verdict) isCaught() bool { return v == caught || v == caughtH }

// result is one layer's verdict on one mutation.
type result struct {
	nr, name, sum string
	layer         string
	verdict       verdict
	by            string // the first test or check that failed
	seeds         int
	seconds       float64
	commit        string
	note          string // why it is invalid
}

// copyTree copies the tree below from, without what no build or test reads: hidden
// directories and what is built into the root.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		switch {
		case rel != "." && d.IsDir() && (strings.HasPrefix(d.Name(), ".") || rel == "bin" || rel == "data" || rel == "tmp" || strings.HasPrefix(rel, "bench-")):
			return filepath.SkipDir
		case d.IsDir():
			return os.MkdirAll(dst, 0o755)
		case !d.Type().IsRegular():
			return nil
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		return os.WriteFile(dst, b, st.Mode().Perm())
	})
}

// tester runs mutations through layers in a copy of the tree.
type tester struct {
	dir    string // the copy
	layers []layer
	commit string
	say    func(format string, args ...any)
	// keep hears of each result as it comes.
	keep func(result) error
}

var errBaseline = errors.New("the tree as it is does not pass")

// baseline holds that every layer is green on the tree as it is: what fails
// there says nothing of a mutation.
func (t *tester) baseline(ctx context.Context) error {
	for _, l := range t.layers {
		o := l.run(ctx, t.dir, nil, nil)
		t.say("   %-9s %-9s %6.1fs  the tree as it is", l.name(), o.state, o.took.Seconds())
		if o.state != green {
			return fmt.Errorf("%w: %s: %s %s\n%s", errBaseline, l.name(), o.state, strings.Join(o.failed, ", "), tail(o.output))
		}
	}
	return nil
}

// try applies m, asks every layer, and takes m back.
func (t *tester) try(ctx context.Context, m *mutation) (rs []result, err error) {
	t.say("%s %s", m.nr, m.name)
	undo, err := m.change(t.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, undo()) }()
	for _, l := range t.layers {
		r := t.ask(ctx, l, m)
		r.nr, r.name, r.sum, r.layer, r.commit = m.nr, m.name, m.sum, l.name(), t.commit
		t.say("   %-9s %-9s %6.1fs  %s", l.name(), r.verdict, r.seconds, r.by)
		if r.note != "" {
			t.say("%s", r.note)
		}
		rs = append(rs, r)
		if err := t.keep(r); err != nil {
			return rs, err
		}
		if ctx.Err() != nil {
			return rs, ctx.Err()
		}
	}
	return rs, nil
}

// ask runs one layer, and once more if it fails: what fails once and not twice is
// not caught.
func (t *tester) ask(ctx context.Context, l layer, m *mutation) result {
	o := l.run(ctx, t.dir, m, nil)
	r := result{seeds: o.seeds, seconds: o.took.Seconds(), by: first(o.failed)}
	switch {
	case o.state == green:
		r.verdict = survived
	case !o.bad():
		r.verdict, r.note = invalid, fmt.Sprintf("%s\n%s", o.state, tail(o.output))
	default:
		again := l.run(ctx, t.dir, m, o.failed)
		switch {
		case !again.bad():
			r.verdict = unsteady
		case again.state == hung || o.state == hung:
			r.verdict, r.by = caughtH, first(again.failed)
		default:
			r.verdict, r.by = caught, first(again.failed)
		}
	}
	return r
}

func first(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return strings.TrimSuffix(names[0], ": ")
}

// tail is the end of an output, for people.
func tail(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

// uncaught lists the mutations that no layer caught, and those without a verdict.
func uncaught(ms []mutation, rs []result) []string {
	var out []string
	for i := range ms {
		m := &ms[i]
		ok, bad := false, ""
		for _, r := range rs {
			if r.nr != m.nr || r.sum != m.sum {
				continue
			}
			ok = ok || r.verdict.isCaught()
			if r.verdict == invalid {
				bad = ": " + r.layer + " gave no verdict"
			}
		}
		if !ok || bad != "" {
			out = append(out, m.nr+" "+m.name+bad)
		}
	}
	return out
}
