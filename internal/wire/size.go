package wire

import "github.com/twmb/franz-go/pkg/kmsg"

// sizeOfItem is about what the fixed fields of an array's element take, encoded or in memory.
const sizeOfItem = 128

// sizeHint is about the size of a response, encoded or in memory, whichever is more: exact for records, a guess
// by counts and names for the rest. A connection's answers that wait are bounded by it, and so is what one write collects. It
// costs far less than encoding.
func sizeHint(resp kmsg.Response) int {
	const rest = 512
	switch r := resp.(type) {
	case *kmsg.FetchResponse:
		return rest + fetchSize(r)
	case *kmsg.MetadataResponse:
		return rest + metadataSize(r)
	case *kmsg.OffsetFetchResponse:
		return rest + offsetFetchSize(r)
	case *kmsg.DescribeConfigsResponse:
		return rest + describeConfigsSize(r)
	case *kmsg.SyncGroupResponse:
		return rest + len(r.MemberAssignment)
	case *kmsg.JoinGroupResponse:
		return rest + sum(r.Members, func(m *kmsg.JoinGroupResponseMember) int {
			return len(m.MemberID) + text(m.InstanceID) + len(m.ProtocolMetadata)
		})
	case *kmsg.DescribeGroupsResponse:
		return rest + sum(r.Groups, func(g *kmsg.DescribeGroupsResponseGroup) int {
			return len(g.Group) + sum(g.Members, func(m *kmsg.DescribeGroupsResponseGroupMember) int {
				return len(m.MemberID) + text(m.InstanceID) + len(m.ClientID) + len(m.ProtocolMetadata) + len(m.MemberAssignment)
			})
		})
	case *kmsg.ListGroupsResponse:
		return rest + sum(r.Groups, func(g *kmsg.ListGroupsResponseGroup) int { return len(g.Group) + len(g.ProtocolType) })
	case *kmsg.DescribeLogDirsResponse:
		return rest + sum(r.Dirs, func(d *kmsg.DescribeLogDirsResponseDir) int {
			return sum(d.Topics, func(t *kmsg.DescribeLogDirsResponseDirTopic) int { return len(t.Topic) + sizeOfItem*len(t.Partitions) })
		})
	case *kmsg.DescribeClusterResponse:
		return rest + sizeOfItem*len(r.Brokers)
	}
	return rest + echoSize(resp)
}

// echoSize is about the size of what mostly repeats the names of its request.
func echoSize(resp kmsg.Response) int {
	switch r := resp.(type) {
	case *kmsg.ProduceResponse:
		return sum(r.Topics, func(t *kmsg.ProduceResponseTopic) int {
			return len(t.Topic) + sum(t.Partitions, func(p *kmsg.ProduceResponseTopicPartition) int {
				return text(p.ErrorMessage) + len(p.ErrorRecords)*(sizeOfItem+text(p.ErrorMessage))
			})
		})
	case *kmsg.ListOffsetsResponse:
		return sum(r.Topics, func(t *kmsg.ListOffsetsResponseTopic) int { return len(t.Topic) + sizeOfItem*len(t.Partitions) })
	case *kmsg.OffsetForLeaderEpochResponse:
		return sum(r.Topics, func(t *kmsg.OffsetForLeaderEpochResponseTopic) int {
			return len(t.Topic) + sizeOfItem*len(t.Partitions)
		})
	case *kmsg.OffsetCommitResponse:
		return sum(r.Topics, func(t *kmsg.OffsetCommitResponseTopic) int { return len(t.Topic) + sizeOfItem*len(t.Partitions) })
	case *kmsg.OffsetDeleteResponse:
		return sum(r.Topics, func(t *kmsg.OffsetDeleteResponseTopic) int { return len(t.Topic) + sizeOfItem*len(t.Partitions) })
	case *kmsg.DeleteRecordsResponse:
		return sum(r.Topics, func(t *kmsg.DeleteRecordsResponseTopic) int { return len(t.Topic) + sizeOfItem*len(t.Partitions) })
	case *kmsg.CreateTopicsResponse:
		return sum(r.Topics, func(t *kmsg.CreateTopicsResponseTopic) int {
			return len(t.Topic) + text(t.ErrorMessage) + sum(t.Configs, func(c *kmsg.CreateTopicsResponseTopicConfig) int { return len(c.Name) + text(c.Value) })
		})
	case *kmsg.DeleteTopicsResponse:
		return sum(r.Topics, func(t *kmsg.DeleteTopicsResponseTopic) int { return text(t.Topic) + text(t.ErrorMessage) })
	case *kmsg.CreatePartitionsResponse:
		return sum(r.Topics, func(t *kmsg.CreatePartitionsResponseTopic) int { return len(t.Topic) + text(t.ErrorMessage) })
	case *kmsg.AlterConfigsResponse:
		return sum(r.Resources, func(a *kmsg.AlterConfigsResponseResource) int { return len(a.ResourceName) + text(a.ErrorMessage) })
	case *kmsg.IncrementalAlterConfigsResponse:
		return sum(r.Resources, func(a *kmsg.IncrementalAlterConfigsResponseResource) int {
			return len(a.ResourceName) + text(a.ErrorMessage)
		})
	case *kmsg.FindCoordinatorResponse:
		return sum(r.Coordinators, func(c *kmsg.FindCoordinatorResponseCoordinator) int {
			return len(c.Key) + len(c.Host) + text(c.ErrorMessage)
		})
	case *kmsg.LeaveGroupResponse:
		return sum(r.Members, func(m *kmsg.LeaveGroupResponseMember) int { return len(m.MemberID) + text(m.InstanceID) })
	case *kmsg.DeleteGroupsResponse:
		return sum(r.Groups, func(g *kmsg.DeleteGroupsResponseGroup) int { return len(g.Group) })
	}
	return 0
}

