package crash

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
)

// TestRetentionDuringATransfer deletes nearly all records, and has new checkpoints taken, while a
// node receives snapshots that name the segments they lie in. The node gets them all
// the same, and then deletes as the others did.
func TestRetentionDuringATransfer(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	for _, cfg := range c.cfgs {
		cfg.Snapshot.MaxBytesPerSecond = 64 << 10 // a second or so each
	}
	c.startAll()
	c.createTopic(true)
	l := newLoad(c, nil)
	l.run()
	l.await(300, nil)
	c.outrun(2)
	l.await(len(l.sofar())+600, nil)
	l.stop()
	must(t, c.post(0, "/v1/snapshots?topic="+topic, nil))
	must(t, c.post(1, "/v1/snapshots?topic="+topic, nil))
	before := c.segments(0) + c.segments(1)
	c.start(2)
	c.eventually("node 3 receives a snapshot", func() error {
		for p := range int32(partitions) {
			if r, err := c.replica(2, p); err == nil && r.Transfer != nil && r.Transfer.BytesDone > 0 {
				return nil
			}
		}
		return errors.New("none is under way")
	})
	cl := c.client()
	defer cl.Close()
	adm := kadm.NewClient(cl)
	ctx, cancel := context.WithTimeout(context.Background(), settle)
	defer cancel()
	ends, err := adm.ListEndOffsets(ctx, topic)
	must(t, errors.Join(err, ends.Error()))
	var to kadm.Offsets
	var left [partitions]int64
	for p := range left {
		o, _ := ends.Lookup(topic, int32(p))
		left[p] = o.Offset - 1
		to.AddOffset(topic, int32(p), left[p], -1)
	}
	deleted, err := adm.DeleteRecords(ctx, to)
	must(t, errors.Join(err, deleted.Error()))
	must(t, c.post(0, "/v1/snapshots?topic="+topic, nil))
	must(t, c.post(1, "/v1/snapshots?topic="+topic, nil))
	c.eventually("segments go", func() error {
		if n := c.segments(0) + c.segments(1); n >= before {
			return errors.New("none has gone")
		}
		return nil
	})
	c.eventually("node 3 has installed snapshots", func() error { return c.installed(2) })
	// What was pinned was served to its end: no transfer began anew because its files had gone.
	logs := c.logs.String()
	for _, bad := range []string{"Failed snapshot request", "Failed to install snapshot", "shows no life"} {
		if n := strings.Count(logs, bad); n > 0 {
			t.Errorf("%d lines say %q", n, bad)
		}
	}
	got, begins := c.readFrom([partitions]int64{})
	if begins != left {
		t.Errorf("the partitions begin at %d, deleted was up to %d", begins, left)
	}
	var end [partitions]int64
	for p := range got {
		end[p] = begins[p] + int64(len(got[p]))
	}
	c.digestsEqual(end)
}
