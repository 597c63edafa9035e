package kafka

import (
	"strconv"
	"time"
)

// adminTimeout bounds admin requests whose client names no timeout.
const adminTimeout = 30 * time.Second

// Keys of the APIs, as the protocol numbers them.
const (
	keyProduce                 = 0
	keyFetch                   = 1
	keyListOffsets             = 2
	keyMetadata                = 3
	keyOffsetCommit            = 8
	keyOffsetFetch             = 9
	keyFindCoordinator         = 10
	keyJoinGroup               = 11
	keyHeartbeat               = 12
	keyLeaveGroup              = 13
	keySyncGroup               = 14
	keyDescribeGroups          = 15
	keyListGroups              = 16
	keyAPIVersions             = 18
	keyCreateTopics            = 19
	keyDeleteTopics            = 20
	keyDeleteRecords           = 21
	keyInitProducerID          = 22
	keyOffsetForLeaderEpoch    = 23
	keyDescribeConfigs         = 32
	keyAlterConfigs            = 33
	keyDescribeLogDirs         = 35
	keyCreatePartitions        = 37
	keyDeleteGroups            = 42
	keyIncrementalAlterConfigs = 44
	keyOffsetDelete            = 47
	keyDescribeCluster         = 60
)

// api is one API key that is answered.
type api struct {
	key      int16
	min, max int16
	name     string
	serve    serveFunc
	slot     int // position in apis
}

// apis is what ApiVersions announces, in order of key. The least version is 0
// also where Kafka has dropped it: librdkafka decides by exact old versions what
// a broker can do.
var apis []api

// byKey finds an api by its key.
var byKey [keyDescribeCluster + 1]*api

// init fills the tables: a literal would refer to itself through ApiVersions.
func init() {
	apis = []api{
		{key: keyProduce, max: 13, name: "Produce", serve: serveProduce},
		{key: keyFetch, max: 18, name: "Fetch", serve: answer(fetchRecords)},
		{key: keyListOffsets, max: 10, name: "ListOffsets", serve: answer(listOffsets)},
		{key: keyMetadata, max: 13, name: "Metadata", serve: answer(clusterMetadata)},
		{key: keyOffsetCommit, max: 10, name: "OffsetCommit", serve: serveOffsetCommit},
		{key: keyOffsetFetch, max: 10, name: "OffsetFetch", serve: answer(offsetFetch)},
		{key: keyFindCoordinator, max: 6, name: "FindCoordinator", serve: answer(findCoordinator)},
		{key: keyJoinGroup, max: 9, name: "JoinGroup", serve: serveJoinGroup},
		{key: keyHeartbeat, max: 4, name: "Heartbeat", serve: serveHeartbeat},
		{key: keyLeaveGroup, max: 5, name: "LeaveGroup", serve: serveLeaveGroup},
		{key: keySyncGroup, max: 5, name: "SyncGroup", serve: serveSyncGroup},
		{key: keyDescribeGroups, max: 6, name: "DescribeGroups", serve: answer(describeGroups)},
		{key: keyListGroups, max: 5, name: "ListGroups", serve: answer(listGroups)},
		{key: keyAPIVersions, max: 4, name: "ApiVersions", serve: answer(apiVersions)},
		{key: keyCreateTopics, max: 7, name: "CreateTopics", serve: answer(createTopics)},
		{key: keyDeleteTopics, max: 6, name: "DeleteTopics", serve: answer(deleteTopics)},
		{key: keyDeleteRecords, max: 2, name: "DeleteRecords", serve: answer(deleteRecords)},
		{key: keyInitProducerID, max: 5, name: "InitProducerId", serve: answer(initProducerID)},
		{key: keyOffsetForLeaderEpoch, max: 4, name: "OffsetForLeaderEpoch", serve: answer(offsetForLeaderEpoch)},
		{key: keyDescribeConfigs, max: 4, name: "DescribeConfigs", serve: answer(describeConfigs)},
		{key: keyAlterConfigs, max: 2, name: "AlterConfigs", serve: answer(alterConfigs)},
		{key: keyDescribeLogDirs, max: 4, name: "DescribeLogDirs", serve: answer(describeLogDirs)},
		{key: keyCreatePartitions, max: 3, name: "CreatePartitions", serve: answer(createPartitions)},
		{key: keyDeleteGroups, max: 2, name: "DeleteGroups", serve: serveDeleteGroups},
		{key: keyIncrementalAlterConfigs, max: 1, name: "IncrementalAlterConfigs", serve: answer(incrementalAlterConfigs)},
		{key: keyOffsetDelete, max: 0, name: "OffsetDelete", serve: serveOffsetDelete},
		{key: keyDescribeCluster, max: 2, name: "DescribeCluster", serve: answer(describeCluster)},
	}
	for i := range apis {
		apis[i].slot = i
		byKey[apis[i].key] = &apis[i]
	}
}

// lookup finds an api; nil for a key that is not answered.
func lookup(key int16) *api {
	if key < 0 || int(key) >= len(byKey) {
		return nil
	}
	return byKey[key]
}

// apiName is a key's name in logs and metrics.
func apiName(key int16) string {
	if a := lookup(key); a != nil {
		return a.name
	}
	return strconv.Itoa(int(key))
}
