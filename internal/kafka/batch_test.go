package kafka

import (
	"fmt"
	"testing"

	"chronik/internal/partition"
	"chronik/internal/record"
)

// batchOf builds a batch with one record for each time.
func batchOf(t testing.TB, codec record.Codec, times ...int64) []byte {
	t.Helper()
	b := record.Builder{Codec: codec}
	for i, ts := range times {
		b.Append(record.Record{Timestamp: ts, Key: fmt.Appendf(nil, "k%d", i), Value: fmt.Appendf(nil, "v%d", i)})
	}
	raw, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// appendRecords writes one batch to a partition.
func appendRecords(t testing.TB, p *fakePartition, times ...int64) {
	t.Helper()
	p.Append(batchOf(t, record.None, times...), partition.AppendOptions{Acks: -1}, func(r partition.AppendResult) {
		if r.Err != nil {
			t.Error(r.Err)
		}
	})
}

// values reads the records of stored batches.
func values(t testing.TB, data []byte) []string {
	t.Helper()
	var got []string
	if err := record.ForEach(data, func(r record.Record) error {
		got = append(got, fmt.Sprintf("%d=%s", r.Offset, r.Value))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}
