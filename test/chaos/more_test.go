package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"chronik/test/harness"
)

// storm runs n nemeses of ways in random order against e, and heals after each.
func (e *env) storm(n int, ways ...nemesis) {
	e.t.Helper()
	for i := range n {
		w := ways[e.rng.IntN(len(ways))]
		e.l.worstGap()
		what := w.run(e)
		took := e.healed(w.name + " " + what)
		p99, acks := e.l.p99()
		e.t.Logf("round %d: %s %s: whole after %v, longest without an acknowledgement %v, p99 %v of %d", i, w.name, what, took, e.l.worstGap(), p99, acks)
		e.between(0, 200*time.Millisecond)
	}
}

// TestAcks1 holds acks=1 to what is promised: as durable as acks=all.
func TestAcks1(t *testing.T) {
	e := &env{t: t, rng: seed(t)}
	e.c = harness.Start(t, harness.Options{Threshold: 300})
	e.l = startLoad(t, e.c, loadOptions{acks1: true, size: 50, rate: time.Millisecond})
	e.healed("whole at the beginning")
	e.storm(rounds(t, 1), nemesis{"kill one", killOne}, nemesis{"kill all", killAll}, nemesis{"wipe", wipe}, nemesis{"stop and continue", stopAndContinue})
	e.l.finish()
	e.quiet(errorsOfRestored...)
}

// TestSmallWindows has few records outstanding, each its own batch, so that nearly
// every change of leader meets a retry that was appended already.
func TestSmallWindows(t *testing.T) {
	long(t)
	e := &env{t: t, rng: seed(t)}
	e.c = harness.Start(t, harness.Options{Threshold: 300})
	e.l = startLoad(t, e.c, loadOptions{window: 2, size: 20})
	e.healed("whole at the beginning")
	e.storm(rounds(t, 1), nemesis{"kill one", killOne}, nemesis{"kill two", killTwo}, nemesis{"stop and continue", stopAndContinue}, nemesis{"restart gracefully", restartGracefully})
	e.l.finish()
	e.quiet()
}

// TestRollingRestarts restarts one node after the other, as an upgrade does.
func TestRollingRestarts(t *testing.T) {
	e := &env{t: t, rng: seed(t)}
	e.c = harness.Start(t, harness.Options{Threshold: 300})
	e.l = startLoad(t, e.c, loadOptions{size: 100, rate: 2 * time.Millisecond})
	e.healed("whole at the beginning")
	e.l.p99()
	e.between(time.Second, time.Second+1)
	p99, acks := e.l.p99()
	t.Logf("undisturbed: p99 %v of %d", p99, acks)
	nodes := 1 // the short form restarts only one
	if os.Getenv("CHRONIK_ROUNDS") != "" {
		nodes = 3
	}
	for round := range rounds(t, 1) {
		for id := 1; id <= nodes; id++ {
			e.l.worstGap()
			began := time.Now()
			e.c.Stop(id)
			stopped := time.Since(began)
			e.c.Restart(id)
			took := e.healed("rolling restart")
			p99, acks := e.l.p99()
			gap := e.l.worstGap()
			t.Logf("round %d, node %d: stopped after %v, whole after %v, longest without an acknowledgement %v, p99 %v of %d", round, id, stopped, took, gap, p99, acks)
			if gap > 3*time.Second {
				t.Errorf("%v without an acknowledgement", gap)
			}
		}
	}
	e.l.finish()
	e.quiet()
}

// TestManyPartitions kills nodes of a cluster with a hundred partitions.
func TestManyPartitions(t *testing.T) {
	long(t)
	e := &env{t: t, rng: seed(t)}
	e.c = harness.Start(t, harness.Options{Threshold: 100})
	e.l = startLoad(t, e.c, loadOptions{partitions: 100, window: 2, size: 20, rate: 20 * time.Millisecond})
	e.healed("whole at the beginning")
	ways := []nemesis{{"kill one", killOne}, {"kill all", killAll}, {"restart gracefully", restartGracefully}}
	if os.Getenv("CHRONIK_ROUNDS") != "" {
		ways = append(ways, nemesis{"wipe", wipe}) // takes about ten seconds
	}
	e.storm(rounds(t, 1), ways...)
	e.l.finish()
	e.quiet()
}

