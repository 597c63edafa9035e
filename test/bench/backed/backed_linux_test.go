package backed

import (
	"os"
	"strings"
	"testing"
)

func TestTouchGivesBackWhatItTook(t *testing.T) {
	if n, err := Touch(t.Context(), piece-1); n != 0 || err != nil {
		t.Fatalf("less than a piece: %d bytes, %v", n, err)
	}
	n, err := Touch(t.Context(), piece)
	if err != nil {
		t.Fatal(err)
	}
	if n == 0 {
		t.Skip("hardly any memory is free")
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		if f[0] == "VmHWM:" && len(f[1]) < len("1000000") {
			t.Errorf("at most %s kB were resident: nothing was touched", f[1])
		}
		if f[0] == "VmRSS:" && len(f[1]) >= len("1000000") {
			t.Errorf("%s kB are still resident", f[1])
		}
	}
}
