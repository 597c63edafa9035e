package raftgroup

import (
	"context"
	"fmt"
	"slices"
	"time"

	"chronik/internal/ident"
	"chronik/internal/snapshot"
	"chronik/internal/vfs"
)

// StallOptions say what MeasureStall does.
type StallOptions struct {
	// SM holds the state. Next is the data of the n-th entry applied to it.
	SM   StateMachine
	Next func(n int) []byte
	// Captures are taken, and Applies entries applied after each, one at a time, Pause
	// apart (a node's clients do not come without pause either).
	Captures, Applies int
	Pause             time.Duration
	// First is the index of the first entry.
	First ident.Index
	// FS and Dir are where checkpoints go, all the time, one after the other.
	FS          vfs.FS
	Dir         string
	Compression snapshot.Codec
}

// StallResult is what MeasureStall saw.
type StallResult struct {
	// Stalls has, for each capture, what the applier waited for it: the capture and
	// the longest of the Applies after it, while the checkpoint writer runs. Sorted.
	Stalls []time.Duration
	// Captured has the captures alone, Quiet the longest of as many Applies without
	// any capture or writer. Sorted.
	Captured, Quiet []time.Duration
	// Written is how many checkpoints were completed meanwhile, FileBytes the size of one.
	Written   int
	FileBytes int64
}

// MeasureStall measures what captures cost whoever applies entries: as in a
// Host, one goroutine applies and captures, and another writes checkpoints.
func MeasureStall(ctx context.Context, o StallOptions) (StallResult, error) {
	var res StallResult
	n := 0
	longest := func() (time.Duration, error) {
		var most time.Duration
		for range o.Applies {
			es := []Entry{{Index: o.First + ident.Index(n), Term: 1, Data: o.Next(n)}}
			n++
			start := time.Now()
			_, err := o.SM.Apply(es)
			most = max(most, time.Since(start))
			if err != nil {
				return 0, fmt.Errorf("apply entry %d: %w", n, err)
			}
			time.Sleep(o.Pause)
		}
		return most, ctx.Err()
	}
	for range o.Captures {
		d, err := longest()
		if err != nil {
			return res, err
		}
		res.Quiet = append(res.Quiet, d)
	}

	type written struct {
		n     int
		bytes int64
		err   error
	}
	captures, done := make(chan Capture), make(chan written, 1)
	go func() {
		var w written
		for c := range captures {
			if w.err == nil {
				w.bytes, w.err = o.write(c)
				w.n++
			}
			c.Release()
		}
		done <- w
	}()
	err := o.captures(&res, longest, captures)
	close(captures)
	w := <-done
	if err == nil {
		err = w.err
	}
	res.Written, res.FileBytes = w.n, w.bytes
	for _, ds := range [][]time.Duration{res.Stalls, res.Captured, res.Quiet} {
		slices.Sort(ds)
	}
	return res, err
}

func (o *StallOptions) captures(res *StallResult, longest func() (time.Duration, error), to chan<- Capture) error {
	for range o.Captures {
		start := time.Now()
		c, err := o.SM.Capture()
		took := time.Since(start)
		if err != nil {
			return fmt.Errorf("capture: %w", err)
		}
		select {
		case to <- c:
		default:
			c.Release() // one is being written
		}
		d, err := longest()
		if err != nil {
			return err
		}
		res.Captured = append(res.Captured, took)
		res.Stalls = append(res.Stalls, took+d)
	}
	return nil
}

func (o *StallOptions) write(c Capture) (int64, error) {
	if err := c.Sync(); err != nil {
		return 0, err
	}
	ck := snapshot.Checkpoint{Group: 1, Point: snapshot.Point{Index: o.First, Term: 1}, CreatedAt: time.Now()}
	for _, f := range c.Files() {
		ck.Files = append(ck.Files, snapshot.DataFile{Name: f.Name, Size: f.Size})
	}
	info, err := snapshot.Write(o.FS, o.Dir, ck, o.Compression, c.WriteTo)
	if err == nil {
		c.Published()
	}
	return info.FileBytes, err
}
