package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"time"

	"chronik/internal/bucket"
	"chronik/internal/format"
	"chronik/internal/ident"
	"chronik/internal/snapshot"
)

// The manifest, all numbers big-endian:
//
//	 0  8  magic "chronarc"
//	 8  1  version, 1
//	 9  1  kind of the group's state machine
//	10  2  zero
//	12  4  node that uploaded it
//	16  8  group id
//	24  8  index S
//	32  8  term of S
//	40  8  term of the leader that uploaded it
//	48  8  created at, Unix milliseconds; 0 unknown
//	56  8  log start offset; -1 unknown
//	64  8  next offset; -1 unknown
//	72  4  partition
//	76  …  cluster id, name, topic, topic id, key: 1 length, then the bytes, each
//	    4  number of objects; each: 32 SHA-256, 4 size
//	    4  number of files, the first is the checkpoint; each:
//	        1  name length, name
//	        8  size
//	        …  SHA-256 of each 1 MiB chunk
//	        4  number of extents; each: 4 object, 4 offset, 4 length
//	L-32   32  SHA-256 of everything before it
const (
	manMagic   = "chronarc"
	manVersion = 1
	manFixed   = 76
)

// Limits of the format.
const (
	// MaxManifestBytes bounds an encoded manifest: about 1.5 TiB of state.
	MaxManifestBytes = bucket.MaxObjectBytes
	maxTextBytes     = 255
	maxPartition     = 1<<31 - 1
)

// ErrCorrupt says that what the object store returned is not what its hash or
// format demands. The text names object and byte.
var ErrCorrupt = snapshot.ErrCorrupt

// Info says what a snapshot is of.
type Info struct {
	Cluster string
	Group   ident.GroupID
	// Name is for people: "orders-0". Key is the group's part of directory names.
	Name, Topic, TopicID, Key string
	Partition                 int32
	// Kind is the owner's: which state machine the group has.
	Kind byte
	// Index and Term are the checkpoint's point in the log.
	Index ident.Index
	Term  ident.Term
	// LeaderTerm is the term in which Node led and uploaded it.
	LeaderTerm ident.Term
	Node       ident.NodeID
	CreatedAt  time.Time
	// LogStartOffset is the first readable offset, NextOffset the one after the
	// last record. -1: unknown, or the group has no offsets.
	LogStartOffset, NextOffset int64
}

// Sum is an object's SHA-256, which is its name.
type Sum [sha256.Size]byte

// String returns 64 hexadecimal digits.
func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// Object is one the snapshot refers to.
type Object struct {
	Sum  Sum
	Size uint32
}

// Extent is Len bytes from Off of Objects[Object].
type Extent struct{ Object, Off, Len uint32 }

// File is a file of the snapshot. Its extents, one after the other, are its bytes.
type File struct {
	snapshot.ManifestFile
	Extents []Extent
}

// Manifest says what a snapshot is and where its bytes are. Files[0] is the
// checkpoint file.
type Manifest struct {
	Info
	Objects []Object
	Files   []File
}

// Bytes is the size of all files together.
func (m *Manifest) Bytes() int64 {
	var n int64
	for i := range m.Files {
		n += m.Files[i].Size
	}
	return n
}

// Append encodes m.
func (m *Manifest) Append(dst []byte) []byte {
	be := binary.BigEndian
	start := len(dst)
	dst = append(dst, manMagic...)
	dst = append(dst, manVersion, m.Kind, 0, 0)
	dst = be.AppendUint32(dst, uint32(m.Node))
	var created int64
	if !m.CreatedAt.IsZero() {
		created = m.CreatedAt.UnixMilli()
	}
	for _, v := range []uint64{
		uint64(m.Group), uint64(m.Index), uint64(m.Term), uint64(m.LeaderTerm), uint64(created),
		uint64(m.LogStartOffset), uint64(m.NextOffset),
	} {
		dst = be.AppendUint64(dst, v)
	}
	dst = be.AppendUint32(dst, uint32(m.Partition))
	for _, s := range []string{m.Cluster, m.Name, m.Topic, m.TopicID, m.Key} {
		dst = append(append(dst, byte(len(s))), s...)
	}
	dst = be.AppendUint32(dst, uint32(len(m.Objects)))
	for _, o := range m.Objects {
		dst = be.AppendUint32(append(dst, o.Sum[:]...), o.Size)
	}
	dst = be.AppendUint32(dst, uint32(len(m.Files)))
	for i := range m.Files {
		f := &m.Files[i]
		dst = append(append(dst, byte(len(f.Name))), f.Name...)
		dst = be.AppendUint64(dst, uint64(f.Size))
		dst = append(dst, f.Hashes...)
		dst = be.AppendUint32(dst, uint32(len(f.Extents)))
		for _, e := range f.Extents {
			dst = be.AppendUint32(be.AppendUint32(be.AppendUint32(dst, e.Object), e.Off), e.Len)
		}
	}
	sum := sha256.Sum256(dst[start:])
	return append(dst, sum[:]...)
}

