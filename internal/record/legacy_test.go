package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"testing"
	"time"

	"github.com/pierrec/lz4/v4"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"
)

// message encodes one message of format 0 or 1 with kmsg's structs.
func message(magic int8, offset int64, attr int8, ts int64, key, value []byte) []byte {
	var b []byte
	if magic == 0 {
		m := kmsg.MessageV0{Offset: offset, Attributes: attr, Key: key, Value: value}
		b = m.AppendTo(nil)
	} else {
		m := kmsg.MessageV1{Offset: offset, Magic: magic, Attributes: attr, Timestamp: ts, Key: key, Value: value}
		b = m.AppendTo(nil)
	}
	return resealMessage(b)
}

func resealMessage(b []byte) []byte {
	binary.BigEndian.PutUint32(b[setSizeAt:], uint32(len(b)-setEntry))
	binary.BigEndian.PutUint32(b[setEntry:], crc32.ChecksumIEEE(b[setEntry+4:]))
	return b
}

func wrap(t testing.TB, magic int8, c Codec, ts int64, set []byte) []byte {
	t.Helper()
	packed, err := Compress(nil, set, c)
	if err != nil {
		t.Fatal(err)
	}
	return message(magic, 0, int8(c), ts, nil, packed)
}

func oldSample() []Record {
	return []Record{
		{Timestamp: 100, Key: []byte("a"), Value: []byte("1")},
		{Timestamp: 90, Key: nil, Value: []byte("2")},
		{Timestamp: 120, Key: []byte{}, Value: nil},
		{Timestamp: -1, Key: []byte("d"), Value: []byte{}},
	}
}

func oldSet(magic int8, firstOffset int64, rs []Record) []byte {
	var set []byte
	for i, r := range rs {
		set = append(set, message(magic, firstOffset+int64(i), 0, r.Timestamp, r.Key, r.Value)...)
	}
	return set
}

func TestUpConvert(t *testing.T) {
	for magic := range int8(2) {
		want := oldSample()
		if magic == 0 {
			for i := range want {
				want[i].Timestamp = NoTimestamp
			}
		}
		for _, c := range codecs[:4] {
			set := oldSet(magic, 1000, oldSample())
			if c != None {
				set = wrap(t, magic, c, 120, set)
			}
			b, err := UpConvert(set, ValidateOptions{})
			if err != nil {
				t.Fatalf("magic %d, %s: %v", magic, c, err)
			}
			h, err := Validate(b, ValidateOptions{})
			if err != nil || h.Codec() != c || h.ProducerID() != NoProducerID {
				t.Fatalf("magic %d, %s: result: %s, %v", magic, c, h.Codec(), err)
			}
			checkRecords(t, collect(t, b), want, 0)
		}
	}
}

