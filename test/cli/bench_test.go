package cli

import (
	"encoding/json"
	"strings"
	"testing"

	"chronik/test/harness"
)

// benchLimit: what bench limit measures is there for each process, where scripts look for it.
func benchLimit(t *testing.T, c *harness.Cluster) {
	type loop struct {
		BytesPerSecond float64 `json:"bytes_per_second"`
		P50            float64 `json:"fdatasync_p50_us"`
		P99            float64 `json:"fdatasync_p99_us"`
		Rounds         int     `json:"rounds"`
		CPU            float64 `json:"cpu_seconds_per_gb"`
	}
	type process struct {
		loop
		Single *loop   `json:"single_write"`
		TCP    float64 `json:"loopback_tcp_bytes_per_second"`
		CRC    float64 `json:"crc32c_bytes_per_second"`
		Copy   float64 `json:"memory_copy_bytes_per_second"`

		TCPCPU  float64 `json:"loopback_tcp_cpu_seconds_per_gb"`
		CRCCPU  float64 `json:"crc32c_cpu_seconds_per_gb"`
		CopyCPU float64 `json:"memory_copy_cpu_seconds_per_gb"`
	}
	limit := func(args ...string) []process {
		t.Helper()
		var ps []process
		out := must(t, c, "", append([]string{"bench", "limit", "--json", "--dir", t.TempDir(), "--seconds", "1", "--bytes", "65536", "--processes", "2"}, args...)...)
		if err := json.Unmarshal([]byte(out), &ps); err != nil || len(ps) != 2 {
			t.Fatalf("%v: %s", err, out)
		}
		return ps
	}
	ran := func(l *loop) bool {
		return l != nil && l.BytesPerSecond > 0 && l.P50 > 0 && l.P99 >= l.P50 && l.Rounds > 0 && l.CPU > 0
	}
	for _, p := range limit() {
		if !ran(&p.loop) || !ran(p.Single) || p.TCP < 1e6 || p.CRC < 1e6 || p.Copy < 1e6 || p.TCPCPU <= 0 || p.CRCCPU <= 0 || p.CopyCPU <= 0 {
			t.Errorf("%+v", p)
		}
	}
	for _, p := range limit("--parts", "loop") {
		if !ran(&p.loop) || p.Single != nil || p.TCP != 0 || p.CRC != 0 || p.Copy != 0 {
			t.Errorf("only the loop: %+v", p)
		}
	}
	for _, p := range limit("--single-write") { // as before there were parts
		if !ran(&p.loop) || p.Single != nil || p.TCP != 0 {
			t.Errorf("single write: %+v", p)
		}
	}
	out := must(t, c, "", "bench", "limit", "--dir", t.TempDir(), "--seconds", "1", "--processes", "1", "--parts", "crc,copy")
	if !strings.Contains(out, "PROCESS 1") || !strings.Contains(out, "CRC-32C") || !strings.Contains(out, "memory copy") || strings.Contains(out, "fdatasync") {
		t.Errorf("table: %s", out)
	}
	for _, args := range [][]string{{"--parts", "disk"}, {"--parts", ""}, {"--processes", "0"}, {"--bytes", "0"}, {"--seconds", "0"}} {
		if r := do(t, c, strings.NewReader(""), append([]string{"bench", "limit"}, args...)...); r.code != 2 {
			t.Errorf("%v: exit code %d, %s", args, r.code, r.errs)
		}
	}
}
