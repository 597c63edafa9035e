"""kafka-python: 10,000 numbered records with acks=all, read alone and by a group of two.
usage: kafka_python.py BOOTSTRAP TOPIC N [API_VERSION like 0.10.0]"""

import sys
import threading
import time

import kafka
from kafka import KafkaConsumer, KafkaProducer, TopicPartition


def main():
    bootstrap, topic, n = sys.argv[1].split(","), sys.argv[2], int(sys.argv[3])
    opts = {"bootstrap_servers": bootstrap}
    if len(sys.argv) > 4:
        opts["api_version"] = tuple(int(x) for x in sys.argv[4].split("."))
    producer = KafkaProducer(acks="all", retries=10, **opts)
    futures = [producer.send(topic, key=b"%d" % (i % 97), value=b"n-%d" % i) for i in range(n)]
    producer.flush(60)
    at = {}
    for i, f in enumerate(futures):
        md = f.get(30)
        at[(md.partition, md.offset)] = b"n-%d" % i
    producer.close()
    assert len(at) == n
    alone(opts, topic, at)
    group(opts, topic, at)
    print(f"kafka-python {kafka.__version__} api_version={sys.argv[4] if len(sys.argv) > 4 else 'detected'}: ok")


def alone(opts, topic, at):
    c = KafkaConsumer(auto_offset_reset="earliest", enable_auto_commit=False, consumer_timeout_ms=15000, **opts)
    parts = sorted(c.partitions_for_topic(topic))
    tps = [TopicPartition(topic, p) for p in parts]
    c.assign(tps)
    c.seek_to_beginning(*tps)
    got = {}
    for m in c:
        got[(m.partition, m.offset)] = m.value
        if len(got) >= len(at):
            break
    c.close()
    assert got == at, f"alone: {len(got)} of {len(at)}"


def group(opts, topic, at):
    got, lock, done = {}, threading.Lock(), threading.Event()
    shares, errors = [0, 0], []

    def member(i):
        try:
            c = KafkaConsumer(topic, group_id=f"{topic}-group", auto_offset_reset="earliest", **opts)
            while not done.is_set():
                for batch in c.poll(200).values():
                    with lock:
                        for m in batch:
                            got[(m.partition, m.offset)] = m.value
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
    began = time.monotonic()
    main()
