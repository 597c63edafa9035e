package archive

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"chronik/internal/bucket"
	"chronik/internal/ident"
)

var (
	// ErrNoSnapshot says that a group has no snapshot there that can be read.
	ErrNoSnapshot = errors.New("no snapshot")
	// ErrIncomplete says that a snapshot names an object that is not there.
	ErrIncomplete = errors.New("snapshot is incomplete")
	// ErrDeposed says that a leader of a higher term has claimed the group.
	ErrDeposed = errors.New("a leader of a higher term has claimed the group")
	// ErrExists says that a download's directory is there already.
	ErrExists = errors.New("directory exists")
)

const (
	groupsDir    = "groups/"
	manifestsDir = "manifests/"
	objectsDir   = "objects/"
	termsDir     = "terms/"
	refHashBytes = 8
)

// Archive is an object store with snapshots of any number of clusters.
type Archive struct{ b bucket.Bucket }

// New returns the archive in b.
func New(b bucket.Bucket) *Archive { return &Archive{b: b} }

// String is the object store's URL.
func (a *Archive) String() string { return a.b.String() }

// Clusters lists the clusters that have snapshots there.
func (a *Archive) Clusters(ctx context.Context) ([]string, error) {
	names, err := a.b.Dirs(ctx, "")
	return slices.DeleteFunc(names, func(n string) bool { return !validCluster(n) }), err
}

// Cluster returns one cluster's snapshots. It need not have any.
func (a *Archive) Cluster(id string) (*Cluster, error) {
	if !validCluster(id) {
		return nil, fmt.Errorf("cluster id %.60q: want letters, digits, - and _", id)
	}
	return &Cluster{b: a.b, id: id}, nil
}

// validCluster accepts what NewClusterID makes (22 characters of base64) and the like.
func validCluster(id string) bool {
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return len(id) > 0 && len(id) <= 64
}

// Cluster is one cluster's part of an archive. Safe for concurrent use.
type Cluster struct {
	b  bucket.Bucket
	id string
}

// ID is the cluster's id.
func (c *Cluster) ID() string { return c.id }

func (c *Cluster) groupDir(g ident.GroupID) string {
	return c.id + "/" + groupsDir + strconv.FormatUint(uint64(g), 10) + "/"
}

func (c *Cluster) objectName(g ident.GroupID, s Sum) string {
	return c.groupDir(g) + objectsDir + s.String()
}

// Groups lists the groups that have anything there, by id.
func (c *Cluster) Groups(ctx context.Context) ([]ident.GroupID, error) {
	names, err := c.b.Dirs(ctx, c.id+"/"+groupsDir)
	if err != nil {
		return nil, err
	}
	var gs []ident.GroupID
	for _, n := range names {
		if id, err := strconv.ParseUint(n, 10, 64); err == nil && strconv.FormatUint(id, 10) == n {
			gs = append(gs, ident.GroupID(id))
		}
	}
	slices.Sort(gs)
	return gs, nil
}

// Ref names a snapshot that is listed; its manifest is not read yet.
type Ref struct {
	Group      ident.GroupID
	Index      ident.Index
	LeaderTerm ident.Term
	// Object is the manifest's name in the object store.
	Object string
	// ManifestBytes is the manifest's size, Modified when it was written by the store's clock.
	ManifestBytes int64
	Modified      time.Time
}

// newer orders refs: higher index first, then higher term, then the later one.
func newer(a, b Ref) int {
	return cmp.Or(cmp.Compare(b.Index, a.Index), cmp.Compare(b.LeaderTerm, a.LeaderTerm), b.Modified.Compare(a.Modified), cmp.Compare(a.Object, b.Object))
}

// Snapshots lists a group's, newest first. Names that are no manifest's are left out.
func (c *Cluster) Snapshots(ctx context.Context, g ident.GroupID) ([]Ref, error) {
	var refs []Ref
	err := c.b.List(ctx, c.groupDir(g)+manifestsDir, func(o bucket.Object) error {
		if r, ok := parseRef(o); ok {
			r.Group = g
			refs = append(refs, r)
		}
		return nil
	})
	slices.SortFunc(refs, newer)
	return refs, err
}

// All lists the snapshots of every group. What was listed before an error is returned with it.
func (c *Cluster) All(ctx context.Context) ([]Ref, error) {
	gs, err := c.Groups(ctx)
	if err != nil {
		return nil, err
	}
	var all []Ref
	for _, g := range gs {
		refs, err := c.Snapshots(ctx, g)
		if err != nil {
			return all, err
		}
		all = append(all, refs...)
	}
	return all, nil
}

func refName(index ident.Index, term ident.Term, sum []byte) string {
	return fmt.Sprintf("%016x-%016x-%x", uint64(index), uint64(term), sum[:refHashBytes])
}

