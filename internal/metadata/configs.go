package metadata

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"chronik/internal/ident"
)

// ConfigSource is where a config's value comes from, in Kafka's numbers.
type ConfigSource int8

// Sources, in the order in which they win.
const (
	SourceTopic          ConfigSource = 1 // DYNAMIC_TOPIC_CONFIG
	SourceBroker         ConfigSource = 2 // DYNAMIC_BROKER_CONFIG
	SourceDefaultBroker  ConfigSource = 3 // DYNAMIC_DEFAULT_BROKER_CONFIG
	SourceStaticBroker   ConfigSource = 4 // STATIC_BROKER_CONFIG
	SourceDefault        ConfigSource = 5 // DEFAULT_CONFIG
	maxConfigValue                    = 32 << 10
	maxConfigsOfResource              = 1000
)

// ConfigSynonym is one place a config could take its value from.
type ConfigSynonym struct {
	Name   string
	Value  string
	Source ConfigSource
}

// ConfigValue is a config as it holds now.
type ConfigValue struct {
	Def    *ConfigDef
	Value  string
	Source ConfigSource
	// Synonyms are all places that have a value, the winning one first.
	Synonyms []ConfigSynonym
}

// TopicConfig returns a topic's config as node sees it; ok is false for an unknown name. A nil
// topic gives the defaults. static holds broker configs of the node's own configuration file, by Kafka's name.
func (i *Image) TopicConfig(t *Topic, name string, node ident.NodeID, static map[string]string) (v ConfigValue, ok bool) {
	d := findDef(topicDefs, name)
	if d == nil {
		return v, false
	}
	var syn []ConfigSynonym
	if t != nil {
		if s, set := t.Configs[name]; set {
			syn = append(syn, ConfigSynonym{name, s, SourceTopic})
		}
	}
	return i.resolve(d, syn, d.Broker, node, static), true
}

// BrokerConfig returns a broker config of node; ok is false for an unknown name.
func (i *Image) BrokerConfig(node ident.NodeID, name string, static map[string]string) (v ConfigValue, ok bool) {
	d := findDef(brokerDefs, name)
	if d == nil {
		return v, false
	}
	return i.resolve(d, nil, name, node, static), true
}

// resolve adds to syn what the broker config of that name says, and the default.
func (i *Image) resolve(d *ConfigDef, syn []ConfigSynonym, broker string, node ident.NodeID, static map[string]string) ConfigValue {
	if broker != "" {
		if node != clusterConfig {
			if s, set := i.BrokerConfigs(node)[broker]; set {
				syn = append(syn, ConfigSynonym{broker, s, SourceBroker})
			}
		}
		if s, set := i.ClusterConfigs()[broker]; set {
			syn = append(syn, ConfigSynonym{broker, s, SourceDefaultBroker})
		}
		if s, set := static[broker]; set {
			syn = append(syn, ConfigSynonym{broker, s, SourceStaticBroker})
		}
	}
	name := broker
	if name == "" {
		name = d.Name
	}
	syn = append(syn, ConfigSynonym{name, d.Default, SourceDefault})
	return ConfigValue{Def: d, Value: syn[0].Value, Source: syn[0].Source, Synonyms: syn}
}

// Settings are the topic configs that the broker acts on, parsed.
type Settings struct {
	Compact             bool
	Delete              bool
	DeleteRetentionMs   int64
	MaxCompactionLagMs  int64
	MaxMessageBytes     int64
	TimestampAfterMs    int64
	TimestampBeforeMs   int64
	LogAppendTime       bool
	MinCleanableRatio   float64
	MinCompactionLagMs  int64
	MinInsyncReplicas   int
	RetentionBytes      int64 // -1 = no limit
	RetentionMs         int64 // -1 = for ever
	SegmentBytes        int64
	SegmentMs           int64
	FileDeleteDelayMs   int64
	IndexIntervalBytes  int64
	CompressionType     string
	TimestampDifference int64
}

