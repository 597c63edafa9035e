package partition

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"chronik/internal/raftgroup"
	"chronik/internal/segment"
)

// Kind says what an entry of a partition's group carries.
type Kind uint8

// The kinds of entries.
const (
	KindBatch    Kind = 1 // one record batch v2, base offset 0 and leader epoch -1
	KindConfig   Kind = 2 // a Config as JSON
	KindLogStart Kind = 3 // the new log start offset, 8 bytes
)

// entryHeader is the kind and the leader's time in front of each payload.
const entryHeader = 1 + 8

// MaxBatch bounds a batch: with the header it is an entry that every replica takes.
const MaxBatch = raftgroup.MaxEntry - entryHeader

// encodeEntry returns an entry's data: the copy of a batch between the client's
// bytes and raft's. It lies in a buffer that releaseEntry takes back.
func encodeEntry(kind Kind, ms int64, payload []byte) []byte {
	b := (*entryBuffers.Get().(*[]byte))[:0]
	if need := entryHeader + len(payload); cap(b) < need {
		b = make([]byte, 0, need)
	}
	b = append(b, byte(kind))
	b = binary.BigEndian.AppendUint64(b, uint64(ms))
	return append(b, payload...)
}

// maxKeptEntry bounds the buffers that are kept for reuse.
const maxKeptEntry = 4 << 20

var entryBuffers = sync.Pool{New: func() any { return new([]byte) }}

// releaseEntry is a raftgroup.ProposeOptions.Release.
func releaseEntry(data []byte) {
	if cap(data) <= maxKeptEntry {
		entryBuffers.Put(&data)
	}
}

// decodeEntry is the inverse; payload aliases data.
func decodeEntry(data []byte) (kind Kind, ms int64, payload []byte, err error) {
	if len(data) < entryHeader {
		return 0, 0, nil, fmt.Errorf("%w: entry of %d bytes", ErrCorrupt, len(data))
	}
	return Kind(data[0]), int64(binary.BigEndian.Uint64(data[1:])), data[entryHeader:], nil
}

// Config is what apply may use of a partition's settings. It changes by entries
// only, so that all replicas change at the same offset (correctness rule 1). A
// field that is 0 or less stands for its default.
type Config struct {
	SegmentBytes     int64 `json:"segment_bytes,omitempty"`
	SegmentMs        int64 `json:"segment_ms,omitempty"`
	ProducerMaxAgeMs int64 `json:"producer_max_age_ms,omitempty"`
}

// DefaultConfig is a new partition's. It is part of the format: changed, replicas
// of different versions would differ.
func DefaultConfig() Config {
	return Config{
		SegmentBytes:     segment.DefaultSegmentBytes,
		SegmentMs:        segment.DefaultSegmentMs,
		ProducerMaxAgeMs: 24 * time.Hour.Milliseconds(),
	}
}

// complete fills in defaults.
func (c Config) complete() Config {
	d := DefaultConfig()
	if c.SegmentBytes <= 0 {
		c.SegmentBytes = d.SegmentBytes
	}
	c.SegmentBytes = min(c.SegmentBytes, segment.MaxSegmentBytes)
	if c.SegmentMs <= 0 {
		c.SegmentMs = d.SegmentMs
	}
	if c.ProducerMaxAgeMs <= 0 {
		c.ProducerMaxAgeMs = d.ProducerMaxAgeMs
	}
	return c
}

func decodeConfig(payload []byte) (Config, error) {
	var c Config
	if err := json.Unmarshal(payload, &c); err != nil {
		return Config{}, fmt.Errorf("%w: config entry: %w", ErrCorrupt, err)
	}
	return c.complete(), nil
}

func decodeLogStart(payload []byte) (int64, error) {
	if len(payload) != 8 {
		return 0, fmt.Errorf("%w: log start entry of %d bytes", ErrCorrupt, len(payload))
	}
	return int64(binary.BigEndian.Uint64(payload)), nil
}
