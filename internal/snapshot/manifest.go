package snapshot

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// ChunkBytes is the unit that is hashed, fetched and verified.
const ChunkBytes = 1 << 20

// MaxManifestBytes bounds an encoded manifest: 32 MiB is a state of about 1 TiB.
const MaxManifestBytes = 32 << 20

// The encoded manifest, all numbers big-endian:
//
//	0  8  magic "chronman"
//	8  1  version, 1
//	9  3  zero
//	12 4  number of files; the first is the checkpoint itself
//	   each file:
//	      1  name length, then the name
//	      8  size
//	      …  SHA-256 of each 1 MiB chunk, 32 bytes each, the last chunk may be short
const (
	manMagic   = "chronman"
	manVersion = 1
	manHead    = 16
)

// ManifestFile is one file of a snapshot.
type ManifestFile struct {
	Name string
	Size int64
	// Hashes holds the SHA-256 of every chunk, 32 bytes each.
	Hashes []byte
}

// Chunks is the number of chunks.
func (f *ManifestFile) Chunks() int { return chunkCount(f.Size) }

// Hash is chunk i's SHA-256.
func (f *ManifestFile) Hash(i int) []byte {
	return f.Hashes[i*sha256.Size : (i+1)*sha256.Size]
}

// Range is chunk i's place in the file.
func (f *ManifestFile) Range(i int) (off int64, n int) {
	off = int64(i) * ChunkBytes
	return off, int(min(ChunkBytes, f.Size-off))
}

func chunkCount(size int64) int { return int((size + ChunkBytes - 1) / ChunkBytes) }

// Manifest says what the bytes of a snapshot are. Files[0] is the checkpoint file.
type Manifest struct {
	Files []ManifestFile
}

// ManifestID is the SHA-256 of the encoded manifest: it names the whole snapshot's bytes.
type ManifestID [sha256.Size]byte

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
	dst = append(dst, manMagic...)
	dst = append(dst, manVersion, 0, 0, 0)
	dst = be.AppendUint32(dst, uint32(len(m.Files)))
	for i := range m.Files {
		f := &m.Files[i]
		dst = appendName(dst, f.Name)
		dst = be.AppendUint64(dst, uint64(f.Size))
		dst = append(dst, f.Hashes...)
	}
	return dst
}

// manifestBytes is the encoded size of a manifest of these files.
func manifestBytes(files []DataFile) int64 {
	n := int64(manHead)
	for _, f := range files {
		n += int64(1+len(f.Name)+8) + sha256.Size*int64(chunkCount(f.Size))
	}
	return n
}

// DecodeManifest reads an encoded manifest and checks names, sizes and chunk
// counts. The result aliases b.
func DecodeManifest(b []byte) (*Manifest, error) {
	if len(b) > MaxManifestBytes {
		return nil, fmt.Errorf("manifest: %w: %d bytes", ErrTooLarge, len(b))
	}
	d := decoder{buf: b}
	if magic := d.bytes(len(manMagic), "magic"); d.err == nil && string(magic) != manMagic {
		d.off = 0
		d.fail(fmt.Sprintf("magic %q is not %q", magic, manMagic))
	}
	d.version(manVersion)
	d.bytes(3, "padding")
	n := int(d.u32("file count"))
	const least = 1 + 1 + 8
	if d.err == nil && (n == 0 || n > MaxFiles+1 || n > (len(b)-d.off)/least) {
		d.off -= 4
		d.fail(fmt.Sprintf("file count %d out of range", n))
	}
	if d.err != nil {
		return nil, fmt.Errorf("manifest: %w", d.err)
	}
	m := &Manifest{Files: make([]ManifestFile, 0, n)}
	for range n {
		m.Files = append(m.Files, decodeManifestFile(&d))
		if d.err != nil {
			return nil, fmt.Errorf("manifest: %w", d.err)
		}
	}
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if m.Files[0].Name != CheckpointName {
		return nil, fmt.Errorf("manifest: %w: first file is %q at byte %d", ErrCorrupt, m.Files[0].Name, manHead)
	}
	if err := checkFiles(m.dataFiles()); err != nil {
		return nil, fmt.Errorf("manifest: %w: %w", ErrCorrupt, err)
	}
	return m, nil
}

func decodeManifestFile(d *decoder) ManifestFile {
	f := ManifestFile{Name: d.name("file name"), Size: d.size("file size")}
	if d.err != nil {
		return f
	}
	// Compared as chunks: the product could not overflow, but the size is a stranger's.
	if left := (len(d.buf) - d.off) / sha256.Size; f.Chunks() > left {
		d.fail(fmt.Sprintf("file %s: %d chunk hashes, room for %d", f.Name, f.Chunks(), left))
		return f
	}
	f.Hashes = d.bytes(f.Chunks()*sha256.Size, "chunk hashes")
	return f
}

// dataFiles lists the files besides the checkpoint.
func (m *Manifest) dataFiles() []DataFile {
	files := make([]DataFile, 0, len(m.Files)-1)
	for i := range m.Files[1:] {
		files = append(files, DataFile{Name: m.Files[i+1].Name, Size: m.Files[i+1].Size})
	}
	return files
}
