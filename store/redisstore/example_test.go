package redisstore_test

import (
	"context"
	"fmt"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/redisstore"
)

func Example() {
	server, err := miniredis.Run() // in production, a Redis or Valkey
	if err != nil {
		panic(err)
	}
	defer server.Close()

	remote, err := redisstore.OpenURL("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	s := store.WithBreaker(store.WithDeadlines(remote, store.Deadlines{}), store.BreakerOptions{Probe: remote.Alive})
	defer s.Close()

	ctx := context.Background()
	if err := s.Put(ctx, []store.Item{{Key: "a", Value: []byte("one")}, {Key: "b", Value: []byte("two")}}, time.Hour); err != nil {
		panic(err)
	}
	keys := []string{"a", "b", "c"}
	n, err := s.Lead(ctx, keys)
	if err != nil {
		panic(err)
	}
	bufs := [][]byte{make([]byte, 3+store.Spare), make([]byte, 3+store.Spare)}
	i := 0
	for length, err := range s.Get(ctx, keys[:n], bufs) {
		fmt.Printf("%s=%s %v\n", keys[i], bufs[i][:length], err)
		i++
	}
	// Output:
	// a=one <nil>
	// b=two <nil>
}

func ExampleRedact() {
	fmt.Println(redisstore.Redact("redis://worker:hunter2@cache:6379"))
	// Output: redis://worker:xxxxx@cache:6379
}
