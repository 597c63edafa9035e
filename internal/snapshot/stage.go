package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path"
	"slices"
	"sync"
	"sync/atomic"

	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

// stagedFile is a file under construction: staging/<name>.part. Workers write
// disjoint chunks of it; whoever takes the last of holds finishes it.
type stagedFile struct {
	mf       *ManifestFile
	final    string
	f        vfs.File
	holds    atomic.Int32 // chunks under way, and the planner while it plans
	unsynced atomic.Int64 // bytes since the last sync
	named    atomic.Bool  // the part file's name is durable, or about to be
	sums     []chunkSum   // of what was written here
	// writing keeps the workers from meeting in the kernel, where one inode's writers
	// wait for each other by spinning.
	writing  sync.Mutex
	complete chan struct{} // closed once the file is verified under its own name
	// locals may give the beginning of a chunk that is fetched. Nobody reads it
	// once nothing is held.
	locals []localFile
}

// fetchFiles brings every file of the manifest into staging, the checkpoint
// first: it says whether this is the snapshot that was offered.
func (t *transfer) fetchFiles(l *listing) (*Checkpoint, error) {
	man := &l.man
	t.setState(StateTransferring)
	t.mu.Lock()
	t.total = man.Bytes()
	t.mu.Unlock()
	if err := t.prepare(man); err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	chunks := 0
	for i := range man.Files {
		chunks += man.Files[i].Chunks()
	}
	buf := largestChunk(man)
	for range min(t.r.opt.Parallel, chunks) {
		wg.Go(func() { t.work(make([]byte, buf)) })
	}
	ck, err := t.plan(l)
	if err != nil {
		t.cancel(err)
	}
	close(t.jobs)
	wg.Wait()
	for _, f := range t.open { // those that were not finished
		select {
		case <-f.complete:
		default:
			err = errors.Join(err, f.f.Close())
		}
	}
	if err == nil {
		err = context.Cause(t.ctx)
	}
	return ck, err
}

// largestChunk is how many bytes the largest chunk of a snapshot has.
func largestChunk(man *Manifest) int {
	n := 0
	for i := range man.Files {
		n = max(n, int(min(man.Files[i].Size, ChunkBytes)))
	}
	return n
}

// prepare makes the staging directory, or finds it, and reserves disk space
// for what is surely missing.
func (t *transfer) prepare(man *Manifest) error {
	fs, base := t.r.opt.FS, t.opt.Base
	if err := t.removeUnsynced(); err != nil {
		return err
	}
	gs, err := Generations(fs, base)
	if err != nil {
		return err
	}
	for _, g := range gs {
		switch {
		case g.N == t.opt.Next && !g.Staging: // complete, but never became live
			err = unstage(fs, base, g.N)
		case g.N != t.opt.Next && g.N > t.opt.Live:
			err = fs.RemoveAll(g.Dir)
		}
		if err != nil {
			return fmt.Errorf("prepare %s: %w", t.staging, err)
		}
	}
	// The names need not be durable yet: until publish nothing counts on them but
	// what a power loss should leave of a long transfer, and keepNames sees to that.
	if err := fs.MkdirAll(t.staging, 0o755); err != nil {
		return err
	}
	t.space = make(map[string]int64, len(man.Files))
	var missing int64
	for i := range man.Files {
		f := &man.Files[i]
		t.space[f.Name] = t.spaceFor(f)
		missing += t.space[f.Name]
	}
	return t.r.reserve(t, missing)
}

// spaceFor guesses how much disk a file will take: none if one of its size is
// here to be linked, less what an earlier Fetch wrote.
func (t *transfer) spaceFor(f *ManifestFile) int64 {
	for _, dir := range append([]string{t.staging}, t.localDirs(f)...) {
		if st, err := t.r.opt.FS.Stat(path.Join(dir, f.Name)); err == nil && st.Size() == f.Size {
			return 0
		}
	}
	if st, err := t.r.opt.FS.Stat(path.Join(t.staging, f.Name+partSuffix)); err == nil {
		return max(0, f.Size-st.Size())
	}
	return f.Size
}

// localDirs are where bytes of f may be. The checkpoint is each source's own.
func (t *transfer) localDirs(f *ManifestFile) []string {
	if f.Name == CheckpointName {
		return nil
	}
	return append([]string{GenDir(t.opt.Base, t.opt.Live)}, t.opt.Donors...)
}

