package broker

import (
	"context"
	"slices"
	"time"

	"chronik/internal/ident"
	"chronik/internal/metadata"
	"chronik/internal/partition"
)

// How often the node does what no event asks for.
const (
	gossipEvery    = time.Second
	retentionEvery = 30 * time.Second
	settingsEvery  = 5 * time.Second
	settleTime     = 20 * time.Millisecond
)

// announce tells the peers on a timer what this node leads and how much of its log is durable,
// and keeps in its own log what it saw of theirs.
func (s *session) announce(ctx context.Context) {
	t := time.NewTicker(gossipEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			s.gossip()
			s.forgetStores(s.meta.Image())
			s.memory.keep()
		}
	}
}

// manySightings is how many stores are remembered before replaced ones are forgotten.
const manySightings = 1024

// forgetStores drops what was seen of stores that the metadata has replaced, once
// there are many. Their replicas are retired, so they can break no promise if they
// come back; and a node that comes back with one is told that it was replaced.
func (s *session) forgetStores(img *metadata.Image) {
	if img.ClusterID == "" || len(s.memory.witness.Sightings()) <= manySightings {
		return
	}
	named := map[ident.StoreID]bool{}
	for _, b := range img.Brokers() {
		named[b.Store] = true
		for _, r := range img.PartitionsOn(b.Node) {
			named[r.Store] = true // lost ones count until they are replaced
		}
	}
	s.memory.witness.Forget(func(id ident.StoreID) bool { return named[id] })
}

// upkeep proposes, for the partitions this node leads, what retention drops and
// which settings apply may use.
func (s *session) upkeep(ctx context.Context) {
	retention := time.NewTicker(retentionEvery)
	settings := time.NewTicker(settingsEvery)
	defer retention.Stop()
	defer settings.Stop()
	for {
		image, leaders := s.meta.Changed(), s.leaders.Changed()
		s.proposeSettings(ctx, s.meta.Image())
		select {
		case <-ctx.Done():
			return
		case <-settings.C:
		case <-image:
			pause(ctx)
		case <-leaders:
			pause(ctx)
		case <-retention.C:
			s.retain(s.meta.Image())
			if err := s.sweepDonors(s.meta.Image()); err != nil {
				s.log.Warn("old replica directories not removed yet", "err", err)
			}
		}
	}
}

// pause lets changes that come together be looked at together.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(settleTime):
	}
}

// forgetDeleted has offsets of deleted topics dropped. It looks at each Image as it
// comes and waits for nothing else, as upkeep does: a topic that comes and goes
// between two looks would not be seen, and what is committed after the look at which
// a deletion is seen stays, for it is about a new topic of the same name.
func (s *session) forgetDeleted(ctx context.Context) {
	seen := s.meta.Image() // at the last look
	for {
		changed := s.meta.Changed()
		img := s.meta.Image()
		s.dropOffsets(seen, img)
		seen = img
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// dropOffsets has the offsets committed for deleted topics forgotten. Only topics that an earlier
// Image had count: one that this Image lacks may be one it does not know yet.
func (s *session) dropOffsets(old, cur *metadata.Image) {
	gone := metadata.DeletedTopics(old, cur)
	if len(gone) == 0 {
		return
	}
	for _, c := range s.registry.allCoordinators() {
		c.DropTopics(func(topic string) bool { return slices.Contains(gone, topic) })
	}
}

// topicOf finds the topic that a partition group belongs to.
func topicOf(img *metadata.Image, group ident.GroupID) *metadata.Topic {
	p := img.Partition(group)
	if p == nil {
		return nil
	}
	return img.Topic(p.Topic)
}

// led calls fn for each topic partition this node leads, with its topic.
func (s *session) led(img *metadata.Image, fn func(ident.GroupID, *partition.Partition, *metadata.Topic)) {
	for group, p := range s.registry.allPartitions() {
		if ok, _ := p.Leader(); !ok {
			continue
		}
		if t := topicOf(img, group); t != nil {
			fn(group, p, t)
		}
	}
}

// retain has old records dropped. A record's age is this node's date less the record's.
func (s *session) retain(img *metadata.Image) {
	now := s.b.opt.Wall()
	s.led(img, func(group ident.GroupID, p *partition.Partition, t *metadata.Topic) {
		set := img.Settings(t, s.node, nil)
		if !set.Delete {
			return
		}
		if start, proposed := p.Retain(now, partition.Retention{Ms: set.RetentionMs, Bytes: set.RetentionBytes}); proposed {
			s.log.Info("proposed a new log start", "topic", t.Name, "group", uint64(group), "offset", start)
		}
	})
}

// proposeSettings has a partition's group learn a change of the settings that
// apply uses. They enter by an entry, never by configuration (correctness rule 1).
func (s *session) proposeSettings(ctx context.Context, img *metadata.Image) {
	s.led(img, func(group ident.GroupID, p *partition.Partition, t *metadata.Topic) {
		set := img.Settings(t, s.node, nil)
		want := p.Config()
		want.SegmentBytes, want.SegmentMs = set.SegmentBytes, set.SegmentMs
		if want == p.Config() {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if err := p.SetConfig(ctx, want); err != nil && ctx.Err() == nil {
			s.log.Warn("settings not applied yet", "topic", t.Name, "group", uint64(group), "err", err)
		}
	})
}
