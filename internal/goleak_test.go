package internal

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// noLeakTest are packages with goroutines and without tests of their own: whose tests run them stands here.
var noLeakTest = map[string]string{
	"internal/bucket/buckettest":      "internal/bucket",
	"test/sim/guest":                  "nobody's: a program, which ends",
	"test/sim/machine/testdata/guest": "nobody's: a program, which ends",
	"test/bench":                      "nobody's: a program, which ends",
	"test/bench/nats":                 "nobody's: a program, which ends",
}

// pkgFiles is what of a package matters here.
type pkgFiles struct {
	tests   bool
	starts  string // where a goroutine is started; "": nowhere
	watched bool   // its TestMain looks for goroutines that are left
}

// TestGoroutinesAreWatched: each package that starts goroutines, or whose tests do, ends its
// tests with goleak, which names those that are left.
func TestGoroutinesAreWatched(t *testing.T) {
	pkgs := map[string]*pkgFiles{}
	for _, root := range []string{"cmd", "internal", "test"} {
		err := filepath.WalkDir(filepath.Join("..", root), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
				return err
			}
			return lookForGoroutines(pkgs, path)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	seen := 0
	for dir, p := range pkgs {
		if p.starts == "" {
			continue
		}
		seen++
		switch by := noLeakTest[dir]; {
		case p.tests && by != "":
			t.Errorf("%s is exempt and has tests", dir)
		case p.tests && !p.watched:
			t.Errorf("%s: a goroutine is started, and no TestMain of the package calls goleak.VerifyTestMain or goleak.Find", p.starts)
		case !p.tests && by == "":
			t.Errorf("%s: a goroutine is started in a package without tests: say here whose tests run it", p.starts)
		}
	}
	for dir := range noLeakTest {
		if p := pkgs[dir]; p == nil || p.starts == "" {
			t.Errorf("%s is exempt and does not need it", dir)
		}
	}
	if seen < 20 {
		t.Errorf("only %d packages with goroutines found", seen)
	}
}

func lookForGoroutines(pkgs map[string]*pkgFiles, path string) error {
	src, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, path, src, 0)
	if err != nil {
		return err
	}
	dir := strings.TrimPrefix(filepath.ToSlash(filepath.Dir(path)), "../")
	p := pkgs[dir]
	if p == nil {
		p = &pkgFiles{}
		pkgs[dir] = p
	}
	isTest := strings.HasSuffix(path, "_test.go")
	p.tests = p.tests || isTest
	for _, imp := range f.Imports {
		if imp.Path.Value == `"chronik/test/harness"` { // its goroutines are the test's
			p.starts = path
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if startsGoroutine(n) {
			p.starts = fset.Position(n.Pos()).String()
		}
		if fn, ok := n.(*ast.FuncDecl); ok && isTest && fn.Name.Name == "TestMain" {
			p.watched = callsGoleak(fn)
		}
		return true
	})
	return nil
}

// startsGoroutine knows go statements, and methods and functions that come to the same.
func startsGoroutine(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.GoStmt:
		return true
	case *ast.CallExpr:
		sel, ok := n.Fun.(*ast.SelectorExpr)
		return ok && (sel.Sel.Name == "AfterFunc" || sel.Sel.Name == "Go" && len(n.Args) == 1)
	}
	return false
}

func callsGoleak(fn *ast.FuncDecl) (found bool) {
	ast.Inspect(fn, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if id, ok := sel.X.(*ast.Ident); ok && id.Name == "goleak" {
				found = true
			}
		}
		return true
	})
	return found
}