// plan stages file after file: what is here is linked or copied, what is
// missing becomes a job.
func (t *transfer) plan(l *listing) (*Checkpoint, error) {
	man := &l.man
	buf := make([]byte, largestChunk(man))
	var ck *Checkpoint
	for i := range man.Files {
		select {
		case <-l.known[i]:
		case <-t.ctx.Done():
			return nil, context.Cause(t.ctx)
		}
		sf, err := t.stageFile(&man.Files[i], buf)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			continue
		}
		if sf != nil {
			select {
			case <-sf.complete:
			case <-t.ctx.Done():
				return nil, context.Cause(t.ctx)
			}
		}
		if ck, err = t.checkOffered(man); err != nil {
			return nil, err
		}
	}
	return ck, nil
}

// checkOffered compares the staged checkpoint with the offer and the manifest.
func (t *transfer) checkOffered(man *Manifest) (*Checkpoint, error) {
	ck, err := ReadHeader(t.r.opt.FS, t.staging)
	if err != nil {
		return nil, err
	}
	o := t.offer
	if ck.Group != o.Group || ck.Point.Index != o.Index || ck.Point.Term != o.Term {
		return nil, fmt.Errorf("%w: checkpoint of group %d at index %d, term %d; offered group %d at index %d, term %d",
			ErrMismatch, ck.Group, ck.Point.Index, ck.Point.Term, o.Group, o.Index, o.Term)
	}
	if !slices.Equal(ck.Files, man.dataFiles()) {
		return nil, fmt.Errorf("%w: the manifest's files are not the checkpoint's", ErrMismatch)
	}
	return &ck, nil
}

// stageFile puts a file into staging as far as its bytes are on this node and
// hands the missing chunks to the workers. nil means it is complete already.
func (t *transfer) stageFile(mf *ManifestFile, buf []byte) (*stagedFile, error) {
	final := path.Join(t.staging, mf.Name)
	none := make([]bool, mf.Chunks())
	// A complete file of an earlier Fetch is kept or copied from, never written
	// to: it may be a link.
	old, err := t.hashCandidate(final, mf, none, buf)
	if err != nil {
		return nil, err
	}
	if old.whole {
		return nil, t.adopted(final, mf)
	}
	have := make([]bool, mf.Chunks())
	part, err := t.hashPart(final+partSuffix, mf, have, buf)
	if err != nil {
		return nil, err
	}
	plan := filePlan{mf: mf, final: final, have: have}
	plan.missing = mf.Size - t.bytesOf(mf, have)
	plan.add(final, old.match)
	for _, dir := range t.localDirs(mf) {
		if len(have) > 0 && !slices.Contains(have, false) {
			break
		}
		name := path.Join(dir, mf.Name)
		c, err := t.hashCandidate(name, mf, have, buf)
		if err != nil {
			return nil, err
		}
		if c.whole && t.link(name, final, mf) {
			return nil, t.adopted(final, mf)
		}
		plan.add(name, c.match)
		if c.size > 0 && slices.Contains(have, false) {
			plan.addLocal(localFile{name, c.size, t.keptBytes(dir, mf.Name)})
		}
	}
	if mf.Name != CheckpointName { // two checkpoints have little in common
		plan.addLocal(localFile{name: final, size: old.size})
		plan.addLocal(localFile{name: final + partSuffix, size: part})
	}
	return t.buildPart(&plan, buf)
}

// filePlan says where the chunks of a file come from.
type filePlan struct {
	mf      *ManifestFile
	final   string
	have    []bool // in the part file, or to be copied from a donor; the others are fetched
	donors  []donor
	locals  []localFile // for the beginnings of chunks that are fetched
	missing int64       // bytes that are not in the part file
}

// donor is a local file and the chunks to copy from it.
type donor struct {
	name  string
	match []bool
}

// add takes the chunks of match that nothing before it has.
func (p *filePlan) add(name string, match []bool) {
	some := false
	for i, ok := range match {
		match[i] = ok && !p.have[i]
		p.have[i] = p.have[i] || ok
		some = some || match[i]
	}
	if some {
		p.donors = append(p.donors, donor{name, match})
	}
}

