package main

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"chronik/internal/raftgroup"
	"chronik/internal/vfs"
)

// fault is something that happens to the cluster at a step and ends after a while.
type fault struct {
	w    *world
	kind string
	step int
	// node, peer, percent and n are what the kind makes of them; span is how long it lasts.
	node, peer, percent, n int
	span                   time.Duration

	ctx    context.Context
	cancel context.CancelFunc
}

func (f *fault) String() string {
	return fmt.Sprintf("%s at=%d node=%d peer=%d percent=%d n=%d span=%v", f.kind, f.step, f.node, f.peer, f.percent, f.n, f.span)
}

// kinds are the faults, each as often as it stands here.
var kinds = []string{
	"kill", "kill", "kill", "power", "power", "power", "power-all", "power-all", "kill-all", "roll", "pause", "pause",
	"cut", "isolate", "isolate", "hole", "hole", "frames", "frames", "frames", "crawl", "delay", "slow-disk", "hung-disk", "full-disk", "bad-disk",
	"wipe", "wipe", "restore", "restore", "flip", "flip", "clock", "date", "date", "checkpoint", "delete-records", "transfer", "transfer", "cut-of-power-while-starting",
}

// makePlan draws the faults of a run.
func makePlan(w *world) []*fault {
	rng := w.rand("plan")
	var plan []*fault
	for range 3 + rng.IntN(6) {
		f := &fault{
			w: w, kind: kinds[rng.IntN(len(kinds))], step: 10 + rng.IntN(max(1, defaultSteps-40)), node: 1 + rng.IntN(len(w.nodes)),
			percent: []int{0, 50, 100}[rng.IntN(3)], n: rng.IntN(1 << 30), span: time.Duration(200+rng.IntN(3000)) * time.Millisecond,
		}
		if f.step >= w.opt.steps { // else it would never begin
			from := min(10, w.opt.steps-1)
			f.step = from + (f.step-from)%(w.opt.steps-from)
		}
		f.peer = 1 + (f.node+rng.IntN(len(w.nodes)-1))%len(w.nodes)
		f.ctx, f.cancel = context.WithCancel(context.Background())
		plan = append(plan, f)
	}
	return plan
}

// last lasts until the fault's time is over or everything is mended.
func (f *fault) last() {
	t := time.NewTimer(f.span)
	defer t.Stop()
	select {
	case <-t.C:
	case <-f.ctx.Done():
	}
}

func (f *fault) inject() {
	if f.kind == "restore" {
		calm.Lock()
		defer calm.Unlock()
	} else {
		calm.RLock()
		defer calm.RUnlock()
	}
	if f.ctx.Err() != nil {
		return
	}
	w, n := f.w, f.w.nodes[f.node-1]
	w.say("fault "+f.String(), "fault", f.kind)
	w.count("fault "+f.kind, 1)
	defer func() { w.say("end of fault " + f.String()) }()
	switch f.kind {
	case "kill":
		f.down(100, n)
	case "power":
		f.down(f.percent, n)
	case "power-all":
		f.down(f.percent, w.nodes...)
	case "kill-all":
		f.down(100, w.nodes...)
	case "cut-of-power-while-starting":
		f.span /= 20
		f.down(f.percent, n)
		f.last()
		f.down(f.percent, n)
	case "roll":
		n.hold()
		n.stop()
		f.last()
		n.release()
	case "pause":
		f.pause(n)
	case "cut":
		w.net.setCut(f.node, f.peer, true)
		f.last()
		w.net.setCut(f.node, f.peer, false)
	case "isolate":
		f.isolate(n)
	case "hole":
		w.net.setHole(f.node, f.peer, true)
		f.last()
		w.net.setHole(f.node, f.peer, false)
	case "frames":
		w.setChances(chances{lost: f.n % 30, twice: f.n / 30 % 20, late: f.n / 600 % 30})
		f.last()
		w.setChances(chances{})
	default:
		f.injectMore(n)
	}
}

