package raftlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"chronik/internal/format"
	"chronik/internal/ident"
)

// File layout. docs/formats/raftlog.md has the tables.
const (
	fileMagic       = "CHRAFTLG"
	sealMagic       = "CHSEALED"
	formatVersion   = 1
	fileHeaderBytes = 76
	sealBytes       = 48
	sealOffset      = 4096 // a block of its own: sealing does not rewrite the header's
	dataOffset      = 8192
	// maxFileBytes keeps offsets in 32 bits.
	maxFileBytes = 2 << 30
)

// Frame layout.
const (
	frameMagic       = 0x46524d31 // "FRM1"
	frameHeaderBytes = 80
	frameAlign       = 8
	entryHeaderBytes = 13
	// maxFrameBytes bounds a frame, header included.
	maxFrameBytes = 256 << 20
)

// Frame kinds.
const (
	kindAppend   uint8 = 1
	kindCreate   uint8 = 2
	kindRemove   uint8 = 3
	kindTrim     uint8 = 4
	kindRelocate uint8 = 5
	kindNode     uint8 = 6
)

// Flags: which sections the body has, in this order, before the entries.
const (
	hasHardState uint8 = 1 << iota
	hasInstall
	hasCreation
	hasBase
	hasBlob
	hasDamage  // the entries counted in the header are lost: the body has none
	knownFlags = hasHardState | hasInstall | hasCreation | hasBase | hasBlob | hasDamage
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

var errFormat = errors.New("malformed")

// fileHeader is the first block of a file.
type fileHeader struct {
	store  ident.StoreID
	number uint64
	// epoch is random for each use of a file and repeated in each of its frames.
	epoch uint64
	// size is what the file may grow to, footer included.
	size int64
	// firstLSN is the file's first frame, prevLast the last frame of the log
	// before it. prevLast < firstLSN; what lies between was dropped by a recovery.
	firstLSN, prevLast uint64
}

func (h *fileHeader) encode() []byte {
	b := make([]byte, 0, fileHeaderBytes)
	b = append(b, fileMagic...)
	b = binary.BigEndian.AppendUint32(b, formatVersion)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = append(b, h.store[:]...)
	b = binary.BigEndian.AppendUint64(b, h.number)
	b = binary.BigEndian.AppendUint64(b, h.epoch)
	b = binary.BigEndian.AppendUint64(b, uint64(h.size))
	b = binary.BigEndian.AppendUint64(b, h.firstLSN)
	b = binary.BigEndian.AppendUint64(b, h.prevLast)
	return binary.BigEndian.AppendUint32(b, checksum(b))
}

func decodeFileHeader(b []byte) (fileHeader, error) {
	var h fileHeader
	if len(b) < fileHeaderBytes || string(b[:8]) != fileMagic {
		return h, fmt.Errorf("%w: not a raftlog file header", errFormat)
	}
	const sum = 72
	if checksum(b[:sum]) != binary.BigEndian.Uint32(b[sum:]) {
		return h, fmt.Errorf("%w: file header checksum", errFormat)
	}
	if err := format.Check(int(binary.BigEndian.Uint32(b[8:])), formatVersion); err != nil {
		return h, fmt.Errorf("%w: file format %w", errFormat, err)
	}
	copy(h.store[:], b[16:32])
	h.number = binary.BigEndian.Uint64(b[32:])
	h.epoch = binary.BigEndian.Uint64(b[40:])
	h.size = int64(binary.BigEndian.Uint64(b[48:]))
	h.firstLSN = binary.BigEndian.Uint64(b[56:])
	h.prevLast = binary.BigEndian.Uint64(b[64:])
	if h.size < dataOffset || h.size > maxFileBytes || h.firstLSN <= h.prevLast {
		return h, fmt.Errorf("%w: file header fields", errFormat)
	}
	return h, nil
}

// seal is the second block of a sealed file.
type seal struct {
	epoch     uint64
	footerOff int64
	footerLen int64
	lastLSN   uint64 // durable before the seal was written
	footerCRC uint32
}

func (s *seal) encode() []byte {
	b := make([]byte, 0, sealBytes)
	b = append(b, sealMagic...)
	b = binary.BigEndian.AppendUint64(b, s.epoch)
	b = binary.BigEndian.AppendUint64(b, uint64(s.footerOff))
	b = binary.BigEndian.AppendUint64(b, uint64(s.footerLen))
	b = binary.BigEndian.AppendUint64(b, s.lastLSN)
	b = binary.BigEndian.AppendUint32(b, s.footerCRC)
	return binary.BigEndian.AppendUint32(b, checksum(b))
}

// decodeSeal returns false for anything that is not a seal of a file with this
// header: zeros, remains of an earlier use, damage.
func decodeSeal(b []byte, h *fileHeader) (seal, bool) {
	var s seal
	const sum = sealBytes - 4
	if len(b) < sealBytes || string(b[:8]) != sealMagic ||
		checksum(b[:sum]) != binary.BigEndian.Uint32(b[sum:]) {
		return s, false
	}
	s.epoch = binary.BigEndian.Uint64(b[8:])
	s.footerOff = int64(binary.BigEndian.Uint64(b[16:]))
	s.footerLen = int64(binary.BigEndian.Uint64(b[24:]))
	s.lastLSN = binary.BigEndian.Uint64(b[32:])
	s.footerCRC = binary.BigEndian.Uint32(b[40:])
	ok := s.epoch == h.epoch && s.footerOff >= dataOffset && s.footerOff <= h.size &&
		s.footerLen >= 0 && s.footerLen <= h.size-s.footerOff && s.lastLSN+1 >= h.firstLSN
	return s, ok
}

// span is a run of entries of one term within a frame. bytes is its share of the frame.
type span struct {
	first ident.Index
	term  ident.Term
	n     uint32
	bytes uint32
}

// frame is a frame without its payloads: what the index needs. It comes from
// encoding, from scanning a file, or from a footer, and is applied the same way.
type frame struct {
	kind, flags uint8
	lsn         uint64
	durable     uint64 // durable_upto
	off         int64  // in its file
	size        int64  // with padding
	group       ident.GroupID
	replica     ident.ReplicaID
	first       ident.Index // of the entries; 0 if none
	n           uint32      // number of entries
	lastTerm    ident.Term  // of the last entry; 0 if none

	hs       HardState
	install  *Install
	creation *Creation
	base     ident.Index
	baseTerm ident.Term
	blob     []byte
	damage   string
	spans    []span
	entries  []Entry // only where the caller asked for them
	own      bool    // as Append.Own
}

func (f *frame) end() int64 { return f.off + f.size }

// bodyBytes returns the encoded size of the body, in 64 bits: it does not overflow.
func (f *frame) bodyBytes() int64 {
	var n int64
	if f.flags&hasHardState != 0 {
		n += 24
	}
	if f.flags&hasInstall != 0 {
		n += 28 + int64(len(f.install.ConfState))
	}
	if f.flags&hasCreation != 0 {
		n += 28 + int64(len(f.creation.Info))
	}
	if f.flags&hasBase != 0 {
		n += 16
	}
	if f.flags&hasBlob != 0 {
		n += 4 + int64(len(f.blob))
	}
	if f.flags&hasDamage != 0 {
		n += 4 + int64(len(f.damage))
	}
	for i := range f.entries {
		n += entryHeaderBytes + int64(len(f.entries[i].Data))
	}
	return n
}

// frameSize is the padded size of a frame with a body of n bytes.
func frameSize(n int64) int64 {
	return (frameHeaderBytes + n + frameAlign - 1) &^ (frameAlign - 1)
}

// appendFrame encodes f with its entries behind dst. f.size must be set by frameSize.
func appendFrame(dst []byte, f *frame, epoch uint64) []byte {
	start := len(dst)
	be := binary.BigEndian
	body := uint32(f.bodyBytes())
	dst = be.AppendUint32(dst, frameMagic)
	dst = be.AppendUint32(dst, body)
	dst = append(dst, f.kind, f.flags, 0, 0)
	dst = be.AppendUint32(dst, f.n)
	dst = be.AppendUint64(dst, f.lsn)
	dst = be.AppendUint64(dst, f.durable)
	dst = be.AppendUint64(dst, epoch)
	dst = be.AppendUint64(dst, uint64(f.group))
	dst = be.AppendUint64(dst, uint64(f.replica))
	dst = be.AppendUint64(dst, uint64(f.first))
	dst = be.AppendUint64(dst, uint64(f.lastTerm))
	dst = be.AppendUint32(dst, checksum(dst[start:]))
	dst = be.AppendUint32(dst, 0) // the frame's checksum, below
	dst = appendSections(dst, f)
	for i := range f.entries {
		e := &f.entries[i]
		dst = be.AppendUint32(dst, uint32(len(e.Data)))
		dst = append(dst, e.Type)
		dst = be.AppendUint64(dst, uint64(e.Term))
		dst = append(dst, e.Data...)
	}
	sum := checksum(dst[start : start+76])
	sum = crc32.Update(sum, castagnoli, dst[start+frameHeaderBytes:])
	be.PutUint32(dst[start+76:], sum)
	for int64(len(dst)-start) < f.size {
		dst = append(dst, 0)
	}
	return dst
}

func appendSections(dst []byte, f *frame) []byte {
	be := binary.BigEndian
	if f.flags&hasHardState != 0 {
		dst = be.AppendUint64(dst, uint64(f.hs.Term))
		dst = be.AppendUint64(dst, uint64(f.hs.Vote))
		dst = be.AppendUint64(dst, uint64(f.hs.Commit))
	}
	if f.flags&hasInstall != 0 {
		dst = be.AppendUint64(dst, uint64(f.install.Index))
		dst = be.AppendUint64(dst, uint64(f.install.Term))
		dst = be.AppendUint64(dst, f.install.Generation)
		dst = appendBytes(dst, f.install.ConfState)
	}
	if f.flags&hasCreation != 0 {
		dst = be.AppendUint64(dst, uint64(f.creation.CreatedAt))
		dst = be.AppendUint64(dst, uint64(f.creation.First))
		dst = be.AppendUint64(dst, uint64(f.creation.FirstTerm))
		dst = appendBytes(dst, f.creation.Info)
	}
	if f.flags&hasBase != 0 {
		dst = be.AppendUint64(dst, uint64(f.base))
		dst = be.AppendUint64(dst, uint64(f.baseTerm))
	}
	if f.flags&hasBlob != 0 {
		dst = appendBytes(dst, f.blob)
	}
	if f.flags&hasDamage != 0 {
		dst = append(be.AppendUint32(dst, uint32(len(f.damage))), f.damage...)
	}
	return dst
}

func appendBytes(dst, b []byte) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(b))), b...)
}

