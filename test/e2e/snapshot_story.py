"""The snapshot story with kafka-python 2.0.2 speaking the protocol of 0.10: 150 records,
node 3 dies, 100 more, the leader's log no longer reaches back, node 3 returns."""

import sys

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

from cluster import Cluster, eventually

API = (0, 10, 0)


def produce(producer, first, n):
    for i in range(first, first + n):  # one record a request: one Raft entry each
        md = producer.send("orders", value=b"record-%06d" % i, partition=0).get(20)
        assert md.offset == i, f"record {i} got offset {md.offset}"


def read_all(cluster, n):
    consumer = KafkaConsumer(bootstrap_servers=cluster.bootstrap(), api_version=API,
                             auto_offset_reset="earliest", consumer_timeout_ms=8000, enable_auto_commit=False)
    consumer.assign([TopicPartition("orders", 0)])
    consumer.seek_to_beginning()
    got = []
    for msg in consumer:
        got.append((msg.offset, msg.value))
        if len(got) == n:
            break
    consumer.close()
    assert got == [(i, b"record-%06d" % i) for i in range(n)], f"read {len(got)} of {n}: {got[:3]} ... {got[-3:]}"


def story(disk):
    with Cluster("--snapshot-threshold", "100", "--set", "topic.default_partitions=1") as c:
        admin = KafkaAdminClient(bootstrap_servers=c.bootstrap())
        admin.create_topics([NewTopic("orders", 1, 3)])
        admin.close()
        producer = KafkaProducer(bootstrap_servers=c.bootstrap(), api_version=API, acks="all", retries=20, linger_ms=0)
        produce(producer, 0, 150)
        eventually(10, "node 3 has all", lambda: c.replica(3, "orders-0")["high_watermark"] == 150)
        before = c.replica(3, "orders-0")
        c.kill(3)
        produce(producer, 150, 100)
        eventually(10, "the leader trims past node 3",
                   lambda: c.replica(c.leader("orders-0"), "orders-0")["first_index"] > before["last_index"] + 1)
        if disk == "empty":
            c.wipe(3)
        c.restart(3)
        took = c.wait_equal("orders", 0, 250, 5)
        after = c.replica(3, "orders-0")
        assert after["snapshots_installed"] >= 1, after
        assert after["entries_replayed"] <= 110, after
        if disk == "intact":
            assert after["snapshot_bytes_reused"] > 0, after
        read_all(c, 250)
        producer.close()
        print(f"snapshot story, {disk} disk: equal after {took:.2f}s, "
              f"{after['snapshot_bytes_received']} bytes received, {after['snapshot_bytes_reused']} reused, "
              f"{after['entries_replayed']} entries replayed")


if __name__ == "__main__":
    for which in sys.argv[1:] or ("intact", "empty"):
        story(which)
