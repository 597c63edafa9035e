package kafka

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/alloctest"
)

// TestWorstRequests serves, for each API, requests of 1 MiB that are one array of as
// many elements as fit, empty ones and those of a sound request over and over: what
// is decoded, done and answered stays in proportion.
func TestWorstRequests(t *testing.T) {
	for i := range apis {
		a := &apis[i]
		for _, v := range []int16{a.min, a.max} {
			for _, sound := range []bool{false, true} {
				for _, path := range arraysOf(reflect.TypeOf(kmsg.RequestForKey(a.key)).Elem(), nil) {
					req := kmsg.RequestForKey(a.key)
					if sound {
						req = calls[a.key].req(v)
					}
					req.SetVersion(v)
					if !crowd(req, path) {
						continue // not in this version
					}
					t.Run(fmt.Sprintf("%s/v%d/%v/sound=%v", a.name, v, path, sound), func(t *testing.T) {
						serveWorst(t, req)
					})
				}
			}
		}
	}
}

func serveWorst(t *testing.T, req kmsg.Request) {
	h, c := newHandler(t)
	prepare(t, c)
	nc := pipe(t, &hurried{h})
	frame := frameOf(req, 1, req.AppendTo(nil))
	defer alloctest.Bound(t, len(frame))()
	go func() { _, _ = nc.Write(frame) }()
	_, _ = readResponse(t, nc)
}

// arraysOf returns the paths of fields to every array within struct type typ.
func arraysOf(typ reflect.Type, at []int) (paths [][]int) {
	for i := range typ.NumField() {
		f := typ.Field(i).Type
		here := append(at[:len(at):len(at)], i)
		switch {
		case typ.Field(i).Name == "UnknownTags":
		case f.Kind() == reflect.Slice && f.Elem().Kind() != reflect.Uint8:
			paths = append(paths, here)
			if f.Elem().Kind() == reflect.Struct {
				paths = append(paths, arraysOf(f.Elem(), here)...)
			}
		}
	}
	return paths
}

// crowd fills the array at path until req has a size just below alloctest.MaxInput.
func crowd(req kmsg.Request, path []int) bool {
	v := reflect.ValueOf(req).Elem()
	for _, i := range path[:len(path)-1] {
		f := v.Field(i)
		if f.Len() == 0 {
			f.Set(elements(f.Type(), 1))
		}
		v = f.Index(0)
	}
	f := v.Field(path[len(path)-1])
	element := elements(f.Type(), 1)
	if f.Len() > 0 {
		element = f.Slice(0, 1)
	}
	fill := func(n int) int {
		s := reflect.MakeSlice(f.Type(), n, n)
		for i := range n {
			s.Index(i).Set(element.Index(0))
		}
		f.Set(s)
		return len(req.AppendTo(nil))
	}
	one, two := fill(1), fill(2)
	if one == two {
		return false
	}
	return fill((alloctest.MaxInput-one-64)/(two-one)) > alloctest.MaxInput/2
}

// elements makes n elements as kmsg makes them, empty.
func elements(typ reflect.Type, n int) reflect.Value {
	s := reflect.MakeSlice(typ, n, n)
	for i := range n {
		if d, ok := s.Index(i).Addr().Interface().(interface{ Default() }); ok {
			d.Default()
		}
	}
	return s
}

// TestPartitionsOfARequest: a request of a few bytes must not make partitions without
// end, in one topic or in many.
func TestPartitionsOfARequest(t *testing.T) {
	h, c := newHandler(t)
	prepare(t, c)
	create := kmsg.NewPtrCreateTopicsRequest()
	create.Version = 7
	for i, n := range []int32{75_520, 9_000, 1_001, 999, 1} {
		rt := kmsg.NewCreateTopicsRequestTopic()
		rt.Topic, rt.NumPartitions, rt.ReplicationFactor = fmt.Sprint("topic-", i), n, 1
		create.Topics = append(create.Topics, rt)
	}
	created := roundTrip[*kmsg.CreateTopicsResponse](t, h, create)
	for i, want := range []*kerr.Error{kerr.PolicyViolation, nil, kerr.PolicyViolation, nil, nil} {
		wantCode(t, created.Topics[i].Topic, created.Topics[i].ErrorCode, want)
	}
	more := kmsg.NewPtrCreatePartitionsRequest()
	more.Version = 3
	for _, a := range []struct {
		topic string
		count int32
	}{{"orders", 10_003}, {"topic-3", 10_000}, {"orders", 3}, {"topic-4", 1_001}} {
		rt := kmsg.NewCreatePartitionsRequestTopic()
		rt.Topic, rt.Count = a.topic, a.count
		more.Topics = []kmsg.CreatePartitionsRequestTopic{rt}
		var want *kerr.Error
		if a.count == 10_003 {
			want = kerr.PolicyViolation
		}
		got := roundTrip[*kmsg.CreatePartitionsResponse](t, h, more)
		wantCode(t, a.topic, got.Topics[0].ErrorCode, want)
	}
}
