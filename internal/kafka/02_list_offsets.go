package kafka

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/metadata"
	"chronik/internal/wire"
)

// ListOffsets: versions 0 to 10.
//
//	v0   a list of offsets a partition instead of one
//	v2   isolation level: no transactions, so the last stable offset is the high watermark
//	v4   leader epochs
//	v6   flexible
//	v7   timestamp -3: the record with the greatest time
//	v8   timestamp -4: the first offset kept locally
//	v9   timestamp -5: the last offset in tiered storage, of which there is none
//	v10  the client's timeout
//
// The latest offset is confirmed with a majority first (correctness rule 26).

// What a timestamp below zero asks for.
const (
	askLatest        = -1
	askEarliest      = -2
	askMaxTimestamp  = -3
	askEarliestLocal = -4
	askLatestTiered  = -5
)

const (
	listOffsetsTimeout = 10 * time.Second
	// listOffsetsParallel bounds how many partitions of a request wait for their
	// majority at the same time.
	listOffsetsParallel = 16
)

func listOffsets(h *Handler, ctx context.Context, r *wire.Request, req *kmsg.ListOffsetsRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.ListOffsetsResponse)
	timeout := int32(listOffsetsTimeout.Milliseconds())
	if req.Version >= 10 && req.TimeoutMillis > 0 {
		timeout = req.TimeoutMillis
	}
	ctx, cancel := bounded(ctx, timeout)
	defer cancel()
	img := h.cluster.Image()
	resp.Topics = make([]kmsg.ListOffsetsResponseTopic, len(req.Topics))
	var work []func()
	for i := range req.Topics {
		rt, wt := &req.Topics[i], &resp.Topics[i]
		wt.Default()
		wt.Topic = rt.Topic
		wt.Partitions = make([]kmsg.ListOffsetsResponseTopicPartition, len(rt.Partitions))
		t, err := findTopic(img, rt.Topic, metadata.TopicID{}, false)
		for j := range rt.Partitions {
			rp, wp := &rt.Partitions[j], &wt.Partitions[j]
			wp.Default()
			wp.Partition = rp.Partition
			if err != nil {
				listOffsetsFail(h, r.Key, wp, err)
				continue
			}
			work = append(work, func() { h.listOffset(ctx, req.Version, t, rp, wp) })
		}
	}
	parallel(work, listOffsetsParallel)
	return resp
}

func listOffsetsFail(h *Handler, key int16, resp *kmsg.ListOffsetsResponseTopicPartition, err error) {
	resp.ErrorCode = h.code(key, err)
	resp.Timestamp, resp.Offset, resp.LeaderEpoch = -1, -1, -1
	resp.OldStyleOffsets = []int64{}
}

func (h *Handler) listOffset(ctx context.Context, version int16, t *metadata.Topic, req *kmsg.ListOffsetsRequestTopicPartition, resp *kmsg.ListOffsetsResponseTopicPartition) {
	_, p, err := h.leader(t, req.Partition)
	if err == nil {
		err = checkEpoch(p, req.CurrentLeaderEpoch)
	}
	var at offsetAt
	if err == nil {
		at, err = findOffset(ctx, p, req.Timestamp)
	}
	if err != nil {
		listOffsetsFail(h, keyListOffsets, resp, err)
		return
	}
	resp.Offset, resp.Timestamp, resp.LeaderEpoch = at.offset, at.timestamp, at.epoch
	resp.OldStyleOffsets = []int64{}
	if version == 0 && at.offset >= 0 && req.MaxNumOffsets > 0 {
		resp.OldStyleOffsets = []int64{at.offset}
	}
}

// offsetAt is an answer; -1 stands for "none" in each field.
type offsetAt struct {
	offset, timestamp int64
	epoch             int32
}

func findOffset(ctx context.Context, p Partition, timestamp int64) (offsetAt, error) {
	_, epoch := p.Leader()
	switch timestamp {
	case askLatest:
		if err := p.ReadIndex(ctx); err != nil {
			return offsetAt{}, err
		}
		return offsetAt{offset: p.HighWatermark(), timestamp: -1, epoch: epoch}, nil
	case askEarliest, askEarliestLocal:
		return offsetAt{offset: p.LogStartOffset(), timestamp: -1, epoch: epoch}, nil
	case askLatestTiered:
		return offsetAt{-1, -1, -1}, nil
	}
	if timestamp < askLatestTiered {
		return offsetAt{}, errUnknownTimestamp
	}
	var at offsetAt
	var err error
	if timestamp == askMaxTimestamp {
		at.offset, at.timestamp, at.epoch, err = p.MaxTimestamp()
	} else {
		at.offset, at.timestamp, at.epoch, err = p.OffsetForTimestamp(timestamp)
	}
	if at.offset < 0 {
		at = offsetAt{-1, -1, -1}
	}
	return at, err
}

// parallel runs the work, at most n pieces at a time, and returns when all is done.
func parallel(work []func(), n int) {
	if len(work) == 1 {
		work[0]()
		return
	}
	next := make(chan func())
	var wg sync.WaitGroup
	for range min(n, len(work)) {
		wg.Go(func() {
			for f := range next {
				f()
			}
		})
	}
	for _, f := range work {
		next <- f
	}
	close(next)
	wg.Wait()
}