// decodeFrameHeader reads the fixed part. It checks the header's own checksum,
// so that a frame with a damaged body still tells its length and owner.
func decodeFrameHeader(b []byte, epoch uint64) (f frame, body int64, err error) {
	be := binary.BigEndian
	if len(b) < frameHeaderBytes || be.Uint32(b) != frameMagic || be.Uint64(b[32:]) != epoch {
		return f, 0, fmt.Errorf("%w: no frame of this file", errFormat)
	}
	if checksum(b[:72]) != be.Uint32(b[72:]) {
		return f, 0, fmt.Errorf("%w: frame header checksum", errFormat)
	}
	body = int64(be.Uint32(b[4:]))
	f.kind, f.flags = b[8], b[9]
	f.n = be.Uint32(b[12:])
	f.lsn = be.Uint64(b[16:])
	f.durable = be.Uint64(b[24:])
	f.group = ident.GroupID(be.Uint64(b[40:]))
	f.replica = ident.ReplicaID(be.Uint64(b[48:]))
	f.first = ident.Index(be.Uint64(b[56:]))
	f.lastTerm = ident.Term(be.Uint64(b[64:]))
	f.size = frameSize(body)
	if f.size > maxFrameBytes || f.lsn == 0 || f.durable >= f.lsn {
		return f, 0, fmt.Errorf("%w: frame header fields", errFormat)
	}
	return f, body, nil
}

