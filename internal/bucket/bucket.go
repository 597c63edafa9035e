package bucket

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"chronik/internal/vfs"
)

// MaxObjectBytes bounds an object.
const MaxObjectBytes = 64 << 20

var (
	// ErrNotFound says that there is no object of that name.
	ErrNotFound = errors.New("object not found")
	// ErrExists says that PutIfAbsent found an object of that name. It may be
	// the caller's own: a request whose answer was lost is sent again.
	ErrExists = errors.New("object exists")
	// ErrStalled says that no byte moved for Options.Stall.
	ErrStalled = errors.New("object store makes no progress")
	// ErrTooLarge says that an object exceeds MaxObjectBytes.
	ErrTooLarge = errors.New("object too large")
)

// Object is an entry of a listing.
type Object struct {
	Name string
	Size int64
	// Modified is the store's clock.
	Modified time.Time
}

// Bucket is an object store. Safe for concurrent use. Errors name the store and the object.
type Bucket interface {
	// ReadAt fills p with an object's bytes from off and returns how many there
	// were: fewer than len(p) only where the object ends. ErrNotFound.
	ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error)
	// Put writes a whole object, replacing one of that name. After an error data
	// may still be read: it must not be written to again. After a success it may.
	Put(ctx context.Context, name string, data []byte) error
	// PutIfAbsent is Put, but for ErrExists if the name is taken.
	PutIfAbsent(ctx context.Context, name string, data []byte) error
	// List calls fn for every object below dir ("" or ending in a slash), however
	// deep, in no order that may be relied on, page by page. It ends with fn's error.
	List(ctx context.Context, dir string, fn func(Object) error) error
	// Dirs returns the names, without slash, of the directories in dir, sorted.
	Dirs(ctx context.Context, dir string) ([]string, error)
	// Delete removes an object. It is no error if there is none.
	Delete(ctx context.Context, name string) error
	// String is the URL, without secrets.
	String() string
}

// Options of Open. Zero fields take the default in brackets.
type Options struct {
	// FS holds the directories of file URLs [the operating system's].
	FS vfs.FS
	// Stall ends a call in which nothing moves [30 s].
	Stall time.Duration
}

const defaultStall = 30 * time.Second

// Open returns the bucket of a URL. It speaks to nobody yet.
func Open(rawURL string, opt Options) (Bucket, error) {
	if opt.FS == nil {
		opt.FS = vfs.Default
	}
	if opt.Stall <= 0 {
		opt.Stall = defaultStall
	}
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, errors.New("object store: its URL is none") // the error quotes it, and with it perhaps a secret
	}
	switch {
	case u.User != nil:
		return nil, fmt.Errorf("object store %s: credentials belong into the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)", shown(u))
	case u.Scheme == "file" && u.Host == "" && strings.HasPrefix(u.Path, "/"):
		if u.RawQuery != "" {
			return nil, fmt.Errorf("object store %s: a directory takes no parameters", shown(u))
		}
		return newDir(opt, u.Path), nil
	case u.Scheme == "s3" && u.Host != "":
		return openS3(u, opt)
	}
	return nil, fmt.Errorf("object store %q: want file:///directory or s3://bucket/prefix", shown(u))
}

// shown is what errors say of a URL that was refused: who puts credentials into it
// does so as user and password, or as parameters.
func shown(u *url.URL) string {
	s := *u
	s.User, s.Opaque, s.RawQuery, s.Fragment, s.RawFragment = nil, "", "", "", ""
	return s.String()
}

// checkName refuses what could leave the prefix or not be stored everywhere alike.
func checkName(name string) error {
	if len(name) == 0 || len(name) > 900 {
		return fmt.Errorf("object name of %d bytes", len(name))
	}
	for _, e := range strings.Split(name, "/") {
		if e == "" || e[0] == '.' || len(e) > 250 {
			return fmt.Errorf("object name %q: element %q", name, e)
		}
		for i := range len(e) {
			if c := e[i]; c <= ' ' || c > '~' || c == '\\' || c == '%' {
				return fmt.Errorf("object name %q: byte %#02x", name, c)
			}
		}
	}
	return nil
}

// checkDir is checkName for List and Dirs.
func checkDir(dir string) error {
	if dir == "" {
		return nil
	}
	name, ok := strings.CutSuffix(dir, "/")
	if !ok {
		return fmt.Errorf("directory %q does not end in a slash", dir)
	}
	return checkName(name)
}

// opError is what every provider's errors look like.
func opError(op string, b fmt.Stringer, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("object store %s: %s %s: %w", b, op, name, err)
}

// checkPut refuses names and sizes.
func checkPut(name string, data []byte) error {
	if len(data) > MaxObjectBytes {
		return fmt.Errorf("%w: %d bytes", ErrTooLarge, len(data))
	}
	return checkName(name)
}
