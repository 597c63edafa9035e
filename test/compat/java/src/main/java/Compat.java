import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.*;
import org.apache.kafka.common.utils.AppInfoParser;

/** The Java client: numbered records with acks=all, read alone and by a group of two. Args: bootstrap topic n. */
public class Compat {
    static String bootstrap, topic;

    static Properties props(Object... kv) {
        Properties p = new Properties();
        p.put("bootstrap.servers", bootstrap);
        for (int i = 0; i < kv.length; i += 2) p.put(kv[i], kv[i + 1]);
        return p;
    }

    static KafkaConsumer<byte[], byte[]> consumer(String group) {
        return new KafkaConsumer<>(props("group.id", group, "auto.offset.reset", "earliest",
                "partition.assignment.strategy", CooperativeStickyAssignor.class.getName()),
                new ByteArrayDeserializer(), new ByteArrayDeserializer());
    }

    static String key(int partition, long offset) { return partition + "@" + offset; }

    public static void main(String[] args) throws Exception {
        bootstrap = args[0];
        topic = args[1];
        int n = Integer.parseInt(args[2]);
        try (Admin admin = Admin.create(props())) {
            admin.createTopics(List.of(new NewTopic(topic, 4, (short) 3))).all().get(30, TimeUnit.SECONDS);
            if (admin.describeCluster().nodes().get().size() != 3) throw new AssertionError("describeCluster");
            if (admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).partitions().size() != 4) throw new AssertionError("describeTopics");
        }
        Map<String, String> at = new ConcurrentHashMap<>();
        try (KafkaProducer<byte[], byte[]> p = new KafkaProducer<>(props("acks", "all", "linger.ms", "5", "compression.type", "snappy"),
                new ByteArraySerializer(), new ByteArraySerializer())) {
            List<Future<RecordMetadata>> futures = new ArrayList<>();
            for (int i = 0; i < n; i++)
                futures.add(p.send(new ProducerRecord<>(topic, ("" + i % 97).getBytes(), ("n-" + i).getBytes())));
            for (int i = 0; i < n; i++) {
                RecordMetadata md = futures.get(i).get(30, TimeUnit.SECONDS);
                at.put(key(md.partition(), md.offset()), "n-" + i);
            }
        }
        if (at.size() != n) throw new AssertionError(at.size() + " positions for " + n);
        alone(at);
        group(at);
        System.out.println("Java client " + AppInfoParser.getVersion() + ": ok");
    }

    static void drain(ConsumerRecords<byte[], byte[]> rs, Map<String, String> got) {
        for (ConsumerRecord<byte[], byte[]> r : rs)
            got.put(key(r.partition(), r.offset()), new String(r.value(), StandardCharsets.UTF_8));
    }

    static void alone(Map<String, String> at) {
        Map<String, String> got = new HashMap<>();
        try (KafkaConsumer<byte[], byte[]> c = consumer("unused-" + topic)) {
            List<TopicPartition> tps = new ArrayList<>();
            c.partitionsFor(topic).forEach(i -> tps.add(new TopicPartition(topic, i.partition())));
            c.assign(tps);
            c.seekToBeginning(tps);
            long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
            while (got.size() < at.size() && System.nanoTime() < end) drain(c.poll(Duration.ofMillis(300)), got);
        }
        if (!got.equals(at)) throw new AssertionError("alone: " + got.size() + " of " + at.size());
    }

    static void group(Map<String, String> at) throws Exception {
        Map<String, String> got = new ConcurrentHashMap<>();
        AtomicBoolean done = new AtomicBoolean();
        int[] shares = new int[2];
        ExecutorService pool = Executors.newFixedThreadPool(2);
        List<Future<?>> members = new ArrayList<>();
        for (int i = 0; i < 2; i++) {
            int me = i;
            members.add(pool.submit(() -> {
                try (KafkaConsumer<byte[], byte[]> c = consumer("group-" + topic)) {
                    c.subscribe(List.of(topic));
                    while (!done.get()) {
                        drain(c.poll(Duration.ofMillis(200)), got);
                        shares[me] = Math.max(shares[me], c.assignment().size());
                        if (got.size() >= at.size() && shares[0] > 0 && shares[1] > 0) done.set(true);
                    }
                    c.commitSync();
                }
            }));
        }
        long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(90);
        while (!done.get() && System.nanoTime() < end) Thread.sleep(50);
        boolean finished = done.getAndSet(true);
        for (Future<?> m : members) m.get(20, TimeUnit.SECONDS);
        pool.shutdown();
        if (!finished || !got.equals(at)) throw new AssertionError("group: " + got.size() + " of " + at.size() + " shares " + Arrays.toString(shares));
    }
}
