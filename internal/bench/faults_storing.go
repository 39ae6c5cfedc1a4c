package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/kvtier/kvtier/internal/faultproxy"
	"github.com/kvtier/kvtier/worker"
)

func flushed(ctx context.Context, b *faultBench) (FaultRow, error) {
	w, prompts, err := b.stored(ctx)
	if err != nil {
		return FaultRow{}, err
	}
	var pairs []pair
	for len(pairs) < b.o.Requests {
		if err := b.admin.FlushAll(ctx).Err(); err != nil {
			return FaultRow{}, err
		}
		p, err := b.measure(ctx, w, again(prompts, faultTurn))
		if err != nil {
			return FaultRow{}, err
		}
		pairs = append(pairs, p...)
	}
	row := summary(pairs)
	if err := b.admin.FlushAll(ctx).Err(); err != nil {
		return row, err
	}
	row.Recovery, err = b.recovery(ctx, w, prompts[0])
	return row, err
}

// outOfMemory reads what is stored and computes what cannot be.
func outOfMemory(ctx context.Context, b *faultBench) (FaultRow, error) {
	w, prompts, err := b.stored(ctx)
	if err != nil {
		return FaultRow{}, err
	}
	used, err := b.used(ctx)
	if err != nil {
		return FaultRow{}, err
	}
	if err := b.limit(ctx, used+64<<10); err != nil {
		return FaultRow{}, err
	}
	var pairs []pair
	hits, reads := 0, 0
	for len(pairs) < b.o.Requests {
		for i, p := range [][][]int32{again(prompts, faultTurn), b.prompts(faultTurn, b.o.NewTokens)} {
			got, err := b.measure(ctx, w, p)
			if err != nil {
				return FaultRow{}, err
			}
			for _, x := range got {
				if i == 0 {
					reads++
					if x.reused > 0.5 {
						hits++
					}
				}
			}
			pairs = append(pairs, got...)
		}
	}
	row := summary(pairs)
	row.Note = fmt.Sprintf("%d of %d reads of stored prefixes hit", hits, reads)
	if hits == reads {
		row.Note = fmt.Sprintf("all %d reads of stored prefixes hit", reads)
	}
	before := w.Cache.Stats().Spilled
	if err := b.restore(ctx); err != nil {
		return row, err
	}
	start := time.Now()
	for time.Since(start) < time.Minute {
		if w.Cache.Stats().Spilled > before {
			s := time.Since(start).Seconds()
			row.Recovery = &s
			row.Note += "; recovery is of storing"
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return row, nil
}

// spillOverload gives the worker four times as much to store as the link takes. Requests without a cache come from a time in which nothing is
// stored.
func spillOverload(ctx context.Context, b *faultBench) (FaultRow, error) {
	const bound = 4 << 20
	w, err := b.start(ctx, true, faultHot, bound)
	if err != nil {
		return FaultRow{}, err
	}
	start, done := time.Now(), 0
	for _, p := range b.prompts(2*faultTurn, b.o.NewTokens) {
		if _, err := w.Replica.Complete(ctx, worker.Request{Tokens: p, MaxTokens: faultTokens}); err != nil {
			return FaultRow{}, err
		}
		done += len(p)
	}
	made := float64(done/w.Cache.Stats().BlockTokens) * w.blockBytes() / time.Since(start).Seconds()
	if err := b.proxy.Set(faultproxy.Faults{BytesPerSecond: int64(made / 4)}); err != nil {
		return FaultRow{}, err
	}
	stop := make(chan struct{})
	peak := make(chan int64, 1)
	go func() {
		var most int64
		for {
			select {
			case <-stop:
				peak <- most
				return
			case <-time.After(time.Millisecond):
				most = max(most, w.Cache.Sizes().SpillBytes)
			}
		}
	}()
	var pairs []pair
	for len(pairs) < 2*b.o.Requests {
		prompts := b.prompts(4*faultTurn, b.o.NewTokens)
		got := make([]pair, len(prompts))
		var tokens [][]int32
		for i, p := range prompts {
			res, err := w.Replica.Complete(ctx, worker.Request{Tokens: p, MaxTokens: faultTokens})
			got[i] = pair{with: res.TTFT, failed: err != nil}
			tokens = append(tokens, res.Tokens)
		}
		drained, cancel := context.WithTimeout(ctx, 20*time.Second)
		err := w.Cache.Flush(drained)
		cancel()
		if err != nil {
			return FaultRow{}, err
		}
		for i, p := range prompts {
			res, err := w.Replica.Complete(ctx, worker.Request{Tokens: p, MaxTokens: faultTokens, NoCache: true})
			if err != nil {
				return FaultRow{}, err
			}
			got[i].plain, got[i].same = res.TTFT, fmt.Sprint(res.Tokens) == fmt.Sprint(tokens[i])
		}
		pairs = append(pairs, got...)
	}
	close(stop)
	row := summary(pairs)
	s := w.Cache.Stats()
	most, side := <-peak, "below"
	if most > s.SpillMaxBytes {
		side = "ABOVE"
	}
	row.Note = fmt.Sprintf("%.1f MB/s to store, %.1f MB/s taken; queue at most %.2f MiB, %s its bound of %d MiB; %d blocks stored, %d dropped",
		made/1e6, made/4e6, float64(most)/(1<<20), side, bound>>20, s.Spilled, s.SpillDropped["overflow"]+s.SpillDropped["incomplete"])
	return row, nil
}
