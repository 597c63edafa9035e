package bucket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"sort"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"
)

const (
	s3Tries         = 3
	defaultRegion   = "us-east-1"
	defaultEndpoint = "https://s3.amazonaws.com"
)

// s3Bucket is a Bucket on an S3 server.
type s3Bucket struct {
	core   minio.Core
	bucket string
	prefix string // empty, or ending in a slash
	url    string
}

// openS3 reads s3://bucket/prefix?endpoint=URL&region=R. Credentials come from
// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN; without them
// requests are anonymous.
func openS3(u *url.URL, opt Options) (Bucket, error) {
	endpoint, region := defaultEndpoint, os.Getenv("AWS_REGION")
	for key, vs := range u.Query() {
		if len(vs) != 1 || vs[0] == "" {
			return nil, fmt.Errorf("object store %s: parameter %s wants one value", shown(u), key)
		}
		switch key {
		case "endpoint":
			endpoint = vs[0]
		case "region":
			region = vs[0]
		default:
			return nil, fmt.Errorf("object store %s: unknown parameter %q: want endpoint or region", shown(u), key)
		}
	}
	if region == "" {
		region = defaultRegion
	}
	e, err := url.Parse(endpoint)
	if err != nil || e.Host == "" || e.Scheme != "http" && e.Scheme != "https" || strings.Trim(e.Path, "/") != "" || e.User != nil || e.RawQuery != "" {
		return nil, fmt.Errorf("object store %s: its endpoint is not http://host:port or https://host", shown(u))
	}
	if err := s3utils.CheckValidBucketName(u.Host); err != nil {
		return nil, fmt.Errorf("object store s3://%s: %w", u.Host, err)
	}
	s := &s3Bucket{bucket: u.Host, prefix: strings.Trim(path.Clean("/"+u.Path), "/"), url: u.String()}
	if s.prefix != "" {
		if err := checkName(s.prefix); err != nil {
			return nil, fmt.Errorf("object store %s: prefix: %w", shown(u), err)
		}
		s.prefix += "/"
	}
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.ResponseHeaderTimeout = 0 // the stall timer's, which upload progress resets
	tr.DisableCompression = true // a range must stay a range
	lookup := minio.BucketLookupPath
	if endpoint == defaultEndpoint {
		lookup = minio.BucketLookupAuto
	}
	client, err := minio.New(e.Host, &minio.Options{
		Creds: credentials.NewEnvAWS(), Secure: e.Scheme == "https", Region: region, BucketLookup: lookup,
		Transport: &stallTransport{next: tr, stall: opt.Stall}, MaxRetries: s3Tries,
	})
	if err != nil {
		return nil, fmt.Errorf("object store %s: %w", shown(u), err)
	}
	s.core = minio.Core{Client: client}
	return s, nil
}

// String implements Bucket.
func (s *s3Bucket) String() string { return s.url }

// wrap gives an answer's refusal our sentinel.
func (s *s3Bucket) wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	switch r := minio.ToErrorResponse(err); {
	case r.Code == minio.NoSuchKey && r.XMLName.Local == "": // minio's guess: a snapshot would count as damaged for it
		err = errors.New("404 from something that does not speak S3: it is not known whether the object is there")
	case r.Code == minio.NoSuchKey:
		err = fmt.Errorf("%w: %w", ErrNotFound, err)
	case r.Code == minio.PreconditionFailed || r.StatusCode == http.StatusPreconditionFailed:
		err = fmt.Errorf("%w: %w", ErrExists, err)
	case r.Code != "":
		err = fmt.Errorf("%s: %w", r.Code, err)
	}
	return opError(op, s, name, err)
}

// ReadAt implements Bucket.
func (s *s3Bucket) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if err := checkName(name); err != nil {
		return 0, opError("read", s, name, err)
	}
	if len(p) == 0 {
		return 0, nil
	}
	var opt minio.GetObjectOptions
	if err := opt.SetRange(off, off+int64(len(p))-1); err != nil {
		return 0, opError("read", s, name, err)
	}
	body, info, header, err := s.core.GetObject(ctx, s.bucket, s.prefix+name, opt)
	if minio.ToErrorResponse(err).StatusCode == http.StatusRequestedRangeNotSatisfiable {
		return 0, nil // the object ends at or before off
	}
	if err != nil {
		return 0, s.wrap("read", name, err)
	}
	defer func() { _ = body.Close() }() // only read
	if header.Get("Content-Range") == "" && (off > 0 || info.Size > int64(len(p))) {
		return 0, opError("read", s, name, errors.New("the server ignores ranges"))
	}
	n, err := io.ReadFull(body, p)
	if err != nil && int64(n) == info.Size && (errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("at byte %d: %w", off+int64(n), err)
	}
	return n, s.wrap("read", name, err)
}

