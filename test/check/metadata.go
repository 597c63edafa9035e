package check

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// Action is what a call does to a topic.
type Action int

// The actions.
const (
	Create Action = iota
	Delete
	Alter
	Describe
	caughtUp // not a call: the node has answered a write and knows it from now on
)

// Answer is what a call was answered.
type Answer int

// The answers.
const (
	OK      Answer = iota
	Exists         // the topic is there already
	Absent         // there is no such topic
	Unknown        // no answer, or one that does not say whether it was done
)

// Call is one client's call about one topic, and what came back.
type Call struct {
	Client int
	Node   int // who was asked
	Topic  string
	Action Action
	// Version is unlike that of any other Create, Delete or Alter of the topic, and above 0.
	// Create and Alter make it the topic's setting. Describe: what was read.
	Version int
	Answer  Answer
	Call    time.Duration // since some moment
	Return  time.Duration
}

// Metadata tells whether some order explains the calls about one topic:
//
//   - what creates, deletes and alters answer is explained by one order of them all
//     that agrees with the order in real time;
//   - what a node reads (a description; that there is no topic to delete or alter) is a state of
//     that order, perhaps an old one: every node answers from its own copy of the metadata. But a
//     node's copy never goes back, and has what the node itself has acknowledged.
//
// A write of unknown outcome may have been done at any time after its call, or never. decided is
// false when the time limit passed first.
func Metadata(topic string, calls []Call, limit time.Duration) (found []Violation, decided bool) {
	model := metadataModel()
	switch porcupine.CheckOperationsTimeout(model, operations(calls), limit) {
	case porcupine.Ok:
		return nil, true
	case porcupine.Unknown:
		return nil, false
	default:
		return []Violation{{Unexplained, topic, fmt.Sprintf("no order explains %d calls: %v", len(calls), describe(calls))}}, true
	}
}

func operations(calls []Call) []porcupine.Operation {
	var ops []porcupine.Operation
	for _, c := range calls {
		op := porcupine.Operation{ClientId: c.Client, Input: c, Output: c.Answer, Call: int64(c.Call), Return: int64(c.Return)}
		if c.Answer == Unknown {
			if c.Action == Describe {
				continue
			}
			op.Return = math.MaxInt64
		}
		ops = append(ops, op)
		if c.Answer == OK && c.Action != Describe {
			known := c
			known.Action = caughtUp
			ops = append(ops, porcupine.Operation{ClientId: c.Client, Input: known, Output: OK, Call: int64(c.Return), Return: int64(c.Return)})
		}
	}
	return ops
}

// topicState is all versions that a topic has had, the present one last. A version below 0
// is the topic's absence since a delete of that version.
type topicState struct {
	versions []int
	// seen is the place in versions that each node has got to, as far as its answers tell.
	seen map[int]int
}

// never is the absence before the first version.
const never = math.MinInt

func (s topicState) present() bool { return s.versions[len(s.versions)-1] > 0 }

func (s topicState) with(version int) topicState {
	return topicState{append(slices.Clip(s.versions), version), s.seen}
}

// at is the state with node known to have got to place i.
func (s topicState) at(node, i int) topicState {
	if s.seen[node] >= i {
		return s
	}
	seen := map[int]int{node: i}
	for n, j := range s.seen {
		if n != node {
			seen[n] = j
		}
	}
	return topicState{s.versions, seen}
}

// absentFor tells whether node may say that there is no topic.
func (s topicState) absentFor(node int) bool {
	return slices.ContainsFunc(s.versions[s.seen[node]:], func(v int) bool { return v < 0 })
}

func metadataModel() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init: func() []any { return []any{topicState{versions: []int{never}}} },
		Step: func(state, input, output any) []any {
			s, _ := state.(topicState)
			c, _ := input.(Call)
			a, _ := output.(Answer)
			var next []any
			for _, n := range s.step(c, a) {
				next = append(next, n)
			}
			return next
		},
		Equal: func(a, b any) bool {
			x, _ := a.(topicState)
			y, _ := b.(topicState)
			if !slices.Equal(x.versions, y.versions) {
				return false
			}
			for n := range 10 { // node ids of test clusters
				if x.seen[n] != y.seen[n] {
					return false
				}
			}
			return true
		},
	}
	return m.ToModel()
}

// step returns the states that there may be after c was answered a; none: it cannot have been.
func (s topicState) step(c Call, a Answer) []topicState {
	switch c.Action {
	case Describe:
		return s.read(c, a)
	case caughtUp:
		version := c.Version
		if i := slices.IndexFunc(s.versions, func(v int) bool { return v == version || v == -version }); i >= 0 {
			return []topicState{s.at(c.Node, i)}
		}
		return nil
	default:
		return s.write(c, a)
	}
}

func (s topicState) write(c Call, a Answer) []topicState {
	done, possible := s.with(c.Version), s.present()
	if c.Action == Create {
		possible = !possible
	}
	if c.Action == Delete {
		done = s.with(-c.Version)
	}
	switch {
	case a == Unknown && possible:
		return []topicState{s, done}
	case a == Unknown:
		return []topicState{s}
	case a == OK && possible:
		return []topicState{done}
	case a == Exists && c.Action == Create && s.present():
		return []topicState{s}
	case a == Absent && c.Action != Create && s.absentFor(c.Node):
		return []topicState{s}
	default:
		return nil
	}
}

func (s topicState) read(c Call, a Answer) []topicState {
	var next []topicState
	for i := s.seen[c.Node]; i < len(s.versions); i++ {
		if v := s.versions[i]; a == OK && v == c.Version || a == Absent && v < 0 {
			next = append(next, s.at(c.Node, i))
		}
	}
	return next
}

var (
	actionNames = map[Action]string{Create: "create", Delete: "delete", Alter: "alter", Describe: "describe"}
	answerNames = map[Answer]string{OK: "ok", Exists: "exists", Absent: "absent", Unknown: "?"}
)

func describe(calls []Call) []string {
	var lines []string
	for _, c := range calls {
		lines = append(lines, fmt.Sprintf("[%v %v] node %d: %s %d: %s", c.Call.Round(time.Microsecond), c.Return.Round(time.Microsecond), c.Node, actionNames[c.Action], c.Version, answerNames[c.Answer]))
	}
	return lines
}