// check refuses what the format cannot hold.
func (m *Manifest) check() error {
	for _, s := range []string{m.Cluster, m.Name, m.Topic, m.TopicID, m.Key} {
		if len(s) > maxTextBytes {
			return fmt.Errorf("manifest: text of %d bytes", len(s))
		}
	}
	return nil
}

// DecodeManifest reads an encoded manifest and checks that its files and extents
// fit together. The result aliases b.
func DecodeManifest(b []byte) (*Manifest, error) {
	m, err := decodeManifest(b)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return m, nil
}

func decodeManifest(b []byte) (*Manifest, error) {
	if len(b) > MaxManifestBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrCorrupt, len(b), MaxManifestBytes)
	}
	d := decoder{b: b}
	if magic := d.take(len(manMagic), "magic"); d.err == nil && string(magic) != manMagic {
		return nil, d.wrong(0, "magic %q is not %q", magic, manMagic)
	}
	if v := d.u8("version"); d.err == nil {
		if err := format.Check(int(v), manVersion); err != nil {
			return nil, fmt.Errorf("%w at byte 8 of %d: %w", ErrCorrupt, len(b), err)
		}
	}
	if d.err == nil && len(b) < manFixed+sha256.Size {
		return nil, d.wrong(len(b), "it ends in the header")
	}
	if d.err != nil {
		return nil, d.err
	}
	body := len(b) - sha256.Size
	if sum := sha256.Sum256(b[:body]); !bytes.Equal(sum[:], b[body:]) {
		return nil, d.wrong(body, "SHA-256 %x, computed %x", b[body:body+8], sum[:8])
	}
	d.b = b[:body:body]
	m := &Manifest{}
	d.info(&m.Info)
	d.objects(m)
	d.files(m)
	if d.err == nil && d.at != len(d.b) {
		return nil, d.wrong(d.at, "%d trailing bytes", len(d.b)-d.at)
	}
	return m, d.err
}

// decoder reads fields; the first that is not there sets err and later ones are zero.
type decoder struct {
	b   []byte
	at  int
	err error
}

func (d *decoder) wrong(at int, format string, args ...any) error {
	if d.err == nil {
		d.err = fmt.Errorf("%w at byte %d of %d: %s", ErrCorrupt, at, len(d.b), fmt.Sprintf(format, args...))
	}
	return d.err
}

func (d *decoder) take(n int, what string) []byte {
	if d.err == nil && (n < 0 || n > len(d.b)-d.at) {
		_ = d.wrong(d.at, "%s of %d bytes does not fit", what, n) // kept in err
	}
	if d.err != nil {
		return nil
	}
	d.at += n
	return d.b[d.at-n : d.at : d.at]
}

