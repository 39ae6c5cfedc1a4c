package memstore_test

import (
	"context"
	"fmt"
	"time"

	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/memstore"
)

// A bounded store evicts what was used least recently.
func Example() {
	ctx := context.Background()
	s := memstore.New(memstore.Options{MaxBytes: 1 << 10})
	defer s.Close()
	for _, key := range []string{"a", "b", "c"} {
		if err := s.Put(ctx, []store.Item{{Key: key, Value: make([]byte, 300)}}, time.Hour); err != nil {
			fmt.Println(err)
		}
	}
	there, _ := s.Lead(ctx, []string{"b", "c"})
	gone, _ := s.Lead(ctx, []string{"a"})
	fmt.Println(there, gone, s.Stats().Evicted)
	// Output: 2 0 1
}
