package bucket

import (
	"context"
	crand "crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

const (
	// tmpDir holds objects that are being written. It lies below the root, so that
	// they can be renamed and linked.
	tmpDir = ".tmp"
	// tmpAge is when a file there is a crash's remains.
	tmpAge = 24 * time.Hour
	// maxLeft is how many system calls may hang before nothing more is tried.
	maxLeft = 16
	// pieceBytes are written or read between two signs of progress.
	pieceBytes = 1 << 20
)

// directory is a Bucket in a file system.
type directory struct {
	fs    vfs.FS
	root  string
	stall time.Duration
	slots chan struct{} // one an operation, kept by those that hang
	sweep sync.Once
}

func newDir(opt Options, root string) *directory {
	return &directory{fs: opt.FS, root: path.Clean(root), stall: opt.Stall, slots: make(chan struct{}, maxLeft)}
}

// String implements Bucket.
func (d *directory) String() string { return "file://" + d.root }

func (d *directory) path(name string) string { return path.Join(d.root, name) }

// do runs f on a goroutine of its own, for a system call on a file system that
// hangs does not return. f calls moved whenever something moved and stops when
// its ctx ends. After do returned f may still run: it must own what it touches.
func (d *directory) do(ctx context.Context, f func(ctx context.Context, moved func()) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(d.stall, func() { cancel(ErrStalled) })
	defer timer.Stop()
	select {
	case d.slots <- struct{}{}:
	default:
		select {
		case d.slots <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	timer.Reset(d.stall)
	done := make(chan error, 1)
	go func() {
		defer func() { <-d.slots }()
		done <- f(ctx, func() {
			if ctx.Err() == nil {
				timer.Reset(d.stall)
			}
		})
	}()
	select {
	case err := <-done:
		if err != nil && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// notFound gives the operating system's word for it ours.
func notFound(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}

// ReadAt implements Bucket.
func (d *directory) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if err := checkName(name); err != nil {
		return 0, opError("read", d, name, err)
	}
	var n int
	var got []byte
	err := d.do(ctx, func(ctx context.Context, moved func()) error {
		f, err := d.fs.Open(d.path(name))
		if err != nil {
			return notFound(err)
		}
		defer func() { _ = f.Close() }() // only read
		st, err := f.Stat()
		if err != nil {
			return err
		}
		if st.IsDir() {
			return fmt.Errorf("%w: it is a directory", ErrNotFound)
		}
		b := make([]byte, min(int64(len(p)), max(0, st.Size()-off))) // not p: see do
		for at := 0; at < len(b) && ctx.Err() == nil; {
			k, err := f.ReadAt(b[at:min(len(b), at+pieceBytes)], off+int64(at))
			at += k
			if err != nil && !(errors.Is(err, io.EOF) && at == len(b)) {
				return fmt.Errorf("at byte %d: %w", off+int64(at), err)
			}
			moved()
		}
		got = b
		return ctx.Err()
	})
	if err == nil {
		n = copy(p, got)
	}
	return n, opError("read", d, name, err)
}

// Put implements Bucket.
func (d *directory) Put(ctx context.Context, name string, data []byte) error {
	return opError("write", d, name, d.put(ctx, name, data, d.fs.Rename))
}

// PutIfAbsent implements Bucket.
func (d *directory) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	return opError("write", d, name, d.put(ctx, name, data, func(tmp, name string) error {
		err := d.fs.Link(tmp, name)
		if errors.Is(err, os.ErrExist) {
			err = fmt.Errorf("%w: %w", ErrExists, err)
		}
		return errors.Join(err, d.fs.Remove(tmp))
	}))
}

// put writes and syncs a temporary file, then gives it its name by publish and
// syncs the directory: at no crash is a part of an object there.
func (d *directory) put(ctx context.Context, name string, data []byte, publish func(tmp, name string) error) error {
	if err := checkPut(name, data); err != nil {
		return err
	}
	var r [8]byte
	_, _ = crand.Read(r[:]) // never fails since Go 1.24
	tmp := path.Join(d.root, tmpDir, hex.EncodeToString(r[:]))
	return d.do(ctx, func(ctx context.Context, moved func()) error {
		for _, dir := range []string{path.Dir(tmp), path.Dir(d.path(name))} {
			if err := vfs.MkdirAllSync(d.fs, dir); err != nil {
				return err
			}
		}
		d.sweep.Do(d.removeRemains)
		if err := d.writeTmp(ctx, tmp, data, moved); err != nil {
			return errors.Join(err, removeIfThere(d.fs, tmp))
		}
		moved()
		invariant.Point("bucket.put.written")
		if err := publish(tmp, d.path(name)); err != nil {
			return err
		}
		invariant.Point("bucket.put.published")
		return vfs.SyncDir(d.fs, path.Dir(d.path(name)))
	})
}

func (d *directory) writeTmp(ctx context.Context, tmp string, data []byte, moved func()) error {
	f, err := d.fs.Create(tmp, vfs.CategorySnapshot)
	if err != nil {
		return err
	}
	piece := make([]byte, min(len(data), pieceBytes)) // a file may change what it is given
	for len(data) > 0 && err == nil {
		if err = ctx.Err(); err == nil {
			n := copy(piece, data)
			_, err = f.Write(piece[:n])
			data = data[n:]
			moved()
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = ctx.Err() // a sync may have hung for long: nobody waits any more
	}
	return errors.Join(err, f.Close())
}

// removeRemains removes what crashes left in the temporary directory. What
// cannot be removed stays: it is nobody's object.
func (d *directory) removeRemains() {
	dir := path.Join(d.root, tmpDir)
	names, err := vfs.List(d.fs, dir)
	if err != nil {
		return
	}
	for _, name := range names {
		name = path.Join(dir, name)
		if st, err := d.fs.Stat(name); err == nil && time.Since(st.ModTime()) > tmpAge {
			_ = d.fs.Remove(name)
		}
	}
}

func removeIfThere(fs vfs.FS, name string) error {
	if err := fs.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// List implements Bucket.
func (d *directory) List(ctx context.Context, dir string, fn func(Object) error) error {
	if err := checkDir(dir); err != nil {
		return opError("list", d, dir, err)
	}
	// Directory by directory: fn runs here, and memory is one directory's.
	todo := []string{strings.TrimSuffix(dir, "/")}
	for len(todo) > 0 {
		cur := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		objects, dirs, err := d.read(ctx, cur)
		if err != nil {
			return opError("list", d, cur, err)
		}
		for _, sub := range dirs {
			todo = append(todo, path.Join(cur, sub))
		}
		for _, o := range objects {
			if err := fn(o); err != nil {
				return err
			}
		}
	}
	return nil
}

// Dirs implements Bucket.
func (d *directory) Dirs(ctx context.Context, dir string) ([]string, error) {
	if err := checkDir(dir); err != nil {
		return nil, opError("list", d, dir, err)
	}
	_, dirs, err := d.read(ctx, strings.TrimSuffix(dir, "/"))
	return dirs, opError("list", d, dir, err)
}

// read lists one directory. One that is not there is empty.
func (d *directory) read(ctx context.Context, dir string) (objects []Object, dirs []string, err error) {
	type listing struct {
		objects []Object
		dirs    []string
	}
	var got listing
	err = d.do(ctx, func(ctx context.Context, moved func()) error {
		names, err := vfs.List(d.fs, d.path(dir))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		var l listing
		for _, name := range names {
			moved()
			full := path.Join(dir, name)
			if checkName(full) != nil {
				continue // .tmp, and what somebody else put here
			}
			st, err := d.fs.Stat(d.path(full))
			switch {
			case errors.Is(err, os.ErrNotExist): // deleted meanwhile
			case err != nil:
				return err
			case st.IsDir():
				l.dirs = append(l.dirs, name)
			default:
				l.objects = append(l.objects, Object{Name: full, Size: st.Size(), Modified: st.ModTime()})
			}
		}
		got = l
		return ctx.Err()
	})
	if err != nil {
		return nil, nil, err
	}
	return got.objects, got.dirs, nil
}

// Delete implements Bucket.
func (d *directory) Delete(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return opError("delete", d, name, err)
	}
	return opError("delete", d, name, d.do(ctx, func(context.Context, func()) error {
		if err := removeIfThere(d.fs, d.path(name)); err != nil {
			return err
		}
		err := vfs.SyncDir(d.fs, path.Dir(d.path(name)))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}))
}
