package raftlog

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"chronik/internal/vfs"
)

var epochText = regexp.MustCompile(`epoch [0-9a-f]{16}`)

func dumped(t *testing.T, fs vfs.FS) (string, error) {
	t.Helper()
	var b strings.Builder
	err := Dump(fs, logPath(1), &b)
	return epochText.ReplaceAllString(b.String(), "epoch E"), err
}

func TestDump(t *testing.T) {
	mem := vfs.NewCrashableMem()
	l := open(t, mem)
	check(t, l.Create([]Creation{voter(5)}))
	check(t, add(l, 5, HardState{2, 5, 2}, append(run(5, 2, 2, 2, 10), run(5, 4, 1, 3, 10)...)))
	l.Trim(5, 2)
	check(t, appendWait(l, &Append{Replica: 5, HardState: HardState{4, 5, 9}, Install: &Install{Index: 9, Term: 4, Generation: 2, ConfState: []byte("cs")}}))
	done := make(chan error, 1)
	l.PutNode([]byte("blob"), func(err error) { done <- err })
	check(t, <-done)
	check(t, l.Remove(5))
	closeLog(t, l)
	const want = `file 1 store 01020300000000000000000000000000 epoch E size 65536 first-lsn 1 previous-lsn 0
sealed last-lsn 6 footer 34 bytes at 8888
8192 create lsn 1 durable 0 size 120 group 105 replica 5 created-at 7 first (1,1) info 6 bytes
8312 append lsn 2 durable 1 size 176 group 105 replica 5 term 2 vote 5 commit 2 entries 2-4 terms 2x2 1x3
8488 trim lsn 3 durable 2 size 96 group 105 replica 5 trimmed-to (2,2)
8584 append lsn 4 durable 2 size 136 group 105 replica 5 term 4 vote 5 commit 9 install (9,4) generation 2 confstate 2 bytes
8720 node lsn 5 durable 4 size 88 blob 4 bytes
8808 remove lsn 6 durable 5 size 80 group 105 replica 5
8888 end of frames
8888 footer of 6 frames
`
	got, err := dumped(t, mem)
	if err != nil || got != want {
		t.Fatalf("%v\ngot:\n%s\nwant:\n%s", err, got, want)
	}
}

func TestDumpOfDamage(t *testing.T) {
	file, offs := damagedLog(t)
	n := len(offs) - 1
	file[offs[3]+90] ^= 1 // durable
	file[offs[n-1]+90] ^= 1
	got, err := dumped(t, disk(t, map[string][]byte{logPath(1): file}))
	var ce *CorruptError
	if !errors.As(err, &ce) || ce.Offset != offs[3] {
		t.Fatal(err)
	}
	for _, want := range []string{" CORRUPT lsn 4: malformed: frame checksum", " TORN lsn 8: malformed: frame checksum; what follows is dropped"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if _, err := dumped(t, disk(t, map[string][]byte{logPath(1): []byte("not a log")})); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
}
