package check

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// same tells whether found has exactly the kinds wanted, in any order.
func same(t *testing.T, found []Violation, want ...Kind) {
	t.Helper()
	var got []Kind
	for _, v := range found {
		if !slices.Contains(got, v.Kind) {
			got = append(got, v.Kind)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("found %v, want %v", found, want)
	}
}

func reads(numbers ...int) []Read {
	var rs []Read
	for i, n := range numbers {
		rs = append(rs, Read{int64(i), n})
	}
	return rs
}

func acks(numbers ...int) []Ack {
	var as []Ack
	for i, n := range numbers {
		as = append(as, Ack{int64(i), n})
	}
	return as
}

func TestPartition(t *testing.T) {
	all := acks(0, 1, 2, 3)
	for _, c := range []struct {
		name string
		p    Partition
		want []Kind
	}{
		{"sound", Partition{Sent: 4, Idempotent: true, AllKnown: true, Acks: all, Reads: reads(0, 1, 2, 3)}, nil},
		{"the last is lost", Partition{Sent: 4, Idempotent: true, Acks: all, Reads: reads(0, 1, 2)}, []Kind{Lost}},
		{"one in the middle is lost, the others moved up", Partition{Sent: 4, Idempotent: true, Acks: all, Reads: reads(0, 2, 3)}, []Kind{Lost, Divergent}},
		{"a hole in the offsets", Partition{Sent: 4, Idempotent: true, Reads: []Read{{0, 0}, {2, 1}}}, []Kind{Lost}},
		{"the first offset is not the first", Partition{Sent: 4, Idempotent: true, Reads: []Read{{1, 0}}}, []Kind{Lost}},
		{"never acknowledged, nowhere", Partition{Sent: 2, Idempotent: true, Acks: acks(0), Reads: reads(0)}, nil},
		{"all known, one nowhere", Partition{Sent: 2, Idempotent: true, AllKnown: true, Acks: acks(0), Reads: reads(0)}, []Kind{Lost}},
		{"twice, at the end", Partition{Sent: 4, Idempotent: true, Acks: all, Reads: reads(0, 1, 2, 3, 3)}, []Kind{Duplicate}},
		{"twice, not idempotent", Partition{Sent: 4, Acks: all, Reads: reads(0, 1, 2, 3, 3)}, nil},
		{"a retry of two", Partition{Sent: 4, Acks: []Ack{{2, 0}, {3, 1}, {4, 2}}, Reads: reads(0, 1, 0, 1, 2)}, nil},
		{"reordered", Partition{Sent: 4, Idempotent: true, Reads: reads(0, 2, 1, 3)}, []Kind{Reordered}},
		{"reordered, not idempotent", Partition{Sent: 4, Reads: reads(0, 2, 1, 3)}, []Kind{Reordered}},
		{"acknowledged elsewhere", Partition{Sent: 4, Idempotent: true, Acks: []Ack{{1, 0}, {0, 1}}, Reads: reads(0, 1)}, []Kind{Divergent}},
		{"one offset, two acknowledgements", Partition{Sent: 4, Idempotent: true, Acks: []Ack{{0, 0}, {0, 1}}, Reads: reads(0)}, []Kind{Divergent}},
		{"foreign bytes", Partition{Sent: 4, Idempotent: true, Reads: reads(0, Foreign)}, []Kind{Divergent}},
		{"never sent", Partition{Sent: 4, Idempotent: true, Reads: reads(0, 4)}, []Kind{Divergent}},
	} {
		t.Run(c.name, func(t *testing.T) { same(t, c.p.Check(), c.want...) })
	}
}

func TestManyViolationsAreFew(t *testing.T) {
	p := Partition{Sent: 1000, Idempotent: true, AllKnown: true}
	found := p.Check()
	if len(found) != maxEach || !strings.Contains(found[maxEach-1].What, "980 more") {
		t.Errorf("%d told, the last: %v", len(found), found[len(found)-1])
	}
}

func TestSeen(t *testing.T) {
	var s Seen
	same(t, s.See("one", "t-0", 5, 7))
	same(t, s.See("another", "t-0", 5, 7))
	same(t, s.See("one", "t-1", 5, 8))
	same(t, s.See("one", "t-0", 6, 8))
	same(t, s.See("one", "t-0", 5, 8), Divergent)
	same(t, s.See("another", "t-0", 6, Foreign), Divergent)
}

func TestReplicas(t *testing.T) {
	a := Digest{1, 10, "aa"}
	same(t, Replicas("t-0", nil))
	same(t, Replicas("t-0", []Digest{a, {2, 10, "aa"}, {3, 10, "aa"}}))
	same(t, Replicas("t-0", []Digest{a, {2, 10, "aa"}, {3, 10, "ab"}}), Divergent)
	same(t, Replicas("t-0", []Digest{a, {2, 9, "aa"}, {3, 10, "aa"}}), Divergent)
}

func TestOffsets(t *testing.T) {
	o := Offsets{Group: "g"}
	before := o.Floor()
	o.Acknowledged(0, 10)
	same(t, o.Told(before, map[int32]int64{0: 0})) // asked before the acknowledgement
	same(t, o.Told(o.Floor(), map[int32]int64{0: 12, 1: 3}))
	o.Acknowledged(0, 11) // of a commit that was made before the one of 12
	same(t, o.Told(o.Floor(), map[int32]int64{0: 11, 1: 3}), Backward)
	same(t, o.Told(o.Floor(), map[int32]int64{0: 12}), Backward)
	same(t, o.Told(o.Floor(), map[int32]int64{0: 20, 1: 3}))
	if err := o.Reached(map[int32]int64{0: 20, 1: 3}); err != nil {
		t.Error(err)
	}
	if err := o.Reached(map[int32]int64{0: 21}); err == nil {
		t.Error("21 is reached")
	}
}

// history reads calls in short: "node action version answer from to", from and to in milliseconds.
func history(t *testing.T, lines ...string) []Call {
	t.Helper()
	find := func(word string, names map[int]string) int {
		for k, v := range names {
			if v == word {
				return k
			}
		}
		t.Fatalf("%q is not in %v", word, names)
		return 0
	}
	actions, answers := map[int]string{}, map[int]string{}
	for k, v := range actionNames {
		actions[int(k)] = v
	}
	for k, v := range answerNames {
		answers[int(k)] = v
	}
	var calls []Call
	for _, l := range lines {
		var c Call
		var action, answer string
		var from, to int
		if _, err := fmt.Sscanf(l, "%d %s %d %s %d %d", &c.Node, &action, &c.Version, &answer, &from, &to); err != nil {
			t.Fatal(l, err)
		}
		c.Client, c.Topic = c.Node, "t"
		c.Action, c.Answer = Action(find(action, actions)), Answer(find(answer, answers))
		c.Call, c.Return = time.Duration(from)*time.Millisecond, time.Duration(to)*time.Millisecond
		calls = append(calls, c)
	}
	return calls
}

func TestMetadata(t *testing.T) {
	for _, c := range []struct {
		name  string
		calls []string
		sound bool
	}{
		{"one after the other", []string{"1 create 1 ok 0 1", "1 alter 2 ok 2 3", "1 describe 2 ok 4 5", "2 delete 3 ok 6 7", "2 describe 0 absent 8 9"}, true},
		{"created twice", []string{"1 create 1 ok 0 1", "2 create 2 ok 2 3"}, false},
		{"created twice, at the same time", []string{"1 create 1 ok 0 3", "2 create 2 ok 1 2"}, false},
		{"created, deleted, created", []string{"1 create 1 ok 0 9", "2 delete 2 ok 0 9", "3 create 3 ok 0 9"}, true},
		{"deleted twice", []string{"1 create 1 ok 0 1", "1 delete 2 ok 2 3", "2 delete 3 ok 4 5"}, false},
		{"exists, but was deleted", []string{"1 create 1 ok 0 1", "1 delete 2 ok 2 3", "2 create 3 exists 4 5"}, false},
		{"exists, the delete is under way", []string{"1 create 1 ok 0 1", "1 delete 2 ok 2 6", "2 create 3 exists 4 5"}, true},
		{"another node reads the old value", []string{"1 create 1 ok 0 1", "1 alter 2 ok 2 3", "2 describe 1 ok 4 5"}, true},
		{"the same node reads the old value", []string{"1 create 1 ok 0 1", "1 alter 2 ok 2 3", "1 describe 1 ok 4 5"}, false},
		{"a node goes back", []string{"1 create 1 ok 0 1", "1 alter 2 ok 2 3", "2 describe 2 ok 4 5", "2 describe 1 ok 6 7"}, false},
		{"a node goes back to absence", []string{"1 create 1 ok 0 1", "2 describe 1 ok 4 5", "2 describe 0 absent 6 7"}, false},
		{"a node sees the topic come, go and come", []string{"1 create 1 ok 0 1", "1 delete 2 ok 2 3", "1 create 3 ok 4 5", "2 describe 1 ok 6 7", "2 describe 0 absent 8 9", "2 describe 3 ok 10 11"}, true},
		{"read before the answer, elsewhere", []string{"1 create 1 ok 0 9", "2 create 2 exists 1 2", "1 describe 0 absent 3 4"}, true},
		{"a value that nobody set", []string{"1 create 1 ok 0 1", "2 describe 7 ok 2 3"}, false},
		{"unknown, done", []string{"1 create 1 ? 0 1", "2 describe 1 ok 5 6"}, true},
		{"unknown, not done", []string{"1 create 1 ? 0 1", "2 create 2 ok 5 6"}, true},
		{"unknown, done late", []string{"1 create 1 ok 0 1", "1 delete 2 ? 2 3", "1 describe 1 ok 4 5", "1 describe 0 absent 6 7"}, true},
		{"unknown, done and not done", []string{"1 create 1 ? 0 1", "2 create 2 exists 5 6", "3 create 3 ok 7 8"}, false},
		{"not there to delete, but it is", []string{"1 create 1 ok 0 1", "1 delete 2 absent 2 3"}, false},
		{"not there to delete as another node knows", []string{"1 create 1 ok 0 1", "2 delete 2 absent 2 3"}, true},
		{"an alter is lost", []string{"1 create 1 ok 0 1", "2 alter 2 ok 2 3", "2 describe 1 ok 4 5"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			found, decided := Metadata("t", history(t, c.calls...), 10*time.Second)
			if !decided {
				t.Fatal("not decided")
			}
			if c.sound {
				same(t, found)
			} else {
				same(t, found, Unexplained)
			}
		})
	}
}
