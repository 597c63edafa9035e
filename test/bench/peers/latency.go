package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// calibrate measures what each other server takes at full load, once: the rates of
// this part are shares of that, so that no server is asked for more than it can do.
func calibrate(ctx context.Context, b *bench) error {
	for _, p := range b.peers {
		if p.name() == "chronik" {
			continue
		}
		err := b.with(ctx, p, 3, func(c *cluster) error {
			if err := p.create(ctx, c, "bench", 12); err != nil {
				return err
			}
			got, err := p.produce(ctx, c, b.full(c, 1<<10, "bench"))
			if err == nil {
				b.most[p.name()] = got.Records
				fmt.Printf("%s takes %.0f records/s at most\n", p.name(), got.Records)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func latencyWorkload(percent int, of string) string {
	return fmt.Sprintf("%d %% of %s's maximum", percent, of)
}

// latency sends at fixed rates: each other server at shares of its own maximum, and
// Chronik at each of those.
func latency(ctx context.Context, b *bench, p peer) error {
	for _, other := range b.peers {
		most := b.most[other.name()]
		if most == 0 || p != other && p.name() != "chronik" {
			continue
		}
		var chosen []int
		for _, percent := range []int{10, 50, 80} {
			if b.wants(latencyWorkload(percent, other.name())) {
				chosen = append(chosen, percent)
			}
		}
		if len(chosen) == 0 {
			continue
		}
		err := b.with(ctx, p, 3, func(c *cluster) error {
			if err := p.create(ctx, c, "bench", 12); err != nil {
				return err
			}
			for _, percent := range chosen {
				if err := b.atRate(ctx, c, latencyWorkload(percent, other.name()), most*float64(percent)/100); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// atRate measures producing, and for Kafka's protocol at the same time a consumer
// that follows: both count from the moment at which a record should have been sent.
func (b *bench) atRate(ctx context.Context, c *cluster, workload string, rate float64) error {
	l := b.full(c, 1<<10, "bench")
	l.Rate, l.Linger = rate, 0
	var r *readers
	if c.peer.name() != "nats" {
		var err error
		if r, err = follow(ctx, l, 1); err != nil {
			return err
		}
	}
	got, err := c.peer.produce(ctx, c, l)
	if r != nil {
		err = errors.Join(err, r.stop())
	}
	if err != nil {
		return fmt.Errorf("%s: %w", workload, err)
	}
	b.note(c.peer, workload, "rate asked for", "1/s", rate)
	b.note(c.peer, workload, "rate served", "1/s", got.Records)
	b.note(c.peer, workload, "produce p50", "ms", got.P50)
	b.note(c.peer, workload, "produce p99", "ms", got.P99)
	b.note(c.peer, workload, "produce p99.9", "ms", got.P999)
	if r != nil {
		b.note(c.peer, workload, "end to end p50", "ms", r.quantile(0.5))
		b.note(c.peer, workload, "end to end p99", "ms", r.quantile(0.99))
		b.note(c.peer, workload, "end to end p99.9", "ms", r.quantile(0.999))
	}
	return nil
}

// tail has 1, 5 and 20 consumers that each follow everything, at half of what the
// slowest chosen server takes.
func tail(ctx context.Context, b *bench, p peer) error {
	var rates []float64
	for _, most := range b.most {
		rates = append(rates, most)
	}
	if p.name() == "nats" {
		b.skip(p, "tail", "its consumers are of another protocol")
		return nil
	}
	if len(rates) == 0 {
		rates = []float64{5000}
	}
	rate := slices.Min(rates) / 2
	for _, n := range []int{1, 5, 20} {
		workload := fmt.Sprintf("%d consumers follow", n)
		if !b.wants(workload) {
			continue
		}
		err := b.with(ctx, p, 3, func(c *cluster) error {
			if err := p.create(ctx, c, "bench", 12); err != nil {
				return err
			}
			l := b.full(c, 1<<10, "bench")
			l.Rate, l.Linger = rate, 0
			r, err := follow(ctx, l, n)
			if err != nil {
				return err
			}
			_, err = p.produce(ctx, c, l)
			if err := errors.Join(err, r.stop()); err != nil {
				return err
			}
			b.note(p, workload, "rate asked for", "1/s", rate)
			b.note(p, workload, "end to end p50", "ms", r.quantile(0.5))
			b.note(p, workload, "end to end p99", "ms", r.quantile(0.99))
			b.note(p, workload, "end to end p99.9", "ms", r.quantile(0.999))
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// mixed is full load with a consumer that follows and one that reads everything
// again and again.
func mixed(ctx context.Context, b *bench, p peer) error {
	const workload = "full load, one consumer follows, one reads from the beginning"
	if !b.wants(workload) {
		return nil
	}
	if p.name() == "nats" {
		b.skip(p, workload, "its consumers are of another protocol")
		return nil
	}
	return b.with(ctx, p, 3, func(c *cluster) error {
		if err := p.create(ctx, c, "bench", 12); err != nil {
			return err
		}
		l := b.full(c, 1<<10, "bench")
		following, err := follow(ctx, l, 1)
		if err != nil {
			return err
		}
		again, err := reread(ctx, l)
		if err != nil {
			return errors.Join(err, following.stop())
		}
		var from time.Time
		var seen, second int64
		var took float64
		l.measuring = func() { from, seen, second = time.Now(), following.bytes.Load(), again.bytes.Load() }
		l.measured = func() {
			took, seen, second = time.Since(from).Seconds(), following.bytes.Load()-seen, again.bytes.Load()-second
		}
		_, err = b.load(ctx, c, workload, l)
		if err := errors.Join(err, following.stop(), again.stop()); err != nil {
			return err
		}
		b.note(p, workload, "read by the one that follows", "MB/s", float64(seen)/took/1e6)
		b.note(p, workload, "read from the beginning", "MB/s", float64(second)/took/1e6)
		return nil
	})
}
