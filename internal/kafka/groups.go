package kafka

import (
	"net"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/wire"
)

// coordinator finds the local shard of a group, or why it is not here.
func (h *Handler) coordinator(id string) (Coordinator, error) {
	shard := shardOf(h.cluster.Image(), id)
	if shard == nil {
		return nil, kerr.CoordinatorNotAvailable
	}
	if c := h.cluster.Coordinator(shard.Group); c != nil {
		return c, nil
	}
	return nil, kerr.NotCoordinator
}

// bodyOf is the request's body; without one of the right type there is nothing to answer.
func bodyOf[R kmsg.Request](h *Handler, r *wire.Request, reply func(kmsg.Response)) (R, bool) {
	body, ok := r.Body.(R)
	if !ok {
		h.log.Error("request dropped: body is of another key", "key", r.Key, "version", r.Version)
		reply(nil)
	}
	return body, ok
}

// clientHost is where a member lives, in the form of Kafka's tools.
func clientHost(r *wire.Request) string {
	if r.Conn == nil {
		return "/"
	}
	addr := r.Conn.RemoteAddr().String()
	if host, _, err := net.SplitHostPort(addr); err == nil {
		addr = host
	}
	return "/" + addr
}
