package group

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	"chronik/internal/alloctest"
	"chronik/internal/raftgroup"
)

func drawEntry(t *rapid.T, version uint64) []byte {
	now := rapid.Int64Range(0, 1000).Draw(t, "now")
	group := rapid.SampledFrom([]string{"", "g", "gg", "h\x00"}).Draw(t, "group")
	topic := rapid.SampledFrom([]string{"", "t", "tt"})
	switch rapid.IntRange(0, 5).Draw(t, "kind") {
	case 0, 1:
		var cs []committed
		for range rapid.IntRange(0, 4).Draw(t, "n") {
			cs = append(cs, committed{topic.Draw(t, "topic"), rapid.Int32Range(-1, 3).Draw(t, "p"), Offset{
				Offset: rapid.Int64().Draw(t, "o"), LeaderEpoch: rapid.Int32().Draw(t, "e"),
				Metadata: rapid.StringN(0, 3, 9).Draw(t, "m"), ExpireMs: rapid.Int64Range(0, 5).Draw(t, "x"),
			}})
		}
		return encodeCommit(now, group, cs)
	case 2:
		g := &Group{ID: group, Version: version - uint64(rapid.IntRange(0, 2).Draw(t, "age")), Generation: rapid.Int32().Draw(t, "gen"), ProtocolType: "consumer", EmptySinceMs: now}
		for i := range rapid.IntRange(0, 2).Draw(t, "members") {
			g.Members = append(g.Members, Member{ID: fmt.Sprint(i), Subscription: []byte("s"), Assignment: []byte("a"), SessionMs: 1})
		}
		return encodePutGroup(now, g)
	case 3:
		return encodeDeleteGroup(now, group, rapid.Bool().Draw(t, "bare"))
	case 4:
		var ds []deleted
		for range rapid.IntRange(0, 4).Draw(t, "n") {
			ds = append(ds, deleted{offsetKey{group, topic.Draw(t, "topic"), rapid.Int32Range(-1, 3).Draw(t, "p")}, rapid.Int64Range(-1, 1000).Draw(t, "if")})
		}
		return encodeDeleteOffsets(now, ds)
	default:
		return rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "noise")
	}
}

// Any history gives the same bytes however it is batched, also when it goes on from a snapshot.
func TestApplyIsDeterministic(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var entries []raftgroup.Entry
		for i := range rapid.IntRange(1, 40).Draw(rt, "entries") {
			entries = append(entries, raftgroup.Entry{Data: drawEntry(rt, uint64(i)+3)})
		}
		a, b := &StateMachine{st: newState()}, &StateMachine{st: newState()}
		for i, e := range entries {
			if _, err := a.Apply(entries[i : i+1]); err != nil {
				rt.Fatal(err)
			}
			_ = e
			checkState(rt, a.st)
		}
		rest := entries
		for len(rest) > 0 {
			n := rapid.IntRange(1, len(rest)).Draw(rt, "batch")
			if _, err := b.Apply(rest[:n]); err != nil {
				rt.Fatal(err)
			}
			rest = rest[n:]
			if rapid.Bool().Draw(rt, "restart") {
				blob := stateBytes(t, b.view().clone())
				b = &StateMachine{st: newState()}
				if err := b.Install("g2", blob); err != nil {
					rt.Fatal(err)
				}
			}
		}
		if x, y := stateBytes(t, a.st), stateBytes(t, b.st); !bytes.Equal(x, y) {
			rt.Fatalf("one by one:\n%q\nin batches, through snapshots:\n%q", x, y)
		}
	})
}

// checkState checks that the counts of offsets are right.
func checkState(t interface{ Fatalf(string, ...any) }, st *state) {
	counts := map[string]int{}
	st.offsets.Scan(func(k string, _ *Offset) bool {
		counts[decodeKey(k).group]++
		return true
	})
	st.groups.Scan(func(id string, g *groupState) bool {
		if counts[id] != g.offsets || g.offsets == 0 && g.meta == nil {
			t.Fatalf("group %q counts %d offsets, has %d, metadata %v", id, g.offsets, counts[id], g.meta)
		}
		delete(counts, id)
		return true
	})
	if len(counts) > 0 {
		t.Fatalf("offsets without a group: %v", counts)
	}
}

