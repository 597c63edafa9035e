package broker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"path"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"chronik/internal/archive"
	"chronik/internal/bucket"
	"chronik/internal/config"
	"chronik/internal/format"
	"chronik/internal/group"
	"chronik/internal/ident"
	"chronik/internal/identity"
	"chronik/internal/kafka"
	"chronik/internal/metadata"
	"chronik/internal/partition"
	"chronik/internal/raftgroup"
	"chronik/internal/raftlog"
	"chronik/internal/segment"
	"chronik/internal/snapshot"
	"chronik/internal/transport"
	"chronik/internal/vfs"
	"chronik/internal/wire"
)

// session is a node with one store identity, from its start to its stop.
type session struct {
	b    *Broker
	cfg  *config.Config
	log  *slog.Logger
	node ident.NodeID
	ls   *listeners

	store    *identity.Store
	rlog     *raftlog.Log
	memory   *memory
	disk     *disk
	tr       *transport.Transport
	server   *snapshot.Server
	receiver *snapshot.Receiver
	host     *raftgroup.Host
	meta     *metadata.Store
	leaders  *metadata.Leaders
	registry *registry
	handles  *segment.Handles
	quota    *wire.Quota // bytes of Kafka requests in flight
	wire     *wire.Server
	boot     *bootstrapper
	bucket   bucket.Bucket // nil: no object store
	// archiveRests: until then (Unix nanoseconds) no transfer asks the object store.
	archiveRests atomic.Int64
	archive      atomic.Pointer[archive.Manager]

	// changed wakes those who wait for Image, leaders or liveness.
	changed notifier
	away    *absence
	kicked  chan struct{}
	phase   atomic.Value // string: what the start waits for
	serving atomic.Bool  // Kafka clients are served
	// fatal gets the reason why the session must end.
	fatal chan error

	adminAddr string
	openedLSN uint64 // durable LSN of the log as it was opened
	// metaCurrent is closed once the Image has been as new as the cluster's.
	metaCurrent chan struct{}

	// rebalancing has room for the one request that begins moves.
	rebalancing chan struct{}

	// The reconciler's own.
	current bool
	dialed  map[ident.NodeID]string

	mu       sync.Mutex
	asking   map[ident.ReplicaID]bool
	underway map[string]bool
	greeted  map[ident.NodeID]bool // peers whose Hello was accepted since the start, and this node
	restored bool                  // a peer remembers more of this store than it has

	// life ends when the session stops, after the groups have.
	life   context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
}

func (s *session) ctx() context.Context { return s.life }

// errRestored ends a session whose store is a restored copy.
var errRestored = errors.New("store is behind what its peers saw of it")

// requestMemory bounds the bytes of Kafka requests in flight.
const requestMemory = 256 << 20

// responseMemory bounds the bytes of records on their way to Kafka clients.
const responseMemory = 128 << 20

// open opens the store and the raftlog: everything that can be wrong on this machine alone.
func (b *Broker) open(ls *listeners) (_ *session, err error) {
	cfg := b.opt.Config
	s := &session{
		b: b, cfg: cfg, log: b.log, node: cfg.Node.ID, ls: ls,
		meta: metadata.NewStore(), quota: wire.NewQuota(requestMemory), registry: newRegistry(b.opt.Wall), handles: segment.NewHandles(0),
		away: newAbsence(), kicked: make(chan struct{}, 1), fatal: make(chan error, 4), adminAddr: cfg.Admin.Listen,
		metaCurrent: make(chan struct{}), rebalancing: make(chan struct{}, 1), dialed: map[ident.NodeID]string{},
		asking: map[ident.ReplicaID]bool{}, underway: map[string]bool{}, greeted: map[ident.NodeID]bool{cfg.Node.ID: true},
	}
	s.life, s.cancel = context.WithCancel(context.Background())
	s.setPhase("opening the store")
	s.leaders = metadata.NewLeaders(s.node)
	if s.bucket, err = b.openBucket(); err != nil {
		return nil, err
	}
	if s.store, err = openStore(b.fs, cfg); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = s.store.Close() // the first error counts
		}
	}()
	s.disk = newDisk(b.fs, cfg.Node.DataDir, s.quota, int64(cfg.Raftlog.FileBytes), s.log)
	if s.rlog, err = s.openLog(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = s.rlog.Close()
		}
	}()
	if s.memory, err = openMemory(s.rlog); err != nil {
		return nil, err
	}
	s.openedLSN = s.rlog.DurableLSN()
	s.disk.look()
	s.wire = wire.NewServer(wire.Options{
		Handler: kafka.NewHandler(kafka.Options{Cluster: cluster{s}, Metrics: b.kafka, Wall: b.opt.Wall, Logger: s.log}),
		Memory:  s.quota, Responses: wire.NewQuota(responseMemory), Backlog: wire.NewBacklog(requestMemory),
		MaxConns: s.maxConns(), Logger: s.log,
	})
	if err := s.openHost(); err != nil {
		return nil, err
	}
	return s, nil
}

