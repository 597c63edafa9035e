package internal

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	maxFileLines = 800
	maxFuncLines = 70
)

// longFuncs may be longer than maxFuncLines, for a reason that stands here.
var longFuncs = map[string]string{}

// TestTidy holds the sizes that let one keep a file or a function in the head, and
// what must not be left behind.
func TestTidy(t *testing.T) {
	seen := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != ".." {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if n := bytes.Count(src, []byte("\n")); n > maxFileLines {
			t.Errorf("%s has %d lines, at most %d are allowed", path, n, maxFileLines)
		}
		for _, word := range []string{"TO" + "DO", "FIX" + "ME", "XX" + "X"} {
			if bytes.Contains(src, []byte(word)) {
				t.Errorf("%s contains %s", path, word)
			}
		}
		return checkFuncs(t, path, src, seen)
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range longFuncs {
		if !seen[name] {
			t.Errorf("%s is exempt and does not need it", name)
		}
	}
}

func checkFuncs(t *testing.T, path string, src []byte, seen map[string]bool) error {
	t.Helper()
	if strings.HasSuffix(path, "_test.go") {
		return nil
	}
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, path, src, 0)
	if err != nil {
		return err
	}
	for _, decl := range f.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok {
			continue
		}
		lines := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1
		if lines <= maxFuncLines {
			continue
		}
		name := filepath.ToSlash(strings.TrimPrefix(path, "../")) + ":" + fn.Name.Name
		seen[name] = true
		if longFuncs[name] == "" {
			t.Errorf("%s has %d lines, at most %d are allowed", name, lines, maxFuncLines)
		}
	}
	return nil
}
