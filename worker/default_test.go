package worker_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/llama"
)

// A replica that nobody has tuned: four long answers do not keep a short request waiting for one of them to end, be their length given or whatever
// the context has room for, as that of a chat without max_tokens.
func TestLongAnswersLeaveRoomForAShortOne(t *testing.T) {
	for name, most := range map[string]int{"600 tokens": 600, "the rest of the context": worker.FillContext} {
		t.Run(name, func(t *testing.T) {
			r := replicaOf(t, open(t, v2, llama.Options{}), nil)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var begun, ended sync.WaitGroup
			for i := range 4 {
				begun.Add(1)
				ended.Go(func() {
					var once sync.Once
					q := worker.Request{Tokens: []int32{int32(3 + i), 5, 7}, MaxTokens: most, IgnoreEOS: true}
					if _, err := r.Stream(ctx, q, func(worker.Event) { once.Do(begun.Done) }); !errors.Is(err, context.Canceled) {
						t.Errorf("a long answer had ended before the short one was there: %v", err)
					}
				})
			}
			begun.Wait()
			complete(t, r, worker.Request{Tokens: []int32{9, 8, 7}, MaxTokens: 1})
			cancel()
			ended.Wait()
		})
	}
}
