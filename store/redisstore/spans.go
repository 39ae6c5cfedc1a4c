package redisstore

import (
	"context"
	"sync"
	"sync/atomic"
)

const (
	// pipelineBytes is how many bytes of small values share one round trip. It only has to hide the round trip: more would make
	// the reader wait for the first value, and large values lose throughput in pipelines.
	pipelineBytes = 512 << 10
	// pipelineKeys bounds the commands of one round trip when the values are tiny.
	pipelineKeys = 512
	// outstanding is how many round trips of one call run at once, each on its own connection: the server prepares a reply while
	// the client reads another. More add nothing, and the sum of replies must stay small.
	outstanding = 3
)

// span is a run of consecutive keys that travel together.
type span struct {
	from, to int // keys[from:to]
	bytes    int // of their buffers
}

// spansOf cuts n values, size(i) bytes each, into spans of at most pipelineBytes; a larger value travels alone.
func spansOf(n int, size func(int) int) []span {
	var spans []span
	for i := 0; i < n; {
		s := span{from: i, to: i + 1, bytes: size(i)}
		for s.to < n && s.to-s.from < pipelineKeys && s.bytes+size(s.to) <= pipelineBytes {
			s.bytes += size(s.to)
			s.to++
		}
		spans = append(spans, s)
		i = s.to
	}
	return spans
}

// flight is the transfer of spans: a few at a time, begun in order, each awaited on its own.
type flight struct {
	spans  []span
	done   []chan struct{}
	next   atomic.Int64
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// launch begins to call move(ctx, i) for every span i, with no more than outstanding calls at once. Calls that have not
// started when ctx ends still happen, with the ended context, so that every span gets its result.
func launch(ctx context.Context, spans []span, move func(context.Context, int)) *flight {
	f := &flight{spans: spans, done: make([]chan struct{}, len(spans))}
	for i := range f.done {
		f.done[i] = make(chan struct{})
	}
	ctx, f.cancel = context.WithCancel(ctx)
	for range min(outstanding, len(spans)) {
		f.wg.Go(func() {
			for {
				i := int(f.next.Add(1)) - 1
				if i >= len(f.spans) {
					return
				}
				move(ctx, i)
				close(f.done[i])
			}
		})
	}
	return f
}

// stop prevents what has not begun and waits for what has: afterwards nobody touches the caller's memory.
func (f *flight) stop() {
	f.cancel()
	f.wg.Wait()
}

// carry moves one span's bytes under the store's bound on bytes in flight.
func (s *Store) carry(ctx context.Context, bytes int, move func()) error {
	weight := int64(min(bytes, s.opts.MaxInFlightBytes))
	if err := s.inFlight.Acquire(ctx, weight); err != nil {
		return err
	}
	defer s.inFlight.Release(weight)
	if err := s.usable(ctx); err != nil { // Acquire may succeed although ctx has ended
		return err
	}
	move()
	return nil
}
