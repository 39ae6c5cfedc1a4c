package worker_test

import (
	"sync"
	"testing"

	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/llama"
)

// A replica that nobody has tuned: four long answers do not keep a short request waiting for one of them to end.
func TestLongAnswersLeaveRoomForAShortOne(t *testing.T) {
	r := replicaOf(t, open(t, v2, llama.Options{}), nil)
	const long = 4
	var begun, ended sync.WaitGroup
	var mu sync.Mutex
	done := 0
	begun.Add(long)
	for i := range long {
		ended.Go(func() {
			first := true
			_, err := r.Stream(t.Context(), worker.Request{Tokens: []int32{int32(3 + i), 5, 7}, MaxTokens: 600}, func(worker.Event) {
				if first {
					first = false
					begun.Done()
				}
			})
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			done++
			mu.Unlock()
		})
	}
	begun.Wait()
	complete(t, r, worker.Request{Tokens: []int32{9, 8, 7}, MaxTokens: 1})
	mu.Lock()
	before := done
	mu.Unlock()
	ended.Wait()
	if before > 0 {
		t.Errorf("%d of %d long answers had ended before the short one was answered", before, long)
	}
}
