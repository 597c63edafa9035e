package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// mutation is one deliberate bug: NN-name.patch.
type mutation struct {
	nr, name string
	// what it does, which rule or invariant that breaks, and the packages whose own
	// tests are asked beside those of the packages it touches.
	what, breaks string
	tests        []string
	files        []fileDiff
	// sum is of the whole patch file: a result belongs to the bytes that gave it.
	sum string
}

// fileDiff is what a mutation changes in one file, path relative to the module's root.
type fileDiff struct {
	path  string
	hunks []hunk
}

// hunk replaces the lines before by after. line is where it was when the patch was
// made, 1 for the first.
type hunk struct {
	line          int
	before, after []string
}

var errPatch = errors.New("bad patch")

// readMutations reads every patch in dir, in order of number; only, if not empty, names the wanted numbers.
func readMutations(dir string, only []string) ([]mutation, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.patch"))
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var ms []mutation
	seen := map[string]string{}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		m, err := parseMutation(filepath.Base(name), b)
		if err != nil {
			return nil, err
		}
		if other := seen[m.nr]; other != "" {
			return nil, fmt.Errorf("%w: %s and %s have the same number", errPatch, other, m.name)
		}
		seen[m.nr] = m.name
		if len(only) == 0 || slices.Contains(only, m.nr) {
			ms = append(ms, m)
		}
	}
	for _, nr := range only {
		if seen[nr] == "" {
			return nil, fmt.Errorf("%w: there is no mutation %s in %s", errPatch, nr, dir)
		}
	}
	return ms, nil
}

// parseMutation reads a patch file: lines "What:", "Breaks:", "Tests:", then a unified diff.
func parseMutation(file string, b []byte) (mutation, error) {
	var m mutation
	fail := func(format string, args ...any) (mutation, error) {
		return m, fmt.Errorf("%s: %w: %s", file, errPatch, fmt.Sprintf(format, args...))
	}
	var ok bool
	if m.nr, m.name, ok = strings.Cut(strings.TrimSuffix(file, ".patch"), "-"); !ok || m.nr == "" || m.name == "" {
		return fail("the name is not NN-name.patch")
	}
	sum := sha256.Sum256(b)
	m.sum = hex.EncodeToString(sum[:6])
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	at := 0
	for ; at < len(lines) && !strings.HasPrefix(lines[at], "--- "); at++ {
		key, value, _ := strings.Cut(lines[at], ": ")
		switch key {
		case "What":
			m.what = value
		case "Breaks":
			m.breaks = value
		case "Tests":
			m.tests = strings.Fields(value)
		}
	}
	if m.what == "" || m.breaks == "" {
		return fail("no line \"What: \" or \"Breaks: \"")
	}
	for at < len(lines) {
		d, next, err := parseFile(lines, at)
		if err != nil {
			return fail("line %d: %v", next+1, err)
		}
		m.files = append(m.files, d)
		at = next
	}
	if len(m.files) == 0 {
		return fail("it changes nothing")
	}
	return m, nil
}

// parseFile reads one file's diff and returns the line behind it.
func parseFile(lines []string, at int) (fileDiff, int, error) {
	if at+1 >= len(lines) || !strings.HasPrefix(lines[at+1], "+++ b/") {
		return fileDiff{}, at, errors.New("--- without +++ b/")
	}
	d := fileDiff{path: strings.TrimPrefix(lines[at+1], "+++ b/")}
	if path.Clean(d.path) != d.path || strings.HasPrefix(d.path, "..") || path.IsAbs(d.path) {
		return d, at + 1, fmt.Errorf("path %q leads outside", d.path)
	}
	for at += 2; at < len(lines) && !strings.HasPrefix(lines[at], "diff "); {
		if !strings.HasPrefix(lines[at], "@@ -") {
			return d, at, fmt.Errorf("%q is no hunk", lines[at])
		}
		h, next, err := parseHunk(lines, at)
		if err != nil {
			return d, at, err
		}
		d.hunks = append(d.hunks, h)
		at = next
	}
	for at < len(lines) && !strings.HasPrefix(lines[at], "--- ") {
		at++
	}
	if len(d.hunks) == 0 {
		return d, at, errors.New("a file without hunks")
	}
	return d, at, nil
}

