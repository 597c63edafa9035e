package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// otherPatience is the part of the progress timeout that a ChunkSource may take
	// for a chunk: the offer's sources must be asked before the watchdog ends the Fetch.
	otherPatience = 4
	// otherStrikes is how often in a row a ChunkSource may fail before it rests.
	otherStrikes = 2
	// firstRest is how long a ChunkSource that failed is left alone, doubled each time.
	firstRest = 5 * time.Second
	maxRest   = 2 * time.Minute
)

// errBusySource says that a ChunkSource has no time now: it rests at once.
var errBusySource = errors.New("source is busy")

// other is a ChunkSource in one transfer. It is asked before the offer's sources
// and is never needed: one that fails or is slow rests, one that gave wrong bytes
// is not asked again, and the chunk comes from the next.
type other struct {
	ChunkSource
	mu      sync.Mutex
	strikes int // failures in a row
	rest    time.Duration
	until   time.Time // rests until then
	wrong   bool
}

// asked tells whether o may be asked now.
func (o *other) asked() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.wrong && (o.until.IsZero() || !time.Now().Before(o.until))
}

// served says that o gave what it was asked for, or honestly nothing.
func (o *other) served() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.strikes = 0
}

// failed counts a failure. tell is true when it is the first to leave o alone.
func (o *other) failed(err error) (tell bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	first := o.rest == 0 && !o.wrong
	switch {
	case errors.Is(err, ErrCorrupt):
		o.wrong = true
		return first
	case errors.Is(err, errBusySource):
	case !o.until.IsZero() && !time.Now().Before(o.until): // it failed again after its rest
	default:
		if o.strikes++; o.strikes < otherStrikes {
			return false
		}
	}
	if time.Now().Before(o.until) {
		return false // calls that were under way when it was sent to rest
	}
	o.strikes = 0
	o.rest = min(max(2*o.rest, firstRest), maxRest)
	o.until = time.Now().Add(o.rest)
	return first
}

// fromOthers asks the ChunkSources for a chunk: those that the caller named, then
// the followers, each chunk beginning with another of them. nil means that none
// has it now; the result is verified and may be buf.
func (t *transfer) fromOthers(f *ManifestFile, i int, buf []byte) []byte {
	named := len(t.opt.More)
	for k, o := range t.others {
		if peers := len(t.others) - named; k >= named {
			o = t.others[named+(k-named+i)%peers]
		}
		if !o.asked() {
			continue
		}
		b, err := t.askOther(o, f, i, buf)
		if err == nil {
			o.served()
			_ = t.localWork() // the offer's sources hear of us, and the watchdog
			return b
		}
		if t.ctx.Err() != nil {
			return nil
		}
		t.blame(o, f, err)
	}
	return nil
}

// restFromPeers asks a follower for the chunk's bytes behind the prefix in buf. If
// the whole is wrong either may be to blame, and the offer's source decides.
func (t *transfer) restFromPeers(f *ManifestFile, i int, buf []byte, prefix int) bool {
	_, n := f.Range(i)
	for _, o := range t.others[len(t.opt.More):] {
		p, ok := o.ChunkSource.(*peerSource)
		if !ok || !o.asked() {
			continue
		}
		ctx, cancel := context.WithTimeout(t.ctx, t.r.opt.ProgressTimeout/otherPatience)
		b, err := p.readChunk(ctx, f, i, buf, prefix)
		cancel()
		if err != nil {
			t.blame(o, f, err)
			continue
		}
		t.count(n-prefix, o.Name())
		_ = t.localWork()
		sum := sha256.Sum256(b)
		return slices.Equal(sum[:], f.Hash(i))
	}
	return false
}

// blame counts a failure of o, unless it only lacks the bytes or the transfer is over.
func (t *transfer) blame(o *other, f *ManifestFile, err error) {
	if t.ctx.Err() != nil {
		return
	}
	if errors.Is(err, ErrNoChunk) {
		o.served()
		return
	}
	t.progress() // failures are few before it rests: they are no stall
	if o.failed(err) {
		t.r.opt.Logger.Warn("Left a snapshot source alone", "group", t.offer.Group, "source", o.Name(),
			"index", t.offer.Index, "file", f.Name, "err", err)
	}
}

// askOther gets a chunk from o in limited time and compares its hash.
func (t *transfer) askOther(o *other, f *ManifestFile, i int, buf []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(t.ctx, t.r.opt.ProgressTimeout/otherPatience)
	defer cancel()
	b, err := o.ReadChunk(ctx, f, i, buf)
	if err != nil {
		return nil, err
	}
	t.count(len(b), o.Name())
	off, n := f.Range(i)
	if sum := sha256.Sum256(b); len(b) != n || !slices.Equal(sum[:], f.Hash(i)) {
		return nil, fmt.Errorf("file %s bytes %d to %d from %s: %w: %d bytes, their hash differs from the manifest's",
			f.Name, off, off+int64(n), o.Name(), ErrCorrupt, len(b))
	}
	return b, nil
}

// SourceBytes is what one source gave.
type SourceBytes struct {
	Source string // "node 2", "object store"
	Bytes  int64
}

// ledger adds up bytes by source. Not safe for concurrent use.
type ledger []SourceBytes

func (l *ledger) add(source string, n int64) {
	for i := range *l {
		if (*l)[i].Source == source {
			(*l)[i].Bytes += n
			return
		}
	}
	*l = append(*l, SourceBytes{source, n})
}
