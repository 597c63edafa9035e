package raftgroup

import (
	"bytes"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync"

	"chronik/internal/ident"
	"chronik/internal/vfs"
)

// MemoryStateMachine is the reference StateMachine: a map from key to value. An
// entry's data is "key=value"; its Result is the value the key had before. All
// of its state is in the blob, so it has no files.
type MemoryStateMachine struct {
	mu    sync.Mutex
	state memoryState
}

// memoryState is what a checkpoint holds.
type memoryState struct {
	Values map[string]string
	// Applied counts the entries.
	Applied uint64
	Last    ident.Index
}

var errMemoryEntry = errors.New("entry is not key=value")

// OpenMemory is the OpenFunc of MemoryStateMachine.
func OpenMemory(_ vfs.FS, _ string, blob []byte, _ []CaptureFile) (StateMachine, error) {
	m := &MemoryStateMachine{}
	return m, m.load(blob)
}

func (m *MemoryStateMachine) load(blob []byte) error {
	st := memoryState{Values: make(map[string]string)}
	if len(blob) > 0 {
		if err := gob.NewDecoder(bytes.NewReader(blob)).Decode(&st); err != nil {
			return fmt.Errorf("%w: state of %d bytes: %w", ErrCorrupt, len(blob), err)
		}
	}
	if st.Values == nil {
		st.Values = make(map[string]string)
	}
	m.mu.Lock()
	m.state = st
	m.mu.Unlock()
	return nil
}

// Apply implements StateMachine.
func (m *MemoryStateMachine) Apply(entries []Entry) ([]Result, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Result, len(entries))
	for i, e := range entries {
		k, v, ok := strings.Cut(string(e.Data), "=")
		if !ok {
			return nil, fmt.Errorf("index %d: %w", e.Index, errMemoryEntry)
		}
		out[i] = m.state.Values[k]
		m.state.Values[k] = v
		m.state.Applied++
		m.state.Last = e.Index
	}
	return out, nil
}

// Get returns a key's value.
func (m *MemoryStateMachine) Get(key string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.Values[key]
}

// Len returns the number of keys.
func (m *MemoryStateMachine) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.state.Values)
}

// Capture implements StateMachine. Copying the map is not O(1): a reference
// keeps simple what a real state machine does with a copy-on-write tree.
func (m *MemoryStateMachine) Capture() (Capture, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := m.state
	st.Values = maps.Clone(st.Values)
	return &memoryCapture{st: st}, nil
}

// Install implements StateMachine.
func (m *MemoryStateMachine) Install(_ string, blob []byte) error { return m.load(blob) }

// Close implements StateMachine.
func (m *MemoryStateMachine) Close() error { return nil }

type memoryCapture struct{ st memoryState }

func (c *memoryCapture) Sync() error { return nil }

func (c *memoryCapture) WriteTo(w io.Writer) (int64, error) {
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(c.st); err != nil {
		return 0, err
	}
	return b.WriteTo(w)
}

func (c *memoryCapture) Files() []CaptureFile { return nil }
func (c *memoryCapture) Published()           {}
func (c *memoryCapture) Release()             {}
