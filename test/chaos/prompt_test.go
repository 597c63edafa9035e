package chaos

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/admin"
	"chronik/test/harness"
)

var servingTook = regexp.MustCompile(`msg="serving Kafka clients".* took=(\S+)`)

// TestRestartedNodesServePromptly: once the metadata has a leader again, restarted
// nodes serve; they do not wait for their next look at the clock.
func TestRestartedNodesServePromptly(t *testing.T) {
	e := &env{t: t, rng: seed(t)}
	e.c = harness.Start(t, harness.Options{})
	var took []time.Duration
	for range rounds(t, 1) {
		e.c.Eventually(20*time.Second, "whole", func() error { return whole(e.c) })
		for id := 2; id <= 3; id++ {
			e.signal(id, syscall.SIGKILL)
		}
		e.gone(2)
		e.gone(3)
		e.c.Restart(2)
		e.c.Restart(3)
		e.c.Eventually(20*time.Second, "whole", func() error { return whole(e.c) })
		for id := 2; id <= 3; id++ {
			all := servingTook.FindAllStringSubmatch(e.c.NodeLog(id), -1)
			d, err := time.ParseDuration(all[len(all)-1][1])
			if err != nil {
				t.Fatal(err)
			}
			took = append(took, d)
		}
	}
	slices.Sort(took)
	t.Logf("from start to serving: %v", took)
	if m := took[len(took)/2]; m > 400*time.Millisecond {
		t.Errorf("median %v from start to serving", m)
	}
}

// TestFrozenNodeIsReplaced: a process that stands still keeps its connections. The others
// elect leaders within two election timeouts and a little, for every group, and a client
// that has no connection to the frozen node is served at once.
func TestFrozenNodeIsReplaced(t *testing.T) {
	long(t)
	e := &env{t: t, rng: seed(t)}
	e.c = harness.Start(t, harness.Options{})
	e.l = startLoad(t, e.c, loadOptions{partitions: 12, size: 20, rate: 5 * time.Millisecond})
	e.c.CreateTopic("fresh", e.l.o.partitions)
	var took []time.Duration
	for range rounds(t, 1) {
		e.healed("whole")
		id := e.anyNode()
		e.signal(id, syscall.SIGSTOP)
		began := time.Now()
		elected := e.c.Eventually(10*time.Second, "others lead every group", func() error { return ledByOthers(e.c, id) })
		fresh := e.freshClient(id, "fresh", e.l.o.partitions)
		// The load's client holds its batches until each of its five requests to the frozen node has
		// failed, one after the other and each after two connections that say nothing for a second,
		// and may ask that node for the metadata first: ten seconds and some, whatever the others do.
		accepted := e.c.Eventually(30*time.Second, "every partition accepts", func() error { return e.l.acceptedSince(began.Add(elected)) })
		took = append(took, elected)
		t.Logf("node %d frozen: all groups led by others after %v, a fresh client served in %v, the load %v later", id, elected, fresh, accepted)
		if fresh > time.Second {
			t.Errorf("a client that knows nothing of the frozen node waited %v", fresh)
		}
		e.signal(id, syscall.SIGCONT)
	}
	e.l.finish()
	e.quiet()
	slices.Sort(took)
	if m := took[len(took)-1]; m > 3500*time.Millisecond {
		t.Errorf("%v until every group had a leader", m)
	}
}

// freshClient returns how long a client that starts from the nodes other than id takes to have a
// record acknowledged by every partition of the topic.
func (e *env) freshClient(id int, topic string, partitions int) time.Duration {
	var seeds []string
	for _, n := range e.c.Nodes() {
		if n.ID != id {
			seeds = append(seeds, n.Kafka)
		}
	}
	began := time.Now()
	cl := e.c.Client(kgo.SeedBrokers(seeds...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.RecordDeliveryTimeout(10*time.Second))
	defer cl.Close()
	var rs []*kgo.Record
	for p := range partitions {
		rs = append(rs, &kgo.Record{Topic: topic, Partition: int32(p), Value: []byte("x")})
	}
	if err := cl.ProduceSync(context.Background(), rs...).FirstErr(); err != nil {
		e.t.Errorf("a fresh client: %v", err)
	}
	return time.Since(began)
}

// ledByOthers tells whether each node but id knows a leader of each group, which is not id.
func ledByOthers(c *harness.Cluster, id int) error {
	for _, n := range c.Nodes() {
		if n.ID == id {
			continue
		}
		var rs admin.Replicas
		if err := c.Get(n.ID, "/v1/replicas", &rs); err != nil {
			return err
		}
		for _, r := range rs.Replicas {
			if r.LeaderNode == 0 || int(r.LeaderNode) == id {
				return fmt.Errorf("node %d: %s is led by %d", n.ID, r.Group, r.LeaderNode)
			}
		}
	}
	return nil
}
