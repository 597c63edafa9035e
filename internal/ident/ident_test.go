package ident

import (
	"testing"

	"chronik/internal/alloctest"
)

func FuzzParseStoreID(f *testing.F) {
	f.Add(NewStoreID().String())
	f.Add("01")
	f.Fuzz(func(t *testing.T, s string) {
		defer alloctest.Bound(t, len(s))()
		id, err := ParseStoreID(s)
		if err != nil {
			return
		}
		if again, err := ParseStoreID(id.String()); err != nil || again != id {
			t.Fatalf("%q: %s, then %s, %v", s, id, again, err)
		}
	})
}
