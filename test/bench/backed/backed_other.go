//go:build !linux

// Package backed does something on Linux only.
package backed

import "context"

// Reserve is not needed here.
type Reserve struct{}

// NewReserve returns one that never holds anything.
func NewReserve() *Reserve { return &Reserve{} }

// Close does nothing here.
func (*Reserve) Close() {}

// Refill does nothing here.
func (*Reserve) Refill(context.Context) error { return nil }

// DropCache does nothing here.
func DropCache(string) (int64, error) { return 0, nil }
