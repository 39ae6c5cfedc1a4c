package redisstore_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/internal/testredis"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/redisstore"
)

// A pass that was broken off late is resumed on another server after a failover: what the old one's cursor says means nothing there.
func TestSweepBeginsAnewOnAnotherServer(t *testing.T) {
	url, primary, replica := testredis.StartFailover(t)
	s := open(t, redisstore.Options{URL: url})
	var items []store.Item
	const dead = 2000
	for i := range dead {
		items = append(items, store.Item{Key: fmt.Sprintf("kvt1:d:dead:%d", i), Value: []byte("x")}, store.Item{Key: fmt.Sprintf("kvt1:d:live:%d", i), Value: []byte("x")})
	}
	if err := s.Put(t.Context(), items, time.Hour); err != nil {
		t.Fatal(err)
	}
	replicated(t, primary, "mark", false)
	enough := errors.New("enough")
	from, err := s.Sweep(t.Context(), []string{"kvt1:d:none:"}, store.Sweep{}, func(done store.Sweep) error {
		if done.Scanned > dead*2*9/10 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || len(from.Cursors) != 1 {
		t.Fatalf("Sweep = %+v, %v", from, err)
	}
	c := redis.NewClient(&redis.Options{Addr: primary, MaxRetries: -1})
	_ = c.ShutdownNoSave(t.Context()).Err()
	_ = c.Close()
	r := redis.NewClient(&redis.Options{Addr: replica})
	defer r.Close()
	for end := time.Now().Add(time.Minute); r.Do(t.Context(), "role").Val().([]any)[0] != "master"; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody takes over")
		}
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) { // until the client has heard of it
		done, err := s.Sweep(t.Context(), []string{"kvt1:d:dead:"}, from, nil)
		if err == nil {
			if done.Nodes != 1 || len(done.Cursors) != 1 {
				t.Errorf("done: %+v", done)
			}
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		from = done
	}
	if n, err := s.CountPrefix(t.Context(), "kvt1:d:dead:"); n != 0 || err != nil {
		t.Errorf("%d dead keys are left, %v", n, err)
	}
	if n, err := s.CountPrefix(t.Context(), "kvt1:d:live:"); n != dead || err != nil {
		t.Errorf("%d of %d live keys, %v", n, dead, err)
	}
}
