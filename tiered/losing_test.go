package tiered_test

import (
	"context"
	"iter"
	"testing"

	"github.com/kvtier/kvtier/store"
)

// losing is a store that evicts keys between the question what there is and the first read.
type losing struct {
	store.Store
	t    testing.TB
	keys []string
}

func (l *losing) Get(ctx context.Context, keys []string, bufs [][]byte) iter.Seq2[int, error] {
	if _, err := l.Delete(ctx, l.keys); err != nil {
		l.t.Error(err)
	}
	return l.Store.Get(ctx, keys, bufs)
}
