package store_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/store/storetest"
)

// Values are put, counted from the first without a gap, and read into buffers of the caller.
func Example() {
	ctx := context.Background()
	s := store.WithBreaker(memstore.New(memstore.Options{}), store.BreakerOptions{})
	defer s.Close()
	if err := s.Put(ctx, []store.Item{{Key: "a", Value: []byte("first")}, {Key: "b", Value: []byte("second")}}, time.Hour); err != nil {
		fmt.Println(err)
	}
	keys := []string{"a", "b", "c"}
	lead, err := s.Lead(ctx, keys)
	fmt.Println(lead, err)

	bufs := make([][]byte, len(keys))
	for i := range bufs {
		bufs[i] = make([]byte, 100+store.Spare)
	}
	i := 0
	for n, err := range s.Get(ctx, keys, bufs) {
		if errors.Is(err, store.ErrNotFound) {
			fmt.Println("there is no", keys[i])
		} else {
			fmt.Printf("%s %v\n", bufs[i][:n], err)
		}
		i++
	}
	// Output:
	// 2 <nil>
	// first <nil>
	// second <nil>
	// there is no c
}

// Each item of a batch has an outcome of its own: here one node of a cluster is full.
func ExampleErrorOf() {
	ctx := context.Background()
	s := storetest.NewFaulty(memstore.New(memstore.Options{}))
	s.Inject(storetest.Fault{Op: storetest.Put, Keys: func(key string) bool { return key == "b" }, Err: store.ErrFull})
	items := []store.Item{{Key: "a"}, {Key: "b"}, {Key: "c"}}
	err := s.Put(ctx, items, time.Hour)
	for i, it := range items {
		switch why := store.ErrorOf(err, i); {
		case why == nil:
			fmt.Println(it.Key, "is stored")
		case errors.Is(why, store.ErrFull):
			fmt.Println(it.Key, "has to wait")
		}
	}
	// Output:
	// a is stored
	// b has to wait
	// c is stored
}
