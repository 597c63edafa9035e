package archive

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"time"

	"chronik/internal/vfs"
)

// IsManifest tells whether a file begins as a manifest does.
func IsManifest(fs vfs.FS, name string) (bool, error) {
	f, err := fs.Open(name)
	if err != nil {
		return false, err
	}
	b := make([]byte, len(manMagic))
	n, err := f.ReadAt(b, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return string(b[:n]) == manMagic, errors.Join(err, f.Close())
}

// Dump writes a manifest file to w in readable form.
func Dump(fs vfs.FS, name string, w io.Writer) error {
	raw, err := vfs.ReadFile(fs, name, MaxManifestBytes)
	if err != nil {
		return err
	}
	m, err := DecodeManifest(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	b := bufio.NewWriter(w)
	p := func(key, format string, args ...any) {
		_, _ = fmt.Fprintf(b, "%-16s"+format+"\n", append([]any{key}, args...)...) // b keeps the error for Flush
	}
	created := "unknown"
	if !m.CreatedAt.IsZero() {
		created = m.CreatedAt.Format(time.RFC3339Nano)
	}
	p("file", "%s", name)
	p("version", "%d", manVersion)
	p("cluster", "%s", m.Cluster)
	p("group", "%d %s, kind %d", m.Group, m.Name, m.Kind)
	p("topic", "%q, id %q, partition %d, key %q", m.Topic, m.TopicID, m.Partition, m.Key)
	p("index", "%d", m.Index)
	p("term", "%d", m.Term)
	p("leader_term", "%d", m.LeaderTerm)
	p("node", "%d", m.Node)
	p("created_at", "%s", created)
	p("log_start_offset", "%d", m.LogStartOffset)
	p("next_offset", "%d", m.NextOffset)
	p("objects", "%d", len(m.Objects))
	for i, o := range m.Objects {
		p("", "%6d  %s  %d bytes", i, o.Sum, o.Size)
	}
	p("data", "%d files, %d bytes", len(m.Files), m.Bytes())
	for i := range m.Files {
		f := &m.Files[i]
		p("", "%12d  %s", f.Size, f.Name)
		for _, e := range f.Extents {
			p("", "              object %d, bytes %d to %d", e.Object, e.Off, e.Off+e.Len)
		}
	}
	p("check", "ok")
	return b.Flush()
}
