package bucket

import (
	"bytes"
	"context"
	"errors"
	"sort"
	"strings"
	"sync"
	"time"
)

// Op is a kind of call, for Mem's faults.
type Op string

// Kinds of calls.
const (
	OpRead        Op = "read"
	OpPut         Op = "put"
	OpPutIfAbsent Op = "put-if-absent"
	OpList        Op = "list"
	OpDelete      Op = "delete"
)

// ErrHang as the error of Mem.Fault has the call wait until its ctx ends.
var ErrHang = errors.New("hang")

// ErrReadOnly is what a Mem that is read-only answers to writes.
var ErrReadOnly = errors.New("access denied: the bucket is read-only")

// Mem is a Bucket in memory, for tests. Its faults may be changed at any time.
type Mem struct {
	mu      sync.Mutex
	objects map[string]memObject
	fault   func(op Op, name string) error
	garble  func(name string, off int64, p []byte)
	ro      bool
	calls   map[Op]int
	put     int64
}

type memObject struct {
	data     []byte
	modified time.Time
}

// NewMem returns an empty bucket.
func NewMem() *Mem { return &Mem{objects: map[string]memObject{}, calls: map[Op]int{}} }

// Fault has f called before every call takes effect; its error is the call's.
// ErrHang has it wait for its ctx. nil ends that.
func (m *Mem) Fault(f func(op Op, name string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = f
}

// Garble has f see, and change, what every ReadAt returns; nil ends that.
func (m *Mem) Garble(f func(name string, off int64, p []byte)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.garble = f
}

// ReadOnly makes writes and deletes fail.
func (m *Mem) ReadOnly(ro bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ro = ro
}

// Flip inverts a bit of a stored object.
func (m *Mem) Flip(name string, at int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.objects[name]
	o.data = bytes.Clone(o.data)
	o.data[at] ^= 1
	m.objects[name] = o
}

// Cut shortens a stored object.
func (m *Mem) Cut(name string, to int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.objects[name]
	o.data = o.data[:to:to]
	m.objects[name] = o
}

// Lose drops a stored object as no Delete did.
func (m *Mem) Lose(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, name)
}

// Bytes returns a stored object, nil if there is none.
func (m *Mem) Bytes(name string) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.objects[name].data
}

// Names lists what is stored below a prefix, sorted.
func (m *Mem) Names(prefix string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for n := range m.objects {
		if strings.HasPrefix(n, prefix) {
			names = append(names, n)
		}
	}
	sort.Strings(names)
	return names
}

// Calls says how often op was called.
func (m *Mem) Calls(op Op) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls[op]
}

// BytesPut is how much was written in all.
func (m *Mem) BytesPut() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.put
}

// begin counts the call and applies the faults.
func (m *Mem) begin(ctx context.Context, op Op, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	m.calls[op]++
	fault, ro := m.fault, m.ro
	m.mu.Unlock()
	if fault != nil {
		err := fault(op, name)
		if errors.Is(err, ErrHang) {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err // what f did took longer than the call may
		}
	}
	if ro && op != OpRead && op != OpList {
		return ErrReadOnly
	}
	return nil
}

// String implements Bucket.
func (m *Mem) String() string { return "mem://" }

// ReadAt implements Bucket.
func (m *Mem) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if err := errors.Join(checkName(name), m.begin(ctx, OpRead, name)); err != nil {
		return 0, opError("read", m, name, err)
	}
	m.mu.Lock()
	o, ok := m.objects[name]
	garble := m.garble
	m.mu.Unlock()
	if !ok {
		return 0, opError("read", m, name, ErrNotFound)
	}
	n := 0
	if off < int64(len(o.data)) {
		n = copy(p, o.data[off:])
	}
	if garble != nil {
		garble(name, off, p[:n])
	}
	return n, nil
}

// Put implements Bucket.
func (m *Mem) Put(ctx context.Context, name string, data []byte) error {
	return m.store(ctx, OpPut, name, data)
}

// PutIfAbsent implements Bucket.
func (m *Mem) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	return m.store(ctx, OpPutIfAbsent, name, data)
}

func (m *Mem) store(ctx context.Context, op Op, name string, data []byte) error {
	if err := checkPut(name, data); err != nil {
		return opError("write", m, name, err)
	}
	if err := m.begin(ctx, op, name); err != nil {
		return opError("write", m, name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[name]; ok && op == OpPutIfAbsent {
		return opError("write", m, name, ErrExists)
	}
	m.put += int64(len(data))
	m.objects[name] = memObject{data: bytes.Clone(data), modified: time.Now()}
	return nil
}

// List implements Bucket.
func (m *Mem) List(ctx context.Context, dir string, fn func(Object) error) error {
	if err := errors.Join(checkDir(dir), m.begin(ctx, OpList, dir)); err != nil {
		return opError("list", m, dir, err)
	}
	for _, name := range m.Names(dir) {
		m.mu.Lock()
		o, ok := m.objects[name]
		m.mu.Unlock()
		if !ok {
			continue
		}
		if err := fn(Object{Name: name, Size: int64(len(o.data)), Modified: o.modified}); err != nil {
			return err
		}
	}
	return nil
}

// Dirs implements Bucket.
func (m *Mem) Dirs(ctx context.Context, dir string) ([]string, error) {
	if err := errors.Join(checkDir(dir), m.begin(ctx, OpList, dir)); err != nil {
		return nil, opError("list", m, dir, err)
	}
	var dirs []string
	for _, name := range m.Names(dir) {
		sub, _, ok := strings.Cut(strings.TrimPrefix(name, dir), "/")
		if ok && (len(dirs) == 0 || dirs[len(dirs)-1] != sub) {
			dirs = append(dirs, sub)
		}
	}
	return dirs, nil
}

// Delete implements Bucket.
func (m *Mem) Delete(ctx context.Context, name string) error {
	if err := errors.Join(checkName(name), m.begin(ctx, OpDelete, name)); err != nil {
		return opError("delete", m, name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, name)
	return nil
}
