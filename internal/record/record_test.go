package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"
)

var codecs = []Codec{None, Gzip, Snappy, Lz4, Zstd}

// sample are records with every kind of null and empty.
func sample() []Record {
	return []Record{
		{Timestamp: 1000, Key: []byte("k0"), Value: []byte("v0")},
		{Timestamp: 990, Key: nil, Value: []byte("v1")},
		{Timestamp: 1500, Key: []byte{}, Value: nil, Headers: []HeaderField{{"h", []byte("x")}, {"", nil}, {"e", []byte{}}}},
		{Timestamp: 1200, Key: []byte("k3"), Value: bytes.Repeat([]byte("long "), 5000)},
	}
}

func build(t testing.TB, b *Builder, rs ...Record) []byte {
	t.Helper()
	for _, r := range rs {
		b.Append(r)
	}
	out, err := b.Build()
	if err != nil {
		t.Fatalf("build: %v", err)
	}
	return out
}

// collect returns deep copies of the records in b.
func collect(t testing.TB, b []byte) []Record {
	t.Helper()
	var out []Record
	err := ForEach(b, func(r Record) error {
		r.Key, r.Value, r.Headers = bytes.Clone(r.Key), bytes.Clone(r.Value), slices.Clone(r.Headers)
		for i, h := range r.Headers {
			r.Headers[i].Value = bytes.Clone(h.Value)
		}
		out = append(out, r)
		return nil
	})
	if err != nil {
		t.Fatalf("for each: %v", err)
	}
	return out
}

func sameBytes(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

func checkRecords(t testing.TB, got, want []Record, base int64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d records, want %d", len(got), len(want))
	}
	for i, g := range got {
		w := want[i]
		if g.Offset != base+int64(i) || g.OffsetDelta != int32(i) || g.Timestamp != w.Timestamp {
			t.Errorf("record %d: offset %d, delta %d, timestamp %d; want %d, %d, %d", i, g.Offset, g.OffsetDelta, g.Timestamp, base+int64(i), i, w.Timestamp)
		}
		if !sameBytes(g.Key, w.Key) || !sameBytes(g.Value, w.Value) {
			t.Errorf("record %d: %q=%q, want %q=%q", i, g.Key, g.Value, w.Key, w.Value)
		}
		if !slices.EqualFunc(g.Headers, w.Headers, func(a, b HeaderField) bool { return a.Key == b.Key && sameBytes(a.Value, b.Value) }) {
			t.Errorf("record %d: headers %q, want %q", i, g.Headers, w.Headers)
		}
	}
}

