package kafka

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/ident"
	"chronik/internal/partition"
	"chronik/internal/record"
)

// nothing is a partition that accepts and forgets.
type nothing struct{ *fakePartition }

func (nothing) Append(_ []byte, _ partition.AppendOptions, done func(partition.AppendResult)) {
	done(partition.AppendResult{LogAppendTimeMs: -1})
}

// oneFake is a cluster whose only partition is nothing.
type oneFake struct {
	*fakeCluster
	p Partition
}

func (o *oneFake) Partition(ident.GroupID) Partition { return o.p }

// BenchmarkProduce is the handler's own cost for one batch of 16 KiB: lookup,
// validation, response.
func BenchmarkProduce(b *testing.B) {
	f := newFakeCluster(b)
	f.topic("orders", 1, nil)
	h := NewHandler(Options{Cluster: &oneFake{f, nothing{newFakePartition()}}})
	builder := record.Builder{}
	for range 16 {
		builder.Append(record.Record{Timestamp: now(), Key: []byte("k"), Value: make([]byte, 1000)})
	}
	raw, err := builder.Build()
	if err != nil {
		b.Fatal(err)
	}
	req := request(b, produceOf("orders", -1, raw))
	b.ReportAllocs()
	for b.Loop() {
		h.Serve(b.Context(), req, func(kmsg.Response) {})
	}
}
