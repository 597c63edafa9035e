"""Start, create, produce, consume, node failure and recovery, with kafka-python 2.0.2
speaking the protocol of 0.10."""

import time

from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic

from cluster import Cluster

API = (0, 10, 0)
N = 600


def main():
    with Cluster() as c:
        admin = KafkaAdminClient(bootstrap_servers=c.bootstrap())
        admin.create_topics([NewTopic("events", 3, 3)])
        assert "events" in admin.list_topics()
        admin.close()
        producer = KafkaProducer(bootstrap_servers=c.bootstrap(), api_version=API, acks="all", retries=50,
                                 retry_backoff_ms=50, max_in_flight_requests_per_connection=1)
        acked = {}
        victim = c.leader("events-0")
        for i in range(N):
            if i == N // 3:
                c.kill(victim)
            if i == 2 * N // 3:
                c.restart(victim)
            key, value = b"key-%d" % (i % 7), b"value-%06d" % i
            md = producer.send("events", key=key, value=value).get(30)
            acked[(md.partition, md.offset)] = value
        producer.close()
        assert len(acked) == N, f"{N} sends gave {len(acked)} distinct positions"
        c.ready(victim)
        consumer = KafkaConsumer("events", bootstrap_servers=c.bootstrap(), api_version=API, group_id="readers",
                                 auto_offset_reset="earliest", consumer_timeout_ms=15000)
        got = {}
        order = {}
        deadline = time.monotonic() + 60
        for msg in consumer:
            got[(msg.partition, msg.offset)] = msg.value
            assert order.get(msg.partition, -1) < msg.offset, "offsets went back"
            order[msg.partition] = msg.offset
            if len(got) >= N and all(k in got for k in acked) or time.monotonic() > deadline:
                break
        consumer.commit()
        consumer.close()
        lost = {k: v for k, v in acked.items() if got.get(k) != v}
        assert not lost, f"{len(lost)} acknowledged records lost or changed: {list(lost.items())[:3]}"
        for p in range(3):
            top = c.replica(c.leader(f"events-{p}"), f"events-{p}")["high_watermark"]
            c.wait_equal("events", p, top, 10)
        print(f"failover: {N} records acknowledged over the death and return of node {victim}, none lost")


if __name__ == "__main__":
    main()
