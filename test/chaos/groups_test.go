package chaos

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/test/check"
	"chronik/test/harness"
)

// consumers are members of one group that commit what they read. A commit that was
// acknowledged must be found afterwards: what the group has committed never goes back.
type consumers struct {
	e     *env
	group string
	wg    sync.WaitGroup

	offsets check.Offsets
	mu      sync.Mutex
	read    map[int32]map[int64]bool
	commits int
	found   []check.Violation
}

func startConsumers(e *env, group string, members int) (*consumers, context.CancelFunc) {
	cs := &consumers{e: e, group: group, offsets: check.Offsets{Group: group}, read: map[int32]map[int64]bool{}}
	ctx, cancel := context.WithCancel(context.Background())
	for i := range members {
		cs.wg.Go(func() { cs.member(ctx, i) })
	}
	return cs, cancel
}

func (cs *consumers) client(i int) *kgo.Client {
	return cs.e.c.Client(
		kgo.ConsumerGroup(cs.group), kgo.ConsumeTopics(cs.e.l.o.topic), kgo.DisableAutoCommit(), kgo.ClientID(fmt.Sprintf("member-%d", i)),
		kgo.SessionTimeout(6*time.Second), kgo.HeartbeatInterval(300*time.Millisecond), kgo.RebalanceTimeout(5*time.Second),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond), kgo.BlockRebalanceOnPoll(),
		kgo.Balancers(kgo.CooperativeStickyBalancer()), kgo.RequestTimeoutOverhead(2*time.Second),
	)
}

// member polls and commits each poll until ctx ends. Between a poll and its commit no
// other member gets its partitions, so commits of a partition never overlap.
func (cs *consumers) member(ctx context.Context, i int) {
	cl := cs.client(i)
	for ctx.Err() == nil {
		fs := cl.PollRecords(ctx, 500)
		recs := fs.Records()
		if len(recs) > 0 {
			cs.note(recs)
			cctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			err := cl.CommitRecords(cctx, recs...)
			cancel()
			if err == nil {
				cs.acknowledged(recs)
			}
		}
		cl.AllowRebalance()
	}
	cl.CloseAllowingRebalance()
}

func (cs *consumers) note(recs []*kgo.Record) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for _, r := range recs {
		if cs.read[r.Partition] == nil {
			cs.read[r.Partition] = map[int64]bool{}
		}
		cs.read[r.Partition][r.Offset] = true
		p, n := int(r.Partition), cs.e.l.number(int(r.Partition), r.Value)
		cs.e.l.violate(cs.e.l.seen.See("a group's member", cs.e.l.name(p), r.Offset, n)...)
		if n != int(r.Offset) {
			cs.e.l.violate(check.Violation{Kind: check.Divergent, Place: cs.e.l.name(p), What: fmt.Sprintf("a group's member read record %d at offset %d", n, r.Offset)})
		}
	}
}

func (cs *consumers) acknowledged(recs []*kgo.Record) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.commits++
	for _, r := range recs {
		cs.offsets.Acknowledged(r.Partition, r.Offset+1)
	}
}

// look asks for the committed offsets and holds them to what was acknowledged, or told, before.
func (cs *consumers) look(adm *kadm.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	floor := cs.offsets.Floor()
	got, err := adm.FetchOffsets(ctx, cs.group)
	if err != nil {
		return err
	}
	answer := map[int32]int64{}
	for p := range cs.e.l.o.partitions {
		r, ok := got.Lookup(cs.e.l.o.topic, int32(p))
		if ok && r.Err != nil {
			return r.Err
		}
		if ok {
			answer[int32(p)] = r.At
		}
	}
	vs := cs.offsets.Told(floor, answer)
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.found = append(cs.found, vs...)
	for _, v := range vs {
		cs.e.t.Error(v)
	}
	return nil
}

// reachEnd waits until the group has committed everything, and has read it all.
func (cs *consumers) reachEnd(stop context.CancelFunc) {
	cs.e.t.Helper()
	ends := map[int32]int64{}
	for p := range cs.e.l.o.partitions {
		ends[int32(p)] = int64(cs.e.l.parts[p].sent)
	}
	cs.e.c.Eventually(30*time.Second, "the group has read everything", func() error { return cs.offsets.Reached(ends) })
	stop()
	cs.wg.Wait()
	for p, end := range ends {
		if n := len(cs.read[p]); n != int(end) {
			cs.e.t.Errorf("partition %d: the group read %d of %d records", p, n, end)
		}
	}
}

// TestGroupsUnderKills kills nodes while members of a group commit. No committed
// offset goes back, and everything is read.
func TestGroupsUnderKills(t *testing.T) {
	rng := seed(t)
	c := harness.Start(t, harness.Options{Threshold: 300})
	e := &env{t: t, c: c, rng: rng, l: startLoad(t, c, loadOptions{size: 30, rate: 2 * time.Millisecond})}
	e.healed("whole at the beginning")
	cs, stop := startConsumers(e, "readers", 3)
	defer stop()
	adm := kadm.NewClient(c.Client(kgo.RequestTimeoutOverhead(2 * time.Second)))
	look := func() error { return cs.look(adm) }
	commits := func() int { cs.mu.Lock(); defer cs.mu.Unlock(); return cs.commits }
	c.Eventually(20*time.Second, "members commit", func() error {
		if commits() == 0 {
			return errors.New("no commit yet")
		}
		return nil
	})
	ways := []nemesis{{"kill one", killOne}, {"kill all", killAll}, {"wipe", wipe}, {"kill two", killTwo}, {"restart gracefully", restartGracefully}}
	for i := range rounds(t, 1) {
		n := ways[rng.IntN(len(ways))]
		what := n.run(e)
		before, began := commits(), time.Now()
		c.Eventually(20*time.Second, "committed offsets are answered", look)
		answered := time.Since(began)
		took := e.healed(n.name + " " + what)
		c.Eventually(20*time.Second, "members commit again", func() error {
			if commits() == before {
				return errors.New("no commit since")
			}
			return nil
		})
		t.Logf("round %d: %s %s: offsets answered after %v, whole after %v, commits go on after %v", i, n.name, what, answered, took, time.Since(began))
	}
	e.l.finish()
	cs.reachEnd(stop)
	c.Eventually(10*time.Second, "committed offsets are answered", look)
	e.quiet()
}
