package wire

import (
	"context"
	"net"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// crowd gives arrays elements, and texts and bytes a length.
func crowd(v reflect.Value) {
	switch v.Kind() { //nolint:exhaustive // the others have a size
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		crowd(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Field(i); f.CanSet() && v.Type().Field(i).Name != "UnknownTags" {
				crowd(f)
			}
		}
	case reflect.String:
		v.SetString(strings.Repeat("n", 30))
	case reflect.Slice:
		n := 12
		if v.Type().Elem().Kind() == reflect.Uint8 {
			n = 1000
		}
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			crowd(v.Index(i))
		}
	}
}

// TestSizeHints: no response that a node gives is much larger than it is taken for.
func TestSizeHints(t *testing.T) {
	for _, key := range []int16{
		0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 19, 20, 21, 22, 23, 32, 33, 35, 37, 42, 44, 47, 60,
	} {
		resp := kmsg.ResponseForKey(key)
		for v := range resp.MaxVersion() + 1 {
			crowd(reflect.ValueOf(resp).Elem())
			resp.SetVersion(v)
			if size, hint := len(resp.AppendTo(nil)), sizeHint(resp); hint < size*2/3-2000 {
				t.Errorf("%s version %d: %d bytes, taken for %d", kmsg.NameForKey(key), v, size, hint)
			}
		}
	}
}

// TestPendingBytesOfMetadata: a peer that asks on and on and reads nothing is answered until its answers are
// MaxPendingBytes, also where they are no records.
func TestPendingBytesOfMetadata(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var answer kmsg.MetadataResponse
		answer.Topics = make([]kmsg.MetadataResponseTopic, 3)
		for i := range answer.Topics {
			answer.Topics[i].Partitions = make([]kmsg.MetadataResponseTopicPartition, 1000)
			for j := range answer.Topics[i].Partitions {
				answer.Topics[i].Partitions[j].Replicas = make([]int32, 10)
			}
		}
		answered := 0
		dial, _, done := piped(t, Options{MaxInflight: 200, Handler: &testHandler{
			func(_ context.Context, req *Request, reply func(kmsg.Response)) {
				resp := req.Body.ResponseKind().(*kmsg.MetadataResponse)
				resp.Topics = answer.Topics
				reply(resp)
				answered++
			},
		}})
		c := dial()
		go func(c net.Conn) {
			req := kmsg.NewPtrMetadataRequest()
			req.Version = 4
			for i := range int32(200) {
				if _, err := c.Write(kmsg.NewRequestFormatter().AppendRequest(nil, req, i)); err != nil {
					return
				}
			}
		}(c)
		time.Sleep(time.Second)
		synctest.Wait()
		answer.Version = 4
		if size := len(answer.AppendTo(nil)); answered*size > 2*DefaultMaxPendingBytes || answered < 2 {
			t.Errorf("%d answers of %d bytes wait", answered, size)
		}
		done()
	})
}