// phaseMetadata is the phase in which readiness says more: metadataWait.
const phaseMetadata = "waiting for the metadata group"

func (s *session) setPhase(what string) { s.phase.Store(what) }

// openLog opens the raftlog. A store without its log, or a log of another store, is lost (correctness rule 9).
func (s *session) openLog() (*raftlog.Log, error) {
	opts := raftlog.Options{
		FS: s.b.fs, Dir: s.logDir(), Store: s.store.ID(), Create: s.store.Blank(),
		MaxBytes: int64(s.cfg.Raftlog.MaxBytes), FileBytes: int64(s.cfg.Raftlog.FileBytes), MakeRoom: s.disk.giveUp, Logger: s.log,
	}
	l, err := raftlog.Open(opts)
	if errors.Is(err, raftlog.ErrMissing) || errors.Is(err, raftlog.ErrForeign) {
		s.log.Error("raftlog does not belong to the store: the store is lost and gets a new identity", "err", err)
		if err := s.renewStore(); err != nil {
			return nil, err
		}
		opts.Store, opts.Create = s.store.ID(), true
		l, err = raftlog.Open(opts)
	}
	if err != nil {
		if errors.Is(err, format.ErrNewer) { // nothing is lost: no word of removing it
			return nil, &Error{Msg: "cannot open the raftlog in " + opts.Dir, Err: err, Hint: "the data directory stays as it is"}
		}
		return nil, &Error{Msg: "cannot open the raftlog in " + opts.Dir, Err: err, Hint: "if the disk lost data, remove the data directory: the node comes back from its peers"}
	}
	rec := l.Recovery()
	s.log.Info("opened raftlog", "files", rec.Files, "scanned", rec.Scanned, "lsn", rec.LastLSN, "took", rec.Took)
	return l, nil
}

func (s *session) logDir() string { return path.Join(s.cfg.Node.DataDir, "raftlog") }

