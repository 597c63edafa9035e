package identity

import (
	"fmt"
	"hash/crc32"
	"testing"

	"chronik/internal/alloctest"
)

// TestWorstInputs: 1 MiB of a stranger or a disk takes no more than its share of memory.
func TestWorstInputs(t *testing.T) {
	hello := `{"version":1,"node":1,"store":"01000000000000000000000000000000","state":2,"seen":`
	alloctest.Worst(t, map[string][]byte{
		"sightings": alloctest.Fill(hello+"[", "{},", "{}]}"),
		"nulls":     alloctest.Fill(hello+"[", "null,", "null]}"),
		"founders":  alloctest.Fill(`{"version":1,"genesis":{"members":[`, "{},", "{}]}}"),
		"full":      alloctest.Fill(hello+"[", `{"boot":1,"run":2,"lsn":3},`, "{}]}"),
		"genesis":   alloctest.Fill(`{"members":[`, "{},", "{}]}"),
		"witness":   alloctest.Fill("[", "{},", "{}]"),
		"nested":    alloctest.Fill(`{"x":`, "[", ""),
		"string":    alloctest.Fill(`{"cluster":"`, `\u00e4`, `"}`),
	},
		func(b []byte) { _, _ = DecodeHello(b) },
		func(b []byte) { _, _ = DecodeGenesis(b) },
		func(b []byte) { _ = NewWitness().Decode(b) },
		func(b []byte) {
			_, _ = decode(fmt.Appendf(nil, "chronik-store 1 %08x\n%s", crc32.Checksum(b, castagnoli), b))
		},
	)
}
