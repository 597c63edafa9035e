// Package ident names the things a cluster is made of. Every identity here is
// never reused: that is what makes a rejoin safe (docs/architecture.md,
// "Identity").
//
//	NodeID     Kafka's broker id; survives a wiped disk
//	StoreID    one data directory's life; a wiped or restored disk gets a new one
//	GroupID    one Raft group; given by the metadata group, never reused
//	ReplicaID  one replica of one group on one store; Raft's id, never reused
package ident

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"
)

// NodeID is a node's (Kafka broker's) id, from 1 to 2^31-1. 0 is nobody.
type NodeID int32

// String returns the decimal id.
func (n NodeID) String() string { return strconv.FormatInt(int64(n), 10) }

// GroupID names a Raft group. 1 is the metadata group, 0 is no group.
type GroupID uint64

// MetaGroup is the metadata group's id.
const MetaGroup GroupID = 1

// ReplicaID is Raft's id of one replica: global, bound to one store, never reused. 0 is nobody.
type ReplicaID uint64

// Index is a position in a group's Raft log. It is never a Kafka offset.
type Index uint64

// Term is a Raft term; a partition's leader epoch is its term.
type Term uint64

// StoreID is a data directory's random identity.
type StoreID [16]byte

// NewStoreID returns a random store id.
func NewStoreID() StoreID {
	var s StoreID
	_, _ = rand.Read(s[:]) // crypto/rand.Read never fails since Go 1.24
	return s
}

// ParseStoreID reads the form String writes.
func ParseStoreID(s string) (StoreID, error) {
	var id StoreID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("store id %q: want 32 hexadecimal digits", s)
	}
	copy(id[:], b)
	return id, nil
}

// String returns 32 hexadecimal digits.
func (s StoreID) String() string { return hex.EncodeToString(s[:]) }

// IsZero tells whether s names no store.
func (s StoreID) IsZero() bool { return s == StoreID{} }

// MarshalText implements encoding.TextMarshaler.
func (s StoreID) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *StoreID) UnmarshalText(b []byte) error {
	id, err := ParseStoreID(string(b))
	if err == nil {
		*s = id
	}
	return err
}