func (d *decoder) u8(what string) byte {
	if b := d.take(1, what); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) u32(what string) uint32 {
	if b := d.take(4, what); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) u64(what string) uint64 {
	if b := d.take(8, what); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (d *decoder) text(what string) string { return string(d.take(int(d.u8(what)), what)) }

// count reads a number of things that take at least least bytes each.
func (d *decoder) count(least, most int, what string) int {
	at := d.at
	n := int64(d.u32(what))
	if d.err == nil && (n > int64(most) || n > int64((len(d.b)-d.at)/least)) {
		_ = d.wrong(at, "%d %s do not fit", n, what) // kept in err
	}
	if d.err != nil {
		return 0
	}
	return int(n)
}

func (d *decoder) info(i *Info) {
	d.at = 9
	i.Kind = d.u8("kind")
	if pad := d.take(2, "padding"); d.err == nil && (pad[0] != 0 || pad[1] != 0) {
		_ = d.wrong(10, "padding is not zero")
	}
	i.Node = ident.NodeID(d.u32("node"))
	i.Group = ident.GroupID(d.u64("group"))
	i.Index = ident.Index(d.u64("index"))
	i.Term = ident.Term(d.u64("term"))
	i.LeaderTerm = ident.Term(d.u64("leader term"))
	if ms := int64(d.u64("creation time")); ms != 0 {
		i.CreatedAt = time.UnixMilli(ms).UTC()
	}
	i.LogStartOffset = int64(d.u64("log start offset"))
	i.NextOffset = int64(d.u64("next offset"))
	at := d.at
	p := d.u32("partition")
	if p > maxPartition {
		_ = d.wrong(at, "partition %d", p)
	}
	i.Partition = int32(p)
	i.Cluster, i.Name, i.Topic = d.text("cluster id"), d.text("name"), d.text("topic")
	i.TopicID, i.Key = d.text("topic id"), d.text("key")
}

func (d *decoder) objects(m *Manifest) {
	n := d.count(sha256.Size+4, MaxManifestBytes, "objects")
	m.Objects = make([]Object, 0, n)
	for range n {
		at := d.at
		var o Object
		copy(o.Sum[:], d.take(sha256.Size, "object"))
		o.Size = d.u32("object size")
		if o.Size == 0 || o.Size > bucket.MaxObjectBytes {
			_ = d.wrong(at+sha256.Size, "object of %d bytes", o.Size)
			return
		}
		m.Objects = append(m.Objects, o)
	}
}

func (d *decoder) files(m *Manifest) {
	n := d.count(1+1+8+4, snapshot.MaxFiles+1, "files")
	if d.err == nil && n == 0 {
		_ = d.wrong(d.at-4, "no files")
		return
	}
	seen := make(map[string]bool, n)
	m.Files = make([]File, 0, n)
	for i := range n {
		at := d.at
		f := d.file(m)
		if d.err != nil {
			return
		}
		if (f.Name == snapshot.CheckpointName) != (i == 0) || seen[f.Name] {
			_ = d.wrong(at, "file %d is called %q", i, f.Name)
			return
		}
		seen[f.Name] = true
		m.Files = append(m.Files, f)
	}
}

func (d *decoder) file(m *Manifest) File {
	var f File
	at := d.at
	f.Name = d.text("file name")
	if err := snapshot.CheckName(f.Name); d.err == nil && err != nil {
		_ = d.wrong(at, "%v", err)
	}
	at = d.at
	size := d.u64("file size")
	// A hash for every chunk must follow: that bounds the size.
	if d.err == nil && size > uint64(len(d.b)-d.at)/sha256.Size*snapshot.ChunkBytes {
		_ = d.wrong(at, "file %s: no room for the hashes of %d bytes", f.Name, size)
	}
	if d.err != nil {
		return f
	}
	f.Size = int64(size)
	f.Hashes = d.take(f.Chunks()*sha256.Size, "chunk hashes")
	at = d.at
	n := d.count(12, MaxManifestBytes, "extents")
	f.Extents = make([]Extent, 0, n)
	var sum int64
	for range n {
		at := d.at
		e := Extent{Object: d.u32("object"), Off: d.u32("offset"), Len: d.u32("length")}
		if d.err == nil && (e.Len == 0 || int64(e.Object) >= int64(len(m.Objects)) || uint64(e.Off)+uint64(e.Len) > uint64(m.Objects[e.Object].Size)) {
			_ = d.wrong(at, "file %s: extent of %d bytes at %d of object %d", f.Name, e.Len, e.Off, e.Object)
		}
		sum += int64(e.Len)
		f.Extents = append(f.Extents, e)
	}
	if d.err == nil && sum != f.Size {
		_ = d.wrong(at, "file %s: extents of %d bytes, its size is %d", f.Name, sum, f.Size)
	}
	return f
}

// cursor walks a file's extents; positions asked for never go back.
type cursor struct {
	extents []Extent
	next    int
	at      int64 // where extents[next] begins in the file
}

// take appends the extents of n bytes from off. The file is at least that long.
func (c *cursor) take(dst []Extent, off int64, n int) []Extent {
	for c.at+int64(c.extents[c.next].Len) <= off {
		c.at += int64(c.extents[c.next].Len)
		c.next++
	}
	for i, at := c.next, c.at; n > 0; i++ {
		e := c.extents[i]
		skip := uint32(off - at)
		k := min(e.Len-skip, uint32(n))
		dst = append(dst, Extent{e.Object, e.Off + skip, k})
		at += int64(e.Len)
		off += int64(k)
		n -= int(k)
	}
	return dst
}

// chunkExtents returns where chunk i of f lies.
func (f *File) chunkExtents(i int) []Extent {
	off, n := f.Range(i)
	c := cursor{extents: f.Extents}
	return c.take(nil, off, n)
}

// addExtent appends e to a file's extents, as one with the last where they touch.
func addExtent(to []Extent, e Extent) []Extent {
	if n := len(to); n > 0 {
		last := &to[n-1]
		if last.Object == e.Object && last.Off+last.Len == e.Off {
			last.Len += e.Len
			return to
		}
	}
	return append(to, e)
}

// file returns the file called name, nil if there is none.
func (m *Manifest) file(name string) *File {
	for i := range m.Files {
		if m.Files[i].Name == name {
			return &m.Files[i]
		}
	}
	return nil
}
