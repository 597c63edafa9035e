package broker

import (
	"context"
	"strconv"

	"chronik/internal/metadata"
	"chronik/internal/partition"
	"chronik/internal/raftgroup"
	"chronik/internal/vfs"
)

// verifyStaged reads a received snapshot of a group whose state lies in files.
// Other groups' is all in the checkpoint, which has a checksum.
func verifyStaged(ctx context.Context, fs vfs.FS, spec raftgroup.Spec, dir string, blob []byte, files []raftgroup.CaptureFile) error {
	if spec.Kind != metadata.KindTopic {
		return nil
	}
	return partition.VerifyStaged(ctx, fs, dir, blob, files)
}

// minReplicas is how many replicas a write to a partition waits for.
func (s *session) minReplicas(spec raftgroup.Spec) int {
	img := s.meta.Image()
	p := img.Partition(spec.Group)
	if p == nil {
		return 1
	}
	t := img.Topic(p.Topic)
	if t == nil {
		return 1
	}
	static := map[string]string{"min.insync.replicas": strconv.Itoa(s.cfg.Cluster.MinInsyncReplicas)}
	return img.Settings(t, s.node, static).MinInsyncReplicas
}
