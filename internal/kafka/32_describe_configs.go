package kafka

import (
	"context"
	"maps"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/ident"
	"chronik/internal/metadata"
	"chronik/internal/wire"
)

// DescribeConfigs: versions 0 to 4.
//
//	v0  IsDefault in place of the source
//	v1  sources and synonyms
//	v3  types and documentation
//	v4  flexible
//
// Topics have the settings of topicConfigs. A node's settings are shown under
// Kafka's names where there is one; they are read only.

func describeConfigs(h *Handler, _ context.Context, r *wire.Request, req *kmsg.DescribeConfigsRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.DescribeConfigsResponse)
	img := h.cluster.Image()
	for i := range req.Resources {
		rr := &req.Resources[i]
		wr := kmsg.NewDescribeConfigsResponseResource()
		wr.ResourceType, wr.ResourceName = rr.ResourceType, rr.ResourceName
		all, err := h.resourceConfigs(img, rr)
		if err != nil {
			wr.ErrorCode, wr.ErrorMessage = h.code(r.Key, err), message(err)
		}
		wr.Configs = make([]kmsg.DescribeConfigsResponseResourceConfig, 0, len(all))
		for j := range all {
			if len(rr.ConfigNames) == 0 || slices.Contains(rr.ConfigNames, all[j].name) {
				wr.Configs = append(wr.Configs, all[j].answer(req))
			}
		}
		resp.Resources = append(resp.Resources, wr)
	}
	return resp
}

// shownConfig is one setting of a topic or a node with all its values.
type shownConfig struct {
	name     string
	typ      kmsg.ConfigType
	doc      string
	readOnly bool
	// values are where it may come from, the one that holds first.
	values []namedValue
}

// namedValue is a value under the name it is set by.
type namedValue struct {
	name string
	configValue
}

func (c *shownConfig) answer(req *kmsg.DescribeConfigsRequest) kmsg.DescribeConfigsResponseResourceConfig {
	wc := kmsg.NewDescribeConfigsResponseResourceConfig()
	v := c.values[0]
	wc.Name, wc.Value, wc.Source = c.name, &v.value, v.source
	wc.ReadOnly = c.readOnly
	wc.IsDefault = v.source == kmsg.ConfigSourceDefaultConfig
	wc.ConfigType = c.typ
	if req.IncludeDocumentation && c.doc != "" {
		wc.Documentation = &c.doc
	}
	wc.ConfigSynonyms = []kmsg.DescribeConfigsResponseResourceConfigConfigSynonym{}
	if req.IncludeSynonyms {
		for i := range c.values {
			s := kmsg.NewDescribeConfigsResponseResourceConfigConfigSynonym()
			s.Name, s.Value, s.Source = c.values[i].name, &c.values[i].value, c.values[i].source
			wc.ConfigSynonyms = append(wc.ConfigSynonyms, s)
		}
	}
	return wc
}

func (h *Handler) resourceConfigs(img *metadata.Image, rr *kmsg.DescribeConfigsRequestResource) ([]shownConfig, error) {
	switch rr.ResourceType {
	case kmsg.ConfigResourceTypeTopic:
		if err := checkTopicName(rr.ResourceName); err != nil && !reserved[rr.ResourceName] {
			return nil, err
		}
		t, err := findTopic(img, rr.ResourceName, metadata.TopicID{}, false)
		if err != nil {
			return nil, err
		}
		return h.shownTopic(t), nil
	case kmsg.ConfigResourceTypeBroker:
		if rr.ResourceName == "" {
			return nil, nil // settings of all brokers together: there are none
		}
		node, err := findBroker(img, rr.ResourceName)
		if err != nil {
			return nil, err
		}
		return h.shownNode(node), nil
	default:
		return nil, failf(kerr.InvalidRequest, "settings of resource type %d are not served", rr.ResourceType)
	}
}

func findBroker(img *metadata.Image, name string) (ident.NodeID, error) {
	n, err := strconv.ParseInt(name, 10, 32)
	if err != nil || img.Broker(ident.NodeID(n)) == nil {
		return 0, failf(kerr.InvalidRequest, "there is no broker %q", name)
	}
	return ident.NodeID(n), nil
}

func (h *Handler) shownTopic(t *metadata.Topic) []shownConfig {
	all := make([]shownConfig, len(topicConfigs))
	for i := range topicConfigs {
		d := &topicConfigs[i]
		all[i] = shownConfig{name: d.name, typ: d.typ, doc: d.doc}
		for _, v := range h.effective(t.Configs, d) {
			name := d.name
			if v.source != kmsg.ConfigSourceDynamicTopicConfig && d.broker != "" {
				name = d.broker
			}
			all[i].values = append(all[i].values, namedValue{name, v})
		}
	}
	return all
}

// shownNode are the settings of a node. All nodes of a cluster are taken to be
// set alike; what is known of this one stands for the one asked about, but for
// what names a node.
func (h *Handler) shownNode(node ident.NodeID) []shownConfig {
	c := &h.config
	static := map[string]string{}
	maps.Copy(static, c.Node)
	static["auto.create.topics.enable"] = strconv.FormatBool(c.AutoCreateTopics)
	static["broker.id"], static["node.id"] = node.String(), node.String()
	static["default.replication.factor"] = strconv.Itoa(int(c.ReplicationFactor))
	static["delete.topic.enable"] = "true"
	static["min.insync.replicas"] = strconv.Itoa(int(c.MinInsyncReplicas))
	static["num.partitions"] = strconv.Itoa(int(c.DefaultPartitions))
	if node == h.cluster.Self() && c.DataDir != "" {
		static["log.dirs"] = c.DataDir
	}
	shown := make([]shownConfig, 0, len(static)+len(topicConfigs))
	for name, value := range static {
		v := configValue{value, kmsg.ConfigSourceStaticBrokerConfig}
		shown = append(shown, shownConfig{name: name, typ: typeOf(value), readOnly: true, values: []namedValue{{name, v}}})
	}
	for i := range topicConfigs {
		d := &topicConfigs[i]
		if _, known := static[d.broker]; d.broker == "" || known {
			continue
		}
		s := shownConfig{name: d.broker, typ: d.typ, doc: d.doc, readOnly: true}
		for _, v := range h.effective(nil, d) {
			s.values = append(s.values, namedValue{d.broker, v})
		}
		shown = append(shown, s)
	}
	slices.SortFunc(shown, func(a, b shownConfig) int {
		if a.name < b.name {
			return -1
		}
		return 1
	})
	return shown
}

// typeOf guesses the type of a node's setting from its value.
func typeOf(value string) kmsg.ConfigType {
	if value == "true" || value == "false" {
		return kmsg.ConfigTypeBoolean
	}
	if _, err := strconv.ParseInt(value, 10, 32); err == nil {
		return kmsg.ConfigTypeInt
	}
	if _, err := strconv.ParseInt(value, 10, 64); err == nil {
		return kmsg.ConfigTypeLong
	}
	return kmsg.ConfigTypeString
}
