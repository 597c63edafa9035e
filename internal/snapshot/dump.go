package snapshot

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"time"

	"chronik/internal/vfs"
)

// Dump writes a checkpoint file's header, file list and blob lengths to w in
// readable form, and checks the blob. What could be read is written before an
// error is returned.
func Dump(fs vfs.FS, name string, w io.Writer) (err error) {
	f, err := OpenFile(fs, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b := bufio.NewWriter(w)
	defer func() { err = errors.Join(err, b.Flush()) }()

	created := "unknown"
	if !f.CreatedAt.IsZero() {
		created = f.CreatedAt.UTC().Format(time.RFC3339Nano)
	}
	p := func(key, format string, args ...any) {
		_, _ = fmt.Fprintf(b, "%-16s"+format+"\n", append([]any{key}, args...)...) // b keeps the error for Flush
	}
	p("file", "%s", name)
	p("version", "%d", ckptVersion)
	p("group", "%d", f.Group)
	p("index", "%d", f.Point.Index)
	p("term", "%d", f.Point.Term)
	p("conf_generation", "%d", f.Point.ConfGeneration)
	p("conf_state", "%x", f.Point.ConfState)
	p("members", "%q", f.Point.Members)
	p("created_at", "%s", created)
	p("blob", "%s, bytes %d to %d, %d stored, %d raw", f.Codec, f.headBytes, f.headBytes+f.foot.stored, f.foot.stored, f.foot.raw)
	var total int64
	for _, df := range f.Files {
		total += df.Size
	}
	p("data", "%d files, %d bytes", len(f.Files), total)
	for _, df := range f.Files {
		p("", "%12d  %s", df.Size, df.Name)
	}
	if err := f.Verify(); err != nil {
		p("check", "%s", err)
		return err
	}
	p("check", "ok, blob crc32c %08x", f.foot.crc)
	return nil
}
