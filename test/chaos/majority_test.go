package chaos

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/internal/admin"
	"chronik/test/harness"
)

// fill writes records from up to to of orders, each acknowledged.
func fill(t *testing.T, cl *kgo.Client, from, to int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for i := from; i < to; i++ {
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "orders", Value: orderValue(i)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTwoOfThreeWiped: the groups stop, the survivor keeps its data, and the two
// empty nodes found no cluster of their own.
func TestTwoOfThreeWiped(t *testing.T) {
	long(t)
	c := harness.Start(t, harness.Options{Threshold: 100})
	c.CreateTopic("orders", 1)
	fill(t, c.Client(kgo.ProducerLinger(0)), 0, 150)
	c.Eventually(10*time.Second, "all nodes have all", func() error { return c.DigestsEqual("orders", 0, 150) })
	digest := func() (d admin.Digest) {
		if err := c.Get(1, "/v1/digest?topic=orders&partition=0", &d); err != nil {
			t.Error(err)
		}
		return d
	}
	before := digest()
	for id := 2; id <= 3; id++ {
		c.Kill(id)
		c.Wipe(id)
	}
	c.Restart(2)
	c.Restart(3)
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	if err := c.Client().ProduceSync(ctx, &kgo.Record{Topic: "orders", Value: []byte("x")}).FirstErr(); err == nil {
		t.Error("a record was acknowledged without a majority")
	}
	c.Eventually(5*time.Second, "every node says that it does not serve", func() error {
		for id := 1; id <= 3; id++ {
			if err := c.Ready(id); err == nil {
				return fmt.Errorf("node %d says it serves", id)
			}
		}
		return nil
	})
	if after := digest(); after != before || before.Records != 150 {
		t.Errorf("the survivor's data were %+v, are %+v", before, after)
	}
	// Its own disk is all that is left: it must survive its restart, too.
	c.Kill(1)
	c.Restart(1)
	c.Eventually(10*time.Second, "the survivor is up", func() error {
		r, err := c.Replica(1, "orders-0")
		if err == nil && (r.State == "quarantined" || r.LastIndex < 150) {
			err = fmt.Errorf("%s %s, last index %d", r.State, r.Reason, r.LastIndex)
		}
		return err
	})
}

// TestWholeClusterRestored brings back copies of all three disks, taken while all were
// stopped: there is no witness, and the cluster goes on from there.
func TestWholeClusterRestored(t *testing.T) {
	c := harness.Start(t, harness.Options{Threshold: 100})
	c.CreateTopic("orders", 1)
	cl := c.Client(kgo.ProducerLinger(0))
	fill(t, cl, 0, 150)
	each := func(f func(id int)) {
		for id := 1; id <= 3; id++ {
			f(id)
		}
	}
	backup := t.TempDir()
	copyOf := func(id int) string { return filepath.Join(backup, fmt.Sprint(id)) }
	each(c.Stop)
	each(func(id int) { copyDir(t, c.Node(id).Dir, copyOf(id)) })
	each(c.Restart)
	fill(t, cl, 150, 200)
	each(c.Kill)
	each(c.Wipe)
	each(func(id int) { copyDir(t, copyOf(id), c.Node(id).Dir) })
	each(c.Restart)
	c.Eventually(20*time.Second, "the cluster is as it was", func() error { return errors.Join(whole(c), c.DigestsEqual("orders", 0, 150)) })
	fill(t, c.Client(kgo.ProducerLinger(0)), 150, damagedRecords)
	if err := readsAll(c); err != nil {
		t.Error(err)
	}
	c.Eventually(10*time.Second, "digests are equal", func() error { return c.DigestsEqual("orders", 0, damagedRecords) })
}
