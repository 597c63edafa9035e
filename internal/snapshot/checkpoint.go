package snapshot

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
	"time"

	"chronik/internal/ident"
)

// CheckpointName is the file that makes a directory a replica's durable state.
const CheckpointName = "checkpoint"

// The checkpoint file, all numbers big-endian:
//
//	header   0  8  magic "chronckp"
//	         8  1  version, 1
//	         9  1  codec of the blob: 0 none, 1 gzip, 2 zstd
//	        10  2  zero
//	        12  4  header length H, from the magic to the CRC, both included
//	        16  8  group id
//	        24  8  index S
//	        32  8  term of S
//	        40  8  configuration generation
//	        48  8  created at, Unix milliseconds; informational
//	        56  4  ConfState length, then the bytes
//	            4  members length, then the bytes
//	            4  number of files; each: 1 name length, name, 8 size
//	       H-4  4  CRC32-C of the header's bytes before it
//	blob     H  …  the state machine's blob, compressed as one stream
//	footer      8  magic "ckpt-end"
//	            8  stored length: of the blob in the file
//	            8  raw length: of the blob as the state machine wrote it
//	            4  CRC32-C of the raw blob
//	            4  CRC32-C of the header's CRC and the footer's bytes before it
const (
	headMagic     = "chronckp"
	footMagic     = "ckpt-end"
	ckptVersion   = 1
	headFixed     = 56
	footBytes     = 32
	headMinBytes  = headFixed + 4 + 4 + 4 + 4
	ckptTmpSuffix = ".tmp"
)

// Limits of the format. They bound what a decoder allocates.
const (
	MaxFiles          = 1 << 16
	MaxNameBytes      = 64
	MaxConfStateBytes = 1 << 16
	MaxMembersBytes   = 1 << 20
	MaxBlobBytes      = 2 << 30
	maxFileBytes      = 1 << 50
	maxHeadBytes      = headMinBytes + MaxConfStateBytes + MaxMembersBytes + MaxFiles*(1+MaxNameBytes+8)
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Point is a position in a group's log with the membership there. ConfState
// and Members are the owner's encodings, opaque here.
type Point struct {
	Index     ident.Index
	Term      ident.Term
	ConfState []byte
	Members   []byte
	// ConfGeneration is the highest generation any membership change applied
	// up to Index carried.
	ConfGeneration uint64
}

// DataFile is one file of the state, with the length that belongs to it. Bytes
// behind Size are remains of a crash.
type DataFile struct {
	Name string
	Size int64
}

// Checkpoint is a replica's durable state at Point without the blob.
type Checkpoint struct {
	Group ident.GroupID
	Point Point
	Files []DataFile
	// CreatedAt is the creator's clock, in milliseconds; for people only.
	CreatedAt time.Time
}

// Codec says how a blob is compressed.
type Codec uint8

// Codecs of a blob. The zero value is None.
const (
	None Codec = iota
	Gzip
	Zstd
)

// String returns the configuration's word: none, gzip or zstd.
func (c Codec) String() string {
	switch c {
	case None:
		return "none"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	default:
		return fmt.Sprintf("codec(%d)", uint8(c))
	}
}

// ParseCodec reads the form String writes.
func ParseCodec(s string) (Codec, error) {
	for _, c := range []Codec{None, Gzip, Zstd} {
		if s == c.String() {
			return c, nil
		}
	}
	return None, fmt.Errorf("compression %q: want zstd, gzip or none", s)
}

// CheckName says why a name must not be a data file's: it is joined to a path
// and comes from other nodes.
func CheckName(name string) error {
	if name == "" || len(name) > MaxNameBytes {
		return fmt.Errorf("file name %.80q: want 1 to %d bytes", name, MaxNameBytes)
	}
	for i := range len(name) {
		c := name[i]
		letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || c != '.' && c != '-') {
			return fmt.Errorf("file name %q: byte %d is not one of 0-9 a-z . - (first: 0-9 a-z)", name, i)
		}
	}
	for _, s := range []string{ckptTmpSuffix, partSuffix, unsyncedSuffix} {
		if strings.HasSuffix(name, s) {
			return fmt.Errorf("file name %q: the suffix is reserved", name)
		}
	}
	return nil
}

