package broker

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"chronik/internal/kafka"
	"chronik/internal/raftgroup"
	"chronik/internal/raftlog"
)

// metrics are a node's. Those of a session's parts are read when they are asked for.
type metrics struct {
	kafka       *kafka.Metrics
	quarantines prometheus.Counter
}

func newMetrics(reg *prometheus.Registry, b *Broker) metrics {
	m := metrics{quarantines: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "chronik_raftgroup_quarantines_total", Help: "Replicas that were quarantined since the start.",
	})}
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), m.quarantines, collector{b})
	var err error
	if m.kafka, err = kafka.NewMetrics(reg); err != nil {
		panic(err) // two metrics of one name: a mistake in this program
	}
	return m
}

// collector reads the state of the running session.
type collector struct{ b *Broker }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	descLogBytes      = desc("chronik_raftlog_size_bytes", "What the raftlog's files take on disk.")
	descLogLive       = desc("chronik_raftlog_live_bytes", "What live entries take in the raftlog.")
	descLogSyncs      = desc("chronik_raftlog_fsyncs_total", "Successful fdatasyncs of the raftlog.")
	descLogFrames     = desc("chronik_raftlog_frames_total", "Frames appended to the raftlog.")
	descLogEntries    = desc("chronik_raftlog_entries_total", "Entries appended to the raftlog.")
	descLogSync       = desc("chronik_raftlog_fsync_seconds", "Duration of the raftlog's fdatasyncs.")
	descDiskFree      = desc("chronik_broker_disk_free_bytes", "Free space below the data directory.")
	descDiskFull      = desc("chronik_broker_disk_full", "1 while records are refused because the disk is full.")
	descNoQuorum      = desc("chronik_broker_groups_without_quorum", "Groups of whose voters this node cannot reach a majority, by whether the disks of one are gone.", "lost")
	descReplicas      = desc("chronik_raftgroup_replicas", "Replicas on this node by role and state.", "role", "state")
	descLag           = desc("chronik_raftgroup_replication_lag_entries", "Entries a follower lacks, as its leader sees it.", "topic", "partition", "node")
	descHigh          = desc("chronik_partition_high_watermark_offset", "Offset after the last readable record.", "topic", "partition")
	descStart         = desc("chronik_partition_log_start_offset", "First readable offset.", "topic", "partition")
	descSize          = desc("chronik_partition_size_bytes", "Bytes of a partition's segments.", "topic", "partition")
	descInstalls      = desc("chronik_snapshot_installs_total", "Snapshots installed by live replicas since the start.")
	descReceived      = desc("chronik_snapshot_received_bytes_total", "Snapshot bytes received since the start.")
	descReused        = desc("chronik_snapshot_reused_bytes_total", "Snapshot bytes found on this node since the start.")
	descTransfers     = desc("chronik_snapshot_transfers", "Snapshot transfers under way.", "direction")
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
	descConnections   = desc("chronik_wire_connections", "Open Kafka connections.")
	descRequests      = desc("chronik_wire_requests_total", "Kafka requests received.")
	descConsumerLag   = desc("chronik_group_consumer_lag_records", "Records a group has not committed, told by its coordinator.", "group", "topic", "partition")
	descPeerConnected = desc("chronik_transport_peer_up", "1 while a peer is connected.", "peer")
)

// Describe implements prometheus.Collector: the metrics are described by collecting them.
func (collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(collector{}, ch) }

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	if c.b == nil {
		return
	}
	s := c.b.session()
	if s == nil {
		return
	}
	s.collectLog(ch)
	s.collectReplicas(ch)
	s.collectLag(ch)
	for _, p := range s.tr.Peers() {
		gauge(ch, descPeerConnected, boolValue(p.Up), p.Node.String())
	}
	short := map[bool]int{}
	for _, f := range s.shortfalls() {
		short[f.Lost]++
	}
	for _, lost := range []bool{false, true} {
		gauge(ch, descNoQuorum, float64(short[lost]), strconv.FormatBool(lost))
	}
	gauge(ch, descDiskFree, float64(s.disk.free.Load()))
	gauge(ch, descDiskFull, boolValue(s.disk.Full()))
	gauge(ch, descTransfers, float64(len(s.receiver.Transfers())), "in")
	gauge(ch, descTransfers, float64(len(s.server.Transfers())), "out")
	if m := s.archive.Load(); m != nil {
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
	if s.serving.Load() {
		st := s.wire.Stats()
		gauge(ch, descConnections, float64(st.Connections))
		counter(ch, descRequests, float64(st.Requests))
	}
}

func gauge(ch chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func counter(ch chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
}

func boolValue(v bool) float64 {
	if v {
		return 1
	}
	return 0
}

func (s *session) collectLog(ch chan<- prometheus.Metric) {
	st := s.rlog.Stats()
	gauge(ch, descLogBytes, float64(st.TotalBytes))
	gauge(ch, descLogLive, float64(st.LiveBytes))
	counter(ch, descLogSyncs, float64(st.Batches))
	counter(ch, descLogFrames, float64(st.Frames))
	counter(ch, descLogEntries, float64(st.Entries))
	buckets := map[float64]uint64{}
	total := uint64(0)
	for i, n := range st.FsyncBuckets {
		total += n
		if bound := raftlog.FsyncBucketBound(i); bound > 0 {
			buckets[bound.Seconds()] = total
		}
	}
	ch <- prometheus.MustNewConstHistogram(descLogSync, total, st.FsyncTotal.Seconds(), buckets)
}

func (s *session) collectReplicas(ch chan<- prometheus.Metric) {
	type key struct{ role, state string }
	count := map[key]int{}
	var installs, received, reused uint64
	for _, r := range s.host.Replicas() {
		st := r.Status()
		row := replicaRow(st)
		count[key{row.Role, row.State}]++
		installs, received, reused = installs+st.SnapshotsInstalled, received+st.SnapshotBytesReceived, reused+st.SnapshotBytesReused
		part := label(st.Partition)
		if st.Role == raftgroup.RoleLeader {
			for _, f := range st.Followers {
				gauge(ch, descLag, float64(f.Lag), st.Topic, part, f.Node.String())
			}
		}
		if p := s.registry.partition(st.Group); p != nil {
			gauge(ch, descHigh, float64(p.HighWatermark()), st.Topic, part)
			gauge(ch, descStart, float64(p.LogStartOffset()), st.Topic, part)
			gauge(ch, descSize, float64(p.Size()), st.Topic, part)
		}
	}
	for k, n := range count {
		gauge(ch, descReplicas, float64(n), k.role, k.state)
	}
	counter(ch, descInstalls, float64(installs))
	counter(ch, descReceived, float64(received))
	counter(ch, descReused, float64(reused))
}

// maxLagSeries bounds the series of consumer lag: groups are named by clients.
const maxLagSeries = 5000

// collectLag tells the lag of the groups this node coordinates, against the high
// watermarks it has of the partitions (its own replicas; any replica's will do).
func (s *session) collectLag(ch chan<- prometheus.Metric) {
	img := s.meta.Image()
	n := 0
	for _, c := range s.registry.allCoordinators() {
		for _, o := range c.Committed() {
			mp := img.TopicPartition(o.Topic, o.Partition)
			if mp == nil {
				continue
			}
			p := s.registry.partition(mp.Group)
			if p == nil {
				continue
			}
			if n++; n > maxLagSeries {
				return
			}
			gauge(ch, descConsumerLag, float64(max(0, p.HighWatermark()-o.Offset)), o.Group, o.Topic, label(o.Partition))
		}
	}
}

func label(n int32) string { return strconv.Itoa(int(n)) }
