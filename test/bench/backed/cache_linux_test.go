package backed

import (
	"os"
	"path/filepath"
	"testing"
)

func TestDropCache(t *testing.T) {
	dir := "drop-test.tmp" // not on a memory file system, which keeps its pages
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	below := filepath.Join(dir, "a", "b")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{dir, below} {
		if err := os.WriteFile(filepath.Join(at, "file"), make([]byte, 8<<20), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stayed, err := DropCache(dir)
	if err != nil {
		t.Fatal(err)
	}
	if stayed > 1<<20 {
		t.Errorf("%d bytes stay in the page cache", stayed)
	}
}
