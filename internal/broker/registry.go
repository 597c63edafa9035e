package broker

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"chronik/internal/group"
	"chronik/internal/ident"
	"chronik/internal/metadata"
	"chronik/internal/partition"
	"chronik/internal/raftgroup"
)

// registry finds the serving side of a group by its id: what the host's replicas
// are to Kafka clients. Lookups take no lock that is held for long.
type registry struct {
	wall func() time.Time // the coordinators'

	mu         sync.RWMutex
	partitions map[ident.GroupID]*served[*partition.Partition]
	coords     map[ident.GroupID]*served[*group.Coordinator]
}

type served[T any] struct {
	replica ident.ReplicaID
	of      T
}

func newRegistry(wall func() time.Time) *registry {
	return &registry{
		wall:       wall,
		partitions: map[ident.GroupID]*served[*partition.Partition]{},
		coords:     map[ident.GroupID]*served[*group.Coordinator]{},
	}
}

func (g *registry) partition(id ident.GroupID) *partition.Partition {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if s := g.partitions[id]; s != nil {
		return s.of
	}
	return nil
}

// partitionOf is partition, if it is that replica.
func (g *registry) partitionOf(id ident.GroupID, replica ident.ReplicaID) *partition.Partition {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if s := g.partitions[id]; s != nil && s.replica == replica {
		return s.of
	}
	return nil
}

func (g *registry) coordinator(id ident.GroupID) *group.Coordinator {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if s := g.coords[id]; s != nil {
		return s.of
	}
	return nil
}

// adopt makes a replica's serving side known, if it has one.
func (g *registry) adopt(r *raftgroup.Replica, log *slog.Logger) error {
	sm := r.StateMachine()
	if sm == nil {
		return nil // quarantined: it could not be opened
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch sm := sm.(type) {
	case *partition.StateMachine:
		g.partitions[r.Group()] = &served[*partition.Partition]{r.ID(), partition.New(r, sm)}
	case *group.StateMachine:
		g.coords[r.Group()] = &served[*group.Coordinator]{r.ID(), group.New(r, sm, group.Options{Wall: g.wall, Logger: log})}
	case *metadata.StateMachine:
	default:
		return fmt.Errorf("replica %d has a state machine of unknown kind %T", r.ID(), sm)
	}
	return nil
}

// forget drops a replica that is removed or quarantined.
func (g *registry) forget(id ident.GroupID, replica ident.ReplicaID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.partitions[id]; s != nil && s.replica == replica {
		delete(g.partitions, id)
	}
	if s := g.coords[id]; s != nil && s.replica == replica {
		s.of.Close()
		delete(g.coords, id)
	}
}

func (g *registry) allPartitions() map[ident.GroupID]*partition.Partition {
	g.mu.RLock()
	defer g.mu.RUnlock()
	all := make(map[ident.GroupID]*partition.Partition, len(g.partitions))
	for id, s := range g.partitions {
		all[id] = s.of
	}
	return all
}

func (g *registry) allCoordinators() map[ident.GroupID]*group.Coordinator {
	g.mu.RLock()
	defer g.mu.RUnlock()
	all := make(map[ident.GroupID]*group.Coordinator, len(g.coords))
	for id, s := range g.coords {
		all[id] = s.of
	}
	return all
}

func (g *registry) close() {
	for _, c := range g.allCoordinators() {
		c.Close()
	}
}
