package group

import (
	"container/heap"
	"time"
)

type timerKind uint8

const (
	timerSession   timerKind = iota // a member's heartbeats
	timerPending                    // a member id given out and not used yet
	timerJoin                       // the phase in which members join ends
	timerSync                       // the phase in which members ask for their assignment ends
	timerEmpty                      // replicate again that the group is empty
	timerRetention                  // look for offsets that have expired
)

// timer is one deadline of a Coordinator. It is never moved or cancelled: when it
// comes up, it looks whether it still means anything, and where, if later, the
// deadline lies now.
type timer struct {
	at     time.Time
	kind   timerKind
	group  *liveGroup
	member *member
	id     string // timerPending: the member id
	seq    uint64 // timerJoin: liveGroup.joinSeq; timerSync, timerEmpty: its generation
}

// timerHeap orders timers by time: one heap and one time.Timer a Coordinator.
type timerHeap []*timer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h timerHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *timerHeap) Push(x any)        { *h = append(*h, x.(*timer)) }
func (h *timerHeap) Pop() any {
	old := *h
	n := len(old) - 1
	t := old[n]
	old[n] = nil
	*h = old[:n]
	return t
}

// schedule adds a timer. mu is held.
func (c *Coordinator) schedule(t *timer) {
	heap.Push(&c.timers, t)
	c.setAlarm()
}

// setAlarm makes the alarm fire at the earliest timer.
func (c *Coordinator) setAlarm() {
	if len(c.timers) == 0 {
		return
	}
	at := c.timers[0].at
	if !c.alarmd.IsZero() && !at.Before(c.alarmd) {
		return // it fires early enough and looks again
	}
	c.alarmd = at
	d := max(time.Until(at), 0)
	if c.alarm == nil {
		c.alarm = time.AfterFunc(d, c.fire)
	} else {
		c.alarm.Reset(d)
	}
}

// fire runs what is due.
func (c *Coordinator) fire() {
	c.locked(func() {
		c.alarmd = time.Time{}
		if c.phase != phaseReady {
			return // the next load sets it again
		}
		now := time.Now()
		for len(c.timers) > 0 && !c.timers[0].at.After(now) {
			c.due(heap.Pop(&c.timers).(*timer), now)
		}
		c.setAlarm()
	})
}

// due handles one timer that came up.
func (c *Coordinator) due(t *timer, now time.Time) {
	if t.kind == timerRetention {
		c.startSweep(c.expired())
		c.schedule(&timer{at: now.Add(c.opt.RetentionInterval), kind: timerRetention})
		return
	}
	g := t.group
	if c.groups[g.id] != g {
		return
	}
	switch t.kind {
	case timerSession:
		c.sessionDue(g, t, now)
	case timerPending:
		if at, ok := g.pending[t.id]; ok && !at.After(now) {
			delete(g.pending, t.id)
			c.maybeCompleteJoin(g)
			c.forgetIfIdle(g)
		}
	case timerJoin:
		if g.state == PreparingRebalance && t.seq == g.joinSeq {
			c.joinDue(g, now)
		}
	case timerSync:
		if (g.state == CompletingRebalance || g.state == Stable) && int32(t.seq) == g.generation {
			c.syncDue(g)
		}
	case timerEmpty:
		if g.emptyAt(int32(t.seq)) {
			c.storeEmpty(g)
		}
	case timerRetention: // above
	}
}

// touch starts a member's session anew. A member has one timer in the heap: it
// finds the new deadline when it comes up, unless that lies before it.
func (c *Coordinator) touch(g *liveGroup, m *member, now time.Time) {
	m.deadline = now.Add(m.session)
	if m.timer == nil || m.deadline.Before(m.timer.at) {
		m.timer = &timer{at: m.deadline, kind: timerSession, group: g, member: m}
		c.schedule(m.timer)
	}
}

func (c *Coordinator) sessionDue(g *liveGroup, t *timer, now time.Time) {
	m := t.member
	if g.members[m.id] != m || m.timer != t {
		return
	}
	waits := m.join != nil || m.sync != nil // a rebalance keeps it waiting, not the other way
	if waits {
		m.deadline = now.Add(m.session)
	}
	if m.deadline.After(now) {
		m.timer = &timer{at: m.deadline, kind: timerSession, group: g, member: m}
		c.schedule(m.timer)
		return
	}
	c.log.Info("member's session ended", "group", g.id, "member", m.id)
	c.removeMember(g, m)
}