func TestTimeNeverGoesBack(t *testing.T) {
	st := newState()
	for _, now := range []int64{10, 5} { // the next leader's clock is behind
		if err := st.apply(encodeCommit(now, "g", []committed{{topic: "t"}})); err != nil {
			t.Fatal(err)
		}
	}
	if o := st.offset(offsetKey{"g", "t", 0}); o.CommitMs != 10 {
		t.Fatalf("committed at %d", o.CommitMs)
	}
}

func TestOlderVersionOfAGroupIsIgnored(t *testing.T) {
	st := newState()
	for _, g := range []*Group{{ID: "g", Version: 5, Generation: 9}, {ID: "g", Version: 4, Generation: 8}, {ID: "g", Version: 5, Generation: 7}} {
		if err := st.apply(encodePutGroup(1, g)); err != nil {
			t.Fatal(err)
		}
	}
	if got := st.meta("g").Generation; got != 9 {
		t.Fatalf("generation %d", got)
	}
}

func TestDeleteGroupSparesMembers(t *testing.T) {
	st := newState()
	must := func(b []byte) {
		t.Helper()
		if err := st.apply(b); err != nil {
			t.Fatal(err)
		}
	}
	must(encodePutGroup(1, &Group{ID: "g", Version: 1, Members: []Member{{ID: "m"}}}))
	must(encodeCommit(1, "g", []committed{{topic: "t"}}))
	must(encodeCommit(1, "gg", []committed{{topic: "t"}}))
	if err := st.apply(encodeDeleteGroup(2, "g", false)); !errors.Is(err, errKept) || st.nowMs != 2 {
		t.Fatal(err, st.nowMs)
	}
	if st.group("g") == nil {
		t.Fatal("a group with members was deleted")
	}
	must(encodePutGroup(1, &Group{ID: "g", Version: 2}))
	if err := st.apply(encodeDeleteGroup(2, "g", true)); !errors.Is(err, errKept) {
		t.Fatal(err)
	}
	if st.group("g") == nil {
		t.Fatal("a group with offsets is not bare")
	}
	must(encodeDeleteGroup(2, "g", false))
	if st.group("g") != nil || st.offset(offsetKey{"g", "t", 0}) != nil || st.offset(offsetKey{"gg", "t", 0}) == nil {
		t.Fatal("deleted too little or too much")
	}
	must(encodeDeleteGroup(2, "g", false)) // it is gone already
}