// renewStore gives the store a new identity. Its log is put aside, not removed: should this
// be the last disk of its cluster, 'chronik cluster recover' takes it up.
func (s *session) renewStore() error {
	aside := fmt.Sprintf("%s.lost-%s", s.logDir(), s.store.ID())
	if err := s.store.Renew(); err != nil {
		return err
	}
	if err := s.b.fs.Rename(s.logDir(), aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return vfs.SyncDir(s.b.fs, s.cfg.Node.DataDir)
}

// openHost assembles transport, snapshots and groups. Nothing is released and nobody is spoken to yet.
func (s *session) openHost() error {
	peers := map[ident.NodeID]string{}
	for _, p := range s.cfg.Cluster.Peers {
		peers[p.ID] = p.Addr
	}
	var err error
	s.tr, err = transport.New(transport.Options{Node: s.node, Listen: s.ls.raft, Peers: peers, Handler: s.b.opt.Net.receive(peerHandler{s}), Dial: s.b.opt.Net.Dial, Logger: s.log})
	if err != nil {
		return err
	}
	codec, err := snapshot.ParseCodec(s.cfg.Snapshot.Compression)
	if err != nil {
		return err
	}
	s.server = snapshot.NewServer(snapshot.ServerOptions{
		FS: s.b.fs, MaxConcurrent: s.cfg.Snapshot.MaxConcurrent, MaxBytesPerSecond: int64(s.cfg.Snapshot.MaxBytesPerSecond), Logger: s.log,
	})
	s.receiver = snapshot.NewReceiver(snapshot.ReceiverOptions{FS: s.b.fs, MaxConcurrent: s.cfg.Snapshot.MaxConcurrent, Logger: s.log})
	keep := s.cfg.Snapshot.KeepEntries
	if keep == 0 {
		keep = -1 // raftgroup takes 0 for "the default"
	}
	s.host, err = raftgroup.NewHost(raftgroup.Options{
		Node: s.node, Store: s.store.ID(), FS: s.b.fs, Dir: s.replicasDir(), Log: s.rlog,
		Sender: s.b.opt.Net.send(s.tr), Server: s.server, Receiver: s.receiver, Events: s, Logger: s.log,
		ElectionTimeout: s.cfg.Raft.ElectionTimeout, HeartbeatInterval: s.cfg.Raft.HeartbeatInterval, Workers: runtime.GOMAXPROCS(0),
		MaxInflightBytes: int64(s.cfg.Raft.MaxInflightBytes), NeverQuiesce: !s.cfg.Raft.Quiesce,
		Compression: codec, Verify: verifyStaged, DiskReserve: int64(s.disk.reserve), Crowded: s.crowded, MinReplicas: s.minReplicas, Archive: s.archivedChunks,
		Policy: raftgroup.Policy{
			ThresholdEntries: s.cfg.Snapshot.ThresholdEntries, ThresholdBytes: int64(s.cfg.Snapshot.ThresholdBytes),
			Interval: s.cfg.Snapshot.Interval, KeepEntries: keep, HoldBytes: int64(s.cfg.Snapshot.HoldBytes),
			MaxConcurrent: s.cfg.Snapshot.MaxConcurrent,
		},
	})
	if err != nil {
		return err
	}
	s.disk.onSpace = s.host.SpaceAvailable
	s.boot = newBootstrapper(s)
	return s.host.OpenAll(s.openFunc)
}

// openFunc says which state machine a replica has.
func (s *session) openFunc(spec raftgroup.Spec) raftgroup.OpenFunc {
	switch spec.Kind {
	case metadata.KindMeta:
		return metadata.Open(s.meta)
	case metadata.KindTopic:
		return partition.Opener{Handles: s.handles, Crowded: s.disk.Tight, Wall: s.b.opt.Wall}.Open
	case metadata.KindOffsets:
		return group.Open
	default:
		return nil
	}
}

// run starts the session's work in order and returns why it ended.
func (s *session) run(parent context.Context) error {
	ctx, cancel := context.WithCancel(parent)
	context.AfterFunc(s.life, cancel)
	s.tasks.Go(func() { s.disk.watch(ctx) })
	stopWatch := s.meta.Watch(func(_, _ *metadata.Image) { s.changed.notify(); s.kick() })
	defer stopWatch()
	s.tr.Start()
	s.tasks.Go(func() { s.announce(ctx) })
	s.tasks.Go(func() { s.watchQuorum(ctx) })
	s.tasks.Go(func() { s.watchReach(ctx) })
	errs := make(chan error, 1)
	s.tasks.Go(func() { errs <- s.start(ctx) })
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-s.fatal:
			return err
		case err := <-errs:
			if err != nil {
				return err
			}
			errs = nil // started
		}
	}
}

