package identity

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path"
	"sync"

	"chronik/internal/format"
	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

// Errors of OpenStore, each wrapped with the directory or file, and of the changes of a Store.
var (
	// ErrInUse: another process has the directory.
	ErrInUse = errors.New("data directory is in use by another process")
	// ErrWrongNode: the directory belongs to another node id.
	ErrWrongNode = errors.New("data directory belongs to another node")
	// ErrCorrupt: store.id does not decode.
	ErrCorrupt = errors.New("store.id is corrupt")
	// ErrRefused: the store is not in a state in which it may agree to the change.
	ErrRefused = errors.New("store refuses")
)

// State is how far a store is on its way into a cluster.
type State string

// States. A store only moves forward, but for prepared to blank (see Decide).
const (
	Blank    State = "blank"
	Prepared State = "prepared"
	Member   State = "member"
)

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
	// Founded: a founder has made its first replica; what is missing since then is lost.
	Founded bool `json:"founded,omitempty"`
}

// check tells what is impossible in c, if anything.
func (c *content) check() error {
	if c.Node <= 0 || c.Store.IsZero() {
		return fmt.Errorf("node %d, store %s: out of range", c.Node, c.Store)
	}
	if c.Genesis != nil {
		if err := c.Genesis.check(c.Node, c.Store); err != nil {
			return err
		}
	}
	switch {
	case c.State == Blank && c.Genesis == nil && (c.JoinOnly || c.Cluster == ""):
	case c.State == Prepared && c.Genesis != nil && c.Cluster == "" && !c.JoinOnly:
	case c.State == Member && c.Cluster != "" && (c.Genesis == nil || c.Genesis.ClusterID == c.Cluster):
	default:
		return fmt.Errorf("state %q of cluster %q does not go with what else it says", c.State, c.Cluster)
	}
	return nil
}

// Store is an open data directory.
type Store struct {
	fs   vfs.FS
	dir  string
	lock io.Closer

	// changing is held from reading the content until its successor is durable:
	// calls of peers and the node's own steps change it at the same time.
	changing sync.Mutex

	mu  sync.Mutex
	c   content
	run uint64 // this open's random id
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
	if err := recovering(s.fs, s.dir); err != nil {
		return err
	}
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
	if err := s.replace(*c); err != nil {
		return err
	}
	s.c = *c
	return nil
}

// read decodes store.id.
func read(fsys vfs.FS, name string) (*content, error) {
	b, err := vfs.ReadFile(fsys, name, maxFile)
	if err != nil {
		return nil, err
	}
	c, err := decode(b)
	if errors.Is(err, format.ErrNewer) {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
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
	if err := format.Check(version, 1); err != nil {
		return nil, fmt.Errorf("format %w", err)
	}
	body = bytes.TrimSuffix(body, []byte("\n"))
	if got := crc32.Checksum(body, castagnoli); got != sum {
		return nil, fmt.Errorf("byte %d: checksum %08x, want %08x", len(head)+1, got, sum)
	}
	c := &content{}
	if err := unmarshal(body, c); err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return c, nil
}

// replace makes c the durable content.
func (s *Store) replace(c content) error {
	b, err := encode(c)
	if err != nil {
		return err
	}
	name := path.Join(s.dir, fileName)
	invariant.Point("identity.store.write")
	if err := vfs.WriteFileSync(s.fs, name, b, vfs.CategoryNode); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	invariant.Point("identity.store.written")
	return nil
}

// change lets edit alter the content, makes that durable, and only then current.
// edit returns false if there is nothing to alter.
func (s *Store) change(edit func(c *content) (bool, error)) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	c := s.get()
	changed, err := edit(&c)
	if err != nil || !changed {
		return err
	}
	invariant.Check(c.check() == nil, "store.id would become %+v", c)
	if err := s.replace(c); err != nil {
		return err
	}
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

// Run returns this open's random id. It is never 0.
func (s *Store) Run() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.run
}

// State returns the store's state.
func (s *Store) State() State { return s.get().State }

// Blank tells whether the store belongs to no cluster yet.
func (s *Store) Blank() bool { return s.get().State == Blank }

// JoinOnly tells whether the store must join and may not found a cluster.
func (s *Store) JoinOnly() bool { return s.get().JoinOnly }

// ClusterID returns the cluster's id, "" if none is known.
func (s *Store) ClusterID() string { return s.get().Cluster }

// Genesis returns the genesis that the store is prepared with or was a founder
// of, nil if it joined or is blank. It must not be modified.
func (s *Store) Genesis() *Genesis { return s.get().Genesis }

// Founded tells whether SetFounded was called since the store became a founder.
func (s *Store) Founded() bool { return s.get().Founded }