// check refuses what the format cannot hold.
func (c *Checkpoint) check() error {
	switch {
	case len(c.Point.ConfState) > MaxConfStateBytes:
		return fmt.Errorf("%w: ConfState of %d bytes", ErrTooLarge, len(c.Point.ConfState))
	case len(c.Point.Members) > MaxMembersBytes:
		return fmt.Errorf("%w: members of %d bytes", ErrTooLarge, len(c.Point.Members))
	case len(c.Files) > MaxFiles:
		return fmt.Errorf("%w: %d files", ErrTooLarge, len(c.Files))
	}
	return checkFiles(c.Files)
}

// checkFiles refuses names that are no data file's, repeated names, and sizes
// out of range.
func checkFiles(files []DataFile) error {
	seen := make(map[string]bool, len(files))
	for _, f := range files {
		if err := CheckName(f.Name); err != nil {
			return err
		}
		if f.Name == CheckpointName || seen[f.Name] {
			return fmt.Errorf("file name %q: taken", f.Name)
		}
		if f.Size < 0 || f.Size > maxFileBytes {
			return fmt.Errorf("%w: file %s of %d bytes", ErrTooLarge, f.Name, f.Size)
		}
		seen[f.Name] = true
	}
	return nil
}

// appendHeader encodes the header. c has passed check.
func appendHeader(dst []byte, c *Checkpoint, codec Codec) []byte {
	be := binary.BigEndian
	start := len(dst)
	dst = append(dst, headMagic...)
	dst = append(dst, ckptVersion, byte(codec), 0, 0)
	dst = be.AppendUint32(dst, 0) // H, set below
	dst = be.AppendUint64(dst, uint64(c.Group))
	dst = be.AppendUint64(dst, uint64(c.Point.Index))
	dst = be.AppendUint64(dst, uint64(c.Point.Term))
	dst = be.AppendUint64(dst, c.Point.ConfGeneration)
	dst = be.AppendUint64(dst, uint64(unixMilli(c.CreatedAt)))
	dst = be.AppendUint32(dst, uint32(len(c.Point.ConfState)))
	dst = append(dst, c.Point.ConfState...)
	dst = be.AppendUint32(dst, uint32(len(c.Point.Members)))
	dst = append(dst, c.Point.Members...)
	dst = be.AppendUint32(dst, uint32(len(c.Files)))
	for _, f := range c.Files {
		dst = appendName(dst, f.Name)
		dst = be.AppendUint64(dst, uint64(f.Size))
	}
	be.PutUint32(dst[start+12:], uint32(len(dst)-start+4))
	return be.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

// headerLength checks the fixed start of a header and returns H.
func headerLength(b []byte) (int, error) {
	d := decoder{buf: b}
	if magic := d.bytes(len(headMagic), "magic"); d.err == nil && string(magic) != headMagic {
		d.off = 0
		d.fail(fmt.Sprintf("magic %q is not %q", magic, headMagic))
	}
	d.version(ckptVersion)
	d.u8("codec")
	d.u16("padding")
	n := d.u32("header length")
	if d.err == nil && (n < headMinBytes || n > maxHeadBytes) {
		d.off -= 4
		d.fail(fmt.Sprintf("header length %d out of range", n))
	}
	return int(n), d.err
}

// decodeHeader reads exactly one header. The result aliases nothing.
func decodeHeader(b []byte) (Checkpoint, Codec, error) {
	var c Checkpoint
	n, err := headerLength(b)
	if err != nil {
		return c, 0, err
	}
	d := decoder{buf: b}
	if n != len(b) {
		d.off = 12
		d.fail(fmt.Sprintf("header length %d is not %d", n, len(b)))
		return c, 0, d.err
	}
	crc := binary.BigEndian.Uint32(b[n-4:])
	if got := crc32.Checksum(b[:n-4], castagnoli); got != crc {
		d.off = n - 4
		d.fail(fmt.Sprintf("header CRC %08x, computed %08x", crc, got))
		return c, 0, d.err
	}
	d.buf = b[:n-4]
	d.off = 9
	codec := Codec(d.u8("codec"))
	if codec > Zstd {
		d.fail("unknown " + codec.String())
	}
	d.off = 16
	c.Group = ident.GroupID(d.u64("group"))
	c.Point.Index = ident.Index(d.u64("index"))
	c.Point.Term = ident.Term(d.u64("term"))
	c.Point.ConfGeneration = d.u64("configuration generation")
	c.CreatedAt = fromUnixMilli(int64(d.u64("creation time")))
	c.Point.ConfState = append([]byte(nil), d.lenBytes(MaxConfStateBytes, "ConfState")...)
	c.Point.Members = append([]byte(nil), d.lenBytes(MaxMembersBytes, "members")...)
	c.Files = decodeFiles(&d)
	if err := d.end(); err != nil {
		return Checkpoint{}, 0, err
	}
	if err := checkFiles(c.Files); err != nil {
		return Checkpoint{}, 0, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return c, codec, nil
}

func decodeFiles(d *decoder) []DataFile {
	n := int(d.u32("file count"))
	if d.err != nil {
		return nil
	}
	const least = 1 + 1 + 8 // a one-letter name
	if n > MaxFiles || n > (len(d.buf)-d.off)/least {
		d.off -= 4
		d.fail(fmt.Sprintf("%d files do not fit", n))
		return nil
	}
	files := make([]DataFile, 0, n)
	for range n {
		files = append(files, DataFile{Name: d.name("file name"), Size: d.size("file size")})
		if d.err != nil {
			return nil
		}
	}
	return files
}

// footer is the checkpoint file's last 32 bytes.
type footer struct {
	stored, raw int64
	crc         uint32
}

func appendFooter(dst []byte, f footer, headCRC uint32) []byte {
	be := binary.BigEndian
	start := len(dst)
	dst = append(dst, footMagic...)
	dst = be.AppendUint64(dst, uint64(f.stored))
	dst = be.AppendUint64(dst, uint64(f.raw))
	dst = be.AppendUint32(dst, f.crc)
	return be.AppendUint32(dst, footerCRC(dst[start:], headCRC))
}

func footerCRC(b []byte, headCRC uint32) uint32 {
	var h [4]byte
	binary.BigEndian.PutUint32(h[:], headCRC)
	return crc32.Update(crc32.Checksum(h[:], castagnoli), castagnoli, b)
}

// decodeFooter reads the 32 bytes; room is how many bytes the file has for the blob.
func decodeFooter(b []byte, headCRC uint32, room int64) (footer, error) {
	d := decoder{buf: b}
	if magic := d.bytes(len(footMagic), "footer magic"); d.err == nil && string(magic) != footMagic {
		d.off = 0
		d.fail(fmt.Sprintf("footer magic %q is not %q", magic, footMagic))
	}
	stored, raw := d.u64("stored length"), d.u64("raw length")
	f := footer{stored: int64(stored), raw: int64(raw), crc: d.u32("blob CRC")}
	crc := d.u32("footer CRC")
	if err := d.end(); err != nil {
		return footer{}, err
	}
	if got := footerCRC(b[:footBytes-4], headCRC); got != crc {
		d.off = footBytes - 4
		d.fail(fmt.Sprintf("footer CRC %08x, computed %08x", crc, got))
		return footer{}, d.err
	}
	if f.stored != room {
		d.off = 8
		d.fail(fmt.Sprintf("stored length %d, the file has %d", stored, room))
		return footer{}, d.err
	}
	if raw > MaxBlobBytes {
		d.off = 16
		d.fail(fmt.Sprintf("raw length %d above %d", raw, int64(MaxBlobBytes)))
		return footer{}, d.err
	}
	return f, nil
}

func unixMilli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromUnixMilli(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
