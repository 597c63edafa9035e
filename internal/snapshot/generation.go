package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

const (
	stagingSuffix = ".staging"
	partSuffix    = ".part"
)

// GenDir is the directory of generation n in a replica's directory.
func GenDir(base string, n uint64) string {
	return path.Join(base, "g"+strconv.FormatUint(n, 10))
}

// StagingDir is where generation n is put together.
func StagingDir(base string, n uint64) string { return GenDir(base, n) + stagingSuffix }

// Generation is a generation directory that was found.
type Generation struct {
	N       uint64
	Staging bool // not complete
	Dir     string
}

// Generations lists the generation directories in base, lowest first. Other
// names are not generations and are left out. A base that is not there has none.
func Generations(fs vfs.FS, base string) ([]Generation, error) {
	names, err := vfs.List(fs, base)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list generations of %s: %w", base, err)
	}
	var gs []Generation
	for _, name := range names {
		digits, staging := strings.CutSuffix(name, stagingSuffix)
		digits, ok := strings.CutPrefix(digits, "g")
		n, err := strconv.ParseUint(digits, 10, 64)
		if !ok || err != nil || strconv.FormatUint(n, 10) != digits {
			continue
		}
		gs = append(gs, Generation{N: n, Staging: staging, Dir: path.Join(base, name)})
	}
	sort.Slice(gs, func(i, j int) bool {
		if gs[i].N != gs[j].N {
			return gs[i].N < gs[j].N
		}
		return !gs[i].Staging && gs[j].Staging
	})
	return gs, nil
}

// RemoveOthers removes the generations below keep, the one the raftlog names,
// and what was staged for them. What lies above keep was fetched and never
// became live: it is put back into its staging form, from which a Fetch goes
// on (Discard removes it). Idempotent; a crash in it is repaired by calling it
// again.
//
// Nothing is removed and ErrNoGeneration returned unless keep is there with a
// readable checkpoint; only generation 1 may lack one, since a new replica has none.
func RemoveOthers(fs vfs.FS, base string, keep uint64) error {
	gs, err := Generations(fs, base)
	if err != nil || len(gs) == 0 && keep == 1 {
		return err
	}
	if err := checkKept(fs, base, gs, keep); err != nil {
		return err
	}
	return remove(fs, base, keep, slices.DeleteFunc(gs, func(g Generation) bool {
		return g.N == keep && !g.Staging || g.N > keep && g.Staging
	}))
}

// RemoveOlder removes what lies below keep. Unlike RemoveOthers it is for a replica that runs:
// what lies above may have become complete, or live, since keep was.
func RemoveOlder(fs vfs.FS, base string, keep uint64) error {
	gs, err := Generations(fs, base)
	if err != nil {
		return err
	}
	older := slices.DeleteFunc(slices.Clone(gs), func(g Generation) bool {
		return g.N > keep || g.N == keep && !g.Staging
	})
	if len(older) == 0 {
		return nil // keep itself may be older than another by now, and gone
	}
	if err := checkKept(fs, base, gs, keep); err != nil {
		return err
	}
	return remove(fs, base, keep, older)
}

// remove removes generations, or turns those above keep back into staging.
func remove(fs vfs.FS, base string, keep uint64, gs []Generation) error {
	for _, g := range gs {
		var err error
		if g.N > keep {
			err = unstage(fs, base, g.N)
		} else {
			invariant.Point("snapshot.generation.remove")
			err = errors.Join(fs.RemoveAll(g.Dir), removeIfThere(fs, g.Dir+unsyncedSuffix))
		}
		if err != nil {
			return fmt.Errorf("remove generation %s: %w", g.Dir, err)
		}
	}
	if len(gs) == 0 {
		return nil
	}
	invariant.Point("snapshot.generation.removed")
	if err := vfs.SyncDir(fs, base); err != nil {
		return err
	}
	invariant.Point("snapshot.generation.gone")
	return nil
}

func checkKept(fs vfs.FS, base string, gs []Generation, keep uint64) error {
	found := false
	for _, g := range gs {
		found = found || g.N == keep && !g.Staging
	}
	if !found {
		return fmt.Errorf("%s: %w; %d others were left alone", GenDir(base, keep), ErrNoGeneration, len(gs))
	}
	if _, err := ReadHeader(fs, GenDir(base, keep)); err != nil && (keep != 1 || !errors.Is(err, ErrNoCheckpoint)) {
		return fmt.Errorf("%w: the others were left alone: %w", ErrNoGeneration, err)
	}
	return nil
}

// unstage turns a complete generation that nothing refers to back into staging.
func unstage(fs vfs.FS, base string, n uint64) error {
	if err := fs.RemoveAll(StagingDir(base, n)); err != nil {
		return err
	}
	invariant.Point("snapshot.generation.unstage")
	return fs.Rename(GenDir(base, n), StagingDir(base, n))
}

// DiscardStaging removes what was fetched and never became live: every staging
// directory and every generation above live. The live one is not touched.
func DiscardStaging(fs vfs.FS, base string, live uint64) error {
	gs, err := Generations(fs, base)
	if err != nil {
		return err
	}
	changed := false
	for _, g := range gs {
		if !g.Staging && g.N <= live {
			continue
		}
		invariant.Point("snapshot.staging.discard")
		if err := fs.RemoveAll(g.Dir); err != nil {
			return fmt.Errorf("discard %s: %w", g.Dir, err)
		}
		changed = true
	}
	if !changed {
		return nil
	}
	if err := vfs.SyncDir(fs, base); err != nil {
		return err
	}
	invariant.Point("snapshot.staging.discarded")
	return nil
}

// Donors lists complete generation directories that other replicas of the group
// left on this node: <replicas>/<groupKey>.<replica id>/g<n>, newest first.
// Their bytes are used where they match a manifest by hash, and nothing else
// of them is.
func Donors(fs vfs.FS, replicas, groupKey string, own ident.ReplicaID) ([]string, error) {
	names, err := vfs.List(fs, replicas)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list donors in %s: %w", replicas, err)
	}
	var ids []uint64
	for _, name := range names {
		digits, ok := strings.CutPrefix(name, groupKey+".")
		id, err := strconv.ParseUint(digits, 10, 64)
		if ok && err == nil && ident.ReplicaID(id) != own {
			ids = append(ids, id)
		}
	}
	sort.Slice(ids, func(i, j int) bool { return ids[i] > ids[j] })
	var dirs []string
	for _, id := range ids {
		gs, err := Generations(fs, path.Join(replicas, groupKey+"."+strconv.FormatUint(id, 10)))
		if err != nil {
			return nil, err
		}
		for i := len(gs) - 1; i >= 0; i-- {
			if !gs[i].Staging {
				dirs = append(dirs, gs[i].Dir)
			}
		}
	}
	return dirs, nil
}
