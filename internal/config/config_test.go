package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"chronik/internal/alloctest"
)

// load writes toml to a file and loads it. Errors show it as chronik.toml.
func load(t testing.TB, toml string, env []string, flags map[string]string) (*Config, error) {
	t.Helper()
	file := ""
	if toml != "" {
		file = filepath.Join(t.TempDir(), "chronik.toml")
		if err := os.WriteFile(file, []byte(toml), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Load(LoadOptions{File: file, Env: env, Flags: flags})
	var e *Error
	if errors.As(err, &e) && file != "" {
		e.Msg = strings.ReplaceAll(e.Msg, filepath.Dir(file)+string(os.PathSeparator), "")
	}
	if err != nil && e == nil {
		t.Fatalf("%T is no *Error: %v", err, err)
	}
	return c, err
}

func TestDefaults(t *testing.T) {
	c, err := load(t, "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Node:    Node{ID: 1, DataDir: "data"},
		Kafka:   Kafka{Listen: "127.0.0.1:9092", Advertised: "127.0.0.1:9092", MaxFetchSessions: 1000},
		Raft:    Raft{Listen: "127.0.0.1:9192", ElectionTimeout: time.Second, HeartbeatInterval: 100 * time.Millisecond, Quiesce: true, MaxInflightBytes: 16 << 20},
		Admin:   Admin{Listen: "127.0.0.1:9292"},
		Cluster: Cluster{ReplicationFactor: 3, MinInsyncReplicas: 2},
		Snapshot: Snapshot{
			ThresholdEntries: 10000, ThresholdBytes: 64 << 20, Interval: time.Hour, KeepEntries: 1000, HoldBytes: 64 << 20,
			Compression: "zstd", MaxConcurrent: 2, RetentionCount: 3,
		},
		ObjectStore: ObjectStore{UploadInterval: time.Minute, Grace: time.Hour},
		Raftlog:     Raftlog{MaxBytes: 512 << 20, FileBytes: 64 << 20},
		Group:       Group{Partitions: 8}, Txn: Txn{Partitions: 8},
		Topic: Topic{AutoCreate: true, DefaultPartitions: 1},
		Log:   Log{Level: "info", Format: "text"},
	}
	for _, got := range []*Config{c, Default()} {
		got.origins = nil
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
}

const full = `
[node]
id = 2
data_dir = '/var/lib/chronik' # a comment
[kafka]
listen = "0.0.0.0:9092"
advertised = "broker-2"
[cluster]
peers = [ "1@n1:9192", "2@n2:9193",
  "3@n3:9192" ]
[snapshot]
threshold_entries = 1_000
threshold_bytes = 1048576
interval = "90s"
[raftlog]
max_bytes = "1GiB"
[topic]
auto_create = false
`

func TestFile(t *testing.T) {
	c, err := load(t, full, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Node.ID != 2 || c.Node.DataDir != "/var/lib/chronik" || c.AdvertisedAddr() != "broker-2:9092" || c.Raft.Listen != ":9193" ||
		len(c.Cluster.Peers) != 3 || c.Cluster.Peers[2] != (Peer{3, "n3:9192"}) || c.Snapshot.ThresholdEntries != 1000 ||
		c.Snapshot.KeepEntries != 100 || c.Snapshot.ThresholdBytes != 1<<20 || c.Snapshot.Interval != 90*time.Second ||
		c.Raftlog.MaxBytes != 1<<30 || c.Topic.AutoCreate {
		t.Errorf("%+v", c)
	}
}

func TestDottedAndInlineKeys(t *testing.T) {
	c, err := load(t, "node.id = 7\nkafka = { listen = \"localhost:1\" }\nsnapshot.keep_entries = \"auto\"\n", nil, nil)
	if err != nil || c.Node.ID != 7 || c.Kafka.Listen != "localhost:1" || c.Snapshot.KeepEntries != 1000 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestOrder(t *testing.T) {
	env := []string{"CHRONIK_NODE_ID=3", "CHRONIK_SNAPSHOT_THRESHOLD_ENTRIES=50", "CHRONIK_ADVERTISED_ADDR=alias:1", "CHRONIK_KAFKA_ADVERTISED=full:2", "HOME=/", "CHRONIK_BOOTSTRAP=x"}
	c, err := load(t, full, env, map[string]string{"node.id": "1", "snapshot.keep_entries": "7"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Node.ID != 1 || c.Snapshot.ThresholdEntries != 50 || c.Snapshot.KeepEntries != 7 || c.Kafka.Advertised != "full:2" || c.Node.DataDir != "/var/lib/chronik" {
		t.Errorf("%+v", c)
	}
	c, err = load(t, "", []string{"CHRONIK_KAFKA_ADVERTISED=full:2", "CHRONIK_ADVERTISED_ADDR=alias:1"}, nil)
	if err != nil || c.Kafka.Advertised != "full:2" {
		t.Errorf("the other order: %v, %v", c, err)
	}
	c, err = load(t, "", []string{"CHRONIK_ADVERTISED_ADDR=alias:1"}, nil)
	if err != nil || c.Kafka.Advertised != "alias:1" {
		t.Errorf("alias: %v, %v", c, err)
	}
}

// What Kubernetes and the test harness put into the environment is not meant for us.
func TestForeignEnvironment(t *testing.T) {
	for _, name := range []string{
		"CHRONIK_SERVICE_HOST", "CHRONIK_SERVICE_PORT", "CHRONIK_SERVICE_PORT_KAFKA", "CHRONIK_PORT", "CHRONIK_PORT_9092_TCP",
		"CHRONIK_PORT_9092_TCP_ADDR", "CHRONIK_HEADLESS_SERVICE_HOST", "CHRONIK_ADMIN_PORT_9292_TCP_PROTO", "CHRONIK_TEST_ANYTHING", "CHRONIK_SEED",
	} {
		if _, err := load(t, "", []string{name + "=tcp://10.0.0.1:9092"}, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBroken(t *testing.T) {
	tests := []struct {
		toml, env, flag string // one of each at most
		msg             string
		hint            string // a part of it
	}{
		{toml: "[node]\nidd = 1\n", msg: "chronik.toml:2: no such setting node.idd; did you mean node.id?", hint: "config print"},
		{toml: "[node]\ndata-dir = 'x'\n", msg: "chronik.toml:2: no such setting node.data-dir; did you mean node.data_dir?"},
		{toml: "[snapshot]\nthreshold_entires = 5\n", msg: "chronik.toml:2: no such setting snapshot.threshold_entires; did you mean snapshot.threshold_entries?"},
		{toml: "nonsense = 1\n", msg: "chronik.toml:1: no such setting nonsense"},
		{toml: "id = 1\n", msg: "chronik.toml:1: no such setting id"},
		{toml: "\n\n[snapshots]\n", msg: "chronik.toml:3: no such section [snapshots]; did you mean snapshot?", hint: "the sections are node, kafka, raft"},
		{toml: "[zzzzzzzzz]\n", msg: "chronik.toml:1: no such section [zzzzzzzzz]"},
		{toml: "[node.id]\n", msg: "chronik.toml:1: no such section [node.id]; did you mean node?"},
		{toml: "[[node]]\nid = 1\n", msg: "chronik.toml:1: [[node]]: no setting is a list of tables"},
		{toml: "[node]\nid = 1\nid = 2\n", msg: "chronik.toml:3: node.id is set in line 2 already"},
		{toml: "[node]\n[kafka]\n[node]\n", msg: "chronik.toml:3: section [node] stands in line 1 already"},
		{toml: "node = { id = 1, rock = 'r' }\n", msg: "chronik.toml:1: no such setting node.rock; did you mean node.rack?"},
		{toml: "[node]\nid = \n", msg: "chronik.toml:2: not TOML: unexpected character U+000A at start of value", hint: "must be TOML"},
		{toml: "[node\nid = 1\n", msg: "chronik.toml:1: not TOML: expected ']' to close table name"},
		{toml: "[node]\nid = 'one'\n", msg: "chronik.toml:2: node.id: want an integer, got the string \"one\"", hint: "node.id is an integer; the default is 1"},
		{toml: "[node]\nid = '1'\n", msg: "chronik.toml:2: node.id: want an integer, got the string \"1\""},
		{toml: "[node]\nid = 1.5\n", msg: "chronik.toml:2: node.id: want an integer, got the float 1.5"},
		{toml: "[node]\nid = true\n", msg: "chronik.toml:2: node.id: want an integer, got true"},
		{toml: "[node]\nid = 0\n", msg: "chronik.toml:2: node.id: 0 is outside 1 to 2147483647"},
		{toml: "[node]\nid = -1\n", msg: "chronik.toml:2: node.id: -1 is outside 1 to 2147483647"},
		{toml: "[node]\nid = 2147483648\n", msg: "chronik.toml:2: node.id: 2147483648 is outside 1 to 2147483647"},
		{toml: "[node]\nid = 99999999999999999999\n", msg: "chronik.toml:2: node.id: want an integer, got \"99999999999999999999\""},
		{toml: "[node]\nid = [1]\n", msg: "chronik.toml:2: node.id: want an integer, got an array"},
		{toml: "[node]\ndata_dir = 5\n", msg: "chronik.toml:2: node.data_dir: want a string, got the integer 5"},
		{toml: "[node]\ndata_dir = ''\n", msg: "chronik.toml:2: node.data_dir: must not be empty"},
		{toml: "[node]\nrack = 2026-01-01\n", msg: "chronik.toml:2: node.rack: want a string, got a date"},
		{toml: "[topic]\nauto_create = 'yes'\n", msg: "chronik.toml:2: topic.auto_create: want true or false, got the string \"yes\""},
		{toml: "[topic]\nauto_create = 1\n", msg: "chronik.toml:2: topic.auto_create: want true or false, got the integer 1"},
		{toml: "[snapshot]\ninterval = 10\n", msg: "chronik.toml:2: snapshot.interval: want a duration such as 100ms, 10s or 1h, got the integer 10", hint: "the default is 1h"},
		{toml: "[snapshot]\ninterval = 'soon'\n", msg: "chronik.toml:2: snapshot.interval: want a duration such as 100ms, 10s or 1h, got \"soon\""},
		{toml: "[snapshot]\ninterval = '0s'\n", msg: "chronik.toml:2: snapshot.interval: 0s is outside 1s to 8760h"},
		{toml: "[snapshot]\nthreshold_bytes = '64 mega'\n", msg: "chronik.toml:2: snapshot.threshold_bytes: want a size such as 64MiB, or a number of bytes, got \"64 mega\""},
		{toml: "[snapshot]\nthreshold_bytes = '-1MiB'\n", msg: "chronik.toml:2: snapshot.threshold_bytes: want a size such as 64MiB, or a number of bytes, got \"-1MiB\""},
		{toml: "[snapshot]\nthreshold_bytes = '99999999TiB'\n", msg: "chronik.toml:2: snapshot.threshold_bytes: want a size such as 64MiB, or a number of bytes, got \"99999999TiB\""},
		{toml: "[snapshot]\nthreshold_bytes = 10\n", msg: "chronik.toml:2: snapshot.threshold_bytes: 10 is outside 1KiB to 1024TiB"},
		{toml: "[snapshot]\nthreshold_bytes = 1.5\n", msg: "chronik.toml:2: snapshot.threshold_bytes: want a size such as 64MiB, or a number of bytes, got the float 1.5"},
		{toml: "[snapshot]\ncompression = 'lz4'\n", msg: "chronik.toml:2: snapshot.compression: \"lz4\" is none of zstd, gzip, none"},
		{toml: "[snapshot]\nkeep_entries = 'all'\n", msg: "chronik.toml:2: snapshot.keep_entries: want an integer, got the string \"all\""},
		{toml: "[log]\nlevel = 'trace'\n", msg: "chronik.toml:2: log.level: \"trace\" is none of debug, info, warn, error"},
		{toml: "[kafka]\nlisten = '9092'\n", msg: "chronik.toml:2: kafka.listen: want host:port, got \"9092\"", hint: "the default is 127.0.0.1:9092"},
		{toml: "[kafka]\nlisten = ''\n", msg: "chronik.toml:2: kafka.listen: want host:port, got \"\""},
		{toml: "[kafka]\nlisten = ':0'\n", msg: "chronik.toml:2: kafka.listen: \":0\": the port must be 1 to 65535"},
		{toml: "[kafka]\nlisten = 'h:70000'\n", msg: "chronik.toml:2: kafka.listen: \"h:70000\": the port must be 1 to 65535"},
		{toml: "[kafka]\nlisten = 'PLAINTEXT://h:9092'\n", msg: "chronik.toml:2: kafka.listen: want host:port, got \"PLAINTEXT://h:9092\""},
		{toml: "[admin]\nlisten = 'h:kafka'\n", msg: "chronik.toml:2: admin.listen: \"h:kafka\": the port must be 1 to 65535"},
		{toml: "[raft]\nlisten = 'h'\n", msg: "raft.listen (chronik.toml:2): want host:port, got \"h\""},
		{toml: "[kafka]\nlisten = '0.0.0.0:9092'\n", msg: "kafka.listen (chronik.toml:2) is 0.0.0.0:9092, and no client can connect to that address", hint: "set kafka.advertised (CHRONIK_ADVERTISED_ADDR, --advertised-addr)"},
		{toml: "[kafka]\nlisten = ':9092'\n", msg: "kafka.listen (chronik.toml:2) is :9092, and no client can connect to that address"},
		{toml: "[kafka]\nlisten = '[::]:9092'\n", msg: "kafka.listen (chronik.toml:2) is [::]:9092, and no client can connect to that address"},
		{toml: "[kafka]\nadvertised = '0.0.0.0:9092'\n", msg: "kafka.advertised (chronik.toml:2) is 0.0.0.0:9092, and no client can connect to that address", hint: "broker-1.example.com"},
		{toml: "[kafka]\nadvertised = '0.0.0.0'\n", msg: "kafka.advertised (chronik.toml:2) is 0.0.0.0:9092, and no client can connect to that address"},
		{toml: "[kafka]\nadvertised = 'h:x'\n", msg: "kafka.advertised (chronik.toml:2): \"h:x\": the port must be 1 to 65535"},
		{toml: "[admin]\nlisten = '127.0.0.1:9092'\n", msg: "kafka.listen and admin.listen (chronik.toml:2) both listen on 127.0.0.1:9092", hint: "own port"},
		{toml: "[admin]\nlisten = ':9192'\n", msg: "raft.listen and admin.listen (chronik.toml:2) both listen on :9192"},
		{toml: "[cluster]\npeers = 'h:9192'\n", msg: "chronik.toml:2: cluster.peers: peer \"h:9192\": want id@host:port", hint: "1@host:9192,2@host:9192"},
		{toml: "[cluster]\npeers = '1@h'\n", msg: "chronik.toml:2: cluster.peers: peer \"1@h\": want host:port, got \"h\""},
		{toml: "[cluster]\npeers = 'x@h:1'\n", msg: "chronik.toml:2: cluster.peers: peer \"x@h:1\": the id must be 1 to 2147483647"},
		{toml: "[cluster]\npeers = '0@h:1'\n", msg: "chronik.toml:2: cluster.peers: peer \"0@h:1\": the id must be 1 to 2147483647"},
		{toml: "[cluster]\npeers = '1@h:1,1@i:1'\n", msg: "chronik.toml:2: cluster.peers: peer \"1@i:1\": node 1 is named twice"},
		{toml: "[cluster]\npeers = '1@h:1,2@h:1'\n", msg: "chronik.toml:2: cluster.peers: peer \"2@h:1\": the address is node 1's"},
		{toml: "[cluster]\npeers = '1@h:1,,2@i:1'\n", msg: "chronik.toml:2: cluster.peers: peer \"\": want id@host:port"},
		{toml: "[cluster]\npeers = '1@0.0.0.0:1'\n", msg: "chronik.toml:2: cluster.peers: peer \"1@0.0.0.0:1\": other nodes cannot connect to \"0.0.0.0\""},
		{toml: "[cluster]\npeers = '1@:9192'\n", msg: "chronik.toml:2: cluster.peers: peer \"1@:9192\": other nodes cannot connect to \"\""},
		{toml: "[cluster]\npeers = [1, 2]\n", msg: "chronik.toml:2: cluster.peers: want nodes such as 1@host:9192,2@host:9192, got an array"},
		{toml: "[cluster]\npeers = 3\n", msg: "chronik.toml:2: cluster.peers: want nodes such as 1@host:9192,2@host:9192, got the integer 3"},
		{toml: "[cluster]\nmin_insync_replicas = 4\n", msg: "cluster.min_insync_replicas (chronik.toml:2) is 4, more than cluster.replication_factor (3)", hint: "acks=all"},
		{toml: "[cluster]\nreplication_factor = 1\n", msg: "cluster.min_insync_replicas is 2, more than cluster.replication_factor (chronik.toml:2) (1)"},
		{toml: "[node]\nid = 4\n[cluster]\npeers = '1@far:9192'\n", msg: "raft.listen is 127.0.0.1:9192, to which node 1 at far:9192 cannot connect: this node is not in cluster.peers (chronik.toml:4), joins those, and tells them its raft.listen", hint: "an address of this host"},
		{toml: "[node]\nid = 4\n[cluster]\npeers = '1@far:9192'\n[raft]\nlisten = ':9192'\n", msg: "raft.listen (chronik.toml:6) is :9192, to which node 1 at far:9192 cannot connect: this node is not in cluster.peers (chronik.toml:4), joins those, and tells them its raft.listen", hint: "an address of this host"},
		{toml: "[cluster]\npeers = '1@far:9192'\n[raft]\nlisten = '127.0.0.1:9192'\n", msg: "raft.listen (chronik.toml:4) is 127.0.0.1:9192, but cluster.peers (chronik.toml:2) tells the others to connect to far:9192", hint: ":9192"},
		{toml: "[raft]\nelection_timeout = '150ms'\n", msg: "raft.election_timeout (chronik.toml:2) is 150ms, less than twice raft.heartbeat_interval (100ms)"},
		{toml: "[raftlog]\nmax_bytes = '100MiB'\n", msg: "raftlog.max_bytes (chronik.toml:2) is 100MiB, less than twice raftlog.file_bytes (64MiB)", hint: "two files"},
		{toml: "[object_store]\nurl = 'gs://bucket'\n", msg: "chronik.toml:2: object_store.url: want file:// or s3://"},
		{toml: "[object_store]\nurl = 'file://relative/dir'\n", msg: "chronik.toml:2: object_store.url: want file:///absolute/directory"},
		{toml: "[object_store]\nurl = 's3:bucket'\n", msg: "chronik.toml:2: object_store.url: want s3://bucket/prefix"},
		{toml: "[object_store]\nurl = 's3://%zz'\n", msg: "chronik.toml:2: object_store.url: it is no URL"},
		{env: "CHRONIK_OBJECT_STORE_URL=s3://key:a/secret@bucket", msg: "environment CHRONIK_OBJECT_STORE_URL: object_store.url: it is no URL"},

		{env: "CHRONIK_NODE_ID=one", msg: "environment CHRONIK_NODE_ID: node.id: want an integer, got \"one\"", hint: "the default is 1"},
		{env: "CHRONIK_NODEID=1", msg: "environment: CHRONIK_NODEID is no setting; did you mean CHRONIK_NODE_ID?", hint: "underscores for dots"},
		{env: "CHRONIK_ADVERTISED_ADR=h:1", msg: "environment: CHRONIK_ADVERTISED_ADR is no setting; did you mean CHRONIK_ADVERTISED_ADDR?"},
		{env: "CHRONIK_NODE_ID=", msg: "environment CHRONIK_NODE_ID: node.id: want an integer, got \"\""},
		{env: "CHRONIK_TOPIC_AUTO_CREATE=1", msg: "environment CHRONIK_TOPIC_AUTO_CREATE: topic.auto_create: want true or false, got \"1\""},
		{env: "CHRONIK_ADVERTISED_ADDR=0.0.0.0:9092", msg: "kafka.advertised (environment CHRONIK_ADVERTISED_ADDR) is 0.0.0.0:9092, and no client can connect to that address"},
		{flag: "node.id=0", msg: "flag --node-id: node.id: 0 is outside 1 to 2147483647"},
		{flag: "snapshot.thresholdentries=1", msg: "flag --set snapshot.thresholdentries: no such setting; did you mean snapshot.threshold_entries?"},
		{flag: "snapshot.interval=1", msg: "flag --set: snapshot.interval: want a duration such as 100ms, 10s or 1h, got \"1\""},
		{flag: "kafka.listen=0.0.0.0:9092", msg: "kafka.listen (flag --kafka-addr) is 0.0.0.0:9092, and no client can connect to that address"},
		{flag: "cluster.peers=1@h", msg: "flag --peers: cluster.peers: peer \"1@h\": want host:port, got \"h\""},
	}
	for _, tc := range tests {
		t.Run(tc.toml+tc.env+tc.flag, func(t *testing.T) {
			var env []string
			if tc.env != "" {
				env = []string{tc.env}
			}
			flags := map[string]string{}
			if k, v, ok := strings.Cut(tc.flag, "="); ok {
				flags[k] = v
			}
			_, err := load(t, tc.toml, env, flags)
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("loaded, want: %s", tc.msg)
			}
			if e.Msg != tc.msg {
				t.Errorf("\n got %s\nwant %s", e.Msg, tc.msg)
			}
			if !strings.Contains(e.Advice(), tc.hint) {
				t.Errorf("hint %q, want %q in it", e.Hint, tc.hint)
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	_, err := Load(LoadOptions{File: "/nonexistent/chronik.toml"})
	var e *Error
	if !errors.As(err, &e) || e.Msg != "cannot read the configuration: open /nonexistent/chronik.toml: no such file or directory" {
		t.Errorf("%v", err)
	}
}

// What is printed loads as the same configuration.
func TestPrintLoads(t *testing.T) {
	c, err := load(t, full, []string{"CHRONIK_NODE_RACK=a \"b\" \\ \t c"}, map[string]string{"log.level": "debug"})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := c.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"[object_store]\n", "id = 2                                           # ", "chronik.toml:3\n", "# environment CHRONIK_NODE_RACK\n",
		"level = \"debug\"                                  # flag --set\n", "hold_bytes = \"64MiB\"                             # default\n",
		"keep_entries = 100                               # from snapshot.threshold_entries\n", "listen = \":9193\"                                 # from cluster.peers\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("printed:\n%s\nwant %q in it", b.String(), want)
		}
	}
	again, err := load(t, b.String(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.origins, again.origins = nil, nil
	if !reflect.DeepEqual(c, again) {
		t.Errorf("got  %+v\nwant %+v", again, c)
	}
}

func TestRaftListenInACluster(t *testing.T) {
	for peers, want := range map[string]string{
		"1@far:9500,2@h:1":      ":9500",
		"1@127.0.0.1:9501":      "127.0.0.1:9501",
		"1@localhost:9502":      "localhost:9502",
		"2@127.0.0.1:9503":      "127.0.0.1:9192", // a node that joins
		"1@[2001:db8::1]:9504 ": ":9504",
	} {
		c, err := load(t, "", nil, map[string]string{"cluster.peers": peers})
		if err != nil || c.Raft.Listen != want {
			t.Errorf("%s: %v, %v; want %s", peers, c, err, want)
		}
	}
}

func TestAdvertisedForms(t *testing.T) {
	for set, want := range map[string]string{"h": "h:9092", "h:1": "h:1", "[::1]": "[::1]:9092", "[::1]:7": "[::1]:7", "10.1.2.3": "10.1.2.3:9092"} {
		c, err := load(t, "", nil, map[string]string{"kafka.advertised": set})
		if err != nil || c.AdvertisedAddr() != want {
			t.Errorf("%s: %v, %v; want %s", set, c, err, want)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "1": 1, "1B": 1, "1024": 1024, "1KiB": 1024, "1kib": 1024, "64MiB": 64 << 20, "64 MiB": 64 << 20, "1_000": 1000,
		"2GiB": 2 << 30, "3TiB": 3 << 40, "5KB": 5000, "5mb": 5_000_000, "1GB": 1e9, "1TB": 1e12,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "MiB", "1.5MiB", "-1", "1 2", "1PiB", "0x10", "9223372036854775808", "8388608TiB"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		want := Size(rapid.Int64Min(0).Draw(t, "size"))
		if got, err := ParseSize(want.String()); err != nil || got != want {
			t.Fatalf("%s: %d, %v", want, got, err)
		}
	})
}

func TestDistance(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"entries", "entires", 1}, {"ab", "ba", 1}, {"node.id", "node.idd", 1}} {
		if got := distance(tc.a, tc.b); got != tc.want {
			t.Errorf("%q, %q: %d, want %d", tc.a, tc.b, got, tc.want)
		}
	}
}

// Every setting is in the reference, with its default, once.
func TestReference(t *testing.T) {
	ref := Reference()
	for _, s := range settings {
		if strings.Count(ref, "| `"+s.name+"` | ") != 1 {
			t.Errorf("%s is not in the reference once", s.name)
		}
		if !strings.HasSuffix(s.doc, ".") {
			t.Errorf("%s: %q does not end", s.name, s.doc)
		}
	}
	_, example, _ := strings.Cut(ref, "```toml\n")
	example, _, ok := strings.Cut(example, "```")
	if !ok {
		t.Fatal("no example")
	}
	if _, err := load(t, example, nil, nil); err != nil {
		t.Errorf("the example does not load: %v", err)
	}
}

// A file of a stranger never panics, and its errors name a line.
func FuzzFile(f *testing.F) {
	f.Add(full)
	f.Add("a.b.c = {d = [1, {e = 2}]}\n[x]\n")
	f.Add("node = {id = 1}\n[node]\nid = 2")
	f.Add("[node]\nid = ")
	f.Fuzz(func(t *testing.T, toml string) {
		defer alloctest.Bound(t, len(toml))()
		l := &loader{c: Default()}
		err := l.file("f", []byte(toml))
		var e *Error
		if err != nil && (!errors.As(err, &e) || !strings.HasPrefix(e.Msg, "f:")) {
			t.Fatalf("%v", err)
		}
	})
}

// Settings of the environment and of flags are refused by name, or make a
// configuration that, written out, loads as the same.
func FuzzSettings(f *testing.F) {
	f.Add("CHRONIK_NODE_ID=2", "cluster.peers", "1@a:1,2@b:2")
	f.Add("CHRONIK_ADVERTISED_ADDR=host", "log.level", "debug")
	f.Add("CHRONIK_PORT_9092_TCP=x", "snapshot.keep_entries", "auto")
	f.Add("CHRONIK_OBJECT_STORE_URL=s3://b/p?x=%zz", "raftlog.max_bytes", "9_000 GiB")
	f.Add("PATH", "raft.election_timeout", "1h0m0s")
	f.Fuzz(func(t *testing.T, env, flag, value string) {
		defer alloctest.Bound(t, len(env)+len(flag)+len(value))()
		c, err := Load(LoadOptions{Env: []string{env}, Flags: map[string]string{flag: value}})
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Msg == "" {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		again := map[string]string{}
		for i := range settings {
			again[settings[i].name] = settings[i].text(c)
		}
		b, err := Load(LoadOptions{Flags: again})
		if err != nil {
			t.Fatalf("%v of %q", err, again)
		}
		for i := range settings {
			if s := &settings[i]; s.text(b) != s.text(c) {
				t.Fatalf("%s: %q became %q", s.name, s.text(c), s.text(b))
			}
		}
	})
}
