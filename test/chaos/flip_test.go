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
	e.c.Eventually(20*time.Second, "every replica has a checkpoint", func() error {
		for id := 1; id <= 3; id++ {
			if r, err := c.Replica(id, "load-1"); err != nil || r.SnapshotIndex == 0 {
				return fmt.Errorf("node %d: snapshot index %d, %w", id, r.SnapshotIndex, err)
			}
		}
		return nil
	})
	deck := rng.Perm(len(damages))
	for i := range rounds(t, 1) {
		kind := damages[deck[i%len(deck)]]
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
		t.Logf("%s round %d: %s: whole after %v", time.Now().UTC().Format("15:04:05.000"), i, what, took)
		e.lookAt(id)
	}
	e.l.finish()
}

// lookAt has node id read all it stores, so that it finds what is damaged.
func (e *env) lookAt(id int) {
	e.t.Helper()
	for p := range e.l.o.partitions {
		var d struct{}
		if err := e.c.Get(id, fmt.Sprintf("/v1/digest?topic=%s&partition=%d", e.l.o.topic, p), &d); err != nil {
			e.t.Logf("node %d: %v", id, err)
		}
	}
	e.healed("whole after a look at everything")
}
