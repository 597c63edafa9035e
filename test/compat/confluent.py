"""confluent-kafka (librdkafka): 10,000 numbered records with acks=all, read alone and by a group of two.
usage: confluent.py BOOTSTRAP TOPIC N"""

import sys
import threading

import confluent_kafka
from confluent_kafka import Consumer, Producer, TopicPartition


def main():
    bootstrap, topic, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
    at, failed = {}, []

    def delivered(err, msg):
        if err is not None:
            failed.append(err)
        else:
            at[(msg.partition(), msg.offset())] = msg.value()

    for idempotent, codec, lo, hi in ((True, "lz4", 0, n // 2), (False, "zstd", n // 2, n)):
        p = Producer({"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": idempotent,
                      "compression.type": codec, "linger.ms": 5})
        for i in range(lo, hi):
            while True:
                try:
                    p.produce(topic, key=b"%d" % (i % 97), value=b"n-%d" % i, on_delivery=delivered)
                    break
                except BufferError:
                    p.poll(0.1)
        left = p.flush(60)
        assert left == 0, f"{left} not delivered"
    assert not failed, failed[:3]
    assert len(at) == n
    alone(bootstrap, topic, at)
    group(bootstrap, topic, at)
    print(f"confluent-kafka {confluent_kafka.version()[0] if isinstance(confluent_kafka.version(), tuple) else confluent_kafka.version()} "
          f"(librdkafka {confluent_kafka.libversion()[0]}): ok")


def drain(c, got, until):
    for m in c.consume(500, 0.5):
        assert m.error() is None, m.error()
        got[(m.partition(), m.offset())] = m.value()
    return until()


def alone(bootstrap, topic, at):
    c = Consumer({"bootstrap.servers": bootstrap, "group.id": "unused", "enable.auto.commit": False})
    parts = c.list_topics(topic, 10).topics[topic].partitions
    c.assign([TopicPartition(topic, p, 0) for p in parts])
    got = {}
    for _ in range(200):
        if drain(c, got, lambda: len(got) >= len(at)):
            break
    c.close()
    assert got == at, f"alone: {len(got)} of {len(at)}"


def group(bootstrap, topic, at):
    got, lock, done = {}, threading.Lock(), threading.Event()
    shares, errors = [0, 0], []

    def member(i):
        try:
            c = Consumer({"bootstrap.servers": bootstrap, "group.id": f"{topic}-group", "auto.offset.reset": "earliest",
                          "partition.assignment.strategy": "cooperative-sticky"})
            c.subscribe([topic])
            while not done.is_set():
                for m in c.consume(500, 0.3):
                    assert m.error() is None, m.error()
                    with lock:
                        got[(m.partition(), m.offset())] = m.value()
                shares[i] = max(shares[i], len(c.assignment()))
                with lock:
                    if len(got) >= len(at) and all(shares):
                        done.set()
            c.close()
        except Exception as e:  # reported below: a thread's exception fails nothing by itself
            errors.append(e)
            done.set()

    threads = [threading.Thread(target=member, args=(i,), daemon=True) for i in (0, 1)]
    for t in threads:
        t.start()
    finished = done.wait(90)
    done.set()
    for t in threads:
        t.join(20)
    assert not errors, errors
    assert finished, f"group: {len(got)} of {len(at)}, shares {shares}"
    assert got == at


if __name__ == "__main__":
    main()
