package archive

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"chronik/internal/bucket"
	"chronik/internal/ident"
)

// WriteOptions are a writer's. Zero fields take the default in brackets. All who
// write to one archive must have the same grace.
type WriteOptions struct {
	// Grace is how long an object must have been seen unreferenced before it is
	// removed; an upload may take half of it [1 h].
	Grace time.Duration
	// Window is how old a look at the manifests may be when an object is removed [10 s].
	Window time.Duration
	// ObjectBytes is how large an object may become [16 MiB].
	ObjectBytes int
}

func (o *WriteOptions) complete() {
	if o.Grace <= 0 {
		o.Grace = time.Hour
	}
	if o.Window <= 0 {
		o.Window = 10 * time.Second
	}
	o.Window = min(o.Window, o.Grace/4)
	if o.ObjectBytes <= 0 || o.ObjectBytes > bucket.MaxObjectBytes {
		o.ObjectBytes = 16 << 20
	}
}

// Claim is a leader's right to upload a group's snapshots and to collect its
// garbage: until a leader of a higher term has one.
type Claim struct {
	c     *Cluster
	group ident.GroupID
	term  ident.Term
	opt   WriteOptions
	// safe is when whatever an earlier leader had decided to remove is removed.
	safe time.Time

	mu sync.Mutex // one upload or collection at a time
	// condemned says since when an object has been seen unreferenced.
	condemned map[Sum]time.Time
}

// Claim says that node leads the group in this term. ErrDeposed: another leads it in a higher one.
func (c *Cluster) Claim(ctx context.Context, g ident.GroupID, term ident.Term, node ident.NodeID, opt WriteOptions) (*Claim, error) {
	opt.complete()
	cl := &Claim{c: c, group: g, term: term, opt: opt, condemned: map[Sum]time.Time{}}
	err := c.b.PutIfAbsent(ctx, cl.name(term), []byte("node "+node.String()+"\n"))
	if err != nil && !errors.Is(err, bucket.ErrExists) { // it exists: a term has one leader, this is its earlier claim
		return nil, err
	}
	lower, err := cl.fence(ctx)
	if err != nil {
		return nil, err
	}
	cl.safe = time.Now()
	if len(lower) > 0 {
		cl.safe = cl.safe.Add(opt.Window)
	}
	return cl, nil
}

// Term is the claimed term.
func (cl *Claim) Term() ident.Term { return cl.term }

func (cl *Claim) name(term ident.Term) string {
	return fmt.Sprintf("%s%s%016x", cl.c.groupDir(cl.group), termsDir, uint64(term))
}

// fence returns ErrDeposed once there is a claim of a higher term, else the lower ones.
func (cl *Claim) fence(ctx context.Context) (lower []string, err error) {
	err = cl.c.claims(ctx, cl.group, func(o bucket.Object, term ident.Term) error {
		switch {
		case term > cl.term:
			return fmt.Errorf("object store %s: %s: %w (this one's is %d)", cl.c.b, o.Name, ErrDeposed, cl.term)
		case term < cl.term:
			lower = append(lower, o.Name)
		}
		return nil
	})
	return lower, err
}

// claims calls fn for every claim of the group. It ends with fn's error.
func (c *Cluster) claims(ctx context.Context, g ident.GroupID, fn func(o bucket.Object, term ident.Term) error) error {
	return c.b.List(ctx, c.groupDir(g)+termsDir, func(o bucket.Object) error {
		term, err := strconv.ParseUint(o.Name[strings.LastIndexByte(o.Name, '/')+1:], 16, 64)
		if err != nil {
			return nil // not a claim
		}
		return fn(o, ident.Term(term))
	})
}

// HighestTerm is the highest in which a leader of the group has claimed it or uploaded
// a snapshot, readable or not; 0 if none has.
func (c *Cluster) HighestTerm(ctx context.Context, g ident.GroupID) (highest ident.Term, err error) {
	refs, err := c.Snapshots(ctx, g)
	if err != nil {
		return 0, err
	}
	for _, r := range refs {
		highest = max(highest, r.LeaderTerm)
	}
	err = c.claims(ctx, g, func(_ bucket.Object, term ident.Term) error {
		highest = max(highest, term)
		return nil
	})
	return highest, err
}