// Put implements Bucket.
func (s *s3Bucket) Put(ctx context.Context, name string, data []byte) error {
	return s.put(ctx, name, data, minio.PutObjectOptions{})
}

// PutIfAbsent implements Bucket.
func (s *s3Bucket) PutIfAbsent(ctx context.Context, name string, data []byte) error {
	var opt minio.PutObjectOptions
	opt.SetMatchETagExcept("*")
	return s.put(ctx, name, data, opt)
}

func (s *s3Bucket) put(ctx context.Context, name string, data []byte, opt minio.PutObjectOptions) error {
	if err := checkPut(name, data); err != nil {
		return opError("write", s, name, err)
	}
	opt.DisableMultipart = true // one PUT: whole, conditional, and in the caller's memory
	opt.ContentType = "application/octet-stream"
	_, err := s.core.Client.PutObject(ctx, s.bucket, s.prefix+name, bytes.NewReader(data), int64(len(data)), opt)
	return s.wrap("write", name, err)
}

// List implements Bucket.
func (s *s3Bucket) List(ctx context.Context, dir string, fn func(Object) error) error {
	if err := checkDir(dir); err != nil {
		return opError("list", s, dir, err)
	}
	for o := range s.core.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: s.prefix + dir, Recursive: true}) {
		if o.Err != nil {
			return s.wrap("list", dir, o.Err)
		}
		name := strings.TrimPrefix(o.Key, s.prefix)
		if checkName(name) != nil {
			continue // somebody else's
		}
		if err := fn(Object{Name: name, Size: o.Size, Modified: o.LastModified}); err != nil {
			return err
		}
	}
	return opError("list", s, dir, ctx.Err()) // an iterator that was cut off just ends
}

// Dirs implements Bucket.
func (s *s3Bucket) Dirs(ctx context.Context, dir string) ([]string, error) {
	if err := checkDir(dir); err != nil {
		return nil, opError("list", s, dir, err)
	}
	var dirs []string
	for o := range s.core.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: s.prefix + dir}) {
		if o.Err != nil {
			return nil, s.wrap("list", dir, o.Err)
		}
		name := strings.TrimPrefix(o.Key, s.prefix+dir)
		if sub, ok := strings.CutSuffix(name, "/"); ok && checkName(sub) == nil {
			dirs = append(dirs, sub)
		}
	}
	sort.Strings(dirs)
	return dirs, opError("list", s, dir, ctx.Err())
}

// Delete implements Bucket.
func (s *s3Bucket) Delete(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return opError("delete", s, name, err)
	}
	err := s.core.RemoveObject(ctx, s.bucket, s.prefix+name, minio.RemoveObjectOptions{})
	if minio.ToErrorResponse(err).Code == minio.NoSuchKey {
		return nil
	}
	return s.wrap("delete", name, err)
}

// stallTransport ends a request in which no byte of the body moves, and no
// header comes, for a while.
type stallTransport struct {
	next  http.RoundTripper
	stall time.Duration
}

// watched is the timer of one request.
type watched struct {
	cancel context.CancelCauseFunc
	ctx    context.Context
	timer  *time.Timer
	stall  time.Duration
}

func (w *watched) moved() {
	if w.ctx.Err() == nil {
		w.timer.Reset(w.stall)
	}
}

func (w *watched) end() {
	w.timer.Stop()
	w.cancel(nil)
}

// explain says ErrStalled where net/http only knows that the context ended.
func (w *watched) explain(err error) error {
	if err != nil && errors.Is(context.Cause(w.ctx), ErrStalled) {
		return fmt.Errorf("%w for %v", ErrStalled, w.stall)
	}
	return err
}

// RoundTrip implements http.RoundTripper.
func (t *stallTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	w := &watched{stall: t.stall}
	w.ctx, w.cancel = context.WithCancelCause(req.Context())
	w.timer = time.AfterFunc(t.stall, func() { w.cancel(ErrStalled) })
	out := req.Clone(w.ctx)
	if req.Body != nil && req.Body != http.NoBody {
		out.Body = &watchedBody{w: w, rc: req.Body}
	}
	resp, err := t.next.RoundTrip(out)
	if err != nil {
		err = w.explain(err)
		w.end()
		return nil, err
	}
	w.moved()
	resp.Body = &watchedBody{w: w, rc: resp.Body, last: true}
	return resp, nil
}

// watchedBody tells the timer of every read. The last body's end is the request's.
type watchedBody struct {
	w    *watched
	rc   io.ReadCloser
	last bool
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.rc.Read(p)
	if n > 0 {
		b.w.moved()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.w.explain(err)
	}
	return n, err
}

func (b *watchedBody) Close() error {
	err := b.rc.Close()
	if b.last {
		b.w.end()
	}
	return err
}