func (t *transfer) bytesOf(mf *ManifestFile, chunks []bool) int64 {
	var sum int64
	for i, ok := range chunks {
		if _, n := mf.Range(i); ok {
			sum += int64(n)
		}
	}
	return sum
}

// hashPart finds out which chunks of a part file, if there is one, are right
// already, and how long it is. One that is too long is removed, for files cannot be cut.
func (t *transfer) hashPart(name string, mf *ManifestFile, have []bool, buf []byte) (size int64, err error) {
	st, err := t.r.opt.FS.Stat(name)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if st.Size() > mf.Size || t.r.isUnsynced(name) {
		return 0, errors.Join(t.r.opt.FS.Remove(name), t.r.clearUnsynced(name))
	}
	f, err := t.r.opt.FS.Open(name)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := t.hashChunks(f, st.Size(), mf, have, have, buf); err != nil {
		return 0, err
	}
	t.place(t.bytesOf(mf, have), true)
	return st.Size(), nil
}

// candidate is what a local file can give.
type candidate struct {
	match []bool // chunks
	whole bool   // identical, synced, and fit to be linked (correctness rule 13: synced first, then hashed)
	size  int64
}

// hashCandidate finds out which chunks that are not in have a local file can
// give. A file that cannot be opened or read gives nothing, one that cannot be synced, or
// once could not, gives copies of its chunks; err is the transfer's end.
func (t *transfer) hashCandidate(name string, mf *ManifestFile, have []bool, buf []byte) (c candidate, err error) {
	f, err := t.r.opt.FS.Open(name)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			t.unreadable(name, err)
		}
		return c, nil
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.unreadable(name, err)
		}
	}()
	st, err := f.Stat()
	if err != nil {
		t.unreadable(name, err)
		return c, nil
	}
	linkable := st.Size() == mf.Size && !slices.Contains(have, true)
	if linkable {
		if err := f.SyncData(); err != nil {
			t.unreadable(name, fmt.Errorf("sync: %w", err))
			t.r.MarkUnsynced(name)
			linkable = false
		}
	}
	c.size, c.match = st.Size(), make([]bool, mf.Chunks())
	if err := t.hashChunks(f, c.size, mf, have, c.match, buf); err != nil {
		return candidate{}, err
	}
	// Looked at last: a sync that failed in its owner's hands before the one above is marked by now.
	c.whole = linkable && !slices.Contains(c.match, false) && !t.r.isUnsynced(name) && !t.r.isUnsynced(path.Dir(name))
	return c, nil
}

func (t *transfer) unreadable(name string, err error) {
	t.r.opt.Logger.Warn("Failed to use local bytes for a snapshot", "group", t.offer.Group, "file", name, "err", err)
}

// hashChunks sets match for every chunk that lies within the first size bytes of f and
// has the manifest's hash, unless skip says it is not needed. skip may be match.
// A chunk that cannot be read does not match.
func (t *transfer) hashChunks(f vfs.File, size int64, mf *ManifestFile, skip, match []bool, buf []byte) error {
	for i := range match {
		off, n := mf.Range(i)
		if off+int64(n) > size {
			break
		}
		if skip[i] {
			continue
		}
		if err := t.localWork(); err != nil {
			return err
		}
		if err := readFullAt(f, buf[:n], off); err != nil {
			t.unreadable(mf.Name, err)
			continue
		}
		sum := sha256.Sum256(buf[:n])
		match[i] = slices.Equal(sum[:], mf.Hash(i))
	}
	return nil
}

// link makes name, which is identical and synced, the staged file. Where links
// are refused the file is copied like any other.
func (t *transfer) link(name, final string, mf *ManifestFile) bool {
	fs := t.r.opt.FS
	invariant.Point("snapshot.stage.link")
	err := removeIfThere(fs, final)
	if err == nil {
		err = fs.Link(name, final)
	}
	if err != nil {
		t.unreadable(name, err)
		return false
	}
	invariant.Point("snapshot.stage.linked")
	return true
}

// adopted books a file that is complete in staging.
func (t *transfer) adopted(final string, mf *ManifestFile) error {
	t.place(mf.Size, true)
	t.r.unreserve(t, t.space[mf.Name])
	return removeIfThere(t.r.opt.FS, final+partSuffix)
}

