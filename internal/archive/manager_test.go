package archive

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"chronik/internal/bucket"
	"chronik/internal/ident"
)

// leading is a node with one group, as its Manager sees it.
type leading struct {
	*rig
	mu   sync.Mutex
	led  bool
	term ident.Term
	at   ident.Index
	meta bool
}

func (l *leading) Led() []Led {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.led {
		return nil
	}
	return []Led{{Info: Info{Group: testGroup, Name: "orders-0", Topic: "orders"}, Term: l.term, Checkpoint: l.at, Prompt: l.meta}}
}

func (l *leading) Hold(context.Context, ident.GroupID) (Held, error) {
	p, err := l.server.Pin(testGroup, 70, l.dir, 0)
	return Held{Pin: p, LogStartOffset: 1, NextOffset: 2}, err
}

// take takes a checkpoint, and the Manager may see it.
func (l *leading) take(index ident.Index) {
	l.checkpoint(index)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at = index
}

// newest is the index of the newest snapshot that is whole.
func (l *leading) newest() ident.Index {
	return must(l.c.newestWhole(context.Background(), testGroup))
}

// lockedLog is what a Manager logs.
type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// manage runs a Manager for the test's time. log gets what it logs.
func manage(t *testing.T, log *lockedLog) (*leading, *Manager) {
	l := &leading{rig: newRig(t), led: true, term: 6}
	l.append("0.log", noise(1, 5000))
	m := NewManager(ManagerOptions{
		Cluster: l.c, Node: 1, Groups: l, Pins: l.server, Keep: 2, Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { m.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return l, m
}

// TestManager uploads new checkpoints at most once an interval, those of a prompt
// group at once, keeps as many as it is told, and stops when it does not lead.
func TestManager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, m := manage(t, &lockedLog{})
		look := func(d time.Duration, want ident.Index) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if got := l.newest(); got != want {
				t.Fatalf("newest is %d, want %d", got, want)
			}
		}
		l.take(10)
		look(2*lookEvery, 10)
		l.take(20)
		look(30*time.Second, 10)
		look(31*time.Second, 20)
		l.mu.Lock()
		l.meta = true
		l.mu.Unlock()
		for i := range ident.Index(3) {
			l.take(30 + i)
			look(2*lookEvery, 30+i)
		}
		if n := l.count("manifests"); n != 2 {
			t.Fatalf("%d snapshots are kept", n)
		}
		st := m.Stats()
		if st.Uploads != 5 || st.Failures != 0 || st.Led != 1 || st.Behind != 0 || st.SnapshotsRemoved != 3 || st.LastSuccess == 0 {
			t.Fatalf("%+v", st)
		}
		l.mu.Lock()
		l.led = false
		l.mu.Unlock()
		l.take(40)
		look(time.Hour, 32)
		// It leads again, in another term: what is there is looked up, not sent again.
		l.mu.Lock()
		l.led, l.term, l.at = true, 9, 32
		l.mu.Unlock()
		look(2*lookEvery, 32)
		if st := m.Stats(); st.Uploads != 5 || l.count("terms") != 1 {
			t.Fatalf("%+v, %d claims", st, l.count("terms"))
		}
	})
}

