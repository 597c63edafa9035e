package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"chronik/internal/format"
	"chronik/internal/ident"
	"chronik/internal/metadata"
	"chronik/internal/raftgroup"
	"chronik/internal/transport"
)

// methodSubmit forwards a metadata command to the metadata leader.
const methodSubmit = "meta.submit"

// First byte of the answer to methodSubmit.
const (
	submitReply   = 0 // an encoded metadata.Reply follows
	submitRefused = 1 // never proposed: ask the leader again; the reason follows
	submitUnknown = 2 // the outcome is unknown; the reason follows
	submitLate    = 3 // as submitUnknown: the time was up (older nodes say submitUnknown)
)

// errRefused says that a command was never proposed and may be sent again.
var errRefused = errors.New("metadata leader refused")

// submitTimeout bounds a submission whose context has no deadline.
const submitTimeout = 15 * time.Second

// submit has the metadata leader apply cmd and waits until this node's Image is
// the state after it. It asks again only when the command was certainly not
// proposed; otherwise the outcome may be unknown.
func (s *session) submit(ctx context.Context, cmd metadata.Command) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	reply, err := s.submitUntilProposed(ctx, cmd)
	if err != nil {
		return nil, fmt.Errorf("metadata %s: %w", cmd.Kind(), err)
	}
	if reply.Err != nil {
		return reply.Result, reply.Err
	}
	if _, err := s.meta.WaitFor(ctx, reply.Index); err != nil {
		return nil, fmt.Errorf("metadata %s: applied at index %d, not yet here: %w", cmd.Kind(), reply.Index, err)
	}
	return reply.Result, nil
}

func (s *session) submitUntilProposed(ctx context.Context, cmd metadata.Command) (*metadata.Reply, error) {
	for {
		changed := s.leaders.Changed()
		reply, err := s.submitOnce(ctx, cmd)
		if !errors.Is(err, errRefused) {
			return reply, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (%w)", err, ctx.Err())
		case <-changed:
		case <-time.After(50 * time.Millisecond): // the leader may become ready without a change of leadership
		}
	}
}

func (s *session) submitOnce(ctx context.Context, cmd metadata.Command) (*metadata.Reply, error) {
	data, err := metadata.Encode(cmd)
	if err != nil {
		return nil, err
	}
	leader := s.leaders.Get(ident.MetaGroup)
	switch leader.Node {
	case 0:
		return nil, fmt.Errorf("%w: no metadata leader is known", errRefused)
	case s.node:
		return s.proposeMeta(ctx, data)
	}
	return s.forward(ctx, leader.Node, cmd.Kind(), data)
}

func (s *session) forward(ctx context.Context, node ident.NodeID, kind string, data []byte) (*metadata.Reply, error) {
	b, err := s.tr.Call(ctx, node, methodSubmit, data)
	switch {
	case errors.Is(err, transport.ErrNotSent):
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	case errors.Is(err, transport.ErrUnreachable): // the leader may have taken it before it went away
		return nil, fmt.Errorf("%w: %w", raftgroup.ErrLeadershipLost, err)
	case err != nil:
		return nil, err
	}
	if len(b) == 0 {
		return nil, fmt.Errorf("node %d: empty answer to %s", node, methodSubmit)
	}
	switch b[0] {
	case submitReply:
		return metadata.DecodeReply(kind, b[1:])
	case submitRefused:
		return nil, fmt.Errorf("%w: node %d: %s", errRefused, node, b[1:])
	case submitLate:
		return nil, fmt.Errorf("%w: node %d: %s", raftgroup.ErrTimeout, node, b[1:])
	default: // the client must learn that it may ask again, as from the leader itself
		return nil, fmt.Errorf("%w: node %d: %s", raftgroup.ErrLeadershipLost, node, b[1:])
	}
}

// serveSubmit answers methodSubmit.
func (s *session) serveSubmit(ctx context.Context, data []byte) ([]byte, error) {
	reply, err := s.proposeMeta(ctx, data)
	switch {
	case errors.Is(err, errRefused):
		return append([]byte{submitRefused}, err.Error()...), nil
	case errors.Is(err, raftgroup.ErrTimeout):
		return append([]byte{submitLate}, err.Error()...), nil
	case err != nil:
		return append([]byte{submitUnknown}, err.Error()...), nil
	}
	b, err := metadata.EncodeReply(reply)
	if err != nil {
		return nil, err
	}
	return append([]byte{submitReply}, b...), nil
}

// outcome is a raftgroup.Waiter for one proposal: its channel has room for the answer.
type outcome struct{ ch chan proposed }

type proposed struct {
	res raftgroup.Result
	err error
}

func (o *outcome) Applied(_ ident.Index, _ ident.Term, res raftgroup.Result, err error) {
	o.ch <- proposed{res, err}
}

// proposeMeta proposes an encoded command on this node, the metadata leader.
func (s *session) proposeMeta(ctx context.Context, data []byte) (*metadata.Reply, error) {
	r := s.host.Replica(ident.MetaGroup)
	if r == nil {
		return nil, fmt.Errorf("%w: no metadata replica here", errRefused)
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(submitTimeout)
	}
	if _, err := metadata.Decode(data); errors.Is(err, format.ErrNewer) {
		return nil, fmt.Errorf("%w: %w", errRefused, err) // a newer node's: followers like this one could not apply it
	}
	o := &outcome{ch: make(chan proposed, 1)}
	r.Propose(data, raftgroup.ProposeOptions{Deadline: deadline}, o)
	p := <-o.ch // bounded by the deadline
	switch {
	case errors.Is(p.err, raftgroup.ErrNotLeader), errors.Is(p.err, raftgroup.ErrBusy):
		return nil, fmt.Errorf("%w: %w", errRefused, p.err)
	case p.err != nil:
		return nil, p.err
	}
	reply, ok := p.res.(*metadata.Reply)
	if !ok {
		return nil, fmt.Errorf("metadata group answered %T", p.res)
	}
	return reply, nil
}