// buildPart copies what donors have into the part file and queues the rest.
func (t *transfer) buildPart(p *filePlan, buf []byte) (*stagedFile, error) {
	fs := t.r.opt.FS
	if more := p.missing - t.space[p.mf.Name]; more > 0 {
		if err := t.r.reserve(t, more); err != nil {
			return nil, err
		}
	}
	invariant.Point("snapshot.stage.create")
	f, err := fs.OpenReadWrite(p.final+partSuffix, vfs.CategorySnapshot)
	if err != nil {
		return nil, err
	}
	sf := &stagedFile{
		mf: p.mf, final: p.final, f: f, complete: make(chan struct{}), locals: p.locals, sums: make([]chunkSum, p.mf.Chunks()),
	}
	sf.holds.Store(1)
	t.open = append(t.open, sf)
	invariant.Point("snapshot.stage.created")
	for _, d := range p.donors {
		if err := t.copyChunks(d, sf, p.have, buf); err != nil {
			return nil, err
		}
	}
	for i, ok := range p.have {
		if ok {
			continue
		}
		sf.holds.Add(1)
		select {
		case t.jobs <- job{sf, i}:
		case <-t.ctx.Done():
			return nil, context.Cause(t.ctx)
		}
	}
	return sf, t.drop(sf, buf)
}

// copyChunks copies matching chunks of a local file, hashed once more: what is
// written is what was verified. One that changed meanwhile is fetched instead.
func (t *transfer) copyChunks(d donor, sf *stagedFile, have []bool, buf []byte) error {
	f, err := t.r.opt.FS.Open(d.name)
	if err != nil {
		return err
	}
	for i, ok := range d.match {
		if !ok {
			continue
		}
		off, n := sf.mf.Range(i)
		if err = t.localWork(); err != nil {
			break
		}
		readErr := readFullAt(f, buf[:n], off)
		if sum := sha256.Sum256(buf[:n]); readErr != nil || !slices.Equal(sum[:], sf.mf.Hash(i)) {
			have[i] = false
			continue
		}
		if err = t.write(sf, i, buf[:n]); err != nil {
			break
		}
		t.place(int64(n), true)
	}
	return errors.Join(err, f.Close())
}

// chunkSum is the checksum of a chunk that was verified and then written: what
// reading back must give. SHA-256 has judged these bytes already; whether they are
// on their place unharmed, a CRC tells at a tenth of the cost.
type chunkSum struct {
	crc   uint32
	known bool
}

// partSyncEvery is what a power loss costs a transfer at most, in each file at work.
const partSyncEvery = 32 << 20

// write puts a verified chunk into a part file, has the kernel begin to write it,
// and syncs the file now and then.
func (t *transfer) write(sf *stagedFile, chunk int, b []byte) error {
	n := int64(len(b))
	off, _ := sf.mf.Range(chunk)
	sf.sums[chunk] = chunkSum{crc32.Checksum(b, castagnoli), true} // now: the file may scribble over b
	sf.writing.Lock()
	_, err := sf.f.WriteAt(b, off)
	sf.writing.Unlock()
	if err != nil {
		return fmt.Errorf("write %s%s at byte %d: %w", sf.final, partSuffix, off, err)
	}
	vfs.StartWriteBack(sf.f, off, n)
	t.r.unreserve(t, n)
	if sf.unsynced.Add(n) < partSyncEvery {
		return nil
	}
	sf.unsynced.Store(0)
	invariant.Point("snapshot.stage.part-sync")
	if err := sf.f.SyncData(); err != nil {
		return t.syncFailed(sf.final+partSuffix, err)
	}
	invariant.Point("snapshot.stage.part-synced")
	if sf.named.Swap(true) {
		return nil
	}
	return t.keepNames()
}

// syncFailed ends the transfer and removes the part file. What the kernel could not
// write it may since take for written: the next Fetch would find every byte in the
// page cache, and its sync would say yes.
func (t *transfer) syncFailed(name string, err error) error {
	rmErr := removeIfThere(t.r.opt.FS, name)
	if rmErr != nil {
		t.r.MarkUnsynced(name)
	}
	return errors.Join(fmt.Errorf("sync %s: %w", name, err), rmErr)
}

// keepNames makes what is in staging findable after a power loss. A small snapshot
// never comes here: its names become durable at once, in publish.
func (t *transfer) keepNames() error {
	invariant.Point("snapshot.stage.keep-names")
	t.unnamed.Store(0)
	return t.syncStagingDirs(t.staging, t.opt.Base)
}

