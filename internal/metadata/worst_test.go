package metadata

import (
	"bytes"
	"testing"

	"chronik/internal/alloctest"
)

// TestWorstInputs: 1 MiB of a stranger or a disk takes no more than its share of memory.
// Not held to it: numbers where arrays belong. encoding/json goes on after the first such
// error and makes one for each, 116 MB of garbage in all, of which it keeps nothing.
func TestWorstInputs(t *testing.T) {
	create := `{"t":"create_topics","c":{"topics":[`
	topic := `{"t":"create_topics","c":{"topics":[{"name":"a","assignments":[`
	members := `{"index":1,"result":{"members":[`
	head := `{"format":"chronik-metadata","version":1,"next_group":9,"next_replica":9}` + "\n"
	claims := []byte{claimVersion, claimSnapshot, 0xff, 0xff, 0x14}
	inputs := map[string][]byte{
		"topics":          alloctest.Fill(create, "{},", "{}]}}"),
		"null topics":     alloctest.Fill(create, "null,", "null]}}"),
		"small topics":    alloctest.Fill(create, `{"name":"abc"},`, "{}]}}"),
		"configs":         alloctest.Fill(create, `{"configs":{"a":"b"}},`, "{}]}}"),
		"assignments":     alloctest.Fill(topic, "[],", "[]]}]}}"),
		"assigned nodes":  alloctest.Fill(topic, "[1],", "[1]]}]}}"),
		"replicas":        alloctest.Fill(topic+"[", "1,", "1]]}]}}"),
		"more partitions": alloctest.Fill(`{"t":"create_partitions","c":{"topics":[`, "{},", "{}]}}"),
		"ops":             alloctest.Fill(`{"t":"alter_configs","c":{"resources":[{"ops":[`, "{},", "{}]}]}}"),
		"members":         alloctest.Fill(members, "{},", "{}]}}"),
		"nested":          alloctest.Fill("", "[", ""),
		"lines":           alloctest.Fill(head, "{}\n", ""),
		"group lines":     alloctest.Fill(head, `{"group":{"group":2,"replicas":[{},{}]}}`+"\n", ""),
		"replica line":    alloctest.Fill(head+`{"group":{"group":2,"replicas":[`, "{},", "{}]}}\n"),
		"config line":     alloctest.Fill(head+`{"configs":{"node":1,"values":{`, `"a":"",`, `"b":""}}}`+"\n"),
		"claims":          append(claims, bytes.Repeat([]byte{1, 1, 1}, alloctest.MaxInput/3-2)...),
	}
	alloctest.Worst(t, inputs,
		func(b []byte) { _, _ = Decode(b) },
		func(b []byte) { _, _ = DecodeReply("register_broker", b) },
		func(b []byte) { _, _ = DecodeReply("create_topics", b) },
		func(b []byte) { _, _ = ReadImage(bytes.NewReader(b)) },
		func(b []byte) { _ = NewLeaders(1).Merge(2, b) },
	)
}
