package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/wire"
)

// ApiVersions: versions 0 to 4.
//
//	v0  librdkafka and kafka-python probe with it
//	v3  flexible request (the response header never is); name and version of the
//	    client; features
//	v4  the same; a feature's least version may be 0
//
// wire answers a version above these with a v0 body, error 35 and this key's
// range. No feature is announced: transactions and the new group protocol, the
// two that clients look for, are not served.

func apiVersions(h *Handler, _ context.Context, r *wire.Request, req *kmsg.ApiVersionsRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.ApiVersionsResponse)
	if req.Version >= 3 && (!softwareName(req.ClientSoftwareName) || !softwareName(req.ClientSoftwareVersion)) {
		resp.ErrorCode = h.code(r.Key, failf(kerr.InvalidRequest, "the client's software name or version is not one"))
		return resp
	}
	resp.ApiKeys = make([]kmsg.ApiVersionsResponseApiKey, 0, len(apis))
	for i := range apis {
		a := kmsg.NewApiVersionsResponseApiKey()
		a.ApiKey, a.MinVersion, a.MaxVersion = apis[i].key, apis[i].min, apis[i].max
		resp.ApiKeys = append(resp.ApiKeys, a)
	}
	return resp
}

// softwareName tells whether s is what KIP-511 allows a client to call itself:
// letters and digits, with dots and dashes between.
func softwareName(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
		case (c == '-' || c == '.') && i > 0 && i < len(s)-1:
		default:
			return false
		}
	}
	return s != ""
}
