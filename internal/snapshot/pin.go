package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"time"

	crand "crypto/rand"

	"chronik/internal/ident"
	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

// Pin is a lease on one checkpoint: its files stay readable and the raft log
// after Point.Index stays (through Live) until the pin ends.
type Pin struct {
	ID      uint64 // random: knowing it is the permission to read
	Group   ident.GroupID
	Replica ident.ReplicaID
	To      ident.NodeID
	Point   Point
	Bytes   int64 // of all files, the checkpoint included
	Files   int
}

// Offer is the pin as a follower gets it from node self.
func (p *Pin) Offer(self ident.NodeID) Offer {
	return Offer{
		Group: p.Group, Index: p.Point.Index, Term: p.Point.Term, Bytes: p.Bytes, Files: p.Files,
		Sources: []OfferSource{{Node: self, Pin: p.ID}},
	}
}

// servedPin is the Server's side of a Pin. Fields below Pin are guarded by
// Server.mu, except files and done, which never change.
type servedPin struct {
	Pin
	dir    string
	files  []pinnedFile
	byName map[string]int
	done   chan struct{} // closed when the pin ends

	deadline time.Time
	served   int64
	budget   int64 // rereading does not renew a pin for ever
	slot     bool
	wake     chan struct{} // closed when the slot is granted; nil while nobody waits
	waiters  int
	asked    time.Time // last request
	inflight int
	ended    bool
	opened   bool // by its receiver: the log behind it is not needed
	started  time.Time
	attempts int // 0: not told
	meter    meter
	man      *pinManifest // nil until asked for
}

type pinnedFile struct {
	name string
	size int64
	f    vfs.File
}

func (p *servedPin) file(name string) *pinnedFile {
	if i, ok := p.byName[name]; ok {
		return &p.files[i]
	}
	return nil
}

// Pin opens the current checkpoint of a generation directory and all its
// files, for node to. A checkpoint that is replaced meanwhile is no matter.
func (s *Server) Pin(group ident.GroupID, replica ident.ReplicaID, dir string, to ident.NodeID) (*Pin, error) {
	p, err := s.pin(group, replica, dir, to, false)
	if err != nil {
		return nil, err
	}
	out := p.Pin
	return &out, nil
}

// pin is Pin; opened says that the receiver asked for it.
func (s *Server) pin(group ident.GroupID, replica ident.ReplicaID, dir string, to ident.NodeID, opened bool) (*servedPin, error) {
	const tries = 8
	var p *servedPin
	var at string
	var err error
	for range tries {
		// A file named by the checkpoint just read may be unlinked by the time it
		// is opened, if a newer checkpoint was published in between: look again.
		p, at, err = openPin(s.opt.FS, dir)
		if err == nil || !errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrNoCheckpoint) {
			break
		}
	}
	if err == nil && p.Group != group {
		err = errors.Join(fmt.Errorf("%w: checkpoint is of group %d", ErrCorrupt, p.Group), p.closeFiles())
	}
	if err != nil {
		err = fmt.Errorf("pin group %d in %s: %w", group, dir, err)
		if isSpoilt(err) {
			s.tellSpoilt(replica, dir, at, err)
		}
		return nil, err
	}
	p.Replica, p.To, p.opened = replica, to, opened
	if err := s.admit(p); err != nil {
		return nil, errors.Join(fmt.Errorf("pin group %d in %s: %w", group, dir, err), p.closeFiles())
	}
	if opened {
		s.endOpened(group, to, p.ID)
	}
	return p, nil
}

// openPin opens a checkpoint and its files. at is the file that err is about.
func openPin(fs vfs.FS, dir string) (_ *servedPin, at string, err error) {
	at = CheckpointName
	ck, err := Open(fs, dir)
	if err != nil {
		return nil, at, err
	}
	p := &servedPin{dir: dir, done: make(chan struct{}), byName: make(map[string]int, 1+len(ck.Files))}
	add := func(name string, size int64, f vfs.File) {
		p.byName[name] = len(p.files)
		p.files = append(p.files, pinnedFile{name: name, size: size, f: f})
		p.Bytes += size
	}
	add(CheckpointName, ck.FileBytes, ck.f)
	defer func() {
		if err != nil {
			err = errors.Join(err, p.closeFiles())
		}
	}()
	if n := manifestBytes(ck.Files) + manifestBytes([]DataFile{{CheckpointName, ck.FileBytes}}); n > MaxManifestBytes {
		return nil, at, fmt.Errorf("manifest: %w: %d bytes", ErrTooLarge, n)
	}
	for _, df := range ck.Files {
		at = df.Name
		f, err := fs.Open(path.Join(dir, df.Name))
		if err != nil {
			return nil, at, err
		}
		add(df.Name, df.Size, f)
		st, err := f.Stat()
		if err != nil {
			return nil, at, err
		}
		if st.Size() < df.Size {
			return nil, at, fmt.Errorf("%s: %w: %d bytes, its checkpoint says %d", path.Join(dir, df.Name), ErrCorrupt, st.Size(), df.Size)
		}
	}
	p.Group, p.Point, p.Pin.Files = ck.Group, ck.Point, len(p.files)
	return p, CheckpointName, nil
}

