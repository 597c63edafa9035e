package internal

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// decoderName matches what functions are called that make sense of bytes or text.
var decoderName = regexp.MustCompile(`^(?i:decode|parse|unmarshal|unpack|split)`)

// TestEveryDecoderIsFuzzed reads the table "Decoders" of docs/testing.md: whatever is
// called a decoder stands there, with a target or with why it has none, and each
// target that is named, and no other, exists.
func TestEveryDecoderIsFuzzed(t *testing.T) {
	rows, err := decoderTable()
	if err != nil {
		t.Fatal(err)
	}
	decoders, targets := map[string]bool{}, map[string]bool{}
	for _, root := range []string{".", "../cmd"} {
		if err := findDecoders(root, decoders, targets); err != nil {
			t.Fatal(err)
		}
	}
	named, fuzzed := map[string]bool{}, map[string]bool{}
	for _, r := range rows {
		for _, d := range r.decoders {
			named[d] = true
		}
		for _, target := range r.targets {
			fuzzed[target] = true
		}
	}
	for _, d := range slices.Sorted(maps.Keys(decoders)) {
		if !named[d] {
			t.Errorf("%s is called a decoder and does not stand in the table of docs/testing.md: give it a fuzz target and a row", d)
		}
	}
	for _, target := range slices.Sorted(maps.Keys(fuzzed)) {
		if !targets[target] {
			t.Errorf("%s stands in the table of docs/testing.md and does not exist", target)
		}
	}
	for _, target := range slices.Sorted(maps.Keys(targets)) {
		if !fuzzed[target] {
			t.Errorf("%s does not stand in the table of docs/testing.md", target)
		}
	}
}

// findDecoders fills in "package.function" of what is called a decoder, and of fuzz targets.
func findDecoders(root string, decoders, targets map[string]bool) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		pkg := filepath.Base(filepath.Dir(path))
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			switch {
			case !ok:
			case strings.HasSuffix(path, "_test.go"):
				if strings.HasPrefix(fn.Name.Name, "Fuzz") {
					targets[pkg+"."+fn.Name.Name] = true
				}
			case decoderName.MatchString(fn.Name.Name):
				decoders[pkg+"."+fn.Name.Name] = true
			}
		}
		return nil
	})
}

type decoderRow struct{ decoders, targets []string }

var code = regexp.MustCompile("`([^`]+)`")

// decoderTable reads the rows: decoders, targets or a reason, and figures. Names are in backquotes.
func decoderTable() ([]decoderRow, error) {
	b, err := os.ReadFile("../docs/testing.md")
	if err != nil {
		return nil, err
	}
	_, text, ok := strings.Cut(string(b), "\n## Decoders\n")
	if !ok {
		return nil, fmt.Errorf("docs/testing.md has no section Decoders")
	}
	text, _, _ = strings.Cut(text, "\n## ")
	names := func(cell string) (out []string) {
		for _, m := range code.FindAllStringSubmatch(cell, -1) {
			out = append(out, m[1])
		}
		return out
	}
	var rows []decoderRow
	for line := range strings.Lines(text) {
		cells := strings.Split(line, "|")
		if len(cells) < 6 {
			continue
		}
		r := decoderRow{names(cells[2]), names(cells[3])}
		if len(r.decoders) > 0 && len(r.targets) == 0 && strings.TrimSpace(cells[3]) == "" {
			return nil, fmt.Errorf("docs/testing.md: %s: neither a target nor a reason", strings.TrimSpace(cells[1]))
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// TestEveryTargetHasACorpus: what fuzzing has found to be of interest is kept, and 'go test' tries it.
func TestEveryTargetHasACorpus(t *testing.T) {
	target := regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)
	found := 0
	for _, root := range []string{".", "../cmd"} {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			src, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, m := range target.FindAllStringSubmatch(string(src), -1) {
				found++
				kept, err := filepath.Glob(filepath.Join(filepath.Dir(path), "testdata", "fuzz", m[1], "*"))
				if err != nil || len(kept) == 0 {
					t.Errorf("%s: nothing is kept of %s: 'make fuzz-corpus'", path, m[1])
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found < 50 {
		t.Errorf("only %d targets found", found)
	}
}
