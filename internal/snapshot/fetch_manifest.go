package snapshot

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
)

// listing is a manifest whose hashes arrive file by file, while the source still
// hashes and earlier files are already fetched.
type listing struct {
	man Manifest
	// source is the offer's source that listed the files. Another one's hashes will
	// do if it lists the same.
	source int
	// known is closed, file by file, when the file's hashes are complete.
	known []chan struct{}
}

// fetchListing gets names and sizes, and begins to fetch the hashes. From a source
// that knows only whole manifests it fetches that.
func (t *transfer) fetchListing() (*listing, error) {
	l := &listing{}
	err := t.retry(func(source int) (err error) {
		l.source = source
		if l.man.Files, err = t.askFiles(source); err != nil && t.ctx.Err() == nil && !errors.Is(err, ErrPinGone) {
			var man *Manifest
			if man, err = t.askManifest(source); err == nil {
				l.man = *man
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	l.known = make([]chan struct{}, len(l.man.Files))
	for i := range l.known {
		l.known[i] = make(chan struct{})
	}
	t.hashing.Go(func() {
		for i := range l.man.Files {
			if err := t.fetchHashes(l, &l.man.Files[i]); err != nil {
				t.cancel(err)
				return
			}
			close(l.known[i])
		}
	})
	return l, nil
}

// askFiles gets the list of files, without hashes.
func (t *transfer) askFiles(source int) ([]ManifestFile, error) {
	b, err := t.call(source, MethodFiles, request{}, nil)
	if err != nil {
		return nil, err
	}
	t.count(len(b), t.sources[source].name)
	fail := func(err error) ([]ManifestFile, error) {
		return nil, fmt.Errorf("files of %s: %w", t.sources[source].name, err)
	}
	o, err := decodeOpenedPin(b)
	if err != nil {
		return fail(err)
	}
	if len(o.files) == 0 || o.files[0].Name != CheckpointName {
		return fail(fmt.Errorf("%w: the first is not the checkpoint", ErrCorrupt))
	}
	if err := checkFiles(o.files[1:]); err != nil {
		return fail(fmt.Errorf("%w: %w", ErrCorrupt, err))
	}
	if n := manifestBytes(o.files); n > MaxManifestBytes {
		return fail(fmt.Errorf("%w: manifest of %d bytes", ErrTooLarge, n))
	}
	files := make([]ManifestFile, 0, len(o.files))
	for _, f := range o.files {
		files = append(files, ManifestFile{Name: f.Name, Size: f.Size})
	}
	return files, nil
}

// fetchHashes completes a file's hashes.
func (t *transfer) fetchHashes(l *listing, f *ManifestFile) error {
	for len(f.Hashes) < f.Chunks()*sha256.Size {
		known := len(f.Hashes) / sha256.Size
		err := t.retry(func(source int) error {
			if err := t.sameListing(l, source); err != nil {
				return err
			}
			b, err := t.call(source, MethodHashes, request{offset: int64(known), length: min(f.Chunks()-known, maxHashes), name: f.Name}, nil)
			if err != nil {
				return err
			}
			if len(b) == 0 || len(b)%sha256.Size != 0 || len(b)/sha256.Size > f.Chunks()-known {
				return fmt.Errorf("hashes of file %s from chunk %d from %s: %w: %d bytes", f.Name, known, t.sources[source].name, ErrCorrupt, len(b))
			}
			t.count(len(b), t.sources[source].name)
			f.Hashes = append(f.Hashes, b...)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// sameListing fails unless source lists the files that are being fetched.
func (t *transfer) sameListing(l *listing, source int) error {
	if source == l.source {
		return nil
	}
	files, err := t.askFiles(source)
	if err != nil {
		return err
	}
	same := func(a, b ManifestFile) bool { return a.Name == b.Name && a.Size == b.Size }
	if !slices.EqualFunc(files, l.man.Files, same) {
		return fmt.Errorf("files of %s: %w", t.sources[source].name, ErrMismatch)
	}
	l.source = source
	return nil
}

// askManifest gets a whole manifest from a source, page by page.
func (t *transfer) askManifest(source int) (*Manifest, error) {
	enc, id, err := t.manifestPages(source)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(enc) != [sha256.Size]byte(id) {
		return nil, fmt.Errorf("manifest from %s: %w: its hash is not its id", t.sources[source].name, ErrCorrupt)
	}
	return DecodeManifest(enc)
}

func (t *transfer) manifestPages(source int) (enc []byte, id ManifestID, err error) {
	for {
		b, err := t.timedCall(source, MethodManifest, request{offset: int64(len(enc)), length: ChunkBytes}, nil)
		if err != nil {
			return nil, id, err
		}
		p, err := decodeManifestPage(b)
		if err != nil {
			return nil, id, err
		}
		left := p.total - int64(len(enc))
		if len(enc) > 0 && p.id != id || int64(len(p.data)) > left || len(p.data) == 0 {
			return nil, id, fmt.Errorf("%w: manifest page at byte %d: %d bytes of %d left", ErrCorrupt, len(enc), len(p.data), left)
		}
		id = p.id
		t.count(len(p.data), t.sources[source].name)
		enc = append(enc, p.data...)
		if int64(len(enc)) == p.total {
			return enc, id, nil
		}
	}
}