func (p *servedPin) closeFiles() error {
	var err error
	for _, f := range p.files {
		err = errors.Join(err, f.f.Close())
	}
	return err
}

// admit gives p an id and a deadline, within the caps.
func (s *Server) admit(p *servedPin) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return ErrClosed
	case len(s.pins) >= s.opt.MaxPins:
		return fmt.Errorf("%w: %d pins", ErrTooManyPins, len(s.pins))
	case len(s.pins) > 0 && s.files+len(p.files) > s.opt.MaxPinnedFiles:
		return fmt.Errorf("%w: %d files open", ErrTooManyPins, s.files)
	}
	for p.ID == 0 || s.pins[p.ID] != nil {
		var b [8]byte
		_, _ = crand.Read(b[:]) // never fails since Go 1.24
		p.ID = binary.BigEndian.Uint64(b[:])
	}
	// Twice the state, and what a retry of every chunk in flight may cost.
	p.budget = 2*p.Bytes + 64*ChunkBytes
	s.pins[p.ID] = p
	s.files += len(p.files)
	s.bytes += p.Bytes
	s.pinsMade.Add(1)
	s.renewLocked(p)
	return nil
}

// Unpin ends a pin. Nothing happens if it has ended already.
func (s *Server) Unpin(id uint64) {
	s.mu.Lock()
	p := s.pins[id]
	var files bool
	if p != nil {
		files = s.endLocked(p)
	}
	s.mu.Unlock()
	if files {
		s.closePinFiles(p)
	}
}

// endLocked takes p out of the books. It says whether the caller closes its
// files; otherwise the last request in flight does.
func (s *Server) endLocked(p *servedPin) bool {
	invariant.Check(!p.ended, "pin %016x ended twice", p.ID)
	p.ended = true
	close(p.done)
	delete(s.pins, p.ID)
	s.files -= len(p.files)
	s.bytes -= p.Bytes
	if i := slices.Index(s.queue, p); i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
	}
	if p.slot {
		p.slot = false
		s.slots += sharesOf(p.Bytes)
		s.grantLocked()
	}
	if len(s.pins) == 0 && s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	return p.inflight == 0
}

func (s *Server) closePinFiles(p *servedPin) {
	if err := p.closeFiles(); err != nil { // they were only read
		s.opt.Logger.Warn("Failed to close pinned files", "group", p.Group, "err", err)
	}
}

// renew says that the receiver lives and cannot progress now: the full lease.
func (s *Server) renew(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pins[id]
	if p == nil {
		return false
	}
	s.renewLocked(p)
	return true
}

func (s *Server) renewLocked(p *servedPin) {
	p.deadline = time.Now().Add(s.opt.PinExpiry)
	if s.timer == nil && !s.closed {
		s.timer = time.AfterFunc(s.opt.PinExpiry, s.expire)
	}
}

// credit extends the lease by what n bytes take at the minimum rate, at most
// to the full lease: whoever is slower runs out in the end.
func (s *Server) credit(p *servedPin, n int) {
	s.bytesSent.Add(int64(n))
	s.worked.Add(1)
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	p.meter.add(now, int64(n))
	p.served += int64(n)
	if p.served > p.budget {
		return
	}
	more := time.Duration(float64(n) / float64(s.opt.MinBytesPerSecond) * float64(time.Second))
	p.deadline = p.deadline.Add(min(more, s.opt.PinExpiry))
	if full := now.Add(s.opt.PinExpiry); p.deadline.After(full) {
		p.deadline = full
	}
}

