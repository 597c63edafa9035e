package wire

import (
	"bytes"
	"context"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func patternOf(n int, id int32) []byte {
	return bytes.Repeat([]byte{byte(id), byte(id >> 8), 1, 2, 3, 4, 5}, n/7+1)[:n]
}

// A frame is read into what an earlier request has left, whatever its size; what
// was not released stays as it is.
func TestReleasedFramesAreReused(t *testing.T) {
	var mu sync.Mutex
	kept := map[int32][]byte{}
	r := start(t, Options{Memory: NewQuota(1 << 30)}, func(_ context.Context, req *Request, reply func(kmsg.Response)) {
		b := req.Body.(*kmsg.ProduceRequest).Topics[0].Partitions[0].Records
		if !bytes.Equal(b, patternOf(len(b), req.CorrelationID)) {
			t.Errorf("request %d: %d bytes are not what was sent", req.CorrelationID, len(b))
		}
		if req.CorrelationID%3 == 0 {
			mu.Lock()
			kept[req.CorrelationID] = b
			mu.Unlock()
		} else {
			clear(b) // whoever still reads it sees that
			req.Release()
		}
		reply(req.Body.ResponseKind())
	})
	var wg sync.WaitGroup
	for k := range int32(3) {
		c := r.dial()
		wg.Go(func() {
			for i := range int32(12) {
				id := 100*k + i
				size := []int{10, 70_000, 1000, 300_000, 64 << 10, 400_000}[i%6]
				req := produceOf(0)
				req.(*kmsg.ProduceRequest).Topics[0].Partitions[0].Records = patternOf(size, id)
				c.send(id, req)
				if got, _ := c.recv(); got != id {
					t.Errorf("response to %d, want %d", got, id)
				}
			}
		})
	}
	wg.Wait()
	for id, b := range kept {
		if !bytes.Equal(b, patternOf(len(b), id)) {
			t.Errorf("request %d was not released and has changed", id)
		}
	}
	if len(kept) == 0 {
		t.Error("nothing was kept")
	}
}

// The bytes of a request are given back once, whether its handler does so before the
// response, after it, or on a connection that is gone.
func TestRequestsAreGivenBackOnce(t *testing.T) {
	q := NewQuota(1 << 30)
	served := make(chan int64)
	r := start(t, Options{Memory: q}, func(_ context.Context, req *Request, reply func(kmsg.Response)) {
		switch req.CorrelationID {
		case 1:
			req.GiveBack()
			served <- q.Used()
			reply(req.Body.ResponseKind())
		case 2:
			reply(req.Body.ResponseKind())
			req.GiveBack()
			req.GiveBack()
		case 3:
			req.Conn.Close()
			req.GiveBack()
			reply(req.Body.ResponseKind())
		case 4:
			reply(req.Body.ResponseKind())
			req.Conn.Close()
			req.GiveBack()
		}
	})
	for id := range int32(4) {
		c := r.dial()
		c.send(id+1, produceOf(1))
		if id == 0 {
			if used := <-served; used != 0 {
				t.Errorf("%d bytes held by a request that was given back", used)
			}
		}
		if id < 2 {
			c.recv()
		} else {
			c.expectClosed()
		}
	}
	if err := r.srv.Close(t.Context()); err != nil { // everything has ended
		t.Fatal(err)
	}
	if q.Used() != 0 {
		t.Errorf("%d bytes held", q.Used())
	}
}