// Settings returns a topic's effective settings on node. Keep the result: it
// changes only with the Image.
func (i *Image) Settings(t *Topic, node ident.NodeID, static map[string]string) Settings {
	str := func(name string) string {
		v, _ := i.TopicConfig(t, name, node, static)
		if v.Def.check(v.Value) != nil {
			return v.Def.Default // a node's own file may hold what was never checked here
		}
		return v.Value
	}
	num := func(name string) int64 {
		n, _ := strconv.ParseInt(str(name), 10, 64) // checked when it was set
		return n
	}
	ratio, _ := strconv.ParseFloat(str("min.cleanable.dirty.ratio"), 64) // checked when it was set
	policy := splitList(str("cleanup.policy"))
	return Settings{
		Compact:             slices.Contains(policy, "compact"),
		Delete:              slices.Contains(policy, "delete"),
		DeleteRetentionMs:   num("delete.retention.ms"),
		MaxCompactionLagMs:  num("max.compaction.lag.ms"),
		MaxMessageBytes:     num("max.message.bytes"),
		TimestampAfterMs:    num("message.timestamp.after.max.ms"),
		TimestampBeforeMs:   num("message.timestamp.before.max.ms"),
		TimestampDifference: num("message.timestamp.difference.max.ms"),
		LogAppendTime:       str("message.timestamp.type") == "LogAppendTime",
		MinCleanableRatio:   ratio,
		MinCompactionLagMs:  num("min.compaction.lag.ms"),
		MinInsyncReplicas:   int(num("min.insync.replicas")),
		RetentionBytes:      num("retention.bytes"),
		RetentionMs:         num("retention.ms"),
		SegmentBytes:        num("segment.bytes"),
		SegmentMs:           num("segment.ms"),
		FileDeleteDelayMs:   num("file.delete.delay.ms"),
		IndexIntervalBytes:  num("index.interval.bytes"),
		CompressionType:     str("compression.type"),
	}
}

// check tells why value is not one of d, or nil.
func (d *ConfigDef) check(value string) *Error {
	bad := func(why string) *Error {
		return ErrInvalidConfig.with("%s: %q %s", d.Name, value, why)
	}
	if len(value) > maxConfigValue {
		return ErrInvalidConfig.with("%s: the value has %d bytes, at most %d are allowed", d.Name, len(value), maxConfigValue)
	}
	switch d.Type {
	case TypeBoolean:
		if value != "true" && value != "false" {
			return bad("is neither true nor false")
		}
	case TypeInt, TypeLong:
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return bad("is not a number")
		}
		if n < d.min || n > d.max {
			return bad("is not between " + strconv.FormatInt(d.min, 10) + " and " + strconv.FormatInt(d.max, 10))
		}
	case TypeDouble:
		f, err := strconv.ParseFloat(value, 64)
		if err != nil || !(f >= float64(d.min) && f <= float64(d.max)) {
			return bad("is not a number between " + strconv.FormatInt(d.min, 10) + " and " + strconv.FormatInt(d.max, 10))
		}
	case TypeString:
		if d.oneOf != nil && !slices.Contains(d.oneOf, value) {
			return bad("is none of " + strings.Join(d.oneOf, ", "))
		}
	case TypeList:
		return d.checkList(value)
	}
	return nil
}

func (d *ConfigDef) checkList(value string) *Error {
	for _, m := range splitList(value) {
		if d.oneOf != nil && !slices.Contains(d.oneOf, m) {
			return ErrInvalidConfig.with("%s: %q is none of %s", d.Name, m, strings.Join(d.oneOf, ", "))
		}
		if d.oneOf == nil && !throttledReplica(m) {
			return ErrInvalidConfig.with("%s: %q is neither * nor partition:node", d.Name, m)
		}
	}
	return nil
}

func throttledReplica(s string) bool {
	if s == "*" {
		return true
	}
	partition, node, ok := strings.Cut(s, ":")
	_, err1 := strconv.ParseUint(partition, 10, 31)
	_, err2 := strconv.ParseUint(node, 10, 31)
	return ok && err1 == nil && err2 == nil
}

// splitList splits a list value; spaces around members and empty members do not count.
func splitList(s string) []string {
	var l []string
	for m := range strings.SplitSeq(s, ",") {
		if m = strings.TrimSpace(m); m != "" {
			l = append(l, m)
		}
	}
	return l
}

func checkTopicConfigs(configs map[string]string) *Error {
	if err := checkConfigs(topicDefs, "topic", configs); err != nil {
		return err
	}
	lag := func(name string) int64 {
		d := findDef(topicDefs, name)
		n, _ := strconv.ParseInt(configs[name], 10, 64)
		if _, set := configs[name]; !set {
			n, _ = strconv.ParseInt(d.Default, 10, 64)
		}
		return n
	}
	if low, high := lag("min.compaction.lag.ms"), lag("max.compaction.lag.ms"); low > high {
		return ErrInvalidConfig.with("min.compaction.lag.ms (%d) is above max.compaction.lag.ms (%d)", low, high)
	}
	return nil
}

