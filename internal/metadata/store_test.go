package metadata

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"chronik/internal/ident"
)

func TestStoreWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := cluster(t, 1)
		got := make(chan ident.Index, 1)
		go func() {
			img, err := m.store.WaitFor(t.Context(), m.img().Index+2)
			if err != nil {
				t.Error(err)
			}
			got <- img.Index
		}()
		synctest.Wait()
		want := m.img().Index + 2
		m.topic("a", 1, 1)
		synctest.Wait()
		if len(got) != 0 {
			t.Fatal("too early")
		}
		m.topic("b", 1, 1)
		if i := <-got; i != want {
			t.Fatalf("index %d, want %d", i, want)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := m.store.WaitFor(ctx, 1<<40); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	})
}

func TestStoreWatchSeesEveryStepOnce(t *testing.T) {
	m := cluster(t, 1)
	var seen []string
	stop := m.store.Watch(func(old, cur *Image) {
		seen = append(seen, fmt.Sprintf("%d>%d", old.TopicCount(), cur.TopicCount()))
	})
	m.topic("a", 1, 1)
	m.topic("b", 1, 1)
	stop()
	m.topic("c", 1, 1)
	if len(seen) != 2 || seen[0] != "0>1" || seen[1] != "1>2" {
		t.Fatal(seen)
	}
}

func TestStoreNeverGoesBack(t *testing.T) {
	m := cluster(t, 1)
	m.topic("a", 1, 1)
	img := m.img()
	// The metadata replica is replaced and starts over with an older snapshot.
	sm, err := Open(m.store)(nil, "g1", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.sm, m.index = sm.(*StateMachine), 0
	m.do(&Genesis{ClusterID: "c", Members: GenesisMembers(map[ident.NodeID]ident.StoreID{1: storeID(1)}), Coordinators: 2})
	if m.img() != img {
		t.Fatal("the current image went back")
	}
}

func TestStoreConcurrentReaders(t *testing.T) {
	m := cluster(t, 3)
	m.topic("t0", 4, 3)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				img := m.img()
				for p, r := range img.PartitionsOn(2) {
					if p.Replica(r.ID) == nil {
						t.Error("index and group differ")
					}
				}
				checkImage(t, img)
				img.DryRun(&CreateTopics{Topics: []NewTopic{{Name: "x", ID: topicID(9999), Partitions: 3, ReplicationFactor: 2}}})
			}
		})
	}
	for i := 1; i < 60; i++ {
		m.topic(fmt.Sprint("t", i), 2, 2)
		m.must(registration(2, 100+i, map[bool]int{true: 2, false: 99 + i}[i == 1]))
		if i%3 == 0 {
			m.must(&DeleteTopics{Topics: []TopicRef{{Name: fmt.Sprint("t", i-1)}}})
		}
	}
	cancel()
	wg.Wait()
}

func TestCaptureIsPinned(t *testing.T) {
	m := cluster(t, 1)
	m.topic("a", 1, 1)
	want := string(encoded(t, m.img()))
	c, err := m.sm.Capture()
	if err != nil {
		t.Fatal(err)
	}
	m.must(&DeleteTopics{Topics: []TopicRef{{Name: "a"}}})
	if got := string(encoded(t, c.(capture).img)); got != want || len(c.Files()) != 0 {
		t.Fatal("a later entry is in the capture")
	}
	c.Published()
	c.Release()
}

func TestDeletedTopics(t *testing.T) {
	m := cluster(t, 1)
	m.topic("a", 1, 1)
	m.topic("b", 1, 1)
	m.topic("d", 1, 1)
	old := m.img()
	m.must(&DeleteTopics{Topics: []TopicRef{{Name: "a"}, {Name: "b"}}})
	m.topic("b", 1, 1) // made anew
	m.topic("c", 1, 1)
	if got := DeletedTopics(old, m.img()); !slices.Equal(got, []string{"a", "b"}) {
		t.Fatal(got)
	}
	if got := DeletedTopics(m.img(), old); got != nil {
		t.Fatalf("an older image tells nothing: %v", got)
	}
}