func parseHunk(lines []string, at int) (hunk, int, error) {
	start, _, _ := strings.Cut(strings.TrimPrefix(lines[at], "@@ -"), " ")
	start, _, _ = strings.Cut(start, ",")
	line, err := strconv.Atoi(start)
	if err != nil {
		return hunk{}, at, err
	}
	h := hunk{line: line}
	for at++; at < len(lines); at++ {
		l := lines[at]
		switch {
		case l == "" || l[0] == ' ':
			l = strings.TrimPrefix(l, " ")
			h.before, h.after = append(h.before, l), append(h.after, l)
		case l[0] == '-':
			h.before = append(h.before, l[1:])
		case l[0] == '+':
			h.after = append(h.after, l[1:])
		case l[0] == '\\':
		default:
			return h, at, endHunk(&h)
		}
	}
	return h, at, endHunk(&h)
}

func endHunk(h *hunk) error {
	if len(h.before) == 0 || slices.Equal(h.before, h.after) {
		return errors.New("a hunk without context or change")
	}
	return nil
}

// apply returns src with the hunks of d. Each must match exactly one place: the
// code around it may have moved, but what it changes must be what it was.
func (d *fileDiff) apply(src []byte) ([]byte, error) {
	lines := strings.Split(string(src), "\n")
	moved := 0
	for i := range d.hunks {
		h := &d.hunks[i]
		at := h.place(lines, h.line-1+moved)
		if at < 0 {
			return nil, fmt.Errorf("%w: %s: the lines of the hunk at %d are not there any more, or not only once", errPatch, d.path, h.line)
		}
		lines = slices.Replace(lines, at, at+len(h.before), h.after...)
		moved += len(h.after) - len(h.before)
	}
	return []byte(strings.Join(lines, "\n")), nil
}

// place finds where the hunk belongs: where it was, else the only other place; -1: none.
func (h *hunk) place(lines []string, guess int) int {
	matches := func(at int) bool {
		return at >= 0 && at+len(h.before) <= len(lines) && slices.Equal(lines[at:at+len(h.before)], h.before)
	}
	if matches(guess) {
		return guess
	}
	found := -1
	for at := range lines {
		if !matches(at) {
			continue
		}
		if found >= 0 {
			return -1
		}
		found = at
	}
	return found
}

// change applies m to the tree in dir and returns what undoes it. On error nothing has changed.
func (m *mutation) change(dir string) (undo func() error, err error) {
	before, after := map[string][]byte{}, map[string][]byte{}
	for i := range m.files {
		d := &m.files[i]
		name := filepath.Join(dir, filepath.FromSlash(d.path))
		src, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("mutation %s-%s: %w", m.nr, m.name, err)
		}
		out, err := d.apply(src)
		if err != nil {
			return nil, fmt.Errorf("mutation %s-%s: %w", m.nr, m.name, err)
		}
		if bytes.Equal(src, out) {
			return nil, fmt.Errorf("mutation %s-%s: %w: %s stays as it is", m.nr, m.name, errPatch, d.path)
		}
		before[name], after[name] = src, out
	}
	undo = func() error { return writeAll(before) }
	if err := writeAll(after); err != nil {
		return nil, errors.Join(err, undo())
	}
	return undo, nil
}

func writeAll(files map[string][]byte) error {
	var errs []error
	for name, b := range files {
		errs = append(errs, os.WriteFile(name, b, 0o644))
	}
	return errors.Join(errs...)
}

// packages are the import paths, relative to the module, whose tests are asked first.
func (m *mutation) packages() []string {
	var ps []string
	for i := range m.files {
		ps = append(ps, "./"+path.Dir(m.files[i].path))
	}
	for _, t := range m.tests {
		ps = append(ps, "./internal/"+t)
	}
	slices.Sort(ps)
	return slices.Compact(ps)
}
