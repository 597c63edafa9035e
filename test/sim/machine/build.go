package machine

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed" // the text of vfsPatch
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// A patch replaces one file of one package of a module, which has no build for wasip1
// without it. The go command refuses to overlay the module cache, so the module's
// packages that are imported are copied, and a go.mod of its own points to the copy.
type patch struct {
	module, pkg, file string
	text              []byte
}

//go:embed patch/vfs.go.txt
var vfsPatch []byte

var patches = []patch{{"github.com/cockroachdb/pebble/v2", "vfs", "file_lock_generic.go", vfsPatch}}

// Build compiles the command pkg (an import path, or ./test/sim/guest) of the module
// in dir to WebAssembly and returns its bytes. The go command's cache makes all but
// the first time quick. What it leaves behind is under cache (see CacheDir) and is
// named by its content.
func Build(ctx context.Context, dir, pkg, cache string) ([]byte, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	unlock, err := lock(filepath.Join(cache, "build.lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := prune(cache, "build-*", 0); err != nil { // of builds that were killed
		return nil, err
	}
	list, err := dependencies(ctx, dir, pkg)
	if err != nil {
		return nil, err
	}
	args, err := replaced(ctx, dir, list, cache)
	if err != nil {
		return nil, err
	}
	// Not default.pgo, which would have every build of the module compile all it imports once more.
	profile := filepath.Join(list[len(list)-1].dir, profileName)
	if _, err := os.Stat(profile); err == nil {
		args = append(args, "-pgo="+profile)
	}
	tmp, err := os.MkdirTemp(cache, "build-")
	if err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	out := filepath.Join(tmp, "guest.wasm")
	// Paths are trimmed so that the same sources are the same bytes in any worktree.
	args = append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out}, args...)
	if _, err := goCommand(ctx, dir, append(args, pkg)...); err != nil {
		return nil, err
	}
	wasm, err := os.ReadFile(out)
	if err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	return wasm, nil
}

// CacheDir is where Build and Open keep what is slow to make, unless told otherwise.
func CacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("machine: %w", err)
	}
	return filepath.Join(dir, "chronik-sim"), nil
}

// profileName is the file beside a command's sources that tells the compiler where it computes.
const profileName = "cpu.pgo"

// A dependency is a package with its module, which has sources of its own at root.
type dependency struct{ module, root, dir string }

// dependencies are the packages of modules that pkg is made of, itself last.
func dependencies(ctx context.Context, dir, pkg string) ([]dependency, error) {
	const format = `{{with .Module}}{{.Path}}|{{.Dir}}|{{$.Dir}}{{end}}`
	list, err := goCommand(ctx, dir, "list", "-e", "-deps", "-f", format, pkg)
	if err != nil {
		return nil, err
	}
	var out []dependency
	for line := range strings.Lines(string(list)) {
		if f := strings.Split(strings.TrimSpace(line), "|"); len(f) == 3 {
			out = append(out, dependency{f[0], f[1], f[2]})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("machine: %s is in no module", pkg)
	}
	return out, nil
}

// replaced returns the flags that let the go command see the patched copies of the
// modules that list has packages of: none if it has none of them.
func replaced(ctx context.Context, dir string, list []dependency, cache string) ([]string, error) {
	var replaces []string
	for _, p := range patches {
		var root string
		pkgs := map[string]bool{}
		for _, d := range list {
			if d.module == p.module {
				root, pkgs[d.dir] = d.root, true
			}
		}
		if root == "" {
			continue
		}
		to, err := copyModule(root, slices.Sorted(maps.Keys(pkgs)), p, cache)
		if err != nil {
			return nil, fmt.Errorf("machine: copy %s: %w", p.module, err)
		}
		replaces = append(replaces, fmt.Sprintf("replace %s => %s\n", p.module, to))
	}
	if len(replaces) == 0 {
		return nil, nil
	}
	mod, err := modFile(ctx, dir, cache, strings.Join(replaces, ""))
	if err != nil {
		return nil, err
	}
	return []string{"-modfile=" + mod}, nil
}

// copyModule writes root's go.mod, the sources of the packages pkgs and the patch into
// a directory whose name is the content's hash, and returns it. The same content thus
// has the same place, which the go command's cache needs.
func copyModule(root string, pkgs []string, p patch, cache string) (string, error) {
	files := map[string][]byte{}
	sources := []string{filepath.Join(root, "go.mod")}
	for _, pkg := range pkgs {
		entries, err := os.ReadDir(pkg)
		if err != nil {
			return "", err
		}
		for _, e := range entries {
			if e.Type().IsRegular() && !strings.HasSuffix(e.Name(), "_test.go") {
				sources = append(sources, filepath.Join(pkg, e.Name()))
			}
		}
	}
	for _, path := range sources {
		text, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return "", err
		}
		files[rel] = text
	}
	files[filepath.Join(p.pkg, p.file)] = p.text
	return writeTree(cache, "src-", files)
}

// modFile writes the go.mod and go.sum in use in dir, with the lines more, and returns
// the path of the former.
func modFile(ctx context.Context, dir, cache, more string) (string, error) {
	path, err := goCommand(ctx, dir, "env", "GOMOD")
	if err != nil {
		return "", err
	}
	root := filepath.Dir(string(bytes.TrimSpace(path)))
	files := map[string][]byte{}
	for _, name := range []string{"go.mod", "go.sum"} {
		if files[name], err = os.ReadFile(filepath.Join(root, name)); err != nil {
			return "", fmt.Errorf("machine: %w", err)
		}
	}
	files["go.mod"] = append(files["go.mod"], "\n"+more...)
	to, err := writeTree(cache, "mod-", files)
	if err != nil {
		return "", fmt.Errorf("machine: %w", err)
	}
	return filepath.Join(to, "go.mod"), nil
}

// writeTree writes files below a directory of cache named by their hash, whole or not
// at all, and returns it.
func writeTree(cache, prefix string, files map[string][]byte) (string, error) {
	h := sha256.New()
	names := slices.Sorted(maps.Keys(files))
	for _, name := range names {
		fmt.Fprintf(h, "%s\n%d\n%s\n", name, len(files[name]), files[name])
	}
	to := filepath.Join(cache, fmt.Sprintf("%s%x", prefix, h.Sum(nil)[:12]))
	if _, err := os.Stat(to); !errors.Is(err, fs.ErrNotExist) {
		return to, err
	}
	tmp, err := os.MkdirTemp(cache, "new-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	for _, name := range names {
		path := filepath.Join(tmp, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(path, files[name], 0o644); err != nil {
			return "", err
		}
	}
	return to, os.Rename(tmp, to)
}

// goCommand runs the go command for wasip1 in dir. Its errors carry what it printed.
func goCommand(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("machine: go %s: %w\n%s", args[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// lock holds the file path against other processes, and against other calls in this
// one, until the function it returns is called.
func lock(path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("machine: lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}
