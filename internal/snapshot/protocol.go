package snapshot

import (
	"encoding/binary"
	"fmt"
	"math"

	"chronik/internal/ident"
)

// Methods of Server.Handle, carried by the transport's Call.
const (
	MethodManifest   = "snapshot.manifest" // a range of the encoded manifest
	MethodFiles      = "snapshot.files"    // names and sizes of the pin's files
	MethodHashes     = "snapshot.hashes"   // hashes of a file's chunks, as far as they are known
	MethodChunk      = "snapshot.chunk"    // a range of a file
	MethodPrefixHash = "snapshot.prefix"   // hashes of a chunk's beginning
	MethodOpen       = "snapshot.open"     // a pin of the receiver's own, on another node
	MethodRenew      = "snapshot.renew"    // the receiver is alive: queued, or busy with its own disk
	MethodDone       = "snapshot.done"     // the pin is not needed any more
	// MethodPrefix starts every method.
	MethodPrefix = "snapshot."
)

// A request is: 1 version, 8 pin, 8 offset, 4 length, 1 name length, name.
// MethodHashes counts offset and length in chunks. Fields that a method does not
// need are zero. MethodPrefixHash and MethodOpen
// have their own, prefixRequest and openRequest.
//
// A reply is one status byte and a body:
//
//	ok     manifest: 8 total, 32 ManifestID, the bytes; chunk: the bytes, at
//	       least 1 and at most the length asked; prefix: 32 bytes for each length;
//	       open, files: an openedPin; hashes: 32 bytes each, at least one; else empty
//	wait   8 progress counter: ask again; it moves while the source works for this pin
//	gone   text: the pin does not exist (any more)
//	error  text
const reqVersion = 1

type status uint8

const (
	statusOK status = iota
	statusWait
	statusGone
	statusError
)

// errorTextBytes bounds the text of a refusal.
const errorTextBytes = 1 << 10

type request struct {
	pin    uint64
	offset int64
	length int
	name   string
}

func (r request) encode() []byte {
	be := binary.BigEndian
	b := make([]byte, 0, 22+len(r.name))
	b = append(b, reqVersion)
	b = be.AppendUint64(b, r.pin)
	b = be.AppendUint64(b, uint64(r.offset))
	b = be.AppendUint32(b, uint32(r.length))
	return appendName(b, r.name)
}

func decodeRequest(b []byte) (request, error) {
	d := decoder{buf: b}
	d.version(reqVersion)
	r := request{pin: d.u64("pin"), offset: d.size("offset")}
	n := d.u32("length")
	if d.err == nil && n > ChunkBytes {
		d.off -= 4
		d.fail(fmt.Sprintf("length %d above %d", n, ChunkBytes))
	}
	r.length = int(n)
	if d.err == nil && d.off < len(b) && b[d.off] != 0 {
		r.name = d.name("file name")
	} else {
		d.u8("file name")
	}
	if err := d.end(); err != nil {
		return request{}, fmt.Errorf("snapshot request: %w", err)
	}
	return r, nil
}

func waitReply(progress uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{byte(statusWait)}, progress)
}

func textReply(s status, text string) []byte {
	return append([]byte{byte(s)}, text[:min(len(text), errorTextBytes)]...)
}

// manifestPage is the body of an ok reply to MethodManifest.
type manifestPage struct {
	total int64
	id    ManifestID
	data  []byte
}

func (p manifestPage) encode() []byte {
	b := make([]byte, 0, 1+8+len(p.id)+len(p.data))
	b = binary.BigEndian.AppendUint64(append(b, byte(statusOK)), uint64(p.total))
	return append(append(b, p.id[:]...), p.data...)
}

func decodeManifestPage(b []byte) (manifestPage, error) {
	d := decoder{buf: b}
	p := manifestPage{total: d.size("manifest length")}
	copy(p.id[:], d.bytes(len(p.id), "manifest id"))
	if d.err != nil {
		return p, d.err
	}
	if p.total > MaxManifestBytes {
		return p, fmt.Errorf("%w: manifest of %d bytes", ErrTooLarge, p.total)
	}
	p.data = b[d.off:]
	return p, nil
}

// OfferSource is a node that serves the offered snapshot, and its pin there.
type OfferSource struct {
	Node ident.NodeID
	Pin  uint64
}

// Offer is what a leader sends instead of a snapshot's bytes.
type Offer struct {
	Group ident.GroupID
	Index ident.Index
	Term  ident.Term
	// Bytes and Files say how large the snapshot is, whatever the receiver already has.
	Bytes int64
	Files int
	// Sources are asked in this order; the first gives the manifest.
	Sources []OfferSource
	// Peers are nodes that have caught up with the first source. They have no pin
	// of the offered snapshot, a receiver opens one of its own (MethodOpen).
	Peers []ident.NodeID
}

// maxSources bounds Sources and Peers together.
const maxSources = 16

// Append encodes o: 1 version, 8 group, 8 index, 8 term, 8 bytes, 4 files,
// 1 number of sources; each 4 node, 8 pin. Peers are sources whose pin is 0:
// receivers that do not know of them find no such pin there and go on.
func (o Offer) Append(dst []byte) []byte {
	be := binary.BigEndian
	dst = append(dst, reqVersion)
	dst = be.AppendUint64(dst, uint64(o.Group))
	dst = be.AppendUint64(dst, uint64(o.Index))
	dst = be.AppendUint64(dst, uint64(o.Term))
	dst = be.AppendUint64(dst, uint64(o.Bytes))
	dst = be.AppendUint32(dst, uint32(o.Files))
	sources := o.Sources[:min(len(o.Sources), maxSources)]
	peers := o.Peers[:min(len(o.Peers), maxSources-len(sources))]
	dst = append(dst, byte(len(sources)+len(peers)))
	for _, s := range sources {
		dst = be.AppendUint32(dst, uint32(s.Node))
		dst = be.AppendUint64(dst, s.Pin)
	}
	for _, n := range peers {
		dst = be.AppendUint32(dst, uint32(n))
		dst = be.AppendUint64(dst, 0)
	}
	return dst
}

// DecodeOffer reads an encoded offer, all of b.
func DecodeOffer(b []byte) (Offer, error) {
	d := decoder{buf: b}
	d.version(reqVersion)
	o := Offer{
		Group: ident.GroupID(d.u64("group")),
		Index: ident.Index(d.u64("index")),
		Term:  ident.Term(d.u64("term")),
		Bytes: d.size("bytes"),
		Files: int(d.u32("files")),
	}
	n := int(d.u8("source count"))
	if d.err == nil && (n == 0 || n > maxSources || o.Files > MaxFiles+1) {
		d.off--
		d.fail(fmt.Sprintf("%d sources, %d files: out of range", n, o.Files))
	}
	for range n {
		node := d.u32("node")
		if d.err == nil && (node == 0 || node > math.MaxInt32) {
			d.off -= 4
			d.fail(fmt.Sprintf("node %d out of range", node))
		}
		pin := d.u64("pin")
		if d.err == nil && pin != 0 && len(o.Peers) > 0 {
			d.off -= 8
			d.fail("a source behind the peers")
		}
		if d.err != nil {
			break
		}
		if pin == 0 {
			o.Peers = append(o.Peers, ident.NodeID(node))
		} else {
			o.Sources = append(o.Sources, OfferSource{Node: ident.NodeID(node), Pin: pin})
		}
	}
	if d.err == nil && len(o.Sources) == 0 {
		d.fail("no source")
	}
	if err := d.end(); err != nil {
		return Offer{}, fmt.Errorf("snapshot offer: %w", err)
	}
	return o, nil
}
