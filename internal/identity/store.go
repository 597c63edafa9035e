package identity

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path"
	"slices"
	"sync"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

// Errors of OpenStore. Each names the directory and has advice.
var (
	// ErrInUse: another process has the directory.
	ErrInUse = errors.New("data directory is in use by another process")
	// ErrWrongNode: the directory belongs to another node id.
	ErrWrongNode = errors.New("data directory belongs to another node")
	// ErrCorrupt: store.id does not decode.
	ErrCorrupt = errors.New("store.id is corrupt")
)

// State is how far a store is on its way into a cluster.
type State string

// States. A store only moves forward, but for prepared to blank (see Decide).
const (
	Blank    State = "blank"
	Prepared State = "prepared"
	Member   State = "member"
)

// GenesisMember is a founding node.
type GenesisMember struct {
	Node        ident.NodeID    `json:"node"`
	Store       ident.StoreID   `json:"store"`
	MetaReplica ident.ReplicaID `json:"meta_replica"`
	Learner     bool            `json:"learner,omitempty"`
	RaftAddr    string          `json:"raft_addr"`
}

// Genesis is the birth of a cluster: its id and the founders, by node id.
type Genesis struct {
	ClusterID string          `json:"cluster_id"`
	Proposer  ident.StoreID   `json:"proposer"`
	Members   []GenesisMember `json:"members"`
}

// Names tells whether store is a founder.
func (g *Genesis) Names(store ident.StoreID) bool {
	return slices.ContainsFunc(g.Members, func(m GenesisMember) bool { return m.Store == store })
}

// Equal tells whether two geneses are the same.
func (g *Genesis) Equal(o *Genesis) bool {
	return g != nil && o != nil && g.ClusterID == o.ClusterID && g.Proposer == o.Proposer && slices.Equal(g.Members, o.Members)
}

// NewClusterID returns a random id as Kafka writes it: 22 characters of URL-safe base64.
func NewClusterID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails since Go 1.24
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// content is line 2 of store.id.
type content struct {
	Node  ident.NodeID  `json:"node"`
	Store ident.StoreID `json:"store"`
	Boot  uint64        `json:"boot"`
	State State         `json:"state"`
	// Cluster is known to members, and to stores that were renewed in it.
	Cluster string   `json:"cluster,omitempty"`
	Genesis *Genesis `json:"genesis,omitempty"`
	// JoinOnly: the node was in a cluster before; it never founds another.
	JoinOnly bool `json:"join_only,omitempty"`
}

// Store is an open data directory.
type Store struct {
	fs   vfs.FS
	dir  string
	lock io.Closer
	run  uint64 // this open's random id

	mu sync.Mutex
	c  content
}

const (
	fileName = "store.id"
	lockName = "LOCK"
	maxFile  = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// OpenStore opens dir for node, making directory and store if they are absent,
// and raises the boot counter durably.
func OpenStore(fsys vfs.FS, dir string, node ident.NodeID) (*Store, error) {
	if err := vfs.MkdirAllSync(fsys, dir); err != nil {
		return nil, err
	}
	lock, err := fsys.Lock(path.Join(dir, lockName))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInUse, dir, err)
	}
	s := &Store{fs: fsys, dir: dir, lock: lock, run: randomRun()}
	if err := s.open(node); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return s, nil
}

func randomRun() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails since Go 1.24
	n := uint64(0)
	for _, x := range b {
		n = n<<8 | uint64(x)
	}
	return n | 1 // 0 is "none"
}

func (s *Store) open(node ident.NodeID) error {
	c, err := read(s.fs, path.Join(s.dir, fileName))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c = &content{Node: node, Store: ident.NewStoreID(), State: Blank}
	case err != nil:
		return err
	case c.Node != node:
		return fmt.Errorf("%w: %s is node %d's, this is node %d", ErrWrongNode, s.dir, c.Node, node)
	}
	c.Boot++
	return s.replace(*c)
}

// read decodes store.id.
func read(fsys vfs.FS, name string) (*content, error) {
	b, err := vfs.ReadFile(fsys, name, maxFile)
	if err != nil {
		return nil, err
	}
	c, err := decode(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, name, err)
	}
	return c, nil
}

func encode(c content) ([]byte, error) {
	body, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "chronik-store 1 %08x\n%s\n", crc32.Checksum(body, castagnoli), body), nil
}

