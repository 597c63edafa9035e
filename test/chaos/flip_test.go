package chaos

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chronik/test/harness"
)

// damages are the kinds of files whose bits are flipped, by how their path ends or what it contains.
var damages = []string{".seg", "checkpoint", "raftlog/", "store.id", ".idx"}

// flip changes one bit of a file of this kind in dir and says where.
func flip(t *testing.T, rng *rand.Rand, dir, kind string) string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && (strings.HasSuffix(path, kind) || strings.HasSuffix(kind, "/") && strings.Contains(path, "/"+kind)) {
			if st, err := d.Info(); err == nil && st.Size() > 0 {
				files = append(files, path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		return ""
	}
	file := files[rng.IntN(len(files))]
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	// A log file is preallocated: damage what was written.
	end := len(b)
	for end > 1 && b[end-1] == 0 {
		end--
	}
	at := rng.IntN(end)
	b[at] ^= 1 << rng.IntN(8)
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
	rel, _ := filepath.Rel(dir, file)
	return fmt.Sprintf("%s byte %d of %d", rel, at, end)
}

// TestFlippedBits damages a file of a stopped or killed node. The node quarantines
// and replaces what is damaged, or refuses to start, and never serves it.
func TestFlippedBits(t *testing.T) {
	rng := seed(t)
	c := harness.Start(t, harness.Options{Threshold: 200})
	e := &env{t: t, c: c, rng: rng, l: startLoad(t, c, loadOptions{partitions: 2, size: 1000, rate: 2 * time.Millisecond})}
	e.healed("whole at the beginning")
	for i := range rounds(t, len(damages)) {
		kind := damages[i%len(damages)]
		id := e.anyNode()
		how := "killed"
		if rng.IntN(2) == 0 {
			how = "stopped"
			c.Stop(id)
		} else {
			e.kill(id)
		}
		where := flip(t, rng, c.Node(id).Dir, kind)
		if where == "" {
			c.Restart(id)
			continue
		}
		c.Restart(id)
		what := fmt.Sprintf("node %d %s, %s%s", id, how, where, e.wipeIfRefused(id))
		took := e.healed(what)
		t.Logf("round %d: %s: whole after %v", i, what, took)
	}
	e.l.finish()
}
