package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	tallyDir    = "test/sim/testdata"
	tallyHeader = "date\tcommit\tfrom\tto\tseeds\tsteps\tevents\tvirtual_s\tviolations\tguest\n"
	// oldFields is how many fields lines have that do not name the guest.
	oldFields = 9
)

// A tally is the file that keeps what was simulated. Lines are added, never changed: the
// columns' names stand again where there are more from then on.
type tally struct {
	path   string // empty: nothing is kept
	commit string // of the sources that run
	guest  string // names what was made of them: commits with one guest ran one program
	next   uint64 // after the highest seed in it
	header bool   // the file has the names of all columns
}

// openTally reads the tally that o names, if any, for what it must know.
func openTally(ctx context.Context, o *options, program string) (*tally, error) {
	t := &tally{path: o.tally, guest: program, next: 1}
	if t.path == "" {
		return t, nil
	}
	var err error
	if t.commit, err = commit(ctx); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(t.path)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return nil, err
	}
	t.header = strings.Contains(string(text), tallyHeader)
	t.next, err = nextSeed(t.path, string(text))
	return t, err
}

// nextSeed returns the seed after the highest that text, a tally, has done.
func nextSeed(path, text string) (uint64, error) {
	next := uint64(1)
	n := 0
	for line := range strings.Lines(text) {
		n++
		if strings.HasPrefix(line, "date\t") {
			continue
		}
		fields := strings.Split(line, "\t")
		if all := strings.Count(tallyHeader, "\t") + 1; len(fields) != all && len(fields) != oldFields {
			return 0, fmt.Errorf("%s:%d: %d fields", path, n, len(fields))
		}
		to, err := strconv.ParseUint(fields[3], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		next = max(next, to+1)
	}
	return next, nil
}

// add adds a line: the seeds from to to, all of them, came to s.
func (t *tally) add(from, to uint64, steps int, s sums) error {
	if t.path == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(t.path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(t.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	line := fmt.Sprintf("%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s\n", time.Now().UTC().Format(time.RFC3339), t.commit,
		from, to, s.seeds, steps, s.events, int64(s.virtual.Seconds()), s.violations, t.guest)
	if !t.header {
		line = tallyHeader + line
	}
	if _, err = f.WriteString(line); err == nil {
		t.header = true
	}
	return first(err, f.Close())
}

// programName names a guest's module by its content.
func programName(wasm []byte) string {
	sum := sha256.Sum256(wasm)
	return hex.EncodeToString(sum[:6])
}

// commit names the sources at hand. The tally is not one of them.
func commit(ctx context.Context) (string, error) {
	head, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "", fmt.Errorf("git rev-parse: %w", err)
	}
	changed, err := exec.CommandContext(ctx, "git", "status", "--porcelain", "--", ":/", ":(top,exclude)"+tallyDir).Output()
	if err != nil {
		return "", fmt.Errorf("git status: %w", err)
	}
	name := strings.TrimSpace(string(head))
	if len(changed) > 0 {
		name += "+dirty"
	}
	return name, nil
}