func checkConfigs(defs []ConfigDef, what string, configs map[string]string) *Error {
	if len(configs) > maxConfigsOfResource {
		return ErrInvalidConfig.with("%d configs, at most %d are possible", len(configs), maxConfigsOfResource)
	}
	for _, name := range slices.Sorted(maps.Keys(configs)) { // sorted: the same error on every node
		d := findDef(defs, name)
		if d == nil {
			return ErrInvalidConfig.with("there is no %s config %q", what, name)
		}
		if err := d.check(configs[name]); err != nil {
			return err
		}
	}
	return nil
}

func (w *work) alterConfigs(c *AlterConfigs) *AlterConfigsResult {
	res := &AlterConfigsResult{}
	for i := range c.Resources {
		r := &c.Resources[i]
		out := AlteredResource{Type: r.Type, Name: r.Name}
		switch r.Type {
		case ResourceTopic:
			out.Err = w.alterTopic(r)
		case ResourceBroker:
			out.Err = w.alterBroker(r)
		default:
			out.Err = ErrInvalidRequest.with("resource type %d has no configs that can be changed", r.Type)
		}
		res.Resources = append(res.Resources, out)
	}
	return res
}

func (w *work) alterTopic(r *AlterResource) *Error {
	old := w.img.Topic(r.Name)
	if old == nil {
		return ErrUnknownTopic.with("topic %s does not exist", r.Name)
	}
	configs, err := r.result(old.Configs, topicDefs, func(name string) string {
		v, _ := w.img.TopicConfig(nil, name, clusterConfig, nil)
		return v.Value
	})
	if err != nil {
		return err
	}
	if err := checkTopicConfigs(configs); err != nil {
		return err
	}
	t := w.ownTopic(old)
	t.Configs = configs
	return nil
}

func (w *work) alterBroker(r *AlterResource) *Error {
	node := clusterConfig
	if r.Name != "" {
		n, err := strconv.ParseInt(r.Name, 10, 32)
		if err != nil || n <= 0 || w.img.Broker(ident.NodeID(n)) == nil {
			return ErrInvalidRequest.with("%q is not the id of a broker", r.Name)
		}
		node = ident.NodeID(n)
	}
	configs, err := r.result(w.img.BrokerConfigs(node), brokerDefs, func(name string) string {
		v, _ := w.img.BrokerConfig(clusterConfig, name, nil)
		return v.Value
	})
	if err != nil {
		return err
	}
	if err := checkConfigs(brokerDefs, "broker", configs); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(configs)) {
		if findDef(brokerDefs, name).ReadOnly {
			return ErrInvalidRequest.with("%s cannot be changed while the broker runs", name)
		}
	}
	if len(configs) == 0 {
		w.img.tree.configs.m.Delete(node)
	} else {
		w.img.tree.configs.m.Set(node, configs)
	}
	return nil
}

// result returns the configs after the operations on old, which it leaves alone.
// inherited gives the value that append and subtract start from when none is set.
func (r *AlterResource) result(old map[string]string, defs []ConfigDef, inherited func(string) string) (map[string]string, *Error) {
	configs := map[string]string{}
	if !r.Replace {
		maps.Copy(configs, old)
	}
	seen := map[string]bool{}
	for _, op := range r.Ops {
		d := findDef(defs, op.Name)
		switch {
		case d == nil:
			return nil, ErrInvalidConfig.with("there is no config %q", op.Name)
		case seen[op.Name]:
			return nil, ErrInvalidRequest.with("%s is changed twice", op.Name)
		case op.Op == OpDelete:
			delete(configs, op.Name)
		case op.Value == nil:
			return nil, ErrInvalidRequest.with("%s has no value", op.Name)
		case op.Op == OpSet:
			configs[op.Name] = *op.Value
		case op.Op != OpAppend && op.Op != OpSubtract:
			return nil, ErrInvalidRequest.with("%s: operation %d is unknown", op.Name, op.Op)
		case d.Type != TypeList:
			return nil, ErrInvalidConfig.with("%s is not a list: append and subtract are not possible", op.Name)
		default:
			cur, set := configs[op.Name]
			if !set {
				cur = inherited(op.Name)
			}
			configs[op.Name] = mergeList(cur, *op.Value, op.Op)
		}
		seen[op.Name] = true
	}
	if len(configs) == 0 {
		return nil, nil
	}
	return configs, nil
}

func mergeList(cur, value string, op ConfigOp) string {
	list, change := splitList(cur), splitList(value)
	if op == OpSubtract {
		list = slices.DeleteFunc(list, func(m string) bool { return slices.Contains(change, m) })
		return strings.Join(list, ",")
	}
	for _, m := range change {
		if !slices.Contains(list, m) {
			list = append(list, m)
		}
	}
	return strings.Join(list, ",")
}