func decode(b []byte) (*content, error) {
	head, body, ok := bytes.Cut(b, []byte("\n"))
	if !ok {
		return nil, fmt.Errorf("no line end in %d bytes", len(b))
	}
	var version int
	var sum uint32
	if _, err := fmt.Sscanf(string(head), "chronik-store %d %x", &version, &sum); err != nil {
		return nil, fmt.Errorf("byte 0: not a store.id")
	}
	if version != 1 {
		return nil, fmt.Errorf("format version %d: this release knows 1; a newer one wrote it", version)
	}
	body = bytes.TrimSuffix(body, []byte("\n"))
	if got := crc32.Checksum(body, castagnoli); got != sum {
		return nil, fmt.Errorf("byte %d: checksum %08x, want %08x", len(head)+1, got, sum)
	}
	c := &content{}
	if err := json.Unmarshal(body, c); err != nil {
		return nil, err
	}
	if c.Node <= 0 || c.Store.IsZero() || !slices.Contains([]State{Blank, Prepared, Member}, c.State) {
		return nil, fmt.Errorf("node %d, store %s, state %q: out of range", c.Node, c.Store, c.State)
	}
	return c, nil
}

// replace makes c durable and then current.
func (s *Store) replace(c content) error {
	b, err := encode(c)
	if err != nil {
		return err
	}
	invariant.Point("identity.store.write")
	if err := vfs.WriteFileSync(s.fs, path.Join(s.dir, fileName), b, vfs.CategoryNode); err != nil {
		return fmt.Errorf("%s: %w", path.Join(s.dir, fileName), err)
	}
	invariant.Point("identity.store.written")
	s.mu.Lock()
	s.c = c
	s.mu.Unlock()
	return nil
}

func (s *Store) get() content {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.c
}

// ID returns the store's id.
func (s *Store) ID() ident.StoreID { return s.get().Store }

// Boot returns how often the directory has been opened, this time included.
func (s *Store) Boot() uint64 { return s.get().Boot }

// Run returns this open's random id.
func (s *Store) Run() uint64 { return s.run }

// State returns the store's state.
func (s *Store) State() State { return s.get().State }

// Blank tells whether the store belongs to no cluster yet.
func (s *Store) Blank() bool { return s.get().State == Blank }

// JoinOnly tells whether the store must join and may not found a cluster.
func (s *Store) JoinOnly() bool { return s.get().JoinOnly }

// ClusterID returns the cluster's id, "" if none is known.
func (s *Store) ClusterID() string { return s.get().Cluster }

// Genesis returns the genesis the store was prepared with, nil if it joined or is blank.
func (s *Store) Genesis() *Genesis { return s.get().Genesis }

// Prepare makes g the genesis that this store agrees to. It refuses what would
// let two clusters be born; see Decide.
func (s *Store) Prepare(g *Genesis) error {
	c := s.get()
	switch {
	case !g.Names(c.Store):
		return fmt.Errorf("genesis of %s does not name store %s", g.ClusterID, c.Store)
	case c.JoinOnly:
		return fmt.Errorf("store %s may only join", c.Store)
	case c.State == Member:
		return fmt.Errorf("store %s is a member of cluster %s", c.Store, c.Cluster)
	case c.State == Prepared && c.Genesis.Equal(g):
		return nil
	case c.State == Prepared && c.Genesis.Proposer != g.Proposer:
		return fmt.Errorf("store %s has agreed to the genesis of store %s", c.Store, c.Genesis.Proposer)
	}
	c.State, c.Genesis = Prepared, g
	return s.replace(c)
}

// Unprepare takes back the agreement; see Decide for when that is safe.
func (s *Store) Unprepare() error {
	c := s.get()
	if c.State != Prepared {
		return nil
	}
	c.State, c.Genesis = Blank, nil
	return s.replace(c)
}

// Commit makes a prepared store a member of its genesis' cluster.
func (s *Store) Commit() error {
	c := s.get()
	if c.State == Member {
		return nil
	}
	if c.State != Prepared {
		return fmt.Errorf("store %s is %s: nothing to commit", c.Store, c.State)
	}
	c.State, c.Cluster = Member, c.Genesis.ClusterID
	return s.replace(c)
}

// Join makes a blank store a member of a cluster that runs.
func (s *Store) Join(cluster string) error {
	c := s.get()
	if c.State == Member && c.Cluster == cluster {
		return nil
	}
	if c.Cluster != "" && c.Cluster != cluster {
		return fmt.Errorf("store %s belongs to cluster %s, not to %s", c.Store, c.Cluster, cluster)
	}
	c.State, c.Cluster, c.Genesis = Member, cluster, nil
	return s.replace(c)
}

// Renew gives the directory a new store id: what it holds is a copy or has lost
// its log, and may only donate bytes. It must join its cluster again.
func (s *Store) Renew() error {
	c := s.get()
	c.Store, c.Boot, c.State, c.Genesis, c.JoinOnly = ident.NewStoreID(), 1, Blank, nil, true
	s.run = randomRun()
	return s.replace(c)
}

// Close lets go of the directory.
func (s *Store) Close() error { return s.lock.Close() }
