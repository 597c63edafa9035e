package broker

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"chronik/internal/ident"
	"chronik/internal/kafka"
	"chronik/internal/raftgroup"
	"chronik/internal/raftlog"
	"chronik/internal/snapshot"
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
	descResting       = desc("chronik_raftgroup_resting_replicas", "Replicas on this node of groups that are idle and send no heartbeats.")
	descLag           = desc("chronik_raftgroup_replication_lag_entries", "Entries a follower lacks, as its leader sees it.", "topic", "partition", "node")
	descLagBytes      = desc("chronik_raftgroup_replication_lag_bytes", "What the entries take that a follower lacks, by their mean size in its leader's log.", "topic", "partition", "node")
	descMatch         = desc("chronik_raftgroup_match_index", "Highest index known to be durable on a follower, as its leader sees it.", "topic", "partition", "node")
	descReplica       = desc("chronik_raftgroup_replica_info", "1 for each replica on this node, by role and state.", "topic", "partition", "role", "state")
	descFirstIndex    = desc("chronik_raftgroup_first_index", "First index of a replica's Raft log.", "topic", "partition")
	descLastIndex     = desc("chronik_raftgroup_last_index", "Last index of a replica's Raft log.", "topic", "partition")
	descSnapIndex     = desc("chronik_raftgroup_snapshot_index", "Index of a replica's latest snapshot, 0 if it has none.", "topic", "partition")
	descHigh          = desc("chronik_partition_high_watermark_offset", "Offset after the last readable record.", "topic", "partition")
	descStart         = desc("chronik_partition_log_start_offset", "First readable offset.", "topic", "partition")
	descSize          = desc("chronik_partition_size_bytes", "Bytes of a partition's segments.", "topic", "partition")
	descInstalls      = desc("chronik_snapshot_installs_total", "Snapshots installed by live replicas since the start.")
	descReceived      = desc("chronik_snapshot_received_bytes_total", "Snapshot bytes received since the start.")
	descReceivedFrom  = desc("chronik_snapshot_received_from_bytes_total", "Bytes of snapshot transfers to this node since the start, failed ones included, by who gave them.", "source")
	descReused        = desc("chronik_snapshot_reused_bytes_total", "Snapshot bytes found on this node since the start.")
	descStall         = desc("chronik_raftgroup_apply_stall_seconds", "What one snapshot's capture takes of its apply worker's time.")
	descStallMax      = desc("chronik_raftgroup_apply_stall_max_seconds", "The longest of chronik_raftgroup_apply_stall_seconds since the start.")
	descApply         = desc("chronik_raftgroup_apply_seconds", "Duration of a state machine's calls to apply entries, while a snapshot is being written here or not.", "writing")
	descCreated       = desc("chronik_snapshot_create_seconds", "Time to write a snapshot, its segments' sync included.")
	descCreatedBytes  = desc("chronik_snapshot_created_bytes_total", "Size of the snapshot files written since the start.")
	descReceive       = desc("chronik_snapshot_receive_seconds", "Time from a snapshot's offer until all of it is on this node's disk.")
	descInstall       = desc("chronik_snapshot_install_seconds", "Time from there until the replica is the snapshot.")
	descTransfers     = desc("chronik_snapshot_transfers", "Snapshot transfers under way.", "direction")
	descSent          = desc("chronik_snapshot_sent_bytes_total", "Snapshot bytes sent since the start.")
	descTransferDone  = desc("chronik_snapshot_transfer_done_bytes", "Bytes in place of the transfers under way with a peer.", "direction", "peer")
	descTransferSize  = desc("chronik_snapshot_transfer_size_bytes", "Bytes in all of the transfers under way with a peer.", "direction", "peer")
	descTransferRate  = desc("chronik_snapshot_transfer_bytes_per_second", "Rate of the transfers under way with a peer.", "direction", "peer")
	descTransferLeft  = desc("chronik_snapshot_transfer_left_seconds", "Longest estimate of the transfers under way with a peer.", "direction", "peer")
	descTransferTries = desc("chronik_snapshot_transfer_attempts", "Most attempts of a transfer under way with a peer.", "direction", "peer")
	descConnections   = desc("chronik_wire_connections", "Open Kafka connections.")
	descConnsRefused  = desc("chronik_wire_connections_refused_total", "Kafka connections beyond kafka.max_connections.")
	descConnsStalled  = desc("chronik_wire_connections_stalled_total", "Kafka connections closed because they took no response, or did not go on with a request, while others waited for the memory.")
	descRequests      = desc("chronik_wire_requests_total", "Kafka requests received.")
	descConsumerLag   = desc("chronik_group_consumer_lag_records", "Records a group has not committed, told by its coordinator.", "group", "topic", "partition")
	descPeerConnected = desc("chronik_transport_peer_up", "1 while a peer is connected.", "peer")
	descPeerSent      = desc("chronik_transport_sent_bytes_total", "Bytes of frames sent to a peer since the start, heartbeats and entries. Not of calls.", "peer")
	descPeerReceived  = desc("chronik_transport_received_bytes_total", "Bytes of frames received from a peer since the start.", "peer")
	descPeerMessages  = desc("chronik_transport_sent_messages_total", "Messages that the frames sent to a peer were packed into.", "peer")
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
	s.collectArchive(ch)
	s.collectLog(ch)
	s.collectReplicas(ch)
	s.collectLag(ch)
	s.collectTransfers(ch)
	s.collectSources(ch)
	short := map[bool]int{}
	for _, f := range s.shortfalls() {
		short[f.Lost]++
	}
	for _, lost := range []bool{false, true} {
		gauge(ch, descNoQuorum, float64(short[lost]), strconv.FormatBool(lost))
	}
	gauge(ch, descDiskFree, float64(s.disk.free.Load()))
	gauge(ch, descDiskFull, boolValue(s.disk.Full()))
	if s.serving.Load() {
		st := s.wire.Stats()
		gauge(ch, descConnections, float64(st.Connections))
		counter(ch, descConnsRefused, float64(st.Refused))
		counter(ch, descConnsStalled, float64(st.StalledClosed))
		counter(ch, descRequests, float64(st.Requests))
	}
}

