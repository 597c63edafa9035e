package internal

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestLongIsComplete: 'make long' runs each test that leaves itself to it. Its list of names is by hand,
// and a test that is not on it would run nowhere.
func TestLongIsComplete(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^LONG := (?:\$\(LONG\)\|)?(.+)$`).FindAllStringSubmatch(string(makefile), -1) {
		names = append(names, m[1])
	}
	listed := regexp.MustCompile(`^Test(` + strings.Join(names, "|") + `)$`)
	dirs := regexp.MustCompile(`(?m)^long:.*\n.*'((?: \./\S+)+)$`).FindStringSubmatch(string(makefile))
	if len(names) == 0 || dirs == nil {
		t.Fatal("the Makefile's list is not where it was")
	}
	found := 0
	err = filepath.WalkDir("..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || !strings.HasPrefix(fn.Name.Name, "Test") || !leavesItself(fn) {
				continue
			}
			found++
			dir := "." + strings.TrimPrefix(filepath.Dir(path), "..")
			if !listed.MatchString(fn.Name.Name) || !strings.Contains(dirs[1]+" ", " "+dir+" ") {
				t.Errorf("%s: %s runs neither with 'go test ./...' nor in 'make long'", path, fn.Name.Name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 20 {
		t.Errorf("only %d long tests found", found)
	}
}

// leavesItself tells whether a test begins with one of its statements long(t) or harness.Long(t). Those that
// do so under a condition, and storms, run in another form.
func leavesItself(fn *ast.FuncDecl) bool {
	for _, s := range fn.Body.List {
		e, ok := s.(*ast.ExprStmt)
		if !ok {
			continue
		}
		call, ok := e.X.(*ast.CallExpr)
		if !ok {
			continue
		}
		switch f := call.Fun.(type) {
		case *ast.Ident:
			if f.Name == "long" {
				return true
			}
		case *ast.SelectorExpr:
			if f.Sel.Name == "Long" {
				return true
			}
		}
	}
	return false
}
