package bucket_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"chronik/internal/bucket"
	"chronik/internal/bucket/buckettest"
	"chronik/internal/invariant"
	"chronik/internal/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, url string, opt bucket.Options) bucket.Bucket {
	t.Helper()
	b, err := bucket.Open(url, opt)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestContract(t *testing.T) {
	t.Run("memory", func(t *testing.T) { buckettest.Run(t, bucket.NewMem()) })
	t.Run("memory disk", func(t *testing.T) {
		buckettest.Run(t, open(t, "file:///deep/store", bucket.Options{FS: vfs.NewCrashableMem()}))
	})
	t.Run("disk", func(t *testing.T) {
		dir := t.TempDir()
		buckettest.Run(t, open(t, "file://"+dir+"/store", bucket.Options{}))
		if left, err := os.ReadDir(dir + "/store/.tmp"); err != nil || len(left) != 0 {
			t.Fatalf("left in .tmp: %v, %v", left, err)
		}
	})
}

// TestPutSurvivesPowerLoss: what was answered is there, and at no step is there a part.
func TestPutSurvivesPowerLoss(t *testing.T) {
	for _, absent := range []bool{false, true} {
		fs := vfs.NewCrashableMem()
		b := open(t, "file:///s", bucket.Options{FS: fs})
		put := b.Put
		if absent {
			put = b.PutIfAbsent
		}
		look := func(after vfs.FS) string {
			p := make([]byte, 10)
			n, err := open(t, "file:///s", bucket.Options{FS: after}).ReadAt(t.Context(), "d/x", p, 0)
			if err != nil && !errors.Is(err, bucket.ErrNotFound) {
				t.Fatal(err)
			}
			return string(p[:n])
		}
		invariant.SetPointHook(func(name string) {
			if got := look(fs.CrashClone(vfs.CrashCloneCfg{})); got != "" {
				t.Errorf("%s: %q", name, got)
			}
			if got := look(fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})); got != "" && got != "whole" {
				t.Errorf("%s: %q", name, got)
			}
		})
		err := put(t.Context(), "d/x", []byte("whole"))
		invariant.SetPointHook(nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := look(fs.CrashClone(vfs.CrashCloneCfg{})); got != "whole" {
			t.Fatalf("after the answer: %q", got)
		}
	}
}

// hung is a file system whose opens do not return until told.
type hung struct {
	vfs.FS
	release chan struct{}
}

func (h hung) Open(name string, opts ...pebblevfs.OpenOption) (vfs.File, error) {
	<-h.release
	return h.FS.Open(name, opts...)
}

