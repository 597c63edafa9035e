// Package buckettest holds every bucket.Bucket to its contract.
package buckettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"chronik/internal/bucket"
)

// Run tests an empty bucket.
func Run(t *testing.T, b bucket.Bucket) {
	ctx := t.Context()
	data := bytes.Repeat([]byte("0123456789"), 300_000)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string, off int64, n int, want []byte) {
		t.Helper()
		p := make([]byte, n)
		k, err := b.ReadAt(ctx, name, p, off)
		check(err)
		if !bytes.Equal(p[:k], want) {
			t.Fatalf("%s from %d: %d bytes, want %d", name, off, k, len(want))
		}
	}
	if _, err := b.ReadAt(ctx, "a/none", make([]byte, 1), 0); !errors.Is(err, bucket.ErrNotFound) {
		t.Fatalf("nothing there: %v", err)
	}
	check(b.Delete(ctx, "a/none"))
	check(b.Put(ctx, "a/one", data))
	read("a/one", 0, len(data), data)
	read("a/one", 0, len(data)+10, data)
	read("a/one", 17, 100, data[17:117])
	read("a/one", int64(len(data)-5), 100, data[len(data)-5:])
	read("a/one", int64(len(data)), 100, nil)
	read("a/one", int64(len(data)+7), 100, nil)
	check(b.Put(ctx, "a/one", []byte("short")))
	read("a/one", 0, 100, []byte("short"))
	check(b.PutIfAbsent(ctx, "a/b/two", []byte("two")))
	if err := b.PutIfAbsent(ctx, "a/b/two", []byte("other")); !errors.Is(err, bucket.ErrExists) {
		t.Fatalf("taken name: %v", err)
	}
	read("a/b/two", 0, 100, []byte("two"))
	check(b.Put(ctx, "c", nil))
	read("c", 0, 100, nil)
	list(t, b)
	race(t, b)
	check(b.Delete(ctx, "a/one"))
	check(b.Delete(ctx, "a/one"))
	if _, err := b.ReadAt(ctx, "a/one", make([]byte, 1), 0); !errors.Is(err, bucket.ErrNotFound) {
		t.Fatalf("deleted: %v", err)
	}
	check(b.PutIfAbsent(ctx, "a/one", []byte("again")))
	refused(t, b)
}

func list(t *testing.T, b bucket.Bucket) {
	t.Helper()
	names := func(dir string) string {
		var out []string
		err := b.List(t.Context(), dir, func(o bucket.Object) error {
			out = append(out, fmt.Sprintf("%s:%d", o.Name, o.Size))
			if o.Modified.IsZero() && o.Size > 0 { // a memory disk counts writes
				t.Errorf("%s was never modified", o.Name)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(out)
		return fmt.Sprint(out)
	}
	for dir, want := range map[string]string{"": "[a/b/two:3 a/one:5 c:0]", "a/": "[a/b/two:3 a/one:5]", "a/b/": "[a/b/two:3]", "z/": "[]"} {
		if got := names(dir); got != want {
			t.Fatalf("list %q: %s, want %s", dir, got, want)
		}
	}
	for dir, want := range map[string]string{"": "[a]", "a/": "[b]", "a/b/": "[]", "z/": "[]"} {
		dirs, err := b.Dirs(t.Context(), dir)
		if got := fmt.Sprint(dirs); err != nil || got != want {
			t.Fatalf("directories of %q: %s, %v, want %s", dir, got, err, want)
		}
	}
	stop := errors.New("stop")
	if err := b.List(t.Context(), "", func(bucket.Object) error { return stop }); !errors.Is(err, stop) {
		t.Fatalf("fn's error: %v", err)
	}
}

// race has many write one name: one wins.
func race(t *testing.T, b bucket.Bucket) {
	t.Helper()
	var won atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			switch err := b.PutIfAbsent(t.Context(), "race/x", []byte{byte(i)}); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, bucket.ErrExists):
				t.Errorf("race: %v", err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Fatalf("%d won", won.Load())
	}
}

// refused is what no bucket takes.
func refused(t *testing.T, b bucket.Bucket) {
	t.Helper()
	for _, name := range []string{"", "/x", "x/", "a//b", "../x", "a/../b", ".tmp/x", "a b", "a\x00b", "ü"} {
		if err := b.Put(t.Context(), name, nil); err == nil {
			t.Errorf("name %q is accepted", name)
		}
		if _, err := b.ReadAt(t.Context(), name, nil, 0); err == nil {
			t.Errorf("name %q is read", name)
		}
	}
	if err := b.List(t.Context(), "a", func(bucket.Object) error { return nil }); err == nil {
		t.Error("a directory without slash is listed")
	}
	if err := b.Put(t.Context(), "big", make([]byte, bucket.MaxObjectBytes+1)); !errors.Is(err, bucket.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := b.ReadAt(ctx, "c", make([]byte, 1), 0)
	for _, err := range []error{
		err, b.Put(ctx, "x", nil), b.PutIfAbsent(ctx, "x", nil), b.Delete(ctx, "c"), b.List(ctx, "", func(bucket.Object) error { return nil }),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	}
}
