package identity

import (
	"fmt"
	"sync"
	"testing"

	"chronik/internal/alloctest"
	"chronik/internal/ident"
)

func TestWitness(t *testing.T) {
	a, b := ident.StoreID{1}, ident.StoreID{2}
	w := NewWitness()
	greet := func(boot, run, lsn uint64, want string) {
		t.Helper()
		if got := w.Greeted(Hello{Store: a, Boot: boot, Run: run, LSN: lsn}); got != want {
			t.Errorf("boot %d run %d LSN %d: %q, want %q", boot, run, lsn, got, want)
		}
	}
	greet(5, 50, 1000, "")
	w.Saw(a, 2000)
	w.Saw(a, 1500)
	w.Saw(b, 9)            // never greeted: nothing to compare with
	greet(5, 50, 1000, "") // the same process connects again
	greet(5, 51, 2000, "boot 5 was seen in another run")
	greet(4, 49, 9000, "boot 4, seen 5")
	greet(6, 60, 1999, "durable LSN 1999, seen 2000")
	greet(6, 60, 2000, "") // a clean restart
	greet(5, 50, 9000, "boot 5, seen 6")
	greet(7, 70, 1999, "durable LSN 1999, seen 2000")
	if got := fmt.Sprint(w.Sightings()); got != fmt.Sprint([]Sighting{{Store: a, Boot: 6, Run: 60, LSN: 2000}}) {
		t.Errorf("sightings %s", got)
	}
	w.Greeted(Hello{Store: b, Boot: 1, Run: 1})
	again := NewWitness()
	if err := again.Decode(w.Encode()); err != nil || fmt.Sprint(again.Sightings()) != fmt.Sprint(w.Sightings()) {
		t.Errorf("decoded %v, %v", again.Sightings(), err)
	}
	again.Forget(func(s ident.StoreID) bool { return s == b })
	if got := again.Sightings(); len(got) != 1 || got[0].Store != b {
		t.Errorf("kept %v", got)
	}
}

func TestWitnessConcurrent(t *testing.T) {
	w := NewWitness()
	w.Greeted(Hello{Store: ident.StoreID{1}, Boot: 1, Run: 1})
	var wg sync.WaitGroup
	for i := range uint64(8) {
		wg.Go(func() {
			for j := range uint64(100) {
				w.Saw(ident.StoreID{1}, i*100+j)
				w.Encode()
			}
		})
	}
	wg.Wait()
	if got := w.Sightings()[0].LSN; got != 799 {
		t.Errorf("LSN %d, want the highest, 799", got)
	}
}

func FuzzDecodeWitness(f *testing.F) {
	f.Add([]byte(`[{"store":"01000000000000000000000000000000","boot":1,"run":2,"lsn":3}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		w := NewWitness()
		if w.Decode(b) != nil {
			return
		}
		again := NewWitness()
		if err := again.Decode(w.Encode()); err != nil || fmt.Sprint(again.Sightings()) != fmt.Sprint(w.Sightings()) {
			t.Fatalf("%s does not come back: %v", b, err)
		}
	})
}
