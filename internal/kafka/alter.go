package kafka

import (
	"context"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"chronik/internal/metadata"
)

// alteration is one resource whose settings a request changes, whichever of the
// two requests it came with.
type alteration struct {
	typ  kmsg.ConfigResourceType
	name string
	// replace: the resource gets exactly these settings.
	replace bool
	ops     []metadata.ConfigAlterOp
	// err is the answer.
	err error
}

// alter checks the alterations, submits those that pass unless they are only to
// be validated, and leaves each one's outcome in it.
func (h *Handler) alter(ctx context.Context, all []alteration, validateOnly bool) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	img := h.cluster.Image()
	type resource struct {
		typ  kmsg.ConfigResourceType
		name string
	}
	times := map[resource]int{}
	for i := range all {
		times[resource{all[i].typ, all[i].name}]++
	}
	cmd := &metadata.AlterConfigs{}
	var slots []*alteration // of cmd.Resources
	for i := range all {
		a := &all[i]
		if times[resource{a.typ, a.name}] > 1 {
			a.err = failf(kerr.InvalidRequest, "the resource is named more than once")
			continue
		}
		if a.err = h.checkAlteration(img, a); a.err != nil {
			continue
		}
		cmd.Resources = append(cmd.Resources, metadata.AlterResource{
			Type: metadata.ResourceTopic, Name: strings.Clone(a.name), Replace: a.replace, Ops: a.ops,
		})
		slots = append(slots, a)
	}
	if len(cmd.Resources) == 0 {
		return
	}
	altered, err := submitOrTry[metadata.AlterConfigsResult](ctx, h, cmd, validateOnly)
	if err == nil && len(altered.Resources) != len(cmd.Resources) {
		err = errWrongResult(cmd, altered)
	}
	for i, a := range slots {
		switch {
		case err != nil:
			a.err = err
		case altered.Resources[i].Err != nil:
			a.err = altered.Resources[i].Err
		}
	}
}

// checkAlteration holds an alteration against what topics can be set to.
func (h *Handler) checkAlteration(img *metadata.Image, a *alteration) error {
	switch a.typ {
	case kmsg.ConfigResourceTypeTopic:
	case kmsg.ConfigResourceTypeBroker:
		return failf(kerr.InvalidRequest, "a node's settings are in its configuration; they cannot be altered by request")
	default:
		return failf(kerr.InvalidRequest, "settings of resource type %d cannot be altered", a.typ)
	}
	t, err := findTopic(img, a.name, metadata.TopicID{}, false)
	if err != nil {
		return err
	}
	named := map[string]bool{}
	for i := range a.ops {
		op := &a.ops[i]
		if named[op.Name] {
			return failf(kerr.InvalidConfig, "%s is altered more than once", op.Name)
		}
		named[op.Name] = true
		if err := h.checkOp(t, op); err != nil {
			return err
		}
	}
	return nil
}

// checkOp checks one operation. Appending and subtracting is checked against the
// value that the topic has now; where that is a default, which the metadata does
// not know, the operation becomes the setting of the outcome.
func (h *Handler) checkOp(t *metadata.Topic, op *metadata.ConfigAlterOp) error {
	d := topicConfig(op.Name)
	if d == nil {
		return failf(kerr.InvalidConfig, "topics have no setting %q", op.Name)
	}
	if op.Op == metadata.OpDelete {
		return nil
	}
	if op.Value == nil {
		return failf(kerr.InvalidConfig, "%s has no value", op.Name)
	}
	switch op.Op {
	case metadata.OpSet:
		return checkConfig(op.Name, *op.Value)
	case metadata.OpAppend, metadata.OpSubtract:
	default:
		return failf(kerr.InvalidRequest, "there is no operation %d", op.Op)
	}
	if d.typ != kmsg.ConfigTypeList {
		return failf(kerr.InvalidConfig, "%s is not a list", op.Name)
	}
	change := splitList(*op.Value)
	items := splitList(h.effective(t.Configs, d)[0].value)
	items = slices.DeleteFunc(items, func(s string) bool { return slices.Contains(change, s) })
	if op.Op == metadata.OpAppend {
		items = append(items, change...)
	}
	outcome := strings.Join(items, ",")
	if _, set := t.Configs[op.Name]; !set {
		op.Op, op.Value = metadata.OpSet, &outcome
	}
	return checkConfig(op.Name, outcome)
}
