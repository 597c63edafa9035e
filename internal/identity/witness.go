package identity

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"chronik/internal/ident"
)

// Sighting is the most a node has seen of a store.
type Sighting struct {
	Store ident.StoreID `json:"store"`
	// Boot is the highest boot counter, Run the run id it came with.
	Boot uint64 `json:"boot"`
	Run  uint64 `json:"run"`
	// LSN is the highest LSN the store said was durable.
	LSN uint64 `json:"lsn"`
}

// Behind tells whether a store that presents itself with boot, run and the LSN it
// was opened with has less than was seen of it: it is a restored copy, or a second process on a copy
// (correctness rule 18). The text says why; "" is "no".
func (s Sighting) Behind(boot, run, lsn uint64) string {
	switch {
	case s.Run != 0 && run == s.Run:
		return "" // the same process that was seen
	case boot < s.Boot:
		return fmt.Sprintf("boot %d, seen %d", boot, s.Boot)
	case boot == s.Boot && s.Run != 0:
		return fmt.Sprintf("boot %d was seen in another run", boot)
	case lsn < s.LSN:
		return fmt.Sprintf("durable LSN %d, seen %d", lsn, s.LSN)
	}
	return ""
}

// Witness remembers the most it saw of each store. Safe for concurrent use.
type Witness struct {
	mu   sync.Mutex
	seen map[ident.StoreID]Sighting
}

// maxSightings bounds a decoded Witness.
const maxSightings = 4096

// NewWitness returns a Witness that has seen nothing.
func NewWitness() *Witness { return &Witness{seen: map[ident.StoreID]Sighting{}} }

// Greeted takes in a store's Hello. If the store is behind what was seen before,
// nothing changes and the reason is returned.
func (w *Witness) Greeted(h Hello) (behind string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.seen[h.Store]
	if why := s.Behind(h.Boot, h.Run, h.LSN); why != "" {
		return why
	}
	w.seen[h.Store] = Sighting{Store: h.Store, Boot: h.Boot, Run: h.Run, LSN: max(h.LSN, s.LSN)}
	return ""
}

// Saw takes in a later word on a store's durable LSN.
func (w *Witness) Saw(store ident.StoreID, lsn uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s, ok := w.seen[store]; ok && lsn > s.LSN {
		s.LSN = lsn
		w.seen[store] = s
	}
}

// Forget drops the stores that keep does not want: those that were replaced.
func (w *Witness) Forget(keep func(ident.StoreID) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.seen {
		if !keep(id) {
			delete(w.seen, id)
		}
	}
}

// Sightings returns everything, by store id.
func (w *Witness) Sightings() []Sighting {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]Sighting, 0, len(w.seen))
	for _, s := range w.seen {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Sighting) int { return slices.Compare(a.Store[:], b.Store[:]) })
	return out
}

// Encode returns everything for a later Decode.
func (w *Witness) Encode() []byte {
	b, err := json.Marshal(w.Sightings())
	if err != nil {
		panic(err) // plain structs
	}
	return b
}

// Decode replaces everything by what Encode wrote.
func (w *Witness) Decode(b []byte) error {
	var all []Sighting
	if err := unmarshal(b, &all); err != nil {
		return fmt.Errorf("sightings: %w", err)
	}
	if len(all) > maxSightings {
		return fmt.Errorf("%d sightings, limit %d", len(all), maxSightings)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.seen)
	for _, s := range all {
		w.seen[s.Store] = s
	}
	return nil
}
