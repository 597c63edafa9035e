package snapshot

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"

	"chronik/internal/ident"
)

// A node that caught up with the leader has the same segments, byte for byte. A
// receiver opens a pin of its own there, on whatever checkpoint that node has, and
// takes those chunks from it whose hashes are the manifest's.

// Finder says where a group's newest checkpoint on this node lies. It may wait,
// until ctx ends, for one that reaches index, and may answer with an older one.
type Finder func(ctx context.Context, group ident.GroupID, index ident.Index) (dir string, replica ident.ReplicaID, err error)

// SetFinder makes the Server answer MethodOpen; nil ends that.
func (s *Server) SetFinder(f Finder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finder = f
}

// openRequest asks for a pin: 1 version, 8 group, 8 index, 4 node that asks.
type openRequest struct {
	group ident.GroupID
	index ident.Index
	node  ident.NodeID
}

func (r openRequest) encode() []byte {
	be := binary.BigEndian
	b := make([]byte, 0, 21)
	b = append(b, reqVersion)
	b = be.AppendUint64(b, uint64(r.group))
	b = be.AppendUint64(b, uint64(r.index))
	return be.AppendUint32(b, uint32(r.node))
}

func decodeOpenRequest(b []byte) (openRequest, error) {
	d := decoder{buf: b}
	d.version(reqVersion)
	r := openRequest{group: ident.GroupID(d.u64("group")), index: ident.Index(d.u64("index"))}
	node := d.u32("node")
	if d.err == nil && (node == 0 || node > math.MaxInt32) { // 0 is this node's own pin, which does not expire
		d.off -= 4
		d.fail(fmt.Sprintf("node %d out of range", node))
	}
	r.node = ident.NodeID(node)
	if err := d.end(); err != nil {
		return openRequest{}, fmt.Errorf("snapshot request: %w", err)
	}
	return r, nil
}

// openedPin is the body of an ok reply to MethodOpen and MethodFiles: 8 pin,
// 8 index, 4 number of files; each 1 name length, name, 8 size. The checkpoint is the
// first of MethodFiles and not among those of MethodOpen.
type openedPin struct {
	pin   uint64
	index ident.Index
	files []DataFile
}

func (p openedPin) encode() []byte {
	be := binary.BigEndian
	b := []byte{byte(statusOK)}
	b = be.AppendUint64(b, p.pin)
	b = be.AppendUint64(b, uint64(p.index))
	b = be.AppendUint32(b, uint32(len(p.files)))
	for _, f := range p.files {
		b = be.AppendUint64(appendName(b, f.Name), uint64(f.Size))
	}
	return b
}

func decodeOpenedPin(b []byte) (openedPin, error) {
	d := decoder{buf: b}
	p := openedPin{pin: d.u64("pin"), index: ident.Index(d.u64("index"))}
	n := int(d.u32("file count"))
	const least = 1 + 1 + 8
	if d.err == nil && (n > MaxFiles+1 || n > (len(b)-d.off)/least) {
		d.off -= 4
		d.fail(fmt.Sprintf("file count %d out of range", n))
	}
	for i := 0; i < n && d.err == nil; i++ {
		p.files = append(p.files, DataFile{Name: d.name("file name"), Size: d.size("file size")})
	}
	if err := d.end(); err != nil {
		return openedPin{}, fmt.Errorf("opened pin: %w", err)
	}
	return p, nil
}

// openReply pins the newest checkpoint of a group here for a node that fetches
// another node's snapshot. A pin that it had opened before ends.
func (s *Server) openReply(ctx context.Context, r openRequest) []byte {
	s.mu.Lock()
	find := s.finder
	s.mu.Unlock()
	if find == nil {
		return textReply(statusError, "this node gives no pins")
	}
	ctx, cancel := context.WithTimeout(ctx, longPoll)
	defer cancel()
	dir, replica, err := find(ctx, r.group, r.index)
	if err != nil {
		return textReply(statusError, err.Error())
	}
	p, err := s.pin(r.group, replica, dir, r.node, true)
	if err != nil {
		return textReply(statusError, err.Error())
	}
	out := openedPin{pin: p.ID, index: p.Point.Index}
	for _, f := range p.files {
		if f.name != CheckpointName {
			out.files = append(out.files, DataFile{Name: f.name, Size: f.size})
		}
	}
	return out.encode()
}

// endOpened ends the pins that node opened in a group, but one.
func (s *Server) endOpened(group ident.GroupID, node ident.NodeID, but uint64) {
	var old []uint64
	s.mu.Lock()
	for id, p := range s.pins {
		if p.opened && p.Group == group && p.To == node && id != but {
			old = append(old, id)
		}
	}
	s.mu.Unlock()
	for _, id := range old {
		s.Unpin(id)
	}
}
