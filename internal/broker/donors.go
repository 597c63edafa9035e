package broker

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"chronik/internal/ident"
	"chronik/internal/metadata"
	"chronik/internal/vfs"
)

func (s *session) replicasDir() string { return path.Join(s.cfg.Node.DataDir, "replicas") }

// sweepDonors removes directories of replicas that lived here under an earlier
// store id: they donated bytes until the metadata retired them. What this Image
// has not retired stays, also what is not understood. The Image must have caught
// up with the cluster once since the start.
func (s *session) sweepDonors(img *metadata.Image) error {
	names, err := vfs.List(s.b.fs, s.replicasDir())
	if err != nil {
		return err
	}
	live := map[ident.ReplicaID]bool{}
	for _, c := range s.rlog.Creations() {
		live[c.Replica] = true
	}
	var groups map[string]ident.GroupID // by key; made when first needed
	var errs []error
	for _, name := range names {
		key, id, ok := splitReplicaDir(name)
		if !ok || live[id] {
			continue
		}
		if groups == nil {
			groups = map[string]ident.GroupID{"meta": ident.MetaGroup}
			for p := range img.Groups() {
				groups[p.Key()] = p.Group
			}
		}
		group, known := groups[key]
		if known && !img.Retired(group, id) || !known && id >= img.NextReplica {
			continue
		}
		if err := s.b.fs.RemoveAll(path.Join(s.replicasDir(), name)); err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", name, err))
			continue
		}
		s.log.Info("removed the directory of a retired replica", "replica", uint64(id), "dir", name)
	}
	return errors.Join(errs...)
}

// splitReplicaDir reads a directory's name: "<group key>.<replica id>".
func splitReplicaDir(name string) (key string, id ident.ReplicaID, ok bool) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return "", 0, false
	}
	n, err := strconv.ParseUint(name[i+1:], 10, 64)
	return name[:i], ident.ReplicaID(n), err == nil && n > 0
}
