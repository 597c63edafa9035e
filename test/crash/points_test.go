package crash

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// elsewhere are the points that no walk of this package passes, and the test of their own
// package that cuts the power there.
var elsewhere = map[string]string{
	"identity.adopted":            "recovery: TestRecoverCrash",
	"recovery.seed":               "recovery: TestRecoverCrash",
	"recovery.announce":           "recovery: TestRecoverCrash",
	"recovery.announced":          "recovery: TestRecoverCrash",
	"recovery.aside":              "recovery: TestRecoverCrash",
	"recovery.swap":               "recovery: TestRecoverCrash",
	"recovery.swapped":            "recovery: TestRecoverCrash",
	"recovery.adopt":              "recovery: TestRecoverCrash",
	"recovery.adopted":            "recovery: TestRecoverCrash",
	"archive.download.files":      "archive: TestDownloadDies",
	"archive.download.synced":     "archive: TestDownloadDies",
	"snapshot.generation.unstage": "snapshot: TestRemoveOthersCrash",
	"snapshot.staging.discard":    "snapshot: TestDiscardStagingCrash",
	"snapshot.staging.discarded":  "snapshot: TestDiscardStagingCrash",
	"snapshot.stage.part-sync":    "snapshot: TestFetchCrashInLargeFile",
	"snapshot.stage.part-synced":  "snapshot: TestFetchCrashInLargeFile",
	"snapshot.stage.keep-names":   "snapshot: TestFetchCrash",
}

var (
	aTest   = regexp.MustCompile(`^([a-z]+): (Test\w+)$`)
	subject = regexp.MustCompile(`invariant\.SetPointHook|diesAt\(`)
)

// TestEveryPointIsCutAt: the power is cut at every named point of the product, in a walk
// of this package, or in a test of the point's own that stands in elsewhere.
func TestEveryPointIsCutAt(t *testing.T) {
	passed := map[string]string{}
	for name := range stories {
		for p := range walked(t, name).points {
			passed[p] = name
		}
	}
	names := points(t)
	for name, where := range names {
		by := elsewhere[name]
		switch {
		case passed[name] != "" && by != "":
			t.Errorf("%s: the walk along %q passes it: it need not stand in elsewhere", name, passed[name])
		case passed[name] == "" && by == "":
			t.Errorf("%s: %s: no crash test passes this point", where, name)
		case by != "":
			if err := hooks(by); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for name := range elsewhere {
		if names[name] == "" {
			t.Errorf("%s stands in elsewhere and is no point", name)
		}
	}
	t.Logf("%d points: %d in walks of this package, %d in their packages' tests", len(names), len(names)-len(elsewhere), len(elsewhere))
}

// points reads the names of all points, and where they stand, out of the sources.
func points(t *testing.T) map[string]string {
	t.Helper()
	names := map[string]string{}
	inspectSources(t, func(fset *token.FileSet, _ string, n ast.Node) {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) != 1 {
			return
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || sel.Sel.Name != "Point" {
			return
		}
		if id, ok := sel.X.(*ast.Ident); !ok || id.Name != "invariant" {
			return
		}
		lit, ok := call.Args[0].(*ast.BasicLit)
		if !ok {
			t.Errorf("%s: a point's name is not written out", fset.Position(call.Pos()))
			return
		}
		name, err := strconv.Unquote(lit.Value)
		must(t, err)
		if was := names[name]; was != "" {
			t.Errorf("%s: point %s stands at %s already", fset.Position(call.Pos()), name, was)
		}
		names[name] = fset.Position(call.Pos()).String()
	})
	return names
}

// inspectSources shows every node of the product's sources, with the file's path below internal.
func inspectSources(t *testing.T, fn func(fset *token.FileSet, file string, n ast.Node)) {
	t.Helper()
	root := filepath.Join("..", "..", "internal")
	must(t, filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool { fn(fset, filepath.ToSlash(rel), n); return true })
		return nil
	}))
}

// hooks tells whether a test is there, in a file that sets the points' hook.
func hooks(test string) error {
	m := aTest.FindStringSubmatch(test)
	if m == nil {
		return fmt.Errorf("%q names no test", test)
	}
	files, err := filepath.Glob(filepath.Join("..", "..", "internal", m[1], "*_test.go"))
	if err != nil {
		return err
	}
	for _, name := range files {
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if strings.Contains(string(src), "func "+m[2]+"(") {
			if !subject.Match(src) {
				return fmt.Errorf("%s: the file of %s sets no hook", name, m[2])
			}
			return nil
		}
	}
	return fmt.Errorf("there is no %s", test)
}
