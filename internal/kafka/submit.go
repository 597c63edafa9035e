package kafka

import (
	"context"

	"chronik/internal/metadata"
)

// submit has the metadata leader apply a command and returns its result, of the
// type that the command's docstring names.
func submit[T any](ctx context.Context, h *Handler, cmd metadata.Command) (*T, error) {
	res, err := h.cluster.Submit(ctx, cmd)
	return resultOf[T](cmd, res, err)
}

// submitOrTry is submit, or, for validate_only, what submit would answer now.
func submitOrTry[T any](ctx context.Context, h *Handler, cmd metadata.Command, try bool) (*T, error) {
	if !try {
		return submit[T](ctx, h, cmd)
	}
	r := h.cluster.Image().DryRun(cmd)
	return resultOf[T](cmd, r.Result, r.Err)
}

func resultOf[T any](cmd metadata.Command, res any, err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	t, ok := res.(*T)
	if !ok || t == nil {
		return nil, errWrongResult(cmd, res)
	}
	return t, nil
}
