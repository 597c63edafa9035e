package check

import (
	"fmt"
	"sync"
)

// Foreign is the number of a record that nobody sent, or whose bytes are not those that were sent.
const Foreign = -1

// Ack is what a producer was told: its record Number lies at Offset.
type Ack struct {
	Offset int64
	Number int
}

// Read is what a consumer was given.
type Read struct {
	Offset int64
	Number int
}

// Partition is the history of one partition with one producer, which sent records 0 to
// Sent-1 in that order.
type Partition struct {
	Name string
	Sent int
	// Idempotent says that the producer was: no record may be there twice.
	Idempotent bool
	// AllKnown says that every record was acknowledged in the end.
	AllKnown bool
	Acks     []Ack
	// Reads is the whole partition as a consumer read it from its start.
	Reads []Read
}

// Check names what is wrong with the history.
func (p *Partition) Check() []Violation {
	r := &report{place: p.Name}
	at := p.checkReads(r)
	acked := map[int64]int{}
	for _, a := range p.Acks {
		if was, ok := acked[a.Offset]; ok && was != a.Number {
			r.add(Divergent, "offset %d was acknowledged for record %d and for %d", a.Offset, was, a.Number)
		}
		acked[a.Offset] = a.Number
		switch n, ok := at[a.Offset]; {
		case !ok:
			r.add(Lost, "record %d was acknowledged at offset %d, which does not exist", a.Number, a.Offset)
		case n != a.Number:
			r.add(Divergent, "offset %d was acknowledged for record %d and holds %d", a.Offset, a.Number, n)
		}
	}
	if p.AllKnown {
		there := map[int]bool{}
		for _, rd := range p.Reads {
			there[rd.Number] = true
		}
		for n := range p.Sent {
			if !there[n] {
				r.add(Lost, "record %d is nowhere", n)
			}
		}
	}
	return r.done()
}

// checkReads judges the partition's contents by themselves, and returns them by offset.
func (p *Partition) checkReads(r *report) map[int64]int {
	at := make(map[int64]int, len(p.Reads))
	first := map[int]int64{} // record -> its first offset
	highest := -1
	for i, rd := range p.Reads {
		if rd.Offset != int64(i) {
			if i == 0 || rd.Offset != p.Reads[i-1].Offset+1 {
				r.add(Lost, "offset %d is followed by %d", prev(p.Reads, i), rd.Offset)
			}
		}
		at[rd.Offset] = rd.Number
		if rd.Number < 0 || rd.Number >= p.Sent {
			r.add(Divergent, "offset %d holds a record that was not sent", rd.Offset)
			continue
		}
		was, again := first[rd.Number]
		switch {
		case again && p.Idempotent:
			r.add(Duplicate, "record %d lies at offsets %d and %d", rd.Number, was, rd.Offset)
		case again: // a retry of a producer that is not idempotent
		case rd.Number < highest:
			r.add(Reordered, "record %d at offset %d comes after record %d", rd.Number, rd.Offset, highest)
		}
		if !again {
			first[rd.Number] = rd.Offset
			highest = max(highest, rd.Number)
		}
	}
	return at
}

func prev(reads []Read, i int) int64 {
	if i == 0 {
		return -1
	}
	return reads[i-1].Offset
}

// Seen remembers which record an offset held when it was first seen, by whoever saw it.
type Seen struct {
	mu sync.Mutex
	at map[seenPlace]int
}

type seenPlace struct {
	partition string
	offset    int64
}

// See notes that who saw record number at an offset, and returns a violation if it was another before.
func (s *Seen) See(who, partition string, offset int64, number int) []Violation {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == nil {
		s.at = map[seenPlace]int{}
	}
	p := seenPlace{partition, offset}
	was, ok := s.at[p]
	if !ok {
		s.at[p] = number
		return nil
	}
	if was != number {
		return []Violation{{Divergent, partition, fmt.Sprintf("offset %d held record %d, and %s reads %d there", offset, was, who, number)}}
	}
	return nil
}

// Digest is what a node says of all that it stores of a partition.
type Digest struct {
	Node int
	End  int64
	Sum  string
}

// Replicas compares the digests of a partition's replicas.
func Replicas(partition string, digests []Digest) []Violation {
	r := &report{place: partition}
	for _, d := range digests {
		if f := digests[0]; d.End != f.End || d.Sum != f.Sum {
			r.add(Divergent, "node %d ends at %d with %.12s, node %d at %d with %.12s", f.Node, f.End, f.Sum, d.Node, d.End, d.Sum)
		}
	}
	return r.done()
}
