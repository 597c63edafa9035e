package kafka

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/metadata"
	"chronik/internal/wire"
)

// InitProducerId: versions 0 to 5.
//
//	v2  flexible
//	v3  the producer's own id and epoch: without a transactional id it gets a new id all the same
//	v5  TRANSACTION_ABORTABLE may come back: there are no transactions

// producerIDTimeout bounds how long a producer waits for a block of ids.
const producerIDTimeout = 10 * time.Second

func initProducerID(h *Handler, ctx context.Context, r *wire.Request, req *kmsg.InitProducerIDRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.InitProducerIDResponse)
	resp.ProducerID, resp.ProducerEpoch = -1, -1
	if req.TransactionalID != nil {
		resp.ErrorCode = h.code(r.Key, errNoTransactions)
		return resp
	}
	ctx, cancel := context.WithTimeout(ctx, producerIDTimeout)
	defer cancel()
	id, err := h.nextProducerID(ctx)
	if err != nil {
		if k := lookupError(err); k != nil && k.Retriable {
			err = kerr.CoordinatorLoadInProgress // what old Java producers repeat after; other codes are fatal to them
		}
		resp.ErrorCode = h.code(r.Key, err)
		return resp
	}
	resp.ProducerID, resp.ProducerEpoch = id, 0
	return resp
}

// nextProducerID takes an id of this node's block, and a new block when it is
// used up. Whoever finds it used up asks without the lock; blocks are plenty, so
// one that comes while another is still in use is dropped.
func (h *Handler) nextProducerID(ctx context.Context) (int64, error) {
	b := &h.producerIDs
	b.Lock()
	if b.next < b.end {
		defer b.Unlock()
		b.next++
		return b.next - 1, nil
	}
	b.Unlock()
	cmd := &metadata.AllocateProducerIDs{Node: h.cluster.Self()}
	block, err := submit[metadata.ProducerIDBlock](ctx, h, cmd)
	if err != nil {
		return 0, err
	}
	if block.Count < 1 {
		return 0, errWrongResult(cmd, block)
	}
	b.Lock()
	defer b.Unlock()
	if b.next >= b.end {
		b.next, b.end = block.First+1, block.First+int64(block.Count)
	}
	return block.First, nil
}
