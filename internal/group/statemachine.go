package group

import (
	"fmt"
	"io"
	"sync"

	"chronik/internal/ident"
	"chronik/internal/raftgroup"
	"chronik/internal/vfs"
)

// StateMachine is a coordinator shard's: committed offsets and groups.
type StateMachine struct {
	mu sync.RWMutex // guards st and role; held for CPU work only
	st *state

	role role
	// onRole is called after every change of role; set by New.
	onRole func()
}

type role struct {
	leading bool
	term    ident.Term
}

var (
	_ raftgroup.StateMachine = (*StateMachine)(nil)
	_ raftgroup.RoleWatcher  = (*StateMachine)(nil)
)

// Open opens a shard's state machine; it is a raftgroup.OpenFunc.
func Open(_ vfs.FS, dir string, blob []byte, _ []raftgroup.CaptureFile) (raftgroup.StateMachine, error) {
	m := &StateMachine{st: newState()}
	if blob != nil {
		if err := m.Install(dir, blob); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Apply implements raftgroup.StateMachine. A Result is nil, errKept, or the
// error of an entry that does not decode, which changes nothing on any replica.
func (m *StateMachine) Apply(entries []raftgroup.Entry) ([]raftgroup.Result, error) {
	results := make([]raftgroup.Result, len(entries))
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, e := range entries {
		if err := m.st.apply(e.Data); err != nil {
			results[i] = err
		}
	}
	return results, nil
}

// Capture implements raftgroup.StateMachine.
func (m *StateMachine) Capture() (raftgroup.Capture, error) { return capture{m.view()}, nil }

// view returns the state at this moment in O(1). It is private to the caller.
func (m *StateMachine) view() *state {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.st.clone()
}

// Install implements raftgroup.StateMachine.
func (m *StateMachine) Install(dir string, blob []byte) error {
	st, err := readState(blob)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.st = st
	return nil
}

// Close implements raftgroup.StateMachine.
func (m *StateMachine) Close() error { return nil }

// RoleChanged implements raftgroup.RoleWatcher.
func (m *StateMachine) RoleChanged(_ ident.NodeID, term ident.Term, leading bool) {
	m.mu.Lock()
	m.role = role{leading, term}
	fn := m.onRole
	m.mu.Unlock()
	if fn != nil {
		fn()
	}
}

// watchRole makes fn be called after changes of role.
func (m *StateMachine) watchRole(fn func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onRole = fn
}

func (m *StateMachine) currentRole() role {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.role
}

type capture struct{ st *state }

func (c capture) Sync() error                        { return nil }
func (c capture) Files() []raftgroup.CaptureFile     { return nil }
func (c capture) Published()                         {}
func (c capture) Release()                           {}
func (c capture) WriteTo(w io.Writer) (int64, error) { return c.st.writeTo(w) }
