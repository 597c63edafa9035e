package raftgroup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"chronik/internal/ident"
	"chronik/internal/snapshot"
)

// archiveTimeout bounds the wait for the object store before a transfer begins.
const archiveTimeout = 10 * time.Second

// errNotServing says that this node has no bytes to give of a group.
var errNotServing = errors.New("no sound replica of the group here")

// peersFor lists the nodes that can give the bytes of a snapshot at index beside
// the leader: connected voters that hold the log up to there.
func (r *Replica) peersFor(to ident.ReplicaID, index ident.Index) []ident.NodeID {
	var peers []ident.NodeID
	receiver := r.nodeOf(uint64(to))
	for _, f := range r.followers() {
		if f.Replica == to || f.Node == receiver || f.Learner || !f.Alive || f.Halted || f.State != "StateReplicate" || f.Match < index {
			continue
		}
		if !slices.Contains(peers, f.Node) {
			peers = append(peers, f.Node)
		}
	}
	return peers
}

// findCheckpoint is the snapshot server's Finder: another node's follower wants
// this node's bytes of a group. A checkpoint below index is replaced by a newer one
// if that takes no longer than ctx allows.
func (h *Host) findCheckpoint(ctx context.Context, group ident.GroupID, index ident.Index) (string, ident.ReplicaID, error) {
	r := h.Replica(group)
	if r == nil || !r.released.Load() || r.dying.Load() || r.harmed.Load() {
		return "", 0, fmt.Errorf("group %d: %w", group, errNotServing)
	}
	if ident.Index(r.snapIndex.Load()) < index && ident.Index(r.applied.Load()) >= index {
		done := make(chan struct{}, 1) // told or not, nobody waits for the reader
		r.TakeCheckpoint(func(ident.Index, error) { done <- struct{}{} })
		select {
		case <-done:
		case <-ctx.Done():
		case <-h.ctx.Done():
		}
	}
	return snapshot.GenDir(r.base, r.liveGen.Load()), r.ID(), nil
}

// archive opens the object store's copy of the group, nil if there is none or it
// does not answer in time.
func (r *Replica) archive(ctx context.Context, size int64) snapshot.ChunkSource {
	open := r.h.opt.Archive
	if open == nil {
		return nil
	}
	type opened struct {
		src snapshot.ChunkSource
		err error
	}
	ctx, cancel := context.WithTimeout(ctx, archiveTimeout)
	defer cancel()
	ch := make(chan opened)
	go func() {
		src, err := open(ctx, r.spec.Group, size)
		select {
		case ch <- opened{src, err}:
		case <-ctx.Done():
			if src != nil {
				src.Close()
			}
		}
	}()
	var o opened
	select {
	case o = <-ch:
	case <-ctx.Done():
		o.err = ctx.Err()
	}
	if o.err != nil {
		if !errors.Is(o.err, context.Canceled) {
			r.log.Warn("snapshot's bytes are not taken from the object store", "err", o.err)
		}
		return nil
	}
	return o.src
}

// priority says how urgent an offered snapshot is for this replica. The leader
// and the peers it names are those that are in sync: with fewer than a write waits
// for, writes wait for this one.
func (r *Replica) priority(voter bool, offer snapshot.Offer) snapshot.Priority {
	need := r.h.opt.MinReplicas
	switch {
	case r.spec.Group == ident.MetaGroup:
		return snapshot.PriorityMeta
	case r.spec.Priority:
		return snapshot.PriorityCoordinator
	case !voter:
		return snapshot.PriorityLearner
	case need != nil && 1+len(offer.Peers) < need(r.spec):
		return snapshot.PriorityUnderMinISR
	}
	return snapshot.PriorityVoter
}
