package kafka

import (
	"github.com/twmb/franz-go/pkg/kerr"

	"chronik/internal/record"
)

// forVersion returns stored batches in the form a Fetch version carries: as they
// are from version 4 on, as messages of magic 0 or 1 before. zstd came with
// version 10; older clients cannot read it.
func forVersion(version int16, batches []byte) ([]byte, error) {
	if version >= 10 {
		return batches, nil
	}
	var messages []byte
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
			if messages, err = record.DownConvert(messages, rest[:b.Size()], magicFor(version)); err != nil {
				return nil, err
			}
		}
		rest = rest[b.Size():]
	}
	if version >= 4 {
		return batches, nil
	}
	if messages == nil {
		messages = []byte{}
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
