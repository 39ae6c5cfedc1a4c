package storetest_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/store/storetest"
)

// A back end proves in its own tests that it keeps the contract.
func ExampleRun() {
	// In a file of tests:
	_ = func(t *testing.T) {
		storetest.Run(t, storetest.Harness{
			Open: func(testing.TB) store.Store { return memstore.New(memstore.Options{}) },
		})
	}
}

// A store that fails on command: the second call of Put, and then everything that is on one node of three.
func ExampleFaulty() {
	ctx := context.Background()
	s := storetest.NewFaulty(memstore.New(memstore.Options{}))
	put := func() error { return s.Put(ctx, []store.Item{{Key: "a"}}, time.Hour) }

	s.Inject(storetest.Fault{Op: storetest.Put, Skip: 1, Count: 1, Err: store.ErrFull})
	fmt.Println(put())
	fmt.Println(put())
	s.Inject(storetest.Fault{Keys: storetest.OnNode(1, 3), Err: storetest.ErrInjectedNode})
	keys := []string{"a", "b", "c", "d"}
	for i, key := range keys {
		_, err := s.Lead(ctx, keys[i:i+1])
		fmt.Println(key, err)
	}
	// Output:
	// <nil>
	// store: full
	// a store: one node of several: storetest: injected fault
	// b store: one node of several: storetest: injected fault
	// c <nil>
	// d store: one node of several: storetest: injected fault
}
