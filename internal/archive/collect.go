package archive

import (
	"context"
	"errors"
	"fmt"
	"time"

	"chronik/internal/ident"
	"chronik/internal/invariant"
)

// Collected says what a collection did.
type Collected struct {
	// Snapshots and Objects were removed, BytesFreed of the latter.
	Snapshots, Objects int
	BytesFreed         int64
	// Waiting objects are unreferenced and not old enough.
	Waiting int
	// Kept snapshots remain; Unreadable of them keep every object from being removed.
	Kept, Unreadable int
	// NewestIncomplete: the newest snapshot lacks an object, cannot be read, or is
	// not there: it wants uploading again.
	NewestIncomplete bool
	// Unfinished: the look at the manifests grew old while things were removed.
	Unfinished bool
}

// Collect keeps the newest snapshots of the group, keep indexes that are whole,
// and removes the others, and objects that no snapshot has named for the grace
// time. It stops when ctx ends, when the claim is no longer the highest, or when
// its look at the manifests grows old: what is left is removed the next time.
func (cl *Claim) Collect(ctx context.Context, keep int) (Collected, error) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	g := collection{cl: cl, keep: max(1, keep)}
	if err := g.run(ctx); err != nil {
		return g.out, fmt.Errorf("collect garbage of group %d: %w", cl.group, err)
	}
	return g.out, nil
}

type collection struct {
	cl    *Claim
	keep  int
	until time.Time // nothing is removed later than this
	out   Collected

	there map[Sum]int64
	named map[Sum]bool
	drop  []Ref

	removed int // objects of any kind
}

func (g *collection) run(ctx context.Context) error {
	// The objects are listed before the manifests: an object that an upload adds
	// in between is not in the listing, one it names is named.
	var err error
	if g.there, err = g.cl.c.objects(ctx, g.cl.group); err != nil {
		return err
	}
	// What is seen from here on decides, for as long as it is young.
	g.until = time.Now().Add(g.cl.opt.Window)
	ctx, cancel := context.WithDeadline(ctx, g.until)
	defer cancel()
	lower, err := g.cl.fence(ctx)
	if err != nil {
		return err
	}
	if err := g.choose(ctx); err != nil {
		return err
	}
	err = g.removeAll(ctx, lower)
	if err != nil && g.removed > 0 && errors.Is(err, context.DeadlineExceeded) && !time.Now().Before(g.until) {
		g.out.Unfinished = true // the store answers, there is much to remove
		return nil
	}
	return err
}

// removeAll removes what choose found, and lower, the claims below this one.
func (g *collection) removeAll(ctx context.Context, lower []string) error {
	for _, r := range g.drop {
		invariant.Point("archive.collect.manifest")
		if err := g.remove(ctx, r.Object); err != nil {
			return err
		}
		g.out.Snapshots++
	}
	if err := g.removeObjects(ctx); err != nil {
		return err
	}
	for _, name := range lower { // the highest claim says all they did
		if err := g.remove(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// choose reads the manifests, newest first, until enough snapshots are whole, and
// drops the rest.
func (g *collection) choose(ctx context.Context) error {
	refs, err := g.cl.c.Snapshots(ctx, g.cl.group)
	if err != nil {
		return err
	}
	g.named = map[Sum]bool{}
	g.out.NewestIncomplete = len(refs) == 0
	whole := 0
	var last ident.Index // of the whole snapshot before
	for i, r := range refs {
		if whole >= g.keep {
			g.drop = append(g.drop, r)
			continue
		}
		m, err := g.cl.c.Manifest(ctx, r)
		if err != nil {
			if !isDamage(err) {
				return err
			}
			g.out.Unreadable++
			g.out.Kept++
			g.out.NewestIncomplete = g.out.NewestIncomplete || i == 0
			continue
		}
		g.out.Kept++
		for _, o := range m.Objects {
			g.named[o.Sum] = true
		}
		_, gone := missing(m, g.there)
		switch {
		case gone:
			g.out.NewestIncomplete = g.out.NewestIncomplete || i == 0
		case whole > 0 && r.Index == last: // the same snapshot by another leader
		default:
			whole++
			last = r.Index
		}
	}
	return nil
}

// removeObjects removes what has been unreferenced for long enough. The clock of
// an object starts again whenever a snapshot names it or it is gone.
func (g *collection) removeObjects(ctx context.Context) error {
	now := time.Now()
	for sum := range g.cl.condemned {
		if _, ok := g.there[sum]; !ok || g.named[sum] {
			delete(g.cl.condemned, sum)
		}
	}
	for sum, size := range g.there {
		if g.named[sum] {
			continue
		}
		since, ok := g.cl.condemned[sum]
		if !ok {
			since = now
			g.cl.condemned[sum] = now
		}
		if g.out.Unreadable > 0 || now.Sub(since) < g.cl.opt.Grace {
			g.out.Waiting++
			continue
		}
		invariant.Point("archive.collect.object")
		if err := g.remove(ctx, g.cl.c.objectName(g.cl.group, sum)); err != nil {
			return err
		}
		delete(g.cl.condemned, sum)
		g.out.Objects++
		g.out.BytesFreed += size
	}
	return nil
}

// remove deletes one object while the look at the manifests is young.
func (g *collection) remove(ctx context.Context, name string) error {
	if time.Now().After(g.until) {
		return context.DeadlineExceeded
	}
	if err := g.cl.c.b.Delete(ctx, name); err != nil {
		return err
	}
	g.removed++
	return nil
}
