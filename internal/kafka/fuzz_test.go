package kafka

import (
	"context"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/wire"
)

// FuzzServe gives handlers whatever decodes as a request: they must answer once,
// with something that encodes, and never panic. The context has ended, so that
// nothing waits.
func FuzzServe(f *testing.F) {
	for i := range apis {
		a := &apis[i]
		for _, v := range []int16{a.min, a.max} {
			req := calls[a.key].req(v)
			req.SetVersion(v)
			f.Add(a.key, v, req.AppendTo(nil))
		}
	}
	f.Fuzz(func(t *testing.T, key, version int16, body []byte) {
		a := lookup(key)
		if a == nil || version < a.min || version > a.max {
			return
		}
		req := kmsg.RequestForKey(key)
		req.SetVersion(version)
		if err := req.ReadFrom(body); err != nil {
			return
		}
		h, c := newHandler(t)
		prepare(t, c)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		replies := make(chan kmsg.Response, 2)
		h.Serve(ctx, &wire.Request{Key: key, Version: version, Body: req}, func(r kmsg.Response) { replies <- r })
		if resp := <-replies; resp != nil {
			decoded(t, req, resp)
		}
		if len(replies) != 0 {
			t.Error("answered twice")
		}
	})
}
