package broker

import (
	"chronik/internal/metadata"
	"chronik/internal/partition"
	"chronik/internal/raftgroup"
	"chronik/internal/vfs"
)

// verifyStaged reads a received snapshot of a group whose state lies in files.
// Other groups' is all in the checkpoint, which has a checksum.
func verifyStaged(fs vfs.FS, spec raftgroup.Spec, dir string, blob []byte, files []raftgroup.CaptureFile) error {
	if spec.Kind != metadata.KindTopic {
		return nil
	}
	return partition.VerifyStaged(fs, dir, blob, files)
}