// decodeFrame reads the whole frame at the start of b and checks everything.
// Metadata is copied out of b. With entries, their Data aliases b.
func decodeFrame(b []byte, epoch uint64, entries bool) (frame, error) {
	f, body, err := decodeFrameHeader(b, epoch)
	if err != nil {
		return f, err
	}
	if int64(len(b)) < frameHeaderBytes+body {
		return f, fmt.Errorf("%w: frame cut short", errFormat)
	}
	sum := checksum(b[:76])
	sum = crc32.Update(sum, castagnoli, b[frameHeaderBytes:frameHeaderBytes+body])
	if sum != binary.BigEndian.Uint32(b[76:]) {
		return f, fmt.Errorf("%w: frame checksum", errFormat)
	}
	c := cursor{b: b[frameHeaderBytes : frameHeaderBytes+body]}
	if err := f.decodeBody(&c, entries); err != nil {
		return f, err
	}
	return f, nil
}

func (f *frame) decodeBody(c *cursor, entries bool) error {
	if f.kind < kindAppend || f.kind > kindNode || f.flags&^knownFlags != 0 {
		return fmt.Errorf("%w: frame kind %d flags %#x", errFormat, f.kind, f.flags)
	}
	if f.flags&hasHardState != 0 {
		f.hs = HardState{ident.Term(c.u64()), ident.ReplicaID(c.u64()), ident.Index(c.u64())}
	}
	if f.flags&hasInstall != 0 {
		f.install = &Install{Index: ident.Index(c.u64()), Term: ident.Term(c.u64()), Generation: c.u64()}
		f.install.ConfState = bytes.Clone(c.bytes())
	}
	if f.flags&hasCreation != 0 {
		f.creation = &Creation{
			Replica: f.replica, Group: f.group,
			CreatedAt: ident.Index(c.u64()), First: ident.Index(c.u64()), FirstTerm: ident.Term(c.u64()),
		}
		f.creation.Info = bytes.Clone(c.bytes())
	}
	if f.flags&hasBase != 0 {
		f.base, f.baseTerm = ident.Index(c.u64()), ident.Term(c.u64())
	}
	if f.flags&hasBlob != 0 {
		f.blob = bytes.Clone(c.bytes())
	}
	if f.flags&hasDamage != 0 {
		f.damage = string(c.bytes())
	} else {
		f.decodeEntries(c, entries)
	}
	if c.bad || len(c.b) != 0 {
		return fmt.Errorf("%w: frame body", errFormat)
	}
	return f.checkKind()
}

