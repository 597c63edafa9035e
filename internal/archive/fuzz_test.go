package archive

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"chronik/internal/alloctest"
	"chronik/internal/bucket"
	"chronik/internal/ident"
)

// FuzzNames lists an object store in which there is anything under any name: only
// what this package writes counts, a manifest's name gives its ref back, and only
// a claim of a higher term deposes.
func FuzzNames(f *testing.F) {
	f.Add("groups/7/manifests/"+refName(5, 3, make([]byte, refHashBytes)), "c")
	f.Add("groups/7/terms/0000000000000009", "c")
	f.Add("groups/7/terms/+9", "c")
	f.Add("groups/007/manifests/x-y-z", "c")
	f.Fuzz(func(t *testing.T, name, id string) {
		defer alloctest.Bound(t, len(name)+len(id))()
		if r, ok := parseRef(bucket.Object{Name: name}); ok {
			at := strings.LastIndexByte(name, '/') + 1
			if head := fmt.Sprintf("%016x-%016x-", uint64(r.Index), uint64(r.LeaderTerm)); !strings.EqualFold(name[at:at+len(head)], head) {
				t.Fatalf("%q: %+v", name, r)
			}
		}
		if !validCluster(id) {
			return
		}
		b := bucket.NewMem()
		if err := b.Put(t.Context(), id+"/"+name, []byte("x")); err != nil {
			return // no bucket has such names
		}
		c := &Cluster{b: b, id: id}
		if _, err := c.All(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkClaims(t, c, name)
	})
}

func checkClaims(t *testing.T, c *Cluster, name string) {
	t.Helper()
	cl := &Claim{c: c, group: 7, term: 1 << 40}
	lower, err := cl.fence(context.Background())
	if err != nil && !errors.Is(err, ErrDeposed) {
		t.Fatal(err)
	}
	dir := c.groupDir(ident.GroupID(7)) + termsDir
	if (err != nil || len(lower) > 0) && !strings.HasPrefix(c.id+"/"+name, dir) {
		t.Fatalf("%q counts as a claim: %v %v", name, lower, err)
	}
}