// sourceObjectStore is what the archive's source calls itself.
const sourceObjectStore = "object store"

// collectSources tells who gave snapshots' bytes. Peers that gave nothing stand there too.
func (s *session) collectSources(ch chan<- prometheus.Metric) {
	from := map[string]int64{sourceObjectStore: 0}
	for _, p := range s.tr.Peers() {
		from["node "+p.Node.String()] = 0
	}
	for _, b := range s.receiver.Stats().From {
		from[b.Source] = b.Bytes
	}
	for source, n := range from {
		counter(ch, descReceivedFrom, float64(n), source)
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
	resting := 0
	var installs, received, reused uint64
	for _, r := range s.host.Replicas() {
		st := r.Status()
		row := replicaRow(st)
		count[key{row.Role, row.State}]++
		if st.Resting {
			resting++
		}
		installs, received, reused = installs+st.SnapshotsInstalled, received+st.SnapshotBytesReceived, reused+st.SnapshotBytesReused
		if s.host.Replica(st.Group) != r {
			continue // replaced, and not removed yet: the series are its successor's
		}
		part := label(st.Partition)
		gauge(ch, descReplica, 1, st.Topic, part, row.Role, row.State)
		gauge(ch, descFirstIndex, float64(st.FirstIndex), st.Topic, part)
		gauge(ch, descLastIndex, float64(st.LastIndex), st.Topic, part)
		gauge(ch, descSnapIndex, float64(st.SnapshotIndex), st.Topic, part)
		for node, f := range newestOn(st.Followers) {
			gauge(ch, descLag, float64(f.Lag), st.Topic, part, node.String())
			gauge(ch, descLagBytes, float64(f.LagBytes), st.Topic, part, node.String())
			gauge(ch, descMatch, float64(f.Match), st.Topic, part, node.String())
		}
		if p := s.registry.partitionOf(st.Group, st.Replica); p != nil && s.host.Replica(st.Group) == r {
			gauge(ch, descHigh, float64(p.HighWatermark()), st.Topic, part)
			gauge(ch, descStart, float64(p.LogStartOffset()), st.Topic, part)
			gauge(ch, descSize, float64(p.Size()), st.Topic, part)
		}
	}
	gauge(ch, descResting, float64(resting))
	for k, n := range count {
		gauge(ch, descReplicas, float64(n), k.role, k.state)
	}
	t := s.host.Timings()
	timing(ch, descStall, t.Stall)
	gauge(ch, descStallMax, t.Stall.Max.Seconds())
	timing(ch, descApply, t.ApplyQuiet, "false")
	timing(ch, descApply, t.ApplyWriting, "true")
	timing(ch, descCreated, t.Created)
	counter(ch, descCreatedBytes, float64(t.CreatedBytes))
	timing(ch, descReceive, t.Received)
	timing(ch, descInstall, t.Installed)
	counter(ch, descInstalls, float64(installs))
	counter(ch, descReceived, float64(received))
	counter(ch, descReused, float64(reused))
}

// newestOn has one follower a node: while one replica replaces another, a group has both.
func newestOn(followers []raftgroup.Follower) map[ident.NodeID]raftgroup.Follower {
	newest := make(map[ident.NodeID]raftgroup.Follower, len(followers))
	for _, f := range followers {
		if n, ok := newest[f.Node]; !ok || f.Replica > n.Replica {
			newest[f.Node] = f
		}
	}
	return newest
}

// collectTransfers tells the peers, and of each what comes from it and goes to it.
func (s *session) collectTransfers(ch chan<- prometheus.Metric) {
	in, out := s.receiver.Transfers(), s.server.Transfers()
	gauge(ch, descTransfers, float64(len(in)), string(snapshot.Incoming))
	gauge(ch, descTransfers, float64(len(out)), string(snapshot.Outgoing))
	counter(ch, descSent, float64(s.server.Stats().BytesSent))
	all := append(in, out...)
	for _, p := range s.tr.Peers() {
		gauge(ch, descPeerConnected, boolValue(p.Up), p.Node.String())
		counter(ch, descPeerSent, float64(p.BytesSent), p.Node.String())
		counter(ch, descPeerReceived, float64(p.BytesReceived), p.Node.String())
		counter(ch, descPeerMessages, float64(p.MessagesSent), p.Node.String())
		for _, dir := range []snapshot.Direction{snapshot.Incoming, snapshot.Outgoing} {
			var done, total int64
			var rate, left float64
			tries := 0
			for _, t := range all {
				if t.Peer == p.Node && t.Direction == dir {
					done, total, rate = done+t.BytesDone, total+t.BytesTotal, rate+t.Rate
					left, tries = max(left, t.Left().Seconds()), max(tries, t.Attempts)
				}
			}
			for d, v := range map[*prometheus.Desc]float64{
				descTransferDone: float64(done), descTransferSize: float64(total), descTransferRate: rate, descTransferLeft: left, descTransferTries: float64(tries),
			} {
				gauge(ch, d, v, string(dir), p.Node.String())
			}
		}
	}
}

// timing emits a histogram of the host.
func timing(ch chan<- prometheus.Metric, d *prometheus.Desc, t raftgroup.Timing, labels ...string) {
	buckets := make(map[float64]uint64, raftgroup.TimingBuckets)
	total := uint64(0)
	for i, n := range t.Buckets {
		total += n
		if bound := raftgroup.TimingBound(i); bound > 0 {
			buckets[bound.Seconds()] = total
		}
	}
	ch <- prometheus.MustNewConstHistogram(d, total, t.Sum.Seconds(), buckets, labels...)
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
