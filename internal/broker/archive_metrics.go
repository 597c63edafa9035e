package broker

import "github.com/prometheus/client_golang/prometheus"

var (
	descUploads       = desc("chronik_archive_uploads_total", "Snapshots uploaded to the object store since the start.")
	descUploadFails   = desc("chronik_archive_failures_total", "Uploads and collections in the object store that failed since the start.")
	descUploadSent    = desc("chronik_archive_sent_bytes_total", "Bytes sent to the object store since the start.")
	descUploadReused  = desc("chronik_archive_reused_bytes_total", "Bytes of uploaded snapshots that were in the object store already.")
	descUploadObjects = desc("chronik_archive_objects_total", "Objects sent to the object store since the start.")
	descGCSnapshots   = desc("chronik_archive_removed_snapshots_total", "Snapshots removed from the object store since the start.")
	descGCObjects     = desc("chronik_archive_removed_objects_total", "Objects removed from the object store since the start.")
	descGCBytes       = desc("chronik_archive_removed_bytes_total", "Bytes removed from the object store since the start.")
	descArchiveOK     = desc("chronik_archive_last_success_timestamp_seconds", "When an upload or collection last succeeded, Unix time; 0: never.")
	descArchiveBehind = desc("chronik_archive_groups_behind", "Groups this node leads whose latest checkpoint is not in the object store.")
)

// collectArchive tells what the archive's Manager did, if there is an object store.
func (s *session) collectArchive(ch chan<- prometheus.Metric) {
	m := s.archive.Load()
	if m == nil {
		return
	}
	st := m.Stats()
	for d, v := range map[*prometheus.Desc]int64{
		descUploads: st.Uploads, descUploadFails: st.Failures, descUploadSent: st.BytesSent, descUploadReused: st.BytesReused,
		descUploadObjects: st.ObjectsSent, descGCSnapshots: st.SnapshotsRemoved, descGCObjects: st.ObjectsRemoved, descGCBytes: st.BytesFreed,
	} {
		counter(ch, d, float64(v))
	}
	gauge(ch, descArchiveOK, float64(st.LastSuccess))
	gauge(ch, descArchiveBehind, float64(st.Behind))
}
