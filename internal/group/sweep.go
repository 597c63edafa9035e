package group

// sweepBatch is how many offsets one entry deletes, sweepBytes about what their names take at most.
const (
	sweepBatch = 1000
	sweepBytes = 1 << 20
)

// verdict says of an offset whether to delete it. It may be called without a lock.
// live are the groups that have members now.
type verdict func(st *state, live map[string]bool, k offsetKey, o *Offset) bool

// expired judges by age, at the leader's time: the offsets of a group without
// members go when neither a commit nor a member was seen for the retention time.
// A commit with its own expiry goes by that.
func (c *Coordinator) expired() verdict {
	nowMs, keepMs := c.nowMs(), c.opt.OffsetsRetention.Milliseconds()
	return func(st *state, live map[string]bool, k offsetKey, o *Offset) bool {
		if live[k.group] {
			return false
		}
		since := o.CommitMs
		if meta := st.meta(k.group); meta != nil {
			if len(meta.Members) > 0 {
				return false
			}
			since = max(since, meta.EmptySinceMs)
		}
		if o.ExpireMs > 0 {
			return nowMs >= o.ExpireMs
		}
		return nowMs-since >= keepMs
	}
}

// sweep is a scan that waits for its turn. Its state is that of the moment it was
// asked for: what is committed later has another time and stays (the same one while a new leader's
// clock is behind the old one's: then what is committed between the look and the deletion goes).
type sweep struct {
	st     *state
	judged verdict
}

// DropTopics deletes all offsets of topics that are gone, in the background, but
// those committed after the call: they are a new topic's of the same name. It
// does nothing unless this Coordinator serves, so the next one must be asked, too.
// gone must not block.
func (c *Coordinator) DropTopics(gone func(topic string) bool) {
	last, verdict := "", false
	c.locked(func() {
		c.startSweep(func(_ *state, _ map[string]bool, k offsetKey, _ *Offset) bool {
			if k.topic != last {
				last, verdict = k.topic, gone(k.topic)
			}
			return verdict
		})
	})
}

// startSweep deletes what v condemns, in the background: the state is looked at
// as of the call, and apply deletes only what was not committed anew since. mu is held.
func (c *Coordinator) startSweep(v verdict) {
	if c.phase != phaseReady {
		return
	}
	c.sweeps = append(c.sweeps, sweep{c.sm.view(), v})
	if c.sweeping {
		return
	}
	c.sweeping = true
	c.spawn(func() {
		for {
			c.mu.Lock()
			if len(c.sweeps) == 0 {
				c.sweeping = false
				c.mu.Unlock()
				return
			}
			next := c.sweeps[0]
			c.sweeps = c.sweeps[1:]
			live := map[string]bool{}
			for id, g := range c.groups {
				live[id] = len(g.members) > 0 || len(g.pending) > 0
			}
			c.mu.Unlock()
			c.runSweep(next, live)
		}
	})
}

func (c *Coordinator) runSweep(sw sweep, live map[string]bool) {
	var ds []deleted
	total, size := 0, 0
	flush := func() {
		total += len(ds)
		size = 0
		c.locked(func() {
			if c.phase == phaseReady {
				c.propose(encodeDeleteOffsets(c.nowMs(), ds), func(int16) {})
			}
		})
		ds = ds[:0]
	}
	sw.st.offsets.Scan(func(key string, o *Offset) bool {
		if k := decodeKey(key); sw.judged(sw.st, live, k, o) {
			size += len(key)
			if ds = append(ds, deleted{k, o.CommitMs}); len(ds) == sweepBatch || size > sweepBytes {
				flush()
			}
		}
		return true
	})
	if len(ds) > 0 {
		flush()
	}
	bare := c.sweepGroups(sw.st, live)
	if total+bare > 0 {
		c.log.Info("deleted expired offsets", "offsets", total, "groups", bare)
	}
}

// sweepGroups deletes groups that have neither members nor offsets.
func (c *Coordinator) sweepGroups(st *state, live map[string]bool) int {
	n := 0
	st.groups.Scan(func(id string, g *groupState) bool {
		if g.meta == nil || len(g.meta.Members) > 0 || g.offsets > 0 || live[id] {
			return true
		}
		c.locked(func() {
			if l := c.groups[id]; c.phase != phaseReady || l != nil && (len(l.members) > 0 || len(l.pending) > 0) {
				return
			}
			n++
			c.propose(encodeDeleteGroup(c.nowMs(), id, true), func(code int16) {
				if code == 0 {
					c.forget(id)
				}
			})
		})
		return true
	})
	return n
}