func (f *fault) injectMore(n *node) {
	w := f.w
	switch f.kind {
	case "crawl":
		w.net.setRate(f.node, f.peer, int64(8+f.n%20000))
		f.last()
		w.net.setRate(f.node, f.peer, 0)
	case "delay":
		w.net.setDelay(time.Millisecond, time.Duration(2+f.n%150)*time.Millisecond)
		f.last()
		w.net.setDelay(50*time.Microsecond, 400*time.Microsecond)
	case "slow-disk":
		n.disk.setSlow(2 + f.n%60)
		f.last()
		n.disk.setSlow(0)
	case "hung-disk":
		n.disk.setHung(true)
		f.last()
		n.disk.setHung(false)
	case "full-disk":
		n.disk.setRoom(int64(1 + f.n%(3*logFileBytes)))
		f.last()
		n.disk.setRoom(0)
	case "bad-disk":
		n.disk.setFail(1 + f.n%40)
		f.last()
		n.disk.setFail(0)
	case "clock":
		jumpClock(int64(f.n-1<<29) * 1600) // up to a quarter of an hour either way: records from the far future are refused
	case "date":
		// This node's alone, from half an hour behind to three days ahead: further behind, it would refuse clients' records.
		n.ahead.Store(int64(f.n)*(72*time.Hour.Milliseconds())>>30*int64(time.Millisecond) - int64(30*time.Minute))
	case "checkpoint":
		for _, n := range w.nodes {
			if src := n.source(); src != nil {
				ctx, cancel := context.WithTimeout(f.ctx, f.span)
				_, _ = src.TakeCheckpoint(ctx, "", -1, false) // while other things break it may fail
				cancel()
			}
		}
	case "transfer":
		f.transfer()
	case "delete-records":
		w.load.deleteRecords(f.ctx, int32(f.n%partitions))
	case "wipe":
		f.lose(n, n.disk.wipe)
	case "restore":
		f.restore(n)
	case "flip":
		f.lose(n, func() {
			n.disk.flip()
			n.setSpoiled(strings.HasPrefix(flip(f, n.disk.files()), logDir))
		})
		if f.w.whole() == nil { // what it did not refuse at once it does not refuse later
			n.setSpoiled(false)
		}
	}
}

// transfer hands one group's leadership to another voter, whatever state that is in, as a leader does that finds another
// better placed. The leader is one on the fault's node, or on the next that leads a group.
func (f *fault) transfer() {
	for i := range f.w.nodes {
		r := f.w.nodes[(f.node-1+i)%len(f.w.nodes)].current()
		if r == nil {
			continue
		}
		host, _ := r.groups()
		if host == nil {
			continue
		}
		led := slices.DeleteFunc(host.Replicas(), func(r *raftgroup.Replica) bool { return !r.IsLeader() })
		if len(led) == 0 {
			continue
		}
		from := led[f.n%len(led)]
		voters := slices.DeleteFunc(from.Status().Followers, func(f raftgroup.Follower) bool { return f.Learner })
		if len(voters) == 0 {
			continue
		}
		to := voters[f.n/len(led)%len(voters)]
		f.w.say(fmt.Sprintf("leadership of group %d from replica %d to %d", from.Group(), from.ID(), to.Replica))
		from.TransferLeadership(to.Replica)
		return
	}
	f.w.count("fault without effect "+f.kind, 1)
}

// down ends nodes at once and keeps them down for a while.
func (f *fault) down(percent int, nodes ...*node) {
	for _, n := range nodes {
		n.hold()
		n.kill(percent)
	}
	f.last()
	for _, n := range nodes {
		n.release()
	}
}

// pause is what SIGSTOP does: nothing comes out of the node, nothing goes in, and its disk stands still.
func (f *fault) pause(n *node) {
	others := f.w.others(n.id)
	n.disk.setHung(true)
	for _, o := range others {
		f.w.net.setHole(n.id, o, true)
		f.w.net.setHole(o, n.id, true)
	}
	f.last()
	for _, o := range others {
		f.w.net.setHole(n.id, o, false)
		f.w.net.setHole(o, n.id, false)
	}
	n.disk.setHung(false)
}