func TestBuildValidateForEach(t *testing.T) {
	for _, c := range codecs {
		t.Run(c.String(), func(t *testing.T) {
			b := build(t, &Builder{Codec: c}, sample()...)
			h, err := Validate(b, ValidateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if h.Codec() != c || h.NumRecords() != 4 || h.LastOffsetDelta() != 3 || h.MaxTimestamp() != 1500 || h.FirstTimestamp() != 1000 ||
				h.ProducerID() != -1 || h.ProducerEpoch() != -1 || h.BaseSequence() != -1 || h.LastSequence() != -1 ||
				h.IsControl() || h.IsTransactional() || h.TimestampType() != CreateTime || h.PartitionLeaderEpoch() != -1 {
				t.Errorf("header: %x", h.Bytes()[:HeaderSize])
			}
			Stamp(b, 77, 5)
			h, n, err := ParseBatch(append(b, "behind"...))
			if err != nil || n != len(b) || len(h.Bytes()) != n {
				t.Fatalf("parse after stamp: %d of %d bytes, %v", n, len(b), err)
			}
			if h.BaseOffset() != 77 || h.LastOffset() != 80 || h.NextOffset() != 81 || h.PartitionLeaderEpoch() != 5 {
				t.Errorf("stamped %d..%d epoch %d", h.BaseOffset(), h.LastOffset(), h.PartitionLeaderEpoch())
			}
			checkRecords(t, collect(t, b), sample(), 77)
		})
	}
}

// The generated structs of kmsg and kgo's compressors are what a franz-go
// client sends: a second opinion on the format.
func TestFranzEncoding(t *testing.T) {
	for _, c := range codecs {
		t.Run(c.String(), func(t *testing.T) {
			b := franzBatch(t, c, sample())
			if _, err := Validate(b, ValidateOptions{}); err != nil {
				t.Fatal(err)
			}
			checkRecords(t, collect(t, b), sample(), 0)
		})
	}
}

func franzBatch(t testing.TB, c Codec, rs []Record) []byte {
	t.Helper()
	var body []byte
	rb := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1, Magic: 2, Attributes: int16(c), LastOffsetDelta: int32(len(rs) - 1),
		FirstTimestamp: rs[0].Timestamp, ProducerID: 9, ProducerEpoch: 1, FirstSequence: 3, NumRecords: int32(len(rs)),
	}
	for i, r := range rs {
		rb.MaxTimestamp = max(rb.MaxTimestamp, r.Timestamp)
		k := kmsg.Record{TimestampDelta64: r.Timestamp - rs[0].Timestamp, OffsetDelta: int32(i), Key: r.Key, Value: r.Value}
		for _, h := range r.Headers {
			k.Headers = append(k.Headers, kmsg.Header{Key: h.Key, Value: h.Value})
		}
		enc := k.AppendTo(nil)
		k.Length = int32(len(enc) - 1) // less the one-byte length 0 itself
		body = k.AppendTo(body)
	}
	if c != None {
		comp, err := kgo.DefaultCompressor([]kgo.CompressionCodec{{}, kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()}[c])
		if err != nil {
			t.Fatal(err)
		}
		out, used := comp.Compress(new(bytes.Buffer), body)
		if Codec(used) != c {
			t.Fatalf("kgo compressed with %d", used)
		}
		body = out
	}
	rb.Records = body
	b := rb.AppendTo(nil)
	binary.BigEndian.PutUint32(b[offBatchLength:], uint32(len(b)-lengthOverhead))
	binary.BigEndian.PutUint32(b[offCRC:], crc32.Checksum(b[offAttributes:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// franzRead decodes what a broker would return as a franz-go consumer does.
func franzRead(t testing.TB, data []byte) []*kgo.Record {
	t.Helper()
	rp := kmsg.NewFetchResponseTopicPartition()
	rp.RecordBatches = data
	fp, _ := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{Topic: "t"}, &rp, kgo.DefaultDecompressor(), nil)
	if fp.Err != nil {
		t.Fatalf("franz-go cannot read it: %v", fp.Err)
	}
	return fp.Records
}

func TestFranzReadsOurs(t *testing.T) {
	for _, c := range codecs {
		b := build(t, &Builder{Codec: c, BaseOffset: 40}, sample()...)
		var got []Record
		for i, r := range franzRead(t, b) {
			g := Record{Offset: r.Offset, OffsetDelta: int32(i), Timestamp: r.Timestamp.UnixMilli(), Key: r.Key, Value: r.Value}
			for _, h := range r.Headers {
				g.Headers = append(g.Headers, HeaderField{h.Key, h.Value})
			}
			got = append(got, g)
		}
		checkRecords(t, got, sample(), 40)
	}
}

func TestRoundTripProperty(t *testing.T) {
	blob := rapid.Map(rapid.Ptr(rapid.SliceOfN(rapid.Byte(), 0, 50), true), func(p *[]byte) []byte {
		if p == nil {
			return nil
		}
		return append([]byte{}, *p...)
	})
	header := rapid.Custom(func(t *rapid.T) HeaderField {
		return HeaderField{Key: rapid.StringN(0, 8, 20).Draw(t, "hk"), Value: blob.Draw(t, "hv")}
	})
	rec := rapid.Custom(func(t *rapid.T) Record {
		return Record{
			Timestamp: rapid.Int64Range(-1, math.MaxInt64/4).Draw(t, "ts"), Key: blob.Draw(t, "key"), Value: blob.Draw(t, "value"),
			Headers: rapid.SliceOfN(header, 0, 3).Draw(t, "headers"),
		}
	})
	rapid.Check(t, func(rt *rapid.T) {
		rs := rapid.SliceOfN(rec, 1, 20).Draw(rt, "records")
		b := &Builder{Codec: rapid.SampledFrom(codecs).Draw(rt, "codec"), BaseOffset: rapid.Int64Range(0, 1<<40).Draw(rt, "base")}
		out := build(t, b, rs...)
		before := bytes.Clone(out)
		if _, err := Validate(out, ValidateOptions{}); err != nil {
			rt.Fatal(err)
		}
		if !bytes.Equal(before, out) {
			rt.Fatal("validate changed a correct batch")
		}
		checkRecords(t, collect(t, out), rs, b.BaseOffset)
	})
}

// reseal gives a tampered batch a valid checksum.
func reseal(b []byte) []byte { putCRC(b); return b }

func TestValidateRefuses(t *testing.T) {
	put16 := func(b []byte, at int, v int16) { binary.BigEndian.PutUint16(b[at:], uint16(v)) }
	put32 := func(b []byte, at int, v int32) { binary.BigEndian.PutUint32(b[at:], uint32(v)) }
	put64 := func(b []byte, at int, v int64) { binary.BigEndian.PutUint64(b[at:], uint64(v)) }
	tests := []struct {
		name  string
		opt   ValidateOptions
		spoil func(b []byte) []byte
		want  error
	}{
		{"flipped record byte", ValidateOptions{}, func(b []byte) []byte { b[HeaderSize+5] ^= 1; return b }, ErrCorrupt},
		{"flipped crc", ValidateOptions{}, func(b []byte) []byte { b[offCRC] ^= 1; return b }, ErrCorrupt},
		{"truncated", ValidateOptions{}, func(b []byte) []byte { return b[:len(b)-1] }, ErrShort},
		{"truncated header", ValidateOptions{}, func(b []byte) []byte { return b[:HeaderSize-1] }, ErrShort},
		{"empty", ValidateOptions{}, func([]byte) []byte { return nil }, ErrShort},
		{"two batches", ValidateOptions{}, func(b []byte) []byte { return append(b, b...) }, ErrInvalidRecord},
		{"negative length", ValidateOptions{}, func(b []byte) []byte { put32(b, offBatchLength, -5); return b }, ErrCorrupt},
		{"huge length", ValidateOptions{}, func(b []byte) []byte { put32(b, offBatchLength, math.MaxInt32); return b }, ErrCorrupt},
		{"length too small", ValidateOptions{}, func(b []byte) []byte { put32(b, offBatchLength, 48); return b }, ErrCorrupt},
		{"magic 1", ValidateOptions{}, func(b []byte) []byte { b[offMagic] = 1; return b }, ErrUnsupportedMagic},
		{"magic 3", ValidateOptions{}, func(b []byte) []byte { b[offMagic] = 3; return b }, ErrCorrupt},
		{"over max bytes", ValidateOptions{MaxBytes: 100}, func(b []byte) []byte { return b }, ErrTooLarge},
		{"codec 5", ValidateOptions{}, func(b []byte) []byte { put16(b, offAttributes, 5); return reseal(b) }, ErrUnsupportedCodec},
		{"control batch", ValidateOptions{}, func(b []byte) []byte { put16(b, offAttributes, attrControl); return reseal(b) }, ErrInvalidRecord},
		{"log append time", ValidateOptions{}, func(b []byte) []byte { put16(b, offAttributes, attrLogAppendTime); return reseal(b) }, ErrTimestampType},
		{"negative last delta", ValidateOptions{}, func(b []byte) []byte { put32(b, offLastOffsetDelta, -1); return reseal(b) }, ErrCorrupt},
		{"negative count", ValidateOptions{}, func(b []byte) []byte { put32(b, offNumRecords, -4); return reseal(b) }, ErrCorrupt},
		{"more records than offsets", ValidateOptions{}, func(b []byte) []byte { put32(b, offNumRecords, 5); return reseal(b) }, ErrCorrupt},
		{"fewer records than offsets", ValidateOptions{}, func(b []byte) []byte { put32(b, offNumRecords, 3); return reseal(b) }, ErrInvalidRecord},
		{"no records", ValidateOptions{}, func(b []byte) []byte {
			put32(b, offNumRecords, 0)
			put32(b, offLastOffsetDelta, 0)
			return reseal(b)
		}, ErrInvalidRecord},
		{"one more of both", ValidateOptions{}, func(b []byte) []byte {
			put32(b, offNumRecords, 5)
			put32(b, offLastOffsetDelta, 4)
			return reseal(b)
		}, ErrInvalidRecord},
		{"one fewer of both", ValidateOptions{}, func(b []byte) []byte {
			put32(b, offNumRecords, 3)
			put32(b, offLastOffsetDelta, 2)
			return reseal(b)
		}, ErrInvalidRecord},
		{"2^31-1 records", ValidateOptions{}, func(b []byte) []byte {
			put32(b, offNumRecords, math.MaxInt32)
			put32(b, offLastOffsetDelta, math.MaxInt32-1)
			return reseal(b)
		}, ErrInvalidRecord},
		{"wrong offset delta", ValidateOptions{}, func(b []byte) []byte { b[HeaderSize+3] = 2; return reseal(b) }, ErrInvalidRecord},
		{"record length too long", ValidateOptions{}, func(b []byte) []byte { b[HeaderSize] += 2; return reseal(b) }, ErrInvalidRecord},
		{"record length too short", ValidateOptions{}, func(b []byte) []byte { b[HeaderSize] -= 2; return reseal(b) }, ErrInvalidRecord},
		{"record length negative", ValidateOptions{}, func(b []byte) []byte { b[HeaderSize] = 1; return reseal(b) }, ErrInvalidRecord},
		{"header count beyond record", ValidateOptions{}, func(b []byte) []byte { b[HeaderSize+10] = 8; return reseal(b) }, ErrInvalidRecord},
		{"header count negative", ValidateOptions{}, func(b []byte) []byte { b[HeaderSize+10] = 1; return reseal(b) }, ErrInvalidRecord},
		{"null key on compacted topic", ValidateOptions{RequireKeys: true}, func(b []byte) []byte { return b }, ErrInvalidRecord},
		{"producer without sequence", ValidateOptions{}, func(b []byte) []byte {
			put64(b, offProducerID, 1)
			put16(b, offProducerEpoch, 0)
			return reseal(b)
		}, ErrInvalidRecord},
		{"producer id -2", ValidateOptions{}, func(b []byte) []byte { put64(b, offProducerID, -2); return reseal(b) }, ErrInvalidRecord},
		{"transactional without producer", ValidateOptions{}, func(b []byte) []byte { put16(b, offAttributes, attrTransactional); return reseal(b) }, ErrInvalidRecord},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			b := tc.spoil(build(t, &Builder{}, sample()...))
			if _, err := Validate(b, tc.opt); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

// A tampered batch must be refused behind compression as well.
func TestValidateWalksCompressed(t *testing.T) {
	plain := build(t, &Builder{}, sample()...)
	for _, c := range codecs[1:] {
		for name, spoil := range map[string]func(body []byte) []byte{
			"wrong offset delta": func(b []byte) []byte { b[3] = 2; return b },
			"truncated":          func(b []byte) []byte { return b[:len(b)-1] },
			"trailing":           func(b []byte) []byte { return append(b, 0) },
		} {
			body := spoil(bytes.Clone(plain[HeaderSize:]))
			b, err := Compress(bytes.Clone(plain[:HeaderSize]), body, c)
			if err != nil {
				t.Fatal(err)
			}
			binary.BigEndian.PutUint32(b[offBatchLength:], uint32(len(b)-lengthOverhead))
			binary.BigEndian.PutUint16(b[offAttributes:], uint16(c))
			reseal(b)
			if _, err := Validate(b, ValidateOptions{}); !errors.Is(err, ErrInvalidRecord) {
				t.Errorf("%s, %s: %v", c, name, err)
			}
			if _, err := Validate(b, ValidateOptions{SkipRecords: true}); err != nil {
				t.Errorf("%s, %s, records skipped: %v", c, name, err)
			}
			if err := ForEach(b, func(Record) error { return nil }); name != "wrong offset delta" && !errors.Is(err, ErrInvalidRecord) {
				t.Errorf("%s, %s: for each: %v", c, name, err)
			}
		}
		b := build(t, &Builder{Codec: c}, sample()...)
		reseal(b[:copy(b, b[:len(b)-6])])
		short := b[:len(b)-6]
		binary.BigEndian.PutUint32(short[offBatchLength:], uint32(len(short)-lengthOverhead))
		reseal(short)
		if _, err := Validate(short, ValidateOptions{}); err == nil {
			t.Errorf("%s: compressed bytes cut short pass", c)
		}
	}
}

func TestValidateSetsMaxTimestampRight(t *testing.T) {
	b := build(t, &Builder{}, sample()...)
	setMaxTimestamp(b, 7)
	h, err := Validate(b, ValidateOptions{})
	if err != nil || h.MaxTimestamp() != 1500 {
		t.Fatalf("max timestamp %d, %v", h.MaxTimestamp(), err)
	}
	if _, _, err := ParseBatch(b); err != nil {
		t.Fatalf("checksum after the correction: %v", err)
	}
}

func TestSetLogAppendTime(t *testing.T) {
	b := build(t, &Builder{Codec: Gzip}, sample()...)
	SetLogAppendTime(b, 4242)
	h, _, err := ParseBatch(b)
	if err != nil || h.TimestampType() != LogAppendTime || h.MaxTimestamp() != 4242 || h.Codec() != Gzip {
		t.Fatalf("%x, %v", b[:HeaderSize], err)
	}
	for _, r := range collect(t, b) {
		if r.Timestamp != 4242 {
			t.Errorf("record timestamp %d", r.Timestamp)
		}
	}
}

func TestForEachManyBatchesAndStop(t *testing.T) {
	a := build(t, &Builder{}, sample()...)
	b := build(t, &Builder{Codec: Lz4, BaseOffset: 4}, sample()...)
	all := append(bytes.Clone(a), b...)
	if got := collect(t, all); len(got) != 8 || got[7].Offset != 7 {
		t.Errorf("%d records", len(got))
	}
	stop := errors.New("enough")
	n := 0
	err := ForEach(all, func(Record) error {
		if n++; n == 5 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || n != 5 {
		t.Errorf("stopped after %d: %v", n, err)
	}
	if err := ForEach(all[:len(all)-1], func(Record) error { return nil }); !errors.Is(err, ErrShort) {
		t.Errorf("cut: %v", err)
	}
}

func TestHeaderOfAPrefix(t *testing.T) {
	b := build(t, &Builder{}, sample()...)
	h, err := Header(b[:HeaderSize])
	if err != nil || h.Size() != len(b) || len(h.Bytes()) != HeaderSize {
		t.Fatalf("size %d of %d, %v", h.Size(), len(b), err)
	}
	if err := h.ForEach(func(Record) error { return nil }); !errors.Is(err, ErrShort) {
		t.Errorf("walk of a prefix: %v", err)
	}
}

func TestLastSequenceWraps(t *testing.T) {
	b := &Builder{}
	b.SetProducer(1, 0, math.MaxInt32-1)
	h, err := Header(build(t, b, sample()...))
	if err != nil || h.LastSequence() != 1 {
		t.Errorf("last sequence %d, %v", h.LastSequence(), err)
	}
}

func TestBuilderRefuses(t *testing.T) {
	if _, err := new(Builder).Build(); !errors.Is(err, ErrInvalidRecord) {
		t.Errorf("empty: %v", err)
	}
	b := &Builder{Codec: 6}
	b.Append(Record{})
	if _, err := b.Build(); !errors.Is(err, ErrUnsupportedCodec) {
		t.Errorf("codec 6: %v", err)
	}
}

func TestNoAllocations(t *testing.T) {
	plain := build(t, &Builder{}, sample()...)
	var sink int64
	for name, fn := range map[string]func(){
		"Header":            func() { h, _ := Header(plain); sink += h.LastOffset() },
		"ParseBatch":        func() { h, n, _ := ParseBatch(plain); sink += h.MaxTimestamp() + int64(n) },
		"Stamp":             func() { Stamp(plain, sink, 3) },
		"SetLogAppendTime":  func() { SetLogAppendTime(plain, 5) },
		"Validate skipping": func() { _, _ = Validate(plain, ValidateOptions{SkipRecords: true}) },
	} {
		if n := testing.AllocsPerRun(100, fn); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	plain = build(t, &Builder{}, sample()...)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := Validate(plain, ValidateOptions{RequireKeys: false}); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("Validate: %v allocations", n)
	}
}

func TestCodecNames(t *testing.T) {
	for i, want := range []string{"none", "gzip", "snappy", "lz4", "zstd", "codec-5"} {
		if got := Codec(i).String(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
