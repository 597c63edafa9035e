package partition

import (
	"testing"

	"chronik/internal/raftgroup"
	"chronik/internal/vfs"
)

// TestCrowdedDiskTakesNoRecords: without room a batch is not applied, and changes nothing; what frees room is. The same batch
// goes in when there is room.
func TestCrowdedDiskTakesNoRecords(t *testing.T) {
	fs := vfs.NewCrashableMem()
	crowded := false
	got, err := Opener{Crowded: func() bool { return crowded }}.Open(fs, "g1", nil, nil)
	must(t, err)
	sm := got.(*StateMachine)
	defer func() { must(t, sm.Close()) }()
	entry := func(i int) raftgroup.Entry {
		return raftgroup.Entry{Index: 10, Term: 1, Data: encodeEntry(KindBatch, 1000, build(t, 1, 20, 1000, 7, 0, int32(i)))}
	}
	apply := func(e raftgroup.Entry) (*outcome, error) {
		r, err := sm.Apply([]raftgroup.Entry{e})
		if err != nil {
			return nil, err
		}
		return r[0].(*outcome), nil
	}
	for i := range 2 {
		o, err := apply(entry(i))
		must(t, err)
		must(t, o.err)
	}
	crowded = true
	for range 2 {
		if _, err := apply(entry(2)); !vfs.IsNoSpace(err) {
			t.Fatalf("applied without room: %v", err)
		}
	}
	o, err := apply(raftgroup.Entry{Index: 11, Term: 1, Data: startEntry(1000, 1)})
	must(t, err)
	if o.err != nil || o.logStart != 1 {
		t.Fatalf("what frees room: %+v", o)
	}
	crowded = false
	if o, err = apply(entry(2)); err != nil || o.err != nil || o.baseOffset != 2 {
		t.Fatalf("with room: %+v, %v", o, err)
	}
}