// start goes from an opened store to served clients.
func (s *session) start(ctx context.Context) error {
	began := time.Now()
	if err := s.boot.becomeMember(ctx); err != nil {
		return err
	}
	if err := s.adoptAll(); err != nil {
		return err
	}
	s.releaseAll()
	s.tasks.Go(func() { s.reconcile(ctx) })
	s.kick()
	s.setPhase(phaseMetadata)
	if err := s.awaitMetadata(ctx); err != nil {
		return err
	}
	s.setPhase("registering")
	if err := s.register(ctx); err != nil {
		return err
	}
	s.tasks.Go(func() { s.upkeep(ctx) })
	s.tasks.Go(func() { s.forgetDeleted(ctx) })
	s.tasks.Go(func() { s.doubtIdentity(ctx) })
	if err := s.startArchive(ctx); err != nil {
		return err
	}
	s.tasks.Go(func() {
		if err := s.wire.Serve(s.ls.kafka); err != nil && !errors.Is(err, wire.ErrServerClosed) {
			s.endWith(fmt.Errorf("kafka address stopped: %w", err))
		}
	})
	s.serving.Store(true)
	s.setPhase("serving")
	s.log.Info("serving Kafka clients", "addr", s.cfg.Kafka.Listen, "advertised", s.cfg.AdvertisedAddr(), "version", s.b.opt.Version, "took", time.Since(began))
	return nil
}

// endWith makes the session end with err; the first error counts.
func (s *session) endWith(err error) {
	select {
	case s.fatal <- err:
	default: // it is ending already
	}
}

// adoptAll makes the serving side of every replica known.
func (s *session) adoptAll() error {
	for _, r := range s.host.Replicas() {
		if err := s.registry.adopt(r, s.log); err != nil {
			return err
		}
	}
	return nil
}

// stop ends everything in order: clients, groups, peers, log.
func (s *session) stop(ctx context.Context) {
	s.serving.Store(false)
	short, cancel := context.WithTimeout(ctx, 2*time.Second)
	_ = s.wire.Close(short) // what did not finish is cut off
	cancel()
	_ = s.ls.kafka.Close() // closed already if it was served
	if err := s.host.Stop(ctx); err != nil {
		s.log.Warn("groups stopped", "err", err)
	}
	s.cancel()
	s.registry.close()
	s.tr.Close()
	s.tasks.Wait()
	if err := s.server.Close(); err != nil {
		s.log.Warn("snapshot server closed", "err", err)
	}
	if s.rlog.Err() == nil {
		s.memory.save(nil)
	}
	if err := s.rlog.Close(); err != nil {
		s.log.Error("raftlog closed", "err", err)
	}
	s.log.Info("stopped")
}

// register makes this node's addresses known in the metadata, if they are not.
func (s *session) register(ctx context.Context) error {
	cmd, err := s.registration()
	if err != nil {
		return err
	}
	for {
		img := s.meta.Image()
		cmd.ClusterID, cmd.Previous = img.ClusterID, img.StoreOf(s.node)
		if b := img.Broker(s.node); b != nil && sameRegistration(b, cmd) {
			return nil
		}
		if _, err := s.submit(ctx, cmd); err == nil {
			return nil
		} else if ctx.Err() != nil {
			return ctx.Err()
		} else {
			s.log.Warn("not registered yet", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (s *session) registration() (*metadata.RegisterBroker, error) {
	host, port, err := net.SplitHostPort(s.cfg.AdvertisedAddr())
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("kafka.advertised: %w", err)
	}
	return &metadata.RegisterBroker{
		Node: s.node, Store: s.store.ID(), KafkaHost: host, KafkaPort: int32(n),
		RaftAddr: s.raftAddr(), AdminAddr: s.cfg.Admin.Listen, Rack: s.cfg.Node.Rack,
	}, nil
}

// raftAddr is where the other nodes reach this one: its entry among the peers, else where it listens.
func (s *session) raftAddr() string {
	for _, p := range s.cfg.Cluster.Peers {
		if p.ID == s.node {
			return p.Addr
		}
	}
	return s.cfg.Raft.Listen
}

func sameRegistration(b *metadata.Broker, c *metadata.RegisterBroker) bool {
	return b.Store == c.Store && b.KafkaHost == c.KafkaHost && b.KafkaPort == c.KafkaPort &&
		b.RaftAddr == c.RaftAddr && b.AdminAddr == c.AdminAddr && b.Rack == c.Rack
}