// SetFounded notes durably that the founder's metadata replica exists. If it is
// missing later it was lost or retired, and must not be made again under its old id.
func (s *Store) SetFounded() error {
	return s.change(func(c *content) (bool, error) {
		if c.State != Member || c.Genesis == nil {
			return false, fmt.Errorf("%w: store %s is %s and founded nothing", ErrRefused, c.Store, c.State)
		}
		changed := !c.Founded
		c.Founded = true
		return changed, nil
	})
}

// Prepare makes g, durably, the genesis that this store agrees to. A store agrees
// to one at a time. It takes another only from the same proposer and of a later
// round: a proposer commits only the last one it made, so the one before is void.
func (s *Store) Prepare(g *Genesis) error {
	return s.change(func(c *content) (bool, error) {
		refuse := func(format string, args ...any) (bool, error) {
			return false, fmt.Errorf("%w: store %s of node %d "+format, append([]any{ErrRefused, c.Store, c.Node}, args...)...)
		}
		if err := g.check(c.Node, c.Store); err != nil {
			return false, fmt.Errorf("%w: %w", ErrRefused, err)
		}
		switch {
		case c.JoinOnly:
			return refuse("was in a cluster before and may only join")
		case c.State == Member:
			return refuse("is a member of cluster %s", c.Cluster)
		case c.State == Prepared && c.Genesis.Equal(g):
			return false, nil
		case c.State == Prepared && c.Genesis.Proposer != g.Proposer:
			return refuse("has agreed to the genesis of store %s", c.Genesis.Proposer)
		case c.State == Prepared && c.Genesis.Round >= g.Round:
			return refuse("has agreed to a later genesis of the same proposer")
		}
		c.State, c.Genesis = Prepared, g
		return true, nil
	})
}

// Unprepare takes back the agreement; see Decide for when that is safe.
func (s *Store) Unprepare() error {
	return s.change(func(c *content) (bool, error) {
		if c.State != Prepared {
			return false, nil
		}
		c.State, c.Genesis = Blank, nil
		return true, nil
	})
}

// Commit makes a prepared store a member of its genesis' cluster.
func (s *Store) Commit() error { return s.commit("") }

// CommitTo is Commit if the genesis is cluster's, whatever was prepared meanwhile.
func (s *Store) CommitTo(cluster string) error {
	if cluster == "" {
		return fmt.Errorf("%w: no cluster named", ErrRefused)
	}
	return s.commit(cluster)
}

func (s *Store) commit(cluster string) error {
	return s.change(func(c *content) (bool, error) {
		switch {
		case c.State == Member && (cluster == "" || c.Cluster == cluster):
			return false, nil
		case c.State != Prepared:
			return false, fmt.Errorf("%w: store %s is %s: nothing to commit", ErrRefused, c.Store, c.State)
		case cluster != "" && c.Genesis.ClusterID != cluster:
			return false, fmt.Errorf("%w: store %s has agreed to cluster %s, not to %s", ErrRefused, c.Store, c.Genesis.ClusterID, cluster)
		}
		c.State, c.Cluster = Member, c.Genesis.ClusterID
		return true, nil
	})
}

// Join makes a blank store a member of a cluster that runs.
func (s *Store) Join(cluster string) error {
	return s.change(func(c *content) (bool, error) {
		switch {
		case cluster == "":
			return false, fmt.Errorf("%w: no cluster named", ErrRefused)
		case c.Cluster != "" && c.Cluster != cluster:
			return false, fmt.Errorf("%w: store %s belongs to cluster %s, not to %s", ErrRefused, c.Store, c.Cluster, cluster)
		case c.State == Member:
			return false, nil
		case c.State == Prepared:
			return false, fmt.Errorf("%w: store %s has agreed to found cluster %s and cannot join another", ErrRefused, c.Store, c.Genesis.ClusterID)
		}
		c.State, c.Cluster = Member, cluster
		return true, nil
	})
}

// Renew gives the directory a new store id: what it holds is a copy or has lost
// its log, and may only donate bytes. It must join its cluster again. Only a
// prepared store, which never was in a cluster, may still found one: it is as if
// its directory had been emptied.
func (s *Store) Renew() error {
	err := s.change(func(c *content) (bool, error) {
		*c = content{
			Node: c.Node, Store: ident.NewStoreID(), Boot: 1, State: Blank, Cluster: c.Cluster,
			JoinOnly: c.JoinOnly || c.State != Prepared,
		}
		return true, nil
	})
	if err == nil {
		s.mu.Lock()
		s.run = randomRun()
		s.mu.Unlock()
	}
	return err
}

// Close lets go of the directory.
func (s *Store) Close() error { return s.lock.Close() }
