package machine

import (
	"fmt"
	"sync"
	"syscall"

	"github.com/tetratelabs/wazero/experimental"
)

// memories are the memories of a machine's guests. Each is mapped once at its greatest size, so it grows
// where it is, without being copied, and the garbage collector of this process does not
// know it. A run leaves its memory to the next, with zeros in all that it may have written.
type memories struct {
	limit int64

	mu   sync.Mutex
	idle []*memory
}

// take returns a memory of zeros.
func (m *memories) take() (*memory, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := len(m.idle); n > 0 {
		mem := m.idle[n-1]
		m.idle = m.idle[:n-1]
		return mem, nil
	}
	all, err := syscall.Mmap(-1, 0, int(m.limit), syscall.PROT_READ|syscall.PROT_WRITE, mapFlags)
	if err != nil {
		return nil, fmt.Errorf("machine: map %d bytes: %w", m.limit, err)
	}
	adviseHuge(all)
	return &memory{of: m, all: all}, nil
}

// close unmaps what no run has.
func (m *memories) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, mem := range m.idle {
		_ = syscall.Munmap(mem.all) // Mmap returned it
	}
	m.idle = nil
}

// memory is that of one run's guest, an experimental.LinearMemory.
type memory struct {
	of   *memories
	all  []byte
	size uint64 // the guest's; what lies behind is zero
}

// Allocate implements experimental.MemoryAllocator for the one memory that a guest has.
func (m *memory) Allocate(_, _ uint64) experimental.LinearMemory { return m }

// Reallocate implements experimental.LinearMemory. Sizes only grow.
func (m *memory) Reallocate(size uint64) []byte {
	if size > uint64(len(m.all)) {
		return nil
	}
	m.size = size
	return m.all[:size:size]
}

// Free implements experimental.LinearMemory. The memory is given back by leave, whether or not it had a guest.
func (m *memory) Free() {}

// leave gives the memory back. Its guest has ended.
func (m *memory) leave() {
	clear(m.all[:m.size])
	m.size = 0
	m.of.mu.Lock()
	defer m.of.mu.Unlock()
	m.of.idle = append(m.of.idle, m)
}
