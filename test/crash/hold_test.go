package crash

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// patience is how long a test waits for what must not happen.
const patience = 150 * time.Millisecond

// TestNoAckWhileTwoDisksSync lets the fsyncs of two disks hang: no record may be
// acknowledged until they return. With one that hangs, a follower's, records are.
func TestNoAckWhileTwoDisksSync(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.startAll()
	c.createTopic(false)
	cl := c.client(kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	defer cl.Close()
	produce := func(what string) <-chan error {
		done := make(chan error, 1)
		cl.Produce(context.Background(), &kgo.Record{Partition: 0, Value: []byte(what)}, func(_ *kgo.Record, err error) { done <- err })
		return done
	}
	acknowledged := func(what string, done <-chan error) {
		t.Helper()
		select {
		case err := <-done:
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		case <-time.After(settle):
			t.Fatalf("%s: not acknowledged in %v", what, settle)
		}
	}
	acknowledged("no disk hangs", produce("first"))
	leader := c.leaderOf(0)
	for i := range c.disks {
		if i == leader {
			continue
		}
		release := c.disks[i].hold()
		acknowledged(fmt.Sprintf("disk %d hangs", i+1), produce("one"))
		release()
	}
	for free := range c.disks {
		a, b := c.disks[(free+1)%3], c.disks[(free+2)%3]
		releaseA, releaseB := a.hold(), b.hold()
		done := produce("two")
		select {
		case err := <-done:
			t.Errorf("all disks but %d hang, and a record was answered: %v", free+1, err)
			done = produce("again")
		case <-time.After(patience):
		}
		releaseA()
		releaseB()
		acknowledged("the disks go on", done)
	}
}

// leaderOf returns the node that leads partition p.
func (c *cluster) leaderOf(p int32) (node int) {
	c.t.Helper()
	c.eventually("a node leads", func() error {
		for i := range c.nodes {
			if r, err := c.replica(i, p); err == nil && r.Role == "leader" {
				node = i
				return nil
			}
		}
		return errors.New("none does")
	})
	return node
}