// expire ends the pins whose lease is over and sets the timer for the next.
func (s *Server) expire() {
	type lapsed struct {
		p      *servedPin
		files  bool
		served int64
	}
	var over []lapsed
	s.mu.Lock()
	now := time.Now()
	var next time.Time
	for _, p := range s.pins {
		switch {
		case p.local():
		case !p.deadline.After(now):
			over = append(over, lapsed{p: p})
		case next.IsZero() || p.deadline.Before(next):
			next = p.deadline
		}
	}
	for i := range over {
		over[i].files, over[i].served = s.endLocked(over[i].p), over[i].p.served
	}
	switch {
	case s.timer == nil:
	case next.IsZero(): // only the node's own are left: the next pin sets it again
		s.timer = nil
	default:
		s.timer.Reset(next.Sub(now))
	}
	s.mu.Unlock()
	for _, o := range over {
		s.pinsLapsed.Add(1)
		s.opt.Logger.Warn("Expired snapshot pin", "group", o.p.Group, "peer", o.p.To,
			"index", o.p.Point.Index, "bytes", o.served)
		if o.files {
			s.closePinFiles(o.p)
		}
	}
}

// turn is a request's hold on a pin.
type turn struct {
	*servedPin
	waiting bool // no slot, and the files are not held
}

// acquire holds a pin's files for one request and waits a while for its slot.
// nil means there is no such pin.
func (s *Server) acquire(ctx context.Context, id uint64) *turn {
	s.mu.Lock()
	p := s.pins[id]
	if p == nil {
		s.mu.Unlock()
		return nil
	}
	p.asked = time.Now()
	if p.started.IsZero() {
		p.started = p.asked
	}
	if !p.slot {
		s.renewLocked(p) // it cannot progress: not its fault
		if !slices.Contains(s.queue, p) {
			s.queue = append(s.queue, p)
		}
		s.grantLocked()
		if p.opened && !p.slot { // its receiver has other sources and does not wait
			s.queue = slices.DeleteFunc(s.queue, func(q *servedPin) bool { return q == p })
			s.mu.Unlock()
			return &turn{servedPin: p, waiting: true}
		}
	}
	if p.slot {
		defer s.mu.Unlock()
		return s.holdLocked(p)
	}
	if p.wake == nil {
		p.wake = make(chan struct{})
	}
	wake := p.wake
	p.waiters++
	s.mu.Unlock()

	timer := time.NewTimer(longPoll)
	defer timer.Stop()
	select {
	case <-wake:
	case <-p.done:
	case <-ctx.Done():
	case <-timer.C:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p.waiters--
	switch {
	case p.ended:
		return nil
	case p.slot:
		return s.holdLocked(p)
	}
	p.asked = time.Now()
	return &turn{servedPin: p, waiting: true}
}

func (s *Server) holdLocked(p *servedPin) *turn {
	if p.inflight >= maxInflight {
		return &turn{servedPin: p, waiting: true}
	}
	p.inflight++
	return &turn{servedPin: p}
}

// release ends a request's hold; the last one closes an ended pin's files.
func (s *Server) release(p *servedPin) {
	s.mu.Lock()
	p.inflight--
	invariant.Check(p.inflight >= 0, "pin %016x released too often", p.ID)
	p.asked = time.Now()
	last := p.ended && p.inflight == 0
	s.mu.Unlock()
	if last {
		s.closePinFiles(p)
	}
}

// grantLocked gives free slots to the queue in order. A pin that has stopped
// asking loses its place, and its slot if others wait.
func (s *Server) grantLocked() {
	now := time.Now()
	idle := func(p *servedPin) bool {
		return p.waiters == 0 && p.inflight == 0 && now.Sub(p.asked) >= slotIdle
	}
	s.queue = slices.DeleteFunc(s.queue, idle)
	wanted := 0
	for _, p := range s.queue {
		wanted += sharesOf(p.Bytes)
	}
	if s.slots < wanted {
		for _, p := range s.pins {
			if p.slot && idle(p) {
				p.slot = false
				s.slots += sharesOf(p.Bytes)
			}
		}
	}
	for len(s.queue) > 0 && s.slots >= sharesOf(s.queue[0].Bytes) {
		p := s.queue[0]
		s.queue = s.queue[1:]
		p.slot = true
		s.slots -= sharesOf(p.Bytes)
		if p.wake != nil {
			close(p.wake)
			p.wake = nil
		}
	}
}
