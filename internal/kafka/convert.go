package kafka

import (
	"bytes"

	"github.com/twmb/franz-go/pkg/kerr"

	"chronik/internal/record"
)

// forVersion returns stored batches in the form a Fetch version carries: as they
// are from version 4 on, as messages of magic 0 or 1 before. zstd came with
// version 10; older clients cannot read it. Messages may be a thousand times as long as
// the compressed batches that they are in: batches whose messages would go beyond limit
// are left for the next fetch, all but the first.
func forVersion(version int16, batches []byte, limit int) ([]byte, error) {
	if version >= 10 {
		return batches, nil
	}
	messages := []byte{}
	for rest := batches; len(rest) > 0; {
		b, err := record.Header(rest)
		if err != nil {
			return nil, err
		}
		if b.Size() > len(rest) {
			return nil, record.ErrShort
		}
		if b.Codec() == record.Zstd {
			return nil, failf(kerr.UnsupportedCompressionType, "zstd needs fetch version 10 or newer")
		}
		if version < 4 && !b.IsControl() {
			n := len(messages)
			if n >= limit && n > 0 {
				break
			}
			if messages, err = record.DownConvert(messages, rest[:b.Size()], magicFor(version)); err != nil {
				return nil, err
			}
			if len(messages) > limit && n > 0 {
				return bytes.Clone(messages[:n]), nil // without the room of what is left out
			}
		}
		rest = rest[b.Size():]
	}
	if version >= 4 {
		return batches, nil
	}
	return messages, nil
}

// magicFor is the message format of a Fetch version before batches.
func magicFor(version int16) int8 {
	if version < 2 {
		return 0
	}
	return 1
}