// work fetches chunks until there are no more jobs or the transfer has failed.
func (t *transfer) work(buf []byte) {
	reply := replyBufs.Get().(*replyBuf)
	defer replyBufs.Put(reply)
	for j := range t.jobs {
		if t.ctx.Err() != nil {
			continue // the planner stops sending
		}
		if err := t.doJob(j, buf, reply); err != nil {
			t.cancel(err)
		}
	}
}

func (t *transfer) doJob(j job, buf []byte, reply *replyBuf) error {
	b, reused, err := t.fetchChunk(j.f.mf, j.chunk, buf, reply, t.localPrefix(j, buf))
	if err != nil {
		return err
	}
	_, n := j.f.mf.Range(j.chunk)
	if err := t.write(j.f, j.chunk, b); err != nil {
		return err
	}
	t.place(int64(reused), true)
	t.place(int64(n-reused), false)
	return t.drop(j.f, buf)
}

// drop gives up one hold on sf; the last one syncs the file, reads it back and
// gives it its name.
func (t *transfer) drop(sf *stagedFile, buf []byte) error {
	if sf.holds.Add(-1) > 0 {
		return nil
	}
	name := sf.final + partSuffix
	sf.locals = nil
	invariant.Point("snapshot.stage.sync")
	if err := sf.f.Sync(); err != nil {
		return t.syncFailed(name, err)
	}
	invariant.Point("snapshot.stage.synced")
	if err := t.readBack(sf, buf); err != nil {
		return fmt.Errorf("verify %s: %w", name, err)
	}
	invariant.Point("snapshot.stage.rename")
	if err := t.r.opt.FS.Rename(name, sf.final); err != nil {
		return err
	}
	invariant.Point("snapshot.stage.renamed")
	defer close(sf.complete)
	if err := sf.f.Close(); err != nil {
		return err
	}
	if t.unnamed.Add(sf.mf.Size) < syncEvery {
		return nil
	}
	return t.keepNames()
}

func (t *transfer) readBack(sf *stagedFile, buf []byte) error {
	st, err := sf.f.Stat()
	if err != nil {
		return err
	}
	if st.Size() != sf.mf.Size {
		return fmt.Errorf("%w: %d bytes, the manifest says %d", ErrCorrupt, st.Size(), sf.mf.Size)
	}
	for i := range sf.mf.Chunks() {
		if err := t.localWork(); err != nil {
			return err
		}
		off, n := sf.mf.Range(i)
		if err := readFullAt(sf.f, buf[:n], off); err != nil {
			return err
		}
		if !sf.holdsChunk(i, buf[:n]) {
			return fmt.Errorf("%w: bytes %d to %d are not what was written", ErrCorrupt, off, off+int64(n))
		}
	}
	return nil
}

// holdsChunk compares bytes read back with what was written; those that an earlier
// Fetch wrote are hashed, after the sync (correctness rule 13).
func (sf *stagedFile) holdsChunk(i int, b []byte) bool {
	if s := sf.sums[i]; s.known {
		return crc32.Checksum(b, castagnoli) == s.crc
	}
	sum := sha256.Sum256(b)
	return slices.Equal(sum[:], sf.mf.Hash(i))
}

// publish turns the complete staging into the generation.
func (t *transfer) publish() error {
	fs := t.r.opt.FS
	names, err := vfs.List(fs, t.staging)
	if err != nil {
		return err
	}
	found := 0
	for _, name := range names {
		if _, ok := t.space[name]; ok {
			found++
			continue
		}
		if err := fs.RemoveAll(path.Join(t.staging, name)); err != nil { // of an earlier snapshot
			return err
		}
	}
	invariant.Check(found == len(t.space), "staging %s has %d of %d files", t.staging, found, len(t.space))
	invariant.Point("snapshot.stage.dir-sync")
	if err := t.syncStagingDirs(t.staging); err != nil {
		return err
	}
	invariant.Point("snapshot.generation.rename")
	if err := fs.Rename(t.staging, GenDir(t.opt.Base, t.opt.Next)); err != nil {
		return err
	}
	invariant.Point("snapshot.generation.renamed")
	if err := t.syncStagingDirs(t.opt.Base); err != nil {
		return err
	}
	invariant.Point("snapshot.generation.durable")
	return nil
}
