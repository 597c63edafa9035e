package internal

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// rings says how far out each package lies: imports go strictly inward
// (docs/architecture.md, "Packages"). Ring -1 may be imported by all.
var rings = map[string]int{
	"alloctest": -1, "bytepool": -1, "format": -1, "ident": -1, "invariant": -1, "jsonbound": -1, "vfs": -1,
	"record": 0, "wire": 0, "transport": 0, "config": 0, "bucket": 0,
	"raftlog": 1, "segment": 1, "snapshot": 1, "identity": 1,
	"raftgroup": 2, "archive": 2,
	"partition": 3, "metadata": 3,
	"group": 4,
	"kafka": 5, "admin": 5,
	"broker": 6, "recovery": 6,
}

// soleImporters names the only package that may import a module.
var soleImporters = map[string]string{
	"go.etcd.io/raft/":       "raftgroup",
	"google.golang.org/grpc": "transport",
	"github.com/minio/":      "bucket",
}

// TestRings parses the imports in-process: a test that shells out to the go
// command would be answered from the test cache and miss a new violation.
func TestRings(t *testing.T) {
	seen := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || filepath.Dir(path) == "." {
			return err
		}
		pkg, _, _ := strings.Cut(filepath.ToSlash(path), "/")
		ring, ok := rings[pkg]
		if !ok {
			t.Errorf("%s: package %s has no ring: give it one here and in docs/architecture.md", path, pkg)
			return nil
		}
		seen++
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			checkImport(t, path, pkg, ring, imp)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen == 0 {
		t.Fatal("no Go file seen")
	}
}

func checkImport(t *testing.T, path, pkg string, ring int, imp string) {
	t.Helper()
	for module, sole := range soleImporters {
		if strings.HasPrefix(imp, module) && pkg != sole {
			t.Errorf("%s imports %s, which is %s's alone", path, imp, sole)
		}
	}
	inner, ok := strings.CutPrefix(imp, "chronik/internal/")
	if !ok {
		return
	}
	inner, _, _ = strings.Cut(inner, "/")
	to, ok := rings[inner]
	switch {
	case !ok:
		t.Errorf("%s imports %s, which has no ring", path, imp)
	case inner == pkg || to == -1 && ring != -1:
	case to >= ring && strings.HasSuffix(path, "_test.go") && to <= ring:
		// A test may use a sibling of its own ring, never an outer one.
	case to >= ring:
		t.Errorf("%s (ring %d) imports %s (ring %d): imports go inward only", path, ring, inner, to)
	}
}