// TestTopicsComeAndGo creates, fills and deletes topics of the same names while nodes are killed.
func TestTopicsComeAndGo(t *testing.T) {
	e := &env{t: t, rng: seed(t)}
	e.c = harness.Start(t, harness.Options{Threshold: 100})
	e.l = startLoad(t, e.c, loadOptions{partitions: 3, size: 50, rate: 2 * time.Millisecond})
	e.healed("whole at the beginning")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	lives := make([]int, 2)
	for i := range lives {
		wg.Go(func() { lives[i] = e.comeAndGo(ctx, stop, fmt.Sprintf("brief-%d", i)) })
	}
	e.storm(rounds(t, 1), nemesis{"kill one", killOne}, nemesis{"kill two", killTwo}, nemesis{"kill all", killAll}, nemesis{"wipe", wipe})
	close(stop)
	wg.Wait()
	t.Logf("topics lived %v times", lives)
	for i, n := range lives {
		if n == 0 {
			t.Errorf("topic brief-%d never came and went", i)
		}
	}
	e.l.finish()
	e.c.Eventually(20*time.Second, "whole at the end", func() error { return whole(e.c) })
	e.quiet()
}

// comeAndGo lets a topic live again and again until stop and at least once, and returns how
// often. Nothing of an earlier life may show in a later one.
func (e *env) comeAndGo(ctx context.Context, stop <-chan struct{}, topic string) (lives int) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(e.c.Bootstrap()...), kgo.RequestTimeoutOverhead(2*time.Second), kgo.MetadataMinAge(20*time.Millisecond))
	if err != nil {
		e.t.Error(err)
		return 0
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	for life := 0; ctx.Err() == nil; life++ {
		select {
		case <-stop:
			if lives > 0 {
				return lives
			}
		default:
		}
		if err := e.tryUntil(ctx, kerr.TopicAlreadyExists, func(ctx context.Context) error {
			r, err := adm.CreateTopic(ctx, 5, -1, nil, topic)
			return errors.Join(err, r.Err)
		}); err != nil {
			break
		}
		if !e.oneLife(ctx, topic, life) {
			break
		}
		if err := e.tryUntil(ctx, kerr.UnknownTopicOrPartition, func(ctx context.Context) error {
			r, err := adm.DeleteTopic(ctx, topic)
			return errors.Join(err, r.Err)
		}); err != nil {
			break
		}
		lives++
	}
	return lives
}

// oneLife writes to a topic and reads back exactly that.
func (e *env) oneLife(ctx context.Context, topic string, life int) bool {
	cl, err := kgo.NewClient(kgo.SeedBrokers(e.c.Bootstrap()...), kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond),
		kgo.MetadataMinAge(20*time.Millisecond), kgo.UnknownTopicRetries(-1),
		kgo.ProduceRequestTimeout(time.Second), kgo.RequestTimeoutOverhead(time.Second), kgo.AlwaysRetryEOF())
	if err != nil {
		e.t.Error(err)
		return false
	}
	defer cl.Close()
	const each = 5
	want := map[string]bool{}
	for i := range 5 * each {
		v := fmt.Sprintf("%s:%d:%d", topic, life, i)
		want[v] = true
		if err := cl.ProduceSync(ctx, &kgo.Record{Partition: int32(i % 5), Value: []byte(v)}).FirstErr(); err != nil {
			if ctx.Err() == nil {
				e.t.Errorf("produce to %s in life %d: %v", topic, life, err)
			}
			return false
		}
	}
	for len(want) > 0 && ctx.Err() == nil {
		cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			if !want[string(r.Value)] {
				e.t.Errorf("%s-%d in life %d: offset %d holds %q", topic, r.Partition, life, r.Offset, r.Value)
			}
			delete(want, string(r.Value))
		})
	}
	return ctx.Err() == nil
}

// tryUntil calls f until it succeeds, or says that an earlier, unanswered try did.
func (e *env) tryUntil(ctx context.Context, done error, f func(context.Context) error) error {
	for {
		tctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := f(tctx)
		cancel()
		if err == nil || errors.Is(err, done) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// quiet fails the test for log lines that a healthy run must not have.
func (e *env) quiet(allowed ...string) {
	e.t.Helper()
	for _, line := range trouble(e.c, append(allowed, e.allowed...)...) {
		e.t.Errorf("log: %s", line)
	}
}
