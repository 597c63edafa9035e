package crash

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strings"
	"testing"
)

// syncs are what makes bytes or names durable.
var syncs = []string{"Sync", "SyncData", "SyncDir", "MkdirAllSync", "WriteFileSync"}

// notWalked are functions, files and packages with syncs that no walk of this package comes by,
// and the tests that cut the power around them, or why none is lost without.
var notWalked = map[string]string{
	"archive/download.go":                   "archive: TestDownloadDies",
	"broker/session.go renewStore":          "the store has a new id: nothing of the old log is asked for again",
	"identity/recover.go":                   "recovery: TestRecoverCrash",
	"raftgroup/life.go quarantineForGood":   "damage that is not marked is found again",
	"raftgroup/salvage.go":                  "recovery: TestRecoverCrash",
	"raftgroup/stall.go":                    "a measurement of 'chronik bench'",
	"recovery":                              "recovery: TestRecoverCrash",
	"segment/log.go Open":                   "a replica's directories are there before: raftgroup makes them",
	"snapshot/checkpoint_write.go flush":    "spares the log's syncs a long one; the file is synced at its end",
	"snapshot/fetch.go run":                 "as segment/log.go",
	"snapshot/generation.go DiscardStaging": "snapshot: TestDiscardStagingCrash",
	"snapshot/stage.go write":               "snapshot: TestFetchCrashInLargeFile",
}

// redundant are functions with syncs that the walk along a node's life does not miss, and why.
var redundant = map[string]string{
	"raftgroup/host.go complete": "the store becomes a member after it, which syncs the same directory",
	"raftgroup/host.go remove":   "the log names the replica no more: a directory that is back is swept",
	"raftlog/recover.go create":  "as raftgroup/host.go complete",
	"raftlog/recover.go recover": "a clone's bytes are durable; raftlog: TestWhatRecoveryReadIsSynced",
	"raftlog/writer.go seal":     "the entries are synced; without its footer the file is scanned",
}

// TestEverySyncIsWalked: a walk comes by every sync in the product's sources, or it
// stands in notWalked: whoever adds one learns here that its absence would not be noticed.
func TestEverySyncIsWalked(t *testing.T) {
	passed := map[string]bool{}
	for name := range stories {
		for _, line := range walked(t, name).places.all() {
			passed[line] = true
		}
	}
	sites := syncSites(t)
	used := map[string]bool{}
	missed := 0
	for _, s := range sites {
		if passed[s.line] {
			continue
		}
		missed++
		file, _, _ := strings.Cut(s.fn, " ")
		why := ""
		for _, key := range []string{s.fn, file, path.Dir(file)} {
			if notWalked[key] != "" {
				used[key], why = true, notWalked[key]
			}
		}
		if why == "" {
			t.Errorf("internal/%s: no walk comes by this sync, in %s", s.line, s.fn)
		}
	}
	for key := range notWalked {
		if !used[key] {
			t.Errorf("%s stands in notWalked and need not", key)
		}
	}
	t.Logf("%d syncs, %d not walked by", len(sites), missed)
}

// site is a line of the sources at which something is synced: "package/file.go:line", and "package/file.go function".
type site struct{ line, fn string }

// syncSites reads the sources.
func syncSites(t *testing.T) (sites []site) {
	t.Helper()
	inspectSources(t, func(fset *token.FileSet, file string, node ast.Node) {
		fn, ok := node.(*ast.FuncDecl)
		if !ok || strings.HasPrefix(file, "vfs/") || strings.HasPrefix(file, "kafka/") {
			return // in vfs lie the means; SyncGroup is another kind
		}
		ast.Inspect(fn, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok && slices.Contains(syncs, sel.Sel.Name) {
				s := site{fmt.Sprintf("%s:%d", file, fset.Position(sel.Sel.Pos()).Line), file + " " + fn.Name.Name}
				if !slices.Contains(sites, s) {
					sites = append(sites, s)
				}
			}
			return true
		})
	})
	return sites
}

// TestEverySyncIsNeeded leaves out the syncs of one line of the sources at a time, in the life of a
// node: the walk must notice it.
func TestEverySyncIsNeeded(t *testing.T) {
	if !long {
		t.Skip("long: 'make crash' sets CHRONIK_TEST_LONG")
	}
	passed := walked(t, "life").places.all()
	for _, s := range syncSites(t) {
		line := s.line
		if !slices.Contains(passed, line) {
			continue
		}
		t.Run(s.fn, func(t *testing.T) {
			w := lifeStory(t, func(d *disk) {
				d.omit = func(lines []string) bool { return slices.Contains(lines, line) }
			})
			switch why := redundant[s.fn]; {
			case len(w.errs) > 0 && why != "":
				t.Errorf("%s stands in redundant and is missed: %v", s.fn, w.errs[0])
			case len(w.errs) > 0:
				t.Logf("noticed: %v", w.errs[0])
			case why == "":
				t.Errorf("internal/%s: this sync was left out and nothing was lost in %d cuts", line, w.cuts)
			}
		})
	}
}
