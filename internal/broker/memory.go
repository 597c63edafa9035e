package broker

import (
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"chronik/internal/format"
	"chronik/internal/ident"
	"chronik/internal/identity"
	"chronik/internal/raftlog"
)

// memory is what a node remembers outside of any group, kept as the raftlog's
// node record: the highest boot and LSN it saw of each store (correctness rule
// 18), and the highest creation that was ever durable here (rule 8).
//
//	0  1  version, 1
//	1  8  highest metadata index of any creation on this store, big-endian
//	9  …  identity.Witness' encoding
type memory struct {
	log     *raftlog.Log
	witness *identity.Witness

	mu      sync.Mutex
	upTo    ident.Index
	written string // what the log's node record holds
	// births and at: what the record says besides LSNs, and when it was written.
	births string
	at     time.Time
	// kept has the boot and run of each store that the log's durable record holds.
	kept map[ident.StoreID]life
}

// life is one run of a store.
type life struct{ boot, run uint64 }

const memoryVersion = 1

func openMemory(log *raftlog.Log) (*memory, error) {
	m := &memory{log: log, witness: identity.NewWitness(), kept: map[ident.StoreID]life{}}
	blob := log.NodeBlob()
	if len(blob) > 0 {
		if err := format.Check(int(blob[0]), memoryVersion); err != nil {
			return nil, fmt.Errorf("node record in the raftlog: %w", err)
		}
		if len(blob) < 9 {
			return nil, fmt.Errorf("node record of %d bytes: truncated", len(blob))
		}
		m.upTo = ident.Index(binary.BigEndian.Uint64(blob[1:]))
		if err := m.witness.Decode(blob[9:]); err != nil {
			return nil, fmt.Errorf("node record: %w", err)
		}
		m.written = string(blob)
		for _, s := range m.witness.Sightings() {
			m.kept[s.Store] = life{s.Boot, s.Run}
		}
	}
	for _, c := range log.Creations() {
		m.upTo = max(m.upTo, c.CreatedAt)
	}
	return m, nil
}

func (m *memory) createdUpTo() ident.Index {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.upTo
}

// created notes that all creations up to index are durable in the log.
func (m *memory) created(index ident.Index) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.upTo = max(m.upTo, index)
}

// greeted takes in a peer's Hello, and returns once this run of its store is durable here. What the peer
// acknowledges from now on it may do with this node as the only witness that comes back: if that had forgotten,
// an older copy of the peer's disk would be welcome and the two a majority, without what was acknowledged.
// If the store is behind what was seen before, the reason is returned and nothing changes.
func (m *memory) greeted(h identity.Hello) (behind string, err error) {
	if behind := m.witness.Greeted(h); behind != "" {
		return behind, nil
	}
	now := life{h.Boot, h.Run}
	m.mu.Lock()
	known := m.kept[h.Store] == now
	m.mu.Unlock()
	if known {
		return "", nil
	}
	if err := m.persist(); err != nil {
		return "", fmt.Errorf("node record: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kept[h.Store] = now
	return "", nil
}

// save writes the record if it changed; done, if not nil, hears when it is durable.
func (m *memory) save(done func(error)) {
	m.mu.Lock()
	defer m.mu.Unlock() // while the record is queued too: an older one must not follow a newer
	blob := binary.BigEndian.AppendUint64([]byte{memoryVersion}, uint64(m.upTo))
	blob = append(blob, m.witness.Encode()...)
	same := string(blob) == m.written
	m.written = string(blob)
	if same && done == nil {
		return
	}
	m.log.PutNode(blob, done)
}

// lsnEvery is how old the LSNs of the record may get. Each record raises this
// node's own LSN, so two idle nodes would otherwise write about each other for ever.
const lsnEvery = 10 * time.Second

// keep saves the record soon if a store or a boot is new, else now and then.
func (m *memory) keep() {
	births := ""
	for _, s := range m.witness.Sightings() {
		births += fmt.Sprintf("%s %d %d,", s.Store, s.Boot, s.Run)
	}
	m.mu.Lock()
	births += fmt.Sprint(m.upTo)
	due := births != m.births || time.Since(m.at) >= lsnEvery
	if due {
		m.births, m.at = births, time.Now()
	}
	m.mu.Unlock()
	if due {
		m.save(nil)
	}
}

// persist writes the record and waits until it is durable.
func (m *memory) persist() error {
	done := make(chan error, 1)
	m.save(func(err error) { done <- err })
	return <-done
}
