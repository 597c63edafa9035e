package archive

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"chronik/internal/bucket"
)

// TestWrongOnce: bytes that come wrong over the wire once say nothing about what is stored.
func TestWrongOnce(t *testing.T) {
	r := newRig(t)
	r.append("0.log", noise(1, 2*mib+1000))
	r.put(10)
	r.append("0.log", noise(2, 1000))
	r.put(20)
	var mu sync.Mutex
	wrong := map[string]bool{}
	r.b.Garble(func(name string, _ int64, p []byte) {
		mu.Lock()
		defer mu.Unlock()
		if !wrong[name] {
			wrong[name] = true
			p[len(p)-1] ^= 1
		}
	})
	m, fs, skipped := r.fetch()
	if m.Index != 20 || len(skipped) != 0 || len(wrong) < 3 {
		t.Fatalf("index %d, skipped %v; wrong were %v", m.Index, skipped, wrong)
	}
	r.check(fs, "/d/g1")
}

// TestReplacedWhileRead: a running cluster removes what was listed, before it is read or in the middle. There is
// a newer one then.
func TestReplacedWhileRead(t *testing.T) {
	for _, what := range []string{"/manifests/", "/objects/"} {
		r := newRig(t)
		r.append("0.log", noise(1, 5000))
		first := r.put(10).Ref
		objects := r.b.Names(testCluster + "/groups/7/objects/")
		var replaced atomic.Bool
		r.b.Fault(func(op bucket.Op, name string) error {
			if op == bucket.OpRead && strings.Contains(name, what) && !replaced.Swap(true) {
				r.files["0.log"] = []byte{}
				r.append("0.log", noise(3, 4000))
				r.put(20)
				for _, name := range append(objects, first.Object) {
					r.b.Lose(name)
				}
			}
			return nil
		})
		m, fs, skipped := r.fetch()
		if m.Index != 20 || len(skipped) != 1 {
			t.Fatalf("%s: index %d, skipped %v", what, m.Index, skipped)
		}
		r.check(fs, "/d/g1")
	}
}

// listed is a bucket whose listings say what is not so.
type listed struct {
	bucket.Bucket
	size int64
}

func (l listed) List(ctx context.Context, dir string, fn func(bucket.Object) error) error {
	return l.Bucket.List(ctx, dir, func(o bucket.Object) error {
		o.Size = l.size
		return fn(o)
	})
}

// TestListedSizes: a manifest is not taken for more, or less than nothing, because a listing says so.
func TestListedSizes(t *testing.T) {
	r := newRig(t)
	r.append("0.log", noise(1, 1000))
	r.put(10)
	for _, size := range []int64{-1, 0, 50, MaxManifestBytes + 1, 1 << 62, -1 << 63} {
		c := must(New(listed{r.b, size}).Cluster(testCluster))
		if _, err := c.Newest(t.Context(), testGroup, nil); !errors.Is(err, ErrNoSnapshot) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}
