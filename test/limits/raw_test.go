package limits

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/record"
	"chronik/test/harness"
)

// rawConn is a connection without a client library: it offers what no library would.
type rawConn struct {
	net.Conn
	br   *bufio.Reader
	next int32
}

// dial connects. window > 0 keeps the kernel from taking more than about that for us.
func dial(addr string, window int) (*rawConn, error) {
	d := net.Dialer{Timeout: 10 * time.Second}
	if window > 0 {
		d.Control = func(_, _ string, c syscall.RawConn) (err error) {
			cerr := c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, window) })
			if cerr != nil {
				return cerr
			}
			return err
		}
	}
	nc, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	// As the Java client does. Clients run on the nodes' machine here, and the kernel would hold megabytes for each.
	if err := nc.(*net.TCPConn).SetWriteBuffer(128 << 10); err != nil {
		_ = nc.Close()
		return nil, err
	}
	return &rawConn{Conn: nc, br: bufio.NewReaderSize(nc, 4<<10)}, nil
}

var formatter = kmsg.NewRequestFormatter(kmsg.FormatterClientID("limits"))

// send writes a request.
func (c *rawConn) send(req kmsg.Request) error {
	c.next++
	_, err := c.Write(formatter.AppendRequest(nil, req, c.next))
	return err
}

// frame reads one response behind its correlation id.
func (c *rawConn) frame() ([]byte, error) {
	var head [8]byte
	if _, err := io.ReadFull(c.br, head[:]); err != nil {
		return nil, err
	}
	n := int32(binary.BigEndian.Uint32(head[:]))
	if n < 4 || n > 200<<20 {
		return nil, fmt.Errorf("response of %d bytes", n)
	}
	b := make([]byte, n-4)
	_, err := io.ReadFull(c.br, b)
	return b, err
}

// ask sends a request and reads its response.
func (c *rawConn) ask(req kmsg.Request, resp kmsg.Response) error {
	if err := c.send(req); err != nil {
		return err
	}
	b, err := c.frame()
	if err != nil {
		return err
	}
	resp.SetVersion(req.GetVersion())
	if resp.IsFlexible() && resp.Key() != int16(kmsg.ApiVersions) {
		b = b[1:] // no tags
	}
	return resp.ReadFrom(b)
}

// batch is a record batch of n records of size bytes each.
func batch(tb testing.TB, n, size int) []byte {
	tb.Helper()
	var b record.Builder
	value := make([]byte, size)
	for i := range n {
		for j := range value {
			value[j] = byte(i*31 + j*7)
		}
		b.Append(record.Record{Timestamp: time.Now().UnixMilli(), Value: value})
	}
	out, err := b.Build()
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// produceRequest carries one batch with acks=all.
func produceRequest(topic string, partition int32, batch []byte) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.Version, req.Acks, req.TimeoutMillis = 9, -1, 30_000
	t := kmsg.NewProduceRequestTopic()
	t.Topic = topic
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = partition, batch
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	return req
}

// produceError returns a response's error.
func produceError(r *kmsg.ProduceResponse) int16 {
	for _, t := range r.Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode != 0 {
				return p.ErrorCode
			}
		}
	}
	return 0
}

// fetchRequest asks for up to size bytes at once.
func fetchRequest(topic string, partition int32, offset int64, size int32) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.Version, req.ReplicaID, req.MaxBytes, req.MinBytes, req.MaxWaitMillis, req.SessionEpoch = 12, -1, size, 1, 100, -1
	t := kmsg.NewFetchRequestTopic()
	t.Topic = topic
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes, p.CurrentLeaderEpoch, p.LastFetchedEpoch = partition, offset, size, -1, -1
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	return req
}

// first produces a record to the node at addr, which must lead the partition.
func first(addr, topic string, partition int32, b []byte) error {
	x, err := dial(addr, 0)
	if err != nil {
		return err
	}
	defer func() { _ = x.Close() }()
	resp := kmsg.NewPtrProduceResponse()
	if err := x.ask(produceRequest(topic, partition, b), resp); err != nil {
		return err
	}
	return kerr.ErrorForCode(produceError(resp))
}

// leaders returns the Kafka address of each partition's leader, which has taken a record.
func leaders(c *harness.Cluster, topic string) []string {
	c.TB.Helper()
	var addrs []string
	b := batch(c.TB, 1, 10)
	adm := kadm.NewClient(c.Client())
	c.Eventually(20*time.Second, "partitions have leaders", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		m, err := adm.Metadata(ctx, topic)
		if err != nil {
			return err
		}
		addrs = nil
		for _, p := range m.Topics[topic].Partitions.Sorted() {
			for _, b := range m.Brokers {
				if b.NodeID == p.Leader {
					addrs = append(addrs, fmt.Sprintf("%s:%d", b.Host, b.Port))
				}
			}
		}
		if n := len(m.Topics[topic].Partitions); n == 0 || len(addrs) != n {
			return fmt.Errorf("%d of %d partitions have a leader", len(addrs), n)
		}
		for i, addr := range addrs {
			if err := first(addr, topic, int32(i), b); err != nil {
				return fmt.Errorf("partition %d at %s: %w", i, addr, err)
			}
		}
		return nil
	})
	return addrs
}
