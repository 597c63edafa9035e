package crash

import (
	"errors"
	"fmt"

	"chronik/internal/ident"
	"chronik/internal/vfs"
	"chronik/test/offline"
)

// read reads node's disk as a start of the node would, without a node. It works on
// mem, which must be a clone of its own.
func read(node ident.NodeID, mem *vfs.MemFS) offline.Holding {
	return offline.Read(mem, offline.Options{Node: node, Dir: dataDir, Topic: topic, FileBytes: fileBytes, MaxBytes: logBytes})
}

// verdictOf tells what is wrong with the disks of a cluster after these records were
// acknowledged: each must be on a majority of them, at its offset.
func verdictOf(left []*vfs.MemFS, acks []acked) error {
	var held []map[offline.Place]string
	var lost []error
	for i, mem := range left {
		h := read(ident.NodeID(i+1), mem)
		held = append(held, h.Records)
		lost = append(lost, h.Lost...)
	}
	wrong := 0
	var first acked
	for _, a := range acks {
		n := 0
		for _, h := range held {
			if h[offline.Place{Partition: a.partition, Offset: a.offset}] == a.value {
				n++
			}
		}
		if n <= len(left)/2 {
			if wrong == 0 {
				first = a
			}
			wrong++
		}
	}
	if wrong == 0 && len(lost) == 0 {
		return nil
	}
	return &loss{records: wrong, of: len(acks), first: first, replicas: lost}
}

// loss is what a cut of the power has cost.
type loss struct {
	records, of int // acknowledged records that are not on a majority of the disks
	first       acked
	replicas    []error // replicas that cannot be opened, or whose disk cannot
}

func (l *loss) Error() string {
	return fmt.Sprintf("%d of %d acknowledged records are not on a majority of the disks, the first at offset %d of partition %d: %.40s (%v)",
		l.records, l.of, l.first.offset, l.first.partition, l.first.value, errors.Join(l.replicas...))
}
