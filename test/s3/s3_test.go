// Package s3 runs the object store and a real cluster against an S3 server
// program. 'make s3' builds one (versitygw) and tells its place.
package s3

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"chronik/internal/bucket"
	"chronik/internal/bucket/buckettest"
	"chronik/test/harness"
)

const (
	accessKey  = "chronik-test"
	secretKey  = "chronik-test-secret"
	bucketName = "snapshots"
)

var serverProgram = os.Getenv("CHRONIK_S3_SERVER")

// TestMain hides the variable from chronik, which takes it for a setting.
func TestMain(m *testing.M) {
	if err := os.Unsetenv("CHRONIK_S3_SERVER"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// server runs the S3 server until the test ends and returns its URL and the
// directory in which it keeps the bucket. Credentials are in the environment.
func server(t *testing.T) (url, dir string) {
	t.Helper()
	if serverProgram == "" {
		t.Skip("CHRONIK_S3_SERVER names no S3 server program (versitygw); 'make s3' builds one")
	}
	harness.Alone(t)
	root := t.TempDir()
	dir = filepath.Join(root, "data", bucketName)
	for _, d := range []string{dir, filepath.Join(root, "meta")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	addr := harness.FreeAddr(t)
	log, err := os.Create(filepath.Join(root, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(serverProgram, "--quiet", "--port", addr, "--access", accessKey, "--secret", secretKey,
		"posix", "--sidecar", filepath.Join(root, "meta"), filepath.Join(root, "data"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		_ = log.Close()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("the server's log:\n%s", b)
		}
	})
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get("http://" + addr)
		if err == nil {
			_ = resp.Body.Close()
			break
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("the server does not answer: %v", err)
		}
	}
	t.Setenv("AWS_ACCESS_KEY_ID", accessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", secretKey)
	t.Setenv("AWS_SESSION_TOKEN", "")
	return fmt.Sprintf("s3://%s/%%s?endpoint=http://%s", bucketName, addr), dir
}

// TestContract holds the S3 bucket to what every bucket must do.
func TestContract(t *testing.T) {
	url, _ := server(t)
	b, err := bucket.Open(fmt.Sprintf(url, "contract/prefix"), bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	buckettest.Run(t, b)
	// More than one page of a listing.
	for i := range 1100 {
		if err := b.Put(t.Context(), fmt.Sprintf("many/%04d", i), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	if err := b.List(t.Context(), "many/", func(bucket.Object) error { n++; return nil }); err != nil || n != 1100 {
		t.Fatalf("%d objects listed, %v", n, err)
	}
}

// TestRefusals name what the server said.
func TestRefusals(t *testing.T) {
	url, _ := server(t)
	for name, c := range map[string]struct{ key, secret, url, want string }{
		"wrong secret": {accessKey, "wrong", fmt.Sprintf(url, "p"), "SignatureDoesNotMatch"},
		"unknown key":  {"nobody", secretKey, fmt.Sprintf(url, "p"), "access key ID"},
		"anonymous":    {"", "", fmt.Sprintf(url, "p"), "AccessDenied"},
		"no bucket":    {accessKey, secretKey, strings.Replace(fmt.Sprintf(url, "p"), bucketName, "nosuch", 1), "NoSuchBucket"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("AWS_ACCESS_KEY_ID", c.key)
			t.Setenv("AWS_SECRET_ACCESS_KEY", c.secret)
			b, err := bucket.Open(c.url, bucket.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Put(t.Context(), "x", []byte("x")); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("put: %v", err)
			}
			if err := b.List(t.Context(), "", func(bucket.Object) error { return nil }); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("list: %v", err)
			}
		})
	}
}

// TestCluster keeps a cluster's snapshots on the S3 server.
func TestCluster(t *testing.T) {
	format, dir := server(t)
	url := fmt.Sprintf(format, "east")
	c := harness.Start(t, harness.Options{Threshold: 1000, Set: []string{"object_store.url=" + url}})
	c.CreateTopic("orders", 1)
	must := func(out string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return out
	}
	produce := func(from, to int) {
		var sb strings.Builder
		for i := from; i <= to; i++ {
			fmt.Fprintf(&sb, "record %06d %s\n", i, strings.Repeat("x", 200))
		}
		must(c.CLIInput(sb.String(), "produce", "orders"))
		must(c.CLI("snapshot", "create", "orders", "--upload"))
	}
	produce(1, 300)
	before, _ := filepath.Glob(filepath.Join(dir, "east", "*", "groups", "*", "objects", "*"))
	produce(301, 400)
	if out := must(c.CLI("snapshot", "show", "orders-0", "--from", url)); !strings.Contains(out, "0 to before 400") {
		t.Fatalf("show: %s", out)
	}
	must(c.CLI("snapshot", "verify", "--from", url, "--all"))
	to := filepath.Join(t.TempDir(), "g1")
	must(c.CLI("snapshot", "download", "orders-0", "--from", url, "--to", to))
	must(c.CLI("debug", "snapshot", filepath.Join(to, "checkpoint")))

	// What only the second snapshot has is damaged behind the server's back.
	after, _ := filepath.Glob(filepath.Join(dir, "east", "*", "groups", "*", "objects", "*"))
	for _, name := range after {
		if strings.Contains(strings.Join(before, " "), name) {
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := c.CLI("snapshot", "verify", "orders-0"); err == nil || !strings.Contains(err.Error(), "/objects/") {
		t.Fatalf("verify: %v %s", err, out)
	}
	if out := must(c.CLI("snapshot", "download", "orders-0", "--from", url, "--to", to+"b")); strings.Contains(out, "index 4:") {
		t.Fatalf("download: %s", out)
	}
}
