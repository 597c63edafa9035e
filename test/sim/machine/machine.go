package machine

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
)

// Bounds of a run that says none.
const (
	DefaultVirtual = 24 * time.Hour
	DefaultWall    = 5 * time.Minute
	// DefaultMemory bounds a guest's memory.
	DefaultMemory = 2 << 30

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
}

// A Machine runs one guest program, any number of times and in parallel.
type Machine struct {
	runtime wazero.Runtime
	module  wazero.CompiledModule
}

// Open compiles wasm to machine code, unless the cache has it.
func Open(ctx context.Context, wasm []byte, o Options) (*Machine, error) {
	if o.Memory == 0 {
		o.Memory = DefaultMemory
	}
	cfg := wazero.NewRuntimeConfigCompiler().WithMemoryLimitPages(uint32(o.Memory / pageSize)).WithCloseOnContextDone(true)
	if o.Cache != "" {
		dir := filepath.Join(o.Cache, "compiled")
		cache, err := wazero.NewCompilationCacheWithDir(dir)
		if err != nil {
			return nil, fmt.Errorf("machine: %w", err)
		}
		if err := prune(dir, keepGuests); err != nil {
			return nil, fmt.Errorf("machine: %w", err)
		}
		cfg = cfg.WithCompilationCache(cache)
	}
	m := &Machine{runtime: wazero.NewRuntimeWithConfig(ctx, cfg)}
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
	return m.runtime.Close(ctx)
}

// prune removes the oldest compiled guests in dir's directories, one for each version
// of wazero and kind of processor, but for the newest keep. One that is removed while
// another process looks for it is only compiled again.
func prune(dir string, keep int) error {
	type entry struct {
		path string
		at   time.Time
	}
	var all []entry
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if info, err := d.Info(); err == nil {
			all = append(all, entry{path, info.ModTime()})
		}
		return nil
	})
	slices.SortFunc(all, func(a, b entry) int { return b.at.Compare(a.at) })
	for _, e := range all[min(keep, len(all)):] {
		_ = os.Remove(e.path)
	}
	return err
}

// source is the randomness of a run: all that the guest and its runtime ever get.
func source(seed uint64) io.Reader {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}