// decodeEntries fills spans, and entries if asked.
func (f *frame) decodeEntries(c *cursor, entries bool) {
	if int64(f.n)*entryHeaderBytes > int64(len(c.b)) {
		c.bad = true
		return
	}
	if entries {
		f.entries = make([]Entry, 0, f.n)
	}
	for i := range f.n {
		size := c.u32()
		typ := c.u8()
		e := Entry{Index: f.first + ident.Index(i), Type: typ, Term: ident.Term(c.u64())}
		e.Data = c.take(int(size))
		if c.bad {
			return
		}
		f.spans = addSpan(f.spans, 0, &e)
		if entries {
			f.entries = append(f.entries, e)
		}
	}
	if f.n > 0 && f.spans[len(f.spans)-1].term != f.lastTerm {
		c.bad = true
	}
}

// addSpan adds e to the last of spans, or begins a new one. Those before start
// belong to other frames.
func addSpan(spans []span, start int, e *Entry) []span {
	size := uint32(entryHeaderBytes + len(e.Data))
	if len(spans) > start {
		if s := &spans[len(spans)-1]; s.term == e.Term {
			s.n++
			s.bytes += size
			return spans
		}
	}
	return append(spans, span{first: e.Index, term: e.Term, n: 1, bytes: size})
}

// checkKind holds what each kind must and must not carry.
func (f *frame) checkKind() error {
	must, may := uint8(0), uint8(0)
	switch f.kind {
	case kindAppend:
		must, may = hasHardState, hasInstall
	case kindCreate:
		must = hasCreation
	case kindTrim:
		must = hasBase
	case kindRelocate:
		may = hasHardState | hasInstall | hasCreation | hasBase | hasDamage
	case kindNode:
		must = hasBlob
	}
	ok := f.flags&must == must && f.flags&^(must|may) == 0
	ok = ok && (f.n == 0 || f.kind == kindAppend || f.kind == kindRelocate)
	ok = ok && (f.kind == kindNode) == (f.replica == 0)
	ok = ok && (f.n == 0) == (f.first == 0) && uint64(f.first)+uint64(f.n) >= uint64(f.first)
	if f.install != nil && f.kind == kindAppend && f.n > 0 {
		ok = ok && f.first == f.install.Index+1
	}
	if !ok {
		return fmt.Errorf("%w: frame kind %d with flags %#x, %d entries", errFormat, f.kind, f.flags, f.n)
	}
	return nil
}

// cursor reads a byte slice; once it ran out, bad stays true and all reads give zero.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || n < 0 || n > len(c.b) {
		c.bad = true
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) u8() uint8 {
	if v := c.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if v := c.take(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if v := c.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// bytes reads a length of four bytes and that many bytes.
func (c *cursor) bytes() []byte { return c.take(int(c.u32())) }

func (c *cursor) uvarint() uint64 {
	v, n := binary.Uvarint(c.b)
	if c.bad || n <= 0 {
		c.bad = true
		return 0
	}
	c.b = c.b[n:]
	return v
}