// sum adds up what size says of each element, and the rest of it.
func sum[T any](s []T, size func(*T) int) int {
	n := sizeOfItem * len(s)
	for i := range s {
		n += size(&s[i])
	}
	return n
}

func text(s *string) int {
	if s == nil {
		return 0
	}
	return len(*s)
}

func fetchSize(r *kmsg.FetchResponse) int {
	n := 0
	for i := range r.Topics {
		n += 64 + len(r.Topics[i].Topic)
		for j := range r.Topics[i].Partitions {
			n += 64 + len(r.Topics[i].Partitions[j].RecordBatches)
		}
	}
	return n
}

func metadataSize(r *kmsg.MetadataResponse) int {
	return sizeOfItem*len(r.Brokers) + sum(r.Topics, func(t *kmsg.MetadataResponseTopic) int {
		return text(t.Topic) + sum(t.Partitions, func(p *kmsg.MetadataResponseTopicPartition) int {
			return 4 * (len(p.Replicas) + len(p.ISR) + len(p.OfflineReplicas))
		})
	})
}

func offsetFetchSize(r *kmsg.OffsetFetchResponse) int {
	n := sum(r.Topics, func(t *kmsg.OffsetFetchResponseTopic) int {
		return len(t.Topic) + sum(t.Partitions, func(p *kmsg.OffsetFetchResponseTopicPartition) int { return text(p.Metadata) })
	})
	return n + sum(r.Groups, func(g *kmsg.OffsetFetchResponseGroup) int {
		return len(g.Group) + sum(g.Topics, func(t *kmsg.OffsetFetchResponseGroupTopic) int {
			return len(t.Topic) + sum(t.Partitions, func(p *kmsg.OffsetFetchResponseGroupTopicPartition) int { return text(p.Metadata) })
		})
	})
}

func describeConfigsSize(r *kmsg.DescribeConfigsResponse) int {
	return sum(r.Resources, func(d *kmsg.DescribeConfigsResponseResource) int {
		return len(d.ResourceName) + text(d.ErrorMessage) + sum(d.Configs, func(c *kmsg.DescribeConfigsResponseResourceConfig) int {
			return len(c.Name) + text(c.Value) + text(c.Documentation) +
				sum(c.ConfigSynonyms, func(s *kmsg.DescribeConfigsResponseResourceConfigConfigSynonym) int {
					return len(s.Name) + text(s.Value)
				})
		})
	})
}
