package raftgroup

import (
	"bufio"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"chronik/internal/vfs"
)

// A leader tells how far a follower lags, in entries and in bytes.
func TestLagIsTold(t *testing.T) {
	inCluster(t, 3, nil, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 5)
		f := c.follower()
		lead := c.leader()
		lag := func() Follower {
			for _, fo := range lead.replica().Status().Followers {
				if fo.Node == f.id {
					return fo
				}
			}
			return Follower{}
		}
		c.eventually("no lag", func() bool {
			return lag().Alive && lag().Lag == 0 && lag().LagBytes == 0 && lag().Match == lead.replica().Status().LastIndex
		})
		match := lag().Match
		c.net.Isolate(f.id)
		big := strings.Repeat("x", 10_000)
		for range 10 {
			c.put("big", big)
		}
		c.eventually("ten entries behind", func() bool { return !lag().Alive && lag().Lag >= 10 && lag().Match == match })
		if got := lag().LagBytes; got < 50_000 || got > 150_000 { // by the mean of large and small entries
			c.t.Errorf("%d bytes behind by %d entries, of 10,000 bytes each", got, lag().Lag)
		}
		c.net.HealAll()
		c.eventually("no lag again", func() bool { return lag().Alive && lag().Lag == 0 && lag().LagBytes == 0 && lag().Match > match })
	})
}

// snapshotKeys follow each of the messages about a snapshot.
var snapshotKeys = []string{"topic", "partition", "index", "term", "bytes", "reused", "took"}

// linesOf returns the log lines with a message.
func (c *cluster) linesOf(msg string) (lines []string) {
	sc := bufio.NewScanner(strings.NewReader(c.logText.String()))
	for sc.Scan() {
		if strings.Contains(sc.Text(), `msg="`+msg+`"`) {
			lines = append(lines, sc.Text())
		}
	}
	return lines
}

// What is told of a snapshot carries the same keys each time, and the error when it failed.
func TestSnapshotsAreLogged(t *testing.T) {
	var refuse atomic.Bool
	inCluster(t, 3, func(c *cluster) {
		smallSteps(c)
		tune := c.tune
		c.tune = func(o *Options) {
			tune(o)
			o.Verify = func(context.Context, vfs.FS, Spec, string, []byte, []CaptureFile) error {
				if refuse.Load() {
					return errors.New("refused once")
				}
				return nil
			}
		}
	}, func(c *cluster) {
		c.create(3)
		c.fill("k", 0, 30)
		f := c.follower()
		last := f.replica().Status().LastIndex
		disk := f.kill(100)
		c.fill("k", 30, 80)
		c.trimmedLeader(last + 1)
		refuse.Store(true)
		nd := c.boot(f.id, f.store, disk)
		const failed = "Failed to install snapshot for orders-0"
		c.eventually("refused", func() bool { return len(c.linesOf(failed)) > 0 })
		refuse.Store(false)
		c.converge(80)
		c.eventually("done", func() bool { return nd.replica().Status().State == StateRunning })
		<-time.After(time.Second)
		for _, msg := range []string{
			"Creating snapshot for orders-0", "Created snapshot for orders-0", "Received snapshot for orders-0", "Installing snapshot for orders-0",
			"Successfully installed snapshot for orders-0", failed,
		} {
			lines := c.linesOf(msg)
			if len(lines) == 0 {
				c.t.Errorf("nothing says %q", msg)
			}
			for _, line := range lines {
				for _, key := range snapshotKeys {
					if !strings.Contains(line, " "+key+"=") {
						c.t.Errorf("no %s in %s", key, line)
					}
				}
				if strings.Contains(line, " err=") != (msg == failed) {
					c.t.Errorf("err in %s", line)
				}
			}
		}
		// What was fetched before it was refused is told, too.
		if line := c.linesOf(failed)[0]; strings.Contains(line, " bytes=0 ") {
			c.t.Errorf("no bytes in %s", line)
		}
	})
}
