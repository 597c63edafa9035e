package machine

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
)

// Bounds of a run that says none.
const (
	DefaultVirtual = 24 * time.Hour
	DefaultCPU     = 5 * time.Minute
	// DefaultMemory bounds a guest's memory.
	DefaultMemory = 2 << 30

	watchEvery = 100 * time.Millisecond
	pageSize   = 64 << 10
	keepGuests = 3 // compiled ones: 200 MB each
)

// environment is what every guest sees.
var environment = [][2]string{}

// Options are a machine's settings.
type Options struct {
	// Cache is where compiled guests are kept; empty: nowhere.
	Cache string
	// Memory bounds each instance's memory in bytes; zero: DefaultMemory.
	Memory int64
	// Stoppable has every loop of the guest look whether it is to end, so that one
	// which only computes can be ended. Guests run at less than half the speed. Without
	// it a guest ends when it next asks for anything; a Pool ends the others, too.
	Stoppable bool
}

// A Machine runs one guest program, any number of times and in parallel.
type Machine struct {
	runtime wazero.Runtime
	module  wazero.CompiledModule
	memory  memories
	running atomic.Int64 // runs that go on
}

// Open compiles wasm to machine code, unless the cache has it.
func Open(ctx context.Context, wasm []byte, o Options) (*Machine, error) {
	if o.Memory == 0 {
		o.Memory = DefaultMemory
	}
	cfg := wazero.NewRuntimeConfigCompiler().WithMemoryLimitPages(uint32(o.Memory / pageSize)).WithCloseOnContextDone(o.Stoppable)
	if o.Cache != "" {
		dir := filepath.Join(o.Cache, "compiled")
		cache, err := wazero.NewCompilationCacheWithDir(dir)
		if err != nil {
			return nil, fmt.Errorf("machine: %w", err)
		}
		// One directory for each version of wazero and kind of processor.
		if err := prune(dir, filepath.Join("*", "*"), keepGuests); err != nil {
			return nil, err
		}
		cfg = cfg.WithCompilationCache(cache)
	}
	m := &Machine{runtime: wazero.NewRuntimeWithConfig(ctx, cfg), memory: memories{limit: o.Memory}}
	if err := m.load(ctx, wasm); err != nil {
		_ = m.Close(ctx)
		return nil, fmt.Errorf("machine: %w", err)
	}
	return m, nil
}

func (m *Machine) load(ctx context.Context, wasm []byte) error {
	if _, err := wasi_snapshot_preview1.Instantiate(ctx, m.runtime); err != nil {
		return err
	}
	_, err := m.runtime.NewHostModuleBuilder("sim").NewFunctionBuilder().
		WithGoModuleFunction(api.GoModuleFunc(jump), []api.ValueType{api.ValueTypeI64}, nil).Export("jump").Instantiate(ctx)
	if err != nil {
		return err
	}
	ctx = experimental.WithCompilationWorkers(ctx, runtime.GOMAXPROCS(0))
	m.module, err = m.runtime.CompileModule(ctx, wasm)
	return err
}

// Close frees the machine. No run may be going on.
func (m *Machine) Close(ctx context.Context) error {
	m.memory.close()
	return m.runtime.Close(ctx)
}

// watch calls cancel when one of the runs that go on has computed for bound, reckoning
// that they share evenly what this process computes, or when the function that it
// returns is called, which a run's end must do.
func (m *Machine) watch(bound time.Duration, cancel context.CancelFunc) (end func()) {
	m.running.Add(1)
	ended, left := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(left)
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		var used time.Duration
		for last := processorTime(); used < bound; {
			select {
			case <-ended:
				return
			case <-tick.C:
				now := processorTime()
				used += (now - last) / time.Duration(m.running.Load())
				last = now
			}
		}
		cancel()
	}()
	return func() {
		close(ended)
		<-left
		m.running.Add(-1)
		cancel()
	}
}

// processorTime is what this process has computed so far.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // EINVAL and EFAULT are all there is
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// prune removes what matches pattern below dir, but for the newest keep. What is
// removed while another process looks for it is only made again, or refused by name.
func prune(dir, pattern string, keep int) error {
	paths, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		return fmt.Errorf("machine: %w", err)
	}
	at := map[string]time.Time{}
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil {
			at[path] = info.ModTime()
		}
	}
	slices.SortFunc(paths, func(a, b string) int { return at[b].Compare(at[a]) })
	for _, path := range paths[min(keep, len(paths)):] {
		_ = os.RemoveAll(path)
	}
	return nil
}

// source is the randomness of a run: all that the guest and its runtime ever get.
func source(seed uint64) io.Reader {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}
