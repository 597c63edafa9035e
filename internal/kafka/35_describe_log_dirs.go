package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/metadata"
	"chronik/internal/wire"
)

// DescribeLogDirs: versions 0 to 4. A node has one directory; the sizes are
// those of the partitions that this node has a replica of.
//
//	v2  flexible
//	v3  an error of the whole response
//	v4  the file system's bytes, total and free

func describeLogDirs(h *Handler, _ context.Context, _ *wire.Request, req *kmsg.DescribeLogDirsRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.DescribeLogDirsResponse)
	img := h.cluster.Image()
	dir := kmsg.NewDescribeLogDirsResponseDir()
	dir.Dir = h.config.DataDir
	dir.TotalBytes, dir.UsableBytes = h.cluster.DiskBytes()
	add := func(t *metadata.Topic, wanted []int32) {
		wt := kmsg.NewDescribeLogDirsResponseDirTopic()
		wt.Topic = t.Name
		asked := map[int32]bool{}
		for _, n := range wanted {
			asked[n] = true
		}
		for _, mp := range t.Partitions {
			p := h.cluster.Partition(mp.Group)
			if p == nil || (wanted != nil && !asked[mp.Partition]) {
				continue
			}
			wp := kmsg.NewDescribeLogDirsResponseDirTopicPartition()
			wp.Partition, wp.Size = mp.Partition, p.Size()
			wt.Partitions = append(wt.Partitions, wp)
		}
		if len(wt.Partitions) > 0 {
			dir.Topics = append(dir.Topics, wt)
		}
	}
	if req.Topics == nil {
		for t := range img.Topics() {
			add(t, nil)
		}
	}
	for i := range req.Topics {
		t := img.Topic(req.Topics[i].Topic)
		if t == nil {
			continue
		}
		wanted := req.Topics[i].Partitions
		if wanted == nil {
			wanted = []int32{}
		}
		add(t, wanted)
	}
	resp.Dirs = append(resp.Dirs, dir)
	return resp
}
