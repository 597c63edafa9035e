"""The full lifecycle with kafka-python 2.0.2 speaking the protocol of 0.10: load from one
thread, the leader killed, a rolling restart of all nodes, then everything read back."""

import threading
import time

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import KafkaError

from cluster import Cluster, eventually

API = (0, 10, 0)


class Load(threading.Thread):
    """Sends numbered records one after the other and remembers what was acknowledged."""

    def __init__(self, cluster):
        super().__init__(daemon=True)
        self.producer = KafkaProducer(bootstrap_servers=cluster.bootstrap(), api_version=API, acks="all",
                                      retries=100, retry_backoff_ms=50, max_in_flight_requests_per_connection=1)
        self.acked = []
        self.unknown = 0
        self.stopping = threading.Event()

    def run(self):
        i = 0
        while not self.stopping.is_set() and i < 200_000:
            value = b"line-%07d" % i
            try:
                md = self.producer.send("life", value=value, partition=i % 2).get(30)
                self.acked.append((md.partition, md.offset, value))
            except KafkaError:
                self.unknown += 1  # may or may not be there
            i += 1
            time.sleep(0.001)
        self.producer.close()


def read(cluster, partition, until):
    consumer = KafkaConsumer(bootstrap_servers=cluster.bootstrap(), api_version=API, enable_auto_commit=False,
                             auto_offset_reset="earliest", consumer_timeout_ms=10000)
    tp = TopicPartition("life", partition)
    consumer.assign([tp])
    consumer.seek_to_beginning(tp)
    got = {}
    for msg in consumer:
        got[msg.offset] = msg.value
        if msg.offset + 1 >= until:
            break
    consumer.close()
    return got


def main():
    with Cluster("--snapshot-threshold", "500") as c:
        admin = KafkaAdminClient(bootstrap_servers=c.bootstrap())
        admin.create_topics([NewTopic("life", 2, 3)])
        load = Load(c)
        load.start()
        eventually(20, "load runs", lambda: len(load.acked) > 200)
        victim = c.leader("life-0")
        c.kill(victim)
        at = len(load.acked)
        eventually(20, "writes go on after the leader's death", lambda: len(load.acked) > at + 100)
        c.restart(victim)
        c.ready(victim)
        for node in (1, 2, 3):
            c.terminate(node)
            at = len(load.acked)
            eventually(20, f"writes go on without node {node}", lambda: len(load.acked) > at + 50)
            c.restart(node)
            c.ready(node)
        load.stopping.set()
        load.join(60)
        assert not load.is_alive(), "the producer hangs"
        for p in (0, 1):
            mine = [(o, v) for (q, o, v) in load.acked if q == p]
            assert [v for _, v in mine] == sorted(v for _, v in mine)
            got = read(c, p, max(o for o, _ in mine) + 1)
            lost = [(o, v) for o, v in mine if got.get(o) != v]
            assert not lost, f"partition {p}: {len(lost)} acknowledged records lost or changed: {lost[:3]}"
            assert [o for o, _ in mine] == sorted(o for o, _ in mine), "acknowledged offsets are out of order"
            high = c.replica(c.leader(f"life-{p}"), f"life-{p}")["high_watermark"]
            c.wait_equal("life", p, high, 10)
        admin.close()
        admin = KafkaAdminClient(bootstrap_servers=c.bootstrap())  # the old one's connections died with the nodes
        admin.delete_topics(["life"])
        eventually(10, "the topic is gone", lambda: "life" not in admin.list_topics())
        admin.close()
        print(f"lifecycle: {len(load.acked)} records acknowledged through a leader's death and a rolling restart, "
              f"none lost ({load.unknown} of unknown outcome)")


if __name__ == "__main__":
    main()
