// Package offline reads a node's disk as a start of the node would, without a node:
// tests ask it what a disk durably holds at some instant.
package offline

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"path"
	"strconv"

	"chronik/internal/ident"
	"chronik/internal/identity"
	"chronik/internal/partition"
	"chronik/internal/raftgroup"
	"chronik/internal/raftlog"
	"chronik/internal/record"
	"chronik/internal/segment"
	"chronik/internal/snapshot"
	"chronik/internal/vfs"
)

// ErrNotMember says that the disk is of no cluster: store.id is lost, or was never written.
var ErrNotMember = errors.New("not a member of a cluster")

// Place is where a record is.
type Place struct {
	Partition int32
	Offset    int64
}

// Holding is what a node's disk durably holds of a topic.
type Holding struct {
	Records map[Place]string
	// Lost says why a replica or the whole disk counts as holding nothing.
	Lost []error
}

// Options say what to read.
type Options struct {
	Node  ident.NodeID
	Dir   string // the data directory
	Topic string
	// FileBytes and MaxBytes are the raftlog's settings.
	FileBytes, MaxBytes int64
}

// Read reads a disk. It works on mem, which must be a clone of its own.
func Read(mem *vfs.MemFS, opt Options) (h Holding) {
	h.Records = map[Place]string{}
	fail := func(err error) Holding { h.Lost = append(h.Lost, fmt.Errorf("node %d: %w", opt.Node, err)); return h }
	st, err := identity.OpenStore(mem, opt.Dir, opt.Node)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = st.Close() }() // a clone's
	if st.State() != identity.Member {
		return fail(fmt.Errorf("%w: the store is %s", ErrNotMember, st.State()))
	}
	log, err := raftlog.Open(raftlog.Options{
		FS: mem, Dir: path.Join(opt.Dir, "raftlog"), Store: st.ID(), FileBytes: opt.FileBytes, MaxBytes: opt.MaxBytes, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return fail(err)
	}
	defer func() { _ = log.Close() }() // a clone's
	bad := map[ident.ReplicaID]error{}
	for _, q := range log.Recovery().Quarantined {
		bad[q.Replica] = q.Err
	}
	for _, c := range log.Creations() {
		if c.Info == nil {
			continue // the record is damaged: nothing says what it was
		}
		var spec raftgroup.Spec
		if err := json.Unmarshal(c.Info, &spec); err != nil {
			return fail(err)
		}
		if spec.Topic != opt.Topic {
			continue
		}
		err := bad[c.Replica]
		if err == nil {
			err = readReplica(mem, opt.Dir, log.Replica(c.Replica), c, spec, h.Records)
		}
		if err != nil {
			fail(fmt.Errorf("%s: %w", spec.Name, err))
		}
	}
	return h
}

// readReplica adds what a replica holds: its checkpoint's files, and what its log
// holds behind the checkpoint, applied.
func readReplica(mem *vfs.MemFS, data string, v *raftlog.View, c raftlog.Creation, spec raftgroup.Spec, into map[Place]string) error {
	gen := uint64(1)
	if in := v.Install(); in != nil {
		gen = in.Generation
	}
	dir := snapshot.GenDir(path.Join(data, "replicas", spec.Key+"."+strconv.FormatUint(uint64(spec.Replica), 10)), gen)
	at := c.First
	ck, blob, err := snapshot.Read(mem, dir)
	switch {
	case errors.Is(err, snapshot.ErrNoCheckpoint) && gen == 1:
	case err != nil:
		return err
	default:
		at = ck.Point.Index
	}
	first, last := v.FirstIndex(), v.LastIndex()
	if at+1 < first {
		return fmt.Errorf("the log begins at %d, the checkpoint is at %d", first, at)
	}
	if commit := v.HardState().Commit; max(commit, at) > max(last, first-1) {
		return fmt.Errorf("the log ends at %d, committed is %d, the checkpoint is at %d", last, commit, at)
	}
	files := make([]raftgroup.CaptureFile, 0, len(ck.Files))
	for _, f := range ck.Files {
		files = append(files, raftgroup.CaptureFile{Name: f.Name, Size: f.Size})
	}
	sm, err := partition.Opener{Handles: segment.NewHandles(0)}.Open(mem, dir, blob, files)
	if err != nil {
		return err
	}
	defer func() { _ = sm.Close() }() // a clone's
	if err := applyRest(sm, v, at, last); err != nil {
		return err
	}
	return readFiles(mem, dir, sm, spec.Partition, into)
}

// normalEntry is raft's EntryType of what state machines get.
const normalEntry = 0

// applyRest applies the log from behind the checkpoint to its end. What is acknowledged lies
// in front of everything that is not, so its offsets come out right.
func applyRest(sm raftgroup.StateMachine, v *raftlog.View, at, last ident.Index) error {
	if last <= at {
		return nil
	}
	entries, err := v.Entries(at+1, last+1, math.MaxInt64)
	if err != nil {
		return err
	}
	var apply []raftgroup.Entry
	for _, e := range entries {
		if e.Type == normalEntry && len(e.Data) > 0 {
			apply = append(apply, raftgroup.Entry{Index: e.Index, Term: e.Term, Data: e.Data})
		}
	}
	_, err = sm.Apply(apply)
	return err
}

// readFiles adds every record of the state's files.
func readFiles(fs vfs.FS, dir string, sm raftgroup.StateMachine, p int32, into map[Place]string) error {
	capt, err := sm.Capture()
	if err != nil {
		return err
	}
	defer capt.Release()
	for _, cf := range capt.Files() {
		f, err := fs.Open(path.Join(dir, cf.Name))
		if err != nil {
			return err
		}
		b := make([]byte, cf.Size)
		n, err := f.ReadAt(b, 0)
		_ = f.Close() // read only
		if n < len(b) {
			return fmt.Errorf("%s: %d of %d bytes: %w", cf.Name, n, len(b), errors.Join(err, io.ErrUnexpectedEOF))
		}
		err = record.ForEach(b, func(r record.Record) error {
			into[Place{p, r.Offset}] = string(r.Value)
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", cf.Name, err)
		}
	}
	return nil
}
