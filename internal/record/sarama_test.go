package record

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// saramaSends returns the records of one produce request as sarama writes it.
func saramaSends(t *testing.T, req *sarama.ProduceRequest) []byte {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	frames := make(chan []byte, 1)
	go func() {
		defer close(frames)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		var size [4]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(c, b); err == nil {
			frames <- b
		}
	}()
	conf := sarama.NewConfig()
	conf.ApiVersionsRequest = false
	b := sarama.NewBroker(l.Addr().String())
	if err := b.Open(conf); err != nil {
		t.Fatal(err)
	}
	_, _ = b.Produce(req) // fails: nobody answers
	_ = b.Close()
	_ = l.Close()
	frame, ok := <-frames
	if !ok {
		t.Fatal("sarama sent nothing")
	}
	var got kmsg.ProduceRequest
	got.Version = req.Version
	body := frame[10+binary.BigEndian.Uint16(frame[8:]):] // key, version, correlation id, client id
	if err := got.ReadFrom(body); err != nil {
		t.Fatal(err)
	}
	return got.Topics[0].Partitions[0].Records
}

func TestSaramaBatches(t *testing.T) {
	at := time.UnixMilli(5000)
	for _, c := range codecs {
		req := &sarama.ProduceRequest{Version: 7, RequiredAcks: sarama.WaitForAll, Timeout: 1000}
		batch := &sarama.RecordBatch{
			Version: 2, Codec: sarama.CompressionCodec(c), CompressionLevel: sarama.CompressionLevelDefault, ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1,
			FirstTimestamp: at, MaxTimestamp: at.Add(time.Second), LastOffsetDelta: 1,
			Records: []*sarama.Record{
				{Key: []byte("k"), Value: []byte("v"), Headers: []*sarama.RecordHeader{{Key: []byte("h"), Value: []byte("x")}}},
				{TimestampDelta: time.Second, OffsetDelta: 1, Value: []byte("w")},
			},
		}
		req.AddBatch("t", 0, batch)
		b := saramaSends(t, req)
		if _, err := Validate(b, ValidateOptions{}); err != nil {
			t.Fatalf("%s: %v", c, err)
		}
		checkRecords(t, collect(t, b), []Record{
			{Timestamp: 5000, Key: []byte("k"), Value: []byte("v"), Headers: []HeaderField{{"h", []byte("x")}}},
			{Timestamp: 6000, Value: []byte("w")},
		}, 0)
	}
}

func TestSaramaMessageSets(t *testing.T) {
	for magic := range int8(2) {
		req := &sarama.ProduceRequest{Version: 2, RequiredAcks: sarama.WaitForAll, Timeout: 1000}
		req.AddSet("t", 0, &sarama.MessageSet{Messages: []*sarama.MessageBlock{
			{Offset: 0, Msg: &sarama.Message{Version: magic, Key: []byte("k"), Value: []byte("v"), Timestamp: time.UnixMilli(70)}},
			{Offset: 1, Msg: &sarama.Message{Version: magic, Value: []byte("w"), Timestamp: time.UnixMilli(71)}},
		}})
		b, err := UpConvert(saramaSends(t, req), ValidateOptions{})
		if err != nil {
			t.Fatalf("magic %d: %v", magic, err)
		}
		want := []Record{{Timestamp: 70, Key: []byte("k"), Value: []byte("v")}, {Timestamp: 71, Value: []byte("w")}}
		if magic == 0 {
			want[0].Timestamp, want[1].Timestamp = NoTimestamp, NoTimestamp
		}
		checkRecords(t, collect(t, b), want, 0)
	}
}