// isolate parts a node from the other nodes, and every second time from clients.
func (f *fault) isolate(n *node) {
	others := f.w.others(n.id)
	if f.n%2 == 0 {
		others = others[1:]
	}
	for _, o := range others {
		f.w.net.setCut(n.id, o, true)
	}
	f.last()
	for _, o := range others {
		f.w.net.setCut(n.id, o, false)
	}
}

// others are the clients and all nodes but one.
func (w *world) others(id int) []int {
	out := []int{0}
	for _, n := range w.nodes {
		if n.id != id {
			out = append(out, n.id)
		}
	}
	return out
}

// losing is held by the one fault that may take bytes which were durable: a majority
// of disks is enough for nothing to be lost, and two such faults at once could leave less.
var losing sync.Mutex

// lose takes bytes from a node's disk, once the cluster is whole, and waits until it is whole again.
func (f *fault) lose(n *node, damage func()) {
	for !losing.TryLock() {
		if !f.rest() {
			return
		}
	}
	defer losing.Unlock()
	if !f.awaitWhole() {
		f.w.count("fault without effect "+f.kind, 1)
		return
	}
	n.hold()
	n.kill(f.percent)
	damage()
	f.w.say("disk damaged")
	if f.n%3 > 0 {
		f.last()
	}
	n.release()
	f.awaitWhole()
	n.readBack()
	f.awaitWhole()
}

// calm is held alone by a restore: a copy from within a node's last run is found out by peers
// that were there all the time since (docs/guarantees.md), so nothing else happens meanwhile.
var calm sync.RWMutex

// restore puts a copy of a node's disk back after a while.
func (f *fault) restore(n *node) {
	if !f.awaitWhole() {
		return
	}
	old := n.disk.durable()
	f.last()
	f.lose(n, func() { n.disk.put(old) })
}

// awaitWhole waits until nothing is lost or behind.
func (f *fault) awaitWhole() bool {
	for f.w.whole() != nil {
		if !f.rest() {
			return false
		}
	}
	return true
}

func (f *fault) rest() bool {
	select {
	case <-time.After(step):
		return true
	case <-f.ctx.Done():
		return false
	}
}

const logDir = "data/raftlog/"

// flip turns one bit of a file and returns its name, if there was one. Of the raftlog the last file is left alone: a bad frame at the
// very end is what a power loss leaves, and is dropped (docs/guarantees.md).
func flip(f *fault, mem *vfs.MemFS) string {
	var files []string
	var logs []string
	walk(mem, "data", func(name string) {
		switch {
		case strings.HasPrefix(name, logDir):
			if strings.HasSuffix(name, ".log") {
				logs = append(logs, name)
			}
		case strings.Contains(name, "/replicas/"):
			files = append(files, name)
		}
	})
	if len(logs) > 1 {
		files = append(files, logs[:len(logs)-1]...)
	}
	if len(files) == 0 {
		return ""
	}
	name := files[f.n%len(files)]
	st, err := mem.Stat(name)
	if err != nil || st.Size() == 0 {
		return ""
	}
	h, err := mem.OpenReadWrite(name, vfs.CategoryNode)
	if err != nil {
		return ""
	}
	defer func() { _ = h.Close() }() // memory
	var b [1]byte
	at := int64(f.n) % st.Size()
	if _, err := h.ReadAt(b[:], at); err != nil {
		return ""
	}
	b[0] ^= 1 << (f.n % 8)
	if _, err := h.WriteAt(b[:], at); err == nil {
		_ = h.Sync() // memory
	}
	f.w.say("flipped a bit", "file", name, "at", at)
	return name
}

func walk(mem *vfs.MemFS, dir string, each func(name string)) {
	names, err := vfs.List(mem, dir)
	if err != nil {
		return
	}
	for _, name := range names {
		p := path.Join(dir, name)
		if st, err := mem.Stat(p); err == nil && st.IsDir() {
			walk(mem, p, each)
		} else if err == nil {
			each(p)
		}
	}
}
