package archive

import "sync/atomic"

// Stats are a Manager's counters since it was made.
type Stats struct {
	Uploads, Failures                   int64
	BytesSent, BytesReused, ObjectsSent int64
	SnapshotsRemoved, ObjectsRemoved    int64
	BytesFreed                          int64
	// LastSuccess is Unix seconds; 0: never.
	LastSuccess int64
	// Led is how many groups are watched, Behind of them have a checkpoint that is not uploaded yet.
	Led, Behind int
}

type stats struct {
	uploads, failures, bytesSent, bytesReused, objectsSent atomic.Int64
	snapshotsRemoved, objectsRemoved, bytesFreed, ok       atomic.Int64
}

func (s *stats) sent(u Uploaded) {
	s.bytesSent.Add(u.BytesSent)
	s.bytesReused.Add(u.BytesReused)
	s.objectsSent.Add(int64(u.ObjectsSent))
}

func (s *stats) collected(c Collected) {
	s.snapshotsRemoved.Add(int64(c.Snapshots))
	s.objectsRemoved.Add(int64(c.Objects))
	s.bytesFreed.Add(c.BytesFreed)
}

// Stats returns a copy.
func (m *Manager) Stats() Stats {
	s := &m.stats
	out := Stats{
		Uploads: s.uploads.Load(), Failures: s.failures.Load(),
		BytesSent: s.bytesSent.Load(), BytesReused: s.bytesReused.Load(), ObjectsSent: s.objectsSent.Load(),
		SnapshotsRemoved: s.snapshotsRemoved.Load(), ObjectsRemoved: s.objectsRemoved.Load(), BytesFreed: s.bytesFreed.Load(),
		LastSuccess: s.ok.Load(),
	}
	led := m.opt.Groups.Led()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range led {
		out.Led++
		if g := m.groups[l.Info.Group]; g == nil || g.term != l.Term || l.Checkpoint > g.uploaded {
			out.Behind++
		}
	}
	return out
}
