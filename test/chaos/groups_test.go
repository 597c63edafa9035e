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

	"chronik/test/harness"
)

// consumers are members of one group that commit what they read. A commit that was
// acknowledged must be found afterwards: what the group has committed never goes back.
type consumers struct {
	e     *env
	group string
	wg    sync.WaitGroup

	mu        sync.Mutex
	committed map[int32]int64 // the most that was acknowledged
	read      map[int32]map[int64]bool
	commits   int
}

func startConsumers(e *env, group string, members int) (*consumers, context.CancelFunc) {
	cs := &consumers{e: e, group: group, committed: map[int32]int64{}, read: map[int32]map[int64]bool{}}
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
		if want := string(cs.e.l.value(int(r.Partition), int(r.Offset))); string(r.Value) != want {
			cs.e.t.Errorf("group member read %.40q at offset %d of partition %d", r.Value, r.Offset, r.Partition)
		}
	}
}

func (cs *consumers) acknowledged(recs []*kgo.Record) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.commits++
	for _, r := range recs {
		cs.committed[r.Partition] = max(cs.committed[r.Partition], r.Offset+1)
	}
}

// check asks for the committed offsets and holds them to what was acknowledged before.
func (cs *consumers) check(ctx context.Context, adm *kadm.Client) error {
	cs.mu.Lock()
	want := map[int32]int64{}
	for p, o := range cs.committed {
		want[p] = o
	}
	cs.mu.Unlock()
	got, err := adm.FetchOffsets(ctx, cs.group)
	if err != nil {
		return err
	}
	for p, o := range want {
		r, ok := got.Lookup(cs.e.l.o.topic, p)
		if ok && r.Err != nil {
			return r.Err
		}
		if !ok || r.At < o {
			return fmt.Errorf("%w: partition %d: committed %d (found %v), acknowledged was %d", errWentBack, p, r.At, ok, o)
		}
	}
	return nil
}

var errWentBack = errors.New("a committed offset went back")

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
	look := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		err := cs.check(ctx, adm)
		if errors.Is(err, errWentBack) {
			t.Fatal(err)
		}
		return err
	}
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
	c.Eventually(30*time.Second, "the group has read everything", func() error {
		cs.mu.Lock()
		defer cs.mu.Unlock()
		for p := range e.l.o.partitions {
			if n, want := cs.committed[int32(p)], int64(e.l.parts[p].sent); n != want {
				return fmt.Errorf("partition %d: committed %d of %d", p, n, want)
			}
		}
		return nil
	})
	stop()
	cs.wg.Wait()
	for p := range e.l.o.partitions {
		if n, want := len(cs.read[int32(p)]), e.l.parts[p].sent; n != want {
			t.Errorf("partition %d: the group read %d of %d records", p, n, want)
		}
	}
	c.Eventually(10*time.Second, "committed offsets are answered", look)
	e.quiet()
}