func parseRef(o bucket.Object) (Ref, bool) {
	parts := strings.Split(o.Name[strings.LastIndexByte(o.Name, '/')+1:], "-")
	if len(parts) != 3 || len(parts[0]) != 16 || len(parts[1]) != 16 || len(parts[2]) != 2*refHashBytes {
		return Ref{}, false
	}
	index, err1 := strconv.ParseUint(parts[0], 16, 64)
	term, err2 := strconv.ParseUint(parts[1], 16, 64)
	_, err3 := hex.DecodeString(parts[2])
	ok := err1 == nil && err2 == nil && err3 == nil
	return Ref{Index: ident.Index(index), LeaderTerm: ident.Term(term), Object: o.Name, ManifestBytes: o.Size, Modified: o.Modified}, ok
}

// Manifest reads a snapshot's manifest. It judges the bytes by their hash and by
// the place they were found in, and reads them again before it calls them damaged.
func (c *Cluster) Manifest(ctx context.Context, r Ref) (*Manifest, error) {
	m, err := c.readManifest(ctx, r)
	if errors.Is(err, ErrCorrupt) {
		m, err = c.readManifest(ctx, r)
	}
	return m, err
}

func (c *Cluster) readManifest(ctx context.Context, r Ref) (*Manifest, error) {
	if r.ManifestBytes < 0 || r.ManifestBytes > MaxManifestBytes {
		return nil, c.corrupt(r.Object, "%d bytes, at most %d", r.ManifestBytes, MaxManifestBytes)
	}
	b := make([]byte, r.ManifestBytes)
	n, err := c.b.ReadAt(ctx, r.Object, b, 0)
	if errors.Is(err, bucket.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", ErrIncomplete, err)
	}
	if err != nil {
		return nil, err
	}
	m, err := DecodeManifest(b[:n])
	if err != nil {
		return nil, fmt.Errorf("object store %s: %s: %w", c.b, r.Object, err)
	}
	if m.Cluster != c.id || m.Group != r.Group || m.Index != r.Index || m.LeaderTerm != r.LeaderTerm {
		return nil, c.corrupt(r.Object, "it is of cluster %q, group %d, index %d, term %d", m.Cluster, m.Group, m.Index, m.LeaderTerm)
	}
	return m, nil
}

func (c *Cluster) corrupt(object, format string, args ...any) error {
	return fmt.Errorf("object store %s: %s: %w: %s", c.b, object, ErrCorrupt, fmt.Sprintf(format, args...))
}

// Newest returns the newest snapshot of a group whose manifest can be read.
// skipped, if set, hears of those before it. A store that does not answer is an
// error, not a reason to go back. ErrNoSnapshot: there is none.
func (c *Cluster) Newest(ctx context.Context, g ident.GroupID, skipped func(Ref, error)) (m *Manifest, err error) {
	err = c.TryNewest(ctx, g, func(r Ref) (err error) {
		m, err = c.Manifest(ctx, r)
		return err
	}, skipped)
	return m, err
}

// TryNewest calls use for a group's snapshots, newest first, until one is not
// damaged. skipped, if set, hears of those that are. ErrNoSnapshot: all are. A
// running cluster may have replaced those that were listed: then it looks again.
func (c *Cluster) TryNewest(ctx context.Context, g ident.GroupID, use func(Ref) error, skipped func(Ref, error)) error {
	tried := map[string]bool{}
	for again := true; again; {
		refs, err := c.Snapshots(ctx, g)
		if err != nil {
			return err
		}
		again = false
		for _, r := range refs {
			if tried[r.Object] {
				continue
			}
			tried[r.Object] = true
			err := use(r)
			if err == nil || !isDamage(err) {
				return err
			}
			again = again || errors.Is(err, ErrIncomplete)
			if skipped != nil {
				skipped(r, err)
			}
		}
	}
	return fmt.Errorf("object store %s: cluster %s, group %d: %w that can be used, of %d", c.b, c.id, g, ErrNoSnapshot, len(tried))
}

// isDamage tells a snapshot that is not what it should be from a store that does not answer.
func isDamage(err error) bool {
	return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrIncomplete)
}

// objects lists a group's objects with their sizes.
func (c *Cluster) objects(ctx context.Context, g ident.GroupID) (map[Sum]int64, error) {
	dir := c.groupDir(g) + objectsDir
	sums := map[Sum]int64{}
	err := c.b.List(ctx, dir, func(o bucket.Object) error {
		name := strings.TrimPrefix(o.Name, dir)
		var s Sum
		if b, err := hex.DecodeString(name); err == nil && len(b) == len(s) && name == strings.ToLower(name) {
			copy(s[:], b)
			sums[s] = o.Size
		}
		return nil
	})
	return sums, err
}

// missing returns the first object of m that is not in the listing.
func missing(m *Manifest, there map[Sum]int64) (Object, bool) {
	for _, o := range m.Objects {
		if size, ok := there[o.Sum]; !ok || size != int64(o.Size) {
			return o, true
		}
	}
	return Object{}, false
}

// Check looks whether every object of a snapshot is there with its size, without reading any.
func (c *Cluster) Check(ctx context.Context, m *Manifest) error {
	there, err := c.objects(ctx, m.Group)
	if err != nil {
		return err
	}
	if o, gone := missing(m, there); gone {
		return fmt.Errorf("object store %s: %s of %d bytes: %w", c.b, c.objectName(m.Group, o.Sum), o.Size, ErrIncomplete)
	}
	return nil
}
