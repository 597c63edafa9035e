package main

import (
	"os"
	"path/filepath"
	"testing"

	"chronik/internal/alloctest"
)

// FuzzArguments reads what stands behind flags: key=value pairs and sizes.
func FuzzArguments(f *testing.F) {
	f.Add("retention.ms=1", "10 MB")
	f.Add("=", "9223372036854775807KiB")
	f.Fuzz(func(t *testing.T, pair, size string) {
		defer alloctest.Bound(t, len(pair)+len(size))()
		if kv, err := parseConfigs([]string{pair}); err == nil {
			for k, v := range kv {
				if k+"="+*v != pair {
					t.Fatalf("%q became %q, %q", pair, k, *v)
				}
			}
		}
		if n, err := parseSize(size); err == nil && (n < 1 || n > 1<<50) {
			t.Fatalf("%q is %d", size, n)
		}
	})
}

// FuzzDevFile reads a dev.json that anybody may have edited.
func FuzzDevFile(f *testing.F) {
	f.Add([]byte(`{"nodes":[{"id":1,"argv":["chronik","start"],"pid":7}]}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		if err := os.WriteFile(filepath.Join(dir, "dev.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if dc, err := loadDev(dir); err == nil && dc.dir == "" {
			t.Fatal("a cluster without its directory")
		}
	})
}
