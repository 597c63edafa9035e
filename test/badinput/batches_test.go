package badinput

import (
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/twmb/franz-go/pkg/kversion"

	"chronik/internal/record"
)

// versionsOf2021 keeps the client at Produce 9, whose topics have names.
func versionsOf2021() *kversion.Versions { return kversion.V2_8_0() }

// flip turns a bit of byte i.
func flip(b []byte, i int) []byte {
	b[i] ^= 1
	return b
}

func set32(b []byte, at int, v uint32) []byte {
	binary.BigEndian.PutUint32(b[at:], v)
	return b
}

// recrc makes a batch's checksum right again.
func recrc(b []byte) []byte {
	return set32(b, 17, crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
}

// oversized is a good batch above max.message.bytes.
func oversized(t *testing.T) []byte {
	t.Helper()
	var b record.Builder
	b.Append(record.Record{Value: make([]byte, 2<<20)})
	out, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return out
}