// TestManagerAndBadStores has the store fail in every way: one line a try, fewer and
// fewer tries, and all is well once the store is.
func TestManagerAndBadStores(t *testing.T) {
	for name, fault := range map[string]func(b *bucket.Mem) (heal func()){
		"fails": func(b *bucket.Mem) func() {
			b.Fault(func(bucket.Op, string) error { return errors.New("out of order") })
			return func() { b.Fault(nil) }
		},
		"hangs": func(b *bucket.Mem) func() {
			b.Fault(func(bucket.Op, string) error { return bucket.ErrHang })
			return func() { b.Fault(nil) }
		},
		"is read-only": func(b *bucket.Mem) func() { b.ReadOnly(true); return func() { b.ReadOnly(false) } },
		"loses objects": func(b *bucket.Mem) func() {
			b.Fault(func(op bucket.Op, _ string) error {
				if op == bucket.OpPutIfAbsent {
					for _, n := range b.Names(testCluster + "/groups/7/objects/") {
						b.Lose(n)
					}
				}
				return nil
			})
			return func() { b.Fault(nil) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log lockedLog
				l, m := manage(t, &log)
				heal := fault(l.b)
				l.take(10)
				time.Sleep(time.Hour + time.Minute)
				synctest.Wait()
				st := m.Stats()
				if st.Failures == 0 || st.Failures > 40 || st.Behind != 1 || int64(strings.Count(log.String(), "Failed to upload")) != st.Failures {
					t.Fatalf("%+v\n%s", st, log.String())
				}
				heal()
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				if l.newest() != 10 || m.Stats().Behind != 0 {
					t.Fatalf("newest is %d, %+v\n%s", l.newest(), m.Stats(), log.String())
				}
				if st := l.server.Stats(); st.Pins != 0 {
					t.Fatalf("%d pins left", st.Pins)
				}
			})
		})
	}
}

// TestManagerReplacesWhatIsLost: an emptied bucket gets the checkpoint again.
func TestManagerReplacesWhatIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := manage(t, &lockedLog{})
		l.take(10)
		time.Sleep(time.Minute)
		for _, n := range l.b.Names("") {
			l.b.Lose(n)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if l.newest() != 10 {
			t.Fatal("it is not there again")
		}
	})
}

// TestManagerCollectsAfterAFailure also if nothing more is uploaded: else nobody sees what is lost.
func TestManagerCollectsAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedLog
		l, m := manage(t, &log)
		l.b.Fault(func(op bucket.Op, _ string) error {
			if op == bucket.OpDelete {
				return errors.New("slow down")
			}
			return nil
		})
		l.take(10)
		time.Sleep(3 * time.Second)
		l.b.Fault(nil)
		if st := m.Stats(); st.Uploads != 1 || st.Failures == 0 {
			t.Fatalf("%+v\n%s", st, log.String())
		}
		time.Sleep(time.Minute)
		if n := l.count("terms"); n != 1 {
			t.Errorf("%d claims, one of them is the predecessor's", n)
		}
		for _, n := range l.b.Names("") {
			l.b.Lose(n)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if l.newest() != 10 {
			t.Fatal("what was lost is not there again")
		}
	})
}

// TestMuchGarbageIsNoFailure: what one look at the manifests does not suffice for is removed with the next ones.
func TestMuchGarbageIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedLog
		l, m := manage(t, &log)
		for i := range 50 {
			noErr(t, l.b.Put(t.Context(), l.c.objectName(testGroup, Sum{byte(i)}), []byte("left by an upload that died")))
		}
		l.b.Fault(func(op bucket.Op, _ string) error {
			if op == bucket.OpDelete {
				time.Sleep(time.Second)
			}
			return nil
		})
		l.take(10)
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if st := m.Stats(); st.Failures != 0 || st.ObjectsRemoved != 50 || l.count("terms") != 1 {
			t.Fatalf("%+v, %d claims\n%s", st, l.count("terms"), log.String())
		}
	})
}

// TestUploadNow goes to the store whatever the interval says, and tells who does not lead.
func TestUploadNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, m := manage(t, &lockedLog{})
		l.take(10)
		time.Sleep(20 * time.Second)
		l.take(20)
		if at, err := m.Upload(t.Context(), testGroup); err != nil || at != 20 || l.newest() != 20 {
			t.Fatalf("uploaded %d, %v", at, err)
		}
		if _, err := m.Upload(t.Context(), 99); !errors.Is(err, errNotLed) {
			t.Fatal(err)
		}
		l.b.Fault(func(bucket.Op, string) error { return bucket.ErrHang })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		l.take(30)
		if _, err := m.Upload(ctx, testGroup); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		l.b.Fault(nil)
	})
}