func TestUpConvertMixed(t *testing.T) {
	rs := oldSample()
	set := oldSet(1, 5, rs[:1])
	set = append(set, wrap(t, 1, Gzip, 120, oldSet(1, 0, rs[1:3]))...)
	set = append(set, wrap(t, 1, Snappy, 120, oldSet(1, 0, rs[3:]))...)
	b, err := UpConvert(set, ValidateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if h, err := Validate(b, ValidateOptions{}); err != nil || h.Codec() != Gzip {
		t.Errorf("%s, %v", h.Codec(), err)
	}
	checkRecords(t, collect(t, b), rs, 0)
}

// Format 0's lz4 frames carry a wrong header checksum (KAFKA-3160).
func TestUpConvertOldLz4(t *testing.T) {
	set := oldSet(0, 0, oldSample()[:2])
	b, err := UpConvert(message(0, 1, int8(Lz4), 0, nil, lz4Old(t, set, lz4.BlockSizeOption(lz4.Block64Kb))), ValidateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := collect(t, b); len(got) != 2 {
		t.Errorf("%d records", len(got))
	}
}

func TestUpConvertRefuses(t *testing.T) {
	one := message(1, 0, 0, 5, []byte("k"), []byte("v"))
	tests := []struct {
		name string
		opt  ValidateOptions
		set  []byte
		want error
	}{
		{"empty", ValidateOptions{}, nil, ErrInvalidRecord},
		{"cut", ValidateOptions{}, one[:len(one)-1], ErrShort},
		{"cut in the second entry's header", ValidateOptions{}, append(bytes.Clone(one), 0, 0, 0), ErrShort},
		{"crc", ValidateOptions{}, func() []byte { b := bytes.Clone(one); b[len(b)-1] ^= 1; return b }(), ErrCorrupt},
		{"negative size", ValidateOptions{}, func() []byte { b := bytes.Clone(one); b[setSizeAt] = 0x80; return b }(), ErrCorrupt},
		{"format 1 in format 0's size", ValidateOptions{}, resealMessage(append(make([]byte, setEntry+4), 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)), ErrCorrupt},
		{"magic 2", ValidateOptions{}, message(2, 0, 0, 5, nil, nil), ErrUnsupportedMagic},
		{"key leaves", ValidateOptions{}, func() []byte { b := bytes.Clone(one); b[setEntry+17] = 200; return resealMessage(b) }(), ErrInvalidRecord},
		{"bytes behind the value", ValidateOptions{}, resealMessage(append(bytes.Clone(one), 0)), ErrInvalidRecord},
		{"codec 5", ValidateOptions{}, message(1, 0, 5, 5, nil, nil), ErrUnsupportedCodec},
		{"zstd", ValidateOptions{}, wrap(t, 1, Zstd, 5, one), ErrUnsupportedCodec},
		{"log append time", ValidateOptions{}, message(1, 0, attrLogAppendTime, 5, nil, nil), ErrTimestampType},
		{"nested", ValidateOptions{}, wrap(t, 1, Gzip, 5, wrap(t, 1, Gzip, 5, one)), ErrInvalidRecord},
		{"empty wrapper", ValidateOptions{}, wrap(t, 1, Gzip, 5, nil), ErrInvalidRecord},
		{"null wrapper", ValidateOptions{}, message(1, 0, int8(Gzip), 5, nil, nil), ErrCorrupt},
		{"null key, compacted", ValidateOptions{RequireKeys: true}, message(1, 0, 0, 5, nil, nil), ErrInvalidRecord},
		{"max bytes", ValidateOptions{MaxBytes: 10}, one, ErrTooLarge},
		{"bomb", ValidateOptions{MaxDecompressed: 1 << 20}, wrap(t, 1, Gzip, 5, message(1, 0, 0, 5, nil, make([]byte, 2<<20))), ErrTooLarge},
		{
			"a wrapper and a message over the bound together",
			ValidateOptions{MaxDecompressed: 1 << 20},
			append(message(1, 0, 0, 5, nil, make([]byte, 600<<10)), wrap(t, 1, Gzip, 5, message(1, 0, 0, 5, nil, make([]byte, 600<<10)))...), ErrTooLarge,
		},
		{"two wrappers over the bound together", ValidateOptions{MaxDecompressed: 1 << 20}, bytes.Repeat(wrap(t, 1, Gzip, 5, message(1, 0, 0, 5, nil, make([]byte, 600<<10))), 2), ErrTooLarge},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := UpConvert(tc.set, tc.opt); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

func TestDownConvert(t *testing.T) {
	for magic := range int8(2) {
		for _, c := range codecs {
			b := build(t, &Builder{Codec: c, BaseOffset: 50}, sample()...)
			out, err := DownConvert([]byte("before"), b, magic)
			if err != nil || !bytes.HasPrefix(out, []byte("before")) {
				t.Fatalf("magic %d, %s: %v", magic, c, err)
			}
			var got []Record
			for i, r := range franzRead(t, out[6:]) {
				g := Record{Offset: r.Offset, OffsetDelta: int32(i), Timestamp: r.Timestamp.UnixMilli(), Key: r.Key, Value: r.Value}
				got = append(got, g)
			}
			want := sample()
			for i := range want {
				want[i].Headers = nil // old formats have none
				if magic == 0 {
					want[i].Timestamp = got[i].Timestamp
				}
			}
			checkRecords(t, got, want, 50)
		}
	}
}

func TestDownConvertKinds(t *testing.T) {
	control := &Builder{Control: true, Transactional: true}
	control.SetProducer(1, 0, 0)
	out, err := DownConvert(nil, build(t, control, Record{Key: []byte{0, 0, 0, 1}, Value: []byte{}}), 1)
	if err != nil || len(out) != 0 {
		t.Errorf("control batch: %x, %v", out, err)
	}
	b := build(t, &Builder{}, sample()...)
	SetLogAppendTime(b, 777)
	out, err = DownConvert(nil, b, 1)
	if err != nil {
		t.Fatal(err)
	}
	m, _, err := nextLegacy(out)
	if err != nil || m.attributes != attrLogAppendTime || m.timestamp != 777 {
		t.Errorf("log append time: %+v, %v", m, err)
	}
	if _, err := DownConvert(nil, b, 2); !errors.Is(err, ErrUnsupportedMagic) {
		t.Errorf("magic 2: %v", err)
	}
	dst := []byte("keep")
	if out, err := DownConvert(dst, b[:len(b)-1], 1); !errors.Is(err, ErrShort) || string(out) != "keep" {
		t.Errorf("cut: %q, %v", out, err)
	}
}

// Down and up again loses headers, and nothing else.
func TestDownUpProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var rs []Record
		for range rapid.IntRange(1, 10).Draw(rt, "n") {
			rs = append(rs, Record{
				Timestamp: rapid.Int64Range(0, 1<<50).Draw(rt, "ts"),
				Key:       rapid.SliceOf(rapid.Byte()).Draw(rt, "key"), Value: rapid.SliceOf(rapid.Byte()).Draw(rt, "value"),
			})
		}
		b := build(t, &Builder{Codec: rapid.SampledFrom(codecs).Draw(rt, "codec"), BaseOffset: 9}, rs...)
		old, err := DownConvert(nil, b, 1)
		if err != nil {
			rt.Fatal(err)
		}
		up, err := UpConvert(old, ValidateOptions{})
		if err != nil {
			rt.Fatal(err)
		}
		checkRecords(t, collect(t, up), rs, 0)
	})
}

// What kafka-go sends, in both formats, with every codec it has there.
func TestKafkaGoEncoding(t *testing.T) {
	for version := int8(1); version <= 2; version++ {
		for _, c := range codecs {
			if version == 1 && c == Zstd {
				continue
			}
			at := time.UnixMilli(12345)
			rs := protocol.RecordSet{Version: version, Attributes: protocol.Attributes(c), Records: protocol.NewRecordReader(
				protocol.Record{Time: at, Key: protocol.NewBytes([]byte("k")), Value: protocol.NewBytes([]byte("v"))},
				protocol.Record{Time: at.Add(time.Second), Value: protocol.NewBytes([]byte("w"))},
			)}
			var buf bytes.Buffer
			if _, err := rs.WriteTo(&buf); err != nil {
				t.Fatal(err)
			}
			b := buf.Bytes()[4:]
			if version == 1 {
				up, err := UpConvert(b, ValidateOptions{})
				if err != nil {
					t.Fatalf("version %d, %s: %v", version, c, err)
				}
				b = up
			}
			if _, err := Validate(b, ValidateOptions{}); err != nil {
				t.Fatalf("version %d, %s: %v", version, c, err)
			}
			checkRecords(t, collect(t, b), []Record{
				{Timestamp: 12345, Key: []byte("k"), Value: []byte("v")}, {Timestamp: 13345, Value: []byte("w")},
			}, 0)
		}
	}
}

// kafka-go reads what we build.
func TestKafkaGoReadsOurs(t *testing.T) {
	for _, c := range codecs {
		b := build(t, &Builder{Codec: c}, sample()...)
		framed := append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
		var rs protocol.RecordSet
		if _, err := rs.ReadFrom(bytes.NewReader(framed)); err != nil {
			t.Fatalf("%s: %v", c, err)
		}
		n := 0
		for ; ; n++ {
			r, err := rs.Records.ReadRecord()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: record %d: %v", c, n, err)
			}
			v, err := protocol.ReadAll(r.Value)
			if err != nil || !bytes.Equal(v, sample()[n].Value) {
				t.Errorf("%s: record %d: %.20q, %v", c, n, v, err)
			}
		}
		if n != 4 {
			t.Errorf("%s: %d records", c, n)
		}
	}
}
