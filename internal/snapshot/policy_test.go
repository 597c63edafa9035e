package snapshot

import (
	"testing"
	"time"

	"chronik/internal/ident"
)

func TestDue(t *testing.T) {
	th := Thresholds{Entries: 100, Bytes: 1000, Interval: time.Hour}
	for _, c := range []struct {
		name string
		th   Thresholds
		s    Since
		want Reason
	}{
		{"nothing applied", th, Since{0, 5000, 9 * time.Hour}, NotDue},
		{"below all", th, Since{99, 999, time.Hour - 1}, NotDue},
		{"entries", th, Since{100, 0, 0}, DueEntries},
		{"bytes", th, Since{1, 1000, 0}, DueBytes},
		{"interval", th, Since{1, 1, time.Hour}, DueInterval},
		{"all off", Thresholds{}, Since{1 << 40, 1 << 40, 1 << 50}, NotDue},
		{"interval off", Thresholds{Entries: 100}, Since{1, 1, 1 << 50}, NotDue},
	} {
		if got := c.th.Due(c.s); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestJitter(t *testing.T) {
	seen := map[time.Duration]bool{}
	for key := range uint64(1000) {
		d := Jitter(time.Hour, key)
		if d < 54*time.Minute || d > 66*time.Minute || d != Jitter(time.Hour, key) {
			t.Fatalf("key %d: %s", key, d)
		}
		seen[d] = true
	}
	if len(seen) < 300 {
		t.Fatalf("only %d different intervals for 1000 keys", len(seen))
	}
	if Jitter(0, 5) != 0 {
		t.Fatal("an interval that is off became one")
	}
}

func TestKeepEntries(t *testing.T) {
	for th, want := range map[uint64]uint64{0: 0, 100: 10, 10000: 1000, 50000: 5000, 1 << 40: 5000} {
		if got := KeepEntries(th); got != want {
			t.Errorf("%d: %d, want %d", th, got, want)
		}
	}
}

func TestTrimTo(t *testing.T) {
	// Every entry has 10 bytes.
	size := func(after, to ident.Index) int64 { return 10 * int64(to-after) }
	base := TrimInput{
		Snapshot: 1000, Applied: 1200, First: 101, KeepEntries: 50, KeepBytes: 16 << 20,
		HoldBytes: 3000, Bytes: size,
	}
	with := func(f func(*TrimInput)) TrimInput { in := base; f(&in); return in }
	for _, c := range []struct {
		name string
		in   TrimInput
		want ident.Index
	}{
		{"keeps behind the snapshot", base, 950},
		{"keeps by bytes", with(func(in *TrimInput) { in.KeepBytes = 205 }), 980},
		{"keeps nothing when one entry is too large", with(func(in *TrimInput) { in.KeepBytes = 5 }), 1000},
		{"yields what it keeps", with(func(in *TrimInput) { in.Yield = 970 }), 970},
		{"yields nothing beyond the snapshot", with(func(in *TrimInput) { in.Yield = 1100 }), 1000},
		{"a follower does not yield", with(func(in *TrimInput) { in.Yield = 970; in.Followers = []Follower{{true, 900}} }), 900},
		{"no snapshot", with(func(in *TrimInput) { in.Snapshot = 0 }), 100},
		{"snapshot in the kept range", with(func(in *TrimInput) { in.Snapshot = 30; in.First = 1 }), 0},
		{"never above applied", with(func(in *TrimInput) { in.KeepEntries = 0; in.Applied = 990 }), 990},
		{"everything is trimmed already", with(func(in *TrimInput) { in.First = 960 }), 959},
		{"dead follower holds nothing", with(func(in *TrimInput) { in.Followers = []Follower{{false, 900}} }), 950},
		{"alive follower behind holds", with(func(in *TrimInput) { in.Followers = []Follower{{true, 900}, {true, 940}} }), 900},
		{"alive follower ahead holds nothing", with(func(in *TrimInput) { in.Followers = []Follower{{true, 1100}} }), 950},
		{"alive follower too far behind", with(func(in *TrimInput) { in.Followers = []Follower{{true, 649}} }), 950},
		{"alive follower just not too far", with(func(in *TrimInput) { in.Followers = []Follower{{true, 650}} }), 650},
		{"one too far, one not", with(func(in *TrimInput) { in.Followers = []Follower{{true, 200}, {true, 700}} }), 700},
		{"follower beyond help", with(func(in *TrimInput) { in.HoldBytes = 1 << 40; in.Followers = []Follower{{true, 0}} }), 950},
		{"follower at the last trimmed entry", with(func(in *TrimInput) { in.HoldBytes = 1 << 40; in.Followers = []Follower{{true, 100}} }), 100},
		{"pin holds", with(func(in *TrimInput) { in.Pinned = []ident.Index{400} }), 400},
		{"pin at the snapshot holds nothing more", with(func(in *TrimInput) { in.Pinned = []ident.Index{1000} }), 950},
		{"pin below the log holds nothing", with(func(in *TrimInput) { in.Pinned = []ident.Index{50} }), 950},
		{"pin below the log hides no other", with(func(in *TrimInput) { in.Pinned = []ident.Index{50, 400, 700} }), 400},
		{"pin at the last trimmed entry", with(func(in *TrimInput) { in.Pinned = []ident.Index{100} }), 100},
		{"without sizes", with(func(in *TrimInput) { in.Bytes = nil; in.Followers = []Follower{{true, 300}} }), 300},
		{"empty log", TrimInput{}, 0},
	} {
		if got := TrimTo(c.in); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}