// TestHungDirectory: calls end with their context, or when nothing moves, and
// only so many wait behind the scenes.
func TestHungDirectory(t *testing.T) {
	h := hung{vfs.NewCrashableMem(), make(chan struct{})}
	defer close(h.release)
	b := open(t, "file:///s", bucket.Options{FS: h, Stall: 20 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(time.Millisecond, cancel)
	if _, err := b.ReadAt(ctx, "x", make([]byte, 1), 0); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	for range 20 {
		if _, err := b.ReadAt(t.Context(), "x", make([]byte, 1), 0); !errors.Is(err, bucket.ErrStalled) {
			t.Fatal(err)
		}
	}
}

// slow is a file system whose syncs of files do not return until told.
type slow struct {
	vfs.FS
	release, synced chan struct{}
}

func (s slow) Create(name string, c pebblevfs.DiskWriteCategory) (vfs.File, error) {
	f, err := s.FS.Create(name, c)
	return slowFile{f, s}, err
}

type slowFile struct {
	vfs.File
	s slow
}

func (f slowFile) Sync() error {
	<-f.s.release
	defer close(f.s.synced)
	return f.File.Sync()
}

// TestGivenUpIsNotWritten: what was answered with an error is not there much later, when nobody looks for what it needs.
func TestGivenUpIsNotWritten(t *testing.T) {
	s := slow{vfs.NewCrashableMem(), make(chan struct{}), make(chan struct{})}
	b := open(t, "file:///s", bucket.Options{FS: s, Stall: 20 * time.Millisecond})
	if err := b.PutIfAbsent(t.Context(), "d/late", []byte("x")); !errors.Is(err, bucket.ErrStalled) {
		t.Fatal(err)
	}
	close(s.release)
	<-s.synced
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		left, err := vfs.List(s.FS, "/s/.tmp")
		if err != nil || time.Now().After(end) {
			t.Fatalf("%v is left, %v", left, err)
		}
		if len(left) == 0 {
			break
		}
	}
	if _, err := b.ReadAt(t.Context(), "d/late", make([]byte, 1), 0); !errors.Is(err, bucket.ErrNotFound) {
		t.Fatalf("it is there: %v", err)
	}
}

func TestURLs(t *testing.T) {
	for url, want := range map[string]string{
		"file://relative":                 "want file:///directory",
		"file:///d?x=1":                   "takes no parameters",
		"gs://b":                          "want file:///directory",
		"s3://bkt?endpoint=127.0.0.1":     "endpoint",
		"s3://bkt?endpoint=http://h/path": "endpoint",
		"s3://bkt?regoin=x":               `unknown parameter "regoin"`,
		"s3://b":                          "shorter than 3",
		"s3://bkt?region=":                "wants one value",
		"s3://bkt/a//../.x":               "prefix",
		"s3://key:secret@bkt":             "environment",
	} {
		_, err := bucket.Open(url, bucket.Options{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", url, err)
		}
	}
	for _, url := range []string{ // secrets have slashes in them, and what makes a URL none
		"s3://key:hunter2@bkt", "s3://hunter2@bkt", "s3://key:hunter2/+x@bkt", "s3://key:hunter2%zz@bkt", "s3://bkt?secret_key=hunter2",
		"s3://bkt?endpoint=https://key:hunter2@h", "s3://bkt/../.x?region=hunter2", "https://h?sig=hunter2", "file:///d?token=hunter2",
		"s3:key:hunter2@bkt",
	} {
		if _, err := bucket.Open(url, bucket.Options{}); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error tells the secret: %v", url, err)
		}
	}
	b := open(t, "s3://bkt/some/prefix/?endpoint=http://127.0.0.1:1&region=eu-1", bucket.Options{})
	if !strings.Contains(b.String(), "s3://bkt/some/prefix") {
		t.Fatal(b)
	}
}

// TestS3Answers: errors of a server name the object and what it said; a server
// that stops in the middle is given up.
func TestS3Answers(t *testing.T) {
	hang := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/denied"):
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, "<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
		case strings.HasSuffix(r.URL.Path, "/absent"):
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, "<Error><Code>NoSuchKey</Code></Error>")
		case strings.HasSuffix(r.URL.Path, "/page"): // a proxy that does not reach the object store
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, "<html><body>404 page not found</body></html>")
		case strings.HasSuffix(r.URL.Path, "/empty"):
			w.WriteHeader(http.StatusNotFound)
		case strings.HasSuffix(r.URL.Path, "/silent"):
			_, _ = io.Copy(io.Discard, r.Body)
			<-hang
		case strings.HasSuffix(r.URL.Path, "/half"):
			w.Header().Set("Content-Range", "bytes 0-99/100")
			w.Header().Set("Content-Length", "100")
			w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(make([]byte, 50))
			w.(http.Flusher).Flush()
			<-hang
		case strings.HasSuffix(r.URL.Path, "/whole"):
			w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
			_, _ = w.Write(make([]byte, 100)) // whatever range was asked for
		}
	}))
	defer srv.Close()
	defer close(hang)
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	b := open(t, "s3://bkt/p?endpoint="+srv.URL, bucket.Options{Stall: 50 * time.Millisecond})
	_, err := b.ReadAt(t.Context(), "denied", make([]byte, 1), 0)
	if err == nil || !strings.Contains(err.Error(), "denied") || !strings.Contains(err.Error(), "AccessDenied") {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), "denied", []byte("x")); err == nil || !strings.Contains(err.Error(), "AccessDenied") {
		t.Fatal(err)
	}
	if _, err := b.ReadAt(t.Context(), "silent", make([]byte, 1), 0); !errors.Is(err, bucket.ErrStalled) {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), "silent", make([]byte, 1<<20)); !errors.Is(err, bucket.ErrStalled) {
		t.Fatal(err)
	}
	if _, err := b.ReadAt(t.Context(), "half", make([]byte, 100), 0); !errors.Is(err, bucket.ErrStalled) {
		t.Fatal(err)
	}
	if _, err := b.ReadAt(t.Context(), "whole", make([]byte, 10), 20); err == nil || !strings.Contains(err.Error(), "ignores ranges") {
		t.Fatal(err)
	}
	if _, err := b.ReadAt(t.Context(), "absent", make([]byte, 1), 0); !errors.Is(err, bucket.ErrNotFound) {
		t.Fatal(err)
	}
	for _, name := range []string{"page", "empty"} {
		if _, err := b.ReadAt(t.Context(), name, make([]byte, 1), 0); err == nil || errors.Is(err, bucket.ErrNotFound) || !strings.Contains(err.Error(), "404") {
			t.Errorf("%s: %v", name, err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	down := open(t, "s3://bkt?endpoint=http://"+addr, bucket.Options{})
	if _, err := down.ReadAt(t.Context(), "x", make([]byte, 1), 0); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Fatal(err)
	}
}