func TestCaptureOfAMillionOffsets(t *testing.T) {
	const groups, each = 1000, 1000
	m := &StateMachine{st: newState()}
	start := time.Now()
	for g := range groups {
		cs := make([]committed, each)
		for i := range cs {
			cs[i] = committed{"a-topic-with-a-name", int32(i), Offset{Offset: int64(i)}}
		}
		if _, err := m.Apply([]raftgroup.Entry{{Data: encodeCommit(1, fmt.Sprintf("consumer-group-%d", g), cs)}}); err != nil {
			t.Fatal(err)
		}
	}
	built := time.Since(start)
	start = time.Now()
	c, err := m.Capture()
	if err != nil {
		t.Fatal(err)
	}
	captured := time.Since(start)
	if _, err := m.Apply([]raftgroup.Entry{{Data: encodeCommit(1, "consumer-group-5", []committed{{"a-topic-with-a-name", 5, Offset{Offset: -7}}})}}); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	wrote := time.Since(start)
	c.Published()
	c.Release()
	start = time.Now()
	back, err := readState(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	read := time.Since(start)
	if o := back.offset(offsetKey{"consumer-group-5", "a-topic-with-a-name", 5}); o == nil || o.Offset != 5 || back.offsets.Len() != groups*each {
		t.Fatalf("a later entry is in the capture, or something is missing: %+v", o)
	}
	t.Logf("build %v, capture %v, write %v (%d bytes), read %v", built, captured, wrote, b.Len(), read)
	if captured > 100*time.Millisecond {
		t.Fatal("a capture is O(1)")
	}
}

func TestReadStateRefuses(t *testing.T) {
	st := newState()
	for _, b := range [][]byte{
		encodePutGroup(1, &Group{ID: "g", Version: 1, Members: []Member{{ID: "m", InstanceID: str("i")}}}),
		encodeCommit(1, "g", []committed{{topic: "t"}, {topic: "t", partition: 1}}),
	} {
		if err := st.apply(b); err != nil {
			t.Fatal(err)
		}
	}
	good := stateBytes(t, st)
	if back, err := readState(good); err != nil || !bytes.Equal(stateBytes(t, back), good) {
		t.Fatal(err)
	}
	for i := range good {
		if _, err := readState(good[:i]); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "byte") {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	if _, err := readState(append(bytes.Clone(good), 'x')); !errors.Is(err, ErrCorrupt) {
		t.Fatal("bytes behind the end")
	}
	if _, err := Open(nil, "dir", []byte("rubbish"), nil); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "dir") {
		t.Fatal(err)
	}
}

func FuzzReadState(f *testing.F) {
	st := newState()
	_ = st.apply(encodePutGroup(1, &Group{ID: "g", Version: 1, Members: []Member{{ID: "m", InstanceID: str("i")}}}))
	_ = st.apply(encodeCommit(1, "g", []committed{{topic: "t"}}))
	f.Add(stateBytes(f, st))
	f.Add(stateBytes(f, newState()))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		st, err := readState(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		checkState(t, st)
		again, err := readState(stateBytes(t, st))
		if err != nil || !bytes.Equal(stateBytes(t, st), stateBytes(t, again)) {
			t.Fatal("differs when read back", err)
		}
	})
}

func FuzzApply(f *testing.F) {
	f.Add(encodePutGroup(1, &Group{ID: "g", Version: 1, Members: []Member{{ID: "m", InstanceID: str("i")}}}))
	f.Add(encodeCommit(1, "g", []committed{{topic: "t"}, {topic: "t", partition: 1}}))
	f.Add(encodeDeleteGroup(1, "g", true))
	f.Add(encodeDeleteOffsets(1, []deleted{{offsetKey{"g", "t", 0}, -1}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer alloctest.Bound(t, len(b))()
		st := newState()
		_ = st.apply(encodeCommit(1, "g", []committed{{topic: "t"}, {topic: "t", partition: 1}}))
		before := stateBytes(t, st)
		if err := st.apply(b); err != nil && !errors.Is(err, errKept) {
			if !errors.Is(err, ErrCorrupt) || !bytes.Equal(before, stateBytes(t, st)) {
				t.Fatalf("%v; changed: %v", err, !bytes.Equal(before, stateBytes(t, st)))
			}
			return
		}
		checkState(t, st)
		if _, err := readState(stateBytes(t, st)); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzSubscription reads what a member sends as its metadata for the group's
// protocol: as kmsg reads it, where that does.
func FuzzSubscription(f *testing.F) {
	for v := int16(0); v <= 3; v++ {
		m := kmsg.NewConsumerMemberMetadata()
		m.Version, m.Topics, m.UserData = v, []string{"orders", "sums"}, []byte("user")
		f.Add(m.AppendTo(nil))
	}
	f.Add([]byte{0, 0, 0x7f, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		topics, err := func() ([]string, error) {
			defer alloctest.Bound(t, len(b))()
			return subscribedTopics(b)
		}()
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		var m kmsg.ConsumerMemberMetadata
		if m.ReadFrom(b) == nil && m.Version >= 0 && m.Version <= 3 && (err != nil || !slices.Equal(topics, m.Topics)) {
			t.Fatalf("%q, %v; kmsg says %q", topics, err, m.Topics)
		}
	})
}
